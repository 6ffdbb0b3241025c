// The second checker, O(n log n), for histories of any size: the log's positions give the order of all writes, so what remains is to see that
// this order fits the clock, that every answer is the one it gives, and that every read saw a state it was allowed to see.

import { createModel, describeOperation, kindOf } from "./operation.ts";
import type { Operation, Value } from "./operation.ts";

/** All operations of a run; writes have positions. */
export function checkPositions(operations: readonly Operation[]): string[] {
  const writes = operations.filter((it) => it.verb !== "get");
  const lost = writes.filter((it) => it.position === null).map((it) => `${describeOperation(it)} has no position`);
  if (lost.length > 0) return lost;
  writes.sort((a, b) => positionOf(a) - positionOf(b));
  const faults = checkClock(writes);
  const byKey = new Map<string, { readonly writes: Operation[]; readonly reads: Operation[] }>();
  const of = (key: string): { readonly writes: Operation[]; readonly reads: Operation[] } => {
    let own = byKey.get(key);
    if (own === undefined) byKey.set(key, (own = { writes: [], reads: [] }));
    return own;
  };
  for (const write of writes) of(write.key).writes.push(write);
  for (const read of operations) if (read.verb === "get") of(read.key).reads.push(read);
  for (const [key, own] of byKey) faults.push(...checkKey(key, own.writes, own.reads));
  return faults;
}

/** Over all keys: what was answered before another was asked stands before it. `writes` by position. */
function checkClock(writes: readonly Operation[]): string[] {
  const faults: string[] = [];
  let latest: Operation | null = null;
  for (const write of writes) {
    // Everything up to here stands before this one, so none of it may have been asked after this one was answered.
    if (latest !== null && latest.invokedAt > write.respondedAt)
      faults.push(
        `out of order: ${describeOperation(latest)} at ${latest.position} was asked after the answer to ` +
          `${describeOperation(write)} at ${write.position}`,
      );
    if (latest === null || write.invokedAt > latest.invokedAt) latest = write;
  }
  return faults;
}

/** One key's states in the order of the log. Index 0 is the state before the first write. */
class Versions {
  readonly positions: number[] = [-1];
  /** The latest time at which any write up to this one was asked: nobody can have seen it before. */
  readonly knownAt: number[] = [-Infinity];
  readonly #byValue = new Map<string, number[]>();

  constructor(initial: Value) {
    this.#note(initial, 0);
  }

  add(value: Value, write: Operation): void {
    this.#note(value, this.positions.length);
    this.positions.push(positionOf(write));
    this.knownAt.push(Math.max(this.knownAt.at(-1) as number, write.invokedAt));
  }

  /** The first version from `least` on with this value; -1: there is none. */
  find(value: Value, least: number): number {
    const own = this.#byValue.get(nameOf(value)) ?? [];
    return own[firstAt(own, least)] ?? -1;
  }

  /** The last version at or below a position. */
  at(position: number): number {
    return firstAt(this.positions, position + 1) - 1;
  }

  #note(value: Value, version: number): void {
    const name = nameOf(value);
    const own = this.#byValue.get(name);
    if (own) own.push(version);
    else this.#byValue.set(name, [version]);
  }
}

function checkKey(key: string, writes: readonly Operation[], reads: readonly Operation[]): string[] {
  const faults: string[] = [];
  const model = createModel(kindOf(key));
  const versions = new Versions(model.show(model.initial));
  let state = model.initial;
  for (const write of writes) {
    const after = model.step(state, { ...write, result: null });
    if (after === undefined) throw new Error(`${key} has no state after ${describeOperation(write)}`);
    if (model.step(state, write) === undefined)
      faults.push(
        `wrong answer: ${describeOperation(write)} at ${write.position}, when ${key} was ${shown(model.show(state))}`,
      );
    state = after;
    versions.add(model.show(state), write);
  }
  const sorted = [...reads].sort((a, b) => a.invokedAt - b.invokedAt);
  return [...faults, ...checkLinearizable(versions, writes, sorted), ...checkWeaker(versions, sorted)];
}

/** Each read takes the oldest version that it may have seen: this leaves most room for those after it. */
function checkLinearizable(versions: Versions, writes: readonly Operation[], reads: readonly Operation[]): string[] {
  const faults: string[] = [];
  const answered = writes.map((write, at) => ({ at: write.respondedAt, version: at + 1 })).sort((a, b) => a.at - b.at);
  let next = 0;
  /** Everything that was answered before the present read was asked: it saw at least this. */
  let floor = 0;
  let underWay: { readonly at: number; readonly version: number }[] = [];
  for (const read of reads) {
    if (read.level !== "linearizable" || read.result?.verb !== "get") continue;
    for (; next < answered.length && (answered[next] as { at: number }).at < read.invokedAt; next += 1)
      floor = Math.max(floor, (answered[next] as { version: number }).version);
    for (const { at, version } of underWay) if (at < read.invokedAt) floor = Math.max(floor, version);
    underWay = underWay.filter(({ at }) => at >= read.invokedAt);
    const version = versions.find(read.result.value, floor);
    if (version === -1) {
      const isOld = versions.find(read.result.value, 0) !== -1;
      faults.push(
        `${isOld ? "stale read" : "read of what never was"}: ${describeOperation(read)}, at least ${floorOf(versions, floor)}`,
      );
    } else if ((versions.knownAt[version] as number) > read.respondedAt)
      faults.push(`read of the future: ${describeOperation(read)}`);
    else underWay.push({ at: read.respondedAt, version });
  }
  return faults;
}

/** A session read shows at least what its client had seen; any other one at least something that was true once. */
function checkWeaker(versions: Versions, reads: readonly Operation[]): string[] {
  const faults: string[] = [];
  for (const read of reads) {
    if (read.level === "linearizable" || read.result?.verb !== "get") continue;
    const least = read.level === "session" ? versions.at(read.seen) : 0;
    const version = versions.find(read.result.value, least);
    if (version === -1)
      faults.push(`${read.level} read: ${describeOperation(read)}, at least ${floorOf(versions, least)}`);
    else if ((versions.knownAt[version] as number) > read.respondedAt)
      faults.push(`read of the future: ${describeOperation(read)}`);
  }
  return faults;
}

const floorOf = (versions: Versions, version: number): string =>
  version === 0 ? "the beginning" : `what ${versions.positions[version]} left`;

/** The first index whose number is not below `least`. */
function firstAt(numbers: readonly number[], least: number): number {
  let low = 0;
  let high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((numbers[middle] as number) < least) low = middle + 1;
    else high = middle;
  }
  return low;
}

const positionOf = (write: Operation): number => write.position as number;
const nameOf = (value: Value): string => JSON.stringify(value);
const shown = (value: Value): string => nameOf(value).slice(-200);
