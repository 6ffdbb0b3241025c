// A state for every number, told apart by everything in it: what a test or a process that is killed begins with.
import { positionOf } from "../../../gateway/entry.ts";
import type { KeyRow, SkipRow, StateAt, StateHead } from "../../../gateway/state/store.ts";
import { id16, id32 } from "../../fixtures/records/samples.ts";

export const sampleEpoch = "0123456789abcdef";

export function sampleHead(over: Partial<StateHead> = {}): StateHead {
  return {
    version: 1,
    epoch: sampleEpoch,
    sequence: 10,
    hash: id32(9),
    entries: 0,
    logTimeMs: 0,
    keyCount: 0,
    producers: [],
    rules: {},
    parts: {},
    ...over,
  };
}

/** The state at record `sequence`: other rows, other skips, another head than at any other. */
export function sampleState(sequence: number, keyCount: number): StateAt & { readonly rows: () => KeyRow[] } {
  const kinds = ["entry", "claimed", "done", "unknown"] as const;
  const row = (n: number): KeyRow => ({
    id: id16(sequence * 1e9 + n),
    fingerprint: id16(n),
    position: positionOf(sequence - 1, 0) - keyCount + n,
    timeMs: 1_700_000_000_000 + n,
    kind: kinds[(n + sequence) % 4] as KeyRow["kind"],
  });
  const skip: SkipRow = {
    kind: "skip",
    position: positionOf(sequence, 0),
    reason: `poison of ${sequence}`,
    maybeSent: ["a"],
  };
  return {
    head: sampleHead({
      sequence,
      hash: id32(sequence),
      entries: sequence * 7,
      keyCount,
      producers: [{ producer: id16(sequence), n: 3, hash: id32(1), sequence }],
      rules: { [id32(2)]: `{"of":${sequence}}` },
    }),
    skips: [skip],
    keys: {
      async *[Symbol.asyncIterator]() {
        for (let n = 0; n < keyCount; n++) yield row(n);
      },
    },
    rows: () => Array.from({ length: keyCount }, (_, n) => row(n)),
  };
}
