// The composition root: opens everything in order, joins the pieces, and closes them in the reverse order, with reasons.

import { randomBytes } from "node:crypto";
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Agreement } from "./agreement.ts";
import { Appender } from "./appender.ts";
import { Applier } from "./applier.ts";
import { createHttpBackend } from "./backend/http.ts";
import { whyUnsendable } from "./backend/sendable.ts";
import type { Bodies } from "./bodies/bodies.ts";
import { openJetStreamBodies } from "./bodies/jetstream.ts";
import { openLmdbBodies } from "./bodies/lmdb.ts";
import { systemClock } from "./clock.ts";
import type { Config, ReplicaConfig } from "./config.ts";
import { GatewayControl } from "./control.ts";
import type { Cursors } from "./cursors/cursors.ts";
import { openJetStreamCursors } from "./cursors/jetstream.ts";
import { openLmdbCursors } from "./cursors/lmdb.ts";
import type { Digests } from "./digests/digests.ts";
import { openJetStreamDigests } from "./digests/jetstream.ts";
import { openLmdbDigests } from "./digests/lmdb.ts";
import type { Nats } from "./drivers/nats.ts";
import { openNats } from "./drivers/nats.ts";
import { endOf } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import { Exposure } from "./exposure.ts";
import { FirstEntry } from "./firstentry.ts";
import { compareAtStart, findSharedState } from "./firststart.ts";
import { Intake } from "./intake.ts";
import { openFileIntents } from "./intents/file.ts";
import { openLmdbKeys } from "./keys/lmdb.ts";
import type { Keys } from "./keys/keys.ts";
import { openRedisKeys } from "./keys/redis.ts";
import type { Launch } from "./launch/launch.ts";
import { endOrphans } from "./launch/orphans.ts";
import { machineBootId } from "./launch/proc.ts";
import { createProcessLaunch } from "./launch/process.ts";
import { checkReady } from "./launch/ready.ts";
import { createStaticLaunch } from "./launch/static.ts";
import { lockData } from "./lock.ts";
import { openJetStreamLog } from "./log/jetstream.ts";
import { openLmdbLog } from "./log/lmdb.ts";
import type { GuaranteeReport, Log, LogCreation, LogInfo } from "./log/log.ts";
import { guarantees, recordAt } from "./log/log.ts";
import { Once } from "./once.ts";
import { Policies } from "./policies.ts";
import { LogReader } from "./reader.ts";
import { Reads } from "./reads.ts";
import { sha256 } from "./record.ts";
import { Replicas } from "./replicas.ts";
import { createAdmin } from "./server/admin.ts";
import { createFront } from "./server/front.ts";
import { createMetrics } from "./server/metrics.ts";
import { Space } from "./space.ts";
import { openLmdbState } from "./state/lmdb.ts";
import { MarksFile } from "./state/marks.ts";
import type { StateHead, StateStore } from "./state/store.ts";
import { ReaderState, rulesItems } from "./state/state.ts";
import type { Control } from "./status.ts";
import { Turn } from "./turn.ts";

export interface RunningGateway {
  /** URLs with the real ports. */
  readonly front: string;
  readonly admin: string;
  readonly control: Control;
  stop(): Promise<void>;
}

export interface StartParts {
  readonly events: Events;
  /** A person decided that a lost log is begun anew. */
  readonly isNewLog: boolean;
  readonly version: string;
}

/** Decoded records kept for appliers. */
const bufferBytesMax = 64 * 1024 * 1024;
const replicaConnections = 256;

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
const randomHex = createRandomHex();

/** What was opened, so that a start that fails half way closes what it opened. */
class Opened {
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

/** Resolves when the front takes requests; replicas may still be on their way. Rejects with a GatewayError that says what to mend. */
export async function startGateway(config: Config, parts: StartParts): Promise<RunningGateway> {
  const opened = new Opened();
  try {
    return await start(config, parts, opened);
  } catch (error) {
    parts.events.tell({ type: "gateway", state: "stopping", detail: "the start failed" });
    await opened.close();
    throw error;
  }
}

async function start(
  config: Config,
  { events, isNewLog, version }: StartParts,
  opened: Opened,
): Promise<RunningGateway> {
  const clock = systemClock;
  events.tell({ type: "gateway", state: "starting", detail: `service ${config.service}, gateway ${config.name}` });
  const folder = (name: string): string => {
    const path = join(config.data, name);
    mkdirSync(path, { recursive: true, mode: 0o700 });
    return path;
  };
  mkdirSync(config.data, { recursive: true, mode: 0o700 });
  const lock = await lockData(config.data);
  opened.add(() => lock.release());
  // A predecessor that was killed left its backends running: they are ended before anything else could talk to them.
  for (const orphan of await endOrphans(folder("processes")))
    events.tell({
      type: "warning",
      about: `replica ${orphan.name}`,
      detail: `process ${orphan.pid}, left behind by a former gateway, was ended`,
    });
  const marks = MarksFile.open(config.data);
  opened.add(() => marks.close());

  const stop = new AbortController();
  const nats = config.log.nats === null ? null : await openServer(config, opened, stop.signal);
  const cursors =
    nats === null
      ? await openLmdbCursors({ folder: folder("cursors") })
      : await openJetStreamCursors({ nats, service: config.service, replicas: natsReplicas(config) });
  opened.add(() => cursors.close());
  const log = await openLog(config, nats, cursors, marks, isNewLog, folder);
  opened.add(() => log.close());
  const guaranteed = await checkGuarantee(log, config);
  let guarantee = guaranteed;
  events.tell({ type: "guarantee", level: guarantee.level, why: guarantee.why });
  log.onReachable((isReachable) => {
    if (!opened.isClosing) events.tell({ type: "log", state: isReachable ? "reachable" : "away", detail: "" });
    if (isReachable)
      log.guarantee().then(
        (report) => {
          guarantee = report;
          events.tell({ type: "guarantee", level: report.level, why: report.why });
        },
        () => undefined,
      );
  });

  const info = await log.info();
  const store = openLmdbState(folder("state"));
  opened.add(() => store.close());
  // A log that lost its end or was replaced: the gateway comes up and says so, applies nothing and takes nothing.
  const regression = await findRegression(marks, store.head(), log, info);
  if (store.head() === null && info.first > 1 && info.last >= info.first)
    throw new GatewayError(
      "GW_LOG_MISSING",
      `the log begins at record ${info.first} and this data folder has no reader state to begin with there`,
    );
  const state = new ReaderState(regression === null ? store : emptyStore, log.epoch, info.first);
  const reader = new LogReader({
    log,
    state,
    marks,
    events,
    own: () => appender.flight,
    bufferBytesMax,
    taken: () => replicas.taken,
  });
  const policies = new Policies(
    config.rules,
    { retentionMs: config.keys.retentionMs, window: config.keys.window },
    process.env,
    (digest) => state.policy(digest),
  );
  const space = new Space(log, events, info, clock.now());
  const tailPosition = async (): Promise<number> => endOf(await log.tail());
  const keys: Keys =
    config.keys.redis === null
      ? await openLmdbKeys({
          folder: folder("keys"),
          retentionMs: config.keys.retentionMs,
          answerBytesMax: config.keys.maxAnswerBytes,
          machineBoot: machineBootId() ?? randomHex(16),
          tail: tailPosition,
        })
      : await openRedisKeys({
          url: config.keys.redis.url.reveal(),
          service: config.service,
          leaseMs: config.leaseMs,
          retentionMs: config.keys.retentionMs,
          answerBytesMax: config.keys.maxAnswerBytes,
          tail: tailPosition,
        });
  opened.add(() => keys.close());
  const { bodies, digests } = await openBeside(config, nats, folder);
  opened.add(() => bodies.close());
  opened.add(() => digests.close());
  const intents = openFileIntents({ folder: folder("intents"), boot: lock.boot, machine: machineBootId() ?? "" });
  opened.add(() => intents.close());

  const names = config.replicas.map((it) => it.name);
  const replicas = new Replicas(
    {
      onMinority: config.agreement.onMinority,
      onTie: config.agreement.onTie,
      liveMin: config.agreement.minLive,
    },
    names,
    events,
  );
  const agreement = new Agreement({
    epoch: log.epoch,
    replicas: names.length,
    digests,
    events,
    wallMs: () => clock.wallMs(),
    onMinority: (replica, position, rule) => replicas.disagrees(replica, position, rule),
    onTie: (position) => replicas.tied(position),
  });
  const appender = new Appender({
    log,
    boot: lock.boot,
    gateway: config.name,
    clock,
    events,
    rules: () => policies.digest,
    live: () => ({ names: replicas.live, primary: replicas.primary }),
    tail: () => reader.sequence,
    onRegressed: (error) => reader.fail(error),
  });
  const exposure = new Exposure(clock, config.poison.kills, (position, kills) => {
    replicas
      .skip(position, `it ended ${kills} replicas`)
      .catch((error: unknown) => events.tell({ type: "warning", about: "poison", detail: String(error) }));
  });
  opened.add(() => exposure.close());
  exposure.liveIs(() => replicas.live);
  const wakeAll = (): void => {
    for (const applier of replicas.all) applier.wake();
  };
  const firstEntry = new FirstEntry(state.entries > 0 || regression !== null, wakeAll, (sharing, error) => {
    events.tell({ type: "warning", about: "replicas", detail: `${error.code}: ${error.message}` });
    for (const name of sharing) replicas.applier(name).order("quarantined", `${error.code}: ${error.message}`);
  });
  const turn = new Turn(intents);
  const launches = new Map<string, Launch>(
    config.replicas.map((it) => [it.name, launchOf(it, config, folder("processes"), events)]),
  );
  const appliers = config.replicas.map(
    (replica) =>
      new Applier({
        settings: {
          name: replica.name,
          backendVersion: replica.version,
          url: replica.kind === "url" ? replica.url : null,
          keepsState: replica.kind === "url" || replica.state !== null,
          witness: replica.witness.map((it) => `${it.method} ${it.target}`),
          onReturn: replica.onReturn,
          firstByteMs: config.timeouts.firstByteMs,
          answerBytesMax: config.limits.answerBytes,
          concurrency: replicaConnections,
          leaseMs: config.leaseMs,
          lagMax: config.agreement.maxLag,
          health: { everyMs: config.health.everyMs, fall: config.health.fall, rise: config.health.rise },
        },
        launch: launches.get(replica.name) as Launch,
        connect: (url) =>
          createHttpBackend({
            url,
            connectMs: config.timeouts.connectMs,
            idleMs: config.timeouts.idleMs,
            connections: replicaConnections,
          }),
        pidOf: (incarnation) => pidOf(incarnation),
        checkReady: async (url, timeoutMs) => (await checkReady({ url, request: healthOf(config) }, timeoutMs)).isReady,
        log,
        reader,
        policies,
        cursors,
        marks,
        intents,
        turn,
        exposure,
        firstEntry,
        agreement,
        keys,
        bodies,
        digests,
        events,
        clock,
        randomHex,
        owner: { name: config.name, boot: lock.boot },
        formerBoots: lock.formerBoots,
        verify: (name) => replicas.verify(name),
        firstSequence: info.first,
        shutdownMs: config.timeouts.shutdownMs,
        onState: (applier, from) => replicas.changed(applier, from),
      }),
  );
  const reads = new Reads({ log, reader, appender, replicas, clock, queueWaitMs: config.limits.queueWaitMs });
  const once = new Once({
    epoch: log.epoch,
    reads,
    appender,
    events,
    firstByteMs: config.timeouts.firstByteMs,
    idleMs: config.timeouts.idleMs,
    inlineBytes: config.limits.inlineBytes,
    answerBytesMax: config.limits.answerBytes,
  });
  let otherRules: string | null = null;
  const control = new GatewayControl({
    service: config.service,
    name: config.name,
    boot: lock.boot,
    version,
    dataFolder: config.data,
    log,
    keys,
    reader,
    policies,
    appender,
    agreement,
    replicas,
    space,
    events,
    clock,
    guarantee: () => guarantee,
    rulesMismatch: () => otherRules,
    isMismatchRefused: config.rulesMismatch === "refuse",
  });
  replicas.onChange(() => exposure.leftAll(replicas.live));
  replicas.join(appliers, agreement, appender, reader, (reason) => void control.pause(reason));
  exposure.onOpened(wakeAll);

  // Before any applier: the fold is complete up to the tail, so that every skip is known and no former duplicate is applied.
  reader.onFolded((folded) => {
    const { rules, live: named } = folded.header;
    const live = named.filter((name) => replicas.live.includes(name));
    for (const { position, item, fate } of folded.items)
      if (item.kind === "entry" && fate.kind === "applied" && !folded.isDropped && isServing)
        agreement.expect(position, item, policies.rule(rules, item.rule), rules, live);
    if (!folded.isDropped && folded.header.producer !== lock.boot && isServing)
      otherRules = folded.header.rules === policies.digest ? null : folded.header.rules;
    appender.folded(folded);
    replicas.folded(folded);
  });
  let isServing = false;
  if (regression === null) reader.start(stop.signal);
  else reader.fail(regression);
  opened.add(async () => {
    stop.abort();
    await reader.close();
  });
  if (regression === null) await reader.reached(info.last);
  isServing = true;
  if (regression === null && state.policy(policies.digest) === null)
    await Promise.all(
      rulesItems(policies.text, Math.min(256 * 1024, Math.floor(log.recordBytesMax / 2))).map((item) =>
        appender.place(item),
      ),
    );

  if (regression === null && state.entries === 0) {
    const report = findSharedState(config.replicas) ?? (await compareAtStart(config.replicas));
    if (report instanceof GatewayError) throw report;
    if (report !== null) events.tell({ type: "warning", about: "first start", detail: report });
  }

  const intake = new Intake({
    service: config.service,
    epoch: log.epoch,
    boot: lock.boot,
    policies,
    reader,
    appender,
    agreement,
    replicas,
    reads,
    once,
    keys,
    bodies,
    events,
    clock,
    randomHex,
    limits: {
      bodyBytes: config.limits.bodyBytes,
      inlineBytes: config.limits.inlineBytes,
      queueWaitMs: config.limits.queueWaitMs,
      firstByteMs: config.timeouts.firstByteMs,
      lagMax: config.agreement.maxLag,
    },
    onRunning: config.keys.onRunning,
    caller: config.keys.caller,
    refusal: () => control.refusal(),
    // The front has seen to the fields already: what is left can be wrong with the request line alone.
    whyUnsendable: (entry) => whyUnsendable(entry.method, entry.target, [], entry.trailers),
  });
  const metrics = createMetrics({
    events,
    status: () => control.status(),
    rules: config.rules.rules.map((it) => it.name),
    replicas: names,
    version,
  });
  const admin = createAdmin({
    listen: config.admin.listen,
    token: config.admin.token,
    control,
    metrics,
    events,
    openMetrics: config.admin.metrics === "open",
  });
  opened.add(() => admin.close());
  const adminUrl = await admin.listen();
  const front = createFront({
    listen: config.listen,
    service: intake,
    limits: { bodyBytes: config.limits.bodyBytes, inFlight: config.limits.inFlight },
    timeouts: { idleMs: config.timeouts.idleMs, shutdownMs: config.timeouts.shutdownMs },
    encodedSlash: config.paths.encodedSlash,
    trustedProxies: config.trustedProxies,
    events,
    clock,
  });
  opened.add(() => front.close());

  // Requests come in from here on. Before the first replica is live they are told so; before the witnesses are compared nothing is sent.
  await front.start();

  const ending = new AbortController();
  const lives = Promise.all(regression === null ? appliers.map((it) => it.run(ending.signal)) : []);
  const measuring = setInterval(() => {
    const now = clock.now();
    void space.measure(now);
    replicas.measure(now);
  }, 1000).unref();
  // What former processes noted is needed until every replica's cursor names us.
  void lives.catch(() => undefined);
  const forgetting = setInterval(() => {
    if (appliers.every((it) => it.cursor?.owner?.boot === lock.boot)) {
      intents.forgetFormer();
      clearInterval(forgetting);
    }
  }, 1000).unref();
  if (regression === null) await firstLive(replicas, config, (ms) => clock.sleep(ms));
  if (!firstEntry.isOpen) {
    const report = await firstEntry.begin(replicas.liveAppliers());
    if (report instanceof GatewayError) {
      ending.abort();
      await lives;
      throw report;
    }
    if (report !== null) events.tell({ type: "warning", about: "first start", detail: report });
  }
  events.tell({ type: "gateway", state: "ready", detail: `front ${front.address.url}, admin ${adminUrl}` });

  let stopped: Promise<void> | null = null;
  const stopInOrder = async (): Promise<void> => {
    events.tell({ type: "gateway", state: "stopping", detail: "" });
    control.stopping();
    // Unready first, so that balancers look away before connections are refused.
    if (config.timeouts.shutdownDelayMs > 0) await clock.sleep(config.timeouts.shutdownDelayMs);
    // No new requests; those in flight get their answers while log and replicas still run.
    await front.drain();
    await appender.close(5000);
    // Replicas finish what was sent and write clean cursors; managed backends are stopped.
    ending.abort();
    await lives;
    clearInterval(measuring);
    clearInterval(forgetting);
    await agreement.close();
    await opened.close();
    events.tell({ type: "gateway", state: "stopped", detail: "" });
  };
  return {
    front: front.address.url,
    admin: adminUrl,
    control,
    stop: () => (stopped ??= stopInOrder()),
  };
}

async function openServer(config: Config, opened: Opened, signal: AbortSignal): Promise<Nats> {
  const { servers, credentialsFile, tls } = config.log.nats as NonNullable<Config["log"]["nats"]>;
  const nats = await openNats(
    {
      servers,
      name: `${config.service}/${config.name}`,
      ...(credentialsFile === null ? {} : { credentialsFile }),
      ...(tls === null ? {} : { tls }),
    },
    signal,
  );
  opened.add(() => nats.close());
  return nats;
}

const natsReplicas = (config: Config): number => config.log.nats?.replicas ?? 1;

/** The log; created only when nobody ever knew of one, or a person says so. */
async function openLog(
  config: Config,
  nats: Nats | null,
  cursors: Cursors,
  marks: MarksFile,
  isNewLog: boolean,
  folder: (name: string) => string,
): Promise<Log> {
  const open = (create: LogCreation | null): Promise<Log | null> =>
    nats === null
      ? openLmdbLog({ folder: folder("log"), maxBytes: config.log.maxBytes, create })
      : openJetStreamLog({
          nats,
          service: config.service,
          replicas: natsReplicas(config),
          maxBytes: config.log.maxBytes,
          monitor: config.log.nats?.monitor ?? [],
          create,
        });
  const found = await open(null);
  if (found !== null) return found;
  const known = await cursors.list();
  const isKnown = marks.current !== null || known.length > 0;
  if (isKnown && !isNewLog)
    throw new GatewayError(
      "GW_LOG_MISSING",
      `the log of ${config.service} is missing, but ${marks.current === null ? `cursors of ${known.join(", ")} are there` : `this gateway has read it up to record ${marks.current.sequence}`}: bring it back, or begin anew with --new-log`,
    );
  let firstSequence = 1;
  if (isKnown) {
    firstSequence = (marks.current?.sequence ?? 0) + 1;
    for (const name of known)
      firstSequence = Math.max(firstSequence, Math.floor(((await cursors.load(name))?.cursor.bound ?? 0) / 4096) + 1);
  }
  const created = await open({ epoch: randomHex(8), firstSequence });
  if (created === null) throw new GatewayError("GW_LOG_MISSING", "the log could not be created");
  if (isKnown) {
    await beginAnew(cursors, known, created.epoch, firstSequence);
    marks.reset();
    rmSync(join(config.data, "state"), { recursive: true, force: true });
  }
  return created;
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

async function checkGuarantee(log: Log, config: Config): Promise<GuaranteeReport> {
  const report = await log.guarantee();
  if (guarantees.indexOf(report.level) < guarantees.indexOf(config.log.minGuarantee))
    throw new GatewayError(
      "GW_GUARANTEE_TOO_LOW",
      `log.minGuarantee is ${config.log.minGuarantee}, the log gives ${report.level}: ${report.why}`,
    );
  return report;
}

/** How the log contradicts what this data folder knows of it; null: it does not, as far as can be seen before reading. */
async function findRegression(
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
const emptyStore: StateStore = {
  head: () => null,
  key: () => null,
  oldestKeys: () => [],
  exceptions: () => [],
  skips: () => [],
  commit: () => Promise.resolve(),
  close: () => Promise.resolve(),
};

async function openBeside(
  config: Config,
  nats: Nats | null,
  folder: (name: string) => string,
): Promise<{ bodies: Bodies; digests: Digests }> {
  if (nats === null)
    return {
      bodies: await openLmdbBodies({ folder: folder("bodies"), maxBytes: config.log.maxBytes }),
      digests: await openLmdbDigests({ folder: folder("digests") }),
    };
  const shared = { nats, service: config.service, replicas: natsReplicas(config), maxBytes: config.log.maxBytes };
  return { bodies: await openJetStreamBodies(shared), digests: await openJetStreamDigests(shared) };
}

const healthOf = (config: Config): { method: string; path: string } | null =>
  config.health.request === null ? null : { method: config.health.request.method, path: config.health.request.target };

function launchOf(replica: ReplicaConfig, config: Config, recordsFolder: string, events: Events): Launch {
  if (replica.kind === "url")
    return createStaticLaunch({
      url: replica.url,
      name: replica.name,
      ready: healthOf(config),
      ...(replica.state === null ? {} : { state: replica.state }),
      ...(replica.stop === null ? {} : { stop: replica.stop }),
      ...(replica.start === null ? {} : { start: replica.start }),
    });
  return createProcessLaunch({
    name: replica.name,
    command: replica.command,
    cwd: replica.cwd,
    env: replica.env,
    stateFolder: replica.state ?? join(config.data, "replicas", replica.name),
    ready: replica.ready === null ? healthOf(config) : { method: replica.ready.method, path: replica.ready.target },
    recordsFolder,
    onOutput: (line, stream) => events.tell({ type: "output", replica: replica.name, stream, line }),
    ...(replica.seed === null ? {} : { seed: replica.seed }),
  });
}

/** The second part of a process's incarnation. */
function pidOf(incarnation: string): number | null {
  const pid = Number(incarnation.split(":")[1]);
  return Number.isInteger(pid) && pid > 0 ? pid : null;
}

/** A start that can serve at once says so at once; one whose backends are away does not wait for them. */
async function firstLive(replicas: Replicas, config: Config, sleep: (ms: number) => Promise<void>): Promise<void> {
  for (let waited = 0; waited < firstLiveMs && replicas.live.length < config.replicas.length; waited += 20)
    await sleep(20);
}
const firstLiveMs = 3000;
