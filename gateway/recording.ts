// The recorder's part of the composition: store, registry and line are opened beside the gateway and joined with what it runs. A store or a chain that is
// away when the gateway starts does not hold it up: opening is tried again until it succeeds.

import type { Archivist } from "../recorder/archivist.ts";
import { Auditor } from "../recorder/auditor.ts";
import type { Verdict } from "../recorder/auditor.ts";
import { Forgetting } from "../recorder/forgetting.ts";
import { Line } from "../recorder/line.ts";
import type { Version } from "../recorder/line.ts";
import { readOrigin } from "../recorder/origin.ts";
import type { Rebuilt } from "../recorder/rebuilder.ts";
import { Rebuilder } from "../recorder/rebuilder.ts";
import { Recorder, takenMsOf } from "../recorder/recorder.ts";
import { openEthereumRegistry } from "../recorder/registry/ethereum.ts";
import { openFileRegistry } from "../recorder/registry/file.ts";
import type { Registry, RegistryStatus } from "../recorder/registry/registry.ts";
import { openStore } from "../recorder/stores/open.ts";
import { prefixed } from "../recorder/stores/prefixed.ts";
import { stepped } from "../recorder/stores/stepped.ts";
import type { SnapshotStore, StoreOptions } from "../recorder/stores/store.ts";
import type { TruncationParts } from "../recorder/truncation.ts";
import { createWorkshopArchivist } from "../recorder/workshoparchivist.ts";
import type { Clock } from "./clock.ts";
import type { Config } from "./config.ts";
import type { Copies } from "./copies.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import { revealed } from "./foundation.ts";
import type { Reporter } from "./operations.ts";
import type { Policies } from "./policies.ts";
import type { LogReader } from "./reader.ts";
import type { Replicas } from "./replicas.ts";
import type { Space } from "./space.ts";
import type { SnapshotRow, Status } from "./status.ts";

/** What is remembered, and by whom it is vouched for. */
export interface Memory {
  readonly store: SnapshotStore;
  readonly registry: Registry;
  readonly archivist: Archivist;
  readonly line: Line;
  close(): Promise<void>;
}

/** Everything that it rests on is reached, or it rejects with GW_STORE_UNAVAILABLE or GW_REGISTRY_UNAVAILABLE. */
export async function openMemory(config: Config, folder: (name: string) => string): Promise<Memory> {
  const { snapshots, service } = config;
  if (snapshots === null) throw new GatewayError("GW_SNAPSHOT_MISSING", "snapshots are not configured");
  const options = storeOptionsOf(config);
  const bare = await openStore(options);
  const closers: (() => Promise<void>)[] = [() => bare.close()];
  const close = async (): Promise<void> => {
    for (const it of closers.splice(0).reverse()) await it();
  };
  try {
    const store = stepped(prefixed(bare, storePrefix(service)));
    const registry = await openRegistry(config, folder);
    closers.push(() => registry.close());
    const archivist = createWorkshopArchivist({
      store,
      access: { store: options, prefix: storePrefix(service), key: snapshots.encryptionKey?.reveal() ?? null },
      folder: folder("recorder"),
      environment: process.env,
    });
    closers.push(() => archivist.close());
    const line = await Line.open({ service, store, registry, folder: folder("recorder") });
    return { store, registry, archivist, line, close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** One store may serve several services. */
const storePrefix = (service: string): string => `gw-${service}`;

async function openRegistry(config: Config, folder: (name: string) => string): Promise<Registry> {
  const { registry, service, name } = config;
  if (registry === null) return openFileRegistry({ folder: folder("registry"), service, name });
  return openEthereumRegistry({
    rpc: registry.rpc,
    contract: registry.contract,
    service,
    owner: registry.owner,
    key: registry.key,
    keyPassword: registry.keyPassword,
    confirmations: registry.confirmations,
    publishers: registry.publishers,
    maxFeeGwei: registry.maxFeeGwei,
    folder: folder("registry"),
  });
}

function storeOptionsOf(config: Config): StoreOptions {
  const store = config.snapshots?.store;
  if (store === undefined) throw new GatewayError("GW_SNAPSHOT_MISSING", "snapshots are not configured");
  switch (store.kind) {
    case "folder":
      return store;
    case "s3":
      return {
        ...store,
        accessKeyId: store.accessKeyId.reveal(),
        secretAccessKey: store.secretAccessKey.reveal(),
      };
    case "mysql":
      return { ...store, password: store.password?.reveal() ?? "" };
    case "nats": {
      const { nats } = config.log;
      if (nats === null) throw new GatewayError("GW_CONFIG_INVALID", "a store in NATS needs log.nats");
      const { servers, replicas, credentialsFile, auth, tls } = nats;
      return { ...store, servers, replicas, credentialsFile, auth: auth === null ? null : revealed(auth), tls };
    }
    default:
      store satisfies never;
      throw new TypeError("unknown store");
  }
}

export interface RecordingParts {
  readonly config: Config;
  readonly events: Events;
  readonly clock: Clock;
  readonly folder: (name: string) => string;
  /** Of several gateways this one captures, publishes, truncates and audits now. */
  readonly leads: () => boolean;
  /** The name of the one that does, as far as is known. */
  readonly holder: () => string | null;
}

/** What it works on, once that runs. */
export interface RecordingSubjects extends Omit<TruncationParts, "events" | "clock"> {
  readonly copies: Copies;
  readonly replicas: Replicas;
  readonly reader: LogReader;
  readonly policies: Policies;
  readonly space: Space;
}

export interface Joined {
  readonly memory: Memory;
  readonly recorder: Recorder;
  readonly rebuilder: Rebuilder;
}

const retryMs = 5000;

export class Recording {
  readonly #parts: RecordingParts;
  readonly #stop = new AbortController();
  #subjects: RecordingSubjects | null = null;
  #opening: Promise<void> = Promise.resolve();
  /** Over when store and registry are open, or were found to be away. */
  #firstTry: Promise<void> = Promise.resolve();
  #joined: Joined | null = null;
  #auditor: Auditor | null = null;
  #forgetting: Forgetting | null = null;
  /** Why store and registry are not there yet. */
  #trouble: string | null = null;
  #registryStatus: RegistryStatus | null = null;

  constructor(parts: RecordingParts) {
    this.#parts = parts;
  }

  /** What snapshots and registry know of the service, in words; null: nothing. Rejects when that cannot be found out. */
  async knows(): Promise<string | null> {
    const { config, folder } = this.#parts;
    if (config.snapshots === null) return null;
    const memory = await openMemory(config, folder);
    try {
      const { newest } = memory.line;
      if (newest !== null) return `snapshot ${newest.version} at ${newest.position} is in ${memory.store.where}`;
      const published = await memory.registry.latest();
      return published === null ? null : `version ${published.version} at ${published.position} is published`;
    } finally {
      await memory.close();
    }
  }

  /** For a recovery: store and registry have to be there, and nothing happens by itself. */
  async open(subjects: RecordingSubjects, isOtherImageAllowed: boolean): Promise<Joined> {
    const { config, folder } = this.#parts;
    this.#subjects = subjects;
    const joined = this.#createJoined(await openMemory(config, folder), isOtherImageAllowed);
    this.#joined = joined;
    await joined.memory.line.lookUp(this.#parts.clock.wallMs()).catch(() => null);
    return joined;
  }

  /** Replicas are run, requests come in: from here on states are captured, published, compared and brought back. */
  start(subjects: RecordingSubjects): void {
    const { clock, config, events } = this.#parts;
    this.#subjects = subjects;
    if (config.snapshots !== null) {
      this.#firstTry = this.#tryToOpen();
      this.#opening = this.#openUntilOpen();
    } else {
      this.#startAuditor(null);
      if (config.log.truncate === "applied") {
        this.#forgetting = new Forgetting({ ...subjects, events, clock, leads: this.#parts.leads });
        this.#forgetting.start();
      }
    }
  }

  async close(): Promise<void> {
    this.#stop.abort();
    await this.#opening;
    await this.#forgetting?.close();
    await this.#auditor?.close();
    await this.#joined?.rebuilder.close();
    await this.#joined?.recorder.close();
    await this.#joined?.memory.close();
    this.#joined = null;
  }

  /** Ends when store and registry are open, or with `close`. */
  async #openUntilOpen(): Promise<void> {
    const { clock } = this.#parts;
    const { signal } = this.#stop;
    for (await this.#firstTry; this.#joined === null && !signal.aborted; await this.#tryToOpen())
      await clock.sleep(retryMs, signal).catch(() => undefined);
  }

  async #tryToOpen(): Promise<void> {
    const { config, events, folder } = this.#parts;
    if (this.#stop.signal.aborted) return;
    try {
      this.#join(await openMemory(config, folder));
    } catch (error) {
      const detail = error instanceof Error ? error.message : String(error);
      if (this.#trouble !== detail) events.tell({ type: "warning", about: "snapshots", detail });
      this.#trouble = detail;
    }
  }

  #join(memory: Memory): void {
    this.#trouble = null;
    const { archivist, line, registry } = memory;
    for (const detail of line.damaged) this.#parts.events.tell({ type: "warning", about: "snapshots", detail });
    this.#joined = this.#createJoined(memory, false);
    this.#joined.recorder.start();
    this.#joined.rebuilder.start();
    this.#startAuditor(archivist);
    void this.#watchRegistry(registry);
  }

  #createJoined(memory: Memory, isOtherImageAllowed: boolean): Joined {
    const { clock, config, events, folder } = this.#parts;
    const subjects = this.#subjects as RecordingSubjects;
    const { snapshots } = config;
    if (snapshots === null) throw new GatewayError("GW_SNAPSHOT_MISSING", "snapshots are not configured");
    const { copies } = subjects;
    const { archivist, line, registry } = memory;
    const reach = {
      placeOf: copies.placeOf.bind(copies),
      isStoppable: (name: string) => copies.isStoppable(name),
      isReplaceable: (name: string) => copies.isReplaceable(name),
      imageDigest: (name: string) => copies.imageDigest(name),
    };
    const recorder = new Recorder({
      ...subjects,
      ...reach,
      settings: {
        service: config.service,
        every: snapshots.every,
        keep: snapshots.keep,
        capture: snapshots.capture.kind,
        quiesce: snapshots.quiesce,
        drillMs: snapshots.drillMs,
        truncate: config.log.truncate,
        truncateUnpublishedMs: config.log.truncateUnpublishedMs,
        publishEveryMs: config.registry?.publishEveryMs ?? 0,
        uri: memory.store.where,
      },
      leads: this.#parts.leads,
      line,
      registry,
      archivist,
      events,
      clock,
    });
    const rebuilder = new Rebuilder({
      ...subjects,
      ...reach,
      line,
      registry,
      archivist,
      recorder,
      events,
      clock,
      rebuildsPerHour: config.agreement.rebuildsPerHour,
      needsBackend: snapshots.capture.kind === "http",
      origin: readOrigin(folder("recorder")),
      isOtherImageAllowed,
      leads: this.#parts.leads,
    });
    return { memory, recorder, rebuilder };
  }

  #startAuditor(archivist: Archivist | null): void {
    const { clock, config, events } = this.#parts;
    const { copies, replicas } = this.#subjects as RecordingSubjects;
    this.#auditor = new Auditor({
      settings: { ...config.audit, quiesce: config.snapshots?.quiesce ?? { kind: "none" } },
      replicas,
      archivist,
      placeOf: copies.placeOf.bind(copies),
      isStoppable: (name) => copies.isStoppable(name),
      leads: this.#parts.leads,
      events,
      clock,
    });
    this.#auditor.start();
  }

  /** Ends with `close`. Its figures are for people and gauges: half a minute old is new enough. */
  async #watchRegistry(registry: Registry): Promise<void> {
    const { clock } = this.#parts;
    const { signal } = this.#stop;
    for (; !signal.aborted; await clock.sleep(30_000, signal).catch(() => undefined))
      this.#registryStatus = await registry.status().catch(() => this.#registryStatus);
  }

  // ---- what the admin address asks -------------------------------------------------------------------------------------------------

  get #open(): Joined {
    if (this.#joined !== null) return this.#joined;
    throw this.#parts.config.snapshots === null
      ? new GatewayError("GW_CONFLICT", "snapshots are not configured: give snapshots: in gateway.yaml")
      : new GatewayError("GW_STORE_UNAVAILABLE", this.#trouble ?? "the store of snapshots is being opened");
  }

  /** A store that is being opened for the first time is worth waiting for; one that was found to be away is not. */
  async #whenOpen(): Promise<Joined> {
    await this.#firstTry;
    return this.#open;
  }

  /** A copy that this gateway feeds is live, and its state can be captured. */
  get isAble(): boolean {
    const subjects = this.#subjects;
    if (subjects === null || this.#parts.config.snapshots === null || this.#joined === null) return false;
    return subjects.replicas.liveAppliers().some((it) => subjects.copies.placeOf(it) !== null);
  }

  /** Two that capture at once would spend the work twice. */
  #checkLeads(): void {
    const { holder, leads } = this.#parts;
    if (leads()) return;
    const name = holder();
    throw new GatewayError(
      "GW_CONFLICT",
      name === null ? "no gateway records now: ask again in a moment" : `the gateway ${name} records: ask that one`,
    );
  }

  async capture(reporter: Reporter): Promise<Version> {
    const { recorder } = await this.#whenOpen();
    this.#checkLeads();
    return recorder.capture(reporter);
  }
  async verify(version: number | null, reporter: Reporter): Promise<Version> {
    const { memory, recorder } = await this.#whenOpen();
    if (!this.#parts.leads()) await memory.line.load();
    return recorder.verify(version, reporter);
  }
  async rebuild(name: string, version: number | null, reporter: Reporter): Promise<Rebuilt> {
    return (await this.#whenOpen()).rebuilder.rebuild(name, version, reporter);
  }
  async audit(reporter: Reporter): Promise<Verdict> {
    await this.#firstTry;
    if (this.#auditor === null) throw new GatewayError("GW_CONFLICT", this.#trouble ?? "the gateway is starting");
    return this.#auditor.audit(reporter);
  }
  /** Rejects at once when nothing could be captured, verified or rebuilt now. */
  check(): void {
    const isBeingOpened = this.#parts.config.snapshots !== null && this.#trouble === null && this.#subjects !== null;
    if (!isBeingOpened) void this.#open;
  }

  /** Newest first. */
  rows(): readonly SnapshotRow[] {
    const { memory } = this.#open;
    return memory.line.versions.map((it) => rowOf(it, memory.line)).toReversed();
  }

  status(): Pick<Status, "snapshots" | "registry"> {
    const joined = this.#joined;
    if (joined === null) {
      const isConfigured = this.#parts.config.snapshots !== null;
      const empty = { store: "", kept: 0, last: null, lastSuccessMs: null, bytes: 0, isRecorder: false };
      return {
        snapshots: isConfigured ? { ...empty, trouble: this.#trouble ?? "being opened" } : null,
        registry: null,
      };
    }
    const { memory, recorder } = joined;
    const { line, registry, store } = memory;
    const known = this.#registryStatus;
    return {
      snapshots: {
        store: store.where,
        kept: line.versions.length,
        last: line.newest === null ? null : rowOf(line.newest, line),
        lastSuccessMs: recorder.lastSuccessMs ?? (line.newest === null ? null : takenMsOf(line.newest)),
        trouble: recorder.trouble,
        bytes: recorder.storeBytes,
        isRecorder: this.#parts.leads(),
      },
      registry: {
        kind: registry.kind,
        where: known?.where ?? "",
        reachable: known?.isReachable ?? true,
        trouble: known?.trouble ?? null,
        balanceWei: known?.balanceWei ?? null,
        errors: known?.errors ?? 0,
        publishedPosition: line.published?.position ?? null,
        pendingSeconds: recorder.pendingMs / 1000,
      },
    };
  }
}

function rowOf(it: Version, line: Line): SnapshotRow {
  const { notes } = it;
  const isPast = line.published !== null && it.version <= line.published.version;
  return {
    version: it.version,
    position: it.position,
    entries: it.entries,
    timeMs: it.logTimeMs,
    manifest: it.manifestHash,
    root: it.root,
    hash: it.hash,
    epoch: it.epoch,
    treeEntries: it.treeEntries,
    treeBytes: it.treeBytes,
    newBytes: notes.newBytes,
    replica: notes.replica,
    backendVersion: it.backendVersion,
    isVerified: notes.isVerified,
    publication:
      notes.finalMs !== null ? "final" : isPast ? "none" : notes.transaction === null ? "waiting" : "pending",
    transaction: notes.transaction,
  };
}
