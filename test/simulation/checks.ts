// What must be true of every run, whatever went wrong: compared are the log, the copies' journals and states, and what clients were told.

import { emptyStore } from "../../gateway/foundation.ts";
import type { Entry } from "../../gateway/entry.ts";
import { ReaderState } from "../../gateway/state/state.ts";
import { doConflict } from "../../gateway/scheduler.ts";
import { Registers, valueOf } from "./backend.ts";
import type { Executed, SimBackend } from "./backend.ts";
import type { Operation, Try } from "./clients.ts";
import type { Service } from "./site.ts";

interface Logged {
  readonly position: number;
  readonly entry: Entry;
  readonly op: string;
  readonly tryId: string;
  /** What the one right execution answers. */
  readonly status: number;
  readonly body: string;
  readonly isRepeatable: boolean;
}

export function check(service: Service): void {
  const { site } = service;
  const { logged, skipped } = foldLog(service);
  const model = new Registers();
  const applied: Logged[] = logged.map(({ position, entry }) => {
    const op = valueOf(entry.headers, "x-op") ?? "";
    const text = Buffer.isBuffer(entry.body) ? entry.body.toString("utf8") : "";
    const answer = model.execute(entry.method, entry.target, op, text);
    const tryId = valueOf(entry.headers, "x-try") ?? "";
    return { position, entry, op, tryId, ...answer, isRepeatable: entry.method === "PUT" };
  });
  for (const backend of site.backends) checkJournal(service, backend, applied, skipped, model);
  checkAnswers(service, applied);
  // One copy that forgot answers alone, until the majority or its witness tells.
  if (!site.backends.some((it) => it.hasForgotten)) checkReads(service, applied);
}

function foldLog({ site, world }: Service): {
  readonly logged: readonly { readonly position: number; readonly entry: Entry }[];
  readonly skipped: ReadonlySet<number>;
} {
  const state = new ReaderState(emptyStore, site.log.epoch, 1);
  const entries: { position: number; entry: Entry }[] = [];
  const skipped = new Set<number>();
  site.log.records.forEach((bytes, at) => {
    const folded = state.fold({ sequence: at + 1, bytes });
    if (folded.isDropped) return;
    for (const { position, item, fate } of folded.items) {
      if (item.kind === "skip") skipped.add(item.position);
      if (item.kind === "entry" && fate.kind === "applied") entries.push({ position, entry: item });
    }
  });
  if (skipped.size > 0) world.note(`skipped: ${[...skipped].join(" ")}`);
  return { logged: entries.filter(({ position }) => !skipped.has(position)), skipped };
}

function isLive({ gateways }: Service, backend: SimBackend): boolean {
  return gateways.some((it) => it.replicas?.own.some((own) => own.name === backend.name && own.state === "live"));
}

/** Each entry once, none else, in the log's order wherever that matters. Of a copy that is not live only that it did nothing twice or out of order. */
function checkJournal(
  service: Service,
  backend: SimBackend,
  applied: readonly Logged[],
  skipped: ReadonlySet<number>,
  model: Registers,
): void {
  const { world } = service;
  const isComplete = isLive(service, backend) && !backend.hasForgotten;
  const byPosition = new Map(applied.map((it) => [it.position, it]));
  const journal = backend.journal.filter((it): it is Executed & { position: number } => it.position !== null);
  const times = new Map<number, number>();
  for (const { position, op } of journal) {
    times.set(position, (times.get(position) ?? 0) + 1);
    const entry = byPosition.get(position);
    if (!isComplete && skipped.has(position)) continue;
    if (entry === undefined) world.fail(`${backend.name} executed ${op} at ${position}, which the log does not apply`);
    else if (entry.op !== op) world.fail(`${backend.name} executed ${op} at ${position}, the log has ${entry.op}`);
  }
  for (const it of applied) {
    const count = times.get(it.position) ?? 0;
    if (count === 0 && isComplete) world.fail(`${backend.name} never executed ${it.op} at ${it.position}`);
    if (count > 1 && !it.isRepeatable) world.fail(`${backend.name} executed ${it.op} at ${it.position} ${count} times`);
  }
  // Once in the order of first executions, once in that of last ones: a run that is repeated keeps both.
  const orders = [journal.map((it) => it.position), journal.map((it) => it.position).reverse()];
  orders.forEach((order, at) => {
    const firsts = [...new Set(order)].flatMap((position) => byPosition.get(position) ?? []);
    if (at === 1) firsts.reverse();
    const latest: Logged[] = [];
    for (const it of firsts) {
      const wrong = latest.find(
        (other) => other.position > it.position && doConflict(other.entry.orderKeys, it.entry.orderKeys),
      );
      if (wrong !== undefined)
        world.fail(`${backend.name} executed ${it.op} at ${it.position} after ${wrong.op} at ${wrong.position}`);
      latest.push(it);
    }
  });
  if (isComplete && backend.registers.text() !== model.text())
    world.fail(`the state of ${backend.name} is not that of the log: ${backend.registers.text()} ${model.text()}`);
}

/** Everything that was acknowledged is in the log, with that answer; what was called not executed is not. */
function checkAnswers({ world, clients, site }: Service, applied: readonly Logged[]): void {
  const byTry = new Map(applied.map((it) => [it.tryId, it]));
  const byOp = new Map<string, Logged>();
  for (const it of applied) {
    const other = byOp.get(it.op);
    if (other !== undefined) world.fail(`${it.op} is applied twice, at ${other.position} and ${it.position}`);
    byOp.set(it.op, it);
  }
  const hasForgotten = site.backends.some((it) => it.hasForgotten);
  const onceBy = new Map<string, string[]>();
  for (const backend of site.backends)
    for (const { position, op } of backend.journal)
      if (position === null) onceBy.set(op, [...(onceBy.get(op) ?? []), backend.name]);
  for (const operation of clients.operations) {
    if (operation.method === "GET") continue;
    const answers = new Set<string>();
    for (const it of operation.tries) {
      if (it.told === null) continue;
      const { told } = it;
      if (operation.kind === "once") {
        if (told.kind === "answer") answers.add(`${told.status} ${told.body}`);
        continue;
      }
      const entry = byOp.get(operation.op);
      if (told.kind === "answer") {
        if (told.status >= 500) continue;
        answers.add(`${told.position} ${told.status} ${told.body}`);
        if (entry === undefined || entry.position !== told.position)
          world.fail(
            `${operation.op} was acknowledged at ${told.position} and is ${entry?.position ?? "nowhere"} in the log`,
          );
        else if (!hasForgotten && (entry.status !== told.status || entry.body !== told.body))
          world.fail(
            `${operation.op} was answered ${told.status} ${told.body} instead of ${entry.status} ${entry.body}`,
          );
      } else if (told.kind === "problem") {
        if (told.outcome === "not-executed" && byTry.has(it.id))
          world.fail(`${operation.op}/${it.id} was called not executed (${told.code}) and is in the log`);
        if (told.outcome === "executed" && entry === undefined)
          world.fail(`${operation.op} was called executed (${told.code}) and is not in the log`);
        if (told.code === "GW_INTERNAL" || told.code === "GW_LOG_CORRUPT") world.fail(`${operation.op}: ${told.code}`);
      } else if (told.kind === "refused" && byTry.has(it.id))
        world.fail(`${operation.op} was refused and is in the log`);
    }
    if (answers.size > 1) world.fail(`${operation.op} was answered differently: ${[...answers].join(" | ")}`);
    if (operation.kind === "once") {
      const times = onceBy.get(operation.op)?.length ?? 0;
      if (times > 1) world.fail(`${operation.op}, which is for one copy, was executed ${times} times`);
      if (answers.size > 0 && times === 0 && !hasForgotten)
        world.fail(`${operation.op} was answered by nobody that still knows it`);
    }
  }
}

interface Seen {
  readonly what: string;
  /** Where in the order of writes to this register it stands. */
  readonly version: number;
  readonly isRead: boolean;
  readonly fromMs: number;
  readonly toMs: number;
}

/**
 * Registers and counters are linearizable: the log gives the order of the writes, a read tells which write it saw, and no two operations of which one
 * ended before the other began stand the other way round.
 */
function checkReads({ world, clients, plan }: Service, applied: readonly Logged[]): void {
  const byOp = new Map(clients.operations.map((it) => [it.op, it]));
  for (let key = 0; key < plan.keys; key++)
    for (const kind of ["r", "c"] as const) {
      const seen: Seen[] = [];
      /** Values in the order they were written. */
      const versions = new Map<string, number>([[kind === "r" ? "null" : "0", 0]]);
      const model = new Registers();
      let version = 0;
      for (const it of applied) {
        const before = valueIn(model, kind, String(key));
        const text = Buffer.isBuffer(it.entry.body) ? it.entry.body.toString("utf8") : "";
        model.execute(it.entry.method, it.entry.target, it.op, text);
        const after = valueIn(model, kind, String(key));
        const operation = byOp.get(it.op);
        if (after !== before) versions.set(after, ++version);
        if (operation === undefined || (after === before && !concerns(operation, kind, key))) continue;
        const [first] = operation.tries;
        const acknowledged = operation.tries.find(({ told }) => told?.kind === "answer");
        seen.push({
          what: `${it.op} at ${it.position}`,
          version,
          isRead: after === before,
          fromMs: first?.invokedMs ?? 0,
          toMs: acknowledged?.endedMs ?? Number.POSITIVE_INFINITY,
        });
      }
      for (const operation of clients.operations) {
        if (operation.kind !== (kind === "r" ? "get" : "get-count") || operation.id !== String(key)) continue;
        for (const it of operation.tries) {
          const value = readIn(it);
          if (value === null) continue;
          const found = versions.get(value);
          if (found === undefined) world.fail(`${operation.op} read ${value} of ${kind}${key}, which nobody wrote`);
          else
            seen.push({
              what: `${operation.op} read ${value}`,
              version: found,
              isRead: true,
              fromMs: it.invokedMs,
              toMs: it.endedMs,
            });
        }
      }
      findInversion(seen, (earlier, later) =>
        world.fail(`${kind}${key} is not linearizable: ${later.what} began after ${earlier.what} had ended`),
      );
    }
}

/** By the time they began; `latest` is the one with the highest version of those that ended before. */
function findInversion(seen: readonly Seen[], tell: (earlier: Seen, later: Seen) => void): void {
  const byStart = seen.toSorted((a, b) => a.fromMs - b.fromMs);
  const byEnd = seen.toSorted((a, b) => a.toMs - b.toMs);
  let ended = 0;
  let latest: Seen | null = null;
  for (const it of byStart) {
    for (; ended < byEnd.length && (byEnd[ended] as Seen).toMs < it.fromMs; ended++)
      if (latest === null || (byEnd[ended] as Seen).version > latest.version) latest = byEnd[ended] as Seen;
    if (latest !== null && latest.version > it.version) tell(latest, it);
  }
  // A read of a write that began after the read had ended.
  for (const read of seen) {
    if (!read.isRead) continue;
    const write = seen.find((it) => !it.isRead && it.version === read.version);
    if (write !== undefined && write.fromMs > read.toMs) tell(read, write);
  }
}

const concerns = (operation: Operation, kind: "r" | "c", key: number): boolean =>
  kind === "r" && operation.kind === "cas" && operation.id === String(key);

const valueIn = (model: Registers, kind: "r" | "c", key: string): string =>
  kind === "r" ? String(model.values.get(key) ?? null) : String(model.counts.get(key) ?? 0);

function readIn({ told }: Try): string | null {
  if (told?.kind !== "answer" || told.status !== 200) return null;
  return String((JSON.parse(told.body) as { value: unknown }).value);
}
