// Our view of one copy of the backend: fed by an applier of this process, or by another gateway, of which we hear what it does.

import type { Backend } from "./backend/backend.ts";
import type { ReplicaState } from "./events.ts";

export interface Replica {
  readonly name: string;
  /** An applier of this process feeds it. */
  readonly isOwn: boolean;
  /** The gateway that feeds it; null: none that we know of. */
  readonly ownerName: string | null;
  readonly state: ReplicaState;
  readonly reason: string;
  readonly url: string | null;
  /** One life of the backend. */
  readonly incarnation: string;
  readonly backendVersion: string;
  /** W, as far as it was heard. */
  readonly applied: number;
  /** Entries of the log that are not finished there. */
  readonly lag: number;
  readonly backend: Backend | null;
  /** Only-once requests of this process that it is answering now; counted by who sends them. */
  reading: number;
  /** Everything a reader of `position` could see is executed there: all of it, or what shares an order key with the read. */
  hasApplied(position: number, orderKeys: readonly string[]): boolean;
  /** Resolves true once `hasApplied`, false when the replica left. */
  whenApplied(position: number, orderKeys: readonly string[]): Promise<boolean>;
  /**
   * What it answers now is the state it is said to have: whoever feeds it is still its owner, and does not replace its state under a reader. A read that
   * must not be stale asks before it is sent, and again before its first byte goes out.
   */
  isSure(): boolean;
  /** Resolves with `isSure`, once its owner was asked. */
  whenSure(): Promise<boolean>;
}
