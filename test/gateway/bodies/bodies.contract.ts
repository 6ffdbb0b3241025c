// The law of the bodies port as tests, run by every adapter.
import { createHash, randomBytes } from "node:crypto";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

import { afterEach, describe, expect, test } from "vitest";

import { chunkBytes } from "../../../gateway/bodies/bodies.ts";
import type { Bodies } from "../../../gateway/bodies/bodies.ts";
import type { Clock } from "../../../gateway/clock.ts";
import type { BodyRef } from "../../../gateway/entry.ts";

export interface BodiesPlace {
  /** Finds what was put before. */
  open(): Promise<Bodies>;
  close(): Promise<void>;
}

/** `makePlace` gives an empty place; `clock` tells its bodies the time. */
export function bodiesContract(
  name: string,
  makePlace: (maxBytes: number, clock: Clock) => Promise<BodiesPlace>,
): void {
  const toClose: { close(): Promise<void> }[] = [];
  afterEach(async () => {
    for (const open of toClose.splice(0).reverse()) await open.close();
  });
  const newPlace = async (maxBytes: number, clock: Clock): Promise<BodiesPlace> => {
    const place = await makePlace(maxBytes, clock);
    toClose.push(place);
    return place;
  };
  const opened = async (place: BodiesPlace): Promise<Bodies> => {
    const bodies = await place.open();
    toClose.push(bodies);
    return bodies;
  };
  const newBodies = async (maxBytes = 64 * MiB, clock = clockAt({ ms: 1_000_000 })): Promise<Bodies> =>
    opened(await newPlace(maxBytes, clock));

  describe(`${name}: bodies`, () => {
    test("come back as they were put, whatever their size and the pieces they came in", async () => {
      const bodies = await newBodies();
      for (const size of [0, 1, 1000, chunkBytes - 1, chunkBytes, chunkBytes + 1, 3 * chunkBytes, 5 * MiB + 17]) {
        const bytes = randomBytes(size);
        for (const pieces of [1, 7]) {
          const ref = await bodies.put(inPieces(bytes, pieces), size);
          expect(ref).toEqual({ sha256: sha256(bytes), sizeBytes: size });
          const chunks = await read(bodies, ref);
          expect(chunks.every((chunk) => chunk.length <= chunkBytes)).toBe(true);
          expect(Buffer.concat(chunks).equals(bytes)).toBe(true);
        }
      }
    });

    test("are there after a restart", async () => {
      const place = await newPlace(64 * MiB, clockAt({ ms: 1 }));
      const before = await opened(place);
      const bytes = randomBytes(MiB);
      const ref = await before.put(inPieces(bytes, 3), MiB);
      await before.close();
      expect(Buffer.concat(await read(await opened(place), ref)).equals(bytes)).toBe(true);
    });

    test("may be put and read many at a time", async () => {
      const bodies = await newBodies();
      const all = Array.from({ length: 12 }, (_, n) => randomBytes(100_000 * (n + 1)));
      const refs = await Promise.all(all.map((bytes) => bodies.put(inPieces(bytes, 5), bytes.length)));
      const back = await Promise.all(refs.map((ref) => read(bodies, ref)));
      back.forEach((chunks, index) => expect(Buffer.concat(chunks).equals(all[index]!)).toBe(true));
    });

    test("above the limit are refused and leave nothing readable", async () => {
      const bodies = await newBodies();
      const bytes = randomBytes(MiB);
      await expect(bodies.put(inPieces(bytes, 10), MiB - 1)).rejects.toMatchObject({ code: "GW_BODY_TOO_LARGE" });
      await expect(read(bodies, refOf(bytes))).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
    });

    test("that break off are not readable, and the put rejects with the source's own error", async () => {
      const bodies = await newBodies();
      const bytes = randomBytes(MiB);
      const brokenOff = async function* (): AsyncGenerator<Buffer> {
        yield bytes;
        throw new Error("the client went away");
      };
      await expect(bodies.put(brokenOff(), 2 * MiB)).rejects.toThrow("the client went away");
      await expect(read(bodies, refOf(bytes))).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
    });

    test("find the place full with GW_LOG_FULL, and room again after a sweep", async () => {
      const bodies = await newBodies(3 * MiB);
      const [first, second] = [randomBytes(2 * MiB), randomBytes(2 * MiB)];
      const ref = await bodies.put(inPieces(first, 4), 2 * MiB);
      for (const _ of [1, 2]) {
        await expect(bodies.put(inPieces(second, 4), 2 * MiB)).rejects.toMatchObject({ code: "GW_LOG_FULL" });
      }
      expect(Buffer.concat(await read(bodies, ref)).equals(first)).toBe(true);
      expect(await bodies.sweep(new Set(), 2_000_000)).toBe(1);
      const after = await bodies.put(inPieces(second, 4), 2 * MiB);
      expect(Buffer.concat(await read(bodies, after)).equals(second)).toBe(true);
    });

    test("put twice are there once, and take the room of one", async () => {
      const bodies = await newBodies(5 * MiB);
      const bytes = randomBytes(2 * MiB);
      for (const _ of [1, 2, 3, 4]) expect(await bodies.put(inPieces(bytes, 4), 2 * MiB)).toEqual(refOf(bytes));
      expect(Buffer.concat(await read(bodies, refOf(bytes))).equals(bytes)).toBe(true);
      expect(await bodies.sweep(new Set(), 2_000_000)).toBe(1);
      await expect(read(bodies, refOf(bytes))).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
    });

    test("are swept when they are old and not kept; the others stay", async () => {
      const time = { ms: 1_000 };
      const bodies = await newBodies(64 * MiB, clockAt(time));
      const put = async (): Promise<BodyRef> => bodies.put(inPieces(randomBytes(300_000), 2), MiB);
      const [old, kept] = [await put(), await put()];
      time.ms = 2_000;
      const young = await put();
      expect(await bodies.sweep(new Set([kept.sha256]), 1_500)).toBe(1);
      await expect(read(bodies, old)).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
      for (const ref of [kept, young]) expect((await read(bodies, ref)).length).toBe(2);
      expect(await bodies.sweep(new Set([kept.sha256]), 1_500)).toBe(0);
    });

    test("put again are young again", async () => {
      const time = { ms: 1_000 };
      const bodies = await newBodies(64 * MiB, clockAt(time));
      const bytes = randomBytes(300_000);
      await bodies.put(inPieces(bytes, 2), MiB);
      time.ms = 2_000;
      const ref = await bodies.put(inPieces(bytes, 2), MiB);
      expect(await bodies.sweep(new Set(), 1_500)).toBe(0);
      expect(Buffer.concat(await read(bodies, ref)).equals(bytes)).toBe(true);
    });

    test("put again while they are swept are readable afterwards, every time", async () => {
      const time = { ms: 1_000 };
      const place = await newPlace(64 * MiB, clockAt(time));
      const bodies = await opened(place);
      const bytes = randomBytes(100);
      for (let round = 0; round < 150; round++) {
        await bodies.put(inPieces(bytes, 1), MiB);
        const limitMs = (time.ms += 1_000);
        // The sweep starts at another moment of the put in each round.
        const [ref] = await Promise.all([
          bodies.put(inPieces(bytes, 1), MiB),
          turns(round % 50).then(() => bodies.sweep(new Set(), limitMs)),
        ]);
        expect(Buffer.concat(await read(bodies, ref)).equals(bytes)).toBe(true);
      }
    });

    test("are not given out for a reference of another size", async () => {
      const bodies = await newBodies();
      const ref = await bodies.put(inPieces(Buffer.from("abc"), 1), 10);
      await expect(read(bodies, { ...ref, sizeBytes: 4 })).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
    });

    test("are not taken or given out after a close, which may happen twice", async () => {
      const bodies = await newBodies();
      const ref = await bodies.put(inPieces(Buffer.from("abc"), 1), 10);
      await bodies.close();
      await bodies.close();
      await expect(bodies.put(inPieces(Buffer.from("abc"), 1), 10)).rejects.toMatchObject({ code: "GW_STOPPING" });
      await expect(read(bodies, ref)).rejects.toMatchObject({ code: "GW_STOPPING" });
    });

    test("are never held whole in memory", async () => {
      const bodies = await newBodies(256 * MiB);
      let given = 0;
      let waiting = 0;
      const source = async function* (): AsyncGenerator<Buffer> {
        for (let n = 0; n < 400; n++) {
          given += chunkBytes;
          if (n % 50 === 49) waiting = Math.max(waiting, heldBytes());
          yield randomBytes(chunkBytes);
        }
      };
      const before = heldBytes();
      await bodies.put(source(), 256 * MiB);
      expect(given).toBe(100 * MiB);
      expect(waiting - before).toBeLessThan(40 * MiB);
    });
  });
}

export const MiB = 1024 * 1024;
export const sha256 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");
export const refOf = (bytes: Buffer): BodyRef => ({ sha256: sha256(bytes), sizeBytes: bytes.length });

export async function read(bodies: Bodies, ref: BodyRef): Promise<Buffer[]> {
  const chunks: Buffer[] = [];
  for await (const chunk of bodies.read(ref)) chunks.push(chunk);
  return chunks;
}

/** So many pieces of about the same size. */
export async function* inPieces(bytes: Buffer, pieces: number): AsyncGenerator<Buffer> {
  const size = Math.max(1, Math.ceil(bytes.length / pieces));
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

/** Shows what `time` says. */
export function clockAt(time: { ms: number }): Clock {
  return {
    now: () => performance.now(),
    wallMs: () => time.ms,
    sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
  };
}

/** Of buffers that are still referred to. */
function heldBytes(): number {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
  return process.memoryUsage().arrayBuffers;
}

async function turns(count: number): Promise<void> {
  for (let n = 0; n < count; n++) await new Promise((resolve) => setImmediate(resolve));
}
