// Errors of the program itself as a person reads them: what happened, what to do next, and the exit code. Never a stack trace.

import { FaultsError } from "../../rules/document.ts";
import { formatConfigFault } from "../config.ts";
import { GatewayError } from "../errors.ts";
import type { Fault } from "../../rules/document.ts";
import type { ErrorCode } from "../errors.ts";
import type { Terminal } from "./terminal.ts";

const next: Partial<Record<ErrorCode, string>> = {
  GW_DATA_LOCKED: "Stop the other gateway, or give this one a folder of its own: --data DIR",
  GW_LOG_MISSING: "If the log is lost for good, begin a new one: gateway run --new-log. See deploy/runbook.md first",
  GW_LOG_REGRESSED: "Do not start a new log over it. See GW_LOG_REGRESSED in deploy/runbook.md",
  GW_LOG_SERVER_TOO_OLD: "Update the server to 2.10.23 or newer",
  GW_GUARANTEE_TOO_LOW: "Mend what it names, or lower log.minGuarantee",
  GW_SNAPSHOT_MISSING: "Check snapshots.store in the configuration; see deploy/runbook.md",
  GW_STORE_UNAVAILABLE: "Check snapshots.store and whether this machine reaches it",
  GW_REGISTRY_UNAVAILABLE: "Check registry.ethereum.rpc and whether this machine reaches it",
  GW_ENGINE_UNAVAILABLE: "Start the engine, or say where it is: DOCKER_HOST",
  GW_REPLICAS_SHARE_STATE: "Give every replica a state of its own",
  GW_REPLICAS_DIFFER_AT_START: "Make the copies equal before the first request",
};

export function failureOf(error: unknown, terminal: Terminal): number {
  if (error instanceof FaultsError) return faultsOf(error.faults, terminal);
  if (error instanceof GatewayError) {
    const hint = next[error.code] ?? "See deploy/runbook.md";
    tell(terminal, error.message, error.code, `${error.code}: ${hint}`);
    return error.code === "GW_CONFIG_INVALID" ? 2 : 1;
  }
  const { code, message, address, port } = error as NodeJS.ErrnoException & { address?: string; port?: number };
  if (code === "EADDRINUSE") {
    const where = `${address ?? ""}:${port ?? ""}`;
    tell(terminal, `Another program listens on ${where} already.`, code, "Choose another address: --listen, --admin");
  } else if (code === "EACCES" && port !== undefined) {
    tell(terminal, `This user may not listen on port ${port}.`, code, "Ports below 1024 are for root: choose another");
  } else if (code === "EADDRNOTAVAIL") {
    tell(
      terminal,
      `${address ?? "The address"} is not an address of this machine.`,
      code,
      "Check --listen and --admin",
    );
  } else if (code === "ENOSPC") {
    tell(terminal, "The disk is full.", code, "Make room where data lies");
  } else {
    tell(terminal, message ?? String(error), code ?? null, "This may be a defect: please report it with what you did");
  }
  return 1;
}

function faultsOf(faults: readonly Fault[], terminal: Terminal): number {
  if (terminal.isJson)
    terminal.note(JSON.stringify({ error: "The configuration is invalid.", code: "GW_CONFIG_INVALID", faults }));
  else {
    for (const fault of faults) terminal.note(formatConfigFault(fault));
    const count = faults.length === 1 ? "1 fault" : `${faults.length} faults`;
    terminal.note(`${terminal.styleErr("red", "error:")} the configuration is invalid: ${count}`);
  }
  return 2;
}

function tell(terminal: Terminal, message: string, code: string | null, hint: string): void {
  if (terminal.isJson) terminal.note(JSON.stringify({ error: message, code, next: hint }));
  else terminal.note(`${terminal.styleErr("red", "error:")} ${message}\n${hint}`);
}
