// Backends that their gateway left behind (kill -9) are ended by the next start, before anything else, and nobody else is.
//
// A child is found in two ways, either of which is proof:
// 1. its record on disk: pid, start time and machine boot. It cannot be written before the spawn, which gives the pid; so
// 2. its environment: GATEWAY_REPLICA=<folder>/<name>, there from the child's first instant, and inherited by what the child starts. A gateway
//    that dies between spawn and record is covered by it, and so are grandchildren in other groups. A process that overwrites its environment
//    area (setproctitle) loses it, and is covered by its record.
// A pid alone proves nothing: without the same start time or the mark, it is a stranger's.

import { createHash, randomBytes } from "node:crypto";
import { link, mkdir, readFile, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { isRunning, machineBootId, processesWithVariable, readStat, signal } from "./proc.ts";
import type { ProcessIdentity } from "./proc.ts";
import { step } from "../steps.ts";

/** The variable that marks a child and everything it starts. */
export const markVariable = "GATEWAY_REPLICA";

export interface ProcessRecord extends ProcessIdentity {
  readonly name: string;
  /** Of the folder: a copied data folder must not end the children of the original. */
  readonly folder: string;
}

export interface EndedOrphan {
  readonly name: string;
  readonly pid: number;
  readonly foundBy: "record" | "mark";
}

export interface EndOptions {
  /** Between SIGTERM and SIGKILL. */
  readonly graceMs?: number;
  /** Only this replica's; default: all of the folder. */
  readonly name?: string;
}

/** What `GATEWAY_REPLICA` is for a replica whose records are in `folder`. Creates the folder and its id. */
export async function markOf(folder: string, name: string): Promise<string> {
  return `${await folderId(folder)}/${name}`;
}

/** Survives a kill of this process; after a machine boot it means nothing, so nothing is synced. */
export async function recordProcess(folder: string, name: string, identity: ProcessIdentity): Promise<void> {
  const record: ProcessRecord = { ...identity, name, folder: await folderId(folder) };
  const path = recordPath(folder, name);
  await writeFile(`${path}.new`, JSON.stringify(record));
  step("process.rename");
  await rename(`${path}.new`, path);
}

export async function forgetProcess(folder: string, name: string): Promise<void> {
  await rm(recordPath(folder, name), { force: true });
}

/**
 * Ends what earlier lives of this gateway left running. Resolves when all of it is gone; rejects when something cannot be ended, because then
 * its replica must not be started a second time.
 */
export async function endOrphans(folder: string, options: EndOptions = {}): Promise<EndedOrphan[]> {
  const graceMs = options.graceMs ?? 2_000;
  const id = await folderId(folder);
  const records = (await readRecords(folder, id)).filter(
    ({ name }) => options.name === undefined || name === options.name,
  );
  const ended = new Map<number, EndedOrphan>();
  const startedMs = performance.now();
  // Ends when nothing is left, or after the grace and as much again for SIGKILL. Each round looks anew: children fork.
  for (;;) {
    const elapsedMs = performance.now() - startedMs;
    const left = [...recorded(records), ...marked(id, options.name)];
    if (left.length === 0) break;
    if (elapsedMs > graceMs + 10_000) {
      throw new Error(`process ${left[0]?.pid} of replica ${left[0]?.name} cannot be ended`);
    }
    for (const orphan of left) {
      const isNew = !ended.has(orphan.pid);
      ended.set(orphan.pid, ended.get(orphan.pid) ?? orphan);
      const name = elapsedMs >= graceMs ? "SIGKILL" : isNew ? "SIGTERM" : null;
      if (name !== null) signalWithGroup(orphan, name);
    }
    await sleep(10);
  }
  for (const { name } of records) await forgetProcess(folder, name);
  return [...ended.values()];
}

/** The leader of a group that we made is signalled with its group; anybody else alone. */
function signalWithGroup({ pid, foundBy }: EndedOrphan, name: NodeJS.Signals): void {
  const stat = readStat(pid);
  if (foundBy === "record" && stat?.group === pid) signal(-pid, name);
  else signal(pid, name);
}

function recorded(records: readonly ProcessRecord[]): EndedOrphan[] {
  const bootId = machineBootId();
  return records
    .filter((record) => {
      const stat = readStat(record.pid);
      return record.bootId === bootId && isRunning(stat) && stat.startTime === record.startTime;
    })
    .map(({ name, pid }) => ({ name, pid, foundBy: "record" }));
}

function marked(id: string, name: string | undefined): EndedOrphan[] {
  return processesWithVariable(markVariable, `${id}/${name ?? ""}`)
    .map(({ pid, value }): EndedOrphan => ({ name: value.slice(id.length + 1), pid, foundBy: "mark" }))
    .filter((orphan) => name === undefined || orphan.name === name);
}

async function readRecords(folder: string, id: string): Promise<ProcessRecord[]> {
  const records: ProcessRecord[] = [];
  for (const file of await readdir(folder)) {
    if (!file.endsWith(recordSuffix)) continue;
    const text = await readFile(join(folder, file), "utf8").catch(nullIfMissing);
    // Another replica's stop has forgotten it meanwhile: all of them end side by side.
    if (text === null) continue;
    const record = parseRecord(text);
    // One that was torn by a power cut, or copied from elsewhere, names no process of ours.
    if (record?.folder === id) records.push(record);
    else await rm(join(folder, file), { force: true });
  }
  return records;
}

function nullIfMissing(error: NodeJS.ErrnoException): null {
  if (error.code === "ENOENT") return null;
  throw error;
}

function parseRecord(text: string): ProcessRecord | null {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  if (typeof value !== "object" || value === null) return null;
  const { name, folder, pid, startTime, bootId } = value as Partial<Record<keyof ProcessRecord, unknown>>;
  if (typeof name !== "string" || typeof folder !== "string" || typeof bootId !== "string") return null;
  if (typeof pid !== "number" || !Number.isSafeInteger(pid) || pid < 2 || typeof startTime !== "string") return null;
  return { name, folder, pid, startTime, bootId };
}

const recordSuffix = ".process";
const recordPath = (folder: string, name: string): string => join(folder, encodeURIComponent(name) + recordSuffix);

/** Random, made once, and bound to the folder itself: a copy has the same file, but not the same inode. */
async function folderId(folder: string): Promise<string> {
  await mkdir(folder, { recursive: true });
  const path = join(folder, "id");
  const fresh = `${path}.${randomBytes(8).toString("hex")}`;
  let random = await readFile(path, "utf8").catch(() => null);
  if (random === null) {
    await writeFile(fresh, randomBytes(16).toString("hex"));
    // Two that start at once agree: only one link succeeds.
    await link(fresh, path).catch(() => {});
    await rm(fresh, { force: true });
    random = await readFile(path, "utf8");
  }
  const { dev, ino } = await stat(folder, { bigint: true });
  return createHash("sha256").update(`${random}:${dev}:${ino}`).digest("hex").slice(0, 32);
}
