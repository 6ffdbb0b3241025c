// A process that decides one answer after the other and prints what was acknowledged, until it is killed. Argument: folder.

import { writeSync } from "node:fs";
import { openLmdbKeys } from "../../../gateway/keys/lmdb.ts";
import { answer, hash } from "./samples.ts";

const folder = process.argv[2] ?? "";
const keys = await openLmdbKeys({
  folder,
  machineBoot: "boot-1",
  retentionMs: 60_000,
  answerBytesMax: 4096,
  tail: () => Promise.resolve(0),
});

let position = 4096;
async function decideForEver(): Promise<never> {
  // Ends with the process.
  for (;;) {
    position += 1;
    const at = position;
    const key = { id: hash(), fingerprint: hash() };
    const digest = hash();
    await keys.claim(key, "child");
    await keys.offer(key, at, { replica: "a", digest, answer: answer(digest) });
    await keys.decide(key, { position: at, digest, answer: null });
    writeSync(1, `${key.id} ${String(at)} ${digest}\n`);
  }
}
await Promise.all(Array.from({ length: 8 }, decideForEver));
