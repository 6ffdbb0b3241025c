// Registers with one writer each, whose values only grow, and readers beside it: each read says by itself whether it was linearizable.
// That is all there is to check for such registers, it takes O(n log n), and it needs nothing but what clients saw.

import { Clients, fateOf } from "./clients.ts";
import type { Sent } from "./clients.ts";

export interface RegistersOptions {
  /** A register begins at nothing: other names for other runs. */
  readonly name: string;
  readonly front: (client: number) => string;
  readonly count: number;
  readonly readersOfEach: number;
  /** Pause after each write and each read. */
  readonly thinkMs: number;
}

/** Writers have keys and repeat until they know: a write without an end would be allowed to land at any time. */
export class Registers {
  readonly #writers: Clients;
  readonly #readers: Clients;

  constructor({ name, front, count, readersOfEach, thinkMs }: RegistersOptions) {
    const path = (client: number): string => `/r/${name}-${client % count}`;
    this.#writers = new Clients({
      front,
      count,
      thinkMs,
      repeatEvery: 0,
      workload: (client, n) => ({
        method: "PUT",
        path: path(client),
        orderKeys: [`r:${name}-${client % count}`],
        isKeyed: true,
        isRepeatable: true,
        body: { v: n + 1 },
      }),
    });
    this.#readers = new Clients({
      front,
      count: count * readersOfEach,
      thinkMs,
      workload: (client) => ({
        method: "GET",
        path: path(client),
        orderKeys: [],
        isKeyed: false,
        isRepeatable: true,
        body: null,
      }),
    });
  }

  /** Of the writers: what backends executed of them. */
  get writes(): readonly Sent[] {
    return this.#writers.history;
  }

  get reads(): readonly Sent[] {
    return this.#readers.history;
  }

  start(): void {
    this.#writers.start();
    this.#readers.start();
  }

  async stop(): Promise<void> {
    await Promise.all([this.#writers.stop(), this.#readers.stop()]);
  }
}

/** A value that was there, or may have been, for so long. */
interface Seen {
  readonly at: number;
  readonly value: number;
}

/** Sentences, one a read that no order of the operations explains; empty when all is well. */
export function staleReads(writes: readonly Sent[], reads: readonly Sent[]): string[] {
  const paths = new Set(reads.map((read) => read.call.path));
  const faults = [...paths].flatMap((path) => {
    const own = writes.filter((write) => write.call.path === path);
    const seen = reads.filter((read) => read.call.path === path).flatMap(readOf);
    const acknowledged = own
      .filter((write) => fateOf(write) === "executed")
      .map((write) => ({ at: endOf(write), value: valueOf(write) }));
    const begun = own.map((write) => ({ at: beginOf(write), value: valueOf(write) }));
    const floor = highestUntil([...acknowledged, ...seen.map(({ endedMs, value }) => ({ at: endedMs, value }))]);
    const ceiling = highestUntil(begun);
    return seen.flatMap(({ startedMs, endedMs, value }) => {
      const [low, high] = [floor(startedMs), ceiling(endedMs)];
      if (value < low) return [`${path}: ${value} was read after ${low} had been written or read`];
      return value > high ? [`${path}: ${value} was read before it was written (${high} was the newest)`] : [];
    });
  });
  return faults.length > 10 ? [...faults.slice(0, 10), `${faults.length - 10} more`] : faults;
}

function readOf(read: Sent): { startedMs: number; endedMs: number; value: number }[] {
  return read.attempts.flatMap(({ sentAtMs, endedAtMs, status, code, body }) => {
    if (endedAtMs === null || code !== null || (status !== 200 && status !== 404)) return [];
    const value = status === 404 ? 0 : (JSON.parse(String(body)) as { v: number }).v;
    return [{ startedMs: sentAtMs, endedMs: endedAtMs, value }];
  });
}

const valueOf = (write: Sent): number => Number(write.call.body?.["v"]);
const beginOf = (write: Sent): number => write.attempts[0]?.sentAtMs ?? Number.POSITIVE_INFINITY;
const endOf = (write: Sent): number =>
  write.attempts.find(({ outcome }) => outcome === "executed")?.endedAtMs ?? Number.POSITIVE_INFINITY;

/** The highest value of what was seen strictly before a time. */
function highestUntil(seen: readonly Seen[]): (at: number) => number {
  const sorted = seen.toSorted((a, b) => a.at - b.at);
  let highest = 0;
  const heights = sorted.map(({ value }) => (highest = Math.max(highest, value)));
  return (at) => {
    let [low, high] = [0, sorted.length];
    // Ends at the first one that was not before `at`.
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((sorted[middle]?.at ?? at) < at) low = middle + 1;
      else high = middle;
    }
    return heights[low - 1] ?? 0;
  };
}
