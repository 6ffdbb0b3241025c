// The description of a snapshot: what it is the state of, and the hashes of all of it. Its own SHA-256 is what the registry publishes.
// Canonical JSON (keys sorted, no spaces, integers only), versioned, read for ever: test/fixtures/manifests holds what was written once.
// Nothing in it differs between publishers that captured equal copies at one position.

import { createHash } from "node:crypto";
import { GatewayError } from "../gateway/errors.ts";
import type { SkipRow, StateHead } from "../gateway/state/store.ts";

/** A piece of plaintext by its SHA-256, lower-case hex. */
export interface ChunkRef {
  readonly id: string;
  readonly sizeBytes: number;
}

export interface Manifest {
  readonly format: "br2k-manifest/1";
  readonly service: string;
  /** Of the registry it is meant for; nulls: a file. */
  readonly chainId: string | null;
  readonly contract: string | null;
  readonly epoch: string;
  /** Counts from 0. */
  readonly version: number;
  /** Of the mark: every entry up to it is in the state, none above. */
  readonly position: number;
  /** H at the position. */
  readonly hash: string;
  /** Entries up to the position. */
  readonly entries: number;
  /** Log time at the position, ms since 1970. */
  readonly logTimeMs: number;
  /** Reader state at the position. */
  readonly state: StateHead;
  readonly skips: readonly SkipRow[];
  /** Key rows in position order, as one stream cut by content (a cut by count would shift with every row that is forgotten). */
  readonly keys: readonly ChunkRef[];
  /** `version:` of the backend, and the digest of its image where it is a container. */
  readonly backendVersion: string;
  readonly imageDigest: string | null;
  readonly capture: "directory" | "command" | "http";
  /** Of names, modes and contents alone. */
  readonly root: string;
  /** The tree's listing, as one stream. */
  readonly listing: readonly ChunkRef[];
  /** Of the tree: files, folders and links; and plaintext bytes. */
  readonly treeEntries: number;
  readonly treeBytes: number;
  /** SHA-256 of the version before, 64 zeros for the first. */
  readonly previousHash: string;
}

export const manifestFormat = "br2k-manifest/1";
export const noManifest = "0".repeat(64);

export function encodeManifest(manifest: Manifest): Buffer {
  return Buffer.from(canonical(manifest), "utf8");
}

export const manifestHash = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");

/** Throws GW_SNAPSHOT_CORRUPT unless these bytes are a manifest, and (where `expected` is given) the one with that hash. */
export function parseManifest(bytes: Buffer, expected: string | null): Manifest {
  const found = manifestHash(bytes);
  if (expected !== null && found !== expected)
    throw new GatewayError("GW_SNAPSHOT_CORRUPT", `the manifest ${expected} in the store has the hash ${found}`);
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    throw new GatewayError("GW_SNAPSHOT_CORRUPT", `the manifest ${found} is no JSON`, { cause });
  }
  const manifest = value as Manifest;
  if (typeof value !== "object" || value === null || manifest.format !== manifestFormat)
    throw new GatewayError(
      "GW_SNAPSHOT_CORRUPT",
      `the manifest ${found} has a format that this version does not read: ${JSON.stringify((value as { format?: unknown } | null)?.format ?? null)}`,
    );
  const wrong = faultOf(manifest);
  if (wrong !== null) throw new GatewayError("GW_SNAPSHOT_CORRUPT", `the manifest ${found} is malformed: ${wrong}`);
  // One text for one manifest: an encoding with other spaces or keys would be another hash for the same state.
  if (!encodeManifest(manifest).equals(bytes))
    throw new GatewayError("GW_SNAPSHOT_CORRUPT", `the manifest ${found} is not in its canonical form`);
  return manifest;
}

function faultOf(m: Manifest): string | null {
  const isHash = (it: unknown): boolean => typeof it === "string" && /^[0-9a-f]{64}$/.test(it);
  const isCount = (it: unknown): boolean => Number.isSafeInteger(it) && (it as number) >= 0;
  const isText = (it: unknown): boolean => typeof it === "string";
  const areRefs = (it: unknown): boolean =>
    Array.isArray(it) && it.every((ref: ChunkRef | null) => isHash(ref?.id) && isCount(ref?.sizeBytes));
  const checks: readonly (readonly [string, boolean])[] = [
    ["service", isText(m.service)],
    ["chainId", m.chainId === null || isText(m.chainId)],
    ["contract", m.contract === null || isText(m.contract)],
    ["epoch", isText(m.epoch) && /^[0-9a-f]{16}$/.test(m.epoch)],
    ["version", isCount(m.version)],
    ["position", isCount(m.position)],
    ["hash", isHash(m.hash)],
    ["entries", isCount(m.entries)],
    ["logTimeMs", isCount(m.logTimeMs)],
    ["state", typeof m.state === "object" && m.state !== null && m.state.version === 1 && m.state.hash === m.hash],
    ["skips", Array.isArray(m.skips)],
    ["keys", areRefs(m.keys)],
    ["backendVersion", isText(m.backendVersion)],
    ["imageDigest", m.imageDigest === null || isText(m.imageDigest)],
    ["capture", ["directory", "command", "http"].includes(m.capture)],
    ["root", isHash(m.root)],
    ["listing", areRefs(m.listing)],
    ["treeEntries", isCount(m.treeEntries)],
    ["treeBytes", isCount(m.treeBytes)],
    ["previousHash", isHash(m.previousHash)],
  ];
  return checks.find(([, isSound]) => !isSound)?.[0] ?? null;
}

/** JSON with sorted keys; `undefined` does not occur. */
function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const fields = Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1));
    return `{${fields.map(([key, it]) => `${JSON.stringify(key)}:${canonical(it)}`).join(",")}}`;
  }
  return JSON.stringify(value);
}
