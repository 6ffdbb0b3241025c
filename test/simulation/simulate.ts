// One seed, from its first event to its verdict.

import { createHash } from "node:crypto";
import { check } from "./checks.ts";
import { Service } from "./site.ts";
import type { FaultKind } from "./plan.ts";

export interface Verdict {
  readonly seed: number;
  readonly failures: readonly string[];
  /** Of everything that happened, in its order. */
  readonly hash: string;
  readonly trace: readonly string[];
  readonly events: number;
  readonly operations: number;
  readonly virtualMs: number;
  readonly faults: ReadonlyMap<FaultKind, number>;
}

const eventsMax = 3_000_000;

export async function simulate(
  seed: number,
  options: { readonly gateways?: number | null; readonly keepsTrace?: boolean } = {},
): Promise<Verdict> {
  const service = new Service(seed, options.gateways ?? null, options.keepsTrace ?? false);
  const { world } = service;
  const rejected = (error: unknown): void => {
    world.fail(
      `a promise was rejected and nobody listened: ${error instanceof Error ? (error.stack ?? "") : String(error)}`,
    );
  };
  process.on("unhandledRejection", rejected);
  try {
    service.begin();
    await world.run(() => service.isOver, { untilMs: 600_000, events: eventsMax });
    if (!service.isOver) world.fail(`it did not end: ${world.events} events in ${world.nowMs} ms`);
    else check(service);
  } catch (error) {
    world.fail(error instanceof Error ? (error.stack ?? error.message) : String(error));
  } finally {
    process.off("unhandledRejection", rejected);
  }
  const hash = createHash("sha256").update(`${world.way} ${world.events} ${world.nowMs}`);
  for (const line of world.trace) hash.update(line);
  return {
    seed,
    failures: world.failures,
    hash: hash.digest("hex"),
    trace: world.trace,
    events: world.events,
    operations: service.clients.operations.length,
    virtualMs: world.nowMs,
    faults: service.faults,
  };
}
