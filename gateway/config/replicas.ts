// What `replicas:` means in each of its three forms: backends that run already, processes and containers that the gateway starts.

import { join } from "node:path";
import type { DocumentPath, Fault } from "../../rules/document.ts";
import type { ParsedConfig } from "./schema.ts";
import type { Sources } from "./sources.ts";
import type { ContainerReplica, ProcessReplica, ReplicaConfig, UrlReplica } from "./values.ts";

type Parsed = ParsedConfig["replicas"];
type ParsedUrl = Extract<Parsed, readonly unknown[]>[number];
type Managed = Exclude<Parsed, readonly unknown[]>;

/** With faults it is what is left of it. */
export function replicasOf({ replicas }: ParsedConfig, sources: Sources, faults: Fault[]): readonly ReplicaConfig[] {
  if (Array.isArray(replicas)) return replicas.map((replica, i) => urlReplicaOf(replica, i, sources));
  checkForm(replicas, sources, faults);
  const names = Array.from({ length: replicas.count }, (_, i) => `${replicas.name}${i + 1}`);
  if (replicas.image === undefined) return names.map((name) => processOf(name, replicas, sources));
  const engine = engineOf(sources, faults);
  return names.map((name) => containerOf(name, replicas, engine));
}

const returning = (name: string, of: Pick<ParsedUrl, "witness" | "onReturn" | "version">) => ({
  name,
  witness: of.witness ?? [],
  onReturn: of.onReturn,
  version: of.version ?? "",
});

function urlReplicaOf(replica: ParsedUrl, index: number, sources: Sources): UrlReplica {
  return {
    kind: "url",
    ...returning(replica.name, replica),
    url: replica.url,
    state: replica.state === undefined ? null : sources.resolve(["replicas", index, "state"], replica.state),
    stop: replica.stop ?? null,
    start: replica.start ?? null,
    owners: [...new Set(replica.owners)].toSorted(),
  };
}

/** Which keys go with which: one map, so that a misspelt key of either form is named as such. */
function checkForm(replicas: Managed, sources: Sources, faults: Fault[]): void {
  const bad = (key: keyof Managed | null, message: string): number => {
    const path: DocumentPath = key === null ? ["replicas"] : ["replicas", key];
    return faults.push(sources.fault(path, message));
  };
  if (replicas.image === undefined) {
    if (replicas.command === undefined) bad("command", "is missing: what starts a process (or image, for containers)");
    if (replicas.port !== undefined) bad("port", "means nothing without image: a process is told its port as {port}");
    return;
  }
  if (replicas.port === undefined) bad("port", "is missing: the port that it listens on inside the container");
  for (const key of ["cwd", "seed"] as const) {
    if (replicas[key] !== undefined) bad(key, "means nothing with image: it is of processes");
  }
  const { state } = replicas;
  if (state !== undefined && !(/^\/[^\0]*[^/\0]$/.test(state) && !state.split("/").includes(".."))) {
    bad("state", `"${state}" is not a path inside the container such as /data`);
  }
}

function processOf(name: string, replicas: Managed, sources: Sources): ProcessReplica {
  const folder = (key: "cwd" | "state" | "seed"): string | null =>
    replicas[key] === undefined ? null : sources.resolve(["replicas", key], replicas[key]);
  const state = folder("state");
  return {
    kind: "process",
    ...returning(name, replicas),
    command: replicas.command ?? [],
    cwd: folder("cwd") ?? sources.resolve(["replicas", "cwd"], "."),
    state: state === null ? null : join(state, name),
    seed: folder("seed"),
    env: replicas.env ?? {},
    ready: replicas.ready ?? null,
  };
}

function containerOf(name: string, replicas: Managed, engine: string): ContainerReplica {
  return {
    kind: "container",
    ...returning(name, replicas),
    image: replicas.image ?? "",
    port: replicas.port ?? 0,
    state: replicas.state ?? null,
    command: replicas.command ?? null,
    env: replicas.env ?? {},
    ready: replicas.ready ?? null,
    engine,
  };
}

/** As every client of Docker finds it. */
function engineOf(sources: Sources, faults: Fault[]): string {
  const { env } = sources;
  const host = env["DOCKER_HOST"] ?? "";
  if (host === "") return "unix:///var/run/docker.sock";
  if (/^unix:\/\/\/./.test(host)) return host;
  const [, where] = /^tcp:\/\/([^\s/@?#]+:\d{1,5})\/?$/.exec(host) ?? [];
  const isTls = (env["DOCKER_TLS_VERIFY"] ?? "") !== "";
  if (where !== undefined && !isTls) return `tcp://${where}`;
  const wrong = where === undefined ? `is neither unix:///PATH nor tcp://HOST:PORT` : "with TLS is not built yet";
  faults.push(sources.fault(["replicas", "image"], `DOCKER_HOST, where the container engine is, ${wrong}`));
  return "unix:///var/run/docker.sock";
}
