import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { openFileBoard } from "../../../gateway/board/file.ts";
import { setStepHook } from "../../../gateway/steps.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import { boardContract } from "./board.contract.ts";

describe("the board in files", () => {
  afterEach(() => setStepHook(null));

  boardContract(() => {
    const folder = temporaryFolder("board");
    const damage = async (name: string): Promise<void> => {
      const bytes = readFileSync(join(folder, name));
      bytes[20] = (bytes[20] ?? 0) ^ 1;
      writeFileSync(join(folder, name), bytes);
    };
    return Promise.resolve({ open: () => openFileBoard({ folder }), damage, isShared: false });
  });

  it("a save that is cut off at any step leaves the former value or the new one, and the board goes on", async () => {
    const folder = temporaryFolder("board");
    const board = await openFileBoard({ folder });
    const steps: string[] = [];
    await board.load("roster");
    setStepHook((name) => steps.push(name));
    await board.save("roster", "first", 0);
    expect(steps).toEqual(["board.fsync", "board.rename", "board.fsync"]);
    let revision = 1;
    for (const [at] of steps.entries()) {
      let count = 0;
      setStepHook(() => {
        if (count++ === at) throw new Error("cut off");
      });
      const value = `cut off at ${String(at)}`;
      expect((await board.save("roster", value, revision)).kind).toBe("unknown");
      setStepHook(null);
      const other = await openFileBoard({ folder });
      const seen = await other.load("roster");
      expect(seen).toEqual(at < 2 ? { value: "first", revision } : { value, revision: revision + 1 });
      expect(await board.load("roster")).toEqual(seen);
      revision = seen?.revision ?? 0;
    }
    expect(await board.save("roster", "last", revision)).toEqual({ kind: "saved", revision: revision + 1 });
    await board.close();
  });

  it("what a load gives is on the disk: after a save that failed late the folder is synced first", async () => {
    const folder = temporaryFolder("board");
    const board = await openFileBoard({ folder });
    await board.load("roster");
    let syncs = 0;
    setStepHook((name) => {
      if (name === "board.fsync" && ++syncs > 1) throw new Error("no sync");
    });
    expect((await board.save("roster", "first", 0)).kind).toBe("unknown");
    await expect(board.load("roster")).rejects.toMatchObject({ code: "GW_LOG_UNAVAILABLE" });
    setStepHook(null);
    expect(await board.load("roster")).toEqual({ value: "first", revision: 1 });
    await board.close();
  });
});
