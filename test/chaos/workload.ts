// What the clients will do, made from the seed before anything runs: which client does what to which key, in which order, not before when.

import type { Level, Verb } from "./operation.ts";
import { Random } from "./random.ts";

export interface Planned {
  readonly id: string;
  readonly client: number;
  /** Not before so many ms after the start; a client that fell behind does not wait. */
  readonly dueMs: number;
  readonly key: string;
  readonly verb: Verb;
  readonly level: Level;
  /** What is written; of counters: what is added. A `cas` expects what its client saw of the key last. */
  readonly value: string;
  readonly isKeyed: boolean;
  /** Sent once more some operations later, with its key, to see the same answer. */
  readonly isRepeated: boolean;
}

export interface WorkloadOptions {
  readonly seed: number;
  readonly timeMs: number;
  readonly clients: number;
  /** Operations a second of all clients together. */
  readonly rate: number;
}

/** Of a hundred operations. */
const mix: readonly (readonly [share: number, verb: Verb, kind: "r" | "l" | "c" | "t", level?: Level])[] = [
  [22, "get", "r"],
  [9, "get", "l"],
  [4, "get", "c"],
  [1, "get", "t"],
  [2, "get", "r", "session"],
  [1, "get", "l", "session"],
  [2, "get", "r", "any"],
  [1, "get", "l", "any"],
  [23, "put", "r"],
  [15, "cas", "r"],
  [10, "append", "l"],
  [4, "incr", "c"],
  [1, "incr", "t"],
  [5, "delete", "r"],
];

/** So many keys of a kind are in use at a time. */
const liveKeys = { r: 4, l: 2, c: 1, t: 1 } as const;
/** A key is left after so many operations: histories stay short enough for the search. */
const operationsPerKey = 300;
const repeatedShare = 0.1;

/** By client, each in its order. */
export function planWorkload({ seed, timeMs, clients, rate }: WorkloadOptions): Planned[][] {
  const random = new Random(`${seed}`).fork("workload");
  const keys = new Keys(random.fork("keys"));
  const plans: Planned[][] = Array.from({ length: clients }, () => []);
  const count = Math.floor((timeMs / 1000) * rate);
  for (let n = 0; n < count; n += 1) {
    const client = n % clients;
    const plan = plans[client] as Planned[];
    const [, verb, kind, level = "linearizable"] = pickShare(random);
    // Every other client retries with keys.
    const isKeyed = verb !== "get" && client % 2 === 0;
    const id = `${client}-${plan.length}`;
    plan.push({
      id,
      client,
      dueMs: Math.floor((n * 1000) / rate),
      key: keys.next(kind),
      verb,
      level,
      value: verb === "incr" ? String(random.between(1, 3)) : verb === "get" || verb === "delete" ? "" : `v${id}`,
      isKeyed,
      isRepeated: isKeyed && random.chance(repeatedShare),
    });
  }
  return plans;
}

function pickShare(random: Random): (typeof mix)[number] {
  let left = random.below(mix.reduce((sum, [share]) => sum + share, 0));
  for (const one of mix) if ((left -= one[0]) < 0) return one;
  throw new Error("the shares are not what they add up to");
}

class Keys {
  readonly #random: Random;
  readonly #live = new Map<string, { readonly key: string; left: number }[]>();
  readonly #made = new Map<string, number>();

  constructor(random: Random) {
    this.#random = random;
  }

  next(kind: keyof typeof liveKeys): string {
    const live = this.#live.get(kind) ?? Array.from({ length: liveKeys[kind] }, () => this.#make(kind, true));
    this.#live.set(kind, live);
    const at = this.#random.below(live.length);
    const one = live[at] as { readonly key: string; left: number };
    if ((one.left -= 1) === 0) live[at] = this.#make(kind, false);
    return one.key;
  }

  /** The first ones get less, so that not all are left at once. */
  #make(kind: string, isFirst: boolean): { readonly key: string; left: number } {
    const n = (this.#made.get(kind) ?? 0) + 1;
    this.#made.set(kind, n);
    return {
      key: `${kind}${n}`,
      left: isFirst ? this.#random.between(operationsPerKey / 4, operationsPerKey) : operationsPerKey,
    };
  }
}
