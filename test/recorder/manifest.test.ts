// The manifest: one text for one manifest, read for ever; whatever is not exactly that is refused.
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { encodeManifest, manifestHash, parseManifest } from "../../recorder/manifest.ts";
import type { Manifest } from "../../recorder/manifest.ts";
import { manifestSample } from "../fixtures/manifests/samples.ts";

const corrupt = (says: RegExp): Error =>
  expect.objectContaining({ code: "GW_SNAPSHOT_CORRUPT", message: expect.stringMatching(says) as string }) as Error;

const changed = (change: Readonly<Record<string, unknown>>): Buffer =>
  Buffer.from(canonical({ ...manifestSample(), ...change }));

/** As manifests are written, whatever it is: so that only the one fault is found. */
function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const fields = Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1));
  return `{${fields.map(([key, it]) => `${JSON.stringify(key)}:${canonical(it)}`).join(",")}}`;
}

describe("a manifest", () => {
  test("is read back as it was written", () => {
    for (const manifest of [
      manifestSample(),
      manifestSample({ chainId: null, contract: null, imageDigest: null, skips: [] }),
    ]) {
      const bytes = encodeManifest(manifest);
      expect(parseManifest(bytes, null)).toEqual(manifest);
      expect(parseManifest(bytes, manifestHash(bytes))).toEqual(manifest);
    }
  });

  test("has one text, whatever order its fields were written in", () => {
    const manifest = manifestSample();
    const turned = Object.fromEntries(Object.entries(manifest).toReversed()) as unknown as Manifest;
    expect(encodeManifest(turned).equals(encodeManifest(manifest))).toBe(true);
    const { state } = manifest;
    const deep = {
      ...manifest,
      state: { ...state, rules: Object.fromEntries(Object.entries(state.rules).toReversed()) },
    };
    expect(encodeManifest(deep).equals(encodeManifest(manifest))).toBe(true);
  });

  test("written once is still read, with the hash it had", () => {
    const bytes = readFileSync(new URL("../fixtures/manifests/v1.json", import.meta.url));
    const hash = readFileSync(new URL("../fixtures/manifests/v1.hash", import.meta.url), "utf8").trim();
    expect(manifestHash(bytes)).toBe(hash);
    expect(parseManifest(bytes, hash)).toEqual(manifestSample());
    expect(encodeManifest(manifestSample()).equals(bytes)).toBe(true);
  });

  test("with another hash than the one that was published is refused, naming both", () => {
    const bytes = encodeManifest(manifestSample());
    const published = "cd".repeat(32);
    expect(() => parseManifest(bytes, published)).toThrow(corrupt(new RegExp(`${published}.*${manifestHash(bytes)}`)));
  });

  test.each<[string, Buffer, RegExp]>([
    ["no JSON", Buffer.from("{"), /is no JSON/],
    ["nothing", Buffer.alloc(0), /is no JSON/],
    ["null", Buffer.from("null"), /format that this version does not read: null/],
    ["a list", Buffer.from("[]"), /format that this version does not read/],
    ["a later format", changed({ format: "br2k-manifest/2" }), /does not read: "br2k-manifest\/2"/],
    ["a space", Buffer.concat([Buffer.from(" "), encodeManifest(manifestSample())]), /not in its canonical form/],
    ["a line end", Buffer.concat([encodeManifest(manifestSample()), Buffer.from("\n")]), /not in its canonical form/],
    [
      "bytes that are no UTF-8",
      Buffer.from(encodeManifest(manifestSample()).toString("latin1").replace("shop", "sh\u00ffp"), "latin1"),
      /not in its canonical form/,
    ],
    [
      "a field twice",
      Buffer.from(`{"version":7,${encodeManifest(manifestSample()).toString().slice(1)}`),
      /not in its canonical form/,
    ],
    ["a field more", changed({ extra: 1 }), /malformed: extra/],
    [
      "fields so deep that nothing could walk them",
      Buffer.from(`{"a":${"[".repeat(50_000)}${"]".repeat(50_000)},"format":"br2k-manifest/1"}`),
      /malformed/,
    ],
    [
      "a deep field more",
      changed({ extra: JSON.parse("[".repeat(500) + "]".repeat(500)) as unknown }),
      /malformed: extra/,
    ],
  ])("with %s is refused", (_, bytes, says) => {
    expect(() => parseManifest(bytes, null)).toThrow(corrupt(says));
  });

  test("that could not be read again is not written", () => {
    for (const change of [{ hash: "" }, { version: -1 }, { extra: 1 }])
      expect(() => encodeManifest(manifestSample(change as Partial<Manifest>))).toThrow(
        expect.objectContaining({ code: "GW_SNAPSHOT_FAILED" }) as Error,
      );
  });

  test.each<[string, readonly unknown[]]>([
    ["service", [1, null]],
    ["chainId", [1]],
    ["contract", [1]],
    ["epoch", ["", "0123", "0123456789ABCDEF", 7]],
    ["version", [-1, 1.5, "1", null, 2 ** 53]],
    ["position", [-1, 1.5]],
    ["hash", ["ab", "AB".repeat(32), null]],
    ["entries", [-1]],
    ["logTimeMs", [0.5]],
    [
      "state",
      [null, [], {}, { ...manifestSample().state, version: 2 }, { ...manifestSample().state, hash: "00".repeat(32) }],
    ],
    [
      "state",
      [
        { ...manifestSample().state, producers: [{ producer: "x" }] },
        { ...manifestSample().state, rules: { a: 1 } },
      ],
    ],
    [
      "state",
      [
        { ...manifestSample().state, parts: { a: [1] } },
        { ...manifestSample().state, keyCount: -1 },
        { ...manifestSample().state, more: 1 },
      ],
    ],
    ["skips", [null, {}, [null], [{ kind: "skip", position: 1 }], [{ kind: "dropped", sequence: 1 }]]],
    [
      "keys",
      [
        null,
        [null],
        [{ id: "x", sizeBytes: 1 }],
        [{ id: "ab".repeat(32), sizeBytes: -1 }],
        [{ id: "ab".repeat(32), sizeBytes: 1, more: 1 }],
      ],
    ],
    ["backendVersion", [null, 1]],
    ["imageDigest", [1]],
    ["capture", ["tape", null]],
    ["root", ["x", null]],
    ["listing", [null, [{}]]],
    ["treeEntries", [-1]],
    ["treeBytes", [-1]],
    ["previousHash", ["x"]],
  ])("whose %s is not one is refused, naming it", (field, values) => {
    for (const value of values)
      expect(() => parseManifest(changed({ [field]: value }), null), JSON.stringify(value)).toThrow(
        corrupt(new RegExp(`malformed: ${field}`)),
      );
  });

  test("without any of its fields is refused", () => {
    for (const field of Object.keys(manifestSample())) {
      const { [field]: _, ...rest } = manifestSample() as unknown as Record<string, unknown>;
      expect(() => parseManifest(Buffer.from(canonical(rest)), null), field).toThrow(corrupt(/malformed|format/));
    }
  });

  test("whatever byte of it is changed, it is refused or is another manifest with another hash", () => {
    const bytes = encodeManifest(manifestSample());
    fc.assert(
      fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const touched = Buffer.from(bytes);
        touched[at]! ^= flip;
        expect(() => parseManifest(touched, manifestHash(bytes))).toThrow(corrupt(/has the hash/));
        try {
          expect(parseManifest(touched, null)).not.toEqual(manifestSample());
        } catch (error) {
          expect(error).toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
        }
      }),
      { numRuns: 1_000 },
    );
  });
});
