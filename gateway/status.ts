// What the gateway knows of itself now: the shape of GET /v1/status, and the source of every gauge.

import type { Guarantee } from "./log/log.ts";
import type { ReplicaState } from "./events.ts";

export interface ReplicaStatus {
  readonly name: string;
  readonly url: string | null;
  readonly state: ReplicaState;
  readonly reason: string;
  /** Watermark W. */
  readonly applied: number;
  /** Entries between W and the tail. */
  readonly lag: number;
  /** Age of the oldest entry not yet applied, by log time. */
  readonly lagSeconds: number;
  readonly inFlight: number;
  readonly unknown: readonly number[];
  readonly owner: string | null;
  readonly role: "primary" | "secondary";
  readonly version: string;
  readonly incarnation: string;
  readonly managed: boolean;
  readonly pid: number | null;
}

export interface Status {
  readonly service: string;
  readonly name: string;
  readonly boot: string;
  readonly version: string;
  readonly guarantee: { readonly level: Guarantee; readonly why: string };
  readonly paused: string | null;
  readonly stopping: boolean;
  /** Position of the last entry's record in the log. */
  readonly tail: number;
  /** How many replicas are live. */
  readonly live: number;
  readonly log: {
    readonly kind: string;
    readonly reachable: boolean;
    readonly state: "ok" | "away" | "full" | "regressed";
    readonly epoch: string;
    readonly firstPosition: number;
    readonly bytes: number;
    readonly maxBytes: number;
    readonly secondsUntilFull: number | null;
    readonly entries: number;
    readonly hash: string;
    readonly rules: string;
  };
  readonly keys: {
    readonly kind: string;
    readonly reachable: boolean;
    readonly windowRows: number;
    readonly windowMax: number;
  };
  readonly registry: {
    readonly kind: "file" | "ethereum";
    readonly where: string;
    readonly reachable: boolean;
    readonly trouble: string | null;
    readonly balanceWei: string | null;
    readonly errors: number;
    /** Of the newest final publication; null: none. */
    readonly publishedPosition: number | null;
    /** Age of the oldest snapshot that waits for its publication, seconds; 0: none waits. */
    readonly pendingSeconds: number;
  } | null;
  /** Null: snapshots are not configured. */
  readonly snapshots: {
    readonly store: string;
    readonly kept: number;
    readonly last: SnapshotRow | null;
    readonly lastSuccessMs: number | null;
    /** Why the last one failed; null: it did not. */
    readonly trouble: string | null;
    readonly bytes: number;
    /** Of several gateways this one takes them; a gateway alone always does. */
    readonly isRecorder: boolean;
  } | null;
  readonly parked: number;
  /** Entries whose once-only part (that of the primary) may not have been done. */
  readonly unfinished: number;
  readonly disagreements: number;
  readonly diskFree: readonly { readonly dir: string; readonly bytes: number }[];
  readonly rulesMismatch: boolean;
  readonly replicas: readonly ReplicaStatus[];
}

/** One entry as `/v1/log` and `gateway log` show it; credentials are redacted by the admin side. */
export interface LogRow {
  readonly position: number;
  readonly kind: string;
  readonly timeMs: number | null;
  readonly rule: string | null;
  readonly method: string | null;
  readonly target: string | null;
  readonly headers: readonly string[] | null;
  readonly bodyBytes: number | null;
  /** Only for `show`: at most 64 KiB, base64. */
  readonly body: string | null;
  readonly keyed: boolean;
  readonly orderKeys: readonly string[];
  readonly detail: string;
  /** dropped: a repeated record; duplicate: a later occurrence of a key; skipped: parked. */
  readonly fate: "applied" | "dropped" | "duplicate" | "skipped" | "control";
  readonly producer: string;
}

export interface DisagreementRow {
  readonly position: number;
  readonly timeMs: number;
  readonly rule: string;
  readonly method: string;
  readonly target: string;
  /** False: bodies differ where the rule does not compare them; reported only. */
  readonly decisive: boolean;
  readonly minority: readonly string[];
  readonly answers: readonly {
    readonly replica: string;
    readonly status: number;
    readonly digest: string;
    readonly headers: readonly string[];
    readonly body: string;
  }[];
  readonly differences: readonly { readonly where: string; readonly left: string; readonly right: string }[];
}

export interface UnknownRow {
  readonly replica: string;
  readonly position: number;
  readonly rule: string;
  readonly method: string;
  readonly target: string;
  readonly timeMs: number;
  readonly reason: string;
}

export interface SnapshotRow {
  readonly version: number;
  readonly position: number;
  readonly entries: number;
  /** Log time at its position. */
  readonly timeMs: number;
  readonly manifest: string;
  readonly root: string;
  /** H at its position, in the log of this epoch. */
  readonly hash: string;
  readonly epoch: string;
  readonly treeEntries: number;
  readonly treeBytes: number;
  /** Bytes that it added to the store; null: taken by somebody else. */
  readonly newBytes: number | null;
  readonly replica: string | null;
  readonly backendVersion: string;
  /** A restore into a scratch place gave its root. */
  readonly isVerified: boolean;
  readonly publication: "final" | "pending" | "waiting" | "none";
  readonly transaction: string | null;
}

export interface Operation {
  readonly id: string;
  readonly kind: "snapshot" | "verify" | "audit" | "rebuild" | "add" | "remove";
  /** What it is done to: a replica's name, a version. */
  readonly subject: string;
  readonly state: "running" | "done" | "failed";
  readonly startedMs: number;
  readonly endedMs: number | null;
  /** What is being done now. */
  readonly step: string;
  readonly progress: { readonly done: number; readonly total: number; readonly unit: "bytes" | "entries" } | null;
  /** One sentence, when done. */
  readonly result: string | null;
  readonly error: { readonly code: string; readonly detail: string } | null;
  /** Disagreements and mismatches that it found; empty: none. */
  readonly findings: readonly string[];
}

export interface NewReplica {
  readonly name: string;
  readonly url: string;
  readonly state: string | null;
  readonly stop: readonly string[] | null;
  readonly start: readonly string[] | null;
  readonly witness: readonly string[];
}

/** Names of copies. */
export interface RosterChanges {
  readonly added: readonly string[];
  readonly changed: readonly string[];
  readonly removed: readonly string[];
}

/** An entry whose primary did not finish it: what a service does only as primary was not done, or nobody knows. */
export interface UnfinishedRow {
  readonly replica: string;
  readonly position: number;
  readonly rule: string;
  readonly method: string;
  readonly target: string;
  readonly what: "not-done" | "unknown";
  readonly timeMs: number;
}

/** What the admin address can ask and order. Mutations resolve when they took effect; they reject with GatewayError. */
export interface Control {
  status(): Promise<Status>;
  log(from: number, limit: number): Promise<readonly LogRow[]>;
  logShow(position: number): Promise<LogRow | null>;
  /** Rows as they come, from a position on, until the signal aborts. */
  logFollow(from: number, signal: AbortSignal): AsyncIterable<LogRow>;
  /** Recomputes H over the whole stored log and compares it with reader state and cursors. */
  logVerify(): Promise<{ readonly records: number; readonly hash: string; readonly findings: readonly string[] }>;
  unknown(replica: string | null): Promise<readonly UnknownRow[]>;
  /** The newest thousand since the gateway began. */
  unfinished(): Promise<readonly UnfinishedRow[]>;
  resolve(replica: string, position: number | "all", applied: boolean): Promise<number>;
  disagreements(): Promise<readonly DisagreementRow[]>;
  parked(): Promise<
    readonly {
      readonly position: number;
      readonly reason: string;
      readonly method: string;
      readonly target: string;
      readonly timeMs: number;
    }[]
  >;
  retryParked(position: number): Promise<number>;
  skip(position: number, reason: string): Promise<void>;
  replica(name: string, action: "drain" | "resume" | "quarantine", reason: string): Promise<void>;
  /** Newest first. */
  snapshots(): Promise<readonly SnapshotRow[]>;
  /** What takes time: resolves at once with an operation that goes on. Rejects with GW_CONFLICT when it cannot begin. */
  snapshotCreate(): Promise<Operation>;
  /** Restores a version (null: the newest) into a scratch place and compares; findings fail the operation. */
  snapshotVerify(version: number | null): Promise<Operation>;
  audit(): Promise<Operation>;
  replicaRebuild(name: string, version: number | null): Promise<Operation>;
  /** A new copy: by its URL, or (null) one more of those that the gateway starts. It is rebuilt, then live. */
  replicaAdd(replica: NewReplica | null): Promise<Operation>;
  replicaRemove(name: string): Promise<Operation>;
  /** The roster becomes what this gateway's file says, as it was read at the start. */
  replicaSync(): Promise<RosterChanges>;
  operation(id: string): Operation | null;
  operations(): readonly Operation[];
  pause(reason: string): Promise<void>;
  resume(): Promise<void>;
  /** Why a class of requests cannot be served now; empty: it can. */
  readiness(): { readonly reads: readonly string[]; readonly writes: readonly string[] };
}
