// PORT: what the gateways of one service say to each other. Adapters: nats.ts; alone.ts, where the log is embedded and nobody else is there.
//
// Law
// - At most once, and nothing is kept: who was away has not heard it. Nothing that must be true rests on a message; each one only saves a wait.
// - What one gateway sends to another arrives in the order it was sent, with gaps where the connection was lost.
// - A gateway does not hear itself. Bytes that are no message are not heard at all.

import type { Answer } from "../entry.ts";
import type { ReplicaState } from "../events.ts";

export type Role = "front" | "applier" | "recorder";

/** What an owner tells of a replica. */
export interface ReplicaNews {
  readonly name: string;
  readonly state: ReplicaState;
  readonly reason: string;
  readonly url: string | null;
  readonly incarnation: string;
  readonly version: string;
  readonly isManaged: boolean;
  /** W, and how many entries of the log are at or below it or pulled. */
  readonly applied: number;
  readonly entries: number;
  /** Of its cursor: who waits for the lease to end knows from it when it was last renewed. 0: not owned yet. */
  readonly revision: number;
}

/** One replica's answer to an entry, for the front that appended it. */
export interface AnswerNews {
  readonly position: number;
  readonly replica: string;
  readonly incarnation: string;
  readonly backendVersion: string;
  readonly isFirstSend: boolean;
  /** Null: executed, and the answer cannot be used. */
  readonly answer: Answer | null;
  readonly isTooLarge: boolean;
}

export type Message =
  /** Said all the time, and at every change; `isLeaving`: the last one. */
  | {
      readonly kind: "hello";
      readonly gateway: string;
      readonly roles: readonly Role[];
      readonly rules: string;
      /** Where it keeps keys: a store of its own knows nothing of what others answered. */
      readonly keys: "embedded" | "redis";
      readonly isLeaving: boolean;
      readonly replicas: readonly ReplicaNews[];
    }
  /** W of replicas that moved: name, W, entries. */
  | { readonly kind: "moved"; readonly replicas: readonly (readonly [string, number, number])[] }
  /** To the front that appended the entries. */
  | { readonly kind: "answers"; readonly answers: readonly AnswerNews[] }
  /** To an owner: answers that a front has not got. */
  | { readonly kind: "again"; readonly replica: string; readonly positions: readonly number[] }
  /** Entries that may not be repeated, and that a replica has survived: position, rule, ms. */
  | {
      readonly kind: "survived";
      readonly replica: string;
      readonly entries: readonly (readonly [number, string, number])[];
    }
  /** A replica's life ended with these in flight. */
  | { readonly kind: "died"; readonly replica: string; readonly positions: readonly number[] }
  /** A front found that a replica gave another answer than the majority. */
  | { readonly kind: "disagrees"; readonly replica: string; readonly position: number; readonly rule: string };

/** Questions wait for a reply. */
export type Question =
  /** May we read from these lives of your replicas? The reply says for how long, ms from its receipt of the question. */
  | { readonly kind: "grant"; readonly replicas: readonly (readonly [name: string, incarnation: string])[] }
  /** Never send the entry from here on; the reply names those that may have. */
  | { readonly kind: "bar"; readonly position: number }
  | { readonly kind: "unbar"; readonly position: number }
  /** At my mark with this reason a replica of yours is to stop, and prove its state: asked before the mark is made. */
  | {
      readonly kind: "listen";
      readonly replica: string;
      readonly reason: string;
      readonly what: "witness" | "root";
    }
  /** The proof; the reply comes when it is there. */
  | { readonly kind: "proof"; readonly replica: string; readonly reason: string }
  /** What a person ordered at another gateway. */
  | {
      readonly kind: "order";
      readonly replica: string;
      readonly action: "drain" | "resume" | "quarantine";
      readonly reason: string;
    };

export interface Reply {
  readonly ok: boolean;
  readonly names?: readonly string[];
  readonly ms?: number;
  readonly text?: string | null;
  readonly code?: string;
}

export interface Peers {
  /** To all others. */
  tell(message: Message): void;
  /** To one. */
  send(boot: string, message: Message): void;
  /** Null: no reply within the time. */
  ask(boot: string, question: Question, timeoutMs: number): Promise<Reply | null>;
  /** Each message with the boot id of who sent it. */
  hear(listener: (message: Message, from: string) => void): void;
  /** Called once: who replies to questions. */
  reply(handler: (question: Question, from: string) => Promise<Reply>): void;
  close(): Promise<void>;
}
