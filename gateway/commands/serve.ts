// Runs a gateway until a signal: starts it, says where it is, what it promises and what limits it, and stops it in order.

import { isRepeatable } from "../../rules/rule.ts";
import { formatConfigFault } from "../config.ts";
import { describeStore } from "../config/snapshots.ts";
import { programVersion } from "../config/version.ts";
import { Events } from "../events.ts";
import { openJournal } from "../server/journal.ts";
import { counted, formatBytes, wrap } from "./terminal.ts";
import type { Rule } from "../../rules/rule.ts";
import type { Config } from "../config.ts";
import type { RunningGateway, StartParts } from "../gateway.ts";
import type { Status } from "../status.ts";
import type { Terminal } from "./terminal.ts";

export type StartGateway = (config: Config, parts: StartParts) => Promise<RunningGateway>;

export interface ServeOptions {
  readonly config: Config;
  readonly isNewLog: boolean;
  readonly start: StartGateway | undefined;
  /** Printed below the addresses. */
  readonly more?: (running: RunningGateway, status: Status) => readonly string[];
}

/** Resolves with the exit code once everything is stopped. */
export async function serve(terminal: Terminal, { config, isNewLog, start, more }: ServeOptions): Promise<number> {
  for (const warning of config.warnings)
    terminal.note(`${terminal.styleErr("yellow", "warning:")} ${formatConfigFault(warning)}`);
  const events = new Events();
  const { service, name, logs } = config;
  const journal = await openJournal({ events, service, name, ...logs });
  // Before the start: a signal during a long recovery must not be lost.
  const interruption = interrupted();
  let running: RunningGateway | null = null;
  const renew = (): void => void running?.renew();
  // How most programs are told of renewed certificates.
  if (config.tls !== null || config.upstream !== null) process.on("SIGHUP", renew);
  try {
    const startGateway = start ?? (await startOfGateway());
    const givenUp = new AbortController();
    const starting = startGateway(config, { events, isNewLog, version: programVersion(), signal: givenUp.signal });
    const first = await Promise.race([starting, interruption.once]);
    if (first === "stop") {
      terminal.note("stopping before the start is complete");
      // What waits for a server that is away waits no longer; a start that is nearly done is stopped in order.
      givenUp.abort();
      await starting.then(
        (it) => it.stop(),
        () => undefined,
      );
      return 0;
    }
    running = first;
    const status = await first.control.status();
    announce(terminal, config, first, status, more?.(first, status) ?? []);
    await interruption.once;
    terminal.note("stopping: finishing what is in flight (once more to end at once)");
    await first.stop();
    return 0;
  } finally {
    process.off("SIGHUP", renew);
    interruption.close();
    journal.close();
  }
}

async function startOfGateway(): Promise<StartGateway> {
  const { startGateway } = await import("../gateway.ts");
  return startGateway;
}

/** npm passes on a SIGINT that the terminal has sent to all of its processes already: within this time it is one key that was pressed. */
const samePressMs = 500;

/** The first SIGTERM or SIGINT; a second one ends the process where it stands. */
function interrupted(): { readonly once: Promise<"stop">; readonly close: () => void } {
  const closed = new AbortController();
  const once = new Promise<"stop">((resolve) => {
    let firstMs: number | null = null;
    const onSignal = (signal: NodeJS.Signals): void => {
      firstMs ??= performance.now();
      if (performance.now() - firstMs > samePressMs) process.exit(signal === "SIGINT" ? 130 : 143);
      resolve("stop");
    };
    const signals = ["SIGTERM", "SIGINT"] as const;
    for (const signal of signals) process.on(signal, onSignal);
    closed.signal.addEventListener("abort", () => {
      for (const signal of signals) process.off(signal, onSignal);
    });
  });
  return { once, close: () => closed.abort() };
}

function announce(
  terminal: Terminal,
  config: Config,
  { front, admin }: RunningGateway,
  status: Status,
  more: readonly string[],
): void {
  const limits = writeLimits(config);
  if (terminal.isJson) {
    const replicas = status.replicas.map(({ name, url, state }) => ({ name, url, state }));
    terminal.print(
      JSON.stringify({
        service: config.service,
        name: config.name,
        front,
        admin,
        guarantee: status.guarantee,
        limits,
        replicas,
      }),
    );
    return;
  }
  const row = (label: string, text: string): void => {
    const [head = "", ...rest] = wrap(text, terminal.columns - 13);
    terminal.print(`  ${terminal.style("dim", label.padEnd(10))} ${head}`);
    for (const line of rest) terminal.print(`${" ".repeat(13)}${line}`);
  };
  terminal.print(terminal.style("bold", `${config.service} is served by gateway ${config.name}`));
  terminal.print("");
  row("front", front === null ? "none: other gateways take the requests" : terminal.style("cyan", front));
  row("admin", terminal.style("cyan", admin));
  for (const [i, { name, url, state }] of status.replicas.entries()) {
    row(i === 0 ? "replicas" : "", `${name} ${state}${url === null ? "" : `, ${url}`}`);
  }
  row(
    "log",
    `${status.log.kind}, at most ${formatBytes(status.log.maxBytes)}${status.log.kind === "embedded" ? `, in ${config.data}` : ""}`,
  );
  if (config.snapshots !== null)
    row("snapshots", `in ${describeStore(config.snapshots.store)}, the newest ${config.snapshots.keep} are kept`);
  row("guarantee", `${status.guarantee.level}. ${status.guarantee.why}`);
  for (const [i, limit] of limits.entries()) row(i === 0 ? "writes" : "", limit);
  for (const line of more) terminal.print(line);
}

/** What bounds the rate of replicated requests, in sentences. */
export function writeLimits({ rules: { rules }, log, replicas, snapshots }: Config): string[] {
  const replicated = rules.filter((rule) => rule.mode === "replicate");
  if (replicated.length === 0) return ["no rule replicates: nothing is written to the log"];
  const total = replicated.filter((rule) => rule.order === null);
  const limits: string[] = [];
  if (total.length > 0) limits.push(`one at a time on each copy (no order: in the rule): ${names(total)}`);
  const keyed = replicated.filter((rule) => rule.order !== null);
  if (keyed.length > 0) limits.push(`side by side unless order keys are equal: ${names(keyed)}`);
  const waiting = replicated.filter((rule) => rule.respond !== "first");
  if (waiting.length > 0 && replicas.length > 1)
    limits.push(`answered after more than one copy did: ${names(waiting)}`);
  limits.push(
    log.nats === null
      ? "all that come together wait for one sync of the local disk"
      : `all that come together wait for one publish to NATS (${counted(log.nats.replicas, "copy", "copies")} of the stream)`,
  );
  const held = replicated.filter((rule) => isHeldWhenUnknown(rule));
  const isRebuilt =
    snapshots !== null &&
    (snapshots.capture.kind !== "directory" || replicas.every((one) => one.kind !== "url" || one.stop !== null));
  const becomes = isRebuilt ? "takes a rebuild of that copy" : "leaves that copy held for a person";
  if (held.length > 0) limits.push(`a crash in the middle ${becomes}: ${names(held)}`);
  return limits;
}

/** Nothing tells what became of it, and sending it again might do it twice. */
function isHeldWhenUnknown(rule: Rule): boolean {
  if (rule.probe !== null || rule.unknown === "assume-applied") return false;
  return rule.match.methods === null || rule.match.methods.some((method) => !isRepeatable(rule, method));
}

function names(rules: readonly Rule[]): string {
  const all = rules.map((rule) => (rule.name.startsWith("default-") ? "all else" : rule.name));
  const unique = [...new Set(all)];
  return unique.length > 4 ? `${unique.slice(0, 3).join(", ")} and ${unique.length - 3} more` : unique.join(", ");
}
