// What every board must do; run by each adapter.

import { afterEach, describe, expect, it } from "vitest";
import type { Board } from "../../../gateway/board/board.ts";

export interface BoardPlace {
  /** Of several servers each call reaches the next one. */
  open(): Promise<Board>;
  /** Changes the stored bytes of a document, so that its checksum is wrong. */
  damage(name: string): Promise<void>;
  /** Whether several may have it open at once. */
  readonly isShared: boolean;
}

/** `makePlace` makes an empty board; opening it again, when it was closed, is what another process would do. */
export function boardContract(makePlace: () => Promise<BoardPlace>): void {
  const opened: Board[] = [];
  const openAt = async (place: BoardPlace): Promise<Board> => {
    const board = await place.open();
    opened.push(board);
    return board;
  };
  const open = async (): Promise<Board> => openAt(await makePlace());
  afterEach(async () => {
    await Promise.all(opened.splice(0).map((board) => board.close()));
  });
  describe("the law", () => {
    it("what was never saved is null", async () => {
      const board = await open();
      expect(await board.load("roster")).toBeNull();
      await saved(board, "live", 0, ["a"]);
      expect(await board.load("roster")).toBeNull();
    });

    it("a value comes back whole, with the revision its save told", async () => {
      const board = await open();
      const value = { text: "\u00e4 \ud83d\ude80 \u2028 \"'", list: [1, 2.5, null, true], deep: { empty: {} } };
      for (const [at, one] of [value, null, "", 0, [], { value: { name: "x" } }].entries()) {
        const name = `document-${String(at)}`;
        const revision = await saved(board, name, 0, one);
        expect(await board.load(name)).toEqual({ value: one, revision });
      }
    });

    it("only who names the newest revision saves", async () => {
      const board = await open();
      const first = await saved(board, "roster", 0, "first");
      expect(await board.save("roster", "again", 0)).toEqual({ kind: "conflict" });
      expect(await board.save("roster", "ahead", first + 1)).toEqual({ kind: "conflict" });
      const second = await saved(board, "roster", first, "second");
      expect(second).toBeGreaterThan(first);
      expect(await board.save("roster", "late", first)).toEqual({ kind: "conflict" });
      expect(await board.load("roster")).toEqual({ value: "second", revision: second });
    });

    it("of saves at once with one revision exactly one succeeds, and its value is there", async () => {
      const board = await open();
      let revision = 0;
      for (let round = 0; round < 20; round += 1) {
        const at = revision;
        const values = Array.from({ length: 5 }, (_, i) => `${String(round)}-${String(i)}`);
        const results = await Promise.all(values.map((value) => board.save("roster", value, at)));
        const won = results.findIndex(({ kind }) => kind === "saved");
        expect(results.filter(({ kind }) => kind === "saved")).toHaveLength(1);
        expect(results.filter(({ kind }) => kind === "conflict")).toHaveLength(4);
        const loaded = await board.load("roster");
        expect(loaded?.value).toBe(values[won]);
        revision = loaded?.revision ?? 0;
      }
    });

    it("a load that begins after a save sees it, whatever else is going on", async () => {
      const board = await open();
      let revision = 0;
      for (let round = 0; round < 30; round += 1) {
        const noise = Promise.all([board.load("roster"), board.load("live"), board.save("live", round, 0)]);
        revision = await saved(board, "roster", revision, round);
        expect((await board.load("roster"))?.value).toBe(round);
        await noise;
      }
    });

    it("what one has saved, another who has it open sees at once, and a save of both counts once", async () => {
      const place = await makePlace();
      if (!place.isShared) return;
      const boards = [await openAt(place), await openAt(place), await openAt(place)];
      let revision = 0;
      for (let round = 0; round < 30; round += 1) {
        const at = revision;
        const results = await Promise.all(boards.map((board, i) => board.save("roster", [round, i], at)));
        expect(results.map(({ kind }) => kind).toSorted()).toEqual(["conflict", "conflict", "saved"]);
        const winner = results.findIndex(({ kind }) => kind === "saved");
        for (const board of boards) {
          const loaded = await board.load("roster");
          expect(loaded?.value).toEqual([round, winner]);
          revision = loaded?.revision ?? 0;
        }
      }
    });

    it("revisions go on and documents are there when the board is opened again", async () => {
      const place = await makePlace();
      const first = await openAt(place);
      const revision = await saved(first, "roster", await saved(first, "roster", 0, "first"), "second");
      await first.close();
      const second = await openAt(place);
      expect(await second.load("roster")).toEqual({ value: "second", revision });
      expect(await second.save("roster", "again", 0)).toEqual({ kind: "conflict" });
      expect(await saved(second, "roster", revision, "third")).toBeGreaterThan(revision);
    });

    it("a damaged document is lost, not another value, and the others are there", async () => {
      const place = await makePlace();
      const board = await openAt(place);
      const revision = await saved(board, "roster", 0, { entries: ["a", "b"] });
      await saved(board, "live", 0, ["a"]);
      await place.damage("roster");
      await expect(board.load("roster")).rejects.toMatchObject({ code: "GW_BOARD_LOST" });
      expect((await board.save("roster", "over it", revision)).kind).not.toBe("saved");
      expect((await board.load("live"))?.value).toEqual(["a"]);
    });

    it("names are words: none leads to another place", async () => {
      const board = await open();
      for (const name of ["", "..", "a/b", "a.b", "*", ">", "A", "\u00e4", "x".repeat(33)]) {
        await expect(board.load(name)).rejects.toThrow(RangeError);
        await expect(board.save(name, 1, 0)).rejects.toThrow(RangeError);
      }
    });

    it("after close calls reject, and close may be called again", async () => {
      const board = await open();
      await board.close();
      await board.close();
      const gone = { code: "GW_LOG_UNAVAILABLE" };
      await expect(board.load("roster")).rejects.toMatchObject(gone);
      await expect(board.save("roster", 1, 0)).rejects.toMatchObject(gone);
    });
  });
}

const saved = async (board: Board, name: string, revision: number, value: unknown): Promise<number> => {
  const result = await board.save(name, value, revision);
  if (result.kind !== "saved") throw new Error(result.kind, { cause: result });
  return result.revision;
};
