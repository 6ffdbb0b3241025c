// Cuts are for ever: golden ones made by another implementation of the rule; and what content-defined cuts are for.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { chunkBytesMax, cut, cutWhole } from "../../recorder/chunker.ts";
import { inputs, noise } from "../fixtures/chunks/inputs.ts";

const KiB = 1024;
const golden = JSON.parse(readFileSync(new URL("../fixtures/chunks/v1.json", import.meta.url), "utf8")) as Readonly<
  Record<string, { readonly sha256: string; readonly lengths: readonly number[] }>
>;

const lengths = (bytes: Buffer): number[] => [...cutWhole(bytes)].map(({ length }) => length);
const sha256 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");

async function cutPieces(pieces: Iterable<Buffer>): Promise<Buffer[]> {
  const chunks: Buffer[] = [];
  for await (const chunk of cut(asStream(pieces))) chunks.push(chunk);
  return chunks;
}

async function* asStream(pieces: Iterable<Buffer>): AsyncGenerator<Buffer> {
  yield* pieces;
}

function* inPieces(bytes: Buffer, sizes: readonly number[]): Generator<Buffer> {
  for (let at = 0, i = 0; at < bytes.length; i += 1) {
    const size = sizes[i % sizes.length]!;
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

describe("the chunker", () => {
  test.each(Object.keys(inputs))("cuts %s where it always did", (name) => {
    const bytes = inputs[name]!();
    expect(sha256(bytes)).toBe(golden[name]!.sha256);
    expect(lengths(bytes)).toEqual(golden[name]!.lengths);
  });

  test("there is a golden cut of every input, and no other", () => {
    expect(Object.keys(golden).toSorted()).toEqual(Object.keys(inputs).toSorted());
  });

  test("nothing gives no chunk, one byte one", async () => {
    expect(lengths(Buffer.alloc(0))).toEqual([]);
    expect(await cutPieces([])).toEqual([]);
    expect(await cutPieces([Buffer.alloc(0), Buffer.alloc(0)])).toEqual([]);
    expect(await cutPieces([Buffer.from("x")])).toEqual([Buffer.from("x")]);
  });

  test("a stream is cut as the whole is, whatever pieces it comes in", async () => {
    const bytes = inputs["mixed"]!();
    const whole = golden["mixed"]!.lengths;
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.oneof(fc.integer({ min: 1, max: 5_000 }), fc.integer({ min: 1, max: 2_000_000 })), {
          minLength: 1,
          maxLength: 5,
        }),
        async (sizes) => {
          const chunks = await cutPieces(inPieces(bytes, sizes));
          expect(chunks.map(({ length }) => length)).toEqual(whole);
          expect(sha256(Buffer.concat(chunks))).toBe(golden["mixed"]!.sha256);
        },
      ),
      { numRuns: 25 },
    );
  });

  test("no chunk is longer than 256 KiB, none but the last shorter than 16 KiB, the usual one near 64 KiB", () => {
    const all = lengths(noise("sizes", 16 * KiB * KiB));
    expect(Math.max(...all)).toBeLessThanOrEqual(chunkBytesMax);
    expect(Math.min(...all.slice(0, -1))).toBeGreaterThan(16 * KiB);
    expect((16 * KiB * KiB) / all.length / KiB).toBeGreaterThan(55);
    expect((16 * KiB * KiB) / all.length / KiB).toBeLessThan(75);
  });

  test("a byte put in moves the borders next to it and no others", () => {
    const before = noise("shift", 8 * KiB * KiB);
    const after = Buffer.concat([before.subarray(0, 3_000_000), Buffer.from("!"), before.subarray(3_000_000)]);
    const known = new Set([...cutWhole(before)].map(sha256));
    const fresh = [...cutWhole(after)].filter((chunk) => !known.has(sha256(chunk)));
    expect(fresh.length).toBeGreaterThan(0);
    expect(fresh.length).toBeLessThanOrEqual(4);
  });

  test("at least 250 MB are cut in a second", () => {
    const bytes = noise("speed", 32 * KiB * KiB);
    lengths(bytes);
    // The best of several: the machine may be busy. The bound is far below what was measured (1,700 MB/s): it finds a loop gone wrong.
    const rates = Array.from({ length: 5 }, () => {
      const began = performance.now();
      lengths(bytes);
      return bytes.length / 1e6 / ((performance.now() - began) / 1000);
    });
    expect(Math.max(...rates)).toBeGreaterThan(250);
  });
});
