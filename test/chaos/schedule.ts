// The whole of a run as data, made from the seed before anything is started: what clients do, and which fault hits what, when, for how long.

import { createHash } from "node:crypto";
import { faults } from "./faults.ts";
import { Random } from "./random.ts";
import type { Shape } from "./service.ts";
import { planWorkload } from "./workload.ts";
import type { Planned } from "./workload.ts";

export interface PlannedFault {
  /** After the start; later, when what it touches is still being healed from the one before. */
  readonly atMs: number;
  readonly name: string;
  readonly target: string;
  readonly forMs: number;
  /** In [0, 1): what the fault leaves to chance. */
  readonly dice: number;
}

export interface Schedule {
  readonly seed: number;
  readonly timeMs: number;
  readonly shape: Shape;
  readonly clients: readonly (readonly Planned[])[];
  readonly faults: readonly PlannedFault[];
}

export interface ScheduleOptions {
  readonly seed: number;
  readonly timeMs: number;
  readonly shape: Shape;
  readonly clients: number;
  readonly rate: number;
  /** Null: all that apply. */
  readonly only: readonly string[] | null;
}

const calmBeforeMs = 1_500;
/** The last part heals: nothing new happens in it. */
const calmAfterMs = 4_000;
/** Clients go on while the last faults are still being healed. */
const workloadTimes = 1.5;

export function planSchedule(options: ScheduleOptions): Schedule {
  const { seed, timeMs, shape } = options;
  return {
    seed,
    timeMs,
    shape,
    clients: planWorkload({ ...options, timeMs: timeMs * workloadTimes }),
    faults: planFaults(options),
  };
}

export function namesFor(shape: Shape, only: readonly string[] | null): string[] {
  const names = Object.keys(faults).filter((name) => (faults[name]?.targets(shape).length ?? 0) > 0);
  if (only === null) return names;
  const foreign = only.filter((name) => !names.includes(name));
  if (foreign.length > 0) throw new Error(`no such fault here: ${foreign.join(", ")}; there are ${names.join(", ")}`);
  return names.filter((name) => only.includes(name));
}

/** Kinds come as from a shuffled deck: each once before any comes twice. One in four is followed by a calm. */
function planFaults({ seed, timeMs, shape, only }: ScheduleOptions): PlannedFault[] {
  const random = new Random(`${seed}`).fork("faults");
  const names = namesFor(shape, only);
  const planned: PlannedFault[] = [];
  let deck: string[] = [];
  if (names.length === 0) return planned;
  // Ends with the time.
  for (let atMs = calmBeforeMs; ;) {
    if (deck.length === 0) deck = random.shuffled(names);
    const name = deck.pop() as string;
    const fault = faults[name];
    if (fault === undefined) throw new Error(`no fault is called ${name}`);
    const forMs = random.between(...fault.forMs);
    if (atMs + forMs > timeMs - calmAfterMs) return planned;
    planned.push({ atMs, name, target: random.pick(fault.targets(shape)), forMs, dice: random.next() });
    // Now and then the next one begins while this one lasts.
    const isTogether = random.chance(0.15);
    const calmMs = random.chance(0.25) ? random.between(1_500, 2_500) : random.between(200, 900);
    atMs += isTogether ? Math.floor(forMs / 2) : forMs + calmMs;
  }
}

/** Equal schedules are equal bytes. */
export function serialise(schedule: Schedule): string {
  const { clients, faults: planned, ...head } = schedule;
  return [head, ...planned, ...clients.flat()].map((one) => `${JSON.stringify(one)}\n`).join("");
}

export const digestOf = (schedule: Schedule): string =>
  createHash("sha256").update(serialise(schedule)).digest("hex").slice(0, 16);
