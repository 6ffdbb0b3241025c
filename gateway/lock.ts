// The lock of a data folder: one gateway at a time. Whoever holds it has proven that the former holders are dead.

import { randomBytes } from "node:crypto";
import { readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { GatewayError } from "./errors.ts";

export interface DataLock {
  /** Random id of this process, 32 hex digits. */
  readonly boot: string;
  /** Ids of processes that held the lock before: none of them lives. */
  readonly formerBoots: ReadonlySet<string>;
  release(): Promise<void>;
}

const bootsKept = 256;

/**
 * A socket in Linux's abstract name space, named after the folder's device and inode: the kernel frees it when the process ends, however it ends.
 * Throws GW_DATA_LOCKED.
 */
export async function lockData(folder: string): Promise<DataLock> {
  const { dev, ino } = statSync(folder);
  const server = createServer((socket) => socket.destroy());
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) =>
      reject(
        error.code === "EADDRINUSE"
          ? new GatewayError(
              "GW_DATA_LOCKED",
              `another gateway uses the data folder ${folder}: stop it, or give this one a folder of its own (data: or --data)`,
            )
          : error,
      ),
    );
    server.listen({ path: `\0br2k-gateway-${dev}-${ino}` }, resolve);
  });
  server.unref();
  const path = join(folder, "boots");
  const former = readBoots(path);
  const boot = randomBytes(16).toString("hex");
  // Ours stands there before it can stand in any cursor.
  writeFileSync(`${path}.new`, [...former, boot].slice(-bootsKept).join("\n"), { mode: 0o600 });
  renameSync(`${path}.new`, path);
  return {
    boot,
    formerBoots: new Set(former),
    release: () => new Promise((resolve) => server.close(() => resolve())),
  };
}

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
