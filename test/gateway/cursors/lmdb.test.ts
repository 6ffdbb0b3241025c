import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { open } from "lmdb";
import { describe, expect, it } from "vitest";
import { openLmdbCursors } from "../../../gateway/cursors/lmdb.ts";
import { endWithUs, temporaryFolder } from "../../helpers/folder.ts";
import { cursorsContract } from "./cursors.contract.ts";
import { cursor } from "./samples.ts";

describe("LMDB cursors", () => {
  cursorsContract(() => {
    const folder = temporaryFolder("cursors");
    return Promise.resolve({ open: () => openLmdbCursors({ folder }) });
  });

  it("what was saved before a kill -9 is there after it, and revisions go on", async () => {
    const folder = temporaryFolder("cursors");
    for (let life = 0; life < 2; life += 1) {
      const newest = await killedAfter(folder, 300);
      const cursors = await openLmdbCursors({ folder });
      for (const [replica, { revision, round }] of newest) {
        const loaded = await cursors.load(replica);
        // The one in flight at the kill may be there, and nothing else.
        expect([revision, revision + 1]).toContain(loaded?.revision);
        expect(loaded?.cursor.entries).toBe(round + (loaded?.revision ?? 0) - revision);
      }
      await cursors.close();
    }
  });

  it("a value that cannot be read is a lost cursor, and a save over it must name its revision", async () => {
    const folder = temporaryFolder("cursors");
    const before = await openLmdbCursors({ folder });
    await before.save(cursor("a"), 0);
    await before.close();
    const root = open<Buffer, string>({ path: folder, noSubdir: false, encoding: "binary" });
    const table = root.openDB<Buffer, string>({ name: "cursors", encoding: "binary" });
    const value = Buffer.from(table.get("r:a") ?? Buffer.alloc(0));
    value[40] = (value[40] ?? 0) ^ 1;
    await table.put("r:a", value);
    await root.close();

    const cursors = await openLmdbCursors({ folder });
    await expect(cursors.load("a")).rejects.toMatchObject({ code: "GW_CURSOR_LOST", revision: 1 });
    expect(await cursors.save(cursor("a"), 0)).toEqual({ kind: "conflict" });
    expect(await cursors.save(cursor("a"), 1)).toEqual({ kind: "saved", revision: 2 });
    expect(await cursors.load("a")).toEqual({ cursor: cursor("a"), revision: 2 });
    await cursors.close();
  });
});

/** The last acknowledged save of each replica by a child that was killed after about `lines` of them. */
async function killedAfter(folder: string, lines: number) {
  const script = fileURLToPath(new URL("save-for-ever.ts", import.meta.url));
  const child = spawn(process.execPath, ["--import", "tsx", script, folder], { stdio: ["ignore", "pipe", "inherit"] });
  const gone = endWithUs(child.pid ?? 0);
  const newest = new Map<string, { readonly revision: number; readonly round: number }>();
  let count = 0;
  for await (const line of createInterface(child.stdout)) {
    const [replica = "", revision, round] = line.split(" ");
    newest.set(replica, { revision: Number(revision), round: Number(round) });
    if ((count += 1) === lines) child.kill("SIGKILL");
  }
  if (child.signalCode === null) await once(child, "exit");
  gone();
  expect(child.signalCode).toBe("SIGKILL");
  expect(newest.size).toBe(3);
  return newest;
}
