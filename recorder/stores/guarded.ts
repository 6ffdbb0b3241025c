// What all stores have in common: names are checked before anything is sent, every call ends in time, none begins after `close`, and
// errors come in one language.

import { GatewayError } from "../../gateway/errors.ts";
import { isObjectName, objectBytesMax } from "./store.ts";
import type { SnapshotStore, StoredObject } from "./store.ts";

export interface Range {
  readonly start: number;
  readonly end: number;
}

/** One technology. It may reject with its driver's errors, and goes by its signals as well as it can. */
export interface Backing {
  readonly kind: SnapshotStore["kind"];
  readonly where: string;
  /** How long a call, or a step of `list`, may take at most. */
  readonly callMs: number;
  open(signal: AbortSignal): Promise<void>;
  put(name: string, bytes: Buffer, signal: AbortSignal): Promise<void>;
  /** Less than was asked for: the object ends before. */
  get(name: string, range: Range | null, signal: AbortSignal): Promise<Buffer | null>;
  list(prefix: string, signal: AbortSignal): AsyncIterable<StoredObject>;
  remove(name: string, signal: AbortSignal): Promise<void>;
  /** Called once, also when `open` failed. */
  close(): Promise<void>;
  /** `what` reads "Storing NAME in WHERE". */
  failure(error: unknown, what: string): GatewayError;
}

/** Closing waits this long for calls that were cut short to clean up. */
const closeMs = 5_000;

/** Rejects with what `failure` makes of it when the backing cannot be opened. */
export async function openGuarded(backing: Backing): Promise<SnapshotStore> {
  const store = new GuardedStore(backing);
  try {
    await store.open();
    return store;
  } catch (error) {
    store.close().catch(() => {}); // the first error tells why, and at once
    throw error;
  }
}

class GuardedStore implements SnapshotStore {
  readonly kind: SnapshotStore["kind"];
  readonly where: string;
  readonly #backing: Backing;
  readonly #endings = new Set<AbortController>();
  readonly #working = new Set<Promise<unknown>>();
  #closing: Promise<void> | null = null;

  constructor(backing: Backing) {
    this.kind = backing.kind;
    this.where = backing.where;
    this.#backing = backing;
  }

  open(): Promise<void> {
    return this.#call(`Opening ${this.where}`, (signal) => this.#backing.open(signal));
  }

  async put(name: string, bytes: Buffer): Promise<void> {
    checkName(name);
    if (bytes.length > objectBytesMax) {
      const sizes = `${bytes.length} bytes, ${objectBytesMax} are the most an object may have`;
      throw new GatewayError("GW_INTERNAL", `The object ${name} was not stored: it has ${sizes}.`);
    }
    await this.#call(`Storing ${name} in ${this.where}`, (signal) => this.#backing.put(name, bytes, signal));
  }

  async get(name: string, range?: Range): Promise<Buffer | null> {
    checkName(name);
    if (range !== undefined) checkRange(name, range);
    const bytes = await this.#call(`Reading ${name} from ${this.where}`, (signal) =>
      this.#backing.get(name, range ?? null, signal),
    );
    if (bytes !== null && range !== undefined && bytes.length !== range.end - range.start) {
      throw corrupt(`The object ${name} in ${this.where} ends before byte ${range.end}: it is not what was stored`);
    }
    return bytes;
  }

  async *list(prefix: string): AsyncGenerator<StoredObject> {
    const what = `Listing ${prefix}* in ${this.where}`;
    const ending = this.#begin(what);
    const objects = this.#backing.list(prefix, ending.signal)[Symbol.asyncIterator]();
    try {
      // Ends with the list, with an error, or when the reader leaves.
      for (;;) {
        const next = await this.#inTime(what, ending, objects.next());
        if (next.done === true) return;
        yield next.value;
      }
    } finally {
      this.#endings.delete(ending);
      ending.abort();
      void objects.return?.()?.catch(() => {}); // what it holds open is given back; nobody waits for it
    }
  }

  async remove(name: string): Promise<void> {
    checkName(name);
    await this.#call(`Removing ${name} from ${this.where}`, (signal) => this.#backing.remove(name, signal));
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const closed = unavailable(`${this.where} was closed meanwhile: this call may have been carried out or not`);
    for (const ending of this.#endings) ending.abort(closed);
    const working = Promise.allSettled(this.#working);
    let timer: NodeJS.Timeout | undefined;
    const tooLong = new Promise((resolve) => (timer = setTimeout(resolve, closeMs)));
    await Promise.race([working.then(() => this.#backing.close()), tooLong]);
    clearTimeout(timer);
  }

  async #call<T>(what: string, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const ending = this.#begin(what);
    try {
      return await this.#inTime(what, ending, work(ending.signal));
    } finally {
      this.#endings.delete(ending);
    }
  }

  #begin(what: string): AbortController {
    if (this.#closing !== null) throw unavailable(`${what}: the store is closed`);
    const ending = new AbortController();
    this.#endings.add(ending);
    return ending;
  }

  /** The result, or a rejection when the time is over or the store is closed, whatever the backing does then. */
  async #inTime<T>(what: string, ending: AbortController, work: Promise<T>): Promise<T> {
    const { callMs } = this.#backing;
    const late = unavailable(`${what}: no answer within ${callMs / 1000} s`);
    const timer = setTimeout(() => ending.abort(late), callMs);
    const forget = (): void => void this.#working.delete(work);
    this.#working.add(work);
    work.then(forget, forget);
    try {
      return await unlessAborted(ending.signal, work);
    } catch (error) {
      // Drivers that others use too speak of the log.
      const isTold = error instanceof GatewayError && !error.code.startsWith("GW_LOG_");
      throw isTold ? error : this.#backing.failure(error, what);
    } finally {
      clearTimeout(timer);
    }
  }
}

/** The result, or a rejection as soon as the signal aborts: for work that knows of no signals. */
export function unlessAborted<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
    void work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}

/**
 * Work with an end of its own inside a call's. Not by `AbortSignal.any` with `AbortSignal.timeout`: on Node 20 the collector takes the
 * latter, which then never fires.
 */
export async function withinMs<T>(
  signal: AbortSignal,
  limitMs: number,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const ending = new AbortController();
  const timer = setTimeout(() => ending.abort(new Error("no answer in time")), limitMs);
  const onAbort = (): void => ending.abort(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  if (signal.aborted) onAbort();
  try {
    return await unlessAborted(ending.signal, work(ending.signal));
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
  }
}

export const unavailable = (what: string, cause?: unknown): GatewayError =>
  new GatewayError("GW_STORE_UNAVAILABLE", `${what}.`, { cause });

export const corrupt = (what: string): GatewayError => new GatewayError("GW_SNAPSHOT_CORRUPT", `${what}.`);

function checkName(name: string): void {
  if (isObjectName(name)) return;
  throw new GatewayError(
    "GW_INTERNAL",
    `${JSON.stringify(name.slice(0, 600))} is no name of an object: nothing was done.`,
  );
}

function checkRange(name: string, { start, end }: Range): void {
  if (Number.isSafeInteger(start) && Number.isSafeInteger(end) && 0 <= start && start <= end) return;
  throw new GatewayError("GW_INTERNAL", `Bytes ${start} to ${end} of ${name} are no range: nothing was read.`);
}
