// The checks of a history: what the clients were told against what each backend wrote into its journal.
// Each check returns sentences, one a fault, and an empty list when the promise held.

import { fateOf } from "./clients.ts";
import type { Attempt, Sent } from "./clients.ts";

/** One execution, as a backend journalled it. */
export interface Executed {
  /** What the clients call the request: `?id=` of the target. */
  readonly id: string;
  /** `Replication-Position` as the backend got it. */
  readonly position: number;
  readonly key: string | null;
  readonly role: string | null;
}

export interface Evidence {
  readonly sent: readonly Sent[];
  /** Per backend, in the order in which it executed. Only backends that are live (or whose state is judged). */
  readonly journals: ReadonlyMap<string, readonly Executed[]>;
  /** Positions that the log holds and that are to be applied (not duplicates, not skipped); absent: not looked at. */
  readonly log?: ReadonlySet<number>;
}

/** All checks; at most `limit` faults of each, so that a broken run stays readable. */
export function checkLedger(evidence: Evidence, limit = 10): string[] {
  const checks = [
    acknowledgedOnce,
    repeatedOnlyWhereAllowed,
    notExecutedNowhere,
    sameEverywhere,
    inLogOrder,
    onePosition,
    oneAnswer,
    onePrimary,
    nothingFromNowhere,
    logAndJournalsAgree,
  ];
  return checks.flatMap((check) => {
    const faults = check(evidence);
    const more = faults.length - limit;
    return more > 0 ? [...faults.slice(0, limit), `${check.name}: ${more} more`] : faults;
  });
}

/** Every request that was answered `executed` stands in every journal, under the position that the client was told. */
export function acknowledgedOnce({ sent, journals }: Evidence): string[] {
  const faults: string[] = [];
  for (const [backend, journal] of journals) {
    const rows = byId(journal);
    for (const one of sent) {
      if (one.call.method === "GET" || fateOf(one) !== "executed") continue;
      const row = rows.get(one.id)?.[0];
      if (row === undefined) {
        faults.push(`${backend}: ${name(one)} was acknowledged and is missing`);
        continue;
      }
      for (const attempt of one.attempts) {
        if (attempt.outcome !== "executed") continue;
        if (attempt.position === null) faults.push(`${name(one)} was acknowledged without a Replication-Position`);
        else if (attempt.position !== row.position) {
          faults.push(`${backend}: ${name(one)} was acknowledged at ${attempt.position} and stands at ${row.position}`);
        }
      }
      if (row.key !== one.key) faults.push(`${backend}: ${name(one)} came with the key ${row.key}`);
    }
  }
  return faults;
}

/** Nothing was executed twice by one backend, but for requests that the rules call repeatable. */
export function repeatedOnlyWhereAllowed({ sent, journals }: Evidence): string[] {
  const known = new Map(sent.map((one) => [one.id, one]));
  const faults: string[] = [];
  for (const [backend, journal] of journals) {
    for (const [id, rows] of byId(journal)) {
      const one = known.get(id);
      if (rows.length > 1 && one?.call.isRepeatable !== true) {
        faults.push(
          `${backend}: ${one ? name(one) : id} was executed ${rows.length} times (${rows.map((r) => r.position).join(", ")})`,
        );
      }
    }
  }
  return faults;
}

/** What every answer called `not-executed` was executed by nobody. */
export function notExecutedNowhere({ sent, journals }: Evidence): string[] {
  const nowhere = new Map(sent.filter((one) => fateOf(one) === "not-executed").map((one) => [one.id, one]));
  const faults: string[] = [];
  for (const [backend, journal] of journals) {
    for (const row of journal) {
      const one = nowhere.get(row.id);
      if (one) faults.push(`${backend}: ${name(one)} was answered not-executed and was executed at ${row.position}`);
    }
  }
  return faults;
}

/** All backends executed the same requests, acknowledged or not. */
export function sameEverywhere({ journals }: Evidence): string[] {
  const all = new Set([...journals.values()].flatMap((journal) => journal.map((row) => row.id)));
  const faults: string[] = [];
  for (const [backend, journal] of journals) {
    const own = new Set(journal.map((row) => row.id));
    for (const id of all) {
      if (own.has(id)) continue;
      const others = [...journals].filter(([, rows]) => rows.some((row) => row.id === id)).map(([other]) => other);
      faults.push(`${backend}: ${id} is missing, ${others.join(" and ")} executed it`);
    }
  }
  return faults;
}

/**
 * What conflicts was executed in the order of the log. Repeatable requests may come again after a crash, but only as a whole run:
 * after going back, everything that followed is executed again in order, so that the last effect is the log's.
 */
export function inLogOrder({ sent, journals }: Evidence): string[] {
  const orderKeys = new Map(sent.map((one) => [one.id, one.call.orderKeys]));
  const keys = new Set(sent.flatMap((one) => one.call.orderKeys));
  const faults: string[] = [];
  for (const [backend, journal] of journals) {
    const lanes = new Map<string, Executed[]>([...keys].map((key) => [key, []]));
    const barriers: Executed[] = [];
    for (const row of journal) {
      const of = orderKeys.get(row.id) ?? [];
      if (of.length === 0) {
        barriers.push(row);
        for (const lane of lanes.values()) lane.push(row);
      } else for (const key of of) lanes.get(key)?.push(row);
    }
    for (const [key, lane] of [...lanes, ["all others", barriers] as const]) {
      const fault = orderFault(lane);
      if (fault !== null) faults.push(`${backend}: ${key}: ${fault}`);
    }
  }
  return faults;
}

/** Null: each row is the next one of the log, or goes back and repeats everything from there. */
function orderFault(lane: readonly Executed[]): string | null {
  const positions = [...new Set(lane.map((row) => row.position))].sort((a, b) => a - b);
  const rank = new Map(positions.map((position, i) => [position, i]));
  let last = -1;
  for (const row of lane) {
    const own = rank.get(row.position) ?? 0;
    if (own > last + 1) return `${row.position} was executed before ${positions[last + 1]}`;
    last = own;
  }
  return last === positions.length - 1 ? null : `${positions[last]} was repeated, and not what had followed it`;
}

/** A request has one position, the same on all backends; a position holds one request. */
export function onePosition({ journals }: Evidence): string[] {
  const ofId = new Map<string, number>();
  const ofPosition = new Map<number, string>();
  const faults: string[] = [];
  for (const [backend, journal] of journals) {
    for (const row of journal) {
      const position = ofId.get(row.id) ?? row.position;
      const id = ofPosition.get(row.position) ?? row.id;
      if (position !== row.position) faults.push(`${backend}: ${row.id} stands at ${row.position} and at ${position}`);
      if (id !== row.id) faults.push(`${backend}: ${row.position} holds ${row.id} and ${id}`);
      ofId.set(row.id, position);
      ofPosition.set(row.position, id);
    }
  }
  return faults;
}

/** Whatever a key was answered first, it was answered ever after, byte for byte; and later answers say that they are replays. */
export function oneAnswer({ sent }: Evidence): string[] {
  const faults: string[] = [];
  for (const one of sent) {
    if (one.key === null) continue;
    const answers = one.attempts.filter((attempt) => attempt.outcome === "executed" && attempt.code === null);
    const first = answers[0];
    if (first === undefined) continue;
    for (const answer of answers.slice(1)) {
      const differs = difference(first, answer);
      if (differs !== null) faults.push(`${name(one)} was answered twice, with different ${differs}`);
      if (!answer.isReplayed) faults.push(`${name(one)} was answered again without Idempotency-Replayed`);
    }
  }
  return faults;
}

function difference(a: Attempt, b: Attempt): string | null {
  if (a.status !== b.status) return `statuses: ${a.status} and ${b.status}`;
  if (a.position !== b.position) return `positions: ${a.position} and ${b.position}`;
  if (a.contentType !== b.contentType) return `content types: ${a.contentType} and ${b.contentType}`;
  const [one, other] = [a.body?.toString("latin1") ?? "", b.body?.toString("latin1") ?? ""];
  return one === other ? null : `bodies: ${one} and ${other}`;
}

/** At most one backend executed a request as the primary, and at most once. */
export function onePrimary({ journals }: Evidence): string[] {
  const primaries = new Map<string, string>();
  const faults: string[] = [];
  for (const [backend, journal] of journals) {
    for (const row of journal) {
      if (row.role !== "primary") continue;
      const other = primaries.get(row.id);
      if (other !== undefined) faults.push(`${row.id} was executed as primary by ${other} and by ${backend}`);
      primaries.set(row.id, backend);
    }
  }
  return faults;
}

/** Backends executed only what clients sent. */
export function nothingFromNowhere({ sent, journals }: Evidence): string[] {
  const known = new Set(sent.map((one) => one.id));
  return [...journals].flatMap(([backend, journal]) =>
    journal
      .filter((row) => !known.has(row.id))
      .map((row) => `${backend}: nobody sent ${row.id || "a request without id"} (${row.position})`),
  );
}

/** Every entry of the log stands in every journal, and nothing else does. */
export function logAndJournalsAgree({ journals, log }: Evidence): string[] {
  if (log === undefined) return [];
  const faults: string[] = [];
  for (const [backend, journal] of journals) {
    const own = new Set(journal.map((row) => row.position));
    for (const position of own)
      if (!log.has(position)) faults.push(`${backend}: ${position} was executed and is not in the log`);
    for (const position of log)
      if (!own.has(position)) faults.push(`${backend}: ${position} is in the log and was not executed`);
  }
  return faults;
}

function byId(journal: readonly Executed[]): ReadonlyMap<string, readonly Executed[]> {
  const rows = new Map<string, Executed[]>();
  for (const row of journal) {
    const own = rows.get(row.id);
    if (own) own.push(row);
    else rows.set(row.id, [row]);
  }
  return rows;
}

const name = (sent: Sent): string => `${sent.call.method} ${sent.call.path} ${sent.id}`;
