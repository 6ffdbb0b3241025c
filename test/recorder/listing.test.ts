// A listing says one tree, in one way; whatever is no sound tree is refused with its place before anything is done with it.
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { chunkBytesMax } from "../../recorder/chunker.ts";
import { decodeChunks, encodeChunks, encodeListing, makeTree, parseListing } from "../../recorder/listing.ts";
import { chunkId } from "../../recorder/seal.ts";
import { byPath, decodeName, encodeName } from "../../recorder/tree.ts";
import type { ListedEntry } from "../../recorder/tree.ts";
import { anyTree, everyKind, file, folder, latin1, link } from "./trees.ts";

const text = (entries: readonly ListedEntry[]): string =>
  Buffer.concat([...encodeListing(makeTree(entries))]).toString("latin1");

async function* pieces(listing: string | Buffer, bytes = 1_000): AsyncGenerator<Buffer> {
  const all = typeof listing === "string" ? Buffer.from(listing, "latin1") : listing;
  for (let at = 0; at < all.length; at += bytes) yield all.subarray(at, at + bytes);
}

const parse = (listing: string | Buffer, bytes?: number) => parseListing(pieces(listing, bytes));
const rootOf = (entries: readonly ListedEntry[]): string => makeTree(entries).root;
const id = "ab".repeat(32);

describe("a listing", () => {
  test("is read back as it was written, every kind of entry, whatever the pieces", async () => {
    const tree = makeTree(everyKind);
    for (const bytes of [1, 7, 100, 100_000]) expect(await parse(text(everyKind), bytes)).toEqual(tree);
  });

  test("is read back as it was written, for any tree, and has one text and one root in any order", async () => {
    await fc.assert(
      fc.asyncProperty(anyTree, fc.integer(), async (entries, turn) => {
        const sorted = entries.toSorted(byPath);
        expect(await parse(text(entries))).toEqual(makeTree(entries));
        expect((await parse(text(entries))).entries).toEqual(sorted);
        const other = entries.map((entry, i) => [(i * 7919 + turn) % 101, entry] as const);
        expect(text(other.toSorted(([a], [b]) => a - b).map(([, entry]) => entry))).toBe(text(entries));
      }),
      { numRuns: 200 },
    );
  });

  test("is ASCII, a line an entry and a line a chunk, whatever names hold", () => {
    expect(text(everyKind)).toMatch(/^[ -~\n]*$/);
    expect(text(everyKind).split("\n")).toHaveLength(1 + everyKind.length + 6 + 1);
  });

  test("of an empty tree is one line", async () => {
    expect(text([])).toBe("br2k-tree/1\n");
    expect((await parse(text([]))).entries).toEqual([]);
  });

  test("of a large file is written and read in pieces", async () => {
    const refs = Array.from({ length: 20_000 }, (_, i) => ({
      id: chunkId(Buffer.from(`${i}`)),
      sizeBytes: 60_000 + i,
    }));
    const chunks = encodeChunks(refs);
    const sizeBytes = refs.reduce((sum, ref) => sum + ref.sizeBytes, 0);
    const tree = makeTree([{ kind: "file", path: "state", mode: 0o600, sizeBytes, chunks }]);
    const parts = [...encodeListing(tree)];
    expect(parts.length).toBeGreaterThan(3);
    const read = await parse(Buffer.concat(parts), 65_536);
    expect(read).toEqual(tree);
    expect([...decodeChunks((read.entries[0] as { chunks: Buffer }).chunks)]).toEqual(refs);
  });

  test("written once is still read, with the root it had", async () => {
    const golden = readFileSync(new URL("../fixtures/listings/v1.txt", import.meta.url), "latin1");
    const root = readFileSync(new URL("../fixtures/listings/v1.root", import.meta.url), "latin1").trim();
    const tree = await parse(golden);
    expect(tree.root).toBe(root);
    expect(tree).toEqual(makeTree(everyKind));
    expect(text(everyKind)).toBe(golden);
  });
});

describe("the root", () => {
  const base = [folder("f"), file("f/x", [Buffer.from("one")]), link("l", "f/x")];
  const root = rootOf(base);

  test.each<[string, readonly ListedEntry[]]>([
    ["a name", [folder("f"), file("f/y", [Buffer.from("one")]), link("l", "f/x")]],
    ["a folder's name", [folder("g"), file("g/x", [Buffer.from("one")]), link("l", "f/x")]],
    ["contents", [folder("f"), file("f/x", [Buffer.from("two")]), link("l", "f/x")]],
    ["a file's mode", [folder("f"), file("f/x", [Buffer.from("one")], 0o600), link("l", "f/x")]],
    ["a folder's mode", [folder("f", 0o700), file("f/x", [Buffer.from("one")]), link("l", "f/x")]],
    ["a link's target", [folder("f"), file("f/x", [Buffer.from("one")]), link("l", "f")]],
    ["an entry more", [...base, folder("z")]],
    ["an entry less", base.slice(0, 2)],
    ["a file for a link", [folder("f"), file("f/x", [Buffer.from("one")]), file("l", [Buffer.from("f/x")])]],
    ["the order of chunks", [folder("f"), file("f/x", [Buffer.from("e"), Buffer.from("on")]), link("l", "f/x")]],
  ])("is another one after a change of %s", (_, changed) => {
    expect(rootOf(changed)).not.toBe(root);
  });

  test("is the same one whatever order the entries come in", () => {
    expect(rootOf(base.toReversed())).toBe(root);
  });
});

describe("a listing that is no sound tree is refused:", () => {
  const head = "br2k-tree/1\n";
  test.each<[string, string, RegExp]>([
    ["nothing at all", "", /it is empty/],
    ["another format", "br2k-tree/2\n", /line 1: its format is not br2k-tree\/1/],
    ["no end of the last line", `${head}d 755 a`, /the last line has no end/],
    ["an unknown kind", `${head}s 755 a\n`, /line 2: this is no entry/],
    ["an empty line", `${head}\n`, /line 2: this is no entry/],
    ["words too many", `${head}d 755 a b\n`, /line 2: this is no entry/],
    ["words too few", `${head}d 755\n`, /line 2: this is no entry/],
    ["a mode with a fourth digit", `${head}d 4755 a\n`, /three octal digits/],
    ["a mode that is not octal", `${head}d 888 a\n`, /three octal digits/],
    ["a number with a zero before it", `${head}f 644 03 1 a\n${id} 3\n`, /a number is not one/],
    ["a negative number", `${head}f 644 -3 1 a\n`, /a number is not one/],
    ["a number too large", `${head}f 644 9007199254740993 1 a\n`, /a number is not one/],
    [
      "a size no such chunks can have",
      `${head}f 644 ${chunkBytesMax + 1} 1 a\n`,
      /so many chunks cannot have that size/,
    ],
    ["more chunks than bytes", `${head}f 644 3 4 a\n`, /so many chunks cannot have that size/],
    ["chunks that are missing at the end", `${head}f 644 6 2 a\n${id} 3\n`, /chunks are missing/],
    ["chunks that are missing before the next entry", `${head}f 644 6 2 a\n${id} 3\nd 755 b\n`, /line 4/],
    ["chunks of another size together", `${head}f 644 6 2 a\n${id} 3\n${id} 4\n`, /have 7 bytes, not 6/],
    ["a chunk without bytes", `${head}f 644 3 2 a\n${id} 3\n${id} 0\n`, /line 4: this is no chunk/],
    [
      "a chunk larger than any",
      `${head}f 644 ${chunkBytesMax + 1} 2 a\n${id} ${chunkBytesMax + 1}\n`,
      /line 3: this is no chunk/,
    ],
    ["an id that is none", `${head}f 644 3 1 a\n${id.toUpperCase()} 3\n`, /line 3: this is no chunk/],
    ["an id that is short", `${head}f 644 3 1 a\n${id.slice(1)} 3\n`, /line 3/],
    ["a letter that must be encoded", `${head}d 755 a\u00a0b\n`, /not written as names are/],
    ["a letter that need not be encoded", `${head}d 755 %61\n`, /not written as names are/],
    ["a code in small letters", `${head}d 755 %0a\n`, /not written as names are/],
    ["a code that is none", `${head}d 755 %zz\n`, /not written as names are/],
    ["a name twice", `${head}d 755 a\nd 755 a\n`, /a: it is there twice/],
    ["names out of order", `${head}d 755 b\nd 755 a\n`, /a: it is not in its place/],
    ["an absolute name", `${head}d 755 /etc\n`, /\/etc: "" is no name/],
    ["a name that goes up", `${head}d 755 ..\n`, /"\.\." is no name/],
    ["a name that goes up within", `${head}d 755 a\nd 755 a/../b\n`, /"\.\." is no name/],
    ["a dot", `${head}d 755 .\n`, /"\." is no name/],
    ["an empty name", `${head}d 755 \n`, /"" is no name/],
    ["an empty name within", `${head}d 755 a\nd 755 a//b\n`, /"" is no name/],
    ["a NUL", `${head}d 755 a%00b\n`, /what no name can hold/],
    ["a name too long", `${head}d 755 ${"a".repeat(256)}\n`, /longer than 255 bytes/],
    ["a path too long", `${head}d 755 ${Array(600).fill("abcdefg").join("/")}\n`, /longer than 4096 bytes/],
    ["a line without end", `${head}${"a".repeat(100_000)}`, /a line is too long/],
    ["a folder that is missing", `${head}d 755 a/b\n`, /a\/b: what it lies in is no folder/],
    ["a file as a folder", `${head}f 644 0 0 a\nd 755 a/b\n`, /a\/b: what it lies in is no folder/],
    ["a link as a folder", `${head}l d a\nf 644 0 0 a/b\nd 755 d\n`, /a\/b: what it lies in is no folder/],
    ["an absolute link", `${head}l /etc/passwd a\n`, /a: its target is absolute/],
    ["a link without target", `${head}l  a\n`, /its target is empty/],
    ["a link out of the tree", `${head}l ../x a\n`, /a: it leads out of the tree/],
    ["a link out of the tree from below", `${head}d 755 d\nl ../../x d/a\n`, /d\/a: it leads out of the tree/],
    ["a link out and in again", `${head}l ../tree/a a\n`, /a: it leads out of the tree/],
    [
      "a link that leads out through another one",
      `${head}d 755 d\nl .. d/up\nl d/up/../x z\n`,
      /z: it leads out of the tree/,
    ],
    [
      "two links that lead out together",
      `${head}d 755 d\nd 755 d/e\nl ../.. d/e/up\nl d/e/up/d/e/up/../x z\n`,
      /z: it leads out/,
    ],
  ])("%s", async (_, listing, says) => {
    const failure = await parse(listing).catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: "GW_SNAPSHOT_CORRUPT", message: expect.stringMatching(says) as string });
  });

  test("whatever one byte is changed to, it is refused or says another tree", async () => {
    const bytes = Buffer.from(text(everyKind), "latin1");
    const { root } = makeTree(everyKind);
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), async (at, flip) => {
        const touched = Buffer.from(bytes);
        touched[at]! ^= flip;
        const read = await parse(touched).catch((error: unknown) => error);
        if (read instanceof Error) expect(read).toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
        else if ((read as { root: string }).root === root) {
          // A chunk's length is not in the root, but nothing that has its digest has another length: and sizes are compared when it is read.
          expect(read).not.toEqual(makeTree(everyKind));
        }
      }),
      { numRuns: 1_000 },
    );
  });
});

describe("links that stay inside are kept:", () => {
  test.each<[string, readonly ListedEntry[]]>([
    ["up and down", [folder("a"), folder("b"), link("a/l", "../b")]],
    ["to the root", [folder("a"), link("a/l", "..")]],
    ["to nowhere", [link("l", "no/such/thing")]],
    ["with dots and slashes", [folder("a"), link("l", "./a//.///")]],
    ["to itself", [link("l", "l")]],
    ["in a circle", [link("a", "b"), link("b", "a/x/..")]],
    ["through another one", [folder("d"), folder("d/e"), link("d/e/up", ".."), link("z", "d/e/up/e")]],
  ])("%s", async (_, entries) => {
    expect((await parse(text(entries))).entries).toEqual(entries.toSorted(byPath));
  });
});

describe("what could not be brought back", () => {
  test.each<[string, readonly ListedEntry[], RegExp]>([
    ["a link that leads out", [link("l", "../x")], /^l could not be brought back: it leads out of the tree.*exclude/],
    ["an entry twice", [folder("a b"), folder("a b")], /^a%20b could not be brought back: it is there twice/],
    ["a setuid bit", [file("a", [], 0o4755)], /more than permission bits/],
    ["a file below a file", [file("a"), file("a/b")], /what it lies in is no folder/],
  ])("is not recorded: %s", (_, entries, says) => {
    expect(() => makeTree(entries)).toThrow(
      expect.objectContaining({ code: "GW_SNAPSHOT_FAILED", message: expect.stringMatching(says) as string }) as Error,
    );
  });
});

describe("names", () => {
  test("are encoded in one way, and decoded only from that", () => {
    fc.assert(
      fc.property(fc.uint8Array(), (bytes) => {
        const name = Buffer.from(bytes).toString("latin1");
        expect(encodeName(name)).toMatch(/^[!-~]*$/);
        expect(decodeName(encodeName(name))).toBe(name);
      }),
    );
    expect(encodeName(latin1("ä b%"))).toBe("%C3%A4%20b%25");
    for (const wrong of ["%", "%4", "%2e", "%2E", "a b", "%GG", "ä"]) expect(decodeName(wrong)).toBeNull();
  });
});
