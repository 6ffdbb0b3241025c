// Adapter of the key store's port, in memory: answers, candidates and running hints at one server that can lose all of them.

import type { Answer, EntryKey } from "../../gateway/entry.ts";
import { GatewayError } from "../../gateway/errors.ts";
import type { Candidate, Decided, Decision, KeyClaim, Keys } from "../../gateway/keys/keys.ts";
import type { Wire } from "./wire.ts";
import type { Process, World } from "./world.ts";

const timeoutMs = 250;

interface Row {
  winner: string | null;
  readonly digests: Map<string, string>;
  readonly bytes: Map<string, Answer>;
}

interface Hint {
  readonly fingerprint: string;
  readonly process: Process;
  readonly holder: string;
  readonly nonce: number;
  /** After the end of its process, or from its last renewal. */
  untilMs: number;
}

export class KeyServer {
  readonly world: World;
  readonly leaseMs: number;
  readonly #tail: () => number;
  #rows = new Map<string, Row>();
  #newest = new Map<string, { readonly fingerprint: string; readonly position: number }>();
  readonly hints = new Map<string, Hint>();
  #nonces = 0;
  /** Everything at or below it that is not stored is lost. */
  #floor = 0;
  /** Emptied, and nobody has looked up the log's end since. */
  #isEmptied = false;

  constructor(world: World, leaseMs: number, tail: () => number) {
    this.world = world;
    this.leaseMs = leaseMs;
    this.#tail = tail;
  }

  /** FLUSHALL, or a restart from nothing. */
  empty(): void {
    this.world.note("the key store loses everything");
    this.#rows = new Map();
    this.#newest = new Map();
    this.hints.clear();
    this.#isEmptied = true;
  }

  /** The floor is the tail as it is when the loss is noticed, and so after it. */
  use(): void {
    if (!this.#isEmptied) return;
    this.#isEmptied = false;
    this.#floor = this.#tail();
  }

  #row(key: EntryKey, position: number): Row {
    const id = `${key.id}:${position}`;
    const known = this.#rows.get(id);
    if (known !== undefined) return known;
    const row: Row = { winner: null, digests: new Map(), bytes: new Map() };
    this.#rows.set(id, row);
    return row;
  }

  decided(id: string): Decision | null {
    const newest = this.#newest.get(id);
    const row = newest === undefined ? undefined : this.#rows.get(`${id}:${newest.position}`);
    if (newest === undefined || row === undefined || row.winner === null) return null;
    return { position: newest.position, digest: row.winner, answer: row.bytes.get(row.winner) ?? null };
  }

  claim(key: EntryKey, holder: string, process: Process): KeyClaim & { readonly nonce?: number } {
    const decision = this.decided(key.id);
    if (decision !== null)
      return this.#newest.get(key.id)?.fingerprint === key.fingerprint ? { kind: "done", decision } : { kind: "other" };
    const hint = this.hints.get(key.id);
    if (hint !== undefined && this.#isHeld(hint))
      return hint.fingerprint === key.fingerprint ? { kind: "running" } : { kind: "other" };
    const nonce = ++this.#nonces;
    const untilMs = this.world.nowMs + this.leaseMs;
    this.hints.set(key.id, { fingerprint: key.fingerprint, process, holder, nonce, untilMs });
    return { kind: "fresh", nonce };
  }

  #isHeld(hint: Hint): boolean {
    return hint.untilMs > this.world.nowMs;
  }

  release(key: EntryKey, holder: string): void {
    if (this.hints.get(key.id)?.holder === holder) this.hints.delete(key.id);
  }

  offer(key: EntryKey, position: number, { replica, digest, answer }: Candidate): void {
    if (position <= this.#floor) return;
    const row = this.#row(key, position);
    if (!row.digests.has(replica)) row.digests.set(replica, digest);
    if (row.digests.get(replica) !== digest) return;
    if (answer !== null && (row.winner === null || row.winner === digest) && !row.bytes.has(digest))
      row.bytes.set(digest, answer);
  }

  candidates(key: EntryKey, position: number): readonly Candidate[] {
    const row = this.#rows.get(`${key.id}:${position}`);
    return [...(row?.digests ?? [])].map(([replica, digest]) => ({
      replica,
      digest,
      answer: row?.bytes.get(digest) ?? null,
    }));
  }

  decide(key: EntryKey, { position, digest, answer }: Decision): Decided {
    this.hints.delete(key.id);
    const known = this.#rows.get(`${key.id}:${position}`)?.winner ?? null;
    if (known === null && position <= this.#floor) return { position, digest, answer: null, isLost: true };
    const row = this.#row(key, position);
    row.winner ??= digest;
    if (row.winner === digest && answer !== null && position > this.#floor && !row.bytes.has(digest))
      row.bytes.set(digest, answer);
    if ((this.#newest.get(key.id)?.position ?? 0) < position)
      this.#newest.set(key.id, { fingerprint: key.fingerprint, position });
    return { position, digest: row.winner, answer: row.bytes.get(row.winner) ?? null, isLost: false };
  }
}

export class KeyPort implements Keys {
  readonly kind = "redis";
  readonly #server: KeyServer;
  readonly #wire: Wire;
  readonly #process: Process;
  readonly #held = new Map<string, number>();
  readonly #timer: NodeJS.Timeout;

  constructor(server: KeyServer, process: Process, wire: Wire) {
    this.#server = server;
    this.#wire = wire;
    this.#process = process;
    this.#timer = setInterval(() => void this.#renew(), server.leaseMs / 3);
  }

  async claim(key: EntryKey, holder: string): Promise<KeyClaim> {
    const claim = await this.#ask(() => this.#server.claim(key, holder, this.#process));
    if (claim.nonce !== undefined) this.#held.set(key.id, claim.nonce);
    return claim;
  }
  async release(key: EntryKey, holder: string): Promise<void> {
    this.#held.delete(key.id);
    await this.#ask(() => this.#server.release(key, holder));
  }
  async offer(key: EntryKey, position: number, candidate: Candidate): Promise<void> {
    await this.#ask(() => this.#server.offer(key, position, candidate));
  }
  async candidates(key: EntryKey, position: number): Promise<readonly Candidate[]> {
    return this.#ask(() => this.#server.candidates(key, position));
  }
  async decide(key: EntryKey, decision: Decision): Promise<Decided> {
    this.#held.delete(key.id);
    return this.#ask(() => this.#server.decide(key, decision));
  }
  async decided(key: EntryKey): Promise<Decision | null> {
    return this.#ask(() => this.#server.decided(key.id));
  }
  isReachable(): boolean {
    return !this.#wire.isCut;
  }
  close(): Promise<void> {
    clearInterval(this.#timer);
    return Promise.resolve();
  }

  async #renew(): Promise<void> {
    if (this.#held.size === 0) return;
    const { world, hints, leaseMs } = this.#server;
    await this.#wire.call(timeoutMs, () => {
      for (const [id, nonce] of this.#held) {
        const hint = hints.get(id);
        if (hint?.nonce === nonce) hint.untilMs = world.nowMs + leaseMs;
      }
    });
  }

  async #ask<T>(act: () => T): Promise<T> {
    const called = await this.#wire.call(timeoutMs, () => {
      this.#server.use();
      return act();
    });
    if (called.kind === "answered") return called.value;
    throw new GatewayError("GW_KEYS_UNAVAILABLE", "the key store does not answer");
  }
}
