// The chunks of a store: found by the SHA-256 of their plaintext, stored once, many to an object (pack.ts), sealed on the way in and
// verified on the way out (seal.ts). Opened to read, or to write under a mark that keeps collectors out (gate.ts).
//
// - `add` seals and gathers; `flush` resolves when all that was added is durable. Whatever is killed before leaves packs that nobody needs (the
//   next collection removes them), never a chunk that seems to be there and is not.
// - A chunk counts as there only under the present key: nothing recorded under one key needs another one, or lies there unencrypted.
// - Memory: three packs under way (48 MiB) for a writer, 24 MiB of ranges for a reader, and about 200 bytes a chunk of the store.

import type { Clock } from "../gateway/clock.ts";
import { GatewayError } from "../gateway/errors.ts";
import { readCatalog } from "./catalog.ts";
import { Flight } from "./flight.ts";
import { enterAsWriter } from "./gate.ts";
import type { Mark } from "./gate.ts";
import { PackBuilder, noKey } from "./pack.ts";
import type { PackIndex, Row } from "./pack.ts";
import { Ranges } from "./ranges.ts";
import { seal, storedName, unseal } from "./seal.ts";
import type { SnapshotKey } from "./seal.ts";
import type { SnapshotStore } from "./stores/store.ts";

export interface PacksOptions {
  /** Null: chunks are not encrypted. */
  readonly key: SnapshotKey | null;
  /** Ends what is under way; `close` is due all the same. */
  readonly signal: AbortSignal;
  readonly clock?: Clock;
}

const putsAtOnce = 2;

/** To get chunks. */
export async function openPacks(store: SnapshotStore, options: PacksOptions): Promise<Packs> {
  const packs = new Packs(store, options, null);
  await packs.load();
  return packs;
}

/**
 * To add chunks as well. From here to `close` no collector removes anything: what `has` says holds until the manifest that needs it is stored.
 * So: open, add, `flush`, put the manifest, `check`, `close`.
 */
export async function openPacksToWrite(store: SnapshotStore, options: PacksOptions): Promise<Packs> {
  const mark = await enterAsWriter(store, options);
  try {
    const packs = new Packs(store, options, mark);
    await packs.load();
    return packs;
  } catch (error) {
    await mark.leave();
    throw error;
  }
}

export class Packs {
  readonly #store: SnapshotStore;
  readonly #key: SnapshotKey | null;
  readonly #signal: AbortSignal;
  readonly #mark: Mark | null;
  readonly #ranges: Ranges;
  readonly #puts: Flight;
  #packs: ReadonlyMap<string, PackIndex> = new Map();
  #damaged: readonly string[] = [];
  /** Where chunks lie that are durable, by stored name. */
  #homes = new Map<string, Row>();
  /** Put by this one; nobody removes them before `close`. */
  readonly #own = new Map<string, PackIndex>();
  /** Being added, by stored name: not durable before the next `flush`. */
  readonly #adding = new Set<string>();
  #failure: { readonly error: unknown } | null = null;
  /** With the one that is filled and those that are put: never more than three. */
  readonly #free: PackBuilder[] = [];
  #building: PackBuilder | null = null;
  /** Appends one after the other. */
  #turn: Promise<void> = Promise.resolve();
  #loading: Promise<void> | null = null;

  constructor(store: SnapshotStore, { key, signal }: PacksOptions, mark: Mark | null) {
    this.#store = store;
    this.#key = key;
    this.#signal = signal;
    this.#mark = mark;
    this.#ranges = new Ranges(store);
    this.#puts = new Flight(putsAtOnce, signal);
  }

  /** Packs whose end is not an index: what they held is stored again by the next snapshot that needs it. */
  get damaged(): readonly string[] {
    return this.#damaged;
  }

  /** Reads what the store has now; once at a time. */
  load(): Promise<void> {
    this.#loading ??= this.#load().finally(() => {
      this.#loading = null;
    });
    return this.#loading;
  }

  async #load(): Promise<void> {
    const { packs, damaged } = await readCatalog(this.#store, this.#packs, this.#signal);
    this.#packs = packs;
    this.#damaged = damaged;
    this.#homes = new Map();
    for (const { rows } of [...packs.values(), ...this.#own.values()])
      for (const row of rows) this.#homes.set(row.name, row);
  }

  /** Whether it need not be added. */
  has(id: string): boolean {
    const name = storedName(id, this.#key);
    return this.#homes.has(name) || this.#adding.has(name);
  }

  /** Resolves when `plain` may be given away, with the bytes that it takes in the store: 0 when it was there. */
  async add(id: string, plain: Buffer): Promise<number> {
    if (this.#mark === null) throw new Error("these packs were opened to read");
    const name = storedName(id, this.#key);
    if (this.#homes.has(name) || this.#adding.has(name)) return 0;
    this.#adding.add(name);
    try {
      const sealed = await seal(id, plain, this.#key);
      const appended = this.#turn.then(() => this.#append(name, sealed));
      this.#turn = appended.catch(() => {});
      await appended;
      return sealed.length;
    } catch (error) {
      // Others were told meanwhile that it will be there.
      this.#failure ??= { error };
      throw error;
    }
  }

  /** Rejects when anything that was added could not be stored: then nothing may refer to it. */
  async flush(): Promise<void> {
    const sent = this.#turn.then(() => this.#send());
    this.#turn = sent.catch(() => {});
    await sent;
    await this.#puts.landed();
    if (this.#failure !== null) throw this.#failure.error;
    this.check();
  }

  /** Throws when others may have removed what was taken for stored (see gate.ts): ask after the manifest was put, too. */
  check(): void {
    this.#mark?.check();
  }

  /** The plaintext of a chunk that is durable: its bytes have that SHA-256, or it rejects. */
  async get(id: string): Promise<Buffer> {
    let sealed = await this.#read(id);
    if (sealed === null) {
      // A collector may have moved it since the indexes were read.
      await this.load();
      sealed = await this.#read(id);
    }
    this.#signal.throwIfAborted();
    if (sealed === null) throw this.#missing(id);
    try {
      return await unseal(id, sealed.bytes, this.#key);
    } catch (error) {
      if (!(error instanceof GatewayError) || error.code !== "GW_SNAPSHOT_CORRUPT") throw error;
      throw new GatewayError(
        error.code,
        `${error.message} (in ${sealed.pack} of ${this.#store.where}); without that object the next snapshot stores its chunks again`,
        { cause: error },
      );
    }
  }

  /** Leaves the gate; what was not flushed is forgotten. May be called twice. */
  async close(): Promise<void> {
    await this.#turn;
    await this.#puts.landed().catch(() => {});
    this.#building = null;
    this.#free.length = 0;
    await this.#mark?.leave();
  }

  async #read(id: string): Promise<{ readonly bytes: Buffer; readonly pack: string } | null> {
    this.#signal.throwIfAborted();
    const row = this.#homes.get(storedName(id, this.#key)) ?? this.#homes.get(id);
    const index = row === undefined ? undefined : (this.#packs.get(row.pack) ?? this.#own.get(row.pack));
    if (row === undefined || index === undefined) return null;
    const bytes = await this.#ranges.read(row, index);
    return bytes === null ? null : { bytes, pack: row.pack };
  }

  async #append(name: string, sealed: Buffer): Promise<void> {
    this.#building ??= this.#builder();
    if (this.#building.add(name, sealed)) return;
    await this.#send();
    this.#building = this.#builder();
    this.#building.add(name, sealed);
  }

  async #send(): Promise<void> {
    const builder = this.#building;
    if (builder === null || builder.isEmpty) return;
    this.#building = null;
    await this.#puts.start(1, async () => {
      const { bytes, index } = builder.finish();
      await this.#store.put(index.pack, bytes);
      this.#own.set(index.pack, index);
      for (const row of index.rows) {
        this.#homes.set(row.name, row);
        this.#adding.delete(row.name);
      }
      this.#free.push(builder);
    });
  }

  #builder(): PackBuilder {
    return this.#free.pop() ?? new PackBuilder(this.#key?.id ?? noKey);
  }

  #missing(id: string): GatewayError {
    const keyId = this.#key?.id ?? noKey;
    const others = [...this.#packs.values()].filter((pack) => pack.keyId !== keyId && pack.keyId !== noKey).length;
    if (others > 0)
      return new GatewayError(
        "GW_RECOVERY_REFUSED",
        `chunk ${id} is in no pack of ${this.#store.where} that can be read: ${others} packs there are encrypted ${this.#key === null ? "and there is no key" : "under another key"}; name the key of these snapshots in snapshots.encrypt.keyFile`,
      );
    return new GatewayError("GW_SNAPSHOT_CORRUPT", `chunk ${id} is in no pack of ${this.#store.where}`);
  }
}
