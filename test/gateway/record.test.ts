// The bytes of a record: read back as written, for ever; anything else is a corrupt log and nothing worse.
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { endOf, itemsMax, positionOf, sequenceOf } from "../../gateway/entry.ts";
import type { Item } from "../../gateway/entry.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { chain, decodeRecord, encodeItem, encodeRecord, firstHash, sha256 } from "../../gateway/record.ts";
import { anyHeader, anyItem, entry, id16, id32, recordHeader } from "../fixtures/records/samples.ts";

const record = (items: readonly Item[]): Buffer => encodeRecord(recordHeader(), items.map(encodeItem));

describe("record", () => {
  it("what is written is read back, every kind of item, every field", () => {
    fc.assert(
      fc.property(anyHeader, fc.array(anyItem, { maxLength: 12 }), (header, items) => {
        const bytes = encodeRecord(header, items.map(encodeItem));
        expect(decodeRecord(bytes, 1)).toEqual({ header, items });
      }),
      { numRuns: 300 },
    );
  });

  it("the first 1, 255 and 4,096 items fit, one more does not", () => {
    for (const count of [0, 1, 255, itemsMax])
      expect(decodeRecord(record(Array.from({ length: count }, () => ({ kind: "tick" }))), 1).items).toHaveLength(
        count,
      );
    const tooMany = record(Array.from({ length: itemsMax + 1 }, () => ({ kind: "tick" })));
    expect(() => decodeRecord(tooMany, 1)).toThrow(corrupt);
  });

  it("a body is a view into the record, not a copy", () => {
    const bytes = record([entry({ body: Buffer.from("the body") })]);
    const [item] = decodeRecord(bytes, 1).items;
    bytes.write("THE", bytes.indexOf("the body"));
    expect(item).toMatchObject({ body: Buffer.from("THE body") });
  });

  it("a name that is in no live set is nobody's", () => {
    const header = recordHeader({ live: ["a", "b"], primary: "z" });
    expect(decodeRecord(encodeRecord(header, []), 1).header.primary).toBe(null);
    const none = recordHeader({ live: [], primary: null });
    expect(decodeRecord(encodeRecord(none, []), 1).header).toEqual(none);
  });

  it("the last of 255 live replicas can be primary", () => {
    const live = Array.from({ length: 255 }, (_, index) => `replica-${index}`);
    const header = recordHeader({ live, primary: "replica-254" });
    expect(decodeRecord(encodeRecord(header, []), 1).header).toEqual(header);
  });

  it("what does not fit is refused when it is encoded, not found when it is read", () => {
    expect(() => encodeRecord(recordHeader({ gateway: "g".repeat(256) }), [])).toThrow(RangeError);
    expect(() => encodeRecord(recordHeader({ producer: "short" }), [])).toThrow(RangeError);
    expect(() => encodeRecord(recordHeader({ live: Array.from({ length: 256 }, String) }), [])).toThrow(RangeError);
    expect(() => encodeItem(entry({ seed: "xyz" }))).toThrow(RangeError);
    expect(() => encodeItem(entry({ orderKeys: ["k".repeat(65_536)] }))).toThrow(RangeError);
  });
});

describe("bytes that are no record", () => {
  const whole = record([
    entry(),
    { kind: "tick" },
    { kind: "skip", position: 4096, reason: "poison", maybeSent: ["a"] },
  ]);

  it("a record cut short anywhere is GW_LOG_CORRUPT", () => {
    for (let length = 0; length < whole.length; length++)
      expect(() => decodeRecord(whole.subarray(0, length), 7), `cut at ${length}`).toThrow(corrupt);
  });

  it("bytes behind the record, and behind an item within its frame, are GW_LOG_CORRUPT", () => {
    expect(() => decodeRecord(Buffer.concat([whole, Buffer.alloc(1)]), 7)).toThrow(corrupt);
    const longer = encodeItem({ kind: "tick" });
    longer.writeUInt32BE(1, 1);
    expect(() => decodeRecord(encodeRecord(recordHeader(), [Buffer.concat([longer, Buffer.alloc(1)])]), 7)).toThrow(
      corrupt,
    );
  });

  it("damaged bytes are GW_LOG_CORRUPT or another record, never another error", () => {
    fc.assert(
      fc.property(
        anyHeader,
        fc.array(anyItem, { minLength: 1, maxLength: 5 }),
        fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 }),
        (header, items, damages) => {
          const bytes = encodeRecord(header, items.map(encodeItem));
          for (const [at, value] of damages) bytes[at % bytes.length] = value;
          decodesOrIsCorrupt(bytes);
        },
      ),
      { numRuns: 1000 },
    );
  });

  it("random bytes behind a good magic are GW_LOG_CORRUPT or a record, never another error", () => {
    const magic = whole.subarray(0, 4);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), (bytes) => decodesOrIsCorrupt(Buffer.concat([magic, bytes]))),
      { numRuns: 1000 },
    );
  });

  it("a format, a kind or an outcome of the future is GW_LOG_CORRUPT, and the message names the record", () => {
    const future = Buffer.from(whole);
    future[3] = 2;
    expect(() => decodeRecord(future, 7)).toThrow(/record 7 .*unknown format/);
    const kind = encodeItem({ kind: "tick" });
    kind[0] = 7;
    expect(() => decodeRecord(encodeRecord(recordHeader(), [kind]), 7)).toThrow(/record 7 .*unknown kind/);
    const outcome = encodeItem({ kind: "settled", position: 1, outcome: "done", digest: null });
    outcome[5 + 8] = 3;
    expect(() => decodeRecord(encodeRecord(recordHeader(), [outcome]), 7)).toThrow(/record 7 .*unknown outcome/);
  });
});

describe("version 1", () => {
  const header = recordHeader({
    producer: "000102030405060708090a0b0c0d0e0f",
    n: 41,
    previous: Buffer.alloc(32, 0xaa),
    base: 1_000_000_007,
    rules: id32(0xfeed),
    gateway: "gateway-ü",
    live: ["a", "bücher", "c"],
    primary: "bücher",
  });
  const items: readonly Item[] = [
    entry({
      method: "PATCH",
      target: "/a%20b?c=\u00e9",
      headers: ["Host", "shop", "X-Empty", "", "x-latin", "caf\u00e9"],
      trailers: ["Checksum", "1"],
      body: Buffer.from([0, 1, 2, 10, 255]),
      key: { id: id16(0xabc), fingerprint: id16(0xdef) },
      rule: 65_535,
      orderKeys: ["account:1", "konto:ü"],
      retryOf: 4096 * 7 + 3,
    }),
    entry({ headers: [], body: { sha256: id32(9), sizeBytes: 2 ** 40 } }),
    { kind: "tick" },
    { kind: "rules", digest: id32(0xd1), part: 1, parts: 3, text: Buffer.from("a part") },
    {
      kind: "claim",
      key: { id: id16(1), fingerprint: id16(2) },
      timeMs: 1_700_000_000_001,
      retryOf: null,
    },
    {
      kind: "claim",
      key: { id: id16(1), fingerprint: id16(2) },
      timeMs: 1_700_000_000_002,
      retryOf: 12_288,
    },
    { kind: "settled", position: 4096 * 5 + 4095, outcome: "done", digest: id16(77) },
    { kind: "settled", position: 4096, outcome: "not-started", digest: null },
    { kind: "settled", position: 4097, outcome: "unknown", digest: null },
    {
      kind: "skip",
      position: Number.MAX_SAFE_INTEGER,
      reason: "it ended 2 replicas",
      maybeSent: ["a", "bücher"],
    },
    { kind: "mark", reason: "capture 1" },
  ];
  /** Written once, by the first version that was ever used. Never regenerate it: a log is read for ever. */
  const golden = Buffer.from(
    readFileSync(new URL("../fixtures/records/v1.hex", import.meta.url), "utf8").replaceAll(/\s/g, ""),
    "hex",
  );

  it("a record written by it is read for ever", () => {
    expect(decodeRecord(golden, 1)).toEqual({ header, items });
  });

  it("is what is written today: two versions that share a log agree on every byte", () => {
    expect(encodeRecord(header, items.map(encodeItem)).toString("hex")).toBe(golden.toString("hex"));
  });

  it("its running hash does not change", () => {
    const first = chain(firstHash, sha256(golden));
    expect(first.toString("hex")).toBe("bc332732981ee2d8b5a3faccb55a1be4bf1fbf6b495b05d344a1c4b1e7a6618e");
    expect(chain(first, sha256(golden)).toString("hex")).toBe(
      "3ecdb648312ae0efc63b7e76dbdbe855bca944e254fda24838419f37c5870cf8",
    );
  });
});

describe("positions", () => {
  const sequences = fc.integer({ min: 1, max: Math.floor(Number.MAX_SAFE_INTEGER / itemsMax) - 1 });

  it("name their record, grow strictly, and end with their record", () => {
    fc.assert(
      fc.property(sequences, fc.nat(itemsMax - 1), (sequence, index) => {
        const position = positionOf(sequence, index);
        expect(Number.isSafeInteger(position)).toBe(true);
        expect(sequenceOf(position)).toBe(sequence);
        expect(position).toBeLessThanOrEqual(endOf(sequence));
        expect(endOf(sequence) + 1).toBe(positionOf(sequence + 1, 0));
      }),
    );
  });
});

const corrupt = expect.objectContaining({ code: "GW_LOG_CORRUPT" }) as Error;

function decodesOrIsCorrupt(bytes: Buffer): void {
  try {
    decodeRecord(bytes, 1);
  } catch (error) {
    expect(error).toBeInstanceOf(GatewayError);
    expect(error).toMatchObject({ code: "GW_LOG_CORRUPT" });
  }
}
