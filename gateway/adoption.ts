// `gateway adopt --from NAME`: the state of one existing service becomes that of every copy, before the first entry. Law: recoverplan.ts.

import type { Version } from "../recorder/line.ts";
import { placeOf, isStoppable, launchOf } from "./copies.ts";
import type { Config, ReplicaConfig } from "./config.ts";
import { GatewayError } from "./errors.ts";
import { Events } from "./events.ts";
import type { Ground } from "./foundation.ts";
import { openLogOf, within } from "./foundation.ts";
import type { Log } from "./log/log.ts";
import { decodeRecord } from "./record.ts";
import { openMemory } from "./recording.ts";
import type { AdoptionPlan, RecoveryResult, RecoveryRun } from "./recoverplan.ts";
import { Roster } from "./roster.ts";

const stopGraceMs = 10_000;

export function planAdoption(config: Config, { from }: { readonly from: string }): Promise<AdoptionPlan> {
  return within(config, false, (ground) => planOn(config, from, ground));
}

async function planOn(config: Config, from: string, ground: Ground): Promise<AdoptionPlan> {
  const roster = await Roster.open(ground.board, config, true);
  const all = roster.here;
  const source = all.find((it) => it.name === from);
  const place = source === undefined ? null : placeOf(source, config, ground.folder, urlOf(source), ground.upstream);
  const replicas = roster.all.map(({ name, config: it }) => {
    if (name === from) return { name, action: "keep" as const, why: "its state is adopted" };
    return it === null || placeOf(it, config, ground.folder, urlOf(it)) === null
      ? { name, action: "keep" as const, why: "there is no way to its state from here" }
      : { name, action: "replace" as const, why: "" };
  });
  const log = await openLogOf(config, ground, null);
  const hasRun = log !== null && (await hasEntries(log));
  await log?.close();
  const taken = config.snapshots === null ? null : await newestIn(config, ground);
  const refusal = (): string | null => {
    if (source === undefined) return `there is no replica ${from}; there are ${all.map((it) => it.name).join(", ")}`;
    if (config.snapshots === null)
      return "snapshots are not configured: snapshots.capture says how a state is read and written";
    if (place === null) return `there is no way to the state of ${from}: give it state:, or snapshots.capture`;
    if (hasRun)
      return "this service has entries in its log already: copies that differ are rebuilt, gateway replica rebuild NAME";
    if (taken !== null)
      return `snapshot ${taken.version} of this service is in the store already, and copies are rebuilt from that: gateway replica rebuild NAME`;
    const isOfUse = replicas.some((it) => it.action === "replace");
    return isOfUse ? null : "there is no other copy whose state could be replaced";
  };
  const unstopped = all.filter((it) => !isStoppable(it)).map((it) => it.name);
  return {
    service: config.service,
    from,
    source: place === null ? "" : place.kind === "folder" ? place.folder : place.kind,
    replicas,
    warnings:
      unstopped.length === 0
        ? []
        : [`${unstopped.join(", ")} cannot be stopped from here: nothing may write to them until this is done`],
    refused: refusal(),
  };
}

/** A start that found the copies unequal has left a log without any. */
async function hasEntries(log: Log): Promise<boolean> {
  const { first, last } = await log.info();
  if (first > 1) return true;
  const stop = new AbortController();
  try {
    if (last >= first)
      for await (const record of log.read(first, stop.signal)) {
        if (decodeRecord(record.bytes, record.sequence).items.some((it) => it.kind === "entry")) return true;
        if (record.sequence >= last) break;
      }
    return false;
  } finally {
    stop.abort();
  }
}

async function newestIn(config: Config, ground: Ground): Promise<Version | null> {
  const memory = await openMemory(config, ground.folder);
  const { newest } = memory.line;
  await memory.close();
  return newest;
}

export async function runAdoption(config: Config, plan: AdoptionPlan, run: RecoveryRun): Promise<RecoveryResult> {
  const begunMs = performance.now();
  const done: { name: string; state: string }[] = [];
  await within(config, true, async (ground, opened) => {
    const memory = await openMemory(config, ground.folder);
    opened.add(() => memory.close());
    const { here: all } = await Roster.open(ground.board, config, true);
    const events = new Events();
    const source = all.find((it) => it.name === plan.from);
    const place = source === undefined ? null : placeOf(source, config, ground.folder, urlOf(source), ground.upstream);
    if (source === undefined || place === null)
      throw new GatewayError("GW_RECOVERY_REFUSED", plan.refused ?? `there is no way to the state of ${plan.from}`);
    const { archivist } = memory;
    // Stopped for as long as it is read and written; what runs without us is started again.
    const stopped = async <T>(replica: ReplicaConfig, work: () => Promise<T>): Promise<T> => {
      const isOurs = replica.kind === "url" && isStoppable(replica) && config.snapshots?.capture.kind !== "http";
      const launch = isOurs ? launchOf(replica, config, ground.folder, events, ground.upstream) : null;
      await launch?.stop(stopGraceMs);
      try {
        return await work();
      } finally {
        await launch?.start(run.signal);
        await launch?.close();
      }
    };
    const writing = await archivist.write(run.signal);
    try {
      const tree = await stopped(source, () =>
        archivist.capture(place, null, run.signal, (doneBytes, total) =>
          run.onProgress({ step: "reading", replica: plan.from, done: doneBytes, total, unit: "bytes" }),
        ),
      );
      for (const { name, action } of plan.replicas) {
        const replica = all.find((it) => it.name === name);
        const target =
          replica === undefined ? null : placeOf(replica, config, ground.folder, urlOf(replica), ground.upstream);
        if (action === "keep" || replica === undefined || target === null) {
          done.push({ name, state: "kept" });
          continue;
        }
        await stopped(replica, () =>
          archivist.restore(tree, target, run.signal, (doneBytes, total) =>
            run.onProgress({ step: "replacing", replica: name, done: doneBytes, total, unit: "bytes" }),
          ),
        );
        done.push({ name, state: "replaced" });
      }
    } finally {
      await writing.close();
    }
  });
  return {
    replicas: done,
    position: 0,
    verified: 0,
    unverified: 0,
    differing: [],
    missing: null,
    tookMs: performance.now() - begunMs,
  };
}

const urlOf = (replica: ReplicaConfig): string | null => (replica.kind === "url" ? replica.url : null);
