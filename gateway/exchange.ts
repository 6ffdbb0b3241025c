// One client request on its way: what the front hands to the flow, and how the flow answers it.
// The front has done all that needs no decision: framing, limits, canonical target, forwarded fields. The flow knows no sockets.

import type { RequestHead } from "../rules/match.ts";
import type { CanonicalTarget } from "../rules/target.ts";
import type { StreamSink } from "./backend/backend.ts";
import type { Answer, RawHeaders } from "./entry.ts";
import type { GatewayError } from "./errors.ts";

export interface RequestBody {
  /** Content-Length, or null when the client sends chunks. 0: no body. */
  readonly sizeBytes: number | null;
  /**
   * The whole body when it is at most `limitBytes`; null when it is larger: nothing is lost, `stream` yields it all from the start.
   * Rejects with GW_BODY_TOO_LARGE (above limits.body), GW_REQUEST_TIMEOUT, or GW_BAD_REQUEST when the client went away in the middle.
   */
  collect(limitBytes: number): Promise<Buffer | null>;
  /** All bytes, also those already collected. Read once. */
  stream(): AsyncIterable<Buffer>;
  /** Trailer fields that may be forwarded; complete once the body was read. */
  trailers(): RawHeaders;
}

export interface Exchange {
  /** As rules see it: method, canonical target, host, all fields as the client sent them. */
  readonly head: RequestHead;
  /** The same target whole: `target.target` is what is forwarded. */
  readonly target: CanonicalTarget;
  /** As backends get them: hop-by-hop and Replication-* fields gone, forwarding fields in. */
  readonly headers: RawHeaders;
  /** The client's own Replication-Position field, for session reads. */
  readonly sessionPosition: string | null;
  readonly peer: string;
  readonly body: RequestBody;
  readonly reply: Reply;
  /** True once the client is gone. `onGone` listeners hear it once. */
  isGone(): boolean;
  onGone(listener: () => void): void;
}

/** Exactly one of the three is called, once. `extra` are the gateway's own fields (Replication-…, Idempotency-Replayed). */
export interface Reply {
  /** A backend's answer, byte for byte, with the gateway's fields behind its own. */
  answer(answer: Answer, extra: RawHeaders): void;
  problem(error: GatewayError, extra: RawHeaders): void;
  /** For streamed answers: what the backend sends goes out as it comes. */
  stream(extra: (status: number) => RawHeaders): StreamSink;
}

/** How an exchange ended, for the access line and the request metrics. Filled in by the flow and the front. */
export interface Account {
  readonly rule: string;
  readonly mode: "replicate" | "only-once" | "refuse" | "none";
  readonly position: number | null;
  readonly replica: string | null;
}

/** What the front calls. */
export interface Service {
  /** Answers the exchange by its reply, always. Never rejects. */
  handle(exchange: Exchange): Promise<Account>;
  /** Where an upgrade request goes, or a problem (no rule allows it, no replica). */
  upgrade(head: RequestHead, peer: string): Promise<{ readonly url: string; readonly replica: string } | GatewayError>;
}
