// PORT: the one totally ordered, durable log. Adapters: lmdb.ts (embedded), jetstream.ts (NATS).
//
// Law
// - Records get dense sequences: the next one stored is the last + 1, beginning with `firstSequence` of its creation (1 by default).
// - `append` resolves `stored` only when the record is as durable as `guarantee()` says. `unknown` means it may be stored, now
//   or later: the caller appends the same bytes again until its own reader sees them. Occurrences are never merged here.
// - `full` and `refused` are certain: these bytes of this call were not stored.
// - `read` yields every stored record from a sequence on, in order, without gaps, then waits for more; only what is durable.
//   It survives a restart of the server by itself; a gap, a changed epoch or a sequence that went back throws GW_LOG_REGRESSED.
// - A crash at any moment leaves a prefix of what was appended, which contains everything that was acknowledged.

import type { GatewayError } from "../errors.ts";

/** Rising: what an acknowledged record survives. */
export type Guarantee = "process-crash" | "node-loss" | "power-loss";
export const guarantees: readonly Guarantee[] = ["process-crash", "node-loss", "power-loss"];

export type Appended =
  | { readonly kind: "stored"; readonly sequence: number }
  | { readonly kind: "full" }
  | { readonly kind: "refused"; readonly error: GatewayError }
  | { readonly kind: "unknown"; readonly cause: unknown };

export interface StoredRecord {
  readonly sequence: number;
  readonly bytes: Buffer;
}

export interface LogInfo {
  /** First stored sequence; `last + 1` when the log is empty. */
  readonly first: number;
  /** Last durable sequence; `firstSequence - 1` when nothing was ever stored. */
  readonly last: number;
  readonly bytes: number;
  readonly maxBytes: number;
}

export interface GuaranteeReport {
  readonly level: Guarantee;
  /** One sentence a person can act on: why it is not higher, or what it rests on. */
  readonly why: string;
}

export interface Log {
  readonly kind: "embedded" | "nats";
  /** 16 hex digits, random, born with the log. */
  readonly epoch: string;
  /** Largest record that `append` takes. */
  readonly recordBytesMax: number;
  /** True when `tail()` can never be stale (one process, or one stream replica): it then is a read index. */
  readonly isTailExact: boolean;

  append(record: Buffer): Promise<Appended>;
  /** Records from `from` on, for ever, until `signal` aborts (then it ends without error). `from` may be last + 1. */
  read(from: number, signal: AbortSignal): AsyncIterable<StoredRecord>;
  /** The last durable sequence, looked up after the call began. Rejects with GW_LOG_UNAVAILABLE. */
  tail(): Promise<number>;
  /** Rejects with GW_LOG_UNAVAILABLE. */
  info(): Promise<LogInfo>;
  /** Finds out what the log really gives, again at every call. */
  guarantee(): Promise<GuaranteeReport>;
  /** Forgets everything below `first`. Never called by data-path code. */
  truncate(first: number): Promise<void>;
  /** True while the log can be reached, as far as is known. `onReachable` listeners hear each change. */
  isReachable(): boolean;
  onReachable(listener: (isReachable: boolean) => void): void;
  close(): Promise<void>;
}

export interface LogCreation {
  readonly epoch: string;
  /** 1, or above every sequence ever seen when a lost log is begun anew. */
  readonly firstSequence: number;
}

/** One stored record; null when there is none (the reader ended without it). `sequence` must be at most the tail: later ones are waited for. */
export async function recordAt(log: Log, sequence: number): Promise<StoredRecord | null> {
  const stop = new AbortController();
  try {
    for await (const record of log.read(sequence, stop.signal)) return record;
    return null;
  } finally {
    stop.abort();
  }
}
