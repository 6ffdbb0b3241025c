// PORT: how a backend is started, stopped and told apart from its former self. Adapters: static.ts (runs already), process.ts.
//
// Law
// - An incarnation is one life of the backend. `static` cannot see lives: it gives a new incarnation after every refused or reset connect.
// - `stop` resolves when the old life is certainly over (exit seen); only then may its unknown requests be settled.
// - A process that its gateway left behind (kill -9) is ended by the next start, before anything else: pid, start time and machine boot are kept.

export interface Incarnation {
  /** Unique for ever: machine boot id, pid and start time for processes; a random id for URLs. */
  readonly id: string;
  readonly url: string;
}

export interface Launch {
  readonly isManaged: boolean;
  /** The state folder, where we know one. */
  readonly state: string | null;
  /** Starts (managed) or finds (static) the backend and resolves when it is ready. Rejects when `signal` aborts or it exits before. */
  start(signal: AbortSignal): Promise<Incarnation>;
  /** Where the state of former lives should be and is not: a sentence; null: it is there, or not ours to see. A start would begin with an empty one. */
  missingState(): Promise<string | null>;
  /** Ends the life: SIGTERM, then SIGKILL after `graceMs`. Static replicas without `stop`: rejects. */
  stop(graceMs: number): Promise<void>;
  /** Heard once per life, when it ended without `stop`. */
  onExit(listener: (reason: string) => void): void;
  close(): Promise<void>;
}
