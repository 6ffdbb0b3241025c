// `gateway recover --to`: gives up the end of a log. The copies stand at a record of it; a new log begins behind every position ever seen, with the reader state
// of that record, and what came after it is set aside. Each step may be cut off: the note says what is under way, and it is finished by the next recovery.

import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Config } from "./config.ts";
import { streamName } from "./drivers/nats.ts";
import { endOf } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import type { Ground } from "./foundation.ts";
import { firstAbove, openLogOf, randomHex } from "./foundation.ts";
import type { Log } from "./log/log.ts";
import { decodeRecord } from "./record.ts";
import { openLmdbState } from "./state/lmdb.ts";
import { reborn } from "./state/store.ts";
import { step } from "./steps.ts";

interface Turn {
  /** Of the log whose end is given up. */
  readonly former: string;
  /** The last record of it that counts. */
  readonly upTo: number;
  readonly epoch: string;
  readonly firstSequence: number;
  readonly entries: number;
}

const noteOf = (ground: Ground): string => join(ground.folder("recorder"), "turnback.json");

/** The last record that a recovery to a position or a time takes in. Rejects with GW_RECOVERY_REFUSED when the log does not reach there. */
export async function lastRecordFor(
  log: Log,
  to: { readonly position: number } | { readonly timeMs: number },
): Promise<number> {
  const { first, last } = await log.info();
  if ("position" in to) {
    const sequence = Math.floor(to.position / 4096);
    if (sequence >= first && sequence <= last) return sequence;
    throw new GatewayError(
      "GW_RECOVERY_REFUSED",
      `position ${to.position} is not in the log, which holds ${endOf(first - 1) + 1} to ${endOf(last)}`,
    );
  }
  let found = first - 1;
  const stop = new AbortController();
  if (last >= first)
    for await (const record of log.read(first, stop.signal)) {
      if (decodeRecord(record.bytes, record.sequence).header.timeMs > to.timeMs) break;
      found = record.sequence;
      if (record.sequence >= last) break;
    }
  stop.abort();
  if (found >= first) return found;
  throw new GatewayError(
    "GW_RECOVERY_REFUSED",
    `nothing of the log is as old as ${new Date(to.timeMs).toISOString()}: take an older snapshot with --version`,
  );
}

/** Reader state stands at `upTo`, and so do the copies. */
export async function beginTurn(config: Config, ground: Ground, upTo: number): Promise<void> {
  const log = await openLogOf(config, ground, null);
  if (log === null) throw new GatewayError("GW_LOG_MISSING", "the log is gone");
  const { last } = await log.info();
  const former = log.epoch;
  await log.close();
  const store = openLmdbState(ground.folder("state"));
  const cut = store.cut();
  try {
    if (cut.head.sequence !== upTo || cut.head.epoch !== former)
      throw new GatewayError("GW_INTERNAL", `reader state stands at record ${cut.head.sequence}, not at ${upTo}`);
    const epoch = randomHex(8);
    const firstSequence = Math.max(last + 1, await firstAbove(ground));
    await ground.bases.save({
      head: reborn(cut.head, epoch, firstSequence),
      skips: cut.skips,
      keys: cut.keys(),
    });
    const turn: Turn = { former, upTo, epoch, firstSequence, entries: cut.head.entries };
    const path = noteOf(ground);
    writeFileSync(`${path}.new`, JSON.stringify(turn), { mode: 0o600, flush: true });
    step("turn.rename");
    renameSync(`${path}.new`, path);
    const folder = openSync(ground.folder("recorder"), "r");
    step("turn.fsync");
    fsyncSync(folder);
    closeSync(folder);
  } finally {
    cut.close();
    await store.close();
  }
}

/** Finishes what was begun. False: nothing was. */
export async function finishTurn(config: Config, ground: Ground): Promise<boolean> {
  const path = noteOf(ground);
  if (!existsSync(path)) return false;
  const turn = JSON.parse(readFileSync(path, "utf8")) as Turn;
  const { epoch, firstSequence } = turn;
  const found = await openLogOf(config, ground, null);
  await found?.close();
  if (found?.epoch === turn.former) await setAside(config, ground, turn);
  if (found?.epoch !== epoch) await (await openLogOf(config, ground, { epoch, firstSequence }))?.close();
  const applied = endOf(firstSequence - 1);
  for (const name of await ground.cursors.list()) {
    const stored = await ground.cursors.load(name);
    if (stored === null || stored.cursor.epoch === epoch) continue;
    const isThere = stored.cursor.applied === endOf(turn.upTo) && stored.cursor.standing === null;
    step("turn.cursor");
    const saved = await ground.cursors.save(
      {
        ...stored.cursor,
        owner: null,
        epoch,
        applied,
        bound: applied,
        entries: turn.entries,
        hash: "0".repeat(64),
        state: "clean",
        standing: isThere
          ? stored.cursor.standing
          : { state: "restoring", reason: "its state is that of a log that was given up" },
        unknown: [],
        finished: [],
      },
      stored.revision,
    );
    if (saved.kind !== "saved")
      throw new GatewayError(
        "GW_RECOVERY_REFUSED",
        `the cursor of ${name} could not be written: does a gateway still run?`,
      );
  }
  ground.marks.reset();
  // Answers of what was given up must not be given again.
  for (const name of ["state", "keys"]) rmSync(join(config.data, name), { recursive: true, force: true });
  rmSync(path);
  return true;
}

/** What was given up is kept beside the new log where that is one folder; a stream has no other name to go to. */
async function setAside(config: Config, ground: Ground, { former }: Turn): Promise<void> {
  step("turn.log");
  if (ground.nats === null) {
    renameSync(join(config.data, "log"), join(config.data, `log.${former}.given-up`));
    return;
  }
  await ground.nats.manager.streams.delete(streamName(config.service));
}
