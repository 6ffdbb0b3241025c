// What the admin address can ask and order, answered from the running pieces.

import { statfs } from "node:fs/promises";
import type { Agreement } from "./agreement.ts";
import type { Appender } from "./appender.ts";
import type { Applier } from "./applier.ts";
import type { Clock } from "./clock.ts";
import type { Item } from "./entry.ts";
import { bodySize, endOf, sequenceOf } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import type { Keys } from "./keys/keys.ts";
import { recordAt } from "./log/log.ts";
import type { GuaranteeReport, Log } from "./log/log.ts";
import type { Policies } from "./policies.ts";
import type { LogReader } from "./reader.ts";
import { chain, firstHash, sha256 } from "./record.ts";
import type { Replicas } from "./replicas.ts";
import type { Space } from "./space.ts";
import type { Folded, FoldedItem } from "./state/state.ts";
import type { Control, DisagreementRow, LogRow, ReplicaStatus, Status, UnknownRow } from "./status.ts";

export interface ControlParts {
  readonly service: string;
  readonly name: string;
  readonly boot: string;
  readonly version: string;
  readonly dataFolder: string;
  readonly log: Log;
  readonly keys: Keys;
  readonly reader: LogReader;
  readonly policies: Policies;
  readonly appender: Appender;
  readonly agreement: Agreement;
  readonly replicas: Replicas;
  readonly space: Space;
  readonly events: Events;
  readonly clock: Clock;
  readonly guarantee: () => GuaranteeReport;
  /** Digest of the rules another gateway runs; null: they are ours. */
  readonly rulesMismatch: () => string | null;
  readonly isMismatchRefused: boolean;
}

const bodyShownBytes = 64 * 1024;
const rowsMax = 1000;

export class GatewayControl implements Control {
  readonly #parts: ControlParts;
  #paused: string | null = null;
  #isStopping = false;
  #parked: { position: number; reason: string; method: string; target: string; timeMs: number }[] | null = null;

  constructor(parts: ControlParts) {
    this.#parts = parts;
  }

  get paused(): string | null {
    return this.#paused;
  }
  stopping(): void {
    this.#isStopping = true;
  }

  /** Why nothing new is taken; null: it is. */
  refusal(): GatewayError | null {
    const { reader, space } = this.#parts;
    if (reader.failure !== null)
      return new GatewayError(reader.failure.code, reader.failure.message, {
        outcome: "not-executed",
        status: 503,
        retryAfterS: 30,
      });
    if (this.#isStopping)
      return new GatewayError("GW_STOPPING", "the gateway is stopping", { outcome: "not-executed", retryAfterS: 1 });
    if (this.#paused !== null)
      return new GatewayError("GW_PAUSED", `an operator has paused the gateway: ${this.#paused}`, {
        outcome: "not-executed",
        retryAfterS: 10,
      });
    const mismatch = this.#parts.rulesMismatch();
    if (mismatch !== null && this.#parts.isMismatchRefused)
      return new GatewayError(
        "GW_RULES_MISMATCH",
        `another gateway appends under other rules (${mismatch.slice(0, 16)}); rulesMismatch is refuse`,
        { outcome: "not-executed", retryAfterS: 10 },
      );
    if (space.isFull)
      return new GatewayError(
        "GW_LOG_FULL",
        "the log has reached 90 % of log.max; the rest is kept for control records",
        { outcome: "not-executed", retryAfterS: 10 },
      );
    return null;
  }

  async status(): Promise<Status> {
    const {
      service,
      name,
      boot,
      version,
      log,
      keys,
      reader,
      policies,
      replicas,
      agreement,
      space,
      dataFolder,
      guarantee,
    } = this.#parts;
    const { state } = reader;
    return {
      service,
      name,
      boot,
      version,
      guarantee: guarantee(),
      paused: this.#paused,
      stopping: this.#isStopping,
      tail: endOf(state.sequence),
      live: replicas.live.length,
      log: {
        kind: log.kind,
        reachable: log.isReachable(),
        state: reader.failure !== null ? "regressed" : !log.isReachable() ? "away" : space.isFull ? "full" : "ok",
        epoch: log.epoch,
        firstPosition: space.info.first * 4096,
        bytes: space.info.bytes,
        maxBytes: space.info.maxBytes,
        secondsUntilFull: space.secondsUntilFull,
        entries: state.entries,
        hash: state.hash,
        rules: policies.digest,
      },
      keys: {
        kind: keys.kind,
        reachable: keys.isReachable(),
        windowRows: state.keyCount,
        windowMax: policies.policy.window,
      },
      registry: null,
      parked: state.skips.size,
      disagreements: agreement.disagreements.length,
      diskFree: await free(dataFolder),
      rulesMismatch: this.#parts.rulesMismatch() !== null,
      replicas: replicas.all.map((it) => this.#replicaStatus(it)),
    };
  }

  #replicaStatus(it: Applier): ReplicaStatus {
    const { clock, replicas } = this.#parts;
    const oldestMs = it.oldestMs;
    return {
      name: it.name,
      url: it.url,
      state: it.state,
      reason: it.reason,
      applied: it.applied,
      lag: it.lag,
      lagSeconds: oldestMs === null ? 0 : Math.max(0, (clock.wallMs() - oldestMs) / 1000),
      inFlight: it.inFlight,
      unknown: it.unknown,
      owner: it.cursor?.owner?.name ?? null,
      role: replicas.primary === it.name ? "primary" : "secondary",
      version: it.settings.backendVersion,
      incarnation: it.incarnation,
      managed: it.isManaged,
      pid: it.pid,
    };
  }

  async log(from: number, limit: number): Promise<readonly LogRow[]> {
    const rows: LogRow[] = [];
    const stop = new AbortController();
    for await (const row of this.#rows(from, stop.signal, false)) {
      rows.push(row);
      if (rows.length >= Math.min(limit, rowsMax)) break;
    }
    stop.abort();
    return rows;
  }

  async logShow(position: number): Promise<LogRow | null> {
    const stop = new AbortController();
    try {
      for await (const row of this.#rows(position, stop.signal, false, true))
        return row.position === position ? row : null;
      return null;
    } finally {
      stop.abort();
    }
  }

  logFollow(from: number, signal: AbortSignal): AsyncIterable<LogRow> {
    return this.#rows(from, signal, true);
  }

  async *#rows(from: number, signal: AbortSignal, isEndless: boolean, withBody = false): AsyncGenerator<LogRow> {
    const { log, reader, clock } = this.#parts;
    const info = await log.info();
    let sequence = Math.max(info.first, sequenceOf(Math.max(0, from)));
    if (sequence > reader.sequence && !isEndless) return;
    const inner = new AbortController();
    const abort = (): void => inner.abort();
    signal.addEventListener("abort", abort, { once: true });
    try {
      for await (const record of log.read(sequence, inner.signal)) {
        // What is not folded yet has no fate yet.
        while (record.sequence > reader.sequence && !signal.aborted) await clock.sleep(20, signal);
        if (signal.aborted) return;
        const folded = reader.state.replay(record, "", 0);
        for (const item of folded.items) if (item.position >= from) yield this.#row(folded, item, withBody);
        sequence = record.sequence + 1;
        if (!isEndless && sequence > reader.sequence) return;
      }
    } finally {
      inner.abort();
      signal.removeEventListener("abort", abort);
    }
  }

  #row(folded: Folded, { position, item, fate }: FoldedItem, withBody: boolean): LogRow {
    const { header } = folded;
    const isEntry = item.kind === "entry";
    return {
      position,
      kind: item.kind,
      timeMs: isEntry || item.kind === "claim" ? item.timeMs : header.timeMs,
      rule: isEntry ? this.#parts.policies.rule(header.rules, item.rule).name : null,
      method: isEntry ? item.method : null,
      target: isEntry ? item.target : null,
      headers: isEntry ? item.headers : null,
      bodyBytes: isEntry ? bodySize(item.body) : null,
      body:
        withBody && isEntry && Buffer.isBuffer(item.body)
          ? item.body.subarray(0, bodyShownBytes).toString("base64")
          : null,
      keyed: (isEntry || item.kind === "claim") && item.key !== null,
      orderKeys: isEntry ? item.orderKeys : [],
      detail: detailOf(item),
      fate: folded.isDropped ? "dropped" : fate.kind,
      producer: `${header.gateway} ${header.producer.slice(0, 8)}`,
    };
  }

  async logVerify(): Promise<{
    readonly records: number;
    readonly hash: string;
    readonly findings: readonly string[];
  }> {
    const { log, reader, replicas } = this.#parts;
    const info = await log.info();
    const upTo = reader.sequence;
    const expected = reader.state.hash;
    const findings: string[] = [];
    const at = new Map(replicas.all.filter((it) => it.cursor !== undefined).map((it) => [it.name, it.cursor]));
    let hash: Buffer = firstHash;
    let records = 0;
    if (info.first !== 1) findings.push(`the log begins at record ${info.first}: H before it is not verified here`);
    const stop = new AbortController();
    if (upTo >= info.first)
      for await (const record of log.read(info.first, stop.signal)) {
        hash = chain(hash, sha256(record.bytes));
        records++;
        for (const [name, cursor] of at)
          if (
            info.first === 1 &&
            cursor.applied > 0 &&
            sequenceOf(cursor.applied) === record.sequence &&
            cursor.hash !== hash.toString("hex")
          )
            findings.push(`the cursor of ${name} at ${cursor.applied} has another running hash than the log`);
        if (record.sequence >= upTo) break;
      }
    stop.abort();
    if (info.first === 1 && hash.toString("hex") !== expected)
      findings.push(`the running hash of the stored log at record ${upTo} is not the one this gateway folded`);
    return { records, hash: hash.toString("hex"), findings: info.first === 1 ? findings : findings.slice(0, 1) };
  }

  async unknown(replica: string | null): Promise<readonly UnknownRow[]> {
    const { replicas } = this.#parts;
    const appliers = replica === null ? replicas.all : [replicas.applier(replica)];
    const rows: UnknownRow[] = [];
    for (const it of appliers)
      for (const position of it.unknown) {
        const found = it.entryOf(position);
        rows.push({
          replica: it.name,
          position,
          rule: found?.rule.name ?? "",
          method: found?.entry.method ?? "",
          target: found?.entry.target ?? "",
          timeMs: found?.entry.timeMs ?? 0,
          reason: it.reason,
        });
      }
    return rows;
  }

  async resolve(replica: string, position: number | "all", applied: boolean): Promise<number> {
    const applier = this.#parts.replicas.applier(replica);
    const positions = position === "all" ? [...applier.unknown] : [position];
    for (const it of positions) await applier.resolve(it, applied);
    return positions.length;
  }

  async disagreements(): Promise<readonly DisagreementRow[]> {
    return this.#parts.agreement.disagreements;
  }

  async parked(): Promise<
    readonly { position: number; reason: string; method: string; target: string; timeMs: number }[]
  > {
    const { state } = this.#parts.reader;
    const known = new Map((this.#parked ?? []).map((it) => [it.position, it]));
    const rows = [];
    for (const [position, reason] of state.skips) {
      const row = known.get(position) ?? (await this.logShow(position));
      rows.push({ position, reason, method: row?.method ?? "", target: row?.target ?? "", timeMs: row?.timeMs ?? 0 });
    }
    this.#parked = rows;
    return rows;
  }

  async retryParked(position: number): Promise<number> {
    const { reader, log, appender, clock } = this.#parts;
    if (reader.state.skipped(position) === null)
      throw new GatewayError("GW_CONFLICT", `entry ${position} is not parked`);
    const record = await recordAt(log, sequenceOf(position));
    const folded = record === null ? null : reader.state.replay(record, "", 0);
    const item = folded?.items.find((it) => it.position === position)?.item;
    if (item?.kind === "entry") {
      const placed = await appender.place({ ...item, timeMs: clock.wallMs(), retryOf: position });
      return placed.position;
    }
    throw new GatewayError("GW_NOT_FOUND", `there is no entry at ${position}`);
  }

  async skip(position: number, reason: string): Promise<void> {
    const { replicas, reader } = this.#parts;
    if (sequenceOf(position) > reader.sequence)
      throw new GatewayError("GW_NOT_FOUND", `there is no entry at ${position}`);
    if (replicas.all.some((it) => it.applied >= position))
      throw new GatewayError(
        "GW_CONFLICT",
        `entry ${position} is applied already on ${replicas.all.find((it) => it.applied >= position)?.name}`,
      );
    await replicas.skip(position, reason);
  }

  async replica(name: string, action: "drain" | "resume" | "quarantine", reason: string): Promise<void> {
    const applier = this.#parts.replicas.applier(name);
    if (action === "resume") {
      if (applier.unknown.length > 0)
        throw new GatewayError(
          "GW_CONFLICT",
          `${name} is held with ${applier.unknown.length} unknown entries: resolve them first`,
        );
      applier.resume();
      await this.#until(
        () => applier.state !== "held" && applier.state !== "quarantined" && applier.state !== "draining",
      );
    } else {
      const state = action === "drain" ? "draining" : "quarantined";
      applier.order(state, reason);
      await this.#until(() => applier.state === state);
    }
  }

  /** Orders take effect within moments; one that does not is told by the replica's state. */
  async #until(condition: () => boolean): Promise<void> {
    for (let waited = 0; waited < 2000 && !condition(); waited += 20) await this.#parts.clock.sleep(20);
  }

  async pause(reason: string): Promise<void> {
    this.#paused = reason;
    this.#parts.events.tell({ type: "gateway", state: "paused", detail: reason });
  }

  async resume(): Promise<void> {
    this.#paused = null;
    this.#parts.events.tell({ type: "gateway", state: "resumed", detail: "" });
  }

  readiness(): { readonly reads: readonly string[]; readonly writes: readonly string[] } {
    const { replicas, log } = this.#parts;
    const reads: string[] = [];
    if (this.#isStopping) reads.push("the gateway is stopping");
    if (replicas.live.length === 0)
      reads.push(`no replica is live: ${replicas.all.map((it) => `${it.name} is ${it.state}`).join(", ")}`);
    const writes = [...reads];
    const refusal = this.refusal();
    if (refusal !== null && !this.#isStopping) writes.push(refusal.message);
    if (!log.isReachable()) writes.push("the log cannot be reached");
    return { reads, writes };
  }
}

function detailOf(item: Item): string {
  switch (item.kind) {
    case "entry":
      return item.retryOf === null ? "" : `repeats the parked entry ${item.retryOf}`;
    case "tick":
      return "";
    case "mark":
      return item.reason;
    case "rules":
      return `${item.digest.slice(0, 16)} part ${item.part + 1} of ${item.parts}`;
    case "claim":
      return "an only-once request is about to be sent";
    case "settled":
      return `the claim ${item.position} is ${item.outcome}`;
    case "skip":
      return `entry ${item.position}: ${item.reason}`;
    default:
      item satisfies never;
      return "";
  }
}

async function free(folder: string): Promise<readonly { dir: string; bytes: number }[]> {
  try {
    const { bavail, bsize } = await statfs(folder);
    return [{ dir: "data", bytes: bavail * bsize }];
  } catch {
    return [];
  }
}
