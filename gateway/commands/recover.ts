// gateway recover: brings one copy or the whole service back from a snapshot and the log, and proves that it is what was recorded.

import { CommandError, counted, formatBytes, printable, wrap } from "./terminal.ts";
import { carryOut, checkAttended, configOf, printField, recoveryOf } from "./recovering.ts";
import { versionIn } from "./snapshot.ts";
import type { Command } from "commander";
import type { RecoveryPlan, RecoveryRequest } from "../recoverplan.ts";
import type { Builder } from "./builder.ts";
import type { RecoveringOptions } from "./recovering.ts";
import type { Terminal } from "./terminal.ts";

interface RecoverOptions extends RecoveringOptions {
  readonly replica?: string;
  readonly version?: string;
  readonly to?: string;
  readonly allowImage?: boolean;
}

export function addRecover(program: Command, builder: Builder): void {
  const command = builder
    .add(program, "recover", "Bring back a copy, or the whole service, from a snapshot and the log", [
      "recover --dry-run",
      "recover -c /etc/gateway/gateway.yaml",
      "recover --replica b",
      "recover --version 12 --to 4931584 --yes",
    ])
    .option("-c, --config <file>", "configuration (default: ./gateway.yaml)")
    .option("--data <dir>", "another data folder than the configuration's")
    .option("--replica <name>", "this copy only (default: all)")
    .option("--version <n>", "of the snapshot (default: the newest that is sound)")
    .option("--to <position|time>", "replay up to here (default: all of the log)")
    .option("--allow-image", "although the snapshot is of another image")
    .option("--dry-run", "print the plan and touch nothing")
    .option("--yes", "do not ask");
  command.addHelpText(
    "after",
    "\nThe gateway must not run. Interrupted or killed, the same command goes on where\nit was. What has to be at hand on an empty machine: gateway recovery-kit",
  );
  builder.action<RecoverOptions>(command, async (terminal, options) => {
    const request = requestOf(options);
    checkAttended(terminal, options);
    const config = await configOf(terminal, options);
    const recovery = await recoveryOf(builder);
    const plan = await recovery.planRecovery(config, request);
    const known = plan.replicas.map(({ name }) => name);
    if (request.replica !== null && !known.includes(request.replica)) {
      throw new CommandError(
        `There is no replica "${request.replica}", only ${known.join(", ")}.`,
        "Check --replica.",
        { exitCode: 2 },
      );
    }
    return carryOut(terminal, options, {
      plan,
      print: () => printPlan(terminal, plan),
      question: `The state of ${restored(plan)} is replaced by this.`,
      instead: insteadOf(plan),
      run: (run) => recovery.runRecovery(config, plan, run),
    });
  });
}

function requestOf({ replica, version, to, allowImage }: RecoverOptions): RecoveryRequest {
  return {
    replica: replica ?? null,
    version: version === undefined ? null : versionIn(version),
    to: to === undefined ? null : pointIn(to),
    isOtherImageAllowed: allowImage === true,
  };
}

/** A position, or a time with its zone: one without would mean another moment on another machine. */
function pointIn(text: string): NonNullable<RecoveryRequest["to"]> {
  if (/^\d{1,16}$/.test(text)) return { position: Number(text) };
  const timeMs = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d)$/i.test(text)
    ? Date.parse(text.toUpperCase())
    : Number.NaN;
  if (!Number.isNaN(timeMs)) return { timeMs };
  throw new CommandError(
    `"${text}" is neither a position nor a time.`,
    "Such as: --to 4931584, or --to 2026-11-20T12:00:00Z",
    { exitCode: 2 },
  );
}

const restored = ({ replicas }: RecoveryPlan): string =>
  replicas
    .filter(({ action }) => action === "restore")
    .map(({ name }) => name)
    .join(", ") || "nothing";

function insteadOf({ candidates, version }: RecoveryPlan): string {
  const next = candidates.find((candidate) => candidate.isUsable && candidate.version !== version);
  const offer = next === undefined ? "no other snapshot can be used" : `try: gateway recover --version ${next.version}`;
  return `Nothing was touched; ${offer}. See GW_RECOVERY_REFUSED in deploy/runbook.md`;
}

function printPlan(terminal: Terminal, plan: RecoveryPlan): void {
  const { log, replicas, candidates, refused } = plan;
  terminal.print(terminal.style("bold", `recovery of ${plan.service}`));
  const vouched = plan.source === "registry" ? "as the registry names it" : "as the store has it";
  printField(terminal, "snapshot", `version ${plan.version} at position ${plan.position}, ${vouched}`);
  printField(terminal, "manifest", plan.manifestHash);
  printField(terminal, "anchored", plan.anchoredTo);
  printField(
    terminal,
    "log",
    log.isPresent
      ? `${log.first ?? ""} to ${log.tail ?? ""}, ${counted(log.entriesToReplay, "entry", "entries")} to replay`
      : "is not there: what it held behind the snapshot is lost",
  );
  printField(terminal, "epoch", plan.epoch);
  terminal.print("");
  terminal.table(
    [{ title: "NAME" }, { title: "ACTION" }, { title: "SIZE", isNumber: true }],
    replicas.map(({ name, action, bytes }) => [name, action, action === "keep" ? "-" : formatBytes(bytes)]),
  );
  for (const { name, why } of replicas) if (why !== "") indented(terminal, `${name}: ${why}`);
  const others = candidates.filter(({ version }) => version !== plan.version);
  if (others.length > 0) {
    terminal.print("");
    terminal.table(
      [{ title: "VERSION", isNumber: true }, { title: "POSITION", isNumber: true }, { title: "USABLE" }],
      candidates.map(({ version, position, isUsable }) => [
        String(version),
        String(position),
        isUsable ? terminal.style("green", "yes") : terminal.style("red", "no"),
      ]),
    );
    for (const { version, why } of candidates) if (why !== "") indented(terminal, `${version}: ${why}`);
  }
  if (refused === null && plan.warnings.length > 0) terminal.print("");
}

function indented(terminal: Terminal, text: string): void {
  for (const line of wrap(printable(text), terminal.columns - 2)) terminal.print(`  ${line}`);
}
