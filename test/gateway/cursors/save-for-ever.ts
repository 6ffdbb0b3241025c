// A process that saves a cursor again and again and prints what was acknowledged, until it is killed. Argument: folder.

import { writeSync } from "node:fs";
import { openLmdbCursors } from "../../../gateway/cursors/lmdb.ts";
import { cursor } from "./samples.ts";

const cursors = await openLmdbCursors({ folder: process.argv[2] ?? "" });

async function saveForEver(replica: string): Promise<never> {
  let revision = (await cursors.load(replica))?.revision ?? 0;
  // Ends with the process.
  for (let round = 0; ; round += 1) {
    const saved = await cursors.save(cursor(replica, { entries: round }), revision);
    if (saved.kind !== "saved") throw new Error(saved.kind);
    revision = saved.revision;
    writeSync(1, `${replica} ${String(revision)} ${String(round)}\n`);
  }
}
await Promise.all(["a", "b", "c"].map(saveForEver));
