// Forgets the beginning of the log, in an order that a crash may cut anywhere: first the state to begin from, then the log, then what stood beside it.

import type { Base, Bases } from "../gateway/base/base.ts";
import type { Bodies } from "../gateway/bodies/bodies.ts";
import type { Clock } from "../gateway/clock.ts";
import type { Digests } from "../gateway/digests/digests.ts";
import { positionOf } from "../gateway/entry.ts";
import type { Events } from "../gateway/events.ts";
import type { Log } from "../gateway/log/log.ts";
import type { LogReader } from "../gateway/reader.ts";
import type { StateStore } from "../gateway/state/store.ts";
import { step } from "../gateway/steps.ts";

export interface TruncationParts {
  readonly log: Log;
  readonly bases: Bases;
  readonly digests: Digests;
  readonly bodies: Bodies;
  readonly state: StateStore;
  readonly reader: LogReader;
  readonly events: Events;
  readonly clock: Clock;
}

/** A body may be stored long before the entry that names it is appended. */
const bodyGraceMs = 24 * 60 * 60 * 1000;

/** Everything up to and including the base's record is forgotten. Rejects with GW_LOG_UNAVAILABLE; then some of it may be done, and is done again. */
export async function truncateTo(base: Base, why: string, parts: TruncationParts): Promise<void> {
  const { log, bases, digests, bodies, state, reader, events, clock } = parts;
  const first = base.head.sequence + 1;
  const before = await log.info();
  if (first <= before.first) return;
  step("base.save");
  await bases.save(base);
  step("log.truncate");
  await log.truncate(first);
  step("digests.truncate");
  await digests.truncate(positionOf(first, 0));
  step("state.truncate");
  await state.truncate(first);
  step("bodies.sweep");
  // Whatever is in the log already refers to its body before anything is swept.
  await reader.reached(await log.tail());
  await bodies.sweep(await reader.state.bodies(first), clock.wallMs() - bodyGraceMs);
  events.tell({ type: "truncated", firstPosition: positionOf(first, 0), detail: why });
}
