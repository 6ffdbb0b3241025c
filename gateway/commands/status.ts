// gateway status: the whole state of a running gateway on one screen.

import { counted, formatBytes, formatCount, formatSeconds, printable, wrap } from "./terminal.ts";
import type { Command } from "commander";
import type { ReplicaStatus, Status } from "../status.ts";
import type { Builder } from "./builder.ts";
import type { ClientOptions } from "./client.ts";
import type { Style, Terminal } from "./terminal.ts";

export function addStatus(program: Command, builder: Builder): void {
  const command = builder.addClient(program, "status", "Show the state of a running gateway", [
    "status",
    "status --json",
    "status --admin http://10.0.0.7:9070 --token-file admin.token",
  ]);
  builder.action<ClientOptions>(command, async (terminal, options) => {
    const { Client } = await import("./client.ts");
    const client = await Client.of(terminal, options);
    const status = await client.get<Status>("/v1/status");
    if (terminal.isJson) terminal.printJson(status);
    else printStatus(terminal, status);
  });
}

/** A log that is full in half a year is no news. */
const untilFullShown = 30 * 86_400;

function printStatus(terminal: Terminal, status: Status): void {
  const { log, keys, guarantee } = status;
  const row = (label: string, text: string): void => {
    const [head = "", ...rest] = wrap(printable(text), terminal.columns - 11);
    terminal.print(`${terminal.style("dim", label.padEnd(10))} ${head}`);
    for (const line of rest) terminal.print(`${" ".repeat(11)}${line}`);
  };
  const condition = status.stopping ? "stopping" : status.paused === null ? "running" : `paused: ${status.paused}`;
  terminal.print(
    `${terminal.style("bold", status.service)} on ${status.name}, ${terminal.style(condition === "running" ? "green" : "yellow", printable(condition))}`,
  );
  row("version", status.version);
  row("guarantee", `${guarantee.level}. ${guarantee.why}`);
  const left =
    log.secondsUntilFull === null || log.secondsUntilFull > untilFullShown
      ? ""
      : `, full in ${formatSeconds(log.secondsUntilFull)}`;
  const trouble = log.state === "ok" ? "" : `, ${log.state.toUpperCase()}`;
  row(
    "log",
    `${log.kind}${trouble}, ${counted(log.entries, "entry", "entries")}, ${formatBytes(log.bytes)} of ${formatBytes(log.maxBytes)}${left}`,
  );
  row("tail", `${status.tail} (epoch ${log.epoch})`);
  row(
    "keys",
    `${keys.kind}${keys.reachable ? "" : ", AWAY"}, ${formatCount(keys.windowRows)} of ${formatCount(keys.windowMax)}`,
  );
  if (status.snapshots !== null) row("snapshots", snapshotsOf(status.snapshots));
  if (status.registry !== null) row("registry", registryOf(status.registry));
  if (status.parked > 0) row("parked", `${counted(status.parked, "entry", "entries")}: gateway log parked`);
  if (status.unfinished > 0)
    row("once-only", `${counted(status.unfinished, "entry", "entries")} maybe not done: gateway log unfinished`);
  if (status.disagreements > 0)
    row("differ", `${counted(status.disagreements, "disagreement")}: gateway disagreement ls`);
  if (status.rulesMismatch) row("rules", "another gateway runs other rules");
  terminal.print("");
  terminal.print(`${status.live} of ${status.replicas.length} replicas live`);
  printReplicas(terminal, status.replicas);
}

function snapshotsOf({ last, kept, bytes, store, trouble }: NonNullable<Status["snapshots"]>): string {
  const newest =
    last === null
      ? "none yet"
      : `version ${last.version} at ${last.position}, ${formatSeconds(Math.max(0, (Date.now() - last.timeMs) / 1000))} old` +
        (last.isVerified ? ", verified" : "");
  const failed = trouble === null ? "" : `. THE LAST ONE FAILED: ${trouble}`;
  return `${newest}; ${formatCount(kept)} kept, ${formatBytes(bytes)} in ${store}${failed}`;
}

function registryOf(registry: NonNullable<Status["registry"]>): string {
  const { kind, where, reachable, trouble, balanceWei, publishedPosition, pendingSeconds } = registry;
  return [
    `${kind} ${where}`,
    ...(reachable ? [] : ["AWAY"]),
    publishedPosition === null ? "nothing published" : `published up to ${publishedPosition}`,
    ...(pendingSeconds > 0 ? [`one waits since ${formatSeconds(pendingSeconds)}`] : []),
    ...(balanceWei === null ? [] : [`${formatEther(balanceWei)} ether left`]),
    ...(trouble === null ? [] : [trouble]),
  ].join(", ");
}

/** Four digits behind the point, rounded down: 0 is said only of an account that can pay for nothing. */
function formatEther(wei: string): string {
  const units = BigInt(wei) / 10n ** 14n;
  return `${units / 10_000n}.${String(units % 10_000n).padStart(4, "0")}`;
}

/** Also of `gateway replica ls`. */
export function printReplicas(terminal: Terminal, replicas: readonly ReplicaStatus[]): void {
  // Of those that the gateway starts: another pid is another life.
  const isManaged = replicas.some(({ pid }) => pid !== null);
  terminal.table(
    [
      { title: "NAME" },
      { title: "STATE" },
      { title: "APPLIED", isNumber: true },
      { title: "LAG", isNumber: true },
      { title: "SENT", isNumber: true },
      { title: "UNKNOWN", isNumber: true },
      ...(isManaged ? [{ title: "PID", isNumber: true }] : []),
      { title: "VERSION", isElastic: true },
      { title: "URL", isElastic: true },
    ],
    replicas.map((replica) => [
      replica.name,
      terminal.style(colourOf(replica), replica.state),
      String(replica.applied),
      formatCount(replica.lag),
      String(replica.inFlight),
      String(replica.unknown.length),
      ...(isManaged ? [replica.pid === null ? "-" : String(replica.pid)] : []),
      replica.version === "" ? "-" : printable(replica.version),
      replica.url ?? "-",
    ]),
  );
  for (const { name, state, reason, unknown } of replicas) {
    if (reason === "" || state === "live") continue;
    const [head = "", ...rest] = wrap(`${name}: ${printable(reason)}`, terminal.columns - 2);
    terminal.print(`  ${head}`);
    for (const line of rest) terminal.print(`  ${line}`);
    if (unknown.length > 0) terminal.print(`  ${name}: gateway replica unknown ${name}`);
  }
}

function colourOf({ state }: ReplicaStatus): Style {
  if (state === "live") return "green";
  return state === "held" || state === "quarantined" || state === "gone" ? "red" : "yellow";
}
