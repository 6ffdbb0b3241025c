// The copies of the service: how each is started and fed, how its state is reached, who is added while the gateway runs and who leaves.

import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { PlaceOptions } from "../recorder/capture/place.ts";
import type { Applier } from "./applier.ts";
import type { Feedable } from "./assignment.ts";
import type { Config, ReplicaConfig, UrlReplica } from "./config.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import type { Credential } from "./drivers/certificates.ts";
import { noteFile } from "./drivers/state-volume.ts";
import { fillCommand } from "./launch/command.ts";
import type { ContainerLaunch } from "./launch/container.ts";
import { createContainerLaunch } from "./launch/container.ts";
import type { Launch } from "./launch/launch.ts";
import { createProcessLaunch } from "./launch/process.ts";
import { createStaticLaunch } from "./launch/static.ts";
import type { Replicas } from "./replicas.ts";
import type { Roster } from "./roster.ts";
import type { NewReplica, RosterChanges } from "./status.ts";

interface Copy {
  readonly replica: ReplicaConfig;
  readonly launch: Launch;
  readonly applier: Applier;
  readonly ending: AbortController;
  done: Promise<void>;
  left: Promise<void> | null;
}

export interface CopiesParts {
  readonly config: Config;
  readonly events: Events;
  readonly replicas: Replicas;
  readonly roster: Roster;
  readonly folder: (name: string) => string;
  readonly upstream: Credential | null;
  /** The applier of a copy: it is fed once it is run. */
  readonly applierOf: (replica: ReplicaConfig, launch: Launch) => Applier;
}

/** Dumps, restores, exports and imports of large states take long; an hour without an end is none. */
const streamTimeoutMs = 3_600_000;

export class Copies {
  readonly #parts: CopiesParts;
  readonly #copies = new Map<string, Copy>();
  /** No other gateway feeds any of them. */
  #isFeedingAll = false;
  #isRunning = false;

  constructor(parts: CopiesParts) {
    this.#parts = parts;
  }

  /** Those that this process could feed. */
  get configured(): readonly ReplicaConfig[] {
    return this.#parts.roster.here;
  }

  /** All of the roster, as `assign` needs them. */
  get entries(): readonly (Feedable & { readonly url: string | null; readonly version: string })[] {
    return this.#parts.roster.all.map(({ name, config, gateway }) => ({
      name,
      owners: config?.kind === "url" ? config.owners : [],
      home: gateway,
      url: config?.kind === "url" ? config.url : null,
      version: config?.version ?? "",
    }));
  }

  /** Where this process feeds all of them: they are there before any of them is run. */
  createAll(): void {
    this.#isFeedingAll = true;
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
    const { config, events, folder, applierOf, replicas, upstream } = this.#parts;
    const launch = launchOf(replica, config, folder, events, upstream);
    const applier = applierOf(replica, launch);
    const copy = { replica, launch, applier, ending: new AbortController(), done: Promise.resolve(), left: null };
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

  /** The name of a new copy: by its URL, or (null) one more of those that the gateway starts. It is kept over restarts. Rejects with GW_CONFLICT. */
  async add(asked: NewReplica | null): Promise<string> {
    const { name } = await this.#parts.roster.add(asked === null ? null : urlReplicaOf(asked));
    await this.follow();
    return name;
  }

  has(name: string): boolean {
    return this.#parts.roster.all.some((it) => it.name === name);
  }

  /** Resolves when it is gone from here: nothing is in flight on it, and it is not started again. Rejects with GW_CONFLICT for the last one. */
  async remove(name: string): Promise<void> {
    const copy = this.#copies.get(name);
    if (copy !== undefined) this.#refuseVisited(copy);
    await this.#parts.roster.remove(name);
    await this.follow();
  }

  /** The roster becomes what this gateway's file says. Resolves when who left is gone. Rejects with GW_CONFLICT. */
  async sync(): Promise<RosterChanges> {
    const changes = await this.#parts.roster.sync((leaving) => {
      for (const name of leaving) {
        const copy = this.#copies.get(name);
        if (copy !== undefined) this.#refuseVisited(copy);
      }
    });
    await this.follow();
    return changes;
  }

  /**
   * No copy is here that the roster does not name, or describes otherwise; where this process feeds all of them, each that it names is. May be called
   * at any time, also while another call is under way.
   */
  async follow(): Promise<void> {
    const { replicas, roster } = this.#parts;
    const isListed = ({ replica }: Copy): boolean => roster.here.some((it) => isDeepStrictEqual(it, replica));
    await Promise.all([...this.#copies.values()].filter((copy) => !isListed(copy)).map((copy) => this.#leave(copy)));
    for (const { name } of replicas.all) if (!this.has(name)) replicas.remove(name);
    // As it is by now: who has left meanwhile is not brought back.
    for (const replica of this.#isFeedingAll ? roster.here : []) {
      if (this.#copies.has(replica.name)) continue;
      const copy = this.#create(replica);
      if (this.#isRunning) copy.done = copy.applier.run(copy.ending.signal);
    }
    replicas.arrange(roster.all.map(({ name }) => name));
  }

  #leave(copy: Copy): Promise<void> {
    const { name } = copy.replica;
    copy.ending.abort();
    copy.left ??= copy.done.then(() => {
      if (this.#copies.get(name) === copy) this.#copies.delete(name);
      this.#parts.replicas.remove(name);
    });
    return copy.left;
  }

  #refuseVisited({ applier }: Copy): void {
    if (applier.isVisited) throw new GatewayError("GW_CONFLICT", `${applier.name} is ${applier.reason}`);
  }

  /** Where a copy's state lies, by what `snapshots.capture` says; null: it cannot be reached. */
  placeOf(applier: Applier): PlaceOptions | null {
    const { replica } = this.#of(applier.name);
    const { config, folder, upstream } = this.#parts;
    return placeOf(replica, config, folder, applier.url, upstream);
  }

  isStoppable(name: string): boolean {
    const { replica } = this.#of(name);
    return isStoppable(replica);
  }

  isReplaceable(name: string): boolean {
    const { config, folder, roster } = this.#parts;
    // Of one that another gateway feeds: as it would be from here.
    const replica = this.#copies.get(name)?.replica ?? roster.here.find((it) => it.name === name);
    return replica !== undefined && isReplaceable(replica, config, folder);
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
  upstream: Credential | null = null,
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
    const tls = upstream === null ? null : { tls: upstream.parts };
    return { kind: "http", url, export: exportFrom, import: importInto, timeoutMs: streamTimeoutMs, ...tls };
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

const urlReplicaOf = ({ name, url, state, stop, start, witness }: NewReplica): UrlReplica => ({
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
  upstream: Credential | null,
): Launch {
  const { name } = replica;
  if (replica.kind === "url")
    return createStaticLaunch({
      url: replica.url,
      name,
      ready: healthOf(config),
      ...(upstream === null ? {} : { tls: () => upstream.context }),
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
