// Checks before the first entry: copies that differ can never agree, and copies that share one state apply everything several times.

import { createHash } from "node:crypto";
import { createReadStream, existsSync, realpathSync, statSync } from "node:fs";
import { lstat, readdir, readlink } from "node:fs/promises";
import { join } from "node:path";
import type { ReplicaConfig } from "./config.ts";
import { GatewayError } from "./errors.ts";

/** The error, a note of what was not checked, or null. */
export function findSharedState(replicas: readonly ReplicaConfig[]): GatewayError | null {
  const seen = new Map<string, string>();
  for (const replica of replicas) {
    // A container's state is a volume of its own: its path is not one of this machine.
    if (replica.kind === "container" || replica.state === null || !existsSync(replica.state)) continue;
    const { dev, ino } = statSync(replica.state);
    const id = `${dev}:${ino}`;
    const other = seen.get(id);
    if (other !== undefined)
      return new GatewayError(
        "GW_REPLICAS_SHARE_STATE",
        `${other} and ${replica.name} have the same state folder ${realpathSync(replica.state)}: give each copy its own`,
      );
    seen.set(id, replica.name);
  }
  return null;
}

/** Compares what can be compared without asking the backends: the state folders of managed replicas, before they are started. */
export async function compareAtStart(replicas: readonly ReplicaConfig[]): Promise<GatewayError | string | null> {
  // New volumes are equal where the images are: all of them have the same one.
  const folders = replicas.filter((it) => it.kind !== "container" && it.state !== null);
  const digests = new Map<string, string>();
  // A folder that is not there yet gets the seed, as all of them do.
  for (const it of folders)
    if (it.state !== null) digests.set(it.name, existsSync(it.state) ? await digestOf(it.state) : await seedDigest(it));
  const [first, ...others] = digests;
  for (const other of others)
    if (first !== undefined && other[1] !== first[1])
      return new GatewayError(
        "GW_REPLICAS_DIFFER_AT_START",
        `the state folders of ${first[0]} and ${other[0]} differ before the first entry: begin all copies from the same state (seed:, or copy one folder)`,
      );
  const unchecked = replicas.filter((it) => it.state === null && it.witness.length === 0).map((it) => it.name);
  return unchecked.length === 0
    ? null
    : `not checked: whether ${unchecked.join(", ")} begin equal and keep their state apart (give state: or witness:)`;
}

async function seedDigest(replica: ReplicaConfig): Promise<string> {
  return replica.kind === "process" && replica.seed !== null ? digestOf(replica.seed) : emptyDigest;
}

/** Names, kinds and contents of a tree: equal trees, equal digests. */
async function digestOf(folder: string): Promise<string> {
  const hash = createHash("sha256");
  for (const name of (await readdir(folder)).sort()) {
    const path = join(folder, name);
    const stat = await lstat(path);
    if (stat.isDirectory()) hash.update(`d ${name}\0${await digestOf(path)}`);
    else if (stat.isSymbolicLink()) hash.update(`l ${name}\0${await readlink(path)}\0`);
    else if (stat.isFile()) hash.update(`f ${name}\0${await fileDigest(path)}`);
  }
  return hash.digest("hex");
}

const emptyDigest = createHash("sha256").digest("hex");

async function fileDigest(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest("hex");
}
