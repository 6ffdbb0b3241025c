// Own marks: the furthest this process has seen of log and cursors, kept outside of both. A log or a cursor store that lost
// its end or was replaced is noticed against them. One small write(2) a record, no fsync: they survive any kill of the process.

import { closeSync, fsyncSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { GatewayError } from "../errors.ts";
import { sha256 } from "../record.ts";
import { step } from "../steps.ts";

export interface Marks {
  readonly epoch: string;
  readonly sequence: number;
  readonly recordHash: string;
  /** H after that record. */
  readonly hash: string;
  /** Highest revision seen of each replica's cursor. */
  readonly revisions: Readonly<Record<string, number>>;
}

/** Two slots each, written in turn: a torn write leaves the other one whole. What every record moves on is small and of fixed size. */
const placeBytes = 128;
const revisionsAt = 2 * placeBytes;
const revisionsBytes = 8192;
const fileBytes = revisionsAt + 2 * revisionsBytes;

interface Place {
  readonly epoch: string;
  readonly sequence: number;
  readonly recordHash: string;
  readonly hash: string;
}

export class MarksFile {
  readonly #file: number;
  #place: Place | null;
  #revisions: Readonly<Record<string, number>>;
  #placeTurn: number;
  #revisionsTurn: number;
  readonly #slot = Buffer.alloc(placeBytes);

  private constructor(file: number, bytes: Buffer) {
    this.#file = file;
    const places = [0, 1].map((slot) => parsePlace(bytes.subarray(slot * placeBytes, (slot + 1) * placeBytes)));
    const isSecond = (places[1]?.sequence ?? -1) > (places[0]?.sequence ?? -1);
    this.#place = places[isSecond ? 1 : 0] ?? null;
    this.#placeTurn = isSecond ? 1 : 0;
    const revisions = [0, 1].map((slot) =>
      parseRevisions(bytes.subarray(revisionsAt + slot * revisionsBytes, revisionsAt + (slot + 1) * revisionsBytes)),
    );
    const isSecondNewer = total(revisions[1]) > total(revisions[0]);
    this.#revisions = revisions[isSecondNewer ? 1 : 0] ?? {};
    this.#revisionsTurn = isSecondNewer ? 1 : 0;
  }

  static open(folder: string): MarksFile {
    const path = join(folder, "marks");
    let bytes = Buffer.alloc(0);
    try {
      bytes = readFileSync(path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
    return new MarksFile(openSync(path, bytes.length === 0 ? "w+" : "r+", 0o600), bytes);
  }

  get current(): Marks | null {
    if (this.#place === null && Object.keys(this.#revisions).length === 0) return null;
    return { epoch: "", sequence: 0, recordHash: "", hash: "", ...this.#place, revisions: this.#revisions };
  }

  /** What was seen; ignored when it is not further than what is known of the same epoch. */
  note(epoch: string, sequence: number, recordHash: string, hash: string): void {
    if (this.#place?.epoch === epoch && sequence <= this.#place.sequence) return;
    this.#place = { epoch, sequence, recordHash, hash };
    const slot = this.#slot;
    slot.write(epoch, 0, 8, "hex");
    slot.writeDoubleBE(sequence, 8);
    slot.write(recordHash, 16, 32, "hex");
    slot.write(hash, 48, 32, "hex");
    sha256(slot.subarray(0, 80)).copy(slot, 80);
    this.#placeTurn = 1 - this.#placeTurn;
    writeSync(this.#file, slot, 0, placeBytes, this.#placeTurn * placeBytes);
  }

  noteRevision(replica: string, revision: number): void {
    if ((this.#revisions[replica] ?? 0) >= revision) return;
    this.#revisions = { ...this.#revisions, [replica]: revision };
    const text = Buffer.from(JSON.stringify(this.#revisions), "utf8");
    if (36 + text.length > revisionsBytes) throw new RangeError("own marks do not fit their slot: too many replicas");
    const slot = Buffer.alloc(36 + text.length);
    slot.writeUInt32BE(text.length, 0);
    sha256(text).copy(slot, 4);
    text.copy(slot, 36);
    this.#revisionsTurn = 1 - this.#revisionsTurn;
    writeSync(this.#file, slot, 0, slot.length, revisionsAt + this.#revisionsTurn * revisionsBytes);
  }

  /** Throws GW_LOG_REGRESSED when a cursor is older than one that was seen. */
  checkRevision(replica: string, revision: number): void {
    const seen = this.#revisions[replica] ?? 0;
    if (revision < seen)
      throw new GatewayError(
        "GW_LOG_REGRESSED",
        `the cursor of ${replica} has revision ${revision}, revision ${seen} was seen before: the cursor store lost its end`,
      );
  }

  /** As they were when somebody looked. */
  restore(marks: Marks | null): void {
    this.reset();
    if (marks === null) return;
    if (marks.sequence > 0) this.note(marks.epoch, marks.sequence, marks.recordHash, marks.hash);
    for (const [replica, revision] of Object.entries(marks.revisions)) this.noteRevision(replica, revision);
  }

  /** Begins anew with another log. */
  reset(): void {
    this.#place = null;
    this.#revisions = {};
    writeSync(this.#file, Buffer.alloc(fileBytes), 0, fileBytes, 0);
    step("marks.fsync");
    fsyncSync(this.#file);
  }

  close(): void {
    closeSync(this.#file);
  }
}

/** What the flow needs of them, wherever they are kept. */
export type OwnMarks = Pick<MarksFile, "current" | "note" | "noteRevision" | "checkRevision">;

function parsePlace(slot: Buffer): Place | null {
  if (slot.length < placeBytes || !sha256(slot.subarray(0, 80)).equals(slot.subarray(80, 112))) return null;
  return {
    epoch: slot.toString("hex", 0, 8),
    sequence: slot.readDoubleBE(8),
    recordHash: slot.toString("hex", 16, 48),
    hash: slot.toString("hex", 48, 80),
  };
}

function parseRevisions(slot: Buffer): Readonly<Record<string, number>> | null {
  if (slot.length < 36) return null;
  const length = slot.readUInt32BE(0);
  if (length === 0 || 36 + length > slot.length) return null;
  const text = slot.subarray(36, 36 + length);
  return sha256(text).equals(slot.subarray(4, 36))
    ? (JSON.parse(text.toString("utf8")) as Record<string, number>)
    : null;
}

/** Revisions only grow: the newer slot has the greater sum. */
const total = (revisions: Readonly<Record<string, number>> | null | undefined): number =>
  Object.values(revisions ?? {}).reduce((sum, it) => sum + it, 0);
