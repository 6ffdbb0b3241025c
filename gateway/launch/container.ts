// Adapter of the launch port: a backend as a container, a new one for each life, its state in a volume that outlives them all.
//
// - What a life wrote outside of its volume ends with it: a restart is the image, the volume, and nothing else.
// - The first life's volume gets what the image has at the path; later an empty volume stays empty. A volume that is gone is not made anew in
//   silence: its state is lost, and the start rejects until the replica was rebuilt.
// - The container that crashed is kept until the next start, for whoever wants to look at it.

import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { DockerEngine } from "../drivers/docker.ts";
import {
  containerName,
  engineLabels,
  newNote,
  readNote,
  syncMachine,
  volumeName,
  writeNote,
} from "../drivers/state-volume.ts";
import { GatewayError } from "../errors.ts";
import { fillCommand } from "./command.ts";
import { endContainers } from "./container-end.ts";
import { ContainerLife } from "./container-life.ts";
import { markOf } from "./orphans.ts";
import { waitReady } from "./ready.ts";
import type { VolumeMount } from "../drivers/docker-container.ts";
import type { VolumeNote } from "../drivers/state-volume.ts";
import type { Command } from "./command.ts";
import type { Output } from "./container-life.ts";
import type { Incarnation, Launch } from "./launch.ts";
import type { HealthRequest } from "./ready.ts";

export interface ContainerLaunchOptions {
  /** `unix:///path` or `tcp://host:port` of this machine. */
  readonly engine: string;
  readonly service: string;
  readonly name: string;
  readonly image: string;
  /** The port it listens on inside. */
  readonly port: number;
  /** The folder of its state inside; null: it keeps none. */
  readonly state: string | null;
  /** Null: the image's own. `{port}`, `{state}` and `{name}` are filled in, here and in `env`. */
  readonly command: Command | null;
  /** `PORT` and `STATE_DIR` are set last. Nothing of the gateway's own environment is passed on. */
  readonly env: Readonly<Record<string, string>>;
  /** Null: ready when the port accepts. */
  readonly ready: HealthRequest | null;
  /** Where orphans.ts keeps the id of the data folder: one folder a gateway. */
  readonly recordsFolder: string;
  /** The durable note of which volume it has. */
  readonly note: string;
  readonly onOutput: Output;
}

export interface ContainerLaunch extends Launch {
  /** `sha256:…`: of the image that the running life has; without one, of the image that the next life would get. */
  imageDigest(): Promise<string>;
}

/** What a container that was still starting, or that `close` finds, gets before SIGKILL. */
const shortGraceMs = 2_000;

export function createContainerLaunch(options: ContainerLaunchOptions): ContainerLaunch {
  return new Containers(options);
}

class Containers implements ContainerLaunch {
  readonly isManaged = true;
  /** A volume is the engine's: there is no folder to look into. */
  readonly state = null;
  readonly #options: ContainerLaunchOptions;
  readonly #engine: DockerEngine;
  readonly #listeners: ((reason: string) => void)[] = [];
  #life: ContainerLife | null = null;
  #starting: Promise<unknown> | null = null;
  readonly #closed = new AbortController();

  constructor(options: ContainerLaunchOptions) {
    this.#options = options;
    this.#engine = new DockerEngine(options.engine);
  }

  async start(signal: AbortSignal): Promise<Incarnation> {
    if (this.#starting !== null || this.#life?.isOver === false) {
      throw new Error(`replica ${this.#options.name} runs already`);
    }
    const starting = this.#start(AbortSignal.any([signal, this.#closed.signal]));
    this.#starting = starting;
    try {
      return await starting;
    } finally {
      this.#starting = null;
    }
  }

  async missingState(): Promise<string | null> {
    const { note: file, state } = this.#options;
    if (state === null) return null;
    const note = await readNote(file);
    if (note === null || !note.isFilled) return `${file} names no volume with a state`;
    const volume = volumeName(note);
    return (await this.#engine.hasVolume(volume)) ? null : `its volume ${volume} is gone`;
  }

  async stop(graceMs: number): Promise<void> {
    if (this.#life === null) return;
    await this.#life.end(graceMs);
    this.#life = null;
  }

  onExit(listener: (reason: string) => void): void {
    this.#listeners.push(listener);
  }

  async close(): Promise<void> {
    this.#closed.abort(new Error(`replica ${this.#options.name} was closed`));
    await this.#starting?.catch(() => {});
    try {
      await this.stop(shortGraceMs);
    } finally {
      await this.#engine.close();
    }
  }

  async imageDigest(): Promise<string> {
    return this.#life?.isOver === false ? this.#life.imageId : await this.#imageId();
  }

  async #start(signal: AbortSignal): Promise<Incarnation> {
    const { command, env, image, name, note, onOutput, port, ready, recordsFolder, service, state } = this.#options;
    signal.throwIfAborted();
    // Of a crash, ours or its own: two lives on one volume would destroy it.
    await endContainers(this.#engine, { recordsFolder, volumesFolder: null, name, graceMs: 0 });
    this.#life = null;
    await this.#imageId(signal);
    const volume = state === null ? null : await this.#prepareVolume(state, signal);
    const fill = (parts: Command): string[] =>
      fillCommand(parts, { port: String(port), name, ...(state === null ? {} : { state }) });
    const spec = {
      image,
      labels: {
        [engineLabels.service]: service,
        [engineLabels.replica]: name,
        [engineLabels.mark]: await markOf(recordsFolder, name),
      },
      command: command === null ? null : fill(command),
      env: {
        ...Object.fromEntries(Object.entries(env).map(([variable, value]) => [variable, fill([value])[0] ?? ""])),
        PORT: String(port),
        ...(state === null ? {} : { STATE_DIR: state }),
      },
      port,
      mount: volume?.mount ?? null,
    };
    let life: ContainerLife | null = null;
    try {
      life = await ContainerLife.begin(
        this.#engine,
        { name: containerName(service, name), port, spec },
        onOutput,
        (ended, reason) => this.#onExit(ended, reason),
        signal,
      );
      this.#life = life;
      const either = AbortSignal.any([signal, life.over]);
      await waitReady({ url: life.url, request: ready }, either);
      if (ready === null) await waitHeld(life.url, either);
      if (volume !== null && !volume.note.isFilled) {
        await syncMachine();
        await writeNote(note, { ...volume.note, isFilled: true });
      }
      if (life.isOver) throw new Error(`replica ${name} ended as it became ready`);
      life.isReady = true;
      return { id: life.id, url: life.url };
    } catch (error) {
      const reason = (await life?.describeEnd()) ?? null;
      // What cannot be ended now is ended by the next start, before anything else: why this one failed is what is told.
      await life?.end(shortGraceMs).then(
        () => (this.#life = null),
        () => {},
      );
      if (signal.aborted) throw signal.reason;
      throw reason === null ? error : new Error(`replica ${name} ${reason} before it was ready`, { cause: error });
    }
  }

  #onExit(life: ContainerLife, reason: string): void {
    if (!life.isReady || life.isEnding) return;
    for (const listener of this.#listeners) listener(reason);
  }

  async #imageId(signal?: AbortSignal): Promise<string> {
    const { engine, image, name } = this.#options;
    const id = await this.#engine.imageId(image, signal);
    if (id !== null) return id;
    throw new GatewayError(
      "GW_ENGINE_REFUSED",
      `the container engine at ${engine} does not have the image ${image} of replica ${name}: run \`docker pull ${image}\`, or build it`,
    );
  }

  async #prepareVolume(
    path: string,
    signal: AbortSignal,
  ): Promise<{ readonly mount: VolumeMount; readonly note: VolumeNote }> {
    const { name, note: file, service } = this.#options;
    let note = await readNote(file);
    if (note === null) {
      // Before the volume: what is made for a note that nobody has would stay for ever.
      note = newNote(service, name);
      await writeNote(file, note);
    }
    const volume = volumeName(note);
    const user = (await this.#engine.containers("volume", volume, signal)).find(({ isAlive }) => isAlive);
    if (user !== undefined)
      throw new GatewayError(
        "GW_CONFLICT",
        `the volume ${volume} of replica ${name} is in use by container ${user.name}, which is not this gateway's: end it first, two at once would destroy the state`,
      );
    if (!note.isFilled) {
      // Perhaps half of the image's files are in it.
      await this.#engine.removeVolume(volume, signal);
      await this.#engine.createVolume(volume, volumeLabels(note), signal);
    } else if (!(await this.#engine.hasVolume(volume, signal))) {
      throw new GatewayError(
        "GW_CONFLICT",
        `the volume ${volume} is gone, and with it the state of replica ${name}: rebuild the replica (\`gateway replica rebuild ${name}\`)`,
      );
    }
    return { mount: { volume, path, copiesImage: !note.isFilled }, note };
  }
}

const volumeLabels = ({ id, replica, service }: VolumeNote): Readonly<Record<string, string>> => ({
  [engineLabels.service]: service,
  [engineLabels.replica]: replica,
  [engineLabels.note]: id,
});

/**
 * Asks until a connection stays open for a moment: engines publish ports through helpers that accept before the service does, and then close.
 * Rejects with the signal's reason.
 */
export async function waitHeld(url: string, signal: AbortSignal, forMs = 100): Promise<void> {
  // Ends when one stays open, or by the signal.
  while (!(await isHeld(url, forMs))) {
    signal.throwIfAborted();
    await sleep(50, undefined, { signal }).catch(() => {});
  }
  signal.throwIfAborted();
}

function isHeld(url: string, forMs: number): Promise<boolean> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve) => {
    const socket = connect(Number(port), hostname);
    const settle = (isOpen: boolean): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(isOpen);
    };
    let timer = setTimeout(() => settle(false), 2_000);
    socket.once("connect", () => {
      clearTimeout(timer);
      timer = setTimeout(() => settle(true), forMs);
    });
    // Read, so that the other end's close is seen; what it says first makes it a service.
    socket.once("data", () => settle(true));
    socket.once("end", () => settle(false));
    socket.on("error", () => settle(false));
  });
}
