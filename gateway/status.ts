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
  readonly registry: null;
  readonly parked: number;
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
  pause(reason: string): Promise<void>;
  resume(): Promise<void>;
  /** Why a class of requests cannot be served now; empty: it can. */
  readiness(): { readonly reads: readonly string[]; readonly writes: readonly string[] };
}
