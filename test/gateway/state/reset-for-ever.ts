// A process that begins with one state after the other and prints which was complete, until it is killed. Arguments: folder, first record, keys,
// and "stall": its second one stops half way.

import { writeSync } from "node:fs";
import { openLmdbState } from "../../../gateway/state/lmdb.ts";
import type { KeyRow } from "../../../gateway/state/store.ts";
import { sampleState } from "./samples.ts";

const [, , folder = "", first = "", keys = "", mode = ""] = process.argv;
const store = openLmdbState(folder);

async function* stalling(rows: AsyncIterable<KeyRow>): AsyncGenerator<KeyRow> {
  let left = Number(keys) / 2;
  for await (const row of rows) {
    if (left-- === 0) {
      writeSync(1, "stalled\n");
      await new Promise((resolve) => setTimeout(resolve, 60_000));
    }
    yield row;
  }
}

// Ends with the process.
for (let sequence = Number(first); ; sequence++) {
  const state = sampleState(sequence, Number(keys));
  const isStalling = mode === "stall" && sequence === Number(first) + 1;
  writeSync(1, `begin ${sequence}\n`);
  await store.reset(isStalling ? { ...state, keys: stalling(state.keys) } : state);
  writeSync(1, `whole ${sequence}\n`);
}
