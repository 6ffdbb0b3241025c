// A store in memory, for tests: obeys the port's law, can be killed before or after any operation, and has a clock that the test moves.

import { GatewayError } from "../../gateway/errors.ts";
import { isObjectName, objectBytesMax } from "../../recorder/stores/store.ts";
import type { SnapshotStore, StoredObject } from "../../recorder/stores/store.ts";

export type Deed = "put" | "get" | "list" | "remove";

/** What survives a process: several stores may look at one disk. */
export class MemoryDisk {
  readonly objects = new Map<string, { readonly bytes: Buffer; readonly storedAtMs: number }>();
  nowMs = 1_700_000_000_000;

  names(prefix: string): string[] {
    return [...this.objects.keys()].filter((name) => name.startsWith(prefix)).toSorted();
  }

  bytes(prefix: string): number {
    return this.names(prefix).reduce((sum, name) => sum + this.objects.get(name)!.bytes.length, 0);
  }

  /** Changes an object behind everybody's back. */
  tamper(name: string, change: (bytes: Buffer) => Buffer): void {
    const { bytes, storedAtMs } = this.objects.get(name)!;
    this.objects.set(name, { bytes: change(Buffer.from(bytes)), storedAtMs });
  }
}

export class MemoryStore implements SnapshotStore {
  readonly kind = "folder";
  readonly where = "memory";
  readonly disk: MemoryDisk;
  /** All calls so far, in order. */
  readonly deeds: { readonly deed: Deed; readonly name: string; readonly bytes: number }[] = [];
  /** Called before each; may throw. */
  before: (deed: Deed, name: string) => void | Promise<void> = () => {};
  #changesLeft = Infinity;

  constructor(disk = new MemoryDisk()) {
    this.disk = disk;
  }

  /** After so many more puts and removes the process is dead: nothing happens any more. */
  dieAfter(changes: number): this {
    this.#changesLeft = changes;
    return this;
  }

  get isDead(): boolean {
    return this.#changesLeft < 0;
  }

  async put(name: string, bytes: Buffer): Promise<void> {
    if (!isObjectName(name)) throw new Error(`${name} is no name`);
    if (bytes.length > objectBytesMax) throw new Error(`${name} is too large`);
    // What the caller does with its memory while a put is under way must not reach the store, and would be found here.
    await this.#begin("put", name, bytes.length);
    await tick();
    this.#change();
    this.disk.objects.set(name, { bytes: Buffer.from(bytes), storedAtMs: this.disk.nowMs });
  }

  async get(name: string, range?: { readonly start: number; readonly end: number }): Promise<Buffer | null> {
    await this.#begin("get", name, range === undefined ? -1 : range.end - range.start);
    const object = this.disk.objects.get(name);
    if (object === undefined) return null;
    if (range !== undefined && (range.start < 0 || range.end < range.start || range.end > object.bytes.length))
      throw new GatewayError("GW_SNAPSHOT_CORRUPT", `${name} ends before byte ${range.end}`);
    return Buffer.from(object.bytes.subarray(range?.start, range?.end));
  }

  async *list(prefix: string): AsyncGenerator<StoredObject> {
    await this.#begin("list", prefix, 0);
    for (const [name, { bytes, storedAtMs }] of this.disk.objects)
      if (name.startsWith(prefix)) yield { name, sizeBytes: bytes.length, storedAtMs };
  }

  async remove(name: string): Promise<void> {
    await this.#begin("remove", name, 0);
    await tick();
    this.#change();
    this.disk.objects.delete(name);
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  async #begin(deed: Deed, name: string, bytes: number): Promise<void> {
    if (this.isDead) throw dead();
    this.deeds.push({ deed, name, bytes });
    await this.before(deed, name);
  }

  #change(): void {
    if (this.#changesLeft <= 0) this.#changesLeft = -1;
    if (this.isDead) throw dead();
    this.#changesLeft -= 1;
  }
}

const dead = (): GatewayError => new GatewayError("GW_STORE_UNAVAILABLE", "the process was killed");
const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
