// Own marks: what this process has seen, kept outside of log and cursors, and still there after any kill.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { MarksFile } from "../../../gateway/state/marks.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import { id32 } from "../../fixtures/records/samples.ts";

const [e1, e2] = ["0123456789abcdef", "fedcba9876543210"];
const regressed = expect.objectContaining({ code: "GW_LOG_REGRESSED" }) as Error;

/** What a process that is started now would find: the one before it is as if killed. */
function again(folder: string) {
  const marks = MarksFile.open(folder);
  const { current } = marks;
  marks.close();
  return current;
}
/** Writes by `write` and tells which bytes of the file changed. */
function changed(folder: string, write: () => void): { from: number; to: number } {
  const path = join(folder, "marks");
  const before = readFileSync(path);
  write();
  const after = readFileSync(path);
  const isOther = (_: number, at: number): boolean => before[at] !== after[at];
  return { from: [...after].findIndex(isOther), to: [...after].findLastIndex(isOther) };
}

describe("own marks", () => {
  it("a new folder knows nothing", () => {
    const folder = temporaryFolder("marks");
    expect(again(folder)).toBe(null);
    expect(() => MarksFile.open(folder).checkRevision("a", 0)).not.toThrow();
  });

  it("each note is there after a kill, and only what is further counts", () => {
    const folder = temporaryFolder("marks");
    const marks = MarksFile.open(folder);
    for (let sequence = 1; sequence <= 5; sequence++) {
      marks.note(e1, sequence, id32(sequence), id32(100 + sequence));
      const expected = {
        epoch: e1,
        sequence,
        recordHash: id32(sequence),
        hash: id32(100 + sequence),
        revisions: {},
      };
      expect([marks.current, again(folder)]).toEqual([expected, expected]);
    }
    marks.note(e1, 5, id32(77), id32(77));
    marks.note(e1, 4, id32(78), id32(78));
    expect(again(folder)).toMatchObject({ sequence: 5, recordHash: id32(5) });
    marks.close();
  });

  it("sequences are exact up to the largest that a position can hold", () => {
    const folder = temporaryFolder("marks");
    const marks = MarksFile.open(folder);
    marks.note(e1, 2 ** 41 - 1, id32(1), id32(2));
    expect(again(folder)?.sequence).toBe(2 ** 41 - 1);
    marks.close();
  });

  it("another epoch is a new beginning that keeps the revisions", () => {
    const folder = temporaryFolder("marks");
    const marks = MarksFile.open(folder);
    marks.note(e1, 5, id32(5), id32(6));
    marks.noteRevision("a", 3);
    marks.note(e2, 6, id32(7), id32(8));
    expect(again(folder)).toEqual({
      epoch: e2,
      sequence: 6,
      recordHash: id32(7),
      hash: id32(8),
      revisions: { a: 3 },
    });
    marks.close();
  });

  it.each(["place", "revisions"] as const)(
    "a write of the %s that was cut or damaged leaves the note before it",
    (what) => {
      for (const damage of ["torn", "flipped"]) {
        const folder = temporaryFolder("marks");
        const write = (marks: MarksFile, number: number): void =>
          what === "place" ? marks.note(e1, number, id32(number), id32(number)) : marks.noteRevision("a", number);
        const found = (): number | undefined =>
          what === "place" ? again(folder)?.sequence : again(folder)?.revisions["a"];
        const marks = MarksFile.open(folder);
        // Both slots have been written before, and hold older notes.
        for (const number of [1, 2, 3]) write(marks, number);
        const { from, to } = changed(folder, () => write(marks, 4));
        marks.close();
        const path = join(folder, "marks");
        const bytes = readFileSync(path);
        if (damage === "torn") bytes.fill(0, (from + to) >> 1, to + 1);
        if (damage === "flipped") bytes[from] = 255 - (bytes[from] ?? 0);
        writeFileSync(path, bytes);
        expect(found(), damage).toBe(3);
        // The next note goes where the damaged one was: the good one is not overwritten before the other is whole.
        const next = MarksFile.open(folder);
        const good = readFileSync(path).subarray(0, from);
        write(next, 5);
        expect(readFileSync(path).subarray(0, from)).toEqual(good);
        next.close();
        expect(found(), damage).toBe(5);
      }
    },
  );

  it("garbage is no mark, and can be written over", () => {
    const folder = temporaryFolder("marks");
    writeFileSync(join(folder, "marks"), Buffer.alloc(65_536, 0xff));
    const marks = MarksFile.open(folder);
    expect(marks.current).toBe(null);
    marks.note(e1, 1, id32(1), id32(1));
    marks.noteRevision("a", 1);
    marks.close();
    expect(again(folder)).toMatchObject({ sequence: 1, revisions: { a: 1 } });
  });

  it("a cursor older than one that was seen is GW_LOG_REGRESSED, of that replica only", () => {
    const folder = temporaryFolder("marks");
    const before = MarksFile.open(folder);
    before.noteRevision("a", 7);
    before.noteRevision("b", 2);
    before.noteRevision("a", 6);
    before.close();
    const marks = MarksFile.open(folder);
    expect(marks.current?.revisions).toEqual({ a: 7, b: 2 });
    expect(() => marks.checkRevision("a", 6)).toThrow(regressed);
    for (const [replica, revision] of [
      ["a", 7],
      ["a", 8],
      ["b", 2],
      ["c", 0],
    ] as const)
      expect(() => marks.checkRevision(replica, revision)).not.toThrow();
    marks.close();
  });

  it("the newest revision is the one that is read again, however many there were, between any records", () => {
    const folder = temporaryFolder("marks");
    let marks = MarksFile.open(folder);
    for (let revision = 1; revision <= 8; revision++) {
      marks.noteRevision(revision % 3 === 0 ? "b" : "a", revision);
      if (revision % 2 === 0) marks.note(e1, revision, id32(revision), id32(revision));
      if (revision % 5 === 0) {
        marks.close();
        marks = MarksFile.open(folder);
      }
      expect(again(folder)).toEqual(marks.current);
      expect(again(folder)?.revisions[revision % 3 === 0 ? "b" : "a"]).toBe(revision);
    }
    marks.close();
  });

  it("a revision may be noted before any record, and the first record keeps it", () => {
    const folder = temporaryFolder("marks");
    const marks = MarksFile.open(folder);
    marks.noteRevision("a", 1);
    expect(again(folder)).toMatchObject({ sequence: 0, recordHash: "", revisions: { a: 1 } });
    marks.note(e1, 1, id32(1), id32(1));
    expect(again(folder)).toMatchObject({ epoch: e1, sequence: 1, revisions: { a: 1 } });
    marks.close();
  });

  it("a reset forgets everything, also for the next process", () => {
    const folder = temporaryFolder("marks");
    const marks = MarksFile.open(folder);
    for (const number of [1, 2, 3]) {
      marks.note(e1, number, id32(1), id32(1));
      marks.noteRevision("a", number);
    }
    marks.reset();
    expect([marks.current, again(folder)]).toEqual([null, null]);
    marks.note(e2, 1, id32(2), id32(2));
    marks.close();
    expect(again(folder)).toMatchObject({ epoch: e2, sequence: 1, revisions: {} });
  });

  it("more replicas than fit are an error, and what was noted stays", () => {
    const folder = temporaryFolder("marks");
    const marks = MarksFile.open(folder);
    marks.note(e1, 1, id32(1), id32(1));
    marks.noteRevision("a", 1);
    expect(() => marks.noteRevision("x".repeat(9000), 1)).toThrow(/own marks do not fit/);
    marks.close();
    expect(again(folder)).toMatchObject({ sequence: 1, revisions: { a: 1 } });
  });
});
