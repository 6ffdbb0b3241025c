// What every key store must do; run by each adapter.

import { afterEach, describe, expect, it } from "vitest";
import type { Keys } from "../../../gateway/keys/keys.ts";
import { waitFor } from "../../helpers/wait.ts";
import { answer, hash, newKey } from "./samples.ts";

export interface KeysSettings {
  readonly leaseMs: number;
  readonly retentionMs: number;
  readonly answerBytesMax: number;
  readonly tail: () => Promise<number>;
}

export interface KeysPlace {
  open(settings: KeysSettings): Promise<Keys>;
}

export const settings: KeysSettings = {
  leaseMs: 15_000,
  retentionMs: 60_000,
  answerBytesMax: 4096,
  tail: () => Promise.resolve(0),
};

const position = 5 * 4096 + 7;

/** `place` makes an empty store; opening it again, when it was closed, is what another process would do. */
export function keysContract(makePlace: () => Promise<KeysPlace>): void {
  const opened: Keys[] = [];
  const open = async (changed: Partial<KeysSettings> = {}, place?: KeysPlace): Promise<Keys> => {
    const keys = await (place ?? (await makePlace())).open({ ...settings, ...changed });
    opened.push(keys);
    return keys;
  };
  afterEach(async () => {
    await Promise.all(opened.splice(0).map((keys) => keys.close()));
  });

  describe("claims", () => {
    it("the first claim is fresh, every other one finds it running, whoever asks", async () => {
      const keys = await open();
      const key = newKey();
      expect(await keys.claim(key, "gw-1")).toEqual({ kind: "fresh" });
      expect(await keys.claim(key, "gw-2")).toEqual({ kind: "running" });
      expect(await keys.claim(key, "gw-1")).toEqual({ kind: "running" });
    });

    it("of many claims at once exactly one is fresh", async () => {
      const keys = await open();
      const key = newKey();
      const claims = await Promise.all(Array.from({ length: 200 }, () => keys.claim(key, "gw")));
      expect(claims.filter((claim) => claim.kind === "fresh")).toHaveLength(1);
    });

    it("another payload or caller learns nothing but that the key is taken", async () => {
      const keys = await open();
      const key = newKey();
      const other = { ...key, fingerprint: hash() };
      await keys.claim(key, "gw");
      expect(await keys.claim(other, "gw")).toEqual({ kind: "other" });
      await keys.decide(key, { position, digest: hash(), answer: answer("secret") });
      expect(await keys.claim(other, "gw")).toEqual({ kind: "other" });
    });

    it("a released claim is fresh again, and only its holder releases it", async () => {
      const keys = await open();
      const key = newKey();
      await keys.claim(key, "gw-1");
      await keys.release(key, "gw-2");
      expect((await keys.claim(key, "gw-2")).kind).toBe("running");
      await keys.release(key, "gw-1");
      expect((await keys.claim(key, "gw-2")).kind).toBe("fresh");
    });

    it("a decision ends the claim and is what a later claim gets, byte for byte", async () => {
      const keys = await open();
      const key = newKey();
      const decision = { position, digest: hash(), answer: answer("whole\0\u00ff") };
      await keys.claim(key, "gw");
      await keys.decide(key, decision);
      expect(await keys.claim(key, "gw")).toEqual({ kind: "done", decision });
    });

    it("a claim ends with its process", async () => {
      const place = await makePlace();
      const first = await open({ leaseMs: 200 }, place);
      const key = newKey();
      expect((await first.claim(key, "gw-1")).kind).toBe("fresh");
      await first.close();
      const second = await open({}, place);
      const claim = async (): Promise<boolean> => (await second.claim(key, "gw-2")).kind === "fresh";
      await waitFor(claim, { what: "a fresh claim after the first process is gone" });
    });
  });

  describe("answers", () => {
    it("the first decision wins and every caller gets the winner with its bytes", async () => {
      const keys = await open();
      const key = newKey();
      const first = { position, digest: hash(), answer: answer("first") };
      expect(await keys.decide(key, first)).toEqual({ ...first, isLost: false });
      const second = { position, digest: hash(), answer: answer("second") };
      expect(await keys.decide(key, second)).toEqual({ ...first, isLost: false });
      expect(await keys.decided(key)).toEqual(first);
    });

    it("of many decisions at once all callers get the same", async () => {
      const keys = await open();
      const key = newKey();
      const decide = async (_: unknown, i: number) =>
        await keys.decide(key, { position, digest: hash(), answer: answer(`answer ${String(i)}`) });
      const all = await Promise.all(Array.from({ length: 100 }, decide));
      expect(new Set(all.map(({ digest }) => digest)).size).toBe(1);
      expect(new Set(all.map((decided) => decided.answer?.body.toString())).size).toBe(1);
      expect(await keys.decided(key)).toMatchObject({ digest: all[0]?.digest, answer: all[0]?.answer });
    });

    it("two answers of one digest: the bytes that came first are everybody's", async () => {
      const keys = await open();
      const key = newKey();
      const digest = hash();
      await keys.offer(key, position, { replica: "a", digest, answer: answer("of a") });
      const decided = await keys.decide(key, { position, digest, answer: answer("of b") });
      expect(decided.answer).toEqual(answer("of a"));
    });

    it("candidates keep their bytes once a digest, and the first of a replica stays", async () => {
      const keys = await open();
      const key = newKey();
      const [usual, odd] = [hash(), hash()];
      await keys.offer(key, position, { replica: "a", digest: usual, answer: answer("usual") });
      await keys.offer(key, position, { replica: "b", digest: usual, answer: null });
      await keys.offer(key, position, { replica: "c", digest: odd, answer: answer("odd") });
      await keys.offer(key, position, { replica: "a", digest: odd, answer: answer("second send") });
      const candidates = await keys.candidates(key, position);
      expect([...candidates].sort((a, b) => a.replica.localeCompare(b.replica))).toEqual([
        { replica: "a", digest: usual, answer: answer("usual") },
        { replica: "b", digest: usual, answer: answer("usual") },
        { replica: "c", digest: odd, answer: answer("odd") },
      ]);
      expect(await keys.candidates(key, position + 1)).toEqual([]);
      expect(await keys.decided(key)).toBeNull();
    });

    it("offers made at once are all kept", async () => {
      const keys = await open();
      const key = newKey();
      const digest = hash();
      const replicas = Array.from({ length: 20 }, (_, i) => `r${String(i)}`);
      const offers = replicas.map((replica) => keys.offer(key, position, { replica, digest, answer: answer("x") }));
      await Promise.all([...offers, keys.decide(key, { position, digest, answer: null })]);
      expect(await keys.candidates(key, position)).toHaveLength(20);
      expect(await keys.decided(key)).toEqual({ position, digest, answer: answer("x") });
    });

    it("a decision without bytes is served with those of its candidate", async () => {
      const keys = await open();
      const key = newKey();
      const digest = hash();
      await keys.offer(key, position, { replica: "a", digest, answer: answer("kept") });
      const decided = await keys.decide(key, { position, digest, answer: null });
      expect(decided).toEqual({ position, digest, answer: answer("kept"), isLost: false });
      expect(await keys.claim(key, "gw")).toMatchObject({ kind: "done", decision: { answer: answer("kept") } });
    });

    it("an answer above the limit is decided and not kept", async () => {
      const keys = await open({ answerBytesMax: 1000 });
      const key = newKey();
      const digest = hash();
      const large = answer("x".repeat(1001));
      await keys.offer(key, position, { replica: "a", digest, answer: large });
      const decided = await keys.decide(key, { position, digest, answer: large });
      expect(decided).toEqual({ position, digest, answer: null, isLost: false });
      expect(await keys.decided(key)).toEqual({ position, digest, answer: null });
      expect(await keys.candidates(key, position)).toEqual([{ replica: "a", digest, answer: null }]);
    });

    it("a key that was used again at a higher position answers with that one; each position keeps its own", async () => {
      const keys = await open();
      const key = newKey();
      const later = { position: Number.MAX_SAFE_INTEGER, digest: hash(), answer: answer("later") };
      const earlier = { position, digest: hash(), answer: answer("earlier") };
      await keys.decide(key, later);
      await keys.decide(key, earlier);
      expect(await keys.decided(key)).toEqual(later);
      expect(await keys.decide(key, { ...later, position })).toEqual({ ...earlier, isLost: false });
    });

    it("decisions and candidates are there when the store is opened again", async () => {
      const place = await makePlace();
      const first = await open({}, place);
      const key = newKey();
      const decision = { position, digest: hash(), answer: answer("kept") };
      await first.offer(key, position, { replica: "a", digest: decision.digest, answer: decision.answer });
      await first.decide(key, decision);
      await first.close();
      const second = await open({}, place);
      expect(await second.decided(key)).toEqual(decision);
      expect(await second.candidates(key, position)).toHaveLength(1);
    });

    it("what is older than the retention is forgotten", async () => {
      const keys = await open({ retentionMs: 300 });
      const key = newKey();
      const digest = hash();
      await keys.offer(key, position, { replica: "a", digest, answer: answer("x") });
      await keys.decide(key, { position, digest, answer: answer("x") });
      expect(await keys.decided(key)).not.toBeNull();
      await waitFor(async () => (await keys.decided(key)) === null, { what: "the decision to be forgotten" });
      await waitFor(async () => (await keys.candidates(key, position)).length === 0, { what: "no candidates" });
      expect((await keys.claim(key, "gw")).kind).toBe("fresh");
    });
  });

  describe("a store that lost its content", () => {
    it("decides nothing at or below the floor, and stores nothing there", async () => {
      const keys = await open({ tail: () => Promise.resolve(position) });
      const key = newKey();
      const digest = hash();
      await keys.offer(key, position, { replica: "a", digest, answer: answer("late") });
      const decided = await keys.decide(key, { position, digest, answer: answer("late") });
      expect(decided).toEqual({ position, digest, answer: null, isLost: true });
      expect(await keys.candidates(key, position)).toEqual([]);
      expect(await keys.decided(key)).toBeNull();
    });

    it("works above the floor", async () => {
      const keys = await open({ tail: () => Promise.resolve(position) });
      const key = newKey();
      const decision = { position: position + 1, digest: hash(), answer: answer("new") };
      expect(await keys.decide(key, decision)).toEqual({ ...decision, isLost: false });
    });

    it("keeps its floor when it is opened again, with what is stored", async () => {
      const place = await makePlace();
      const first = await open({ tail: () => Promise.resolve(position) }, place);
      await first.claim(newKey(), "gw"); // the floor is set at the first use
      await first.close();
      const second = await open({ tail: () => Promise.reject(new Error("asked for the tail without a loss")) }, place);
      expect((await second.decide(newKey(), { position, digest: hash(), answer: null })).isLost).toBe(true);
    });
  });

  it("after close every call rejects, and close may be called again", async () => {
    const keys = await open();
    const key = newKey();
    expect(keys.isReachable()).toBe(true);
    await keys.close();
    await keys.close();
    expect(keys.isReachable()).toBe(false);
    const gone = { code: "GW_KEYS_UNAVAILABLE" };
    await expect(keys.claim(key, "gw")).rejects.toMatchObject(gone);
    await expect(keys.release(key, "gw")).rejects.toMatchObject(gone);
    await expect(keys.decided(key)).rejects.toMatchObject(gone);
    await expect(keys.candidates(key, position)).rejects.toMatchObject(gone);
    await expect(keys.decide(key, { position, digest: hash(), answer: null })).rejects.toMatchObject(gone);
    await expect(keys.offer(key, position, { replica: "a", digest: hash(), answer: null })).rejects.toMatchObject(gone);
  });
}
