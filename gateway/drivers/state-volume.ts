// Which volume of a container engine holds a replica's state: a note in the data folder, and how what we make there is named and labelled.
//
// - A restore fills a volume of the next generation; the note then names it, and the replica's next life gets it. Both ends of that switch,
//   the launch and the place of a capture, read and write the note here.
// - A note is replaced whole (new file, fsync, rename, fsync of the folder): after a crash it names the former volume or the new one.
// - A volume's name holds the note's random id. Without the note a replica gets new volumes: what others made is neither used nor removed.

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdir, open, readFile, readdir, rename } from "node:fs/promises";
import { dirname, join } from "node:path";
import { GatewayError } from "../errors.ts";
import { step } from "../steps.ts";

export interface VolumeNote {
  readonly service: string;
  readonly replica: string;
  readonly id: string;
  /** Of the volume that the next life gets; from 1. */
  readonly generation: number;
  /** False: no life was ready with it yet, so that nothing but the image's own files can be in it. */
  readonly isFilled: boolean;
}

/** What containers and volumes of ours bear. */
export const engineLabels = {
  service: "io.br2k.gateway.service",
  replica: "io.br2k.gateway.replica",
  /** Of a replica's life: `<id of the data folder>/<replica>`, as processes have it in their environment. */
  mark: "io.br2k.gateway.mark",
  /** Of a volume: its note's id. */
  note: "io.br2k.gateway.note",
  /** Of a container that never runs and only opens a volume: the note's id. */
  helper: "io.br2k.gateway.helper",
} as const;

export const noteFile = (folder: string, replica: string): string => join(folder, `${replica}.volume.json`);

export const newNote = (service: string, replica: string): VolumeNote => ({
  service,
  replica,
  id: randomBytes(6).toString("hex"),
  generation: 1,
  isFilled: false,
});

export const volumeName = ({ generation, id, replica, service }: VolumeNote): string =>
  `${service}-${replica}-${id}-${generation}`;

/** A new one for each container: an old one's may still be taken. */
export const containerName = (service: string, replica: string): string =>
  `${service}-${replica}-${randomBytes(6).toString("hex")}`;

/** Null: there is none. */
export async function readNote(file: string): Promise<VolumeNote | null> {
  let said: string;
  try {
    said = await readFile(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
  const note = parseNote(said);
  if (note !== null) return note;
  throw new GatewayError(
    "GW_CONFLICT",
    `${file} does not say which volume the replica's state is in. The volumes are there still (\`docker volume ls\`): write it again, or move it away and rebuild the replica`,
  );
}

/** Resolves when it is durable. */
export async function writeNote(file: string, note: VolumeNote): Promise<void> {
  await mkdir(dirname(file), { recursive: true });
  const handle = await open(`${file}.new`, "w");
  try {
    await handle.writeFile(JSON.stringify({ version: 1, ...note }));
    step("note.fsync");
    await handle.sync();
  } finally {
    await handle.close();
  }
  step("note.rename");
  await rename(`${file}.new`, file);
  const folder = await open(dirname(file), "r");
  try {
    step("note.fsync");
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** The ids of all notes in a folder that can be read. */
export async function noteIds(folder: string): Promise<string[]> {
  const ids: string[] = [];
  for (const name of await readdir(folder).catch(() => [])) {
    if (!name.endsWith(".volume.json")) continue;
    const note = parseNote(await readFile(join(folder, name), "utf8").catch(() => ""));
    if (note !== null) ids.push(note.id);
  }
  return ids;
}

/**
 * Everything that was written on this machine is on its disks: an engine unpacks into a volume without syncing, and its files are not ours to
 * open. Rejects when that cannot be said.
 */
export function syncMachine(timeoutMs = 120_000): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn("sync", [], { stdio: "ignore", timeout: timeoutMs, killSignal: "SIGKILL" });
    const failed = (how: string): void =>
      reject(new Error(`the program \`sync\` (of coreutils) ${how}: what was written is perhaps not on the disk`));
    child.once("error", (error) => failed(`could not be run: ${error.message}`));
    child.once("exit", (code) => (code === 0 ? resolve() : failed(`did not end well within ${timeoutMs} ms`)));
  });
}

function parseNote(said: string): VolumeNote | null {
  let value: unknown;
  try {
    value = JSON.parse(said);
  } catch {
    return null;
  }
  if (typeof value !== "object" || value === null) return null;
  const { version, service, replica, id, generation, isFilled } = value as Partial<Record<string, unknown>>;
  if (version !== 1 || typeof service !== "string" || typeof replica !== "string" || typeof isFilled !== "boolean")
    return null;
  if (typeof id !== "string" || !/^[0-9a-f]{12}$/.test(id)) return null;
  if (typeof generation !== "number" || !Number.isSafeInteger(generation) || generation < 1) return null;
  return { service, replica, id, generation, isFilled };
}
