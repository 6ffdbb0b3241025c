// Trees for tests: entries as a listing has them, and random ones that are sound.
import fc from "fast-check";
import { chunkId } from "../../recorder/seal.ts";
import { encodeChunks } from "../../recorder/listing.ts";
import type { ListedEntry, ListedFile } from "../../recorder/tree.ts";

export const latin1 = (text: string): string => Buffer.from(text, "utf8").toString("latin1");

export function file(path: string, contents: readonly Buffer[] = [], mode = 0o644): ListedFile {
  const chunks = encodeChunks(contents.map((bytes) => ({ id: chunkId(bytes), sizeBytes: bytes.length })));
  return { kind: "file", path, mode, sizeBytes: contents.reduce((sum, { length }) => sum + length, 0), chunks };
}

export const folder = (path: string, mode = 0o755): ListedEntry => ({ kind: "folder", path, mode });
export const link = (path: string, target: string): ListedEntry => ({ kind: "link", path, target });

/** One of everything that a listing can say. */
export const everyKind: readonly ListedEntry[] = [
  file("a file", [Buffer.from("one"), Buffer.from("two")], 0o600),
  folder("empty", 0o700),
  folder("folder"),
  file("folder/empty", [], 0o444),
  link("folder/link", "../a file"),
  folder("folder/sub", 0o000),
  file(`folder/sub/${latin1("naïve ☃")}`, [Buffer.from("snow")], 0o777),
  file('folder/sub/a\nline\tand 100% "more"\\', [Buffer.from("odd")]),
  file("folder/sub/\u0080\u00ff", [Buffer.from("no UTF-8")]),
  file("folder.before", [Buffer.from("sorted between")]),
  link("nowhere", "not/there"),
];

const anyName = fc
  .oneof(
    fc.constantFrom("a", "b", "c", "A", "a.b", "a b", "ä", "%", "%41", "~", "x\n"),
    fc.string({ minLength: 1, maxLength: 8 }),
    fc.uint8Array({ minLength: 1, maxLength: 6 }).map((bytes) => Buffer.from(bytes).toString("latin1")),
  )
  .map((name) => latin1(name).replaceAll(/[/\0]/g, "_"))
  .filter((name) => name !== "." && name !== ".." && name.length <= 255);

/** Sound, in no order. */
export const anyTree: fc.Arbitrary<ListedEntry[]> = fc
  .array(
    fc.record({
      names: fc.array(anyName, { minLength: 1, maxLength: 4 }),
      kind: fc.constantFrom("file", "folder", "link"),
      mode: fc.integer({ min: 0, max: 0o777 }),
      contents: fc.array(fc.uint8Array({ minLength: 1, maxLength: 5 }), { maxLength: 3 }),
    }),
    { maxLength: 12 },
  )
  .map((drafts) => {
    const entries = new Map<string, ListedEntry>();
    for (const { names, kind, mode, contents } of drafts) {
      const parents = names.slice(0, -1).map((_, i) => names.slice(0, i + 1).join("/"));
      const path = names.join("/");
      if (entries.has(path) || parents.some((parent) => (entries.get(parent)?.kind ?? "folder") !== "folder")) continue;
      for (const parent of parents) entries.set(parent, entries.get(parent) ?? folder(parent));
      if (kind === "folder") entries.set(path, folder(path, mode));
      else if (kind === "link") entries.set(path, link(path, names[0]!.replace(/^\/+/, "_")));
      else
        entries.set(
          path,
          file(
            path,
            contents.map((bytes) => Buffer.from(bytes)),
            mode,
          ),
        );
    }
    return [...entries.values()];
  });
