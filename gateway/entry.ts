// One replicated request as the log keeps it, and the other items a record can hold.

/** Raw header fields: name, value, name, value … in their order and case, as latin1 strings. */
export type RawHeaders = readonly string[];

/** Lower-case hex of a 16-byte truncated SHA-256. */
export type Hash16 = string;

/** Position = record sequence × 4096 + index in the record: strictly increasing, safe as a JS number. */
export const itemsMax = 4096;
export const positionOf = (sequence: number, index: number): number => sequence * itemsMax + index;
export const sequenceOf = (position: number): number => Math.floor(position / itemsMax);
/** The highest position a record can hold: "everything up to and including this record". */
export const endOf = (sequence: number): number => sequence * itemsMax + itemsMax - 1;

/** The client's Idempotency-Key as the log knows it: never the key itself. */
export interface EntryKey {
  /** Hash of service, method, path and the key's value. */
  readonly id: Hash16;
  /** Hash of payload (method, target, body) and caller: the same request by the same caller has the same. */
  readonly fingerprint: Hash16;
}

/** A body kept beside the log, because it is larger than `limits.inline`. */
export interface BodyRef {
  /** Lower-case hex SHA-256 of the whole body. */
  readonly sha256: string;
  readonly sizeBytes: number;
}

export interface Entry {
  readonly kind: "entry";
  readonly method: string;
  /** Canonical target, latin1: exactly what is sent. */
  readonly target: string;
  /** As they are sent to every replica; hop-by-hop fields are gone, forwarding fields are in. */
  readonly headers: RawHeaders;
  readonly trailers: RawHeaders;
  readonly body: Buffer | BodyRef;
  readonly key: EntryKey | null;
  /** Index of the rule in the rules that the record's digest names. */
  readonly rule: number;
  /** Absent keys (empty) make the entry a barrier. */
  readonly orderKeys: readonly string[];
  /** Wall clock of the front at the append, ms since 1970. */
  readonly timeMs: number;
  /** 32 hex digits, equal on all replicas. */
  readonly seed: string;
  /** The parked entry that this one repeats; lets the key check pass. */
  readonly retryOf: number | null;
}

/** Nothing but a place in the order: makes a read index. */
export interface Tick {
  readonly kind: "tick";
}
/** Fixes a position for a capture or an audit; always the last item of its record. */
export interface Mark {
  readonly kind: "mark";
  readonly reason: string;
}
/** The rules (and key policy) that entries under `digest` are treated by; `text` is one part of `parts`. */
export interface RulesItem {
  readonly kind: "rules";
  readonly digest: string;
  readonly part: number;
  readonly parts: number;
  /** Compressed (gzip) canonical text, split. */
  readonly text: Buffer;
}
/** A keyed only-once request is about to be sent by this gateway to one replica. */
export interface Claim {
  readonly kind: "claim";
  readonly key: EntryKey;
  readonly timeMs: number;
  readonly retryOf: number | null;
}
/** What became of a claim; `not started` frees its key. */
export interface Settled {
  readonly kind: "settled";
  readonly position: number;
  readonly outcome: "done" | "not-started" | "unknown";
  /** Of the answer, when done. */
  readonly digest: Hash16 | null;
}
/** The entry at `position` is executed nowhere from here on. */
export interface Skip {
  readonly kind: "skip";
  readonly position: number;
  readonly reason: string;
  /** Replicas that may have sent it: rebuilt or held. */
  readonly maybeSent: readonly string[];
}

export type Control = Tick | Mark | RulesItem | Claim | Settled | Skip;
export type Item = Entry | Control;

export const isBodyRef = (body: Buffer | BodyRef): body is BodyRef => !Buffer.isBuffer(body);
export const bodySize = (body: Buffer | BodyRef): number => (Buffer.isBuffer(body) ? body.length : body.sizeBytes);

/** One answer of a backend, whole. */
export interface Answer {
  readonly status: number;
  readonly headers: RawHeaders;
  readonly body: Buffer;
  readonly trailers: RawHeaders;
}
