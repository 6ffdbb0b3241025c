// The law of the place port as tests, run by every adapter.
import { hash } from "node:crypto";
import { afterEach, describe, expect, test } from "vitest";
import type { Place, Replacement, TreeEntry } from "../../../recorder/capture/place.ts";
import { noise } from "../../fixtures/chunks/inputs.ts";

export interface PlaceBed {
  readonly place: Place;
  /** True: trees of one file named `state`, fed to the live state at once; what only whole trees can promise is not asked. */
  readonly isOneFile: boolean;
  /** What a replacement that was given up has left somewhere, in words. */
  leftovers(): Promise<readonly string[]>;
  close(): Promise<void>;
}

/** What a test puts and finds: by path. Contents of files; targets of links; null: a folder. */
export interface Item {
  readonly path: string;
  readonly mode?: number;
  readonly content?: Buffer;
  readonly target?: string;
}

const bytes = (text: string): string => Buffer.from(text, "utf8").toString("latin1");
const { signal } = new AbortController();

/** Something of everything that a tree may hold. */
export const everything: readonly Item[] = [
  { path: "a file", mode: 0o644, content: Buffer.from("a file") },
  { path: "dangling", target: "no/such/thing" },
  { path: "empty", mode: 0o755 },
  { path: "empty file", mode: 0o600, content: Buffer.alloc(0) },
  { path: "folder", mode: 0o750 },
  { path: "folder/executable", mode: 0o755, content: Buffer.from("#!/bin/sh\n") },
  { path: "folder/folder", mode: 0o700 },
  { path: "folder/folder/large", mode: 0o640, content: noise("large", 3_000_000) },
  { path: "folder/folder/up", target: "../../a file" },
  {
    path: "folder/holes",
    mode: 0o644,
    content: Buffer.concat([Buffer.alloc(700_000), noise("island", 5), Buffer.alloc(700_000)]),
  },
  { path: "folder/link", target: "folder" },
  { path: "folder/read only", mode: 0o444, content: Buffer.from("read only") },
  { path: `line\nend, tab\t, "quotes" and ${bytes("ünïcödé ☃")}`, mode: 0o644, content: Buffer.from("odd") },
  { path: "no \u00ff\u00fe text", mode: 0o644, content: Buffer.from("bytes") },
  { path: "x".repeat(255), mode: 0o644, content: Buffer.from("long") },
];

const oneFile = (content: Buffer): readonly Item[] => [{ path: "state", mode: 0o600, content }];

export async function contentsOf(place: Place): Promise<readonly Item[]> {
  const items: Item[] = [];
  for await (const { entry, content } of place.read(signal)) {
    const { path } = entry;
    if (entry.kind === "folder") items.push({ path, mode: entry.mode });
    else if (entry.kind === "link") items.push({ path, target: entry.target });
    else {
      const pieces: Buffer[] = [];
      for await (const piece of content?.() ?? []) pieces.push(Buffer.from(piece));
      items.push({ path, mode: entry.mode, content: Buffer.concat(pieces) });
    }
  }
  return items;
}

/** In one order, and contents by their SHA-256: of megabytes nobody wants to see the difference. */
export const shown = (items: readonly Item[]): readonly object[] =>
  items
    .toSorted((a, b) => (a.path < b.path ? -1 : 1))
    .map(({ content, ...rest }) => (content === undefined ? rest : { ...rest, sha256: hash("sha256", content) }));

export async function putItem(replacement: Replacement, { path, mode = 0, content, target }: Item): Promise<void> {
  const entry: TreeEntry =
    target !== undefined
      ? { kind: "link", path, target }
      : content === undefined
        ? { kind: "folder", path, mode }
        : { kind: "file", path, mode, sizeBytes: content.length, stamp: null };
  await replacement.put(entry, content === undefined ? null : inPieces(content));
}

export async function* inPieces(content: Buffer, pieceBytes = 100_000): AsyncGenerator<Buffer> {
  for (let at = 0; at < content.length; at += pieceBytes) yield content.subarray(at, at + pieceBytes);
}

export async function fill(place: Place, items: readonly Item[]): Promise<void> {
  const replacement = await place.replace(signal);
  for (const item of items) await putItem(replacement, item);
  await replacement.commit();
}

export function placeContract(name: string, open: () => Promise<PlaceBed>): void {
  const beds: PlaceBed[] = [];
  afterEach(async () => {
    for (const bed of beds.splice(0)) await bed.close();
  });
  const newBed = async (): Promise<PlaceBed> => {
    const bed = await open();
    beds.push(bed);
    return bed;
  };
  /** As much as the place can hold. */
  const trees = ({ isOneFile }: PlaceBed): readonly (readonly Item[])[] =>
    isOneFile
      ? [oneFile(noise("state", 1_000_000)), oneFile(Buffer.from("another state"))]
      : [
          everything,
          [
            { path: "a file", mode: 0o600, content: Buffer.from("another") },
            { path: "other", mode: 0o755 },
          ],
        ];

  describe(`${name}: a place`, () => {
    test("is read as it was filled: names, modes, contents, targets", async () => {
      const bed = await newBed();
      for (const items of trees(bed)) {
        await fill(bed.place, items);
        expect(shown(await contentsOf(bed.place))).toEqual(shown(items));
      }
    });

    test("is read the same twice", async () => {
      const bed = await newBed();
      await fill(bed.place, trees(bed)[0]!);
      expect(shown(await contentsOf(bed.place))).toEqual(shown(await contentsOf(bed.place)));
    });

    test("yields every entry once, a folder before what is in it, and the root not at all", async () => {
      const bed = await newBed();
      await fill(bed.place, trees(bed)[0]!);
      const seen = new Set<string>();
      for await (const { entry } of bed.place.read(signal)) {
        expect(seen.has(entry.path), entry.path).toBe(false);
        const parent = entry.path.split("/").slice(0, -1).join("/");
        if (parent !== "") expect(seen.has(parent), entry.path).toBe(true);
        expect(entry.path).not.toMatch(/^$|^\/|^\.\.?$/);
        if (entry.kind !== "link") expect(entry.mode).toBeLessThanOrEqual(0o777);
        seen.add(entry.path);
      }
      expect(seen.size).toBe(trees(bed)[0]!.length);
    });

    test("can be left while it is read, and read again", async () => {
      const bed = await newBed();
      const [items] = trees(bed);
      await fill(bed.place, items!);
      for await (const { content } of bed.place.read(signal)) {
        for await (const _ of content?.() ?? []) break;
        break;
      }
      expect(shown(await contentsOf(bed.place))).toEqual(shown(items!));
    });

    test("is not read any further when the signal aborts", async () => {
      const bed = await newBed();
      await fill(bed.place, trees(bed)[0]!);
      const stop = new AbortController();
      const reading = (async () => {
        for await (const { content } of bed.place.read(stop.signal)) {
          stop.abort(new Error("stopped"));
          for await (const _ of content?.() ?? []) void _;
        }
      })();
      await expect(reading).rejects.toThrow();
    });

    test("is as it was before a replacement that rejects for what the content failed with", async () => {
      const bed = await newBed();
      const [items] = trees(bed);
      await fill(bed.place, items!);
      const replacement = await bed.place.replace(signal);
      const entry = { kind: "file", path: "state", mode: 0o600, sizeBytes: 300_000, stamp: null } as const;
      await expect(replacement.put(entry, failing())).rejects.toThrow("the content failed");
      await replacement.abort();
      if (!bed.isOneFile) expect(shown(await contentsOf(bed.place))).toEqual(shown(items!));
      expect(await bed.leftovers()).toEqual([]);
      await fill(bed.place, items!);
      expect(shown(await contentsOf(bed.place))).toEqual(shown(items!));
    });

    test("is not replaced when the signal has aborted", async () => {
      const bed = await newBed();
      const [items, others] = trees(bed);
      await fill(bed.place, items!);
      const stop = new AbortController();
      const replacing = (async () => {
        const replacement = await bed.place.replace(stop.signal);
        try {
          stop.abort(new Error("stopped"));
          await putItem(replacement, others![0]!);
          await replacement.commit();
        } finally {
          await replacement.abort();
        }
      })();
      await expect(replacing).rejects.toThrow();
      if (!bed.isOneFile) expect(shown(await contentsOf(bed.place))).toEqual(shown(items!));
      expect(await bed.leftovers()).toEqual([]);
    });

    test("is not touched before the commit, and holds nothing of the former state after it", async () => {
      const bed = await newBed();
      if (bed.isOneFile) return;
      const [items, others] = trees(bed);
      await fill(bed.place, items!);
      const replacement = await bed.place.replace(signal);
      for (const item of others!) {
        await putItem(replacement, item);
        expect(shown(await contentsOf(bed.place))).toEqual(shown(items!));
      }
      await replacement.commit();
      expect(shown(await contentsOf(bed.place))).toEqual(shown(others!));
    });

    test("gives its former state back where that is kept aside, once, and is not touched where it is not", async () => {
      const bed = await newBed();
      const [items, others] = trees(bed);
      await fill(bed.place, items!);
      await fill(bed.place, others!);
      const isKeptAside = !bed.isOneFile;
      expect(await bed.place.putBack(signal)).toBe(isKeptAside);
      const back = isKeptAside ? items! : others!;
      expect(shown(await contentsOf(bed.place))).toEqual(shown(back));
      expect(await bed.place.putBack(signal)).toBe(false);
      expect(shown(await contentsOf(bed.place))).toEqual(shown(back));
      expect(await bed.leftovers()).toEqual([]);
      // And it can be replaced as ever.
      await fill(bed.place, others!);
      expect(shown(await contentsOf(bed.place))).toEqual(shown(others!));
    });

    test("can be filled with several files at once, unless it is sequential", async () => {
      const bed = await newBed();
      if (bed.place.isSequential) return;
      const files = Array.from({ length: 40 }, (_, i) => ({
        path: `file ${i}`,
        mode: 0o644,
        content: noise(`${i}`, 50_000),
      }));
      const replacement = await bed.place.replace(signal);
      await Promise.all(files.map((item) => putItem(replacement, item)));
      await replacement.commit();
      expect(shown(await contentsOf(bed.place))).toEqual(shown(files));
    });

    test("can be replaced by nothing at all", async () => {
      const bed = await newBed();
      if (bed.isOneFile) return;
      await fill(bed.place, trees(bed)[0]!);
      await fill(bed.place, []);
      expect(await contentsOf(bed.place)).toEqual([]);
    });

    test("takes no names that lead out of it, nor anything below what is no folder", async () => {
      const bed = await newBed();
      if (bed.isOneFile) return;
      const [items] = trees(bed);
      await fill(bed.place, items!);
      for (const path of ["../out", "/out", "a/../../out", "", ".", "..", "a//b", "missing/x", "link/x", "file/x"]) {
        const replacement = await bed.place.replace(signal);
        await putItem(replacement, { path: "file", mode: 0o644, content: Buffer.from("x") });
        await putItem(replacement, { path: "link", target: "file" });
        await expect(
          putItem(replacement, { path, mode: 0o644, content: Buffer.from("x") }),
          path,
        ).rejects.toMatchObject({
          code: "GW_RESTORE_FAILED",
        });
        await replacement.abort();
      }
      expect(shown(await contentsOf(bed.place))).toEqual(shown(items!));
      expect(await bed.leftovers()).toEqual([]);
    });
  });
}

async function* failing(): AsyncGenerator<Buffer> {
  yield noise("half", 150_000);
  throw new Error("the content failed");
}
