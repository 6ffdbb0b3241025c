// Notes of what was sent: there after any kill of the process, void after one of the machine, and never half true.
import { execFileSync } from "node:child_process";
import { appendFileSync, readdirSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it, onTestFinished } from "vitest";
import { openFileIntents } from "../../../gateway/intents/file.ts";
import type { ChainNotes, Intents } from "../../../gateway/intents/intents.ts";
import { createFolder, removeFolder, temporaryFolder } from "../../helpers/folder.ts";
import { id16 } from "../../fixtures/records/samples.ts";

const machine = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
const [boot, next, nonce, other] = [id16(1), id16(2), id16(11), id16(12)];
const path = (folder: string): string => join(folder, `intents-${boot}`);
const diskFull = expect.objectContaining({ code: "GW_DISK_FULL" }) as Error;

/** One process: knows, as the appliers do, what still counts of its chains, and writes notes. */
class Owner {
  readonly intents: Intents;
  readonly chains = new Map<
    string,
    { readonly nonce: string; readonly sent: Set<number>; readonly done: Set<number>; saved: Map<number, Buffer> }
  >();

  constructor(folder: string, as = boot, on = machine) {
    this.intents = openFileIntents({ folder, boot: as, machine: on });
  }
  begin(replica: string, chain: string): void {
    const it = { nonce: chain, sent: new Set<number>(), done: new Set<number>(), saved: new Map<number, Buffer>() };
    this.chains.set(replica, it);
    this.intents.begin(replica, chain, () => ({ ...notesOf(it), saved: it.saved }));
  }
  save(replica: string, position: number, undo: Buffer): void {
    this.chains.get(replica)?.saved.set(position, undo);
    this.intents.save(replica, position, undo);
  }
  sent(replica: string, position: number): void {
    this.chains.get(replica)?.sent.add(position);
    this.intents.sent(replica, position);
  }
  done(replica: string, position: number): void {
    this.chains.get(replica)?.sent.delete(position);
    this.chains.get(replica)?.saved.delete(position);
    this.chains.get(replica)?.done.add(position);
    this.intents.done(replica, position);
  }
  flush(): void {
    this.intents.flush();
  }
  notes(former: string, replica: string, chain: string): ChainNotes | null {
    return this.intents.notes(former, replica, chain);
  }
  forgetFormer(): void {
    this.intents.forgetFormer();
  }
  close(): void {
    this.intents.close();
  }
}
/** What puts an entry back, of a size. */
const undo = (size: number): Buffer => Buffer.alloc(size, size % 251);
const sorted = (list: Iterable<number>): number[] => [...list].sort((a, b) => a - b);
const notesOf = (it: { readonly sent: Iterable<number>; readonly done: Iterable<number> }): ChainNotes => ({
  unknown: sorted(it.sent),
  done: sorted(it.done),
});

function open(folder: string, as = boot, on = machine): Owner {
  const owner = new Owner(folder, as, on);
  onTestFinished(() => owner.close());
  return owner;
}
/** What the next process finds in the folder; the former one is as if killed. */
function found(folder: string, replica = "a", chain = nonce, on = machine): ChainNotes | null {
  const intents = openFileIntents({ folder, boot: next, machine: on });
  const notes = intents.notes(boot, replica, chain);
  intents.close();
  rmSync(join(folder, `intents-${next}`));
  return notes;
}

describe("intents in a file", () => {
  it("what was flushed is there after a kill, what was not is not", () => {
    const folder = temporaryFolder("intents");
    const intents = open(folder);
    intents.begin("a", nonce);
    for (const position of [4098, 4096, 2 ** 52]) intents.sent("a", position);
    intents.done("a", 4096);
    expect(found(folder)).toBe(null);
    intents.flush();
    expect(found(folder)).toEqual({ unknown: [4098, 2 ** 52], done: [4096] });
    intents.sent("a", 9000);
    intents.done("a", 4098);
    expect(found(folder)).toEqual({ unknown: [4098, 2 ** 52], done: [4096] });
    intents.flush();
    expect(found(folder)).toEqual({ unknown: [9000, 2 ** 52], done: [4096, 4098] });
  });

  it("notes count for the chain that the cursor names and for no other", () => {
    const folder = temporaryFolder("intents");
    const intents = open(folder);
    intents.begin("a", nonce);
    intents.sent("a", 1);
    intents.begin("b", other);
    intents.sent("b", 2);
    intents.flush();
    expect(found(folder, "a", nonce)).toEqual({ unknown: [1], done: [] });
    expect(found(folder, "b", other)).toEqual({ unknown: [2], done: [] });
    expect(found(folder, "a", other)).toBe(null);
    expect(found(folder, "c", nonce)).toBe(null);
    // The next busy time of the same replica is a chain of its own.
    intents.begin("a", other);
    intents.sent("a", 3);
    intents.flush();
    expect(found(folder, "a", nonce)).toBe(null);
    expect(found(folder, "a", other)).toEqual({ unknown: [3], done: [] });
  });

  it("a chain that was begun and never used says that nothing was sent", () => {
    const folder = temporaryFolder("intents");
    const intents = open(folder);
    intents.begin("a", nonce);
    intents.flush();
    expect(found(folder)).toEqual({ unknown: [], done: [] });
  });

  it("notes of another boot of the machine are void", () => {
    const folder = temporaryFolder("intents");
    const intents = open(folder);
    intents.begin("a", nonce);
    intents.sent("a", 1);
    intents.flush();
    expect(found(folder, "a", nonce, "00000000-9dad-11d1-80b4-00c04fd430c8")).toBe(null);
    expect(found(folder)).not.toBe(null);
  });

  it("the own notes are no former process's", () => {
    const folder = temporaryFolder("intents");
    const intents = open(folder);
    intents.begin("a", nonce);
    intents.flush();
    expect(intents.notes(boot, "a", nonce)).toBe(null);
  });

  it("notes of several former processes stay apart until they are forgotten", () => {
    const folder = temporaryFolder("intents");
    for (const [at, former] of [id16(21), id16(22)].entries()) {
      const intents = open(folder, former);
      intents.begin("a", nonce);
      intents.sent("a", at + 1);
      intents.flush();
    }
    const intents = open(folder, next);
    expect(intents.notes(id16(21), "a", nonce)).toEqual({ unknown: [1], done: [] });
    expect(intents.notes(id16(22), "a", nonce)).toEqual({ unknown: [2], done: [] });
    intents.forgetFormer();
    expect(intents.notes(id16(21), "a", nonce)).toBe(null);
    expect(readdirSync(folder)).toEqual([`intents-${next}`]);
  });

  it("a file cut anywhere says what stood before the cut, and nothing else", () => {
    const folder = temporaryFolder("intents");
    const intents = open(folder);
    const sizes: number[] = [];
    const note = (write: () => void): void => {
      write();
      intents.flush();
      sizes.push(statSync(path(folder)).size);
    };
    note(() => intents.begin("bücher", nonce));
    note(() => intents.sent("bücher", 4096));
    note(() => intents.sent("bücher", 4097));
    note(() => intents.done("bücher", 4096));
    const expected = [
      { unknown: [], done: [] },
      { unknown: [4096], done: [] },
      { unknown: [4096, 4097], done: [] },
      { unknown: [4097], done: [4096] },
    ];
    for (let size = sizes[3] as number; size >= 0; size--) {
      truncateSync(path(folder), size);
      const whole = sizes.filter((it) => it <= size).length;
      expect(found(folder, "bücher"), `cut at ${size}`).toEqual(whole === 0 ? null : expected[whole - 1]);
    }
  });

  it("what is no file of intents is void", () => {
    const folder = temporaryFolder("intents");
    writeFileSync(path(folder), Buffer.alloc(4096, 0x31));
    expect(found(folder)).toBe(null);
    writeFileSync(path(folder), "");
    expect(found(folder)).toBe(null);
    const intents = open(folder);
    intents.begin("a", nonce);
    intents.sent("a", 1);
    intents.flush();
    appendFileSync(path(folder), Buffer.alloc(40, 0xff));
    expect(found(folder)).toEqual({ unknown: [1], done: [] });
  });

  it("the file is rewritten at 4 MiB, and what counts is still there", () => {
    const folder = temporaryFolder("intents");
    const intents = open(folder);
    intents.begin("a", nonce);
    intents.begin("b", other);
    intents.sent("b", 7);
    intents.sent("a", 1);
    let largest = 0;
    let smallest = Number.POSITIVE_INFINITY;
    const count = 500_000;
    const counts = 1000;
    for (let position = 2; position < count; position++) {
      intents.sent("a", position);
      intents.done("a", position);
      // Below the watermark that the cursor names nothing counts any more.
      intents.chains.get("a")?.done.delete(position - counts);
      if (position % 500 !== 0) continue;
      intents.flush();
      const { size } = statSync(path(folder));
      smallest = size < largest ? Math.min(smallest, size) : smallest;
      largest = Math.max(largest, size);
    }
    intents.sent("a", count);
    intents.flush();
    expect(largest).toBeLessThanOrEqual(4 * 1024 * 1024);
    expect(smallest).toBeLessThan(1024 * 1024);
    const notes = found(folder);
    expect(notes?.unknown).toEqual([1, count]);
    const done = notes?.done ?? [];
    expect(done.slice(-counts)).toEqual(Array.from({ length: counts }, (_, at) => count - counts + at));
    expect(found(folder, "b", other)).toEqual({ unknown: [7], done: [] });
    expect(readdirSync(folder)).toEqual([`intents-${boot}`]);
  });

  it("what was noted since the last flush is there after the rewrite that the flush brings", () => {
    const folder = temporaryFolder("intents");
    const intents = open(folder);
    intents.begin("a", nonce);
    let position = 0;
    while (statSync(path(folder)).size < 4 * 1024 * 1024 - 15_000) {
      for (let left = 500; left > 0; left--) {
        intents.sent("a", ++position);
        intents.done("a", position);
      }
      intents.chains.get("a")?.done.clear();
      intents.flush();
    }
    intents.begin("c", other);
    intents.sent("c", 3);
    intents.begin("a", other);
    for (let left = 2000; left > 0; left--) intents.sent("a", ++position);
    intents.flush();
    expect(statSync(path(folder)).size).toBeLessThan(100_000);
    expect(found(folder, "a", nonce)).toBe(null);
    expect(found(folder, "a", other)?.unknown).toHaveLength(2000);
    expect(found(folder, "c", other)).toEqual({ unknown: [3], done: [] });
    intents.done("c", 3);
    intents.flush();
    expect(found(folder, "c", other)).toEqual({ unknown: [], done: [3] });
  });

  it("after a kill between any two flushes the notes are those of the last one", () => {
    const note = fc.record({
      replica: fc.constantFrom("a", "b", "c"),
      what: fc.constantFrom("begin", "sent", "sent", "done", "flush"),
      pick: fc.nat(9),
    });
    fc.assert(
      fc.property(fc.array(note, { maxLength: 60 }), (list) => {
        const folder = createFolder("intents");
        const intents = new Owner(folder);
        let flushed = new Map<string, { nonce: string; notes: ChainNotes }>();
        let begun = 0;
        for (const { replica, what, pick } of list) {
          if (what === "flush") {
            intents.flush();
            flushed = new Map([...intents.chains].map(([name, it]) => [name, { nonce: it.nonce, notes: notesOf(it) }]));
          } else if (what === "begin" || !intents.chains.has(replica)) intents.begin(replica, id16(1000 + begun++));
          else if (what === "sent") intents.sent(replica, pick);
          else intents.done(replica, pick);
        }
        const after = openFileIntents({ folder, boot: next, machine });
        for (const [replica, it] of flushed) expect(after.notes(boot, replica, it.nonce)).toEqual(it.notes);
        after.close();
        intents.close();
        removeFolder(folder);
      }),
      { numRuns: 100 },
    );
  });

  it("what puts an entry back is there from before it is sent until it is done, in its chain alone", () => {
    const folder = temporaryFolder("intents");
    const intents = open(folder);
    intents.begin("a", nonce);
    for (const [position, size] of [
      [1, 0],
      [2, 200_000],
      [3, 17],
    ] as const) {
      intents.save("a", position, undo(size));
      intents.sent("a", position);
    }
    intents.done("a", 1);
    intents.flush();
    expect(found(folder)).toEqual({
      unknown: [2, 3],
      done: [1],
      saved: new Map([
        [2, undo(200_000)],
        [3, undo(17)],
      ]),
    });
    expect(found(folder, "a", nonce, "00000000-9dad-11d1-80b4-00c04fd430c8")).toBe(null);
    intents.done("a", 2);
    intents.done("a", 3);
    intents.flush();
    expect(found(folder)).toEqual({ unknown: [], done: [1, 2, 3] });
    intents.begin("a", other);
    intents.flush();
    expect(found(folder, "a", other)).toEqual({ unknown: [], done: [] });
  });

  it("a file cut within what puts an entry back says that the entry was not sent", () => {
    const folder = temporaryFolder("intents");
    const intents = open(folder);
    intents.begin("a", nonce);
    intents.save("a", 1, Buffer.alloc(40, 7));
    intents.sent("a", 1);
    intents.flush();
    const { size } = statSync(path(folder));
    for (let cut = 1; cut < 60; cut++) {
      truncateSync(path(folder), size - cut);
      expect(found(folder)?.unknown, `${cut} bytes less`).toEqual([]);
    }
  });

  it("what puts entries back is kept when the file is rewritten, however much it is", () => {
    const folder = temporaryFolder("intents");
    const intents = open(folder);
    intents.begin("a", nonce);
    const large = undo(256 * 1024);
    const count = 24;
    let rewrites = 0;
    let last = 0;
    for (let position = 1; position <= 10 * count; position++) {
      intents.save("a", position, large);
      intents.sent("a", position);
      if (position > count) intents.done("a", position - count);
      intents.flush();
      const { size } = statSync(path(folder));
      if (size < last) rewrites++;
      last = size;
    }
    expect(last).toBeLessThan(4 * count * large.length);
    expect(rewrites).toBeGreaterThan(0);
    expect(rewrites).toBeLessThan(20);
    const notes = found(folder);
    expect(notes?.unknown).toHaveLength(count);
    expect([...(notes?.saved?.keys() ?? [])]).toEqual(notes?.unknown);
    for (const it of notes?.saved?.values() ?? []) expect(it.equals(large)).toBe(true);
  });

  it("may be closed twice", () => {
    const intents = open(temporaryFolder("intents"));
    intents.close();
    intents.close();
  });
});

function disk(sizeKiB: number): string {
  const folder = temporaryFolder("tmpfs");
  execFileSync("mount", ["-t", "tmpfs", "-o", `size=${sizeKiB}k`, "tmpfs", folder]);
  onTestFinished(() => void execFileSync("umount", ["-l", folder]));
  return folder;
}

describe.skipIf(process.getuid?.() !== 0)("a full disk", () => {
  it("is GW_DISK_FULL as long as it is full, and what was flushed before stays", () => {
    const folder = disk(64);
    const intents = open(folder);
    intents.begin("a", nonce);
    intents.sent("a", 1);
    intents.flush();
    writeFileSync(join(folder, "ballast"), Buffer.alloc(56 * 1024));
    for (let position = 2; position < 2000; position++) intents.sent("a", position);
    expect(() => intents.flush()).toThrow(diskFull);
    expect(() => intents.flush()).toThrow(diskFull);
    rmSync(join(folder, "ballast"));
    intents.flush();
    expect(found(folder)?.unknown).toHaveLength(1999);
  });

  it.each([1, 2, 3])(
    "a write that was cut short is made whole by the next: no note is lost or misread (%i)",
    (length) => {
      const folder = disk(64);
      const replica = "r".repeat(length);
      const intents = open(folder);
      intents.begin(replica, nonce);
      intents.flush();
      writeFileSync(join(folder, "ballast"), Buffer.alloc(56 * 1024));
      // Pages hold no whole number of rows: of the first flush that does not fit the disk takes a part, within a row.
      const sent: number[] = [];
      for (let isFull = false; !isFull;) {
        for (let count = 0; count < 7; count++) {
          sent.push(4096 + sent.length);
          intents.sent(replica, sent.at(-1) as number);
        }
        try {
          intents.flush();
        } catch (error) {
          expect(error).toMatchObject({ code: "GW_DISK_FULL" });
          isFull = true;
        }
      }
      rmSync(join(folder, "ballast"));
      intents.done(replica, sent[0] as number);
      intents.sent(replica, 9_000_000);
      intents.flush();
      expect(found(folder, replica)).toEqual({
        unknown: [...sent.slice(1), 9_000_000],
        done: [sent[0]],
      });
    },
  );

  it("a rewrite that finds no room leaves the old file as it is, and is made later", () => {
    // Room for the file and for less than half of a second one.
    const folder = disk(6 * 1024);
    const intents = open(folder);
    intents.begin("a", nonce);
    let position = 0;
    const sent = (count: number): void => {
      for (let left = count; left > 0; left--) intents.sent("a", ++position);
    };
    while (statSync(path(folder)).size < 4 * 1024 * 1024 - 20_000) {
      sent(1000);
      intents.flush();
    }
    const before = found(folder);
    sent(3000);
    expect(() => intents.flush()).toThrow(diskFull);
    expect(found(folder)).toEqual(before);
    execFileSync("mount", ["-o", "remount,size=32m", folder]);
    sent(1);
    intents.flush();
    const notes = found(folder);
    expect(notes?.unknown).toHaveLength(position);
    expect(notes?.unknown.at(-1)).toBe(position);
  });
});
