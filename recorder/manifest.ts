// The description of a snapshot: what it is the state of, and the hashes of all of it. Its own SHA-256 is what the registry publishes.
// Canonical JSON (keys sorted, no spaces, integers only), versioned, read for ever: test/fixtures/manifests holds what was written once.
// Nothing in it differs between publishers that captured equal copies at one position. A field more is another format.

import { createHash } from "node:crypto";
import { GatewayError } from "../gateway/errors.ts";
import type { ProducerRow, SkipRow, StateHead } from "../gateway/state/store.ts";

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

/** Throws GW_SNAPSHOT_FAILED for what could not be parsed again: nobody may learn that on the day when it is needed. */
export function encodeManifest(manifest: Manifest): Buffer {
  const wrong = faultOf(manifest);
  if (wrong !== null)
    throw new GatewayError(
      "GW_SNAPSHOT_FAILED",
      `the snapshot cannot be described: ${wrong} is not as manifests have it`,
    );
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
  if (!Buffer.from(canonical(manifest), "utf8").equals(bytes))
    throw new GatewayError("GW_SNAPSHOT_CORRUPT", `the manifest ${found} is not in its canonical form`);
  return manifest;
}

type Check = (it: unknown) => boolean;
type Checks<T> = { readonly [Field in keyof T]-?: Check };

const isText: Check = (it) => typeof it === "string";
const isHash: Check = (it) => typeof it === "string" && /^[0-9a-f]{64}$/.test(it);
const isEpoch: Check = (it) => typeof it === "string" && /^[0-9a-f]{16}$/.test(it);
const isCount: Check = (it) => Number.isSafeInteger(it) && (it as number) >= 0;
const is =
  (...values: readonly unknown[]): Check =>
  (it) =>
    values.includes(it);
const orNull =
  (check: Check): Check =>
  (it) =>
    it === null || check(it);
const listOf =
  (check: Check): Check =>
  (it) =>
    Array.isArray(it) && it.every(check);
const textsTo =
  (check: Check): Check =>
  (it) =>
    isObject(it) && Object.values(it).every(check);
/** These fields and no others. */
const exactly =
  <T>(checks: Checks<T>): Check =>
  (it) =>
    isObject(it) && faultyField(it, checks) === null;

const isObject = (it: unknown): it is Readonly<Record<string, unknown>> =>
  typeof it === "object" && it !== null && !Array.isArray(it);

const isRefs = listOf(exactly<ChunkRef>({ id: isHash, sizeBytes: isCount }));

const headChecks: Checks<StateHead> = {
  version: is(1),
  epoch: isEpoch,
  sequence: isCount,
  hash: isHash,
  entries: isCount,
  logTimeMs: isCount,
  keyCount: isCount,
  producers: listOf(exactly<ProducerRow>({ producer: isText, n: isCount, hash: isText, sequence: isCount })),
  rules: textsTo(isText),
  parts: textsTo(listOf(orNull(isText))),
};

const checks: Checks<Manifest> = {
  format: is(manifestFormat),
  service: isText,
  chainId: orNull(isText),
  contract: orNull(isText),
  epoch: isEpoch,
  version: isCount,
  position: isCount,
  hash: isHash,
  entries: isCount,
  logTimeMs: isCount,
  state: exactly(headChecks),
  skips: listOf(exactly<SkipRow>({ kind: is("skip"), position: isCount, reason: isText, maybeSent: listOf(isText) })),
  keys: isRefs,
  backendVersion: isText,
  imageDigest: orNull(isText),
  capture: is("directory", "command", "http"),
  root: isHash,
  listing: isRefs,
  treeEntries: isCount,
  treeBytes: isCount,
  previousHash: isHash,
};

function faultOf(manifest: Manifest): string | null {
  const fault = faultyField(manifest, checks);
  return fault === null && manifest.state.hash !== manifest.hash ? "state" : fault;
}

/** The first field that is missing, not as it should be, or too much. */
function faultyField(it: object, checks: Readonly<Record<string, Check>>): string | null {
  const fields = it as Readonly<Record<string, unknown>>;
  const wrong = Object.keys(checks).find((field) => !Object.hasOwn(it, field) || !checks[field]!(fields[field]));
  return wrong ?? Object.keys(it).find((field) => !Object.hasOwn(checks, field)) ?? null;
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
