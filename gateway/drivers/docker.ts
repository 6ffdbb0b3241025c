// The Docker API of a container engine (Docker, Podman): the calls that containers as replicas need, bounded in time, errors translated once.
//
// - Every call has a connection of its own: one that was kept may be closed by the engine at the moment of use, and a POST is then ambiguous.
// - Engine away: GW_ENGINE_UNAVAILABLE, and what was asked may have been done. What it refuses: GW_ENGINE_REFUSED, with its own words.
//   That a thing is not there is a return value, because everything here is asked for again after a crash.
// - Nothing is pulled: which image runs is a person's decision.
//
// What engines really do (measured, Podman 4.3.1): `wait` for not-running answers 0.5 to 1.2 s late; `Mounts[].VolumeOptions` is ignored, the
// `nocopy` of `Binds` is not; an archive's names begin with "/" (Docker: with the folder's name), and its owners are the container's user,
// whoever owns the files; a kill by SIGKILL answers when the container has ended.

import { Readable } from "node:stream";
import { Pool } from "undici";
import { GatewayError } from "../errors.ts";
import { demultiplex } from "./docker-logs.ts";
import type { Dispatcher } from "undici";
import type { LogPiece } from "./docker-logs.ts";

/** Docker 20.10 knows nothing newer; what newer engines have dropped is found out by asking. */
const pinnedVersion = "1.41";
/** Of lists and descriptions. */
const answerBytesMax = 16 * 1024 * 1024;
/** An archive that does not move for so long never will. */
const stallMs = 120_000;

export type Labels = Readonly<Record<string, string>>;

export interface ContainerSpec {
  readonly image: string;
  readonly labels: Labels;
  /** Null: the image's own. */
  readonly command: readonly string[] | null;
  readonly env: Readonly<Record<string, string>>;
  /** Published on 127.0.0.1, on a port that the engine finds. Null: none. */
  readonly port: number | null;
  readonly mount: VolumeMount | null;
}

export interface VolumeMount {
  readonly volume: string;
  readonly path: string;
  /** A new volume gets what the image has at `path`. */
  readonly copiesImage: boolean;
}

export interface Container {
  readonly id: string;
  readonly status: string;
  /** Its first process has not ended, be it paused. */
  readonly isAlive: boolean;
  readonly isPaused: boolean;
  /** Of this life: another start, another time. */
  readonly startedAt: string;
  readonly exitCode: number;
  readonly wasOutOfMemory: boolean;
  readonly stopSignal: string;
  /** `sha256:…` */
  readonly imageId: string;
  /** Where a port of the container is on 127.0.0.1. */
  readonly published: ReadonlyMap<number, number>;
}

export interface ListedContainer {
  readonly id: string;
  readonly name: string;
  readonly isAlive: boolean;
  readonly labels: Labels;
}

interface Call {
  readonly method: "GET" | "POST" | "PUT" | "DELETE";
  /** Below the version. */
  readonly path: string;
  readonly json?: unknown;
  readonly body?: AsyncIterable<Buffer>;
  readonly signal?: AbortSignal | undefined;
  /** Between the request and the head of the answer, and between its pieces; 0: for ever. */
  readonly timeoutMs?: number;
}

export class DockerEngine {
  /** `unix:///path` or `tcp://host:port`, for messages. */
  readonly address: string;
  readonly #pool: Pool;
  readonly #timeoutMs: number;
  #version: string | null = null;

  constructor(address: string, timeoutMs = 60_000) {
    this.address = address;
    this.#timeoutMs = timeoutMs;
    const { origin, socketPath } = parseAddress(address);
    this.#pool = new Pool(origin, {
      pipelining: 0,
      connect: { timeout: Math.min(timeoutMs, 5_000), ...(socketPath === null ? {} : { socketPath }) },
    });
  }

  /** Whether an engine is there, and which. */
  async ping(signal?: AbortSignal): Promise<{ readonly name: string; readonly version: string }> {
    const said = record(await this.#json({ method: "GET", path: "/version", signal }));
    const components = list(said["Components"]).map(record);
    return { name: text(components[0]?.["Name"]) || "Docker", version: text(said["Version"]) };
  }

  /** `sha256:…`; null: the engine does not have it. */
  async imageId(image: string, signal?: AbortSignal): Promise<string | null> {
    const found = await this.#json({ method: "GET", path: `/images/${encode(image)}/json`, signal });
    return found === null ? null : text(record(found)["Id"]);
  }

  async createVolume(name: string, labels: Labels, signal?: AbortSignal): Promise<void> {
    await this.#json({ method: "POST", path: "/volumes/create", json: { Name: name, Labels: labels }, signal });
  }

  async hasVolume(name: string, signal?: AbortSignal): Promise<boolean> {
    return (await this.#json({ method: "GET", path: `/volumes/${encode(name)}`, signal })) !== null;
  }

  async volumes(label: string, signal?: AbortSignal): Promise<string[]> {
    const found = await this.#json({ method: "GET", path: `/volumes?${filters({ label: [label] })}`, signal });
    return list(record(found)["Volumes"]).map((it) => text(record(it)["Name"]));
  }

  /** One that is not there is removed. Never by force: that would end the containers that use it. */
  async removeVolume(name: string, signal?: AbortSignal): Promise<void> {
    await this.#json({ method: "DELETE", path: `/volumes/${encode(name)}`, signal });
  }

  /** Returns its id. */
  async createContainer(name: string, spec: ContainerSpec, signal?: AbortSignal): Promise<string> {
    const created = await this.#json({
      method: "POST",
      path: `/containers/create?name=${encode(name)}`,
      json: requestOf(spec),
      signal,
    });
    if (created !== null) return text(record(created)["Id"]);
    throw this.#refused(`the image ${spec.image} is not there: run \`docker pull ${spec.image}\`, or build it`);
  }

  async startContainer(id: string, signal?: AbortSignal): Promise<void> {
    if ((await this.#json({ method: "POST", path: `/containers/${id}/start`, signal })) === null)
      throw this.#refused(`container ${id} was removed before it was started`);
  }

  /** Resolves when the engine has sent it. Refused where it does not run: look at it first, and again after a refusal. */
  async killContainer(id: string, name: string, signal?: AbortSignal): Promise<void> {
    await this.#json({ method: "POST", path: `/containers/${id}/kill?signal=${encode(name)}`, signal });
  }

  async unpauseContainer(id: string, signal?: AbortSignal): Promise<void> {
    await this.#json({ method: "POST", path: `/containers/${id}/unpause`, signal });
  }

  /** Resolves some time after it has ended, or is gone. An engine that is stopped may answer too: look at the container then. */
  async waitContainer(id: string, signal: AbortSignal): Promise<void> {
    await this.#json({ method: "POST", path: `/containers/${id}/wait?condition=not-running`, signal, timeoutMs: 0 });
  }

  /** One that is not there is removed; one that runs is ended. Its unnamed volumes go with it. */
  async removeContainer(id: string, signal?: AbortSignal): Promise<void> {
    await this.#json({ method: "DELETE", path: `/containers/${id}?force=1&v=1`, signal });
  }

  async container(id: string, signal?: AbortSignal): Promise<Container | null> {
    const found = await this.#json({ method: "GET", path: `/containers/${id}/json`, signal });
    return found === null ? null : containerOf(record(found));
  }

  /** Running or not. Of a label: `name` or `name=value`. */
  async containers(by: "label" | "volume", value: string, signal?: AbortSignal): Promise<ListedContainer[]> {
    const found = await this.#json({
      method: "GET",
      path: `/containers/json?all=1&${filters({ [by]: [value] })}`,
      signal,
    });
    return list(found).map((it) => {
      const { Id, Names, State, Labels: labels } = record(it);
      const name = text(list(Names)[0]).replace(/^\//, "");
      return { id: text(Id), name, isAlive: aliveStates.has(text(State)), labels: strings(labels) };
    });
  }

  /** What it prints, until it ends; with `sinceMs` (epoch) nothing older. */
  async *logs(id: string, sinceMs: number, signal: AbortSignal): AsyncGenerator<LogPiece> {
    const path = `/containers/${id}/logs?follow=1&stdout=1&stderr=1&since=${(sinceMs / 1000).toFixed(3)}`;
    const body = await this.#call({ method: "GET", path, signal, timeoutMs: 0 });
    if (body !== null) yield* demultiplex(this.#translated(body, signal));
  }

  /** A tar stream of what is at `path` (bytes as latin1) inside; null: nothing is. */
  async archive(id: string, path: string, signal: AbortSignal): Promise<AsyncGenerator<Buffer> | null> {
    const query = `path=${encodeBytes(path)}`;
    const body = await this.#call({ method: "GET", path: `/containers/${id}/archive?${query}`, signal, timeoutMs: stallMs });
    return body === null ? null : this.#translated(body, signal);
  }

  /** Unpacks a tar stream into the folder at `path`, with the owners that it names. What `content` throws is thrown. */
  async putArchive(id: string, path: string, content: AsyncIterable<Buffer>, signal: AbortSignal): Promise<void> {
    const stalled = new AbortController();
    const timer = setTimeout(() => stalled.abort(this.#away(`no progress within ${stallMs} ms`)), stallMs);
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
      if ((await this.#json(call)) === null) throw this.#refused(`container ${id} has no folder ${path}`);
    } catch (error) {
      throw (failure as { readonly error: unknown } | null)?.error ?? error;
    } finally {
      clearTimeout(timer);
    }
  }

  async close(): Promise<void> {
    await this.#pool.destroy();
  }

  /** The answer's JSON; null: 404; an empty object: nothing was said. */
  async #json(call: Call): Promise<unknown> {
    const body = await this.#call(call);
    if (body === null) return null;
    const said = await this.#read(body, call.signal);
    if (said === "") return {};
    try {
      return JSON.parse(said) as unknown;
    } catch (error) {
      throw this.#away(`what answers ${call.method} ${call.path} is no container engine`, error);
    }
  }

  /** The answer's body, to be read to its end or given up; null: 404. */
  async #call(call: Call): Promise<Dispatcher.ResponseData["body"] | null> {
    const version = (this.#version ??= await this.#findVersion(call.signal));
    const { statusCode, body } = await this.#send(`/v${version}`, call);
    if (statusCode < 300 || statusCode === 304) return body;
    const said = await this.#read(body, call.signal);
    if (statusCode === 404) return null;
    throw this.#refused(`${call.method} ${call.path.split("?", 1)[0]}: ${messageIn(said)}`);
  }

  /** The pinned one, unless the engine no longer has it. */
  async #findVersion(signal: AbortSignal | undefined): Promise<string> {
    const { body } = await this.#send("", { method: "GET", path: "/version", signal });
    const said = await this.#read(body, signal);
    let oldest = "";
    try {
      oldest = text(record(JSON.parse(said))["MinAPIVersion"]);
    } catch (error) {
      throw this.#away("what answers there is no container engine", error);
    }
    return minorOf(oldest) > minorOf(pinnedVersion) ? oldest : pinnedVersion;
  }

  async #send(prefix: string, call: Call): Promise<Dispatcher.ResponseData> {
    const { json, method, path, signal, timeoutMs = this.#timeoutMs } = call;
    signal?.throwIfAborted();
    const isTar = call.body !== undefined;
    const body = isTar ? Readable.from(call.body, { objectMode: false }) : json === undefined ? null : JSON.stringify(json);
    try {
      return await this.#pool.request({
        method,
        path: prefix + path,
        headersTimeout: timeoutMs,
        bodyTimeout: timeoutMs,
        body,
        headers: { "content-type": isTar ? "application/x-tar" : "application/json" },
        signal: signal ?? null,
      });
    } catch (error) {
      throw this.#translate(error, signal);
    }
  }

  async #read(body: AsyncIterable<Buffer>, signal: AbortSignal | undefined): Promise<string> {
    const pieces: Buffer[] = [];
    let bytes = 0;
    for await (const piece of this.#translated(body, signal)) {
      bytes += piece.length;
      if (bytes > answerBytesMax) throw this.#away(`it answered more than ${answerBytesMax} bytes`);
      pieces.push(piece);
    }
    return Buffer.concat(pieces).toString("utf8");
  }

  async *#translated(body: AsyncIterable<Buffer>, signal: AbortSignal | undefined): AsyncGenerator<Buffer> {
    try {
      yield* body;
    } catch (error) {
      throw this.#translate(error, signal);
    }
  }

  #translate(error: unknown, signal: AbortSignal | undefined): unknown {
    if (signal?.aborted === true) return signal.reason;
    // Perhaps it is replaced by another that knows other versions.
    this.#version = null;
    const { code = "", message } = error as NodeJS.ErrnoException;
    const mend = code === "EACCES" ? ": this user may not use the socket" : "";
    return error instanceof GatewayError ? error : this.#away(message + mend, error);
  }

  #away(what: string, cause?: unknown): GatewayError {
    const message = `the container engine at ${this.address} cannot be used: ${what}`;
    return new GatewayError("GW_ENGINE_UNAVAILABLE", message, { retryAfterS: 1, ...(cause === undefined ? {} : { cause }) });
  }

  #refused(what: string): GatewayError {
    return new GatewayError("GW_ENGINE_REFUSED", `the container engine at ${this.address} refuses: ${what}`);
  }
}

export const isAway = (error: unknown): boolean => error instanceof GatewayError && error.code === "GW_ENGINE_UNAVAILABLE";

/** `unix:///path` or `tcp://host:port`, on this machine: what containers publish is on its 127.0.0.1 alone. */
function parseAddress(address: string): { readonly origin: string; readonly socketPath: string | null } {
  const [, path] = /^unix:\/\/(\/.+)$/.exec(address) ?? [];
  if (path !== undefined) return { origin: "http://engine", socketPath: path };
  const [, host, port] = /^(?:tcp|http):\/\/(localhost|127(?:\.\d+){3}|\[::1\]):(\d+)\/?$/.exec(address) ?? [];
  if (host !== undefined) return { origin: `http://${host}:${port}`, socketPath: null };
  throw new GatewayError(
    "GW_CONFIG_INVALID",
    `the container engine ${address} is neither unix:///PATH nor tcp://HOST:PORT of this machine: containers are reached on 127.0.0.1, so run the gateway where the engine is`,
  );
}

function requestOf({ command, env, image, labels, mount, port }: ContainerSpec): unknown {
  const exposed = `${port}/tcp`;
  return {
    Image: image,
    Labels: labels,
    Env: Object.entries(env).map(([name, value]) => `${name}=${value}`),
    ...(command === null ? {} : { Cmd: command }),
    ...(port === null ? {} : { ExposedPorts: { [exposed]: {} } }),
    HostConfig: {
      // Whether and when it runs again is the gateway's decision: a life that it does not know of would answer in the place of the former.
      RestartPolicy: { Name: "no" },
      ...(port === null ? {} : { PortBindings: { [exposed]: [{ HostIp: "127.0.0.1", HostPort: "" }] } }),
      ...(mount === null ? {} : { Binds: [`${mount.volume}:${mount.path}:rw${mount.copiesImage ? "" : ",nocopy"}`] }),
      // The engine keeps everything that is printed, for ever, unless it is told otherwise.
      LogConfig: { Type: "json-file", Config: { "max-size": "10m" } },
    },
  };
}

const aliveStates = new Set(["running", "paused", "restarting", "stopping", "removing"]);

function containerOf(found: Readonly<Record<string, unknown>>): Container {
  const state = record(found["State"]);
  const published = new Map<number, number>();
  for (const [port, bindings] of Object.entries(record(record(found["NetworkSettings"])["Ports"]))) {
    const binding = list(bindings).map(record).find(({ HostIp }) => HostIp === "127.0.0.1");
    if (binding !== undefined) published.set(Number.parseInt(port, 10), Number(binding["HostPort"]));
  }
  return {
    id: text(found["Id"]),
    status: text(state["Status"]),
    isAlive: aliveStates.has(text(state["Status"])),
    isPaused: text(state["Status"]) === "paused",
    startedAt: text(state["StartedAt"]),
    exitCode: Number(state["ExitCode"]),
    wasOutOfMemory: state["OOMKilled"] === true,
    stopSignal: text(record(found["Config"])["StopSignal"]) || "SIGTERM",
    imageId: text(found["Image"]),
    published,
  };
}

/** `{"message"}`, as both engines answer. */
function messageIn(said: string): string {
  try {
    return text(record(JSON.parse(said))["message"]) || said.slice(0, 1_000);
  } catch {
    return said.slice(0, 1_000);
  }
}

const minorOf = (version: string): number => Number(version.split(".")[1] ?? 0);
const encode = encodeURIComponent;
const filters = (value: Readonly<Record<string, readonly string[]>>): string => `filters=${encode(JSON.stringify(value))}`;

/** Names need not be UTF-8: each byte goes as it is. */
const encodeBytes = (latin1: string): string =>
  latin1.replaceAll(/[^\w/.-]/g, (byte) => `%${byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`);

const text = (value: unknown): string => (typeof value === "string" ? value : "");
const list = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : []);
const record = (value: unknown): Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null ? (value as Readonly<Record<string, unknown>>) : {};
const strings = (value: unknown): Labels =>
  Object.fromEntries(Object.entries(record(value)).map(([name, it]) => [name, text(it)]));
