// Where a log that was begun anew after a loss goes on from: which snapshot stands at its beginning. Written before the log is made, so that a recovery
// which is killed between the two goes on with the same one.

import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { step } from "../gateway/steps.ts";

export interface Origin {
  /** Of the new log. */
  readonly epoch: string;
  /** Its first record: above every record that anybody ever saw. */
  readonly firstSequence: number;
  /** Of the snapshot, taken under a former epoch, that is the state before the first record. */
  readonly manifestHash: string;
  readonly version: number;
  readonly entries: number;
}

/** Null: the log was never begun anew, as far as this folder knows. */
export function readOrigin(folder: string): Origin | null {
  try {
    return JSON.parse(readFileSync(join(folder, "origin.json"), "utf8")) as Origin;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}

export function writeOrigin(folder: string, origin: Origin): void {
  const path = join(folder, "origin.json");
  writeFileSync(`${path}.new`, JSON.stringify(origin), { mode: 0o600, flush: true });
  step("origin.rename");
  renameSync(`${path}.new`, path);
  const handle = openSync(folder, "r");
  step("origin.fsync");
  fsyncSync(handle);
  closeSync(handle);
}
