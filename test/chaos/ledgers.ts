// The four ledgers of a run: acknowledged ⊆ log, log = executed once on every live copy, same order, equal states. Sentences, one a fault.

import { fateOf } from "../helpers/clients.ts";
import type { Sent } from "../helpers/clients.ts";
import {
  acknowledgedOnce,
  inLogOrder,
  logAndJournalsAgree,
  nothingFromNowhere,
  notExecutedNowhere,
  oneAnswer,
  onePosition,
  onePrimary,
  repeatedOnlyWhereAllowed,
  sameEverywhere,
} from "../helpers/ledger.ts";
import type { Evidence } from "../helpers/ledger.ts";
import type { LogEntry } from "./history.ts";
import type { KvRow } from "./kv.ts";

export interface Ledgers {
  readonly sent: readonly Sent[];
  readonly entries: readonly LogEntry[];
  /** Of live copies, by name. */
  readonly journals: ReadonlyMap<string, readonly KvRow[]>;
  /** Of states that were thrown away for a rebuild. */
  readonly pastJournals: readonly (readonly [name: string, rows: readonly KvRow[]])[];
  readonly roots: ReadonlyMap<string, string>;
}

export interface Tally {
  readonly lost: readonly string[];
  readonly doubled: readonly string[];
  readonly outOfOrder: readonly string[];
  readonly others: readonly string[];
}

/** What each kind of fault is found by. */
const checks: Readonly<Record<keyof Tally, readonly ((evidence: Evidence & Ledgers) => string[])[]>> = {
  lost: [acknowledgedStandsInLog, acknowledgedOnce, sameEverywhere, logAndJournalsAgree],
  doubled: [onceInLog, repeatedOnlyWhereAllowed, onePrimary, pastsHadNothingTwice],
  outOfOrder: [inLogOrder, onePosition, pastsWereInOrder],
  others: [notExecutedIsNotInLog, notExecutedNowhere, oneAnswer, nothingFromNowhere, pastsWereOfTheLog, rootsAreEqual],
};

/** Of each check; a broken run stays readable. */
const faultsMax = 10;

export function checkLedgers(ledgers: Ledgers): Tally {
  const writes = ledgers.sent.filter((one) => one.call.method !== "GET");
  const log = new Set(ledgers.entries.filter(({ fate }) => fate === "applied").map(({ position }) => position));
  const evidence = { ...ledgers, sent: writes, log };
  const found = (kind: keyof Tally): string[] =>
    checks[kind].flatMap((check) => {
      const faults = check(evidence);
      return faults.length > faultsMax
        ? [...faults.slice(0, faultsMax), `${check.name}: ${faults.length - faultsMax} more`]
        : faults;
    });
  return { lost: found("lost"), doubled: found("doubled"), outOfOrder: found("outOfOrder"), others: found("others") };
}

/** What was acknowledged is in the log, at the position that the client was told, and is to be applied. */
function acknowledgedStandsInLog({ sent, entries }: Ledgers): string[] {
  const at = new Map(entries.map((entry) => [entry.position, entry]));
  const faults: string[] = [];
  for (const one of sent)
    for (const { outcome, position } of one.attempts) {
      if (outcome !== "executed") continue;
      const entry = position === null ? undefined : at.get(position);
      if (entry?.id !== one.id || entry.fate !== "applied")
        faults.push(`log: ${one.id} was acknowledged at ${position}, where ${JSON.stringify(entry ?? null)} stands`);
    }
  return faults;
}

function onceInLog({ entries }: Ledgers): string[] {
  const positions = new Map<string, number>();
  const faults: string[] = [];
  for (const { id, position, fate } of entries) {
    if (fate !== "applied") continue;
    const other = positions.get(id);
    if (other !== undefined) faults.push(`log: ${id} is to be applied twice: at ${other} and at ${position}`);
    positions.set(id, position);
  }
  return faults;
}

function notExecutedIsNotInLog({ sent, entries }: Ledgers): string[] {
  const applied = new Map(entries.filter(({ fate }) => fate === "applied").map(({ id, position }) => [id, position]));
  return sent
    .filter((one) => fateOf(one) === "not-executed" && applied.has(one.id))
    .map((one) => `log: ${one.id} was answered not-executed and is to be applied at ${applied.get(one.id)}`);
}

// A state that was thrown away for a rebuild was one of the log all the same: nothing but its entries, in their order, none twice that may
// not be repeated. What it lacked is why it was thrown away.

function pastsWereOfTheLog({ pastJournals, log }: Ledgers & Evidence): string[] {
  return pastJournals.flatMap(([name, rows]) =>
    rows
      .filter((row) => log?.has(row.position) !== true)
      .map((row) => `${name}, before a rebuild: ${row.position} was executed and is not in the log`),
  );
}

function pastsHadNothingTwice({ pastJournals }: Ledgers): string[] {
  return pastJournals.flatMap(([name, rows]) => {
    const executed = new Set<number>();
    return rows.flatMap((row) => {
      if (isRepeatable(row) || !executed.has(row.position)) {
        executed.add(row.position);
        return [];
      }
      return [`${name}, before a rebuild: ${row.id} was executed again at ${row.position}`];
    });
  });
}

/** By key; what may be repeated may go back. */
function pastsWereInOrder({ pastJournals }: Ledgers): string[] {
  return pastJournals.flatMap(([name, rows]) => {
    const last = new Map<string, number>();
    return rows.flatMap((row) => {
      const before = last.get(row.k) ?? -1;
      last.set(row.k, row.position);
      if (row.position >= before || isRepeatable(row)) return [];
      return [`${name}, before a rebuild: ${row.position} was executed after ${before}`];
    });
  });
}

const isRepeatable = (row: KvRow): boolean => row.verb === "put" || row.verb === "delete";

function rootsAreEqual({ roots }: Ledgers): string[] {
  if (new Set(roots.values()).size <= 1) return [];
  return [`states differ: ${[...roots].map(([name, root]) => `${name} ${root.slice(0, 12)}`).join(", ")}`];
}
