// The Docker API of a container engine (Docker, Podman): the calls that containers as replicas need.
//
// - That a thing is not there is a return value, because everything here is asked for again after a crash. Errors: see docker-connection.ts.
// - Nothing is pulled: which image runs is a person's decision.
//
// What engines really do (measured, Podman 4.3.1 and Docker 20.10.24): Podman's `wait` for not-running answers 0.5 to 1.2 s late; it ignores
// `Mounts[].VolumeOptions`, but not the `nocopy` of `Binds`; the names in its archives begin with "/" (Docker's with the folder's name), and their
// owners are the container's user, whoever owns the files.

import { DockerConnection } from "./docker-connection.ts";
import { containerOf, createRequest, list, listedOf, record, text } from "./docker-container.ts";
import { demultiplex } from "./docker-logs.ts";
import { GatewayError } from "../errors.ts";
import type { Call } from "./docker-connection.ts";
import type { Container, ContainerSpec, Labels, ListedContainer } from "./docker-container.ts";
import type { LogPiece } from "./docker-logs.ts";

/** An archive that does not move for so long never will. */
const stallMs = 120_000;

export class DockerEngine {
  readonly #engine: DockerConnection;

  constructor(address: string, timeoutMs = 60_000) {
    this.#engine = new DockerConnection(address, timeoutMs);
  }

  /** `unix:///path` or `tcp://host:port`, for messages. */
  get address(): string {
    return this.#engine.address;
  }

  /** Whether an engine is there, and which. */
  async ping(signal?: AbortSignal): Promise<{ readonly name: string; readonly version: string }> {
    const said = record(await this.#engine.json({ method: "GET", path: "/version", signal }));
    const isPodman = list(said["Components"]).some((it) => text(record(it)["Name"]).startsWith("Podman"));
    return { name: isPodman ? "Podman" : "Docker", version: text(said["Version"]) };
  }

  /** `sha256:…`; null: the engine does not have it. */
  async imageId(image: string, signal?: AbortSignal): Promise<string | null> {
    const found = await this.#engine.json({ method: "GET", path: `/images/${encode(image)}/json`, signal });
    return found === null ? null : text(record(found)["Id"]);
  }

  async createVolume(name: string, labels: Labels, signal?: AbortSignal): Promise<void> {
    await this.#engine.json({ method: "POST", path: "/volumes/create", json: { Name: name, Labels: labels }, signal });
  }

  async hasVolume(name: string, signal?: AbortSignal): Promise<boolean> {
    return (await this.#engine.json({ method: "GET", path: `/volumes/${encode(name)}`, signal })) !== null;
  }

  async volumes(label: string, signal?: AbortSignal): Promise<string[]> {
    const found = await this.#engine.json({ method: "GET", path: `/volumes?${filters({ label: [label] })}`, signal });
    return list(record(found)["Volumes"]).map((it) => text(record(it)["Name"]));
  }

  /** One that is not there is removed. Never by force: that would end the containers that use it. */
  async removeVolume(name: string, signal?: AbortSignal): Promise<void> {
    await this.#engine.json({ method: "DELETE", path: `/volumes/${encode(name)}`, signal });
  }

  /** Returns its id. */
  async createContainer(name: string, spec: ContainerSpec, signal?: AbortSignal): Promise<string> {
    const created = await this.#engine.json({
      method: "POST",
      path: `/containers/create?name=${encode(name)}`,
      json: createRequest(spec),
      signal,
    });
    if (created !== null) return text(record(created)["Id"]);
    throw this.#engine.refused(`the image ${spec.image} is not there: run \`docker pull ${spec.image}\`, or build it`);
  }

  async startContainer(id: string, signal?: AbortSignal): Promise<void> {
    if ((await this.#engine.json({ method: "POST", path: `/containers/${id}/start`, signal })) === null)
      throw this.#engine.refused(`container ${id} was removed before it was started`);
  }

  /** Resolves when the engine has sent it. Refused where it does not run: look at it first, and again after a refusal. */
  async killContainer(id: string, name: string, signal?: AbortSignal): Promise<void> {
    await this.#engine.json({ method: "POST", path: `/containers/${id}/kill?signal=${encode(name)}`, signal });
  }

  async unpauseContainer(id: string, signal?: AbortSignal): Promise<void> {
    await this.#engine.json({ method: "POST", path: `/containers/${id}/unpause`, signal });
  }

  /** Resolves some time after it has ended, or is gone. An engine that is stopped may answer too: look at the container then. */
  async waitContainer(id: string, signal: AbortSignal): Promise<void> {
    await this.#engine.json({
      method: "POST",
      path: `/containers/${id}/wait?condition=not-running`,
      signal,
      timeoutMs: 0,
    });
  }

  /** One that is not there is removed; one that runs is ended. Its unnamed volumes go with it. */
  async removeContainer(id: string, signal?: AbortSignal): Promise<void> {
    await this.#engine.json({ method: "DELETE", path: `/containers/${id}?force=1&v=1`, signal });
  }

  async container(id: string, signal?: AbortSignal): Promise<Container | null> {
    const found = await this.#engine.json({ method: "GET", path: `/containers/${id}/json`, signal });
    return found === null ? null : containerOf(record(found));
  }

  /** Running or not. Of a label: `name` or `name=value`. */
  async containers(by: "label" | "volume", value: string, signal?: AbortSignal): Promise<ListedContainer[]> {
    const found = await this.#engine.json({
      method: "GET",
      path: `/containers/json?all=1&${filters({ [by]: [value] })}`,
      signal,
    });
    return list(found).map((it) => listedOf(record(it)));
  }

  /** What it prints, until it ends; with `sinceMs` (epoch) nothing older. */
  async *logs(id: string, sinceMs: number, signal: AbortSignal): AsyncGenerator<LogPiece> {
    const path = `/containers/${id}/logs?follow=1&stdout=1&stderr=1&since=${(sinceMs / 1000).toFixed(3)}`;
    const body = await this.#engine.call({ method: "GET", path, signal, timeoutMs: 0 });
    if (body !== null) yield* demultiplex(this.#engine.translated(body, signal));
  }

  /** A tar stream of what is at `path` (bytes as latin1) inside; null: nothing is. */
  async archive(id: string, path: string, signal: AbortSignal): Promise<AsyncGenerator<Buffer> | null> {
    const query = `path=${encodeBytes(path)}`;
    const body = await this.#engine.call({
      method: "GET",
      path: `/containers/${id}/archive?${query}`,
      signal,
      timeoutMs: stallMs,
    });
    return body === null ? null : this.#engine.translated(body, signal);
  }

  /** Unpacks a tar stream into the folder at `path`, with the owners that it names. What `content` throws is thrown. */
  async putArchive(id: string, path: string, content: AsyncIterable<Buffer>, signal: AbortSignal): Promise<void> {
    const stalled = new AbortController();
    const timer = setTimeout(() => stalled.abort(this.#engine.away(`no progress within ${stallMs} ms`)), stallMs);
    let failure: { readonly error: unknown } | null = null;
    async function* watched(): AsyncGenerator<Buffer> {
      const source = content[Symbol.asyncIterator]();
      try {
        // Ends with the content. Not `for await`: a request that breaks throws into this generator, and that is no failure of the content.
        for (;;) {
          const next = await source.next().catch((error: unknown) => {
            failure = { error };
            throw error;
          });
          if (next.done === true) return;
          timer.refresh();
          yield next.value;
        }
      } finally {
        await source.return?.();
      }
    }
    try {
      const call: Call = {
        method: "PUT",
        path: `/containers/${id}/archive?path=${encodeBytes(path)}`,
        body: watched(),
        signal: AbortSignal.any([signal, stalled.signal]),
        timeoutMs: 0,
      };
      if ((await this.#engine.json(call)) === null) throw this.#engine.refused(`container ${id} has no folder ${path}`);
    } catch (error) {
      throw (failure as { readonly error: unknown } | null)?.error ?? error;
    } finally {
      clearTimeout(timer);
    }
  }

  async close(): Promise<void> {
    await this.#engine.close();
  }
}

export const isAway = (error: unknown): boolean =>
  error instanceof GatewayError && error.code === "GW_ENGINE_UNAVAILABLE";

const encode = encodeURIComponent;
const filters = (value: Readonly<Record<string, readonly string[]>>): string =>
  `filters=${encode(JSON.stringify(value))}`;

/** Names need not be UTF-8: each byte goes as it is. */
const encodeBytes = (latin1: string): string =>
  latin1.replaceAll(/[^\w/.-]/g, (byte) => `%${byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`);
