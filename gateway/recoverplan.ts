// What a recovery is going to do, what it tells while it does it, and what came of it. Types alone: gateway/recovery.ts makes them, the
// command line shows them.
//
// Law
// - A plan reads and touches nothing. Without any candidate it rejects with GW_SNAPSHOT_MISSING.
// - A run touches nothing live before everything is verified. Killed or aborted at any point, the same plan made and run again goes on.

import type { Config } from "./config.ts";

export interface RecoveryRequest {
  /** Null: all of them. */
  readonly replica: string | null;
  /** Null: the newest that is sound. An older one is taken only when it is named. */
  readonly version: number | null;
  /** Where the replay ends; null: at the end of the log. */
  readonly to: { readonly position: number } | { readonly timeMs: number } | null;
  /** Take a snapshot although it was taken of another image than the one that is configured. */
  readonly isOtherImageAllowed: boolean;
}

export interface RecoveryPlan {
  /** What was asked for. */
  readonly request: RecoveryRequest;
  readonly service: string;
  readonly epoch: string;
  /** Who vouches for the manifest: what was published, or (when nothing was, or nobody answers) only the store itself. */
  readonly source: "registry" | "store";
  readonly version: number;
  readonly position: number;
  /** SHA-256 of the manifest, lower-case hex. */
  readonly manifestHash: string;
  /** One sentence: up to which position the state is anchored, where, and what vouches for the rest. */
  readonly anchoredTo: string;
  readonly log: {
    readonly isPresent: boolean;
    /** Null without a log. */
    readonly first: number | null;
    readonly tail: number | null;
    readonly entriesToReplay: number;
    /** The last record that is replayed, where `to` gives up what comes behind; null: all of it. */
    readonly upTo: number | null;
  };
  readonly replicas: readonly {
    readonly name: string;
    readonly action: "restore" | "keep";
    /** To be restored, plaintext; 0 for `keep`. */
    readonly bytes: number;
    readonly why: string;
  }[];
  /** What will be otherwise than before: what is missing, what nobody vouches for. */
  readonly warnings: readonly string[];
  /** Why it cannot be done as asked; nothing was touched. Null: it can. */
  readonly refused: string | null;
  /** Newest first, the one above included: what else could be taken with `--version`. */
  readonly candidates: readonly {
    readonly version: number;
    readonly position: number;
    readonly isUsable: boolean;
    /** Why not, or what is to be known of it. */
    readonly why: string;
  }[];
}

export interface RecoveryProgress {
  /** What is being done, for people: "restoring", "replaying". */
  readonly step: string;
  /** Null: it is of all. */
  readonly replica: string | null;
  readonly done: number;
  /** 0: not known. */
  readonly total: number;
  readonly unit: "bytes" | "entries";
}

export interface RecoveryResult {
  readonly replicas: readonly { readonly name: string; readonly state: string }[];
  /** Up to which all of them are the same. */
  readonly position: number;
  /** Replayed entries whose answers were compared with the recorded ones, and those that had none. */
  readonly verified: number;
  readonly unverified: number;
  /** What was answered otherwise than at first, one sentence each; none: empty. */
  readonly differing: readonly string[];
  /** What could not be brought back; null: nothing is missing. */
  readonly missing: string | null;
  readonly tookMs: number;
}

/** `gateway adopt --from`: the state of one existing service becomes that of every copy, before the first entry. */
export interface AdoptionPlan {
  readonly service: string;
  readonly from: string;
  /** Where its state is read. */
  readonly source: string;
  readonly replicas: readonly {
    readonly name: string;
    readonly action: "replace" | "keep";
    readonly why: string;
  }[];
  readonly warnings: readonly string[];
  readonly refused: string | null;
}

/** What is published of a service, for the recovery kit. */
export interface RegistryFacts {
  /** Decimal; null for a file, and where nobody answers. */
  readonly chainId: string | null;
  /** Null: none is final. */
  readonly newest: { readonly version: number; readonly position: number; readonly manifestHash: string } | null;
  /** Why it could not be read; null: it was. */
  readonly trouble: string | null;
}

export interface RecoveryRun {
  readonly onProgress: (progress: RecoveryProgress) => void;
  /** Stops it where the next run can go on. */
  readonly signal: AbortSignal;
}

/** What gateway/recovery.ts exports, and tests of the command line replace. */
export interface Recovery {
  readonly planRecovery: (config: Config, request: RecoveryRequest) => Promise<RecoveryPlan>;
  readonly runRecovery: (config: Config, plan: RecoveryPlan, run: RecoveryRun) => Promise<RecoveryResult>;
  readonly planAdoption: (config: Config, request: { readonly from: string }) => Promise<AdoptionPlan>;
  readonly runAdoption: (config: Config, plan: AdoptionPlan, run: RecoveryRun) => Promise<RecoveryResult>;
  readonly registryFacts: (config: Config) => Promise<RegistryFacts>;
}
