// The lock of a data folder: one gateway at a time. Whoever holds it has proven that the former holders are dead.

import { randomBytes } from "node:crypto";
import { closeSync, openSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import type { Server } from "node:net";
import { join } from "node:path";
import { GatewayError } from "./errors.ts";
import { step } from "./steps.ts";

export interface DataLock {
  /** Random id of this process, 32 hex digits. */
  readonly boot: string;
  /** Ids of processes that held the lock before: none of them lives. */
  readonly formerBoots: ReadonlySet<string>;
  release(): Promise<void>;
}

const bootsKept = 256;

/**
 * Two sockets. One in Linux's abstract name space, named after the folder's device and inode: the kernel frees it when the process ends, however it
 * ends; it is seen within one network namespace. One with a path in the folder, which containers that share the volume see as well; it is
 * taken over when nobody answers it. Throws GW_DATA_LOCKED.
 */
export async function lockData(folder: string): Promise<DataLock> {
  const { dev, ino } = statSync(folder);
  const inKernel = await listenOn(`\0br2k-gateway-${dev}-${ino}`);
  if (inKernel === null) throw locked(folder);
  const inFolder = await listenInFolder(folder);
  if (inFolder === null) {
    inKernel.close();
    throw locked(folder);
  }
  const path = join(folder, "boots");
  const former = readBoots(path);
  const boot = randomBytes(16).toString("hex");
  // Ours stands there before it can stand in any cursor.
  writeFileSync(`${path}.new`, [...former, boot].slice(-bootsKept).join("\n"), { mode: 0o600 });
  step("lock.rename");
  renameSync(`${path}.new`, path);
  return {
    boot,
    formerBoots: new Set(former),
    release: async () => {
      await closed(inFolder);
      await closed(inKernel);
    },
  };
}

/** A path through an open descriptor of the folder: socket paths end at 107 bytes, folders' do not. */
async function listenInFolder(folder: string): Promise<Server | null> {
  const handle = openSync(folder, "r");
  const path = `/proc/self/fd/${handle}/lock`;
  try {
    const first = await listenOn(path);
    if (first !== null) return first;
    if (await isAnswered(path)) return null;
    rmSync(join(folder, "lock"), { force: true });
    return await listenOn(path);
  } finally {
    closeSync(handle);
  }
}

/** Null: the address is taken. */
function listenOn(path: string): Promise<Server | null> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.once("error", (error: NodeJS.ErrnoException) =>
      error.code === "EADDRINUSE" ? resolve(null) : reject(error),
    );
    server.listen({ path }, () => resolve(server.unref()));
  });
}

function isAnswered(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ path });
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", (error: NodeJS.ErrnoException) =>
      resolve(error.code !== "ECONNREFUSED" && error.code !== "ENOENT"),
    );
  });
}

const closed = (server: Server): Promise<void> => new Promise((resolve) => server.close(() => resolve()));

const locked = (folder: string): GatewayError =>
  new GatewayError(
    "GW_DATA_LOCKED",
    `another gateway uses the data folder ${folder}: stop it, or give this one a folder of its own (data: or --data)`,
  );

function readBoots(path: string): string[] {
  try {
    return readFileSync(path, "utf8")
      .split("\n")
      .filter((line) => /^[0-9a-f]{32}$/.test(line));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
}
