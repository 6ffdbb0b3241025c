// What an engine is told of a container that is to be made, and what it says of one that is there.

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

/** The body of a `create`. */
export function createRequest({ command, env, image, labels, mount, port }: ContainerSpec): unknown {
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

export function containerOf(found: Readonly<Record<string, unknown>>): Container {
  const state = record(found["State"]);
  const published = new Map<number, number>();
  for (const [port, bindings] of Object.entries(record(record(found["NetworkSettings"])["Ports"]))) {
    const binding = list(bindings)
      .map(record)
      .find(({ HostIp }) => HostIp === "127.0.0.1");
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

export function listedOf(found: Readonly<Record<string, unknown>>): ListedContainer {
  const { Id, Names, State, Labels: labels } = found;
  const name = text(list(Names)[0]).replace(/^\//, "");
  return { id: text(Id), name, isAlive: aliveStates.has(text(State)), labels: strings(labels) };
}

export const text = (value: unknown): string => (typeof value === "string" ? value : "");
export const list = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : []);
export const record = (value: unknown): Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null ? (value as Readonly<Record<string, unknown>>) : {};
const strings = (value: unknown): Labels =>
  Object.fromEntries(Object.entries(record(value)).map(([name, it]) => [name, text(it)]));
