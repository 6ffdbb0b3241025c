// What every cursor store must do; run by each adapter.

import { afterEach, describe, expect, it } from "vitest";
import type { Cursors } from "../../../gateway/cursors/cursors.ts";
import { cursor } from "./samples.ts";

export interface CursorsPlace {
  open(): Promise<Cursors>;
}

/** `makePlace` makes an empty store; opening it again, when it was closed, is what another process would do. */
export function cursorsContract(makePlace: () => Promise<CursorsPlace>): void {
  const opened: Cursors[] = [];
  const open = async (place?: CursorsPlace): Promise<Cursors> => {
    const cursors = await (place ?? (await makePlace())).open();
    opened.push(cursors);
    return cursors;
  };
  afterEach(async () => {
    await Promise.all(opened.splice(0).map((cursors) => cursors.close()));
  });
  describe("the law", () => {
    it("what was never saved is null", async () => {
      expect(await (await open()).load("a")).toBeNull();
    });

    it("a cursor comes back whole, with the revision its save told", async () => {
      const cursors = await open();
      const revision = await saved(cursors, "a", 0, "first");
      expect(await cursors.load("a")).toEqual({ cursor: cursor("a", { nonce: "first" }), revision });
    });

    it("only who names the newest revision saves", async () => {
      const cursors = await open();
      const first = await saved(cursors, "a", 0, "first");
      expect(await cursors.save(cursor("a", { nonce: "again" }), 0)).toEqual({ kind: "conflict" });
      expect(await cursors.save(cursor("a", { nonce: "ahead" }), first + 1)).toEqual({ kind: "conflict" });
      const second = await saved(cursors, "a", first, "second");
      expect(second).toBeGreaterThan(first);
      expect(await cursors.save(cursor("a", { nonce: "late" }), first)).toEqual({ kind: "conflict" });
      expect((await cursors.load("a"))?.cursor.nonce).toBe("second");
    });

    it("of saves at once with one revision exactly one succeeds, and its value is there", async () => {
      const cursors = await open();
      let revision = 0;
      for (let round = 0; round < 20; round += 1) {
        const at = revision;
        const nonces = Array.from({ length: 5 }, (_, i) => `${String(round)}-${String(i)}`);
        const results = await Promise.all(nonces.map((nonce) => cursors.save(cursor("a", { nonce }), at)));
        const won = results.findIndex(({ kind }) => kind === "saved");
        expect(results.filter(({ kind }) => kind === "saved")).toHaveLength(1);
        expect(results.filter(({ kind }) => kind === "conflict")).toHaveLength(4);
        const loaded = await cursors.load("a");
        expect(loaded?.cursor.nonce).toBe(nonces[won]);
        revision = loaded?.revision ?? 0;
      }
    });

    it("a load that begins after a save sees it, whatever else is going on", async () => {
      const cursors = await open();
      let revision = 0;
      for (let round = 0; round < 50; round += 1) {
        const noise = Promise.all([cursors.load("a"), cursors.load("b"), cursors.save(cursor("b"), 0)]);
        revision = await saved(cursors, "a", revision, String(round));
        expect((await cursors.load("a"))?.cursor.nonce).toBe(String(round));
        await noise;
      }
    });

    it("replicas do not touch each other, whatever their names", async () => {
      const cursors = await open();
      const names = [
        "a",
        "A",
        "a.b",
        "a*",
        ">",
        "a b",
        "a=2eb",
        "_",
        "-",
        "\u00e4",
        "\ud83d\ude80",
        "x".repeat(200),
        "..",
        "a/b",
      ];
      for (const name of names) await saved(cursors, name, 0, `nonce of ${name}`);
      for (const name of names) expect((await cursors.load(name))?.cursor.nonce).toBe(`nonce of ${name}`);
      expect([...(await cursors.list())].sort()).toEqual([...names].sort());
    });

    it("nobody is listed before the first save", async () => {
      const cursors = await open();
      await cursors.load("a");
      expect(await cursors.list()).toEqual([]);
    });

    it("revisions go on and cursors are there when the store is opened again", async () => {
      const place = await makePlace();
      const first = await open(place);
      const revision = await saved(first, "a", await saved(first, "a", 0, "first"), "second");
      await first.close();
      const second = await open(place);
      expect(await second.load("a")).toEqual({ cursor: cursor("a", { nonce: "second" }), revision });
      expect(await second.save(cursor("a"), 0)).toEqual({ kind: "conflict" });
      expect(await saved(second, "a", revision, "third")).toBeGreaterThan(revision);
    });

    it("after close calls reject, and close may be called again", async () => {
      const cursors = await open();
      await cursors.close();
      await cursors.close();
      const gone = { code: "GW_LOG_UNAVAILABLE" };
      await expect(cursors.load("a")).rejects.toMatchObject(gone);
      await expect(cursors.save(cursor("a"), 0)).rejects.toMatchObject(gone);
      await expect(cursors.list()).rejects.toMatchObject(gone);
    });
  });
}

const saved = async (cursors: Cursors, replica: string, revision: number, nonce: string): Promise<number> => {
  const result = await cursors.save(cursor(replica, { nonce }), revision);
  if (result.kind !== "saved") throw new Error(result.kind);
  return result.revision;
};
