// What the workshop's parent and child say to each other. Secrets travel in these messages and nowhere else: never in arguments or the environment.

import type { ErrorCode } from "../gateway/errors.ts";
import type { PlaceOptions } from "./capture/place.ts";
import type { ChunkRef, Manifest } from "./manifest.ts";
import type { StoreOptions } from "./stores/store.ts";

/** Of a manifest: what its tree is restored from, and compared with. */
export type Recorded = Pick<Manifest, "root" | "listing" | "treeEntries" | "treeBytes">;

/** The store and how it is read. */
export interface Access {
  readonly store: StoreOptions;
  /** The first segment of every name: one store may serve several services. */
  readonly prefix: string;
  /** 32 bytes as 64 hex digits; null: not encrypted. */
  readonly key: string | null;
}

/** Reads a place into chunks, durable when it is done. Whoever asks keeps collectors out until the manifest is stored (gate.ts). */
export interface CaptureJob extends Access {
  readonly kind: "capture";
  readonly place: PlaceOptions;
  /** Where it is remembered what was read at this place (stamps.ts); null: everything is read. */
  readonly memory: string | null;
}
export interface RestoreJob extends Access {
  readonly kind: "restore";
  readonly recorded: Recorded;
  readonly place: PlaceOptions;
}
/** The root of a place as it is; nothing is stored. */
export interface RootJob {
  readonly kind: "root";
  readonly place: PlaceOptions;
  readonly memory: string | null;
}
/** Restores into a folder that nobody else uses, reads it again, compares, and removes it. */
export interface DrillJob extends Access {
  readonly kind: "drill";
  readonly recorded: Recorded;
  readonly folder: string;
}
/** What the last restore put aside takes its place again. */
export interface PutBackJob {
  readonly kind: "put-back";
  readonly place: PlaceOptions;
}
export type Job = CaptureJob | RestoreJob | RootJob | DrillJob | PutBackJob;

export interface Archived {
  readonly root: string;
  readonly listing: readonly ChunkRef[];
  readonly treeEntries: number;
  readonly treeBytes: number;
  /** In the store: what was not there before. */
  readonly newBytes: number;
  readonly newChunks: number;
  /** Read, because nothing vouched for it. */
  readonly readBytes: number;
  /** Left out; at most a thousand are named. */
  readonly skipped: readonly string[];
}

export interface JobResults {
  readonly capture: Archived;
  readonly restore: null;
  readonly root: string;
  readonly drill: null;
  /** False: nothing is kept aside. */
  readonly "put-back": boolean;
}

export interface JobProgress {
  /** Files, folders and links. */
  readonly entries: number;
  /** Plaintext. */
  readonly bytes: number;
  /** Null: not known before it was read. */
  readonly total: { readonly entries: number; readonly bytes: number } | null;
}

/** The child ends when it is disconnected. */
export type FromChild =
  /** Takes a job. */
  | { readonly kind: "ready" }
  | { readonly kind: "progress"; readonly progress: JobProgress }
  | { readonly kind: "done"; readonly result: JobResults[Job["kind"]] }
  /** `code` null: no coded error. */
  | { readonly kind: "failed"; readonly code: ErrorCode | null; readonly message: string }
  /** Given up, as it was told to by SIGTERM. */
  | { readonly kind: "aborted" };
