// One connection to NATS: connects until told to stop, comes back for ever, and translates the driver's errors once.
//
// What the client really does (nats.js 3.4.0, measured or read):
// - A publish made while disconnected is dropped, not queued; requests under way at a disconnect end by their timeout only.
//   `onConnected` tells of it at once, so that nobody waits for nothing.
// - Pings find a server that is stopped but not dead (SIGSTOP): 2 s × 3, then the connection is closed and dialled again.

import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

import {
  DiscardPolicy,
  JetStreamApiError,
  JetStreamError,
  RetentionPolicy,
  StorageType,
  jetstream,
  jetstreamManager,
} from "@nats-io/jetstream";
import type { JetStreamClient, JetStreamManager, StreamConfig, StreamInfo } from "@nats-io/jetstream";
import { connect, credsAuthenticator, errors, headers } from "@nats-io/transport-node";
import type { ConnectionOptions, NatsConnection, TlsOptions } from "@nats-io/transport-node";

import { GatewayError } from "../errors.ts";
import { tlsVersionMin } from "./certificates.ts";
import { tryHandshake } from "./nats-handshake.ts";
import type { TlsPaths } from "./certificates.ts";
import { step } from "../steps.ts";

export interface NatsOptions {
  readonly servers: readonly string[];
  /** Shown in the server's connection list. */
  readonly name: string;
  /** Heard once, when nobody answers at first: a start that waits says for what. */
  readonly onWaiting?: (why: string) => void;
  readonly credentialsFile?: string;
  readonly auth?: { readonly user: string; readonly password: string } | { readonly token: string };
  /** Read anew for each dial. */
  readonly tls?: TlsPaths;
}

export interface Nats {
  readonly connection: NatsConnection;
  readonly jetstream: JetStreamClient;
  readonly manager: JetStreamManager;
  /** For what is tried again at once: a request sent while a cluster elects a leader is never answered, only later ones are. */
  readonly hastyManager: JetStreamManager;
  isConnected(): boolean;
  /** Hears each change, false before true. Returns what takes the listener away. */
  onConnected(listener: (isConnected: boolean) => void): () => void;
  /** Leaves this server for another one, where there are several: at most every five seconds, as all of them may be without an answer. */
  goElsewhere(): void;
  /** Of the server connected to last; it can change at every reconnect. */
  serverVersion(): string;
  /** Rejects pending requests, ends subscriptions; may be called twice. */
  close(): Promise<void>;
}

/** Below it a kill -9 lost whole streams; below 2.10 no write can be made durable. */
export const serverVersionMin = "2.10.23";
/** How long any request to the JetStream API may take before the log counts as unavailable. */
export const apiTimeoutMs = 5_000;
const hastyTimeoutMs = 1_000;
const staysMs = 5_000;

/**
 * Resolves when connected for the first time to a server that is new enough and has JetStream. Waits for one until `signal` aborts
 * (rejects with GW_LOG_UNAVAILABLE). Rejects at once with GW_LOG_SERVER_TOO_OLD, with GW_LOG_CONFIGURATION (no JetStream, wrong
 * credentials, a certificate that one side does not take), with GW_CONFIG_INVALID (unreadable file).
 */
export async function openNats(options: NatsOptions, signal: AbortSignal): Promise<Nats> {
  const connection = await firstConnection(await connectionOptions(options), options, signal);
  try {
    checkServer(connection);
    const manager = await jetstreamManager(connection, { checkAPI: false, timeout: apiTimeoutMs });
    const hastyManager = await jetstreamManager(connection, { checkAPI: false, timeout: hastyTimeoutMs });
    const client = jetstream(connection, { timeout: apiTimeoutMs });
    return new OpenNats(options.servers.length, connection, client, manager, hastyManager);
  } catch (error) {
    await connection.close();
    throw natsError(error, "Connecting to NATS");
  }
}

async function connectionOptions(options: NatsOptions): Promise<ConnectionOptions> {
  const connectionOptions: ConnectionOptions = {
    servers: [...options.servers],
    name: options.name,
    timeout: 2_000,
    pingInterval: 2_000,
    maxPingOut: 2,
    maxReconnectAttempts: -1,
    ignoreAuthErrorAbort: true, // an account that is reloaded must not end us
    // Between two dials of one server: jitter, so that gateways do not come back in step after a restart.
    reconnectDelayHandler: () => Math.round(50 + 100 * Math.random()),
  };
  if (options.credentialsFile !== undefined) {
    connectionOptions.authenticator = credsAuthenticator(await bytesOf(options.credentialsFile));
  }
  const { auth } = options;
  if (auth !== undefined && "token" in auth) connectionOptions.token = auth.token;
  else if (auth !== undefined) Object.assign(connectionOptions, { user: auth.user, pass: auth.password });
  // The driver hands what it does not know to Node. Said, because Node's default can be taken back by the environment.
  if (options.tls !== undefined)
    connectionOptions.tls = { ...options.tls, minVersion: tlsVersionMin, rejectUnauthorized: true } as TlsOptions;
  return connectionOptions;
}

async function bytesOf(file: string): Promise<Uint8Array> {
  try {
    return await readFile(file);
  } catch (error) {
    throw new GatewayError("GW_CONFIG_INVALID", `log.nats.credentialsFile ${file} cannot be read.`, { cause: error });
  }
}

/** Ends when connected, when the credentials are refused, or when `signal` aborts. */
async function firstConnection(
  connectionOptions: ConnectionOptions,
  { onWaiting, servers, tls }: NatsOptions,
  signal: AbortSignal,
): Promise<NatsConnection> {
  let last: unknown;
  let hasTold = false;
  for (let waitMs = 50; !signal.aborted; waitMs = Math.min(waitMs * 2, 2_000)) {
    try {
      return await connect(connectionOptions);
    } catch (error) {
      last = error;
      if (error instanceof errors.AuthorizationError || error instanceof errors.InvalidArgumentError) {
        throw natsError(error, `Connecting to ${servers.join(", ")}`);
      }
      const refusal = tlsRefusal(error) ?? (await handshakeRefusal(servers, tls));
      if (refusal !== null) {
        const message = `Connecting to ${servers.join(", ")}: TLS failed (${refusal}). Mend log.nats.tls, or the servers' certificates.`;
        throw new GatewayError("GW_LOG_CONFIGURATION", message, { cause: error });
      }
      if (!hasTold)
        onWaiting?.(`No NATS server answers at ${servers.join(", ")} (${String(error)}); it is tried again.`);
      hasTold = true;
      await sleep(waitMs * (0.5 + Math.random() / 2), undefined, { signal }).catch(() => {});
    }
  }
  throw new GatewayError("GW_LOG_UNAVAILABLE", `No NATS server answered at ${servers.join(", ")}.`, { cause: last });
}

/** One side did not take the other's certificate: waiting does not help. Null: it was something else. */
function tlsRefusal(error: unknown): string | null {
  // Ends with the innermost cause.
  for (let one = error; one instanceof Error; one = one.cause) {
    const { code, message } = one as NodeJS.ErrnoException;
    if (code !== undefined && refusalCodes.test(code)) return message.replaceAll(/^[0-9A-F]+:error:|:$|\n/g, "");
  }
  return null;
}
/** Of the first server whose TLS tells why. Null: none does. */
async function handshakeRefusal(servers: readonly string[], tls: NatsOptions["tls"]): Promise<string | null> {
  if (tls === undefined) return null;
  for (const server of servers) {
    const refusal = tlsRefusal(await tryHandshake(server, tls).catch(() => null));
    if (refusal !== null) return refusal;
  }
  return null;
}

/** Of OpenSSL's verification, of Node's check of the name, and of the alerts that servers send (RFC 8446 section 6.2). */
const refusalCodes =
  /^(CERT_|CRL_|INVALID_CA$|PATH_LENGTH_|SELF_SIGNED_|DEPTH_ZERO_|UNABLE_TO_|HOSTNAME_MISMATCH$|ERR_TLS_CERT|ERR_SSL_.*(CERTIFICATE|UNKNOWN_CA|PROTOCOL_VERSION|HANDSHAKE_FAILURE))/;

/** Throws GW_LOG_SERVER_TOO_OLD or GW_LOG_CONFIGURATION for the server connected to now. */
export function checkServer(connection: NatsConnection): void {
  const info = connection.info;
  if (info === undefined) return;
  if (isOlder(info.version, serverVersionMin)) {
    throw new GatewayError(
      "GW_LOG_SERVER_TOO_OLD",
      `The NATS server at ${connection.getServer()} is ${info.version}; it can lose acknowledged records when it is killed. ` +
        `Upgrade every server to ${serverVersionMin} or newer, or leave out log.nats to use the embedded log.`,
    );
  }
  if (info.jetstream !== true) {
    throw new GatewayError(
      "GW_LOG_CONFIGURATION",
      `The NATS server at ${connection.getServer()} runs without JetStream. Start it with -js or a jetstream block.`,
    );
  }
}

/** "2.10.27-beta.1" counts as 2.10.27. What is no version is old. */
export function isOlder(version: string, than: string): boolean {
  const [a, b] = [numbersOf(version), numbersOf(than)];
  const at = a.findIndex((part, index) => part !== b[index]);
  return at !== -1 && (a[at] ?? 0) < (b[at] ?? 0);
}

const numbersOf = (version: string): number[] =>
  /^v?(\d+)\.(\d+)\.(\d+)/.exec(version)?.slice(1).map(Number) ?? [0, 0, 0];

class OpenNats implements Nats {
  readonly connection: NatsConnection;
  readonly jetstream: JetStreamClient;
  readonly manager: JetStreamManager;
  readonly hastyManager: JetStreamManager;
  readonly #listeners = new Set<(isConnected: boolean) => void>();
  #isConnected = true;
  #version: string;
  #leftAt = Number.NEGATIVE_INFINITY;
  /** The server that was left: the client's list may offer it again first. */
  #left: string | null = null;

  readonly #serverCount: number;

  constructor(
    serverCount: number,
    connection: NatsConnection,
    jetstream: JetStreamClient,
    manager: JetStreamManager,
    hastyManager: JetStreamManager,
  ) {
    this.#serverCount = serverCount;
    this.connection = connection;
    this.jetstream = jetstream;
    this.manager = manager;
    this.hastyManager = hastyManager;
    this.#version = connection.info?.version ?? "";
    void this.#watch();
  }

  isConnected(): boolean {
    return this.#isConnected;
  }

  onConnected(listener: (isConnected: boolean) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  serverVersion(): string {
    return this.#version;
  }

  goElsewhere(): void {
    const now = performance.now();
    const isAlone = this.#serverCount <= 1 && (this.connection.info?.connect_urls?.length ?? 0) <= 1;
    if (isAlone || !this.#isConnected || now - this.#leftAt < staysMs) return;
    this.#leftAt = now;
    this.#left = this.connection.getServer();
    this.#leave();
  }

  #leave(): void {
    // It ends at a connection that cannot be made, too: the client then dials for ever.
    void this.connection.reconnect().catch(() => undefined);
  }

  async close(): Promise<void> {
    await this.connection.close();
    this.#tell(false);
  }

  /** Ends when the connection is closed for good. */
  async #watch(): Promise<void> {
    for await (const status of this.connection.status()) {
      if (status.type === "reconnect") {
        const isBack = this.connection.getServer() === this.#left;
        this.#left = null;
        if (isBack) {
          this.#leave();
          continue;
        }
        this.#version = this.connection.info?.version ?? this.#version;
        this.#tell(true);
      } else if (status.type === "disconnect" || status.type === "staleConnection" || status.type === "close") {
        this.#tell(false);
      }
    }
    this.#tell(false);
  }

  #tell(isConnected: boolean): void {
    if (this.#isConnected === isConnected) return;
    this.#isConnected = isConnected;
    for (const listener of this.#listeners) listener(isConnected);
  }
}

/** The JetStream API's error code (10059: no such stream …), or null when the server never judged the request. */
export function apiCode(error: unknown): number | null {
  if (error instanceof JetStreamApiError) return error.code;
  // 3.4.0 wraps some API errors of publish() in a plain error with the API error as cause.
  const cause = error instanceof Error ? error.cause : undefined;
  return cause instanceof JetStreamApiError ? cause.code : null;
}

/** True when nobody was there to receive the request: it certainly had no effect. */
export function isNoResponders(error: unknown): boolean {
  return (
    error instanceof errors.NoRespondersError ||
    (error instanceof errors.RequestError && error.isNoResponders()) ||
    (error instanceof Error && error.name === "JetStreamNotEnabled")
  );
}

/** `what` reads "Looking up the tail of GW_shop". Nothing is known of the effect of what failed, unless its caller knows better. */
export function natsError(error: unknown, what: string): GatewayError {
  if (error instanceof GatewayError) return error;
  const text = error instanceof Error ? error.message : String(error);
  if (error instanceof errors.AuthorizationError || error instanceof errors.PermissionViolationError) {
    return new GatewayError("GW_LOG_CONFIGURATION", `${what}: the NATS server refused it (${text}).`, { cause: error });
  }
  if (error instanceof errors.InvalidArgumentError) {
    return new GatewayError("GW_LOG_CONFIGURATION", `${what}: ${text}.`, { cause: error });
  }
  if (isNoResponders(error)) {
    return new GatewayError("GW_LOG_UNAVAILABLE", `${what}: JetStream is not answering (no leader, or disabled).`, {
      cause: error,
    });
  }
  if (error instanceof JetStreamApiError || error instanceof JetStreamError) {
    return new GatewayError("GW_LOG_UNAVAILABLE", `${what}: JetStream answered "${text}".`, { cause: error });
  }
  return new GatewayError("GW_LOG_UNAVAILABLE", `${what}: no answer (${text}).`, { cause: error });
}

// Streams: the three that belong to a service are made and judged the same way.

/** What a stream must be. Fields that are left out are the operator's: placement, compression, description. */
export interface StreamPlan {
  readonly name: string;
  readonly subjects: readonly string[];
  readonly replicas: number;
  readonly maxBytes: number;
  readonly discard: "new" | "old";
  readonly isDirect: boolean;
  readonly firstSequence?: number;
  /** Not compared: the server adds keys of its own, and only the log knows what its epoch means. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** A stream name and subject token of a service: letters, digits and "-" stay, the rest becomes _hh. Distinct names stay distinct. */
export function serviceToken(service: string): string {
  return service.replaceAll(/[^A-Za-z0-9-]/gu, (char) =>
    [...Buffer.from(char)].map((byte) => `_${byte.toString(16).padStart(2, "0")}`).join(""),
  );
}

/** `GW_<service>`; its bodies and digests are `GW_<service>_BODIES` and `_DIGESTS`. */
export const streamName = (service: string): string => `GW_${serviceToken(service)}`;
export const streamSubject = (service: string): string => `gw.${serviceToken(service)}`;

function configOf(plan: StreamPlan): Partial<StreamConfig> & { name: string } {
  return {
    name: plan.name,
    subjects: [...plan.subjects],
    ...enforced(plan),
    ...(plan.firstSequence === undefined || plan.firstSequence === 1 ? {} : { first_seq: plan.firstSequence }),
    metadata: { ...plan.metadata },
  };
}

/** Every setting that could lose, hide or reorder what was acknowledged. */
function enforced(plan: StreamPlan): Partial<StreamConfig> {
  return {
    storage: StorageType.File,
    retention: RetentionPolicy.Limits,
    discard: plan.discard === "new" ? DiscardPolicy.New : DiscardPolicy.Old,
    num_replicas: plan.replicas,
    max_bytes: plan.maxBytes,
    max_msgs: -1,
    max_msgs_per_subject: -1,
    max_age: 0,
    max_msg_size: -1, // the server's max_payload rules
    max_consumers: -1,
    duplicate_window: 100_000_000, // the smallest there is; Nats-Msg-Id is never sent
    deny_delete: true, // purges, which truncate, are the only way out
    deny_purge: false,
    allow_rollup_hdrs: false,
    allow_direct: plan.isDirect,
    mirror_direct: false,
    discard_new_per_subject: false,
    no_ack: false,
    sealed: false,
  };
}

/** Settings that a server fills in by itself or that do not exist on older ones, and what they must not be. */
const forbidden = [
  "mirror",
  "sources",
  "subject_transform",
  "allow_msg_ttl",
  "allow_msg_schedules",
  "allow_msg_counter",
];

const isEmpty = (value: unknown): boolean =>
  value === undefined || value === null || value === false || value === 0 || value === "";

/** How the stream differs from the plan, as sentences for a person; empty when it does not. */
export function streamDrift(config: StreamConfig, plan: StreamPlan): string[] {
  const have = config as unknown as Readonly<Record<string, unknown>>;
  const faults = Object.entries(enforced(plan))
    .filter(([field, want]) => !(have[field] === want || (isEmpty(have[field]) && isEmpty(want))))
    .map(([field, want]) => `${field} is ${JSON.stringify(have[field])} and must be ${JSON.stringify(want)}`);
  if (JSON.stringify(config.subjects) !== JSON.stringify(plan.subjects)) {
    faults.push(`subjects are ${JSON.stringify(config.subjects)} and must be ${JSON.stringify(plan.subjects)}`);
  }
  for (const field of forbidden) {
    const value = have[field];
    if (!isEmpty(value) && !(Array.isArray(value) && value.length === 0)) faults.push(`${field} must not be set`);
  }
  if (!isEmpty(have["persist_mode"]) && have["persist_mode"] !== "default")
    faults.push(`persist_mode must be "default"`);
  return faults;
}

/** Throws GW_LOG_CONFIGURATION when the stream is not as planned. */
export function checkStream(config: StreamConfig, plan: StreamPlan): void {
  const faults = streamDrift(config, plan);
  if (faults.length === 0) return;
  throw new GatewayError(
    "GW_LOG_CONFIGURATION",
    `Stream ${plan.name} is not as the gateway needs it: ${faults.join("; ")}. ` +
      `Mend it with "nats stream edit ${plan.name}", or make the gateway's log settings agree with it.`,
  );
}

/** The stream with `log.max` as it is configured now: its size is the one setting that may change. Everything else is checked. */
export async function fitStream(nats: Nats, found: StreamInfo, plan: StreamPlan): Promise<StreamInfo> {
  const isOtherSize = found.config.max_bytes !== plan.maxBytes;
  checkStream(isOtherSize ? { ...found.config, max_bytes: plan.maxBytes } : found.config, plan);
  if (!isOtherSize) return found;
  try {
    return await nats.manager.streams.update(plan.name, { ...found.config, max_bytes: plan.maxBytes });
  } catch (error) {
    if (isFinal(apiCode(error))) throw cannotMake(plan, error);
    throw natsError(error, `Resizing stream ${plan.name}`);
  }
}

/** The stream as planned: made when there is none, else fitted and checked. */
export async function ensureStream(nats: Nats, plan: StreamPlan): Promise<StreamInfo> {
  const found = await findStream(nats, plan.name);
  return found === null ? createStream(nats, plan) : fitStream(nats, found, plan);
}

/** Null when there is no such stream. Rejects with GW_LOG_UNAVAILABLE. */
export async function findStream(nats: Nats, name: string, isHasty = false): Promise<StreamInfo | null> {
  try {
    return await (isHasty ? nats.hastyManager : nats.manager).streams.info(name);
  } catch (error) {
    if (apiCode(error) === api.streamNotFound) return null;
    throw natsError(error, `Looking up stream ${name}`);
  }
}

/**
 * Makes the stream. One that exists, also by a race with another gateway, is given back as it is. Tries for `apiTimeoutMs` while a
 * cluster has no leader yet. Rejects with GW_LOG_CONFIGURATION when it can never be made, GW_LOG_UNAVAILABLE otherwise.
 */
export async function createStream(nats: Nats, plan: StreamPlan): Promise<StreamInfo> {
  const until = performance.now() + apiTimeoutMs;
  // Ends with a stream, with a final refusal or when the time is over.
  for (;;) {
    step("stream.create");
    try {
      return await nats.manager.streams.add(configOf(plan));
    } catch (error) {
      const found = apiCode(error) === api.streamNameInUse ? await findStream(nats, plan.name) : null;
      if (found !== null) return found;
      if (isFinal(apiCode(error))) throw cannotMake(plan, error);
      if (performance.now() > until) throw natsError(error, `Making stream ${plan.name}`);
      await sleep(100);
    }
  }
}

function cannotMake(plan: StreamPlan, error: unknown): GatewayError {
  const text = error instanceof Error ? error.message : String(error);
  return new GatewayError(
    "GW_LOG_CONFIGURATION",
    `Stream ${plan.name} (${plan.replicas} replicas, ${plan.maxBytes} bytes) cannot be made: ${text}. ` +
      `Check log.nats.replicas against the size of the cluster, and log.max against the server's max_file_store.`,
    { cause: error },
  );
}

/** Error codes of the JetStream API (nats-server, server/errors.json). */
export const api = {
  insufficientResources: 10023,
  noPeers: 10005,
  storageExceeded: 10047,
  streamNameInUse: 10058,
  streamNotFound: 10059,
  messageTooLarge: 10054,
  subjectsOverlap: 10065,
  noMessage: 10037,
  wrongLastSequence: 10071,
  replicasUnsupported: 10074,
  storeFailed: 10077,
} as const;

/** What a stream answered to a publish. */
export interface Ack {
  readonly stream?: string;
  readonly sequence?: number;
  /** Error code of the JetStream API; 0 without one. */
  readonly code: number;
  readonly description: string;
  /** At its limit: judged before anything is written or proposed to other replicas, so certainly not stored. */
  readonly isFull: boolean;
}

export function readAck(text: string): Ack {
  const nothing = { code: 0, description: "", isFull: false };
  try {
    const { stream, seq, error } = JSON.parse(text) as {
      stream?: string;
      seq?: number;
      error?: { err_code?: number; description?: string };
    };
    if (error !== undefined) {
      const { err_code: code = 0, description = "" } = error;
      const isFull = code === api.storeFailed && /maximum (bytes|messages) exceeded/.test(description);
      return { code, description, isFull };
    }
    if (typeof stream === "string" && typeof seq === "number" && seq > 0) return { ...nothing, stream, sequence: seq };
  } catch {
    // Not JSON: an answer that says nothing.
  }
  return nothing;
}

/** The answer to a request, or a rejection as soon as the connection is lost: the client itself would wait for its timeout. */
export function whileConnected<T>(nats: Nats, request: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const unlisten = nats.onConnected(() =>
      reject(new GatewayError("GW_LOG_UNAVAILABLE", "The connection to NATS was lost before the answer came.")),
    );
    request.then(resolve, reject).finally(unlisten);
  });
}

export interface PublishOptions {
  /** Stored only if the last message of the subject has this sequence; 0: if it has none. */
  readonly expectedLast?: number;
}

/**
 * One message, once: its sequence when the stream acknowledged it. Rejects with GW_LOG_FULL (not stored), GW_CONFLICT (not stored:
 * `expectedLast` does not hold) or GW_LOG_UNAVAILABLE (it may be stored).
 */
export async function publish(
  nats: Nats,
  stream: string,
  subject: string,
  bytes: Uint8Array,
  options: PublishOptions = {},
): Promise<number> {
  const what = `Storing ${bytes.length} bytes in ${stream}`;
  if (!nats.isConnected()) throw new GatewayError("GW_LOG_UNAVAILABLE", `${what}: there is no connection to NATS.`);
  const withHeaders = options.expectedLast === undefined ? {} : { headers: headers() };
  withHeaders.headers?.set("Nats-Expected-Last-Subject-Sequence", `${options.expectedLast}`);
  let ack: Ack;
  try {
    step("stream.publish");
    const request = nats.connection.request(subject, bytes, { timeout: apiTimeoutMs, ...withHeaders });
    ack = readAck((await whileConnected(nats, request)).string());
  } catch (error) {
    throw natsError(error, what);
  }
  if (ack.sequence !== undefined && ack.stream === stream) return ack.sequence;
  if (ack.isFull) throw new GatewayError("GW_LOG_FULL", `${what}: ${stream} is full.`);
  if (ack.code === api.wrongLastSequence) throw new GatewayError("GW_CONFLICT", `${what}: ${ack.description}.`);
  throw new GatewayError("GW_LOG_UNAVAILABLE", `${what}: JetStream answered "${ack.description}".`);
}

/** Repeats what rejects with GW_LOG_UNAVAILABLE, over a restart or a change of leader, for at most `withinMs`. */
export async function insist<T>(withinMs: number, work: () => Promise<T>): Promise<T> {
  const until = performance.now() + withinMs;
  // Ends with a result, another error, or when the time is over.
  for (let waitMs = 20; ; waitMs = Math.min(waitMs * 2, 500)) {
    try {
      return await work();
    } catch (error) {
      const isWorth = error instanceof GatewayError && error.code === "GW_LOG_UNAVAILABLE";
      if (!isWorth || performance.now() + waitMs > until) throw error;
      await sleep(waitMs);
    }
  }
}

/** How long what is no part of a client's request is tried again: above the fail-over of an R3 leader. */
export const insistMs = 15_000;

const isFinal = (code: number | null): boolean =>
  code === api.subjectsOverlap || code === api.replicasUnsupported || code === api.storageExceeded;
