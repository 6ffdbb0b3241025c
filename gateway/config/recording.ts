// What snapshots, audits, truncation and rebuilds ask of each other and of the replicas: promises that the chosen parts cannot keep.

import { isAbsolute, relative } from "node:path";
import type { DocumentPath } from "../../rules/document.ts";
import type { Config, ReplicaConfig, SnapshotsConfig } from "./values.ts";

export type Report = (path: DocumentPath, message: string) => unknown;

export function checkRecording(config: Config, bad: Report, doubtful: Report): void {
  const { snapshots, registry } = config;
  checkRebuilds(config, bad);
  checkTruncation(config, bad, doubtful);
  checkAudit(config, bad, doubtful);
  if (snapshots !== null) {
    checkCapture(config, snapshots, bad);
    checkTimes(snapshots, bad);
    checkStore(config, snapshots, bad, doubtful);
  }
  if (registry !== null && snapshots === null) doubtful(["registry"], "publishes nothing without snapshots");
  if (registry !== null && registry.key === null) {
    doubtful(["registry", "ethereum"], "has no keyFile: it is read, and nothing is published from here");
  }
}

const names = (replicas: readonly ReplicaConfig[]): string => replicas.map(({ name }) => name).join(", ");

/** Processes and containers are ours to stop; what runs elsewhere takes its own commands. */
const canStop = (replica: ReplicaConfig): boolean => replica.kind !== "url" || replica.stop !== null;

function checkRebuilds({ replicas, agreement, snapshots }: Config, bad: Report): void {
  const stubborn = replicas.filter((replica) => !canStop(replica));
  const asked: { readonly path: DocumentPath; readonly of: readonly ReplicaConfig[] }[] = [];
  if (agreement.onMinority === "rebuild") asked.push({ path: ["agreement", "onMinority"], of: stubborn });
  for (const [i, replica] of replicas.entries()) {
    if (replica.onReturn !== "rebuild") continue;
    // Managed ones have it in common.
    const path = replica.kind === "url" ? ["replicas", i, "onReturn"] : ["replicas", "onReturn"];
    if (replica.kind === "url" || i === 0) asked.push({ path, of: stubborn.filter((one) => one === replica) });
  }
  for (const { path, of } of asked) {
    if (snapshots === null) bad(path, "rebuild needs something to rebuild from: configure snapshots");
    else if (of.length > 0 && snapshots.capture.kind === "directory") {
      bad(path, `rebuild replaces the state of a copy that is stopped: give ${names(of)} stop and start`);
    }
  }
}

function checkTruncation({ log, snapshots }: Config, bad: Report, doubtful: Report): void {
  if (log.truncate === "snapshot" && snapshots === null) {
    bad(
      ["log", "truncate"],
      "snapshot keeps what is behind the oldest snapshot: configure snapshots, or write applied",
    );
  }
  if (log.truncate === "applied" && snapshots !== null) {
    doubtful(
      ["log", "truncate"],
      "applied forgets entries that no snapshot holds: what is recovered ends with the snapshot",
    );
  }
}

function checkAudit({ audit, replicas, snapshots }: Config, bad: Report, doubtful: Report): void {
  const silent = replicas.filter(({ witness }) => witness.length === 0);
  if (audit.compare === "witness" && silent.length > 0) {
    bad(["audit", "compare"], `witness compares answers, and these have no witness: ${names(silent)}`);
  }
  if (audit.everyMs === 0) bad(["audit", "every"], "has to be more than nothing");
  if (audit.everyMs === null) return;
  const nothing = audit.compare === "off" || (audit.compare === "auto" && snapshots === null && silent.length > 0);
  if (nothing) {
    doubtful(
      ["audit", "every"],
      audit.compare === "off" ? "means nothing with compare: off" : "compares nothing without snapshots or witness",
    );
  }
}

function checkCapture({ replicas }: Config, { capture, quiesce }: SnapshotsConfig, bad: Report): void {
  const stateless = replicas.filter(({ state }) => state === null);
  if (capture.kind === "directory" && stateless.length > 0) {
    bad(
      ["snapshots", "capture"],
      `directory captures state folders, and these have no state: ${names(stateless)}. Or { dump, restore }, or { export, import }`,
    );
  }
  if (quiesce.kind !== "stop") return;
  if (capture.kind === "http")
    bad(["snapshots", "quiesce"], "stop leaves nobody who answers export: none, or POST /path");
  const stubborn = replicas.filter((replica) => !canStop(replica));
  if (stubborn.length > 0) {
    bad(
      ["snapshots", "quiesce"],
      `stop takes stop and start, which these do not have: ${names(stubborn)}. Or write none, if the state may be read while it runs`,
    );
  }
}

function checkTimes({ every, drillMs }: SnapshotsConfig, bad: Report): void {
  const positive: [DocumentPath, number | null][] = [
    [["snapshots", "every", "bytes"], every.bytes],
    [["snapshots", "every", "time"], every.timeMs],
    [["snapshots", "drill"], drillMs],
  ];
  for (const [path, value] of positive) if (value === 0) bad(path, "has to be more than nothing");
}

function checkStore(config: Config, { store, encryptionKey }: SnapshotsConfig, bad: Report, doubtful: Report): void {
  const path = ["snapshots", "store"];
  if (store.kind === "nats" && config.log.nats === null)
    bad(path, "nats:// uses the servers of log.nats: there are none");
  if (store.kind !== "folder") {
    if (encryptionKey === null)
      doubtful(path, "gets the state as it is: snapshots.encrypt keeps it from who runs the store");
    return;
  }
  const { folder } = store;
  // The store would be captured into itself.
  for (const { kind, name, state } of config.replicas) {
    if (kind === "container" || state === null) continue;
    if (isInside(folder, state)) bad(path, `${folder} is inside the state of replica ${name}`);
    else if (isInside(state, folder)) bad(path, `${folder} holds the state of replica ${name}`);
  }
  if (isInside(config.data, folder)) bad(path, `${folder} holds the gateway's own data folder`);
}

export function isInside(path: string, folder: string): boolean {
  const way = relative(folder, path);
  return way !== ".." && !way.startsWith("../") && !isAbsolute(way);
}
