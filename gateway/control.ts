// What the admin address can ask and order, answered from the running pieces.

import { statfs } from "node:fs/promises";
import type { Agreement } from "./agreement.ts";
import type { Appender } from "./appender.ts";
import { Applier } from "./applier.ts";
import type { Clock } from "./clock.ts";
import type { Item } from "./entry.ts";
import { bodySize, endOf, positionOf, sequenceOf } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import type { Events } from "./events.ts";
import type { Keys } from "./keys/keys.ts";
import { recordAt } from "./log/log.ts";
import type { GuaranteeReport, Log } from "./log/log.ts";
import type { Policies } from "./policies.ts";
import type { LogReader } from "./reader.ts";
import { chain, firstHash, sha256 } from "./record.ts";
import type { Reply } from "./peers/peers.ts";
import type { Replica } from "./replica.ts";
import type { Replicas } from "./replicas.ts";
import type { Space } from "./space.ts";
import type { Folded, FoldedItem } from "./state/state.ts";
import type { Base, Bases } from "./base/base.ts";
import type { Operations, Reporter } from "./operations.ts";
import type {
  Control,
  DisagreementRow,
  LogRow,
  NewReplica,
  Operation,
  ReplicaStatus,
  RosterChanges,
  SnapshotRow,
  Status,
  UnfinishedRow,
  UnknownRow,
} from "./status.ts";

/** What states are recorded and brought back by: the recorder's part of the gateway. */
export interface Remembers {
  capture(
    reporter: Reporter,
  ): Promise<{ readonly version: number; readonly position: number; readonly manifestHash: string }>;
  verify(version: number | null, reporter: Reporter): Promise<{ readonly version: number; readonly root: string }>;
  rebuild(
    name: string,
    version: number | null,
    reporter: Reporter,
  ): Promise<{ readonly version: number; readonly equal: number; readonly unverified: number }>;
  audit(reporter: Reporter): Promise<{ readonly detail: string }>;
  /** Throws when there is no store to capture into or to rebuild from. */
  check(): void;
  rows(): readonly SnapshotRow[];
  status(): Pick<Status, "snapshots" | "registry">;
}

/** Who is added and who leaves. */
export interface Roster {
  /** The new one's name. */
  add(replica: NewReplica | null): Promise<string>;
  has(name: string): boolean;
  remove(name: string): Promise<void>;
  sync(): Promise<RosterChanges>;
}

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
  readonly bases: Bases;
  readonly operations: Operations;
  readonly remembers: Remembers;
  readonly roster: Roster;
  /** For a replica that another gateway feeds. Null: there are no others. */
  readonly orderElsewhere:
    | ((replica: string, action: "drain" | "resume" | "quarantine", reason: string) => Promise<Reply | null>)
    | null;
}

const unfinishedMax = 1000;
const bodyShownBytes = 64 * 1024;
const rowsMax = 1000;

export class GatewayControl implements Control {
  readonly #parts: ControlParts;
  #paused: string | null = null;
  #isStopping = false;
  #parked: { position: number; reason: string; method: string; target: string; timeMs: number }[] | null = null;

  /** Entries whose once-only part may not have been done, newest last. */
  readonly #unfinished: UnfinishedRow[] = [];

  constructor(parts: ControlParts) {
    this.#parts = parts;
    parts.events.listen((fact) => {
      if (fact.type !== "once-unfinished") return;
      const { type: _, ...row } = fact;
      if (this.#unfinished.some((it) => it.position === row.position)) return;
      this.#unfinished.push({ ...row, timeMs: parts.clock.wallMs() });
      if (this.#unfinished.length > unfinishedMax) this.#unfinished.shift();
    });
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
        firstPosition: positionOf(space.info.first, 0),
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
      ...this.#parts.remembers.status(),
      unfinished: this.#unfinished.length,
      parked: state.skips.size,
      disagreements: agreement.disagreements.length,
      diskFree: await free(dataFolder),
      rulesMismatch: this.#parts.rulesMismatch() !== null,
      replicas: replicas.all.map((it) => this.#replicaStatus(it)),
    };
  }

  /** What only its owner knows is not told of a replica that another gateway feeds: that one's status has it. */
  #replicaStatus(it: Replica): ReplicaStatus {
    const { clock, replicas } = this.#parts;
    const own = it instanceof Applier ? it : null;
    const oldestMs = own?.oldestMs ?? null;
    return {
      name: it.name,
      url: it.url,
      state: it.state,
      reason: it.reason,
      applied: it.applied,
      lag: it.lag,
      lagSeconds: oldestMs === null ? 0 : Math.max(0, (clock.wallMs() - oldestMs) / 1000),
      inFlight: own?.inFlight ?? 0,
      unknown: own?.unknown ?? [],
      owner: it.ownerName,
      role: replicas.primary === it.name ? "primary" : "secondary",
      version: it.backendVersion,
      incarnation: it.incarnation,
      managed: own?.isManaged ?? false,
      pid: own?.pid ?? null,
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

  /** H, from the log's beginning or from the base that a truncation left, over every stored record, compared with cursors, snapshots and reader state. */
  async logVerify(): Promise<{
    readonly records: number;
    readonly hash: string;
    readonly findings: readonly string[];
  }> {
    const { bases, log, reader } = this.#parts;
    const info = await log.info();
    const upTo = reader.sequence;
    const expected = reader.state.hash;
    const base = info.first === 1 ? null : await bases.load();
    const start = base === null ? null : headBefore(base, info.first, log.epoch);
    if (info.first !== 1 && start === null)
      return {
        records: 0,
        hash: expected,
        findings: [
          `the log begins at record ${info.first}, and what H was before it is not known: its base is missing`,
        ],
      };
    const findings: string[] = [];
    const anchors = this.#anchors();
    let hash: Buffer = start === null ? firstHash : Buffer.from(start, "hex");
    let records = 0;
    const stop = new AbortController();
    if (upTo >= info.first)
      for await (const record of log.read(info.first, stop.signal)) {
        hash = chain(hash, sha256(record.bytes));
        records++;
        for (const { what, hash: known } of anchors.get(record.sequence) ?? [])
          if (known !== hash.toString("hex")) findings.push(`${what} has another running hash than the log`);
        if (record.sequence >= upTo) break;
      }
    stop.abort();
    if (hash.toString("hex") !== expected)
      findings.push(`the running hash of the stored log at record ${upTo} is not the one this gateway folded`);
    return { records, hash: hash.toString("hex"), findings };
  }

  /** Who else knows H, by the record it is that of. */
  #anchors(): ReadonlyMap<number, readonly { readonly what: string; readonly hash: string }[]> {
    const { log, remembers, replicas } = this.#parts;
    const anchors = new Map<number, { what: string; hash: string }[]>();
    const add = (position: number, what: string, hash: string): void => {
      const sequence = sequenceOf(position);
      anchors.set(sequence, [...(anchors.get(sequence) ?? []), { what, hash }]);
    };
    for (const { cursor } of replicas.own)
      if (cursor !== undefined && cursor.applied > 0 && cursor.hash !== "" && cursor.epoch === log.epoch)
        add(cursor.applied, `the cursor of ${cursor.replica} at ${cursor.applied}`, cursor.hash);
    if (remembers.status().snapshots?.kept !== undefined)
      for (const it of snapshotsOrNone(remembers))
        if (it.epoch === log.epoch) add(it.position, `snapshot ${it.version} at ${it.position}`, it.hash);
    return anchors;
  }

  async unknown(replica: string | null): Promise<readonly UnknownRow[]> {
    const { replicas } = this.#parts;
    const appliers = replica === null ? replicas.own : [replicas.applier(replica)];
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

  async unfinished(): Promise<readonly UnfinishedRow[]> {
    return this.#unfinished;
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
    const { orderElsewhere, replicas } = this.#parts;
    if (!replicas.replica(name).isOwn && orderElsewhere !== null) {
      const reply = await orderElsewhere(name, action, reason);
      if (reply?.ok === true) return;
      const owner = replicas.replica(name).ownerName;
      throw new GatewayError(
        "GW_CONFLICT",
        reply?.text ??
          (owner === null
            ? `no gateway feeds ${name} now`
            : `the gateway ${owner}, which feeds ${name}, did not answer`),
      );
    }
    const applier = replicas.applier(name);
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

  // ---- what takes time -------------------------------------------------------------------------------------------------------------

  async snapshots(): Promise<readonly SnapshotRow[]> {
    return this.#parts.remembers.rows();
  }

  async snapshotCreate(): Promise<Operation> {
    const { operations, remembers } = this.#parts;
    remembers.check();
    return operations.begin("snapshot", "", async (reporter) => {
      const { version, position, manifestHash } = await remembers.capture(reporter);
      return `version ${version} at ${position}, manifest ${manifestHash}`;
    });
  }

  async snapshotVerify(version: number | null): Promise<Operation> {
    const { operations, remembers } = this.#parts;
    remembers.check();
    return operations.begin("verify", version === null ? "newest" : String(version), async (reporter) => {
      try {
        const verified = await remembers.verify(version, reporter);
        return `version ${verified.version} is sound: its root is ${verified.root}`;
      } catch (error) {
        if (!(error instanceof GatewayError) || error.code !== "GW_SNAPSHOT_CORRUPT") throw error;
        reporter.finding(error.message);
        return "it is not what was recorded";
      }
    });
  }

  async audit(): Promise<Operation> {
    const { operations, remembers } = this.#parts;
    return operations.begin("audit", "", async (reporter) => (await remembers.audit(reporter)).detail);
  }

  async replicaRebuild(name: string, version: number | null): Promise<Operation> {
    const { operations, remembers, replicas } = this.#parts;
    const { isVisited, reason } = replicas.applier(name);
    if (isVisited) throw new GatewayError("GW_CONFLICT", `${name} is ${reason} already`);
    remembers.check();
    return operations.begin("rebuild", name, async (reporter) => {
      const rebuilt = await remembers.rebuild(name, version, reporter);
      return `${name} is live again: snapshot ${rebuilt.version}, ${rebuilt.equal} replayed answers equal, ${rebuilt.unverified} unverified`;
    });
  }

  async replicaAdd(replica: NewReplica | null): Promise<Operation> {
    const { clock, operations, replicas, roster } = this.#parts;
    const name = await roster.add(replica);
    return operations.begin("add", name, async (reporter) => {
      // The rebuilder finds it by itself; without snapshots it waits, held, for a person who knows that its state fits.
      reporter.step("rebuilding it");
      // Ends when it is live, or not wanted any more.
      for (; roster.has(name); await clock.sleep(50)) {
        const it = replicas.all.find((one) => one.name === name);
        if (it?.state === "live") return `${name} is live`;
        if (it instanceof Applier && it.state === "draining") it.resume();
        const { state = "fed by nobody yet", reason = "" } = it ?? {};
        reporter.step(`${name} is ${state}${reason === "" ? "" : `: ${reason}`}`);
      }
      throw new GatewayError("GW_CONFLICT", `${name} was removed again`);
    });
  }

  async replicaRemove(name: string): Promise<Operation> {
    const { operations, replicas, roster } = this.#parts;
    const { state } = replicas.replica(name);
    if (replicas.all.length === 1) throw new GatewayError("GW_CONFLICT", `${name} is the only replica`);
    if (state === "live" && replicas.live.length === 1)
      throw new GatewayError("GW_CONFLICT", `${name} is the only live replica`);
    return operations.begin("remove", name, async () => {
      await roster.remove(name);
      return `${name} is gone`;
    });
  }

  replicaSync(): Promise<RosterChanges> {
    return this.#parts.roster.sync();
  }

  operation(id: string): Operation | null {
    return this.#parts.operations.get(id);
  }
  operations(): readonly Operation[] {
    return this.#parts.operations.list();
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

/** H after the record before `first`; null: this base is not that of this log. */
function headBefore({ head }: Base, first: number, epoch: string): string | null {
  return head.epoch === epoch && head.sequence === first - 1 ? head.hash : null;
}

/** A store that is away knows nothing now. */
function snapshotsOrNone(remembers: Remembers): readonly SnapshotRow[] {
  try {
    return remembers.rows();
  } catch {
    return [];
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
