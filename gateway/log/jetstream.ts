// The log on NATS: one stream a service, one message a record. Any number of gateways append and read.
//
// Nothing is published to a stream that was not looked at since the last (re)connect: its epoch, its settings and its end are
// compared first, so a stream that was recreated, restored or edited meets a closed door instead of a client's write.

import { setTimeout as sleep } from "node:timers/promises";

import type { StreamInfo } from "@nats-io/jetstream";
import { errors } from "@nats-io/transport-node";
import { Agent, request } from "undici";

import { partsOf } from "../drivers/certificates.ts";
import type { TlsPaths } from "../drivers/certificates.ts";
import { JetStreamFeed } from "../drivers/nats-feed.ts";
import {
  api,
  apiCode,
  apiTimeoutMs,
  checkServer,
  checkStream,
  createStream,
  findStream,
  fitStream,
  isNoResponders,
  isOlder,
  natsError,
  readAck,
  serverVersionMin,
  streamName,
  streamSubject,
  whileConnected,
} from "../drivers/nats.ts";
import type { Nats, StreamPlan } from "../drivers/nats.ts";
import { GatewayError } from "../errors.ts";
import type { Appended, GuaranteeReport, Log, LogCreation, LogInfo, StoredRecord } from "./log.ts";
import { step } from "../steps.ts";

export interface JetStreamLogOptions {
  /** Opened and closed by the caller. */
  readonly nats: Nats;
  readonly service: string;
  readonly replicas: number;
  readonly maxBytes: number;
  /** Monitoring addresses of every server that holds a replica of the stream, such as http://127.0.0.1:8222. */
  readonly monitor: readonly string[];
  /** Of monitoring addresses at https://, read anew for each question. */
  readonly tls?: TlsPaths;
  /** How to begin the log if there is none. An existing stream is opened as it is: compare its `epoch`. */
  readonly create: LogCreation | null;
  /** After it an append counts as unknown; default 5 s, with several replicas 1.5 s. */
  readonly appendTimeoutMs?: number;
}

/**
 * Null when there is no stream and `create` is null. Rejects with GW_LOG_CONFIGURATION for a stream that is not as it must be,
 * GW_LOG_UNAVAILABLE when the server does not answer.
 */
export async function openJetStreamLog(options: JetStreamLogOptions): Promise<Log | null> {
  const { nats, service, create } = options;
  const name = streamName(service);
  checkServer(nats.connection);
  const plan: StreamPlan = {
    name,
    subjects: [`${streamSubject(service)}.log`],
    replicas: options.replicas,
    maxBytes: options.maxBytes,
    discard: "new",
    isDirect: false, // a direct get may be answered by a replica that lags
    ...(create === null
      ? { metadata: {} }
      : { firstSequence: create.firstSequence, metadata: { [epochKey]: create.epoch, [formatKey]: "1" } }),
  };
  const existing = await findStream(nats, name);
  const found =
    existing !== null ? await fitStream(nats, existing, plan) : create === null ? null : await createStream(nats, plan);
  if (found === null) return null;
  const { [epochKey]: epoch, [formatKey]: format } = found.config.metadata ?? {};
  if (epoch === undefined || format !== "1") {
    throw new GatewayError(
      "GW_LOG_CONFIGURATION",
      `Stream ${name} was not made by a gateway of this version (metadata ${formatKey} is ${format ?? "absent"}).`,
    );
  }
  return new JetStreamLog(options, plan, epoch, found.state.last_seq);
}

const epochKey = "br2k-epoch";
const formatKey = "br2k-format";
const monitorTimeoutMs = 2_000;
/** What is sent while a cluster elects a leader is never answered: sent again often, it costs little more than the election. */
const appendMs = { alone: 5_000, replicated: 1_500 };
/** Between two looks at a record that a replica has not got. */
const gapPauseMs = 200;
/** A server that says nothing of the stream for so long may be cut off from the others. */
const unansweredMs = 3_000;
/** A deposed leader may answer with an older end, a starting cluster with no stream: believed only when it stays so. */
const confirmMs = { alone: 1_000, replicated: 10_000 };

class JetStreamLog implements Log {
  readonly kind = "nats";
  readonly epoch: string;
  readonly isTailExact: boolean;
  readonly #options: JetStreamLogOptions;
  readonly #nats: Nats;
  readonly #plan: StreamPlan;
  readonly #subject: string;
  readonly #appendTimeoutMs: number;
  readonly #unlisten: () => void;
  /** Highest sequence known to be stored: no later look at the stream may show less. */
  #highest: number;
  /** False from a disconnect until the stream was looked at again. */
  #isVerified = true;
  #verifying: Promise<void> | null = null;
  /** False from an append that timed out until anything was answered. */
  #isAnswering = true;
  /** When the first of the appends was sent that nobody decided; a look does not end it, as a deposed leader answers those. */
  #silentSince: number | null = null;
  /** Why nothing may be appended now: regressed, edited, too old. The next good look takes it away. */
  #fault: GatewayError | null = null;
  #isClosed = false;
  #wasReachable = true;
  readonly #closing = new AbortController();
  readonly #listeners = new Set<(isReachable: boolean) => void>();

  constructor(options: JetStreamLogOptions, plan: StreamPlan, epoch: string, last: number) {
    this.#options = options;
    this.#nats = options.nats;
    this.#plan = plan;
    this.#subject = plan.subjects[0] ?? "";
    this.#appendTimeoutMs = options.appendTimeoutMs ?? (options.replicas > 1 ? appendMs.replicated : appendMs.alone);
    this.#highest = last;
    this.epoch = epoch;
    this.isTailExact = options.replicas === 1;
    this.#unlisten = options.nats.onConnected((isConnected) => this.#connected(isConnected));
  }

  /** What the server connected to now takes; a record costs nothing but itself. */
  get recordBytesMax(): number {
    return Math.min(this.#nats.connection.info?.max_payload ?? 1024 * 1024, 8 * 1024 * 1024);
  }

  async append(record: Buffer): Promise<Appended> {
    if (!this.#isReady()) {
      const error = await this.#whyNotReady();
      if (error !== null) return { kind: "refused", error };
    }
    const before = this.#highest;
    const askedAt = performance.now();
    let answer: string;
    try {
      step("log.append");
      const request = this.#nats.connection.request(this.#subject, record, { timeout: this.#appendTimeoutMs });
      answer = (await whileConnected(this.#nats, request)).string();
    } catch (error) {
      return this.#appendFailed(error, record, askedAt);
    }
    this.#answered();
    const appended = this.#judge(answer, before);
    if (appended.kind === "unknown") this.#silent(askedAt);
    else this.#silentSince = null;
    return appended;
  }

  #judge(answer: string, before: number): Appended {
    const ack = readAck(answer);
    if (ack.sequence !== undefined && ack.stream === this.#plan.name) {
      if (ack.sequence > before) {
        this.#highest = Math.max(this.#highest, ack.sequence);
        return { kind: "stored", sequence: ack.sequence };
      }
      this.#fail(this.#regressed(`it stored a record at ${ack.sequence} although it had reached ${before}`));
      return { kind: "unknown", cause: this.#fault };
    }
    const error = new GatewayError("GW_LOG_UNAVAILABLE", `Stream ${this.#plan.name} answered: ${answer.slice(0, 500)}`);
    // Judged before anything is written or proposed to the other replicas.
    if (ack.isFull) return { kind: "full" };
    // A short write of the only copy: no whole record is on disk, also not after a kill -9 (2.10.27 on a full tmpfs).
    if (this.isTailExact && /^write .*: no space left on device$/.test(ack.description)) return { kind: "full" };
    if (ack.code === api.messageTooLarge) return { kind: "refused", error };
    // Anything else may have been said after the record was written somewhere.
    return { kind: "unknown", cause: error };
  }

  #appendFailed(error: unknown, record: Buffer, askedAt: number): Appended {
    const what = `Appending ${record.length} bytes to ${this.#plan.name}`;
    const translated = natsError(error, what);
    const isNeverSent = error instanceof errors.InvalidArgumentError || error instanceof errors.ClosedConnectionError;
    if (isNeverSent || error instanceof errors.PermissionViolationError) return { kind: "refused", error: translated };
    this.#unanswered(askedAt);
    // Nobody was subscribed, so nobody can have stored it.
    if (isNoResponders(error)) return { kind: "refused", error: translated };
    return { kind: "unknown", cause: translated };
  }

  #isReady(): boolean {
    return this.#isVerified && this.#fault === null && !this.#isClosed && this.#nats.isConnected();
  }

  /** Waits a little for a reconnect and the look that follows it; null when appending is allowed. */
  async #whyNotReady(): Promise<GatewayError | null> {
    if (this.#isClosed) return this.#closedError();
    if (this.#fault !== null) return this.#fault;
    if (this.#nats.isConnected()) {
      await this.#verify();
      if (this.#isReady()) return null;
    }
    return (
      this.#fault ?? new GatewayError("GW_LOG_UNAVAILABLE", "There is no connection to NATS; nothing was appended.")
    );
  }

  async *read(from: number, signal: AbortSignal): AsyncGenerator<StoredRecord> {
    const both = AbortSignal.any([signal, this.#closing.signal]);
    let next = from;
    let gap = { at: 0, since: 0 };
    // One turn a feed; a feed ends with its connection, and the next one begins after what was handed out.
    while (!both.aborted) {
      const feed = await this.#openFeed(next, both);
      if (feed === null) break;
      // One listener a feed, not one a wait: adding one to an AbortSignal costs more than reading a record (measured).
      const onAbort = (): void => feed.wake();
      both.addEventListener("abort", onAbort);
      try {
        // Ends when the feed has ended and everything of it is handed out, or by abort.
        while (!both.aborted) {
          const record = feed.shift();
          if (record !== undefined) {
            next = record.sequence + 1;
            yield record;
          } else if (feed.hasEnded()) {
            break;
          } else {
            await feed.changed();
          }
        }
        if (feed.isGap() && !both.aborted) {
          const fault = this.#regressed(`record ${next} is not in it any more`);
          if (gap.at !== next) gap = { at: next, since: performance.now() };
          // A consumer lives on one replica, and one that catches up after its disk was lost skips what it has not got yet.
          if (this.isTailExact || performance.now() - gap.since >= this.#confirmMs(fault)) throw this.#fail(fault);
          await sleep(gapPauseMs, undefined, { signal: both }).catch(() => {});
        }
      } finally {
        both.removeEventListener("abort", onAbort);
        feed.close();
      }
    }
    if (this.#isClosed && !signal.aborted) throw this.#closedError();
  }

  /** Null when aborted. Throws what waiting cannot mend. */
  async #openFeed(next: number, signal: AbortSignal): Promise<JetStreamFeed | null> {
    const since = performance.now();
    let suspectSince: number | null = null;
    // Ends with a feed, by abort, or when a fault is confirmed.
    for (let waitMs = 20; !signal.aborted; waitMs = Math.min(waitMs * 2, 500)) {
      let feed: JetStreamFeed | null = null;
      try {
        if (this.#nats.isConnected()) {
          const seen = (record: number): void => this.#seen(record);
          feed = await JetStreamFeed.open(this.#nats, this.#plan.name, next, seen, () => this.#highest);
          // After the consumer was made: had the stream been replaced since, the consumer would be gone with it.
          const info = await this.#lookUp(true);
          this.#checkHolds(info, next);
          return feed;
        }
      } catch (error) {
        feed?.close();
        const fault = this.#readFault(error);
        if (isLasting(fault)) {
          suspectSince ??= performance.now();
          if (performance.now() - suspectSince >= this.#confirmMs(fault)) throw this.#fail(fault);
        } else {
          suspectSince = null;
          // Nothing may be under way that could show it otherwise: what was stored waits for us.
          if (performance.now() - since > unansweredMs) this.#nats.goElsewhere();
        }
      }
      await sleep(waitMs, undefined, { signal }).catch(() => {});
    }
    return null;
  }

  #readFault(error: unknown): GatewayError {
    if (apiCode(error) === api.streamNotFound) return this.#regressed("it does not exist any more");
    return natsError(error, `Reading ${this.#plan.name}`);
  }

  #seen(sequence: number): void {
    if (sequence > this.#highest) this.#highest = sequence;
    this.#silentSince = null;
    this.#answered();
  }

  #checkHolds(info: StreamInfo, next: number): void {
    const { first, last } = endsOf(info);
    if (next > last + 1) throw this.#regressed(`it ends at ${last} and was read up to ${next - 1}`);
    if (next < first) throw this.#regressed(`it begins at ${first} and record ${next} was asked for`);
  }

  /** Another epoch and an edited stream are certain at the first look; what a lagging server may say is not. */
  #confirmMs(fault: GatewayError): number {
    if (fault.code !== "GW_LOG_REGRESSED") return 0;
    return this.#options.replicas > 1 ? confirmMs.replicated : confirmMs.alone;
  }

  /** The stream as its leader describes it, compared with what it must be. Rejects with what is wrong, or GW_LOG_UNAVAILABLE. */
  async #lookUp(isHasty: boolean): Promise<StreamInfo> {
    checkServer(this.#nats.connection);
    // What is stored while the question travels is no fault of the answer.
    const before = this.#highest;
    const info = await findStream(this.#nats, this.#plan.name, isHasty);
    this.#answered();
    if (info === null) throw this.#regressed("it does not exist any more");
    const epoch = info.config.metadata?.[epochKey];
    if (epoch !== this.epoch) throw this.#regressed(`its epoch is ${epoch ?? "absent"} instead of ${this.epoch}`);
    checkStream(info.config, this.#plan);
    const { last } = endsOf(info);
    if (last < before && this.isTailExact) {
      throw this.#regressed(`it ends at ${last} and had reached ${before}`);
    }
    if (last >= this.#highest) this.#isGood(last);
    return info;
  }

  /** The stream is what it was, and as long: mended, if it was not before. */
  #isGood(last: number): void {
    this.#highest = last;
    if (this.#fault === null) return;
    this.#fault = null;
    this.#isVerified = true;
    this.#tell();
  }

  #regressed(why: string): GatewayError {
    return new GatewayError(
      "GW_LOG_REGRESSED",
      `Stream ${this.#plan.name} is not the log it was: ${why}. Nothing is applied and nothing is appended.`,
    );
  }

  /** Looks at the stream after a reconnect, once for all that wait. Never rejects. */
  #verify(): Promise<void> {
    this.#verifying ??= this.#verifyOnce().finally(() => (this.#verifying = null));
    return this.#verifying;
  }

  async #verifyOnce(): Promise<void> {
    const since = performance.now();
    // Ends with a verdict, by a disconnect, at close, or when a caller has waited long enough.
    while (this.#nats.isConnected() && !this.#isClosed) {
      try {
        await this.#lookUp(true);
        this.#isVerified = true;
        this.#tell();
        return;
      } catch (error) {
        const fault = natsError(error, `Looking at ${this.#plan.name}`);
        const elapsedMs = performance.now() - since;
        if (isLasting(fault) && elapsedMs >= this.#confirmMs(fault)) {
          this.#fail(fault);
          return;
        }
        if (elapsedMs > unansweredMs && fault.code === "GW_LOG_UNAVAILABLE") this.#nats.goElsewhere();
        if (elapsedMs > apiTimeoutMs + this.#confirmMs(fault)) return;
        await sleep(50);
      }
    }
  }

  #connected(isConnected: boolean): void {
    this.#isVerified = false;
    if (isConnected) void this.#verify();
    this.#tell();
  }

  #fail(fault: GatewayError): GatewayError {
    if (fault.code !== "GW_LOG_UNAVAILABLE") this.#fault = fault;
    this.#tell();
    return fault;
  }

  #answered(): void {
    if (this.#isAnswering) return;
    this.#isAnswering = true;
    this.#tell();
  }

  /**
   * An append was not decided. A server that was cut off from the others keeps its clients, and nobody else tells them to leave it: first it
   * says nothing, then that it has no quorum.
   */
  #silent(askedAt: number): void {
    this.#silentSince ??= askedAt;
    if (performance.now() - this.#silentSince > unansweredMs) this.#nats.goElsewhere();
  }

  #unanswered(appendAskedAt: number | null = null): void {
    this.#isAnswering = false;
    if (appendAskedAt !== null) this.#silent(appendAskedAt);
    this.#tell();
  }

  async tail(): Promise<number> {
    return endsOf(await this.#lookUpNow()).last;
  }

  async info(): Promise<LogInfo> {
    const info = await this.#lookUpNow();
    return { ...endsOf(info), bytes: info.state.bytes, maxBytes: info.config.max_bytes };
  }

  async #lookUpNow(): Promise<StreamInfo> {
    if (this.#isClosed) throw this.#closedError();
    if (!this.#nats.isConnected()) throw new GatewayError("GW_LOG_UNAVAILABLE", "There is no connection to NATS.");
    try {
      return await this.#lookUp(false);
    } catch (error) {
      const fault = natsError(error, `Looking up ${this.#plan.name}`);
      if (fault.code === "GW_LOG_UNAVAILABLE") this.#unanswered();
      else void this.#suspect();
      throw fault;
    }
  }

  /** A single bad look closes the door; `#verify` confirms it or opens it again. */
  #suspect(): Promise<void> {
    this.#isVerified = false;
    this.#tell();
    return this.#verify();
  }

  async guarantee(): Promise<GuaranteeReport> {
    const info = await this.#lookUpNow();
    const peers = peersOf(info) ?? [this.#nats.connection.info?.server_name ?? ""];
    const faults = await this.#unsynced(peers);
    const replicas = info.config.num_replicas;
    const copies = replicas > 1 ? `${replicas} replicas on ${peers.join(", ")}` : `one replica, on ${peers.join(", ")}`;
    if (faults.length === 0) {
      return { level: "power-loss", why: `${copies}; sync_interval: always, as each one's /varz says.` };
    }
    return {
      level: replicas > 1 ? "node-loss" : "process-crash",
      why: `${copies}; a power cut of all of them is not survived, because ${faults.join("; ")}.`,
    };
  }

  /** Why a peer cannot be said to sync each write: one sentence for each that cannot. */
  async #unsynced(peers: readonly string[]): Promise<string[]> {
    const { monitor, tls = {} } = this.#options;
    if (monitor.length === 0)
      return ["log.nats.monitor names no monitoring address that could prove sync_interval: always"];
    const answers = await Promise.all(monitor.map((url) => varz(url, tls)));
    const silent = answers.filter((answer) => answer.name === null).map((answer) => `${answer.url} did not answer`);
    return peers.flatMap((peer) => {
      const answer = answers.find(({ name }) => name === peer);
      if (answer === undefined) return [`no answer of log.nats.monitor speaks for ${peer}`, ...silent];
      if (isOlder(answer.version, serverVersionMin))
        return [`${peer} is ${answer.version}, older than ${serverVersionMin}`];
      return answer.isSyncAlways ? [] : [`${peer} runs without sync_interval: always`];
    });
  }

  async truncate(first: number): Promise<void> {
    const { first: begin, last } = endsOf(await this.#lookUpNow());
    // A purge beyond the end would move the end.
    if (first > last + 1) throw this.#regressed(`it ends at ${last} and was to be truncated to ${first}`);
    if (first <= begin) return;
    step("log.purge");
    try {
      await this.#nats.manager.streams.purge(this.#plan.name, { seq: first });
    } catch (error) {
      throw natsError(error, `Truncating ${this.#plan.name} to ${first}`);
    }
  }

  isReachable(): boolean {
    return this.#isReady() && this.#isAnswering;
  }

  onReachable(listener: (isReachable: boolean) => void): void {
    this.#listeners.add(listener);
  }

  #tell(): void {
    const isReachable = this.isReachable();
    if (isReachable === this.#wasReachable) return;
    this.#wasReachable = isReachable;
    for (const listener of this.#listeners) listener(isReachable);
  }

  #closedError(): GatewayError {
    return new GatewayError("GW_LOG_UNAVAILABLE", `The log ${this.#plan.name} is closed.`);
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#unlisten();
    this.#closing.abort();
    this.#tell();
  }
}

/** `last + 1` as first when nothing is stored; a new stream without a first sequence calls its first 0. */
function endsOf({ state }: StreamInfo): { first: number; last: number } {
  return { first: state.messages === 0 ? state.last_seq + 1 : state.first_seq, last: state.last_seq };
}

/** Null on a server that is in no cluster. */
function peersOf({ cluster }: StreamInfo): string[] | null {
  if (cluster?.leader === undefined || cluster.leader === "") return null;
  return [cluster.leader, ...(cluster.replicas ?? []).map((peer) => peer.name)];
}

const isLasting = (fault: GatewayError): boolean =>
  fault.code === "GW_LOG_REGRESSED" || fault.code === "GW_LOG_CONFIGURATION" || fault.code === "GW_LOG_SERVER_TOO_OLD";

interface Varz {
  readonly url: string;
  /** Null when it did not answer. */
  readonly name: string | null;
  readonly version: string;
  readonly isSyncAlways: boolean;
}

/** What a server says of itself; only `jetstream.config.sync_always: true` counts (2.10.27, 2.11, 2.12). */
async function varz(url: string, tls: TlsPaths): Promise<Varz> {
  let agent: Agent | null = null;
  try {
    agent = new Agent({ connect: await partsOf(tls) });
    const answer = await request(new URL("/varz", url), {
      signal: AbortSignal.timeout(monitorTimeoutMs),
      dispatcher: agent,
    });
    const body = (await answer.body.json()) as {
      server_name?: string;
      version?: string;
      jetstream?: { config?: { sync_always?: boolean } };
    };
    return {
      url,
      name: answer.statusCode === 200 ? (body.server_name ?? null) : null,
      version: body.version ?? "",
      isSyncAlways: body.jetstream?.config?.sync_always === true,
    };
  } catch {
    return { url, name: null, version: "", isSyncAlways: false };
  } finally {
    void agent?.destroy();
  }
}
