// Logs for tests of the fold: one that a test writes record by record, and random ones with everything that can stand in them.
import fc from "fast-check";
import { positionOf } from "../../../gateway/entry.ts";
import type { Item } from "../../../gateway/entry.ts";
import type { StoredRecord } from "../../../gateway/log/log.ts";
import { policyDigest, policyText, rulesItems } from "../../../gateway/state/state.ts";
import type { Policy } from "../../../gateway/state/state.ts";
import { entry, id16, id32, keyed, Producer, stored } from "../../fixtures/records/samples.ts";

const p = positionOf;

/** A log being written: each call is one record of a producer. */
export class Writer {
  readonly records: StoredRecord[] = [];
  readonly #producers = new Map<number, Producer>();

  add(
    items: readonly Item[],
    over: { producer?: number; rules?: string; timeMs?: number; base?: number } = {},
  ): StoredRecord {
    const { producer: number = 0, ...header } = over;
    const producer = this.#producers.get(number) ?? new Producer(number);
    this.#producers.set(number, producer);
    return this.store(producer.record(items, { base: this.records.length, ...header }));
  }
  store(bytes: Buffer): StoredRecord {
    const record = stored(this.records.length + 1, bytes);
    this.records.push(record);
    return record;
  }
}

export const claim = (number: number): Item => ({
  kind: "claim",
  key: { id: id16(number), fingerprint: id16(1000 + number) },
  timeMs: 1,
  retryOf: null,
});
export const settled = (position: number, outcome: "done" | "not-started" | "unknown"): Item => ({
  kind: "settled",
  position,
  outcome,
  digest: outcome === "done" ? id16(1) : null,
});
export const skip = (position: number, reason: string): Item => ({
  kind: "skip",
  position,
  reason,
  maybeSent: ["a"],
});

export const policy: Policy = { rules: "{}", retentionMs: 40, window: 3 };
export const rules = policyDigest(policyText(policy));
export const keyNumbers = [1, 2, 3, 4, 5, 6];

type Move =
  | { readonly what: "entry" | "claim"; readonly key: number }
  | { readonly what: "plain" | "retry" | "skip" | "tick"; readonly pick: number }
  | {
      readonly what: "settle";
      readonly pick: number;
      readonly outcome: "done" | "not-started" | "unknown";
    };

const key = fc.constantFrom(...keyNumbers);
const move: fc.Arbitrary<Move> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ what: fc.constantFrom("entry" as const, "claim" as const), key }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      what: fc.constantFrom("plain" as const, "retry" as const, "skip" as const, "tick" as const),
      pick: fc.nat(),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      what: fc.constant("settle" as const),
      pick: fc.nat(),
      outcome: fc.constantFrom("done" as const, "not-started" as const, "unknown" as const),
    }),
  },
);
const pick = (from: readonly number[], at: number): number => from[at % from.length] ?? 0;

const recordOf = fc.record({
  producer: fc.nat(2),
  moves: fc.array(move, { maxLength: 5 }),
  stepMs: fc.nat(30),
  /** After it: an old record once more. */
  repeats: fc.option(fc.nat(), { freq: 5, nil: null }),
});
export const randomLog = fc.array(recordOf, { minLength: 1, maxLength: 25 }).map((list) => {
  const log = new Writer();
  const keys: number[] = [];
  const all: number[] = [0];
  let timeMs = 1000;
  log.add(rulesItems(policyText(policy), 10_000), { rules, timeMs });
  for (const it of list) {
    const sequence = log.records.length + 1;
    timeMs += it.stepMs;
    const items = it.moves.map((what, index): Item => {
      all.push(p(sequence, index));
      switch (what.what) {
        case "entry":
          keys.push(p(sequence, index));
          return keyed(what.key);
        case "claim":
          keys.push(p(sequence, index));
          return claim(what.key);
        case "retry":
          return keyed(pick(keyNumbers, what.pick), { retryOf: pick(all, what.pick) });
        case "skip":
          return skip(pick(all, what.pick), `skip ${what.pick}`);
        case "settle":
          return settled(pick(keys.length > 0 ? keys : all, what.pick), what.outcome);
        case "plain":
          return what.pick % 3 === 0 ? entry({ body: { sha256: id32(what.pick), sizeBytes: 1 } }) : entry();
        case "tick":
          return { kind: "tick" };
        default:
          return what satisfies never;
      }
    });
    log.add(items, { producer: it.producer, rules, timeMs });
    if (it.repeats !== null) log.store((log.records[it.repeats % log.records.length] as StoredRecord).bytes);
  }
  return log.records;
});
