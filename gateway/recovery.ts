// `gateway recover`: the service, or one copy of it, from a verified snapshot and the log after it, without a gateway that runs. Law: recoverplan.ts.
//
// The copies are rebuilt by the same code as in a running gateway, which is started here without its edges. Before that, what a gateway needs is put in
// its place: cursors that say "restoring", and where the log is lost a new one above everything that was ever seen, with the snapshot's reader state at
// its beginning. Each of these steps may be cut off and done again.

import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Line, Version } from "../recorder/line.ts";
import type { Manifest } from "../recorder/manifest.ts";
import { readOrigin, writeOrigin } from "../recorder/origin.ts";
import { keyRowsOf } from "../recorder/recorder.ts";
import type { Published } from "../recorder/registry/registry.ts";
import { newCursor } from "./applier.ts";
import type { Former } from "./applier.ts";
import type { Config } from "./config.ts";
import { isReplaceable, placeOf } from "./copies.ts";
import { CursorLostError } from "./cursors/cursors.ts";
import type { Cursor } from "./cursors/cursors.ts";
import { endOf, sequenceOf } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import { Events } from "./events.ts";
import type { Ground } from "./foundation.ts";
import { firstAbove, Opened, openLogOf, randomHex, within } from "./foundation.ts";
import { assemble } from "./gateway.ts";
import type { Log } from "./log/log.ts";
import type { Reporter } from "./operations.ts";
import { decodeRecord } from "./record.ts";
import type { Memory } from "./recording.ts";
import { openMemory } from "./recording.ts";
import { Roster } from "./roster.ts";
import type { RecoveryPlan, RecoveryRequest, RecoveryResult, RecoveryRun, RegistryFacts } from "./recoverplan.ts";
import type { Marks } from "./state/marks.ts";
import { openLmdbState } from "./state/lmdb.ts";
import type { StateHead } from "./state/store.ts";
import { reborn } from "./state/store.ts";
import { beginTurn, finishTurn, lastRecordFor } from "./turnback.ts";

export { planAdoption, runAdoption } from "./adoption.ts";

// ---- plan --------------------------------------------------------------------------------------------------------------------------

export async function planRecovery(config: Config, request: RecoveryRequest): Promise<RecoveryPlan> {
  return within(config, false, async (ground, opened) => {
    // The one thing that is not only looked at: what an earlier recovery had begun, and a person had agreed to.
    const isFinished = await finishTurn(config, ground);
    // The log is another one from here on: what is asked for is where it begins, and nowhere in it.
    if (isFinished && request.to !== null)
      throw new GatewayError(
        "GW_RECOVERY_REFUSED",
        "an earlier recovery with --to, which was cut off when every copy stood there already, is finished now: start the gateway",
      );
    const memory = await openMemory(config, ground.folder);
    opened.add(() => memory.close());
    const log = await openLogOf(config, ground, null);
    if (log !== null) opened.add(() => log.close());
    const { published, trouble } = await lookUp(memory);
    if (request.to !== null && log === null)
      throw new GatewayError(
        "GW_RECOVERY_REFUSED",
        "the log is lost: there is nothing that --to could be looked up in",
      );
    const upTo = request.to === null || log === null ? null : await lastRecordFor(log, request.to);
    const candidates = await candidatesOf(memory, log, ground, published, upTo);
    if (candidates.length === 0)
      throw new GatewayError(
        "GW_SNAPSHOT_MISSING",
        `there is no snapshot of ${config.service} in ${memory.store.where}`,
      );
    const chosen = choose(candidates, request, upTo === null ? published : null, trouble);
    const { version } = chosen.candidate;
    const origin = readOrigin(ground.folder("recorder"));
    const from = log === null ? null : startIn(version, log, origin);
    const info = log === null ? null : await log.info();
    const upToLast = upTo ?? info?.last ?? 0;
    const entriesToReplay = log === null || from === null ? 0 : await entriesBetween(log, from, upToLast);
    const givenUp = log === null || upTo === null ? 0 : await entriesBetween(log, upTo, info?.last ?? 0);
    const roster = await Roster.open(ground.board, config, true);
    const replicas = roster.all.map(({ name, config: replica, gateway }) => {
      if (request.replica !== null && request.replica !== name)
        return { name, action: "keep" as const, bytes: 0, why: "not asked for" };
      if (replica === null)
        return { name, action: "keep" as const, bytes: 0, why: `gateway ${gateway} starts it, and has to recover it` };
      if (isReplaceable(replica, config, ground.folder))
        return { name, action: "restore" as const, bytes: version.treeBytes, why: "" };
      const why =
        placeOf(replica, config, ground.folder, "") === null
          ? "there is no way to its state from here"
          : "it cannot be ended from here, and its folder is not replaced under its feet: give it stop and start";
      return { name, action: "keep" as const, bytes: 0, why };
    });
    return {
      request,
      service: config.service,
      epoch: log?.epoch ?? version.epoch,
      source: published === null ? "store" : "registry",
      version: version.version,
      position: version.position,
      manifestHash: version.manifestHash,
      anchoredTo: anchoredTo(version, published, memory),
      log: {
        isPresent: log !== null,
        first: info === null ? null : endOf(info.first - 1) + 1,
        tail: info === null ? null : endOf(upToLast),
        entriesToReplay,
        upTo,
      },
      replicas,
      warnings: [
        ...warningsOf(config, ground, version, log, published, trouble),
        ...(upTo === null ? [] : givenUpWarnings(config, upTo, givenUp)),
      ],
      refused: chosen.refused ?? refusalOf(request, replicas),
      candidates: candidates.map((it) => ({
        version: it.version.version,
        position: it.version.position,
        isUsable: it.isUsable,
        why: it.why,
      })),
    };
  });
}

interface Candidate {
  readonly version: Version;
  readonly isUsable: boolean;
  readonly why: string;
}

async function lookUp({ registry }: Memory): Promise<{ published: Published | null; trouble: string | null }> {
  try {
    return { published: await registry.latest(), trouble: null };
  } catch (error) {
    return { published: null, trouble: error instanceof Error ? error.message : String(error) };
  }
}

/** Newest first. */
async function candidatesOf(
  { line, registry }: Memory,
  log: Log | null,
  ground: Ground,
  published: Published | null,
  upTo: number | null,
): Promise<readonly Candidate[]> {
  const origin = readOrigin(ground.folder("recorder"));
  const first = log === null ? 0 : (await log.info()).first;
  const judged: Candidate[] = [];
  for (const version of line.versions.toReversed()) {
    const no = (why: string): Candidate => ({ version, isUsable: false, why });
    const stands =
      published === null || version.version > published.version
        ? null
        : version.version === published.version
          ? published
          : await registry.find(version.version).catch(() => null);
    const from = log === null ? 0 : startIn(version, log, origin);
    if (stands !== null && stands.manifestHash !== version.manifestHash)
      judged.push(no(`the registry knows the manifest ${stands.manifestHash} as this version`));
    else if (from === null) judged.push(no("it was taken under another log, which this one does not go on from"));
    else if (upTo !== null && from > upTo) judged.push(no("it is younger than where the replay is to end"));
    else if (log !== null && from + 1 < first) judged.push(no(`the log begins at record ${first}, behind it`));
    else
      judged.push({
        version,
        isUsable: true,
        why: stands !== null ? "published" : published === null ? "" : "not published: the store alone vouches for it",
      });
  }
  return judged;
}

/** The record of this log that a version stands behind; null: it is of another log. */
function startIn(version: Version, log: Log, origin: ReturnType<typeof readOrigin>): number | null {
  if (version.epoch === log.epoch) return sequenceOf(version.position);
  const isOrigin = origin?.epoch === log.epoch && origin.manifestHash === version.manifestHash;
  return isOrigin ? origin.firstSequence - 1 : null;
}

function choose(
  candidates: readonly Candidate[],
  request: RecoveryRequest,
  published: Published | null,
  trouble: string | null,
): { readonly candidate: Candidate; readonly refused: string | null } {
  if (request.version !== null) {
    const named = candidates.find((it) => it.version.version === request.version);
    if (named === undefined)
      throw new GatewayError(
        "GW_SNAPSHOT_MISSING",
        `there is no snapshot of version ${request.version}; there are ${candidates.map((it) => it.version.version).join(", ")}`,
      );
    return { candidate: named, refused: named.isUsable ? null : named.why };
  }
  const usable = candidates.find((it) => it.isUsable);
  const candidate = usable ?? candidates[0];
  if (candidate === undefined) throw new GatewayError("GW_SNAPSHOT_MISSING", "there is no snapshot");
  const next = `name it to take it all the same: --version ${candidate.version.version}`;
  if (usable === undefined) return { candidate, refused: "no snapshot in the store can be used" };
  if (trouble !== null)
    return { candidate, refused: `the registry cannot be asked (${trouble}), and the store alone vouches; ${next}` };
  // A store that was rolled back offers an older state as the newest.
  if (published !== null && published.version > candidate.version.version)
    return {
      candidate,
      refused: `version ${published.version} is published and is not in the store, or cannot be used; the next older one is ${candidate.version.version}: ${next}`,
    };
  return { candidate, refused: null };
}

function refusalOf(request: RecoveryRequest, replicas: RecoveryPlan["replicas"]): string | null {
  if (request.to !== null && replicas.some((it) => it.action === "keep"))
    return "--to gives up the end of the log for all copies: each of them has to be restored";
  if (request.replica !== null && !replicas.some((it) => it.name === request.replica))
    return `there is no replica ${request.replica}; there are ${replicas.map((it) => it.name).join(", ")}`;
  return replicas.some((it) => it.action === "restore") ? null : "there is no copy whose state can be reached";
}

function anchoredTo(version: Version, published: Published | null, { registry, store }: Memory): string {
  const rest = "what came after it is vouched for by the log's own running hash";
  if (published === null || version.version > published.version)
    return `version ${version.version} at ${version.position} is vouched for by ${store.where} alone; ${rest}`;
  const where =
    registry.kind === "file"
      ? "the registry file of this machine"
      : `the contract ${registry.contract ?? ""} on chain ${registry.chainId ?? ""}`;
  return `up to position ${published.position} the state is anchored in ${where} (version ${published.version}); ${rest}`;
}

function warningsOf(
  config: Config,
  ground: Ground,
  version: Version,
  log: Log | null,
  published: Published | null,
  trouble: string | null,
): readonly string[] {
  const warnings: string[] = [];
  if (log === null && config.keys.redis !== null)
    warnings.push(
      "if Redis still holds answers to requests that are lost, they are given again: empty it (FLUSHDB) first",
    );
  if (log === null)
    warnings.push(
      `the log of ${config.service} is lost: everything after position ${version.position} (${new Date(version.logTimeMs).toISOString()}) is missing, and a new log begins above every position ever seen`,
    );
  if (published === null && trouble === null)
    warnings.push("nothing is published of this service: only the store vouches for what is restored");
  if (trouble !== null) warnings.push(`the registry cannot be asked: ${trouble}`);
  const seen = ground.marks.current;
  if (log !== null && seen !== null && seen.sequence > 0 && seen.epoch !== log.epoch)
    warnings.push(`this machine knows a log of epoch ${seen.epoch}; the one that is there has epoch ${log.epoch}`);
  return warnings;
}

function givenUpWarnings(config: Config, upTo: number, entries: number): readonly string[] {
  const kept =
    config.log.nats === null
      ? "they are kept in a folder beside the new log"
      : "the stream is made anew, and they are gone";
  const warnings = [`${entries} entries after position ${endOf(upTo)} are given up for good; ${kept}`];
  if (config.keys.redis !== null)
    warnings.push(
      "Redis still holds answers to requests that are given up: empty it (FLUSHDB) before the gateway starts",
    );
  return warnings;
}

/** Entries of the records after one, up to another. */
async function entriesBetween(log: Log, after: number, last: number): Promise<number> {
  let entries = 0;
  if (after >= last) return 0;
  const stop = new AbortController();
  for await (const record of log.read(after + 1, stop.signal)) {
    for (const item of decodeRecord(record.bytes, record.sequence).items) if (item.kind === "entry") entries++;
    if (record.sequence >= last) break;
  }
  stop.abort();
  return entries;
}

// ---- run ---------------------------------------------------------------------------------------------------------------------------

export async function runRecovery(config: Config, plan: RecoveryPlan, run: RecoveryRun): Promise<RecoveryResult> {
  const begunMs = performance.now();
  const names = plan.replicas.filter((it) => it.action === "restore").map((it) => it.name);
  const { isLogLost, seen } = await within(config, true, (ground, opened) => prepare(config, plan, ground, opened));
  const { upTo } = plan.log;
  const events = new Events();
  const opened = new Opened();
  const result = { replicas: [] as { name: string; state: string }[], verified: 0, unverified: 0 };
  const differing: string[] = [];
  try {
    const lastSequence = upTo === null ? {} : { lastSequence: upTo };
    const assembly = await assemble(
      config,
      { events, isNewLog: false, version: "", isRecovery: true, ...lastSequence },
      opened,
    );
    const { agreement, appender, bodies, copies, digests, ground, log, policies } = assembly;
    const { reader, recording, regression, replicas, space, store } = assembly;
    if (regression !== null) throw regression;
    const subjects = {
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
    };
    const { rebuilder } = await recording.open(subjects, plan.request.isOtherImageAllowed);
    const giveUp = (): void => void rebuilder.close();
    run.signal.addEventListener("abort", giveUp, { once: true });
    try {
      // All that can be looked at beforehand: refused, the copies are as they were, and a gateway starts with them as before.
      for (const name of names)
        await rebuilder.examine(name, plan.version).catch((error: unknown) => {
          ground.marks.restore(seen);
          throw error;
        });
      const { first } = await log.info();
      const mark = (name: string): Promise<Former | null> =>
        markRestoring(name, ground, log, endOf(first - 1), plan.version);
      // No cursor of a lost log fits the new one: a gateway that is started before the end must find none of them.
      if (isLogLost) for (const name of names) await mark(name);
      for (const name of names) {
        run.signal.throwIfAborted();
        // One after the other: where the first cannot be brought back, the rest are as they were, and it as well.
        const former = isLogLost ? null : await mark(name);
        copies.run([name]);
        const rebuilding = rebuilder.rebuild(name, plan.version, reporterOf(name, run), former ?? undefined);
        const rebuilt = await rebuilding.catch((error: unknown) => {
          if (!(error instanceof GatewayError) || error.code !== "GW_REPLAY_DIFFERS") throw error;
          differing.push(`${name}: ${error.message}`);
          return null;
        });
        result.verified += rebuilt?.equal ?? 0;
        result.unverified += rebuilt?.unverified ?? 0;
        // One that answered otherwise tells that all of them would.
        if (rebuilt === null) break;
      }
      result.replicas.push(...replicas.all.map(({ name, state }) => ({ name, state })));
    } finally {
      run.signal.removeEventListener("abort", giveUp);
      await recording.close();
      await appender.close(1000);
      await copies.end();
      await agreement.close();
    }
    const position = endOf(reader.sequence);
    const isSound = differing.length === 0 && result.replicas.every((it) => it.state === "live");
    await opened.close();
    // Every copy stands there: only now is the rest given up.
    if (upTo !== null && isSound)
      await within(config, true, async (ground) => {
        await beginTurn(config, ground, upTo);
        await finishTurn(config, ground);
      });
    return {
      ...result,
      position,
      differing,
      missing: isLogLost ? `everything after position ${plan.position}: the log was lost with it` : null,
      tookMs: performance.now() - begunMs,
    };
  } finally {
    await opened.close();
  }
}

function reporterOf(replica: string, { onProgress }: RecoveryRun): Reporter {
  let step = "";
  return {
    step: (text) => {
      step = text;
      onProgress({ step, replica, done: 0, total: 0, unit: "bytes" });
    },
    progress: (done, total, unit) => onProgress({ step, replica, done, total, unit }),
    finding: () => undefined,
  };
}

/** A log to go on from: whether it had to be begun anew, and the marks of before. */
async function prepare(
  config: Config,
  plan: RecoveryPlan,
  ground: Ground,
  opened: Opened,
): Promise<{ readonly isLogLost: boolean; readonly seen: Marks | null }> {
  await finishTurn(config, ground);
  const memory = await openMemory(config, ground.folder);
  opened.add(() => memory.close());
  const { line } = memory;
  const version = line.find(plan.version);
  if (version === null || version.manifestHash !== plan.manifestHash)
    throw new GatewayError(
      "GW_RECOVERY_REFUSED",
      `the store no longer offers version ${plan.version} as it was planned`,
    );
  // Read and verified before anything is changed.
  const manifest = await line.manifest(version);
  const { log, isNew } = await logToGoOnFrom(config, version, manifest, memory, ground);
  opened.add(() => log.close());
  const seen = ground.marks.current;
  // What this machine saw of log and cursors may be of what is lost; what is recovered is the truth from here on.
  ground.marks.reset();
  // Reader state of this machine may be of a later record.
  if (plan.log.upTo !== null) rmSync(join(config.data, "state"), { recursive: true, force: true });
  return { isLogLost: isNew, seen };
}

async function logToGoOnFrom(
  config: Config,
  version: Version,
  manifest: Manifest,
  { archivist, line, registry }: Memory,
  ground: Ground,
): Promise<{ log: Log; isNew: boolean }> {
  const folder = ground.folder("recorder");
  const found = await openLogOf(config, ground, null);
  const known = readOrigin(folder);
  // A recovery that was cut off after it made the log, and before it kept what the log begins from.
  const isHalf =
    found !== null &&
    known?.epoch === found.epoch &&
    known.manifestHash === version.manifestHash &&
    (await ground.bases.load())?.head.epoch !== found.epoch;
  if (found !== null && !isHalf) {
    if (version.epoch === found.epoch && (await isBaseMissing(found, ground)))
      await ground.bases.save({ head: manifest.state, skips: manifest.skips, keys: keyRowsOf(manifest, archivist) });
    return { log: found, isNew: version.epoch !== found.epoch };
  }
  const origin = isHalf
    ? known
    : {
        epoch: randomHex(8),
        firstSequence: await aboveAll(ground, line, (await registry.latest().catch(() => null))?.position ?? 0),
        manifestHash: version.manifestHash,
        version: version.version,
        entries: version.entries,
      };
  writeOrigin(folder, origin);
  const { epoch, firstSequence } = origin;
  const log = found ?? (await openLogOf(config, ground, { epoch, firstSequence }));
  if (log === null) throw new GatewayError("GW_LOG_MISSING", "the log could not be created");
  // Answers to what the lost log held must not be given for what is executed nowhere.
  for (const name of ["state", "keys"]) rmSync(join(config.data, name), { recursive: true, force: true });
  await ground.bases.save({
    head: reborn(manifest.state, epoch, firstSequence),
    skips: manifest.skips,
    keys: keyRowsOf(manifest, archivist),
  });
  return { log, isNew: true };
}

/** Of a truncated log nothing else is left: neither the state that a truncation left beside it nor that of this machine. The snapshot has it. */
async function isBaseMissing(log: Log, ground: Ground): Promise<boolean> {
  const { first } = await log.info();
  const reaches = (head: StateHead | null): boolean =>
    head !== null && head.epoch === log.epoch && head.sequence + 1 >= first;
  if (first === 1) return false;
  const store = openLmdbState(ground.folder("state"));
  const head = store.head();
  await store.close();
  // One that is damaged is written over, unless it is of a later record.
  return !reaches(head) && !reaches((await ground.bases.load().catch(() => null))?.head ?? null);
}

/** A record above everything that marks, cursors, snapshots and the registry know of. */
async function aboveAll(ground: Ground, { versions }: Line, publishedPosition: number): Promise<number> {
  const positions = [publishedPosition, ...versions.map((it) => it.position)];
  // One that is damaged tells nothing any more.
  const base = await ground.bases.load().catch(() => null);
  const behindBase = (base?.head.sequence ?? 0) + 1;
  return Math.max(await firstAbove(ground), behindBase, ...positions.map((it) => sequenceOf(it) + 1));
}

async function markRestoring(
  name: string,
  { cursors }: Ground,
  log: Log,
  applied: number,
  version: number,
): Promise<Former | null> {
  let revision = 0;
  let before: Cursor | null = null;
  try {
    const stored = await cursors.load(name);
    revision = stored?.revision ?? 0;
    before = stored?.cursor ?? null;
  } catch (error) {
    if (!(error instanceof CursorLostError)) throw error;
    revision = error.revision;
  }
  const saved = await cursors.save(
    {
      ...newCursor(name, null, log.epoch, ""),
      applied,
      bound: applied,
      standing: { state: "restoring", reason: `recovered from snapshot ${version}` },
    },
    revision,
  );
  if (saved.kind !== "saved")
    throw new GatewayError(
      "GW_RECOVERY_REFUSED",
      `the cursor of ${name} could not be written: does a gateway still run?`,
    );
  const isWhole = before?.epoch === log.epoch && before.state === "clean" && before.standing?.state !== "restoring";
  if (before === null || !isWhole) return null;
  const { entries, finished, hash, standing, unknown } = before;
  return { applied: before.applied, entries, hash, finished, unknown, standing, whyAgain: "" };
}

// ---- kit ---------------------------------------------------------------------------------------------------------------------------

export async function registryFacts(config: Config): Promise<RegistryFacts> {
  const memory = await openMemory(config, (name) => {
    const path = join(config.data, name);
    mkdirSync(path, { recursive: true, mode: 0o700 });
    return path;
  });
  try {
    const { published, trouble } = await lookUp(memory);
    return {
      chainId: memory.registry.chainId,
      newest:
        published === null
          ? null
          : { version: published.version, position: published.position, manifestHash: published.manifestHash },
      trouble,
    };
  } finally {
    await memory.close();
  }
}
