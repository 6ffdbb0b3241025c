// Own marks: the furthest this process has seen of log and cursors, kept outside of both. A log or a cursor store that lost
// its end or was replaced is noticed against them. One small write(2) a record, no fsync: they survive any kill of the process.

import { closeSync, fsyncSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { GatewayError } from "../errors.ts";
import { sha256 } from "../record.ts";

export interface Marks {
  readonly epoch: string;
  readonly sequence: number;
  readonly recordHash: string;
  /** H after that record. */
  readonly hash: string;
  /** Highest revision seen of each replica's cursor. */
  readonly revisions: Readonly<Record<string, number>>;
}

/** Two slots written in turn: a torn write leaves the other one whole. */
const slotBytes = 8192;

export class MarksFile {
  readonly #file: number;
  #current: Marks | null;
  #turn = 0;

  private constructor(file: number, current: Marks | null, turn: number) {
    this.#file = file;
    this.#current = current;
    this.#turn = turn;
  }

  static open(folder: string): MarksFile {
    const path = join(folder, "marks");
    let best: Marks | null = null;
    let turn = 0;
    let bytes = Buffer.alloc(0);
    try {
      bytes = readFileSync(path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
    for (const slot of [0, 1]) {
      const marks = parseSlot(bytes.subarray(slot * slotBytes, (slot + 1) * slotBytes));
      if (marks !== null && (best === null || marks.sequence >= best.sequence)) {
        best = marks;
        turn = 1 - slot;
      }
    }
    const file = openSync(path, bytes.length === 0 ? "w+" : "r+", 0o600);
    return new MarksFile(file, best, turn);
  }

  get current(): Marks | null {
    return this.#current;
  }

  /** What was seen; ignored when it is not further than what is known of the same epoch. */
  note(epoch: string, sequence: number, recordHash: string, hash: string): void {
    if (this.#current?.epoch === epoch && sequence <= this.#current.sequence) return;
    this.#write({ epoch, sequence, recordHash, hash, revisions: this.#current?.revisions ?? {} });
  }

  noteRevision(epoch: string, replica: string, revision: number): void {
    const current = this.#current ?? { epoch, sequence: 0, recordHash: "", hash: "", revisions: {} };
    if ((current.revisions[replica] ?? 0) >= revision) return;
    this.#write({ ...current, revisions: { ...current.revisions, [replica]: revision } });
  }

  /** Throws GW_LOG_REGRESSED when a cursor is older than one that was seen. */
  checkRevision(replica: string, revision: number): void {
    const seen = this.#current?.revisions[replica] ?? 0;
    if (revision < seen)
      throw new GatewayError(
        "GW_LOG_REGRESSED",
        `the cursor of ${replica} has revision ${revision}, revision ${seen} was seen before: the cursor store lost its end`,
      );
  }

  /** Begins anew with another log. */
  reset(): void {
    this.#current = null;
    writeSync(this.#file, Buffer.alloc(2 * slotBytes), 0, 2 * slotBytes, 0);
    fsyncSync(this.#file);
  }

  close(): void {
    closeSync(this.#file);
  }

  #write(marks: Marks): void {
    this.#current = marks;
    const text = Buffer.from(JSON.stringify(marks), "utf8");
    const slot = Buffer.alloc(36 + text.length);
    slot.writeUInt32BE(text.length, 0);
    sha256(text).copy(slot, 4);
    text.copy(slot, 36);
    if (slot.length > slotBytes) throw new RangeError("own marks do not fit their slot: too many replicas");
    writeSync(this.#file, slot, 0, slot.length, this.#turn * slotBytes);
    this.#turn = 1 - this.#turn;
  }
}

function parseSlot(slot: Buffer): Marks | null {
  if (slot.length < 36) return null;
  const length = slot.readUInt32BE(0);
  if (length === 0 || 36 + length > slot.length) return null;
  const text = slot.subarray(36, 36 + length);
  return sha256(text).equals(slot.subarray(4, 36)) ? (JSON.parse(text.toString("utf8")) as Marks) : null;
}
