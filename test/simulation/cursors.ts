// Adapter of the cursors' port, in memory: compare-and-set at one server.

import type { Cursor, Cursors, Saved, StoredCursor } from "../../gateway/cursors/cursors.ts";
import { GatewayError } from "../../gateway/errors.ts";
import type { Wire } from "./wire.ts";
import type { World } from "./world.ts";

const timeoutMs = 300;

export class CursorServer {
  readonly #world: World;
  readonly #stored = new Map<string, { readonly text: string; readonly revision: number }>();
  #revision = 0;

  constructor(world: World) {
    this.#world = world;
  }

  load(replica: string): StoredCursor | null {
    const stored = this.#stored.get(replica);
    return stored === undefined ? null : { cursor: JSON.parse(stored.text) as Cursor, revision: stored.revision };
  }

  save(cursor: Cursor, text: string, revision: number): Saved {
    if ((this.#stored.get(cursor.replica)?.revision ?? 0) !== revision) return { kind: "conflict" };
    this.#revision++;
    this.#stored.set(cursor.replica, { text, revision: this.#revision });
    const { replica, owner, state, applied, bound, standing, unknown } = cursor;
    this.#world.note(
      () =>
        `cursor ${replica}: ${owner?.name ?? "nobody"}'s, ${state} at ${applied} up to ${bound} H ${cursor.hash.slice(0, 8)}${standing === null ? "" : `, ${standing.state}: ${standing.reason}`}${unknown.length === 0 ? "" : `, unknown ${unknown.join(" ")}`}`,
    );
    return { kind: "saved", revision: this.#revision };
  }

  get names(): readonly string[] {
    return [...this.#stored.keys()];
  }
}

export class CursorPort implements Cursors {
  readonly #server: CursorServer;
  readonly #wire: Wire;

  constructor(server: CursorServer, wire: Wire) {
    this.#server = server;
    this.#wire = wire;
  }

  async load(replica: string): Promise<StoredCursor | null> {
    return this.#ask(() => this.#server.load(replica));
  }

  async save(cursor: Cursor, revision: number): Promise<Saved> {
    const text = JSON.stringify(cursor);
    const called = await this.#wire.call(timeoutMs, () => this.#server.save(cursor, text, revision));
    return called.kind === "answered" ? called.value : { kind: "unknown", cause: new Error("the save timed out") };
  }

  async list(): Promise<readonly string[]> {
    return this.#ask(() => this.#server.names);
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  async #ask<T>(question: () => T): Promise<T> {
    const called = await this.#wire.call(timeoutMs, question);
    if (called.kind === "answered") return called.value;
    throw new GatewayError("GW_LOG_UNAVAILABLE", "the cursors do not answer");
  }
}
