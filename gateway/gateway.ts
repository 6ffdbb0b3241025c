// The composition root: opens everything in order, joins the pieces, and closes them in the reverse order, with reasons.

import { settleReplacement } from "../recorder/capture/folder.ts";
import { Agreement } from "./agreement.ts";
import { Appender } from "./appender.ts";
import { Applier } from "./applier.ts";
import type { Backend } from "./backend/backend.ts";
import { createHttpBackend } from "./backend/http.ts";
import { whyUnsendable } from "./backend/sendable.ts";
import { systemClock } from "./clock.ts";
import type { Config } from "./config.ts";
import { GatewayControl } from "./control.ts";
import { Copies, healthOf } from "./copies.ts";
import type { Credential } from "./drivers/certificates.ts";
import { dial } from "./drivers/dial.ts";
import { endOf } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import { Exposure } from "./exposure.ts";
import { Election } from "./election.ts";
import { FirstEntry } from "./firstentry.ts";
import { Fleet } from "./fleet.ts";
import { parseNewReplica } from "./config/newreplica.ts";
import { compareAtStart, findSharedState } from "./firststart.ts";
import {
  checkGuarantee,
  emptyStore,
  findRegression,
  Opened,
  openBeside,
  openGround,
  openLog,
  openState,
  randomHex,
} from "./foundation.ts";
import { Intake } from "./intake.ts";
import { openFileIntents } from "./intents/file.ts";
import { openLmdbKeys } from "./keys/lmdb.ts";
import type { Keys } from "./keys/keys.ts";
import { limitedLog } from "./log/limited.ts";
import { openRedisKeys } from "./keys/redis.ts";
import { machineBootId } from "./launch/proc.ts";
import { checkReady } from "./launch/ready.ts";
import { Once } from "./once.ts";
import { Operations } from "./operations.ts";
import { Owners } from "./owners.ts";
import { alone } from "./peers/alone.ts";
import { openNatsPeers } from "./peers/nats.ts";
import { Policies } from "./policies.ts";
import { LogReader } from "./reader.ts";
import { Reads } from "./reads.ts";
import { Recording } from "./recording.ts";
import { Replicas } from "./replicas.ts";
import { costOfRest, Rest } from "./rest.ts";
import { Roster } from "./roster.ts";
import { createAdmin } from "./server/admin.ts";
import { createFront } from "./server/front.ts";
import type { FrontTls } from "./server/lifecycle.ts";
import { createMetrics } from "./server/metrics.ts";
import { Space } from "./space.ts";
import { ReaderState, rulesItems } from "./state/state.ts";
import type { Control } from "./status.ts";
import { Turn } from "./turn.ts";
import { finishTurn } from "./turnback.ts";

export interface RunningGateway {
  /** URLs with the real ports; null: it is no front. */
  readonly front: string | null;
  readonly admin: string;
  readonly control: Control;
  /** Files of certificates are read again at once, and not only within seconds. */
  renew(): Promise<void>;
  stop(): Promise<void>;
}

export interface StartParts {
  readonly events: Events;
  /** A person decided that a lost log is begun anew. */
  readonly isNewLog: boolean;
  readonly version: string;
  /** The log is read up to this record, and not written; absent: all of it. */
  readonly lastSequence?: number;
  /** Gives the start up while it waits for a server. */
  readonly signal?: AbortSignal;
  /** For `gateway recover`: every copy is this process's to feed. */
  readonly isRecovery?: boolean;
}

/** Decoded records kept for appliers. */
const bufferBytesMax = 64 * 1024 * 1024;
const replicaConnections = 256;

/** Resolves when the front takes requests; replicas may still be on their way. Rejects with a GatewayError that says what to mend. */
export async function startGateway(config: Config, parts: StartParts): Promise<RunningGateway> {
  const opened = new Opened();
  try {
    return await serve(await assemble(config, parts, opened), parts.version);
  } catch (error) {
    parts.events.tell({ type: "gateway", state: "stopping", detail: "the start failed" });
    await opened.close();
    throw error;
  }
}

/** Everything but its edges: joined, read up to the log's end, and not yet running. */
export type Assembly = Awaited<ReturnType<typeof assemble>>;

export async function assemble(
  config: Config,
  { events, isNewLog, version, lastSequence, isRecovery = false, signal }: StartParts,
  opened: Opened,
) {
  const clock = systemClock;
  events.tell({ type: "gateway", state: "starting", detail: `service ${config.service}, gateway ${config.name}` });
  const ground = await openGround(config, events, opened, true, signal);
  const { certificates, cursors, folder, lock, marks, stop, upstream } = ground;
  const upstreamTls = upstream === null ? null : { tls: () => upstream.context };
  const roster = await Roster.open(ground.board, config);
  for (const difference of roster.differences())
    events.tell({
      type: "warning",
      about: "roster",
      detail: `${difference}: gateway replica sync makes the roster what the file says`,
    });
  // Where several gateways may be, one records: it must feed a live copy whose state can be reached.
  const election =
    ground.nats === null || !config.roles.includes("recorder")
      ? null
      : new Election({
          board: ground.board,
          name: config.name,
          boot: lock.boot,
          leaseMs: config.leaseMs,
          clock,
          isAble: () => recording.isAble,
        });
  const recording = new Recording({
    config,
    events,
    clock,
    folder,
    leads: () => (ground.nats === null ? true : (election?.leads ?? false)),
    holder: () => election?.holder ?? null,
  });
  opened.add(() => recording.close());
  if (await finishTurn(config, ground))
    events.tell({
      type: "warning",
      about: "log",
      detail:
        "gateway recover --to had been cut off at its very end, with all copies where they should be: it is finished now",
    });
  const whole = await openLog(config, ground, isNewLog, () => recording.knows());
  const log = lastSequence === undefined ? whole : limitedLog(whole, lastSequence);
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

  const before = await log.info();
  const store = await openState(ground, before, log);
  opened.add(() => store.close());
  const info = await log.info();
  // A log that lost its end or was replaced: the gateway comes up and says so, applies nothing and takes nothing.
  const regression = await findRegression(marks, store.head(), log, info);
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
  const redisFiles = config.keys.redis?.tls ?? null;
  const redisTls = redisFiles === null ? null : await certificates.open("keys.redis.tls", redisFiles);
  const keys: Keys & { readonly warnings: readonly string[] } =
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
          ...(redisTls === null ? null : { tls: () => redisTls.context }),
          service: config.service,
          leaseMs: config.leaseMs,
          retentionMs: config.keys.retentionMs,
          answerBytesMax: config.keys.maxAnswerBytes,
          tail: tailPosition,
        });
  opened.add(() => keys.close());
  for (const detail of keys.warnings) events.tell({ type: "warning", about: "keys", detail });
  const { bodies, digests } = await openBeside(config, ground);
  opened.add(() => bodies.close());
  opened.add(() => digests.close());
  const intents = openFileIntents({ folder: folder("intents"), boot: lock.boot, machine: machineBootId() ?? "" });
  opened.add(() => intents.close());

  const replicas = new Replicas(
    {
      onMinority: config.agreement.onMinority,
      onTie: config.agreement.onTie,
      liveMin: config.agreement.minLive,
    },
    events,
  );
  const agreement = new Agreement({
    epoch: log.epoch,
    replicas: () => replicas.all.length,
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
  const exposure = new Exposure(clock, config.poison.kills, (position, kills) => void park(position, kills));
  // Ends when it is in the log, or with the gateway: an entry that ends replicas is sent to none of them meanwhile.
  const park = async (position: number, kills: number): Promise<void> => {
    for (; !stop.signal.aborted; await clock.sleep(1000, stop.signal))
      try {
        await replicas.skip(position, `it ended ${kills} replicas`);
        return;
      } catch (error) {
        events.tell({ type: "warning", about: "poison", detail: String(error) });
      }
  };
  opened.add(() => exposure.close());
  exposure.liveIs(() => replicas.live);
  exposure.finishedIs((position) => replicas.all.some((it) => it.applied >= position));
  exposure.elsewhereIs((name) => replicas.liveReplicas().some((it) => it.name === name && !it.isOwn));
  const connect = (url: string): Backend =>
    createHttpBackend({
      url,
      connectMs: config.timeouts.connectMs,
      idleMs: config.timeouts.idleMs,
      connections: replicaConnections,
      ...upstreamTls,
    });
  const { nats } = ground;
  const peers = nats === null ? alone : openNatsPeers({ nats, service: config.service, boot: lock.boot });
  opened.add(() => peers.close());
  const fleet =
    nats === null
      ? null
      : new Fleet({
          peers,
          name: config.name,
          boot: lock.boot,
          roles: config.roles,
          rules: () => policies.digest,
          keys: keys.kind,
          replicas,
          agreement,
          exposure,
          clock,
          events,
          connect,
          entries: () => state.entries,
          onOrder: (name, action, reason) => control.replica(name, action, reason),
        });
  opened.add(() => fleet?.close());
  const wakeAll = (): void => {
    for (const applier of replicas.own) applier.wake();
  };
  const firstEntry = new FirstEntry(state.entries > 0 || regression !== null, wakeAll, (sharing, error) => {
    events.tell({ type: "warning", about: "replicas", detail: `${error.code}: ${error.message}` });
    for (const name of sharing) replicas.applier(name).order("quarantined", `${error.code}: ${error.message}`);
  });
  const turn = new Turn(intents);
  const rest = new Rest({
    clock,
    members: () => replicas.own,
    isNeeded: () =>
      replicas.liveReplicas().every((it) => it.isOwn) && !copies.configured.some((it) => copies.isReplaceable(it.name)),
  });
  // A restore that a crash cut off between its two renames: the former state comes back before anybody looks at the folder.
  for (const { kind, state: place } of roster.here)
    if (kind !== "container" && place !== null) await settleReplacement(place);
  const copies = new Copies({
    config,
    events,
    replicas,
    roster,
    folder,
    upstream,
    applierOf: (replica, launch) =>
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
          beforeBytesMax: config.limits.inlineBytes,
          concurrency: replicaConnections,
          leaseMs: config.leaseMs,
          lagMax: config.agreement.maxLag,
          health: { everyMs: config.health.everyMs, fall: config.health.fall, rise: config.health.rise },
        },
        launch,
        connect,
        pidOf: (incarnation) => pidOf(incarnation),
        checkReady: async (url, timeoutMs) =>
          (await checkReady({ url, request: healthOf(config), ...upstreamTls }, timeoutMs)).isReady,
        log,
        reader,
        policies,
        cursors,
        marks,
        intents,
        turn,
        exposure,
        firstEntry,
        rest,
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
        onState: (applier, from) => {
          replicas.changed(applier, from);
          fleet?.hello();
        },
        onMoved: () => fleet?.moved(),
        deliver: (producer, answer) => fleet?.courier.deliver(producer, answer),
        survived: (name, position, rule, tookMs) => fleet?.survived(name, position, rule, tookMs),
        died: (name, positions) => fleet?.died(name, positions),
        heardRevision: (name, revision) => fleet?.heardRevision(name, revision) ?? null,
      }),
  });
  if (fleet === null || isRecovery) copies.createAll();
  replicas.arrange(roster.all.map((it) => it.name));
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
    rulesMismatch: () => fleet?.otherRules ?? otherRules,
    isMismatchRefused: config.rulesMismatch === "refuse",
    bases: ground.bases,
    operations: new Operations(clock, randomHex),
    remembers: recording,
    roster: copies,
    orderElsewhere: fleet === null ? null : (name, action, reason) => fleet.order(name, action, reason),
  });
  replicas.onChange(() => exposure.leftAll(replicas.live));
  replicas.onChange(() => rest.changed());
  replicas.join(agreement, appender, reader, (reason) => void control.pause(reason));
  exposure.onOpened(wakeAll);

  // Before any applier: the fold is complete up to the tail, so that every skip is known and no former duplicate is applied.
  reader.onFolded((folded) => {
    const { producer, rules, live: named } = folded.header;
    // Whoever appended an entry gathers its answers; of one that is gone, each gateway gathers those of its own replicas.
    const isOurs = producer === lock.boot;
    if (isServing && (isOurs || fleet?.isThere(producer) !== true)) {
      const from = isOurs ? replicas.live : replicas.liveAppliers().map((it) => it.name);
      const live = named.filter((name) => from.includes(name));
      for (const { position, item, fate } of folded.items)
        if (item.kind === "entry" && fate.kind === "applied" && !folded.isDropped)
          agreement.expect(position, item, policies.rule(rules, item.rule), rules, live);
    }
    if (!folded.isDropped && !isOurs && isServing) otherRules = rules === policies.digest ? null : rules;
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
  if (state.entries > 0) firstEntry.isPast();
  isServing = true;
  return {
    config,
    opened,
    events,
    clock,
    ground,
    log,
    keys,
    bodies,
    digests,
    intents,
    store,
    reader,
    policies,
    appender,
    agreement,
    replicas,
    copies,
    reads,
    once,
    space,
    firstEntry,
    control,
    recording,
    regression,
    fleet,
    roster,
    election,
  };
}

async function serve(assembly: Assembly, version: string): Promise<RunningGateway> {
  const { config, opened, events, clock, ground, log, keys, bodies, digests, intents, store, reader } = assembly;
  const { policies, appender, agreement, replicas, copies, reads, once, space, firstEntry, control } = assembly;
  const { election, fleet, recording, regression, roster } = assembly;
  const { certificates, lock, upstream } = ground;
  const { state } = reader;
  if (regression === null && state.policy(policies.digest) === null)
    await Promise.all(
      rulesItems(policies.text, Math.min(256 * 1024, Math.floor(log.recordBytesMax / 2))).map((item) =>
        appender.place(item),
      ),
    );

  if (regression === null && state.entries === 0) {
    const report = findSharedState(copies.configured) ?? (await compareAtStart(copies.configured));
    if (report instanceof GatewayError) throw report;
    if (report !== null) events.tell({ type: "warning", about: "first start", detail: report });
  }

  await fleet?.start();
  const cost = copies.configured.some((it) => copies.isReplaceable(it.name))
    ? null
    : costOfRest(copies.configured.length, config.rules);
  if (cost !== null) events.tell({ type: "warning", about: "replicas", detail: cost });

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
    replicas: roster.all.map((it) => it.name),
    certificates: () => certificates.status,
    version,
  });
  const admin = createAdmin({
    listen: config.admin.listen,
    token: config.admin.token,
    control,
    metrics,
    events,
    openMetrics: config.admin.metrics === "open",
    readReplica: (body) =>
      parseNewReplica(body, {
        own: [config.listen, ...(isFront ? [front.address] : []), config.admin.listen],
        mayRunPrograms: config.admin.token !== null,
      }),
  });
  opened.add(() => admin.close());
  const adminUrl = await admin.listen();
  const shown = config.tls === null ? null : await certificates.open("tls", config.tls);
  const front = createFront({
    listen: config.listen,
    ...(shown === null ? null : { tls: frontTls(shown) }),
    dial: (url) => dial(url, upstream === null ? undefined : () => upstream.context),
    service: intake,
    limits: { bodyBytes: config.limits.bodyBytes, inFlight: config.limits.inFlight },
    timeouts: { idleMs: config.timeouts.idleMs, shutdownMs: config.timeouts.shutdownMs },
    encodedSlash: config.paths.encodedSlash,
    trustedProxies: config.trustedProxies,
    events,
    clock,
  });
  opened.add(() => front.close());
  shown?.onChange(() => front.renew(frontTls(shown)));

  // Requests come in from here on. Before the first replica is live they are told so; before the witnesses are compared nothing is sent.
  const isFront = config.roles.includes("front");
  if (isFront) await front.start();
  const frontUrl = isFront ? front.address.url : null;

  const owners =
    fleet === null || regression !== null
      ? null
      : new Owners({
          fleet,
          feeding: copies,
          replicas,
          name: config.name,
          boot: lock.boot,
          roles: config.roles,
          clock,
          formerlyOurs: async () => {
            const names = copies.configured.map((it) => it.name);
            const stored = await Promise.all(names.map((name) => ground.cursors.load(name)));
            return names.filter((_, at) => lock.formerBoots.has(stored[at]?.cursor.owner?.boot ?? ""));
          },
        });
  owners?.start();
  // What another gateway was told of the copies is found here within moments.
  const following = fleet === null ? null : setInterval(() => void followRoster(roster, copies, events), 1000).unref();
  if (owners === null && regression === null) copies.run();
  const measuring = setInterval(() => {
    const now = clock.now();
    void space.measure(now);
    replicas.measure(now);
  }, 1000).unref();
  // What former processes noted is needed until every replica's cursor names us.
  const forgetting = setInterval(() => {
    if (replicas.own.length > 0 && replicas.own.every((it) => it.cursor?.owner?.boot === lock.boot)) {
      intents.forgetFormer();
      clearInterval(forgetting);
    }
  }, 1000).unref();
  if (regression === null) await firstLive(replicas, config, (ms) => clock.sleep(ms));
  if (!firstEntry.isOpen) {
    const report = await firstEntry.begin(replicas.liveAppliers());
    if (report instanceof GatewayError) {
      await copies.end();
      throw report;
    }
    if (report !== null) events.tell({ type: "warning", about: "first start", detail: report });
  }
  if (regression === null)
    recording.start({
      copies,
      replicas,
      reader,
      policies,
      space,
      log,
      bases: ground.bases,
      digests,
      bodies,
      state: store,
    });
  election?.start();
  events.tell({ type: "gateway", state: "ready", detail: `front ${frontUrl ?? "none"}, admin ${adminUrl}` });

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
    await election?.close();
    await recording.close();
    await owners?.close();
    await copies.end();
    fleet?.leave();
    if (following !== null) clearInterval(following);
    clearInterval(measuring);
    clearInterval(forgetting);
    await agreement.close();
    await opened.close();
    events.tell({ type: "gateway", state: "stopped", detail: "" });
  };
  return {
    front: frontUrl,
    admin: adminUrl,
    control,
    renew: () => certificates.look(),
    stop: () => (stopped ??= stopInOrder()),
  };
}

function frontTls({ parts: { ca, cert = "", key = "" } }: Credential): FrontTls {
  return { cert, key, ...(ca === undefined ? null : { clientCa: ca }) };
}

/** The second part of a process's incarnation. */
function pidOf(incarnation: string): number | null {
  const pid = Number(incarnation.split(":")[1]);
  return Number.isInteger(pid) && pid > 0 ? pid : null;
}

async function followRoster(roster: Roster, copies: Copies, events: Events): Promise<void> {
  try {
    if (await roster.refresh()) await copies.follow();
  } catch (error) {
    // Away with the log, which says so itself; anything else is news.
    if (error instanceof GatewayError && error.code === "GW_LOG_UNAVAILABLE") return;
    events.tell({ type: "warning", about: "roster", detail: error instanceof Error ? error.message : String(error) });
  }
}

/** A start that can serve at once says so at once; one whose backends are away does not wait for them. */
async function firstLive(replicas: Replicas, config: Config, sleep: (ms: number) => Promise<void>): Promise<void> {
  for (let waited = 0; waited < firstLiveMs && replicas.live.length < config.replicas.length; waited += 20)
    await sleep(20);
}
const firstLiveMs = 3000;
