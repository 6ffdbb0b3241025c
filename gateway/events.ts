// The one stream of facts that flow and adapters tell. Metrics, log lines and the admin API listen; nothing waits for a listener.

import type { Outcome } from "./errors.ts";

export type ReplicaState =
  | "starting"
  | "restoring"
  | "replaying"
  | "live"
  | "lagging"
  | "held"
  | "quarantined"
  | "draining"
  | "gone";

export type Fact =
  | {
      readonly type: "request";
      readonly rule: string;
      readonly mode: string;
      readonly method: string;
      /** Path only: queries may hold secrets. */
      readonly path: string;
      readonly status: number;
      readonly code: string | null;
      readonly outcome: Outcome | null;
      readonly position: number | null;
      readonly replica: string | null;
      readonly durationMs: number;
      readonly peer: string;
    }
  | { readonly type: "appended"; readonly items: number; readonly bytes: number; readonly durationMs: number }
  | { readonly type: "append-repeated"; readonly attempt: number; readonly cause: string }
  | { readonly type: "applied"; readonly replica: string; readonly position: number; readonly durationMs: number }
  | {
      readonly type: "key";
      readonly result: "fresh" | "running" | "replayed" | "reused" | "missing" | "malformed" | "unavailable";
    }
  | { readonly type: "unknown-outcome"; readonly replica: string; readonly position: number; readonly cause: string }
  | {
      readonly type: "settled";
      readonly replica: string;
      readonly position: number;
      readonly by: "digest" | "probe" | "undo" | "resend" | "later-entry" | "late-answer" | "assumption" | "operator";
      readonly result: "applied" | "not-applied";
    }
  | {
      readonly type: "replica";
      readonly replica: string;
      readonly from: ReplicaState | null;
      readonly to: ReplicaState;
      readonly reason: string;
    }
  /** Another gateway of the service. */
  | {
      readonly type: "peer";
      readonly gateway: string;
      readonly boot: string;
      readonly state: "heard" | "gone";
    }
  | { readonly type: "incarnation"; readonly replica: string; readonly id: string; readonly url: string }
  | {
      readonly type: "disagreement";
      readonly position: number;
      readonly rule: string;
      readonly minority: readonly string[];
      readonly decisive: boolean;
    }
  | { readonly type: "parked"; readonly position: number; readonly reason: string }
  | {
      /** The one copy that was told `Replication-Role: primary` did not finish: what only the primary does may not have been done. */
      readonly type: "once-unfinished";
      readonly replica: string;
      readonly position: number;
      readonly rule: string;
      readonly method: string;
      readonly target: string;
      readonly what: "not-done" | "unknown";
    }
  | { readonly type: "once-unknown"; readonly position: number | null; readonly rule: string }
  | {
      readonly type: "log";
      readonly state: "reachable" | "away" | "full" | "room" | "regressed";
      readonly detail: string;
    }
  | { readonly type: "keys"; readonly state: "reachable" | "away" | "lost"; readonly detail: string }
  | { readonly type: "guarantee"; readonly level: string; readonly why: string }
  | { readonly type: "output"; readonly replica: string; readonly stream: "stdout" | "stderr"; readonly line: string }
  | {
      readonly type: "gateway";
      readonly state: "starting" | "ready" | "paused" | "resumed" | "stopping" | "stopped";
      readonly detail: string;
    }
  | {
      readonly type: "snapshot";
      readonly state: "begun" | "taken" | "failed" | "verified" | "unsound" | "removed";
      readonly version: number;
      readonly replica: string | null;
      readonly position: number | null;
      readonly detail: string;
    }
  | {
      readonly type: "publication";
      readonly state: "sent" | "waiting" | "final" | "failed" | "undone";
      readonly version: number;
      readonly position: number;
      readonly detail: string;
    }
  | {
      readonly type: "recovery";
      readonly replica: string;
      readonly state: "begun" | "restored" | "done" | "failed";
      readonly detail: string;
    }
  | {
      readonly type: "audit";
      readonly result: "equal" | "unequal" | "impossible";
      readonly position: number | null;
      readonly culprits: readonly string[];
      readonly detail: string;
    }
  | {
      readonly type: "certificate";
      /** Where the configuration names it, such as `upstream`. */
      readonly use: string;
      readonly state: "renewed" | "refused";
      readonly detail: string;
    }
  | {
      /** A client with which no TLS came about. */
      readonly type: "handshake-failed";
      readonly cause: string;
      readonly peer: string;
    }
  | { readonly type: "truncated"; readonly firstPosition: number; readonly detail: string }
  | { readonly type: "warning"; readonly about: string; readonly detail: string };

export type Listener = (fact: Fact) => void;

export class Events {
  readonly #listeners: Listener[] = [];

  listen(listener: Listener): void {
    this.#listeners.push(listener);
  }

  tell(fact: Fact): void {
    for (const listener of this.#listeners) listener(fact);
  }
}
