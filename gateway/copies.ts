// The copies of the service: how each is started and fed, how its state is reached, who is added while the gateway runs and who leaves.

import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { PlaceOptions } from "../recorder/capture/place.ts";
import type { Applier } from "./applier.ts";
import type { Feedable } from "./assignment.ts";
import type { Config, ReplicaConfig } from "./config.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import { noteFile } from "./drivers/state-volume.ts";
import { fillCommand } from "./launch/command.ts";
import type { ContainerLaunch } from "./launch/container.ts";
import { createContainerLaunch } from "./launch/container.ts";
import type { Launch } from "./launch/launch.ts";
import { createProcessLaunch } from "./launch/process.ts";
import { createStaticLaunch } from "./launch/static.ts";
import type { Replicas } from "./replicas.ts";
import type { NewReplica } from "./status.ts";

interface Copy {
  readonly replica: ReplicaConfig;
  readonly launch: Launch;
  readonly applier: Applier;
  readonly ending: AbortController;
  done: Promise<void>;
}

export interface CopiesParts {
  readonly config: Config;
  readonly events: Events;
  readonly replicas: Replicas;
  readonly folder: (name: string) => string;
  /** The applier of a copy: it is fed once it is run. */
  readonly applierOf: (replica: ReplicaConfig, launch: Launch) => Applier;
}

/** Dumps, restores, exports and imports of large states take long; an hour without an end is none. */
const streamTimeoutMs = 3_600_000;

export class Copies {
  readonly #parts: CopiesParts;
  readonly #copies = new Map<string, Copy>();
  #isRunning = false;

  constructor(parts: CopiesParts) {
    this.#parts = parts;
  }

  get configured(): readonly ReplicaConfig[] {
    return rosterOf(this.#parts.config, this.#parts.folder("roster"));
  }

  /** As `assign` needs them. */
  get entries(): readonly (Feedable & { readonly url: string | null; readonly version: string })[] {
    const { config } = this.#parts;
    return this.configured.map((it) => ({
      name: it.name,
      owners: [],
      home: it.kind === "url" ? null : config.name,
      url: it.kind === "url" ? it.url : null,
      version: it.version,
    }));
  }

  /** Where this process feeds all of them: they are there before any of them is run. */
  createAll(): void {
    for (const replica of this.configured) this.#create(replica);
  }

  /** This process feeds it from here on, until `release` or until another gateway takes it. */
  take(name: string): void {
    const replica = this.configured.find((it) => it.name === name);
    if (replica === undefined || this.#copies.has(name)) return;
    const copy = this.#create(replica);
    copy.done = copy.applier.run(copy.ending.signal).then(() => {
      if (this.#copies.get(name) === copy) this.#copies.delete(name);
    });
  }

  async release(name: string): Promise<void> {
    const copy = this.#copies.get(name);
    copy?.ending.abort();
    await copy?.done;
  }

  #create(replica: ReplicaConfig): Copy {
    const { config, events, folder, applierOf, replicas } = this.#parts;
    const launch = launchOf(replica, config, folder, events);
    const applier = applierOf(replica, launch);
    const copy = { replica, launch, applier, ending: new AbortController(), done: Promise.resolve() };
    this.#copies.set(replica.name, copy);
    replicas.put(applier);
    return copy;
  }

  /** Those of the given names; default: all. */
  run(names: readonly string[] = [...this.#copies.keys()]): void {
    this.#isRunning = true;
    for (const copy of this.#copies.values())
      if (names.includes(copy.replica.name)) copy.done = copy.applier.run(copy.ending.signal);
  }

  /** Graceful: what was sent is finished, cursors are clean, backends of ours are stopped. */
  async end(): Promise<void> {
    for (const { ending } of this.#copies.values()) ending.abort();
    await Promise.all([...this.#copies.values()].map((it) => it.done));
  }

  /** A copy by its URL, or (null) one more of those that the gateway starts. It is kept over restarts. Rejects with GW_CONFLICT. */
  add(asked: NewReplica | null): Applier {
    const { config, folder } = this.#parts;
    const replica = asked === null ? this.#oneMore() : urlReplicaOf(asked);
    if (this.#copies.has(replica.name))
      throw new GatewayError("GW_CONFLICT", `there is a replica ${replica.name} already`);
    const roster = readRoster(folder("roster"));
    const removed = roster.removed.filter((it) => it !== replica.name);
    const isConfigured = config.replicas.some((it) => it.name === replica.name);
    writeRoster(folder("roster"), { removed, added: isConfigured ? roster.added : [...roster.added, replica] });
    const copy = this.#create(replica);
    if (this.#isRunning) copy.done = copy.applier.run(copy.ending.signal);
    return copy.applier;
  }

  /** Resolves when it is gone: nothing is in flight on it, and it is not started again. Rejects with GW_CONFLICT for the last one. */
  async remove(name: string): Promise<void> {
    const { folder, replicas } = this.#parts;
    const copy = this.#of(name);
    if (this.#copies.size === 1) throw new GatewayError("GW_CONFLICT", `${name} is the only replica`);
    if (copy.applier.isVisited) throw new GatewayError("GW_CONFLICT", `${name} is ${copy.applier.reason}`);
    const roster = readRoster(folder("roster"));
    writeRoster(folder("roster"), {
      removed: [...roster.removed.filter((it) => it !== name), name],
      added: roster.added.filter((it) => it.name !== name),
    });
    copy.ending.abort();
    await copy.done;
    this.#copies.delete(name);
    replicas.remove(name);
  }

  /** Where a copy's state lies, by what `snapshots.capture` says; null: it cannot be reached. */
  placeOf(applier: Applier): PlaceOptions | null {
    const { replica } = this.#of(applier.name);
    return placeOf(replica, this.#parts.config, this.#parts.folder, applier.url);
  }

  isStoppable(name: string): boolean {
    const { replica } = this.#of(name);
    return isStoppable(replica);
  }

  isReplaceable(name: string): boolean {
    return isReplaceable(this.#of(name).replica, this.#parts.config, this.#parts.folder);
  }

  /** Null: it is no container. */
  async imageDigest(name: string): Promise<string | null> {
    const { replica, launch } = this.#of(name);
    return replica.kind === "container" ? (launch as ContainerLaunch).imageDigest() : null;
  }

  #of(name: string): Copy {
    const copy = this.#copies.get(name);
    if (copy === undefined) throw new GatewayError("GW_NOT_FOUND", `there is no replica ${name}`);
    return copy;
  }

  #oneMore(): ReplicaConfig {
    const [like] = this.#parts.config.replicas;
    if (like === undefined || like.kind === "url")
      throw new GatewayError("GW_CONFLICT", "the replicas run without the gateway: give the new one's URL");
    let count = 1;
    while (this.#copies.has(`r${count}`)) count++;
    const name = `r${count}`;
    if (like.kind === "container") return { ...like, name };
    return { ...like, name, state: like.state === null ? null : join(dirname(like.state), name) };
  }
}

export const isStoppable = (replica: ReplicaConfig): boolean =>
  replica.kind !== "url" || (replica.stop !== null && replica.start !== null);

/** Whether its state can be replaced, whether or not it runs now. What is put into the folder of a backend that goes on is not the state that it has. */
export function isReplaceable(replica: ReplicaConfig, config: Config, folder: (name: string) => string): boolean {
  const place = placeOf(replica, config, folder, "");
  return place !== null && (isStoppable(replica) || place.kind === "command" || place.kind === "http");
}

/** `url`: where its backend is now; null: it does not run. */
export function placeOf(
  replica: ReplicaConfig,
  config: Config,
  folder: (name: string) => string,
  url: string | null,
): PlaceOptions | null {
  const capture = config.snapshots?.capture;
  if (capture === undefined) return null;
  const { name, state } = replica;
  if (capture.kind === "directory") {
    const { exclude } = capture;
    if (state === null) return null;
    if (replica.kind === "container") {
      const { engine, image } = replica;
      return {
        kind: "volume",
        engine,
        service: config.service,
        replica: name,
        image,
        path: state,
        note: noteFile(folder("volumes"), name),
        exclude,
      };
    }
    return { kind: "folder", folder: state, exclude };
  }
  if (capture.kind === "http") {
    if (url === null) return null;
    const { export: exportFrom, import: importInto } = capture;
    return { kind: "http", url, export: exportFrom, import: importInto, timeoutMs: streamTimeoutMs };
  }
  const values = { name, url: url ?? "", state: state ?? "" };
  return {
    kind: "command",
    dump: fillCommand(capture.dump, values),
    restore: fillCommand(capture.restore, values),
    cwd: replica.kind === "process" ? replica.cwd : config.data,
    env: {},
    timeoutMs: streamTimeoutMs,
  };
}

// ---- who is there ------------------------------------------------------------------------------------------------------------------

/** What was changed at run time, over the configuration. */
interface Roster {
  readonly added: readonly ReplicaConfig[];
  readonly removed: readonly string[];
}

export const rosterOf = (config: Config, folder: string): readonly ReplicaConfig[] => {
  const { added, removed } = readRoster(folder);
  const configured = config.replicas.filter((it) => !removed.includes(it.name));
  return [...configured, ...added.filter((it) => !configured.some((other) => other.name === it.name))];
};

function readRoster(folder: string): Roster {
  const path = join(folder, "replicas.json");
  if (!existsSync(path)) return { added: [], removed: [] };
  return JSON.parse(readFileSync(path, "utf8")) as Roster;
}

function writeRoster(folder: string, roster: Roster): void {
  const path = join(folder, "replicas.json");
  writeFileSync(`${path}.new`, JSON.stringify(roster), { mode: 0o600, flush: true });
  renameSync(`${path}.new`, path);
}

const urlReplicaOf = ({ name, url, state, stop, start, witness }: NewReplica): ReplicaConfig => ({
  kind: "url",
  name,
  url,
  state,
  stop,
  start,
  owners: [],
  witness: witness.map((line) => {
    const [method = "GET", target = "/"] = line.split(" ");
    return { method, target };
  }),
  onReturn: "verify",
  version: "",
});

// ---- how they are started ----------------------------------------------------------------------------------------------------------

export const healthOf = (config: Config): { method: string; path: string } | null =>
  config.health.request === null ? null : { method: config.health.request.method, path: config.health.request.target };

export function launchOf(
  replica: ReplicaConfig,
  config: Config,
  folder: (name: string) => string,
  events: Events,
): Launch {
  const { name } = replica;
  if (replica.kind === "url")
    return createStaticLaunch({
      url: replica.url,
      name,
      ready: healthOf(config),
      ...(replica.state === null ? {} : { state: replica.state }),
      ...(replica.stop === null ? {} : { stop: replica.stop }),
      ...(replica.start === null ? {} : { start: replica.start }),
    });
  const ready =
    replica.ready === null ? healthOf(config) : { method: replica.ready.method, path: replica.ready.target };
  const onOutput = (line: string, stream: "stdout" | "stderr"): void =>
    events.tell({ type: "output", replica: name, stream, line });
  if (replica.kind === "container") {
    const { engine, image, port, state, command, env } = replica;
    return createContainerLaunch({
      engine,
      service: config.service,
      name,
      image,
      port,
      state,
      command,
      env,
      ready,
      recordsFolder: folder("processes"),
      note: noteFile(folder("volumes"), name),
      onOutput,
    });
  }
  return createProcessLaunch({
    name,
    command: replica.command,
    cwd: replica.cwd,
    env: replica.env,
    stateFolder: replica.state ?? join(folder("replicas"), name),
    ready,
    recordsFolder: folder("processes"),
    onOutput,
    ...(replica.seed === null ? {} : { seed: replica.seed }),
  });
}
