import { execFileSync } from "node:child_process";
import { createReadStream, mkdirSync, symlinkSync, linkSync, truncateSync, writeFileSync, chmodSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { readTar, tarEnd, tarHead, tarPadding } from "../../../recorder/capture/tar.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import type { TarEntry } from "../../../recorder/capture/tar.ts";

const long = (letter: string): string => letter.repeat(120);

test.each(["ustar", "pax", "gnu"])(
  "what tar writes as %s is read: every kind, long names, names that are no text",
  async (format) => {
    const folder = temporaryFolder("tar");
    const name = (latin1: string): Buffer =>
      Buffer.concat([Buffer.from(`${folder}/tree/`), Buffer.from(latin1, "latin1")]);
    // Longer than a header holds; shorter ones can be split in two.
    const [first, second] = [`deep-${"x".repeat(80)}`, "y".repeat(80)];
    const deep = `${first}/${second}`;
    mkdirSync(name(deep), { recursive: true });
    writeFileSync(name(`${deep}/f`), "deep");
    writeFileSync(name("odd \u00ff\u00fe\n"), "odd");
    writeFileSync(name("a"), Buffer.alloc(1000, "a"));
    chmodSync(name("a"), 0o4751);
    linkSync(name("a"), name("b"));
    symlinkSync("a", name("link"));
    execFileSync("mkfifo", [join(folder, "tree/pipe")]);
    execFileSync("tar", [
      `--format=${format}`,
      "--sort=name",
      "--owner=70000",
      "--group=3",
      "-C",
      join(folder, "tree"),
      "-cf",
      join(folder, "t.tar"),
      ".",
    ]);
    const found = await all(createReadStream(join(folder, "t.tar"), { highWaterMark: 700 }));
    expect(found.map(({ kind, path }) => [kind, path])).toEqual([
      ["folder", "."],
      ["file", "./a"],
      ["same", "./b"],
      ["folder", `./${first}`],
      ["folder", `./${deep}`],
      ["file", `./${deep}/f`],
      ["link", "./link"],
      ["file", "./odd \u00ff\u00fe\n"],
      ["other", "./pipe"],
    ]);
    const by = new Map(found.map((it) => [it.path, it]));
    expect(by.get("./a")).toMatchObject({ mode: 0o4751, uid: 70_000, gid: 3, sizeBytes: 1000, text: "a".repeat(1000) });
    expect([by.get("./b")?.target, by.get("./link")?.target, by.get(`./${deep}/f`)?.text]).toEqual([
      "./a",
      "a",
      "deep",
    ]);
  },
);

test("what is written is read again as it was, whatever the names and numbers", async () => {
  const names = fc
    .array(
      fc.integer({ min: 1, max: 255 }).filter((it) => it !== 47),
      { minLength: 1, maxLength: 250 },
    )
    .map((it) => String.fromCharCode(...it));
  const entries = fc.record({
    kind: fc.constantFrom("file" as const, "folder" as const, "link" as const, "same" as const),
    path: names,
    target: names,
    mode: fc.integer({ min: 0, max: 0o7777 }),
    uid: fc.integer({ min: 0, max: 2 ** 32 }),
    gid: fc.integer({ min: 0, max: 2 ** 32 }),
    content: fc.uint8Array({ maxLength: 1100 }),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(entries, { maxLength: 4 }), async (written) => {
      const pieces: Buffer[] = [];
      const expected: unknown[] = [];
      for (const { content, target, ...rest } of written) {
        const sizeBytes = rest.kind === "file" ? content.length : 0;
        const entry: TarEntry = {
          ...rest,
          target: rest.kind === "file" || rest.kind === "folder" ? "" : target,
          sizeBytes,
        };
        pieces.push(tarHead(entry, 1_700_000_000));
        if (rest.kind === "file") pieces.push(Buffer.from(content), tarPadding(sizeBytes));
        expected.push({ ...entry, text: rest.kind === "file" ? Buffer.from(content).toString("latin1") : "" });
      }
      expect(await all([...pieces, tarEnd])).toEqual(expected);
    }),
    { numRuns: 60 },
  );
});

test("what is written, tar reads: sizes beyond octal, owners, links", () => {
  const folder = temporaryFolder("tar");
  const entry = { target: "", mode: 0o640, uid: 3_000_000, gid: 7, sizeBytes: 0 };
  writeFileSync(
    join(folder, "t.tar"),
    Buffer.concat([
      tarHead({ ...entry, kind: "folder", path: "d", mode: 0o1755 }, 0),
      tarHead({ ...entry, kind: "file", path: `d/${long("f")}`, sizeBytes: 3 }, 0),
      Buffer.from("abc"),
      tarPadding(3),
      tarHead({ ...entry, kind: "link", path: "d/l", target: long("t") }, 0),
      tarEnd,
    ]),
  );
  const listed = execFileSync("tar", ["--numeric-owner", "--utc", "-tvf", join(folder, "t.tar")], { encoding: "utf8" });
  expect(
    listed
      .trim()
      .split("\n")
      .map((line) => line.replaceAll(/ +/g, " ")),
  ).toEqual([
    "drwxr-xr-t 3000000/7 0 1970-01-01 00:00 d/",
    `-rw-r----- 3000000/7 3 1970-01-01 00:00 d/${long("f")}`,
    `lrw-r----- 3000000/7 0 1970-01-01 00:00 d/l -> ${long("t")}`,
  ]);
  const huge = tarHead({ ...entry, kind: "file", path: "huge", sizeBytes: 9 * 1024 ** 3 }, 0);
  expect(huge.toString("latin1")).toContain(" size=9663676416\n");
});

test("an archive that was cut is never taken for a whole one, wherever it was cut", async () => {
  const whole = Buffer.concat([
    tarHead({ kind: "file", path: long("a"), target: "", mode: 0o600, uid: 0, gid: 0, sizeBytes: 600 }, 0),
    Buffer.alloc(600, 1),
    tarPadding(600),
    tarHead({ kind: "folder", path: "b", target: "", mode: 0o700, uid: 0, gid: 0, sizeBytes: 0 }, 0),
    tarEnd,
  ]);
  expect((await all([whole, Buffer.alloc(8192)])).length).toBe(2);
  for (let at = 0; at < whole.length; at += 128)
    await expect(all([whole.subarray(0, at)]), String(at)).rejects.toThrow("the archive was cut short");
  await expect(all([whole.subarray(0, -512), Buffer.alloc(512, 1)])).rejects.toThrow("the archive has no end marker");
});

test("content that is not read is passed over, and the source is closed however the reading ends", async () => {
  const head = tarHead({ kind: "file", path: "a", target: "", mode: 0o600, uid: 0, gid: 0, sizeBytes: 5_000 }, 0);
  const body = [Buffer.alloc(5_000, 2), tarPadding(5_000)];
  let closed = 0;
  const source = async function* (): AsyncGenerator<Buffer> {
    try {
      yield* [head, ...body, head, ...body, tarEnd];
    } finally {
      closed += 1;
    }
  };
  const paths: string[] = [];
  for await (const { path, content } of readTar(source())) {
    paths.push(path);
    if (paths.length === 1) for await (const _ of content) break;
  }
  for await (const _ of readTar(source())) break;
  expect([paths, closed]).toEqual([["a", "a"], 2]);
});

test("what cannot be understood is an error that says where", async () => {
  const good = tarHead({ kind: "file", path: "a", target: "", mode: 0o600, uid: 0, gid: 0, sizeBytes: 0 }, 0);
  const damaged = Buffer.from(good);
  damaged[0] = 0x62;
  await expect(all([damaged, tarEnd])).rejects.toThrow("is no tar archive, or was damaged");
  await expect(all([Buffer.from("<html>".padEnd(1024))])).rejects.toThrow("is no tar archive");
  await expect(all([changed(good, 156, "S"), tarEnd])).rejects.toThrow(`"a" is an entry of the unknown kind "S"`);
  await expect(all([changed(changed(good, 156, "L"), 124, "77777777777"), tarEnd])).rejects.toThrow(
    "a name of 8589934591 bytes",
  );
  await expect(all([changed(good, 124, "9"), tarEnd])).rejects.toThrow("a number that cannot be read");
  for (const records of ["99 path=a\n", "path=a\n", "9 path a\n", "0 a=b\n"])
    await expect(all([pax(records), good, tarEnd]), records).rejects.toThrow("a PAX header that cannot be read");
  await expect(all([pax("12 size=-99\n"), good, tarEnd])).rejects.toThrow(`the size "-99"`);
  const folder = temporaryFolder("tar");
  writeFileSync(join(folder, "holes"), "");
  truncateSync(join(folder, "holes"), 1024 * 1024);
  for (const format of ["pax", "gnu"]) {
    execFileSync("tar", [`--format=${format}`, "-S", "-C", folder, "-cf", join(folder, "t.tar"), "holes"]);
    await expect(all(createReadStream(join(folder, "t.tar")))).rejects.toThrow(/is a sparse entry|unknown kind "S"/);
  }
});

/** A header with some bytes of it changed, and its sum mended. */
function changed(head: Buffer, at: number, text: string): Buffer {
  const other = Buffer.from(head);
  other.write(text, at, "latin1");
  other.write("        ", 148, "latin1");
  let sum = 0;
  for (const byte of other) sum += byte;
  other.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return other;
}

function pax(records: string): Buffer {
  const head = tarHead(
    { kind: "file", path: "x", target: "", mode: 0o600, uid: 0, gid: 0, sizeBytes: records.length },
    0,
  );
  return Buffer.concat([changed(head, 156, "x"), Buffer.from(records), tarPadding(records.length)]);
}

async function all(
  source: AsyncIterable<Buffer> | readonly Buffer[],
): Promise<(TarEntry & { readonly text: string })[]> {
  const found: (TarEntry & { readonly text: string })[] = [];
  const pieces = async function* (): AsyncGenerator<Buffer> {
    yield* source;
  };
  for await (const { content, ...entry } of readTar(pieces())) {
    let text = "";
    for await (const piece of content) text += piece.toString("latin1");
    found.push({ ...entry, text });
  }
  return found;
}
