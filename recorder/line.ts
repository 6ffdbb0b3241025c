// The service's line of snapshots: which versions stand in the store, which of them are published, and what this recorder noted of them.
//
// A manifest is stored under its version and its hash; it stands when its put resolved, and everything that it names was durable before. The notes
// beside it (who was captured, what it cost, whether a restore was tried) are this recorder's own and may be lost.
//
// A registered line has no gaps: what is removed before it was published leaves its manifest behind, as owed, until that is done. Where so many are owed
// that no more are kept, a new version takes the number of the newest, which nobody was told of yet, and replaces it.

import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { GatewayError } from "../gateway/errors.ts";
import { step } from "../gateway/steps.ts";
import type { Manifest } from "./manifest.ts";
import { encodeManifest, manifestHash, noManifest, parseManifest } from "./manifest.ts";
import type { Published, Registry } from "./registry/registry.ts";
import type { SnapshotStore } from "./stores/store.ts";

export interface Notes {
  readonly replica: string | null;
  /** Bytes that it added to the store. */
  readonly newBytes: number | null;
  /** Wall clock at the capture. */
  readonly takenMs: number;
  /** A restore into a scratch place gave its root. */
  readonly isVerified: boolean;
  readonly transaction: string | null;
  /** Wall clock when it was seen to be final in the registry; null: it is not yet. */
  readonly finalMs: number | null;
}

/** A version as it is kept in memory: its manifest without what is long. */
export interface Version {
  readonly version: number;
  readonly position: number;
  readonly entries: number;
  readonly logTimeMs: number;
  readonly hash: string;
  readonly manifestHash: string;
  readonly previousHash: string;
  readonly epoch: string;
  readonly root: string;
  readonly treeEntries: number;
  readonly treeBytes: number;
  readonly backendVersion: string;
  readonly imageDigest: string | null;
  readonly notes: Notes;
}

export interface LineParts {
  readonly service: string;
  readonly store: SnapshotStore;
  readonly registry: Registry;
  /** For the notes. */
  readonly folder: string;
  readonly owedMax?: number;
}

/** A version that waits for its publication; of some the manifest alone is kept. */
export interface Waiting {
  readonly version: number;
  readonly manifestHash: string;
  /** 0: not known. */
  readonly takenMs: number;
  readonly isWhole: boolean;
}

/** A chain that is away for five months, with a snapshot an hour; a few kilobytes each. */
const owedMaxUsual = 4096;

const noNotes: Notes = {
  replica: null,
  newBytes: null,
  takenMs: 0,
  isVerified: false,
  transaction: null,
  finalMs: null,
};
type Shelf = "manifests" | "owed";
const nameOf = (version: number, hash: string, shelf: Shelf = "manifests"): string =>
  `${shelf}/${String(version).padStart(10, "0")}-${hash}`;
const versionIn = (name: string): number => Number(/^[a-z]+\/(\d{10})-[0-9a-f]{64}$/.exec(name)?.[1] ?? Number.NaN);

export class Line {
  readonly #parts: LineParts;
  readonly #notes: Map<string, Notes>;
  #versions: Version[] = [];
  /** Removed before they were published, oldest first. */
  #owed: Waiting[] = [];
  /** The newest final publication as last seen. */
  #published: Published | null = null;

  private constructor(parts: LineParts) {
    this.#parts = parts;
    this.#notes = readNotes(join(parts.folder, "line.json"));
  }

  /** Reads the store. Rejects with GW_STORE_UNAVAILABLE; a manifest that cannot be read is left out and told by `damaged`. */
  static async open(parts: LineParts): Promise<Line> {
    const line = new Line(parts);
    await line.load();
    return line;
  }

  /** Names of objects that ought to be manifests of this service and are not. */
  damaged: readonly string[] = [];

  async load(): Promise<void> {
    const found: Version[] = [];
    const damaged: string[] = [];
    for await (const { name } of this.#parts.store.list("manifests/")) {
      const hash = name.slice(-64);
      try {
        const manifest = await this.#read(name, hash);
        found.push(this.#versionOf(manifest, hash));
      } catch (error) {
        if (!(error instanceof GatewayError) || error.code !== "GW_SNAPSHOT_CORRUPT") throw error;
        damaged.push(`${name}: ${error.message}`);
      }
    }
    this.damaged = damaged;
    // Two manifests of one version: a recorder was killed before it noted its own, or before it removed the one that its own replaces, or another recorder
    // was faster. What is published counts, then the newest of this recorder's own.
    const byVersion = new Map<number, Version>();
    for (const it of found.toSorted((a, b) => (a.manifestHash < b.manifestHash ? -1 : 1))) {
      const other = byVersion.get(it.version);
      if (
        other === undefined ||
        it.notes.finalMs !== null ||
        (it.notes.takenMs > other.notes.takenMs && other.notes.finalMs === null)
      )
        byVersion.set(it.version, it);
    }
    this.#versions = [...byVersion.values()].sort((a, b) => a.version - b.version);
    const owed: Waiting[] = [];
    for await (const { name } of this.#parts.store.list("owed/")) {
      const manifestHash = name.slice(-64);
      // Killed between its two steps, a version is whole and owed at once.
      if (byVersion.get(versionIn(name))?.manifestHash === manifestHash) continue;
      const takenMs = this.#notes.get(manifestHash)?.takenMs ?? 0;
      owed.push({ version: versionIn(name), manifestHash, takenMs, isWhole: false });
    }
    this.#owed = owed.sort((a, b) => a.version - b.version);
  }

  /** Oldest first. */
  get versions(): readonly Version[] {
    return this.#versions;
  }
  get newest(): Version | null {
    return this.#versions.at(-1) ?? null;
  }
  get published(): Published | null {
    return this.#published;
  }

  /** What is not published, oldest first. */
  get waiting(): readonly Waiting[] {
    const whole = this.#versions.filter((it) => this.isWaiting(it));
    return [...this.#stillOwed(), ...whole.map(waitingOf)].sort((a, b) => a.version - b.version);
  }
  /** No more can be removed before it is published: see `next`. */
  get isOwingAll(): boolean {
    return this.#stillOwed().length >= (this.#parts.owedMax ?? owedMaxUsual);
  }

  find(version: number): Version | null {
    return this.#versions.find((it) => it.version === version) ?? null;
  }

  /** What the next version is called, and follows. */
  next(): { readonly version: number; readonly previousHash: string } {
    const { newest } = this;
    const published = this.#published;
    if (published !== null && (newest === null || published.version > newest.version))
      return { version: published.version + 1, previousHash: published.manifestHash };
    // Nobody heard of it: what is older waits for its publication.
    if (newest !== null && this.isOwingAll && this.isWaiting(newest))
      return { version: newest.version, previousHash: newest.previousHash };
    return newest === null
      ? { version: 0, previousHash: noManifest }
      : { version: newest.version + 1, previousHash: newest.manifestHash };
  }

  /** Asks the registry what is final. Rejects with GW_REGISTRY_UNAVAILABLE. */
  async lookUp(nowMs: number): Promise<Published | null> {
    const latest = await this.#parts.registry.latest();
    this.#published = latest;
    if (latest !== null)
      for (const it of this.#versions)
        if (it.version <= latest.version && it.notes.finalMs === null) {
          const stands = it.version === latest.version ? latest : await this.#parts.registry.find(it.version);
          if (stands?.isFinal === true && stands.manifestHash === it.manifestHash)
            this.note(it.version, { finalMs: nowMs, transaction: stands.transaction });
        }
    return latest;
  }

  /** Makes the version stand. One of its number stays in the store until `replaced`. */
  async add(manifest: Manifest, notes: Partial<Notes>): Promise<Version> {
    const bytes = encodeManifest(manifest);
    const hash = manifestHash(bytes);
    await this.#parts.store.put(nameOf(manifest.version, hash), bytes);
    this.#notes.set(hash, { ...noNotes, ...notes });
    this.#writeNotes();
    const version = this.#versionOf(manifest, hash);
    this.#versions = [...this.#versions.filter((it) => it.version !== version.version), version].sort(
      (a, b) => a.version - b.version,
    );
    return version;
  }

  note(version: number, patch: Partial<Notes>): void {
    const found = this.find(version);
    if (found === null) return;
    const notes = { ...found.notes, ...patch };
    this.#notes.set(found.manifestHash, notes);
    this.#versions = this.#versions.map((it) => (it === found ? { ...it, notes } : it));
    this.#writeNotes();
  }

  /** The whole manifest, verified against its hash. Rejects with GW_SNAPSHOT_MISSING or GW_SNAPSHOT_CORRUPT. */
  async manifest({ version, manifestHash: hash }: Pick<Version, "version" | "manifestHash">): Promise<Manifest> {
    return this.#read(nameOf(version, hash), hash);
  }

  /** Takes a version, and what else bears its number, out of the store; its chunks are left to the collection. One that is not published stays owed. */
  async remove(version: number): Promise<void> {
    const found = this.find(version);
    const isOwed = found !== null && this.isWaiting(found);
    if (isOwed) {
      const { manifestHash } = found;
      await this.#parts.store.put(nameOf(version, manifestHash, "owed"), encodeManifest(await this.manifest(found)));
      this.#owed = [...this.#owed, { ...waitingOf(found), isWhole: false }].sort((a, b) => a.version - b.version);
    }
    await this.#removeAll("manifests", (it, hash) => {
      if (it !== version) return false;
      if (!isOwed || hash !== found.manifestHash) this.#notes.delete(hash);
      return true;
    });
    this.#versions = this.#versions.filter((it) => it.version !== version);
    this.#writeNotes();
  }

  /** Takes back what `add` made stand: what stood before stands again. */
  async retract({ version, manifestHash: hash }: Version): Promise<void> {
    await this.#parts.store.remove(nameOf(version, hash));
    this.#notes.delete(hash);
    this.#writeNotes();
    await this.load();
  }

  /** What `add` put another in the place of goes. One that cannot be removed now goes with its number. */
  async replaced({ version, manifestHash: hash }: Version): Promise<void> {
    await this.#parts.store.remove(nameOf(version, hash)).catch(() => undefined);
    this.#notes.delete(hash);
    this.#writeNotes();
  }

  /** Forgets what is owed no more. */
  async settleOwed(): Promise<void> {
    const published = this.#published;
    if (published === null || !this.#owed.some((it) => it.version <= published.version)) return;
    await this.#removeAll("owed", (version, hash) => {
      if (version > published.version) return false;
      if (this.find(version)?.manifestHash !== hash) this.#notes.delete(hash);
      return true;
    });
    this.#owed = [...this.#stillOwed()];
    this.#writeNotes();
  }

  /** The manifest of what waits, verified. Rejects as `manifest`. */
  async waitingManifest({ version, manifestHash: hash, isWhole }: Waiting): Promise<Manifest> {
    return this.#read(nameOf(version, hash, isWhole ? "manifests" : "owed"), hash);
  }

  /** It was never published. */
  isWaiting(it: Version): boolean {
    return it.notes.finalMs === null && it.version > (this.#published?.version ?? -1);
  }

  #stillOwed(): readonly Waiting[] {
    const published = this.#published?.version ?? -1;
    return this.#owed.filter((it) => it.version > published);
  }

  async #removeAll(shelf: Shelf, isMeant: (version: number, hash: string) => boolean): Promise<void> {
    const names: string[] = [];
    for await (const { name } of this.#parts.store.list(`${shelf}/`)) names.push(name);
    for (const name of names) if (isMeant(versionIn(name), name.slice(-64))) await this.#parts.store.remove(name);
  }

  async #read(name: string, hash: string): Promise<Manifest> {
    const bytes = await this.#parts.store.get(name);
    if (bytes === null)
      throw new GatewayError("GW_SNAPSHOT_MISSING", `the manifest ${hash} is not in ${this.#parts.store.where}`);
    const manifest = parseManifest(bytes, hash);
    if (manifest.service !== this.#parts.service)
      throw new GatewayError(
        "GW_SNAPSHOT_CORRUPT",
        `the manifest ${hash} is of the service ${manifest.service}, this is ${this.#parts.service}`,
      );
    if (versionIn(name) !== manifest.version)
      throw new GatewayError(
        "GW_SNAPSHOT_CORRUPT",
        `the manifest ${hash} is of version ${manifest.version}, it is stored as ${name}`,
      );
    return manifest;
  }

  #versionOf(manifest: Manifest, hash: string): Version {
    const { version, position, entries, logTimeMs, previousHash, epoch, root, treeEntries, treeBytes } = manifest;
    const { backendVersion, imageDigest } = manifest;
    const notes = this.#notes.get(hash) ?? noNotes;
    return {
      version,
      position,
      entries,
      logTimeMs,
      hash: manifest.hash,
      manifestHash: hash,
      previousHash,
      epoch,
      root,
      treeEntries,
      treeBytes,
      backendVersion,
      imageDigest,
      notes,
    };
  }

  #writeNotes(): void {
    const path = join(this.#parts.folder, "line.json");
    writeFileSync(`${path}.new`, JSON.stringify(Object.fromEntries(this.#notes)), { mode: 0o600 });
    step("line.rename");
    renameSync(`${path}.new`, path);
  }
}

const waitingOf = ({ version, manifestHash, notes }: Version): Waiting => ({
  version,
  manifestHash,
  takenMs: notes.takenMs,
  isWhole: true,
});

/** What cannot be read is forgotten: the notes only spare work. */
function readNotes(path: string): Map<string, Notes> {
  try {
    const value = JSON.parse(readFileSync(path, "utf8")) as Record<string, Notes>;
    return new Map(Object.entries(value).map(([hash, notes]) => [hash, { ...noNotes, ...notes }]));
  } catch {
    return new Map();
  }
}
