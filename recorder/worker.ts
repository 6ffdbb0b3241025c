// The workshop's child, a root of its own: takes one job from its parent, does it, tells what came of it, and ends. It ends as well when the
// parent does, and before any further durable step.

import { readdirSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { setPriority } from "node:os";
import { join } from "node:path";
import { GatewayError } from "../gateway/errors.ts";
import { archive, readStream, readTree, restore, rootOf } from "./archive.ts";
import { openPlace } from "./capture/open.ts";
import { decodeChunks } from "./listing.ts";
import { openPacks, openPacksToWrite } from "./packs.ts";
import { snapshotKey } from "./seal.ts";
import { openStampCache } from "./stamps.ts";
import { setStepHook, stepHook } from "../gateway/steps.ts";
import { openStore } from "./stores/open.ts";
import { prefixed } from "./stores/prefixed.ts";
import { stepped } from "./stores/stepped.ts";
import { workerNice } from "./workshop.ts";
import type {
  Access,
  CaptureJob,
  DrillJob,
  FromChild,
  Job,
  JobProgress,
  JobResults,
  Recorded,
  RestoreJob,
  RootJob,
} from "./jobs.ts";
import type { Packs, PacksOptions } from "./packs.ts";
import type { StampCache } from "./stamps.ts";
import type { SnapshotStore } from "./stores/store.ts";

const progressMs = 200;
const skippedMax = 1_000;

const parent = process.ppid;
const stop = new AbortController();

// The parent is gone, or has heard all: what is under way is left as a kill would leave it.
process.once("disconnect", () => process.exit());
process.on("SIGTERM", () => stop.abort(new Error("the job was given up")));
// Of a terminal, for the whole group: the parent decides.
process.on("SIGINT", () => {});
becomeUnimportant();
const testHook = stepHook(process.env, dieForTest);
setStepHook((name) => {
  // Orphaned, and too busy to have noticed: its successor may be at work at the same place already.
  if (process.ppid !== parent) process.exit();
  testHook?.(name);
});
process.once("message", (job: Job) => void run(job));
tell({ kind: "ready" });

async function run(job: Job): Promise<void> {
  try {
    tell({ kind: "done", result: await perform(job) });
  } catch (error) {
    if (stop.signal.aborted) tell({ kind: "aborted" });
    else {
      const message = error instanceof Error ? error.message : String(error);
      tell({ kind: "failed", code: error instanceof GatewayError ? error.code : null, message });
    }
  }
}

function perform(job: Job): Promise<JobResults[Job["kind"]]> {
  switch (job.kind) {
    case "capture":
      return withPacks(job, openPacksToWrite, (packs) => capture(job, packs));
    case "restore":
      return withPacks(job, openPacks, (packs) => bringBack(job, packs));
    case "root":
      return hashed(job);
    case "put-back":
      return openPlace(job.place).putBack(stop.signal);
    case "drill":
      return withPacks(job, openPacks, (packs) => drill(job, packs));
    default:
      throw job satisfies never;
  }
}

async function capture({ memory, place }: CaptureJob, packs: Packs): Promise<JobResults["capture"]> {
  const onProgress = teller();
  const archived = await archive(openPlace(place), packs, {
    signal: stop.signal,
    cache: await openMemory(memory),
    onProgress: (progress) => onProgress({ ...progress, total: null }),
  });
  await packs.flush();
  return { ...archived, skipped: archived.skipped.slice(0, skippedMax) };
}

async function bringBack({ place, recorded }: RestoreJob, packs: Packs): Promise<null> {
  // These cannot be brought back halfway: a chunk that is damaged must be found before the first byte goes in.
  if (place.kind === "command" || place.kind === "http") await verify(recorded, packs);
  const onProgress = teller();
  await restore(recorded, packs, openPlace(place), {
    signal: stop.signal,
    onProgress: (progress, total) => onProgress({ ...progress, total }),
  });
  return null;
}

async function hashed({ memory, place }: RootJob): Promise<string> {
  const onProgress = teller();
  return rootOf(openPlace(place), {
    signal: stop.signal,
    cache: await openMemory(memory),
    onProgress: (progress) => onProgress({ ...progress, total: null }),
  });
}

/** Nothing that was held in memory is compared: what was written is read again. */
async function drill({ folder, recorded }: DrillJob, packs: Packs): Promise<null> {
  const { signal } = stop;
  const onProgress = teller();
  const total = { entries: 2 * recorded.treeEntries, bytes: 2 * recorded.treeBytes };
  // Of one that was killed.
  await rm(folder, { recursive: true, force: true });
  try {
    const place = openPlace({ kind: "folder", folder: join(folder, "state"), exclude: [] });
    await restore(recorded, packs, place, { signal, onProgress: (progress) => onProgress({ ...progress, total }) });
    const root = await rootOf(place, {
      signal,
      cache: null,
      onProgress: ({ bytes, entries }) =>
        onProgress({ entries: entries + recorded.treeEntries, bytes: bytes + recorded.treeBytes, total }),
    });
    if (root === recorded.root) return null;
    throw new GatewayError(
      "GW_SNAPSHOT_CORRUPT",
      `restored into ${folder}, the snapshot has the root ${root}; recorded is ${recorded.root}`,
    );
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Reads every chunk of the tree once. */
async function verify(recorded: Recorded, packs: Packs): Promise<void> {
  const { entries } = await readTree(recorded, packs, stop.signal);
  for (const entry of entries) {
    if (entry.kind !== "file") continue;
    for await (const _ of readStream(decodeChunks(entry.chunks), packs, stop.signal));
  }
}

async function withPacks<T>(
  access: Access,
  open: (store: SnapshotStore, options: PacksOptions) => Promise<Packs>,
  work: (packs: Packs) => Promise<T>,
): Promise<T> {
  const store = stepped(prefixed(await openStore(access.store), access.prefix));
  try {
    const key = access.key === null ? null : snapshotKey(Buffer.from(access.key, "hex"));
    const packs = await open(store, { key, signal: stop.signal });
    try {
      return await work(packs);
    } finally {
      await packs.close();
    }
  } finally {
    await store.close();
  }
}

const openMemory = (file: string | null): Promise<StampCache | null> =>
  file === null ? Promise.resolve(null) : openStampCache(file);

/** Tells of progress at most five times a second. */
function teller(): (progress: JobProgress) => void {
  let toldMs = Number.NEGATIVE_INFINITY;
  return (progress) => {
    const nowMs = performance.now();
    if (nowMs - toldMs < progressMs) return;
    toldMs = nowMs;
    tell({ kind: "progress", progress });
  };
}

function tell(message: FromChild): void {
  // A parent that is gone ends us by itself.
  process.send?.(message, () => {});
}

/** Last in line for the processor, first for the kernel to end when memory is short. */
function becomeUnimportant(): void {
  try {
    // Linux counts by thread, and some may have been started before the parent set ours.
    for (const thread of readdirSync("/proc/self/task")) setPriority(Number(thread), workerNice);
    writeFileSync("/proc/self/oom_score_adj", "500");
  } catch {
    // Another system than Linux, or one that forbids it: then it is only slower for others.
  }
}

/** GATEWAY_CRASH_PARENT: at the step that a test asked for, the gateway dies too. */
function dieForTest(): void {
  if (process.env["GATEWAY_CRASH_PARENT"] !== undefined) process.kill(parent, "SIGKILL");
  process.kill(process.pid, "SIGKILL");
}
