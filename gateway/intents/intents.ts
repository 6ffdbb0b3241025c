// PORT: the owner's own notes that an entry is about to be sent, and that its answer came. Adapter: file.ts.
//
// Law
// - `sent` and `done` are buffered; `flush` writes them with one write(2), without fsync: they survive any kill of the process, not of the machine.
//   Nothing may be sent, and no answer given, before the flush that notes it.
// - A chain is one busy time of one replica: (replica, nonce), begun by `begin`, which the owner names in the cursor afterwards.
// - Notes of another boot of the machine are void. Notes count only while the cursor names exactly their chain.
// - `save` keeps what puts an entry's effect back. It is noted before `sent`, in the same chain, and so counts and ends as the chain's other notes do;
//   it is forgotten with `done`.
// - `flush` throws when the note cannot be written (GW_DISK_FULL): then nothing may be sent.

export interface ChainNotes {
  /** Sent and not known to be done. */
  readonly unknown: readonly number[];
  readonly done: readonly number[];
  /** By position, of entries that are not done. Absent: none. */
  readonly saved?: ReadonlyMap<number, Buffer>;
}

export interface Intents {
  /** `current` tells what still counts of the chain, when the notes are written anew. */
  begin(replica: string, nonce: string, current: () => ChainNotes): void;
  save(replica: string, position: number, undo: Buffer): void;
  sent(replica: string, position: number): void;
  done(replica: string, position: number): void;
  flush(): void;
  /** What a former process noted under a chain; null: it is not there, or void. */
  notes(ownerBoot: string, replica: string, nonce: string): ChainNotes | null;
  /** Forgets the files of former processes: no cursor names them any more. */
  forgetFormer(): void;
  close(): void;
}
