// PORT: who reads and writes the states themselves. Adapter: the workshop, a process of its own, so that no client waits for a hash.
//
// Law
// - Everything that `capture` and `keep` name is durable when they resolve, and stays while the `write` lasts under which they were called, and then
//   until a `collect` that does not keep it.
// - `restore` touches nothing of the place before everything that it checks beforehand is checked, and leaves the former state or the new one
//   (places that run a command or a request cannot promise that: see capture/place.ts). Rejects with GW_SNAPSHOT_CORRUPT, GW_RESTORE_FAILED, GW_STORE_…
// - A signal that aborts ends the work; what it left is cleaned up then or by the next work on that place.

import type { PlaceOptions } from "./capture/place.ts";
import type { ChunkRef } from "./manifest.ts";

export interface Captured {
  readonly root: string;
  readonly listing: readonly ChunkRef[];
  readonly treeEntries: number;
  readonly treeBytes: number;
  readonly newBytes: number;
  /** Left out: sockets, pipes, devices. */
  readonly skipped: readonly string[];
}

/** A manifest's part that tells of the tree. */
export interface Tree {
  readonly root: string;
  readonly listing: readonly ChunkRef[];
  readonly treeEntries: number;
  readonly treeBytes: number;
}

export interface Writing {
  /** A stream beside the tree: key rows. Durable when it resolves. */
  keep(stream: AsyncIterable<Buffer>): Promise<readonly ChunkRef[]>;
  /** Throws GW_STORE_UNAVAILABLE when others may have collected meanwhile: asked after the manifest was put. */
  check(): void;
  close(): Promise<void>;
}

export type OnBytes = (done: number, total: number) => void;

export interface Archivist {
  /** `memory`: names what was read before at this place, so that files which were not written since are not read again; null: read everything. */
  capture(place: PlaceOptions, memory: string | null, signal: AbortSignal, onBytes: OnBytes): Promise<Captured>;
  /** The root alone; nothing is stored. */
  rootOf(place: PlaceOptions, memory: string | null, signal: AbortSignal, onBytes: OnBytes): Promise<string>;
  restore(tree: Tree, place: PlaceOptions, signal: AbortSignal, onBytes: OnBytes): Promise<void>;
  /** Undoes the last `restore`: see capture/place.ts. False: nothing is kept aside, and nothing was touched. */
  putBack(place: PlaceOptions, signal: AbortSignal): Promise<boolean>;
  /** Restores into a scratch folder and reads it again. Rejects with GW_SNAPSHOT_CORRUPT when its root is another. */
  drill(tree: Tree, signal: AbortSignal, onBytes: OnBytes): Promise<void>;
  /** From here to its `close` nothing of the store is collected, by nobody: what a capture finds there stays until its manifest needs it. */
  write(signal: AbortSignal): Promise<Writing>;
  read(refs: readonly ChunkRef[]): AsyncIterable<Buffer>;
  /** Every chunk of a tree's listing and the listing's own. */
  chunksOf(tree: Tree): AsyncIterable<string>;
  /** Removes what is not kept. False: somebody writes; try again later. */
  collect(kept: AsyncIterable<string>, signal: AbortSignal): Promise<boolean>;
  /** Bytes in the store. */
  size(): Promise<number>;
  close(): Promise<void>;
}
