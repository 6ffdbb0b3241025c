// What was sealed comes back byte for byte; what was touched, by whomever, never does.
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { brotliCompressSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { chunkBytesMax } from "../../recorder/chunker.ts";
import { chunkId, seal, sealedBytesMax, snapshotKey, storedName, unseal } from "../../recorder/seal.ts";
import { lines, noise } from "../fixtures/chunks/inputs.ts";

const key = snapshotKey(Buffer.alloc(32, 7));
const otherKey = snapshotKey(Buffer.alloc(32, 8));
const corrupt = { code: "GW_SNAPSHOT_CORRUPT" };

const samples: Readonly<Record<string, Buffer>> = {
  "one byte": Buffer.from("x"),
  "a short text": Buffer.from("a short text"),
  lines: lines(65_536),
  noise: noise("seal", 65_536),
  zeros: Buffer.alloc(chunkBytesMax),
  "the longest noise": noise("longest", chunkBytesMax),
  "half of each": Buffer.concat([noise("half", 30_000), lines(30_000)]),
};

describe.each([
  ["without a key", null],
  ["with a key", key],
])("a chunk sealed %s", (_, key) => {
  test.each(Object.keys(samples))("comes back: %s", async (name) => {
    const plain = samples[name]!;
    const sealed = await seal(chunkId(plain), plain, key);
    expect((await unseal(chunkId(plain), sealed, key)).equals(plain)).toBe(true);
    expect(sealed.length).toBeLessThanOrEqual(Math.min(sealedBytesMax, plain.length + 40));
  });

  test("is smaller where that is possible", async () => {
    for (const [name, most] of [
      ["lines", 0.3],
      ["zeros", 0.01],
      ["half of each", 0.8],
    ] as const) {
      const plain = samples[name]!;
      expect((await seal(chunkId(plain), plain, key)).length).toBeLessThan(plain.length * most);
    }
  });

  test("comes back whatever is in it", async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 3000 }), async (bytes) => {
        const plain = Buffer.from(bytes);
        expect(await unseal(chunkId(plain), await seal(chunkId(plain), plain, key), key)).toEqual(plain);
      }),
      { numRuns: 100 },
    );
  });

  test.each(["half of each", "noise"])("is refused, naming it, when anything of it was changed: %s", async (name) => {
    const plain = samples[name]!;
    const id = chunkId(plain);
    const sealed = await seal(id, plain, key);
    const refuse = async (touched: Buffer, what: string): Promise<void> => {
      const result = await unseal(id, touched, key).catch((error: unknown) => error);
      // What only pads compressed bytes changes nothing of the plaintext, and may pass where nothing authenticates it.
      if (key === null && sealed[5] === 1 && Buffer.isBuffer(result)) expect(result.equals(plain), what).toBe(true);
      else expect(result, what).toMatchObject({ ...corrupt, message: expect.stringContaining(id) as string });
    };
    const places = [
      ...Array(45).keys(),
      ...Array.from({ length: 40 }, () => Math.floor(Math.random() * sealed.length)),
    ];
    for (const at of [...places, sealed.length - 1]) {
      const touched = Buffer.from(sealed);
      touched[at]! ^= 1 << (at % 8);
      await refuse(touched, `byte ${at}`);
    }
    for (const length of [0, 1, 5, 11, 12, 13, 24, 30, 40, sealed.length - 1])
      await refuse(sealed.subarray(0, length), `${length} bytes`);
    await refuse(Buffer.concat([sealed, Buffer.from("x")]), "a byte more");
  });

  test("does not pass for another chunk", async () => {
    const [one, two] = [samples["lines"]!, samples["noise"]!];
    const sealed = await seal(chunkId(one), one, key);
    await expect(unseal(chunkId(two), sealed, key)).rejects.toMatchObject(corrupt);
  });
});

describe("a chunk", () => {
  test("that would become larger than it says is not unpacked", async () => {
    // 64 MiB of zeros in a few bytes, and a header that promises as much as a chunk may have.
    const bomb = Buffer.concat([header(1, 0, chunkBytesMax), brotliCompressSync(Buffer.alloc(64 * 1024 * 1024))]);
    const id = chunkId(Buffer.alloc(chunkBytesMax));
    const before = process.memoryUsage().arrayBuffers;
    await expect(unseal(id, bomb, null)).rejects.toMatchObject(corrupt);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(16 * 1024 * 1024);
  });

  test("that promises more than any chunk may have is refused before anything is unpacked", async () => {
    const sealed = Buffer.concat([
      header(1, 0, chunkBytesMax + 1),
      brotliCompressSync(Buffer.alloc(chunkBytesMax + 1)),
    ]);
    await expect(unseal(chunkId(Buffer.alloc(chunkBytesMax + 1)), sealed, null)).rejects.toThrow(/more than any chunk/);
  });

  test("of a later version, codec or encryption is refused, and said to be unknown", async () => {
    const plain = Buffer.from("from the future");
    for (const sealed of [header(2, 0, plain.length), header(0, 2, plain.length)])
      await expect(unseal(chunkId(plain), Buffer.concat([sealed, plain]), null)).rejects.toThrow(/does not know/);
  });

  test("larger than any is not sealed", async () => {
    const plain = Buffer.alloc(chunkBytesMax + 1);
    await expect(seal(chunkId(plain), plain, null)).rejects.toThrow(/larger than any/);
  });
});

describe("encryption", () => {
  const plain = lines(5_000);
  const id = chunkId(plain);

  test("without the key says so, and names the setting", async () => {
    const sealed = await seal(id, plain, key);
    await expect(unseal(id, sealed, null)).rejects.toMatchObject({
      code: "GW_RECOVERY_REFUSED",
      message: expect.stringContaining("snapshots.encrypt.keyFile") as string,
    });
  });

  test("under another key says so, and names the setting", async () => {
    await expect(unseal(id, await seal(id, plain, key), otherKey)).rejects.toMatchObject({
      code: "GW_SNAPSHOT_CORRUPT",
      message: expect.stringContaining("snapshots.encrypt.keyFile") as string,
    });
  });

  test("never gives the same bytes twice, and shows nothing of what it hides", async () => {
    const [one, two] = [await seal(id, plain, key), await seal(id, plain, key)];
    expect(one.subarray(12, 24).equals(two.subarray(12, 24))).toBe(false);
    expect(one.subarray(24).equals(two.subarray(24))).toBe(false);
    const short = Buffer.from("a secret that is too short to be compressed");
    expect((await seal(chunkId(short), short, key)).includes("secret")).toBe(false);
  });

  test("does not let a header be changed, not even where nothing reads it", async () => {
    const sealed = await seal(id, plain, key);
    sealed.writeUInt32BE(plain.length + 1, 8);
    await expect(unseal(id, sealed, key)).rejects.toThrow(/was changed/);
  });

  test("needs 32 bytes", () => {
    expect(() => snapshotKey(Buffer.alloc(31))).toThrow(/keyFile must hold 32 bytes/);
    expect(() => snapshotKey(randomBytes(33))).toThrow(/keyFile must hold 32 bytes/);
  });

  test("hides ids as well: a name says nothing without the key, and differs from key to key", () => {
    expect(storedName(id, null)).toBe(id);
    const names = [storedName(id, key), storedName(id, otherKey), id];
    expect(new Set(names).size).toBe(3);
    for (const name of names) expect(name).toMatch(/^[0-9a-f]{64}$/);
  });

  test("keys are told apart by an id that is not the key", () => {
    expect(key.id).toMatch(/^[0-9a-f]{32}$/);
    expect(key.id).not.toBe(otherKey.id);
    expect(Buffer.alloc(32, 7).includes(Buffer.from(key.id, "hex"))).toBe(false);
  });
});

describe("golden chunks", () => {
  const golden = JSON.parse(
    readFileSync(new URL("../fixtures/packs/sealed-v1.json", import.meta.url), "utf8"),
  ) as readonly {
    readonly name: string;
    readonly id: string;
    readonly isEncrypted: boolean;
    readonly sealed: string;
    readonly sha256: string;
  }[];

  test.each(golden)("$name is still unsealed", async ({ id, isEncrypted, sealed, sha256 }) => {
    const plain = await unseal(id, Buffer.from(sealed, "base64"), isEncrypted ? key : null);
    expect(createHash("sha256").update(plain).digest("hex")).toBe(sha256);
  });

  test("there are some of each kind", () => {
    const kinds = golden.map(({ sealed }) => Buffer.from(sealed, "base64").subarray(5, 7).toString("hex"));
    expect(new Set(kinds)).toEqual(new Set(["0000", "0100", "0001", "0101"]));
  });
});

function header(codec: number, encryption: number, plainBytes: number): Buffer {
  const bytes = Buffer.from([0x62, 0x72, 0x32, 0x6b, 1, codec, encryption, 0, 0, 0, 0, 0]);
  bytes.writeUInt32BE(plainBytes, 8);
  return bytes;
}
