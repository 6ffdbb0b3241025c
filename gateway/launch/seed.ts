// The first state of a replica: a copy of the seed, whole or not there at all, even after a power cut.

import { cp, mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { step } from "../steps.ts";

/**
 * Makes `folder` exist. A new or empty one gets the seed's contents, in one rename; one that holds anything is state, and is left alone.
 * Returns whether it was seeded.
 */
export async function prepareState(folder: string, seed: string | null): Promise<boolean> {
  const parent = dirname(folder);
  await mkdir(parent, { recursive: true });
  const prefix = `.${basename(folder)}.seeding-`;
  // What an earlier start left half-way.
  for (const entry of await readdir(parent)) {
    if (entry.startsWith(prefix)) await rm(join(parent, entry), { recursive: true, force: true });
  }
  if (seed === null) {
    await mkdir(folder, { recursive: true });
    return false;
  }
  const present = await readdir(folder).catch(nullIfMissing);
  if (present !== null && present.length > 0) return false;
  const copy = join(parent, `${prefix}${process.pid}`);
  await cp(seed, copy, { recursive: true, preserveTimestamps: true, errorOnExist: true, force: false });
  await syncTree(copy);
  // Replaces an empty folder, and fails on one that has got contents in between.
  step("seed.rename");
  await rename(copy, folder);
  await syncPath(parent);
  return true;
}

async function syncTree(folder: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) await syncTree(path);
    else if (entry.isFile()) await syncPath(path);
  }
  await syncPath(folder);
}

/** fsync of a file or a folder; both open alike for reading. */
async function syncPath(path: string): Promise<void> {
  const handle = await open(path, "r");
  try {
    step("seed.fsync");
    await handle.sync();
  } finally {
    await handle.close();
  }
}

function nullIfMissing(error: NodeJS.ErrnoException): null {
  if (error.code === "ENOENT") return null;
  throw error;
}
