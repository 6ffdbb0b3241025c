// PORT: where a copy's state lies: read as a tree for a capture, replaced as a whole for a restore. Adapters: folder.ts, volume.ts (a
// container's), command.ts (`{dump, restore}`), http.ts (`{export, import}`); the last two are trees of one file named `state`.
//
// Law
// - `read` yields every entry once, a folder before what is in it, siblings in any order; the root itself is not an entry. Nobody writes
//   meanwhile, unless `quiesce: none` was written out: then what vanishes between its listing and its reading is left out, and a file that
//   changed its size while it was read is what was read.
// - Sockets, pipes and devices are left out (`skipped` names them). A link that leads out of the tree, or a name that cannot be brought
//   back, rejects with GW_SNAPSHOT_FAILED, naming it and the mend.
// - `replace` gives a fresh place beside the live one. Nothing of the live one is touched before `commit`, which makes what was put durable,
//   puts it in the live one's place and keeps the former state aside (one generation) where the place can; after a crash the place holds the
//   former state or the new one, whole. `abort` leaves nothing behind.
// - `putBack` undoes the last commit: what was kept aside is the live state again, and what was committed is gone. False: nothing is kept
//   aside, and nothing was touched. Nobody uses the state meanwhile; after a crash the place holds the one or the other, whole.
// - Trees of one file cannot promise that: there `put` feeds the live state at once, nothing is kept aside, and a `put` that did not resolve
//   leaves a state that is neither the former nor the new one. The copy must then be restored again before it is used. Before such a `put`
//   begins, whoever calls it has verified the snapshot. Names other than `state` reject with GW_RESTORE_FAILED before anything is touched.

export interface TreeFile {
  readonly kind: "file";
  /** Path from the root, "/" between names, raw bytes as latin1 (names need not be UTF-8). Never "", ".", ".." nor absolute. */
  readonly path: string;
  /** Permission bits, at most 0o777: setuid, setgid and sticky are not state. */
  readonly mode: number;
  /** As listed; what is read decides. 0 where it is not known before (trees of one file). */
  readonly sizeBytes: number;
  /** Equal stamps of one path in two captures: not written in between (device, inode, size, mtime, ctime). Null: nothing is known. */
  readonly stamp: string | null;
}
export interface TreeFolder {
  readonly kind: "folder";
  readonly path: string;
  readonly mode: number;
}
export interface TreeLink {
  readonly kind: "link";
  readonly path: string;
  /** Relative and inside the tree; latin1 like paths. */
  readonly target: string;
}
export type TreeEntry = TreeFile | TreeFolder | TreeLink;

export interface Readable {
  readonly entry: TreeEntry;
  /** A file's bytes, to be read at most once, and before the next entry is asked for where the place `isSequential`. Null for the others. */
  readonly content: (() => AsyncIterable<Buffer>) | null;
}

export interface Replacement {
  /** In the order of `read`: folders before what is in them. Several may be under way unless the place `isSequential`. */
  put(entry: TreeEntry, content: AsyncIterable<Buffer> | null): Promise<void>;
  commit(): Promise<void>;
  abort(): Promise<void>;
}

export interface Place {
  /** One entry at a time (archives and streams). */
  readonly isSequential: boolean;
  /** For people: a path, a volume's name, a command. */
  readonly where: string;
  read(signal: AbortSignal): AsyncIterable<Readable>;
  /** Left out by the last `read`. */
  readonly skipped: readonly string[];
  replace(signal: AbortSignal): Promise<Replacement>;
  putBack(signal: AbortSignal): Promise<boolean>;
}

/** Which place, in a form that another process can open. */
export type PlaceOptions =
  | { readonly kind: "folder"; readonly folder: string; readonly exclude: readonly string[] }
  | {
      readonly kind: "volume";
      /** Of the engine: `unix:///var/run/docker.sock` or `tcp://host:port` of this machine. */
      readonly engine: string;
      readonly service: string;
      readonly replica: string;
      /** The replica's own: containers of it that never run open the volume. */
      readonly image: string;
      /** Of the state, inside. */
      readonly path: string;
      /** File in the data folder that names the volume: a commit writes it, and the replica's next start reads it. */
      readonly note: string;
      readonly exclude: readonly string[];
    }
  | {
      readonly kind: "command";
      readonly dump: readonly string[];
      readonly restore: readonly string[];
      readonly cwd: string;
      /** Added to the environment of the process that opens the place, which is passed on without its `GATEWAY_*`. */
      readonly env: Readonly<Record<string, string>>;
      /** From start to end. */
      readonly timeoutMs: number;
    }
  | {
      readonly kind: "http";
      readonly url: string;
      readonly export: { readonly method: string; readonly target: string };
      readonly import: { readonly method: string; readonly target: string };
      /** From connect to the answer's last byte. */
      readonly timeoutMs: number;
      readonly tls?: { readonly ca?: string; readonly cert?: string; readonly key?: string };
    };
