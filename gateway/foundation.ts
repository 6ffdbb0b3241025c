// What everything stands on: the data folder with its lock and its marks, the log with what is kept beside it, and where reader state begins.
// `gateway run` and `gateway recover` open it in the same way.

import { randomBytes } from "node:crypto";
import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Bases } from "./base/base.ts";
import { openFileBases } from "./base/file.ts";
import { openJetStreamBases } from "./base/jetstream.ts";
import type { Board } from "./board/board.ts";
import { openFileBoard } from "./board/file.ts";
import { openJetStreamBoard } from "./board/jetstream.ts";
import type { Bodies } from "./bodies/bodies.ts";
import { openJetStreamBodies } from "./bodies/jetstream.ts";
import { openLmdbBodies } from "./bodies/lmdb.ts";
import type { Config, NatsConfig } from "./config.ts";
import type { Cursors } from "./cursors/cursors.ts";
import { openJetStreamCursors } from "./cursors/jetstream.ts";
import { openLmdbCursors } from "./cursors/lmdb.ts";
import type { Digests } from "./digests/digests.ts";
import { openJetStreamDigests } from "./digests/jetstream.ts";
import { openLmdbDigests } from "./digests/lmdb.ts";
import { systemClock } from "./clock.ts";
import type { Credential } from "./drivers/certificates.ts";
import { Certificates } from "./drivers/certificates.ts";
import { DockerEngine } from "./drivers/docker.ts";
import type { Nats } from "./drivers/nats.ts";
import { openNats } from "./drivers/nats.ts";
import { endOf } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import { Events } from "./events.ts";
import { endContainers } from "./launch/container-end.ts";
import { endOrphans } from "./launch/orphans.ts";
import type { DataLock } from "./lock.ts";
import { lockData } from "./lock.ts";
import { openJetStreamLog } from "./log/jetstream.ts";
import { openLmdbLog } from "./log/lmdb.ts";
import type { GuaranteeReport, Log, LogCreation, LogInfo } from "./log/log.ts";
import { guarantees, recordAt } from "./log/log.ts";
import { sha256 } from "./record.ts";
import { openLmdbState } from "./state/lmdb.ts";
import { MarksFile } from "./state/marks.ts";
import type { StateHead, StateStore } from "./state/store.ts";

/** Random hex from a pool: a call into the kernel for each seed would cost more than the rest of an append. */
function createRandomHex(poolBytes = 8192): (bytes: number) => string {
  let pool = randomBytes(poolBytes);
  let at = 0;
  return (bytes) => {
    if (at + bytes > poolBytes) {
      pool = randomBytes(poolBytes);
      at = 0;
    }
    at += bytes;
    return pool.toString("hex", at - bytes, at);
  };
}
export const randomHex = createRandomHex();

/** What was opened, so that a start that fails half way closes what it opened. */
export class Opened {
  readonly #closers: (() => Promise<void> | void)[] = [];
  #isClosing = false;

  get isClosing(): boolean {
    return this.#isClosing;
  }

  add(close: () => Promise<void> | void): void {
    this.#closers.push(close);
  }
  /** Last opened, first closed. May be called twice. */
  async close(): Promise<void> {
    this.#isClosing = true;
    for (const close of this.#closers.splice(0).reverse()) await close();
  }
}

/** The data folder, and the server where there is one. */
export interface Ground {
  readonly lock: DataLock;
  readonly marks: MarksFile;
  readonly nats: Nats | null;
  /** All that the configuration names, read and watched. */
  readonly certificates: Certificates;
  /** Of replicas at https://; null: as the system does. */
  readonly upstream: Credential | null;
  readonly cursors: Cursors;
  readonly board: Board;
  readonly bases: Bases;
  /** Ends what is waited for when everything is closed. */
  readonly stop: AbortController;
  /** A folder in `data`, made if it is not there. */
  readonly folder: (name: string) => string;
}

/** `endsOrphans` false: to look, and touch nothing. */
export async function openGround(
  config: Config,
  events: Events,
  opened: Opened,
  endsOrphans = true,
  signal?: AbortSignal,
): Promise<Ground> {
  const folder = (name: string): string => {
    const path = join(config.data, name);
    mkdirSync(path, { recursive: true, mode: 0o700 });
    return path;
  };
  mkdirSync(config.data, { recursive: true, mode: 0o700 });
  const lock = await lockData(config.data);
  opened.add(() => lock.release());
  if (endsOrphans) sweepUnfinished(config.data);
  // A predecessor that was killed left its backends running: they are ended before anything else could talk to them.
  for (const orphan of endsOrphans ? await endOrphans(folder("processes")) : [])
    events.tell({
      type: "warning",
      about: `replica ${orphan.name}`,
      detail: `process ${orphan.pid}, left behind by a former gateway, was ended`,
    });
  if (endsOrphans) await endContainersOf(config, events, folder);
  const marks = MarksFile.open(config.data);
  opened.add(() => marks.close());
  const stop = new AbortController();
  const giveUp = (): void => stop.abort();
  if (signal?.aborted === true) giveUp();
  signal?.addEventListener("abort", giveUp, { once: true });
  const certificates = new Certificates({ events, clock: systemClock });
  opened.add(() => certificates.close());
  const upstream = config.upstream === null ? null : await certificates.open("upstream", config.upstream);
  // The driver reads these files itself: they are watched for their end.
  const natsFiles = config.log.nats?.tls ?? null;
  if (natsFiles !== null) await certificates.open("log.nats.tls", natsFiles);
  const nats = config.log.nats === null ? null : await openServer(config, events, opened, stop.signal);
  const cursors =
    nats === null
      ? await openLmdbCursors({ folder: folder("cursors") })
      : await openJetStreamCursors({ nats, service: config.service, replicas: natsReplicas(config) });
  opened.add(() => cursors.close());
  const board =
    nats === null
      ? await openFileBoard({ folder: folder("board") })
      : await openJetStreamBoard({ nats, service: config.service, replicas: natsReplicas(config) });
  opened.add(() => board.close());
  const bases =
    nats === null
      ? await openFileBases({ folder: folder("base") })
      : await openJetStreamBases({
          nats,
          service: config.service,
          replicas: natsReplicas(config),
          maxBytes: config.log.maxBytes,
        });
  opened.add(() => bases.close());
  return { lock, marks, nats, certificates, upstream, cursors, board, bases, stop, folder };
}

/** Files that a predecessor was writing when it was killed: each of ours is written beside the one that stands, as `*.new`, and renamed when it is whole. */
function sweepUnfinished(data: string): void {
  for (const it of readdirSync(data, { withFileTypes: true })) {
    const isFolder = it.isDirectory();
    const inside = isFolder ? readdirSync(join(data, it.name)).map((name) => join(it.name, name)) : [it.name];
    for (const name of inside) if (name.endsWith(".new")) rmSync(join(data, name), { force: true, recursive: true });
  }
}

/** Containers that a predecessor left, of replicas that are not configured any more as well. An engine that is away is no reason not to start: each replica's start looks again. */
async function endContainersOf(config: Config, events: Events, folder: (name: string) => string): Promise<void> {
  const engines = new Set(config.replicas.flatMap((it) => (it.kind === "container" ? [it.engine] : [])));
  for (const address of engines) {
    const engine = new DockerEngine(address);
    try {
      const ended = await endContainers(engine, {
        recordsFolder: folder("processes"),
        volumesFolder: folder("volumes"),
      });
      for (const { name, container } of ended)
        events.tell({
          type: "warning",
          about: `replica ${name}`,
          detail: `container ${container.slice(0, 12)}, left behind by a former gateway, was ended`,
        });
    } catch (error) {
      const detail = error instanceof Error ? error.message : String(error);
      events.tell({ type: "warning", about: "containers", detail });
    } finally {
      await engine.close();
    }
  }
}

async function openServer(config: Config, events: Events, opened: Opened, signal: AbortSignal): Promise<Nats> {
  const { servers, credentialsFile, auth, tls } = config.log.nats as NonNullable<Config["log"]["nats"]>;
  const nats = await openNats(
    {
      servers,
      name: `${config.service}/${config.name}`,
      onWaiting: (detail) => events.tell({ type: "warning", about: "log", detail }),
      ...(credentialsFile === null ? {} : { credentialsFile }),
      ...(auth === null ? {} : { auth: revealed(auth) }),
      ...(tls === null ? {} : { tls }),
    },
    signal,
  );
  opened.add(() => nats.close());
  return nats;
}

type NatsAuth = NonNullable<NatsConfig["auth"]>;
export const revealed = (auth: NatsAuth): { user: string; password: string } | { token: string } =>
  "token" in auth ? { token: auth.token.reveal() } : { user: auth.user, password: auth.password.reveal() };

const natsReplicas = (config: Config): number => config.log.nats?.replicas ?? 1;

/** The log that is there (`create` null; null: there is none), or a new one. */
export function openLogOf(config: Config, { nats, folder }: Ground, create: LogCreation | null): Promise<Log | null> {
  return nats === null
    ? openLmdbLog({ folder: folder("log"), maxBytes: config.log.maxBytes, create })
    : openJetStreamLog({
        nats,
        service: config.service,
        replicas: natsReplicas(config),
        maxBytes: config.log.maxBytes,
        monitor: config.log.nats?.monitor ?? [],
        tls: config.log.nats?.tls ?? {},
        create,
      });
}

/** Above every record that data folder and cursors ever saw. */
export async function firstAbove({ marks, cursors }: Ground): Promise<number> {
  let first = (marks.current?.sequence ?? 0) + 1;
  for (const name of await cursors.list())
    first = Math.max(first, Math.floor(((await cursors.load(name))?.cursor.bound ?? 0) / 4096) + 1);
  return first;
}

/**
 * The log; created only when nobody ever knew of one, or a person says so. `recorded` tells what snapshots and registry know of the service; null:
 * nothing.
 */
export async function openLog(
  config: Config,
  ground: Ground,
  isNewLog: boolean,
  recorded: () => Promise<string | null>,
): Promise<Log> {
  const { cursors, marks } = ground;
  const found = await openLogOf(config, ground, null);
  if (found !== null) return found;
  const known = await cursors.list();
  const isKnown = marks.current !== null || known.length > 0;
  if (!isNewLog) {
    const why =
      marks.current !== null
        ? `this gateway has read it up to record ${marks.current.sequence}`
        : known.length > 0
          ? `cursors of ${known.join(", ")} are there`
          : await recorded();
    if (why !== null)
      throw new GatewayError(
        "GW_LOG_MISSING",
        `the log of ${config.service} is missing, but ${why}: bring it back, rebuild the service with gateway recover, or begin anew with --new-log`,
      );
  }
  const firstSequence = isKnown ? await firstAbove(ground) : 1;
  const created = await openLogOf(config, ground, { epoch: randomHex(8), firstSequence });
  if (created === null) throw new GatewayError("GW_LOG_MISSING", "the log could not be created");
  if (isKnown) {
    await beginAnew(cursors, known, created.epoch, firstSequence);
    marks.reset();
    rmSync(join(config.data, "state"), { recursive: true, force: true });
  }
  return created;
}

/** Reader state of this data folder. One that knows nothing begins where the log does: from its base, where the log was truncated. */
export async function openState(ground: Ground, info: LogInfo, log: Log): Promise<StateStore> {
  const store = openLmdbState(ground.folder("state"));
  const head = store.head();
  const isBehind = head !== null && head.epoch === log.epoch && head.sequence + 1 < info.first;
  if ((head === null || isBehind) && info.first > 1) {
    const base = await ground.bases.load();
    if (base !== null && base.head.epoch === log.epoch && base.head.sequence + 1 >= info.first) {
      // A truncation that was cut off between its base and the log: what is before the base has no exceptions any more.
      await log.truncate(base.head.sequence + 1);
      await store.reset(base);
    } else if (info.last >= info.first || isBehind) {
      await store.close();
      throw new GatewayError(
        "GW_LOG_MISSING",
        `the log begins at record ${info.first}, and the reader state to begin with there is missing: rebuild the service with gateway recover`,
      );
    }
  }
  // Of a truncation by another gateway, or one that was cut off.
  if (store.head()?.epoch === log.epoch) await store.truncate((await log.info()).first);
  return store;
}

/** After a person began a lost log anew: replicas that stood at one and the same place go on from there, all others are held. */
async function beginAnew(
  cursors: Cursors,
  names: readonly string[],
  epoch: string,
  firstSequence: number,
): Promise<void> {
  const stored = (await Promise.all(names.map((name) => cursors.load(name)))).filter((it) => it !== null);
  const furthest = Math.max(...stored.map((it) => it.cursor.applied));
  for (const { cursor, revision } of stored) {
    const isSound = cursor.applied === furthest && cursor.state === "clean" && cursor.standing === null;
    const applied = endOf(firstSequence - 1);
    const standing = isSound
      ? null
      : ({
          state: "held",
          reason: "its state belongs to the lost log and is not that of its siblings: it must be rebuilt",
        } as const);
    const saved = await cursors.save(
      {
        ...cursor,
        owner: null,
        epoch,
        applied,
        bound: applied,
        entries: 0,
        hash: "0".repeat(64),
        state: "clean",
        standing,
        unknown: [],
        finished: [],
      },
      revision,
    );
    if (saved.kind !== "saved")
      throw new GatewayError("GW_LOG_UNAVAILABLE", `the cursor of ${cursor.replica} could not be moved to the new log`);
  }
}

export async function checkGuarantee(log: Log, config: Config): Promise<GuaranteeReport> {
  const report = await log.guarantee();
  if (guarantees.indexOf(report.level) < guarantees.indexOf(config.log.minGuarantee))
    throw new GatewayError(
      "GW_GUARANTEE_TOO_LOW",
      `log.minGuarantee is ${config.log.minGuarantee}, the log gives ${report.level}: ${report.why}`,
    );
  return report;
}

/** How the log contradicts what this data folder knows of it; null: it does not, as far as can be seen before reading. */
export async function findRegression(
  marks: MarksFile,
  head: StateHead | null,
  log: Log,
  { first, last }: LogInfo,
): Promise<GatewayError | null> {
  const seen = marks.current;
  const epochs = [head?.epoch, seen === null || seen.sequence === 0 ? undefined : seen.epoch].filter(
    (it) => it !== undefined,
  );
  const other = epochs.find((it) => it !== log.epoch);
  if (other !== undefined)
    return new GatewayError(
      "GW_LOG_REGRESSED",
      `the log has epoch ${log.epoch}, this gateway knows the one of epoch ${other}: it was replaced`,
    );
  const known = Math.max(seen?.sequence ?? 0, head?.sequence ?? 0);
  if (known > last)
    return new GatewayError(
      "GW_LOG_REGRESSED",
      `the log ends at record ${last}, this gateway has seen record ${known}: it lost its end`,
    );
  // A log that was rolled back and has grown again since is as long, and is another.
  if (seen !== null && seen.sequence >= first && seen.sequence > 0) {
    const record = await recordAt(log, seen.sequence);
    if (record === null || sha256(record.bytes).toString("hex") !== seen.recordHash)
      return new GatewayError(
        "GW_LOG_REGRESSED",
        `record ${seen.sequence} is not the one this gateway saw before: the log was rolled back and written again`,
      );
  }
  return null;
}

/** Stands in for reader state that is not to be touched. */
export const emptyStore: StateStore = {
  head: () => null,
  key: () => null,
  oldestKeys: () => [],
  exceptions: () => [],
  skips: () => [],
  bodies: () => Promise.resolve(new Set()),
  commit: () => Promise.resolve(),
  cut: () => {
    throw new GatewayError("GW_LOG_REGRESSED", "there is no reader state: the log cannot be trusted");
  },
  reset: () => Promise.resolve(),
  truncate: () => Promise.resolve(),
  close: () => Promise.resolve(),
};

export async function openBeside(
  config: Config,
  { nats, folder }: Ground,
): Promise<{ bodies: Bodies; digests: Digests }> {
  if (nats === null)
    return {
      bodies: await openLmdbBodies({ folder: folder("bodies"), maxBytes: config.log.maxBytes }),
      digests: await openLmdbDigests({ folder: folder("digests") }),
    };
  const shared = { nats, service: config.service, replicas: natsReplicas(config), maxBytes: config.log.maxBytes };
  return { bodies: await openJetStreamBodies(shared), digests: await openJetStreamDigests(shared) };
}

/** Opens the data folder for as long as `work` takes. Rejects with GW_DATA_LOCKED while a gateway runs. */
export async function within<T>(
  config: Config,
  endsOrphans: boolean,
  work: (ground: Ground, opened: Opened) => Promise<T>,
): Promise<T> {
  const opened = new Opened();
  try {
    return await work(await openGround(config, new Events(), opened, endsOrphans), opened);
  } finally {
    await opened.close();
  }
}
