// Key rows as bytes: what was written once is read for ever, in pieces of any size, and nothing else is.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decodeKeyRows, encodeKeyRows, keyRowBytes } from "../../../gateway/state/keyrows.ts";
import type { KeyRow } from "../../../gateway/state/store.ts";
import { id16 } from "../../fixtures/records/samples.ts";

const row = (over: Partial<KeyRow>): KeyRow => ({
  id: "000102030405060708090a0b0c0d0e0f",
  fingerprint: "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
  position: 4096,
  timeMs: 1_700_000_000_000,
  kind: "entry",
  ...over,
});
/** As version 1 wrote it. */
const golden =
  "000102030405060708090a0b0c0d0e0ff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff40b00000000000004278bcfe5680000000" +
  "000102030405060708090a0b0c0d0e0ff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff433fffffffffffff000000000000000003";

describe("key rows", () => {
  it("are written as they always were, and read back", async () => {
    const rows = [row({}), row({ position: Number.MAX_SAFE_INTEGER, timeMs: 0, kind: "unknown" })];
    expect((await bytesOf(rows)).toString("hex")).toBe(golden);
    expect(await read([Buffer.from(golden, "hex")])).toEqual(rows);
  });

  it("come back from pieces of any size", async () => {
    const kinds = fc.constantFrom<KeyRow["kind"]>("entry", "claimed", "done", "unknown");
    const some = fc.array(fc.record({ step: fc.integer({ min: 1, max: 9999 }), timeMs: fc.nat(), kind: kinds }), {
      maxLength: 40,
    });
    await fc.assert(
      fc.asyncProperty(some, fc.array(fc.integer({ min: 0, max: 120 }), { minLength: 1 }), async (list, sizes) => {
        let position = -1;
        const rows = list.map(({ step, timeMs, kind }, n) =>
          row({ id: id16(n), position: (position += step), timeMs, kind }),
        );
        const bytes = await bytesOf(rows);
        expect(bytes.length).toBe(rows.length * keyRowBytes);
        // One buffer for all pieces, as a socket or a file may use it.
        const reused = Buffer.alloc(120);
        const pieces = function* (): Generator<Buffer> {
          for (let at = 0, n = 0; at < bytes.length; n++) {
            const size = n > 200 ? 120 : (sizes[n % sizes.length] as number);
            yield reused.subarray(0, bytes.copy(reused, 0, at, at + size));
            at += size;
          }
        };
        expect(await read(pieces())).toEqual(rows);
      }),
    );
  });

  it("are written in pieces of at most 64 KiB, not held together", async () => {
    let sizes = 0;
    for await (const piece of encodeKeyRows(each(Array.from({ length: 5000 }, (_, n) => row({ position: n }))))) {
      expect(piece.length).toBeLessThanOrEqual(64 * 1024);
      expect(piece.length % keyRowBytes).toBe(0);
      sizes++;
    }
    expect(sizes).toBe(4);
  });

  it("that are no rows, cut off or out of order are damage", async () => {
    const bytes = Buffer.from(golden, "hex");
    const damaged = [
      bytes.subarray(0, -1),
      Buffer.concat([bytes, Buffer.alloc(1)]),
      Buffer.concat([bytes.subarray(keyRowBytes), bytes.subarray(0, keyRowBytes)]),
      Buffer.concat([bytes.subarray(0, keyRowBytes), bytes.subarray(0, keyRowBytes)]),
      Buffer.concat([bytes.subarray(0, keyRowBytes - 1), Buffer.from([4])]),
      Buffer.concat([bytes.subarray(0, 32), Buffer.alloc(8, 255), bytes.subarray(40)]),
    ];
    for (const it of damaged) await expect(read([it])).rejects.toThrow("damaged: ");
    await expect(bytesOf([row({ position: 2 }), row({ position: 2 })])).rejects.toThrow(RangeError);
  });
});

const bytesOf = async (rows: readonly KeyRow[]): Promise<Buffer> => {
  const pieces: Buffer[] = [];
  for await (const piece of encodeKeyRows(each(rows))) pieces.push(piece);
  return Buffer.concat(pieces);
};
async function read(pieces: Iterable<Buffer>): Promise<KeyRow[]> {
  const rows: KeyRow[] = [];
  for await (const it of decodeKeyRows(each(pieces), (why) => new Error(`damaged: ${why}`))) rows.push(it);
  return rows;
}
async function* each<T>(list: Iterable<T>): AsyncGenerator<T> {
  yield* list;
}
