// Reader state: what follows from the log alone. A fold over records, the same in every process that reads the same log.

import { gunzipSync, gzipSync } from "node:zlib";
import type { Claim, Entry, EntryKey, Hash16, Item, RulesItem } from "../entry.ts";
import { isBodyRef, positionOf, sequenceOf } from "../entry.ts";
import { GatewayError } from "../errors.ts";
import type { StoredRecord } from "../log/log.ts";
import { Outgoing } from "../outgoing.ts";
import type { DecodedRecord, RecordHeader } from "../record.ts";
import { chain, decodeRecord, firstHash, sha256 } from "../record.ts";
import type { BodyRow, Exception, KeyRow, ProducerRow, StateBatch, StateCut, StateHead, StateStore } from "./store.ts";

/** A record whose base is further back than this is dropped, and producers idle for as long are forgotten. */
export const staleRecords = 65_536;

/** What `keys` settings every reader must fold with: part of the policy text, so that they follow from the log. */
export interface Policy {
  readonly rules: string;
  readonly retentionMs: number;
  readonly window: number;
}

export type Fate =
  | { readonly kind: "applied" }
  | { readonly kind: "duplicate"; readonly of: number }
  | { readonly kind: "skipped"; readonly reason: string }
  | { readonly kind: "control" };

export interface FoldedItem {
  readonly position: number;
  readonly item: Item;
  readonly fate: Fate;
  /** Of an entry that is applied. */
  readonly outgoing?: Outgoing;
}

export interface Folded {
  readonly sequence: number;
  readonly header: RecordHeader;
  readonly isDropped: boolean;
  readonly items: readonly FoldedItem[];
  /** H after this record, hex. */
  readonly hash: string;
  readonly previousHash: string;
  readonly recordHash: string;
  /** Entries up to and including this record. */
  readonly entries: number;
  readonly bytes: number;
}

/** A record as its producer has it in memory. */
export interface OwnRecord extends DecodedRecord {
  readonly bytes: Buffer;
  /** SHA-256 of its bytes. */
  readonly hash: Buffer;
}

/** Everything that was folded since the last one. */
interface Taken extends StateBatch {
  readonly keys: Map<Hash16, KeyRow | null>;
}

/** What a cut waits for: it is the next commit, and nothing comes with it that was folded later. */
interface Sealed {
  readonly batch: Taken;
  readonly resolve: (cut: StateCut) => void;
  readonly reject: (error: unknown) => void;
}

const applied: Fate = { kind: "applied" };
const control: Fate = { kind: "control" };

export class ReaderState {
  readonly #store: StateStore;
  #epoch: string;
  #sequence: number;
  #hash: Buffer;
  #entries: number;
  #logTimeMs: number;
  #keyCount: number;
  readonly #producers = new Map<string, ProducerRow>();
  readonly #rules = new Map<string, string>();
  readonly #parts = new Map<string, (Buffer | null)[]>();
  readonly #policies = new Map<string, Policy>();

  // Not committed yet, sealed by a cut, and being committed now; the younger wins.
  #young = new Map<Hash16, KeyRow | null>();
  #sealed: Sealed | null = null;
  #committing: ReadonlyMap<Hash16, KeyRow | null> = new Map();
  #gone: number[] = [];
  #exceptions: Exception[] = [];
  #bodies: BodyRow[] = [];
  #committingBatch: StateBatch | null = null;
  #oldest: KeyRow[] = [];
  #oldestAbove = -1;
  /** Skips by position: few, and every applier asks for them. */
  readonly #skips = new Map<number, string>();

  constructor(store: StateStore, epoch: string, firstSequence: number) {
    this.#store = store;
    const head = store.head();
    this.#epoch = epoch;
    this.#sequence = head?.sequence ?? firstSequence - 1;
    this.#hash = head === null ? firstHash : Buffer.from(head.hash, "hex");
    this.#entries = head?.entries ?? 0;
    this.#logTimeMs = head?.logTimeMs ?? 0;
    this.#keyCount = head?.keyCount ?? 0;
    if (head !== null) {
      if (head.epoch !== epoch)
        throw new GatewayError(
          "GW_LOG_REGRESSED",
          `the log's epoch is ${epoch}, this data folder knows ${head.epoch}: the log was replaced`,
        );
      // Field by field: the text of a head must not depend on where this one came from.
      for (const { producer, n, hash, sequence } of head.producers)
        this.#producers.set(producer, { producer, n, hash, sequence });
      for (const [digest, text] of Object.entries(head.rules)) this.#rules.set(digest, text);
      for (const [digest, parts] of Object.entries(head.parts))
        this.#parts.set(
          digest,
          parts.map((part) => (part === null ? null : Buffer.from(part, "base64"))),
        );
    }
    for (const skip of store.skips(100_000)) this.#skips.set(skip.position, skip.reason);
  }

  get epoch(): string {
    return this.#epoch;
  }
  /** The last folded record. */
  get sequence(): number {
    return this.#sequence;
  }
  get hash(): string {
    return this.#hash.toString("hex");
  }
  /** How many entries the folded log holds (dropped records and duplicates do not count). */
  get entries(): number {
    return this.#entries;
  }
  get keyCount(): number {
    return this.#keyCount;
  }
  /** The greatest record time so far: log time never goes back. */
  get logTimeMs(): number {
    return this.#logTimeMs;
  }

  policy(digest: string): Policy | null {
    const known = this.#policies.get(digest);
    if (known !== undefined) return known;
    const text = this.#rules.get(digest);
    if (text === undefined) return null;
    const policy = JSON.parse(text) as Policy;
    this.#policies.set(digest, policy);
    return policy;
  }

  key(id: Hash16): KeyRow | null {
    const young = this.#young.get(id);
    if (young !== undefined) return young;
    const sealed = this.#sealed?.batch.keys.get(id);
    if (sealed !== undefined) return sealed;
    const committing = this.#committing.get(id);
    if (committing !== undefined) return committing;
    return this.#store.key(id);
  }

  /** True when a new key must be refused: the window is full and its oldest key is younger than the retention. */
  isKeyWindowFull(policy: Policy): boolean {
    if (this.#keyCount < policy.window) return false;
    const oldest = this.#oldestKey();
    return oldest !== null && oldest.timeMs >= this.#logTimeMs - policy.retentionMs;
  }

  skipped(position: number): string | null {
    return this.#skips.get(position) ?? null;
  }
  get skips(): ReadonlyMap<number, string> {
    return this.#skips;
  }

  /** The fates of a stored record's items, for one who reads the log again below `sequence`. */
  replay(record: StoredRecord, previousHash: string, entriesBefore: number): Folded {
    const { header, items } = decodeRecord(record.bytes, record.sequence);
    const exceptions = [
      ...this.#store.exceptions(record.sequence, record.sequence),
      ...(this.#committingBatch?.exceptions ?? []),
      ...(this.#sealed?.batch.exceptions ?? []),
      ...this.#exceptions,
    ];
    const isDropped = exceptions.some((it) => it.kind === "dropped" && it.sequence === record.sequence);
    const duplicates = new Map<number, number>();
    for (const it of exceptions)
      if (it.kind === "duplicate" && sequenceOf(it.position) === record.sequence) duplicates.set(it.position, it.of);
    let entries = entriesBefore;
    const folded = items.map((item, index): FoldedItem => {
      const position = positionOf(record.sequence, index);
      if (isDropped) return { position, item, fate: control };
      const of = duplicates.get(position);
      if (of !== undefined) return { position, item, fate: { kind: "duplicate", of } };
      if (item.kind !== "entry") return { position, item, fate: control };
      entries++;
      const reason = this.skipped(position);
      return {
        position,
        item,
        fate: reason === null ? applied : { kind: "skipped", reason },
        outgoing: new Outgoing(item, position),
      };
    });
    const recordHash = sha256(record.bytes);
    return {
      sequence: record.sequence,
      header,
      isDropped,
      items: folded,
      hash: chain(Buffer.from(previousHash, "hex"), recordHash).toString("hex"),
      previousHash,
      recordHash: recordHash.toString("hex"),
      entries,
      bytes: record.bytes.length,
    };
  }

  /**
   * Takes the next record; `own` is what this process appended last: bytes of the same hash need not be read again.
   * Throws GW_LOG_REGRESSED on a gap, GW_LOG_CORRUPT on bytes that no gateway wrote. */
  fold(record: StoredRecord, own: OwnRecord | null = null): Folded {
    if (record.sequence !== this.#sequence + 1)
      throw new GatewayError(
        "GW_LOG_REGRESSED",
        `record ${this.#sequence + 1} was expected, the log gave ${record.sequence}`,
      );
    // A log that gives back the very bytes it was given need not have them hashed again.
    const recordHash = own?.bytes === record.bytes ? own.hash : sha256(record.bytes);
    const { header, items } = own?.hash.equals(recordHash) === true ? own : decodeRecord(record.bytes, record.sequence);
    const previousHash = this.#hash.toString("hex");
    this.#hash = chain(this.#hash, recordHash);
    this.#sequence = record.sequence;

    const isDropped = this.#isRepeated(header, record.sequence);
    let folded: FoldedItem[];
    if (isDropped) {
      this.#exceptions.push({ kind: "dropped", sequence: record.sequence });
      folded = items.map((item, index) => ({ position: positionOf(record.sequence, index), item, fate: control }));
    } else {
      this.#producers.set(header.producer, {
        producer: header.producer,
        n: header.n,
        hash: recordHash.toString("hex"),
        sequence: record.sequence,
      });
      if (header.timeMs > this.#logTimeMs) this.#logTimeMs = header.timeMs;
      folded = items.map((item, index) => this.#foldItem(positionOf(record.sequence, index), item, header));
    }
    if (record.sequence % 4096 === 0) this.#forgetIdleProducers();
    return {
      sequence: record.sequence,
      header,
      isDropped,
      items: folded,
      hash: this.#hash.toString("hex"),
      previousHash,
      recordHash: recordHash.toString("hex"),
      entries: this.#entries,
      bytes: record.bytes.length,
    };
  }

  #isRepeated(header: RecordHeader, sequence: number): boolean {
    if (sequence - 1 - header.base > staleRecords) return true;
    const known = this.#producers.get(header.producer);
    if (known === undefined) return false;
    if (header.n <= known.n) return true;
    if (header.n !== known.n + 1 || header.previous.toString("hex") !== known.hash)
      throw new GatewayError(
        "GW_LOG_CORRUPT",
        `record ${sequence} does not follow its producer's record ${known.sequence}: the log lost a record between them`,
      );
    return false;
  }

  #foldItem(position: number, item: Item, header: RecordHeader): FoldedItem {
    switch (item.kind) {
      case "entry":
        if (isBodyRef(item.body)) this.#bodies.push({ position, sha256: item.body.sha256 });
        return {
          position,
          item,
          fate: this.#foldEntry(position, item, header),
          outgoing: new Outgoing(item, position),
        };
      case "claim":
        return { position, item, fate: this.#foldClaim(position, item, header) };
      case "settled": {
        const row = this.#rowAt(item.position);
        if (row !== null && row.kind !== "entry") {
          if (item.outcome === "not-started") this.#forgetKey(row);
          else this.#young.set(row.id, { ...row, kind: item.outcome });
        }
        return { position, item, fate: control };
      }
      case "skip": {
        if (!this.#skips.has(item.position)) {
          this.#skips.set(item.position, item.reason);
          this.#exceptions.push({
            kind: "skip",
            position: item.position,
            reason: item.reason,
            maybeSent: item.maybeSent,
          });
          const row = this.#rowAt(item.position);
          if (row !== null) this.#forgetKey(row);
        }
        return { position, item, fate: control };
      }
      case "rules":
        this.#foldRules(item);
        return { position, item, fate: control };
      case "tick":
      case "mark":
        return { position, item, fate: control };
      default:
        item satisfies never;
        throw new TypeError("unknown item");
    }
  }

  #foldEntry(position: number, entry: Entry, header: RecordHeader): Fate {
    const of = this.#foldKey(entry.key, "entry", position, header, entry.retryOf);
    if (of !== null) {
      this.#exceptions.push({ kind: "duplicate", position, of });
      return { kind: "duplicate", of };
    }
    this.#entries++;
    return applied;
  }

  #foldClaim(position: number, claim: Claim, header: RecordHeader): Fate {
    const of = this.#foldKey(claim.key, "claimed", position, header, claim.retryOf);
    if (of !== null) {
      this.#exceptions.push({ kind: "duplicate", position, of });
      return { kind: "duplicate", of };
    }
    return control;
  }

  /**
   * Keys of recent positions, so that a settlement or a skip need not ask the store, which does not know what is not committed. Two maps
   * that take turns: taking the oldest out of one costs microseconds, because V8 walks over all that were taken before (measured). */
  #recent = new Map<number, Hash16>();
  #formerRecent = new Map<number, Hash16>();
  /** The former holds nothing above it. */
  #formerTo = 0;
  /** What the store knows. */
  #committedTo = 0;

  #noteRecent(position: number, id: Hash16): void {
    this.#recent.set(position, id);
    if (this.#recent.size < recentMax || this.#formerTo > this.#committedTo) return;
    this.#formerRecent = this.#recent;
    this.#formerTo = this.#sequence;
    this.#recent = new Map();
  }

  #rowAt(position: number): KeyRow | null {
    const id =
      this.#recent.get(position) ??
      this.#formerRecent.get(position) ??
      this.#store.oldestKeys(position - 1, 1).find((row) => row.position === position)?.id;
    const row = id === undefined ? null : this.key(id);
    return row?.position === position ? row : null;
  }

  /** The position of the first occurrence when this one is a later one, else null. */
  #foldKey(
    key: EntryKey | null,
    kind: "entry" | "claimed",
    position: number,
    header: RecordHeader,
    retryOf: number | null,
  ): number | null {
    if (key === null) return null;
    const first = this.key(key.id);
    if (first !== null && first.position !== retryOf) return first.position;
    if (first !== null) this.#gone.push(first.position);
    else this.#keyCount++;
    // Behind all others, also where the same key was forgotten before: the map's order is the order of positions.
    this.#young.delete(key.id);
    this.#young.set(key.id, { id: key.id, fingerprint: key.fingerprint, position, timeMs: this.#logTimeMs, kind });
    this.#noteRecent(position, key.id);
    const policy = this.policy(header.rules);
    if (policy !== null) this.#evict(policy);
    return null;
  }

  /** A key is forgotten only beyond the window and older than the retention in log time. */
  #evict(policy: Policy): void {
    while (this.#keyCount > policy.window) {
      const oldest = this.#oldestKey();
      if (oldest === null || oldest.timeMs >= this.#logTimeMs - policy.retentionMs) return;
      this.#forgetKey(oldest);
    }
  }

  #forgetKey(row: KeyRow): void {
    this.#young.set(row.id, null);
    this.#gone.push(row.position);
    this.#keyCount--;
  }

  #oldestKey(): KeyRow | null {
    for (;;) {
      const candidate = this.#oldest[0];
      if (candidate !== undefined) {
        const current = this.key(candidate.id);
        if (current !== null && current.position === candidate.position) return current;
        this.#oldest.shift();
        continue;
      }
      const rows = this.#store.oldestKeys(this.#oldestAbove, 256);
      const last = rows.at(-1);
      if (last !== undefined) {
        this.#oldest = [...rows];
        this.#oldestAbove = last.position;
        continue;
      }
      // Nothing committed is left: what is in memory is younger than all of that, and in order.
      for (const map of [this.#committing, ...(this.#sealed === null ? [] : [this.#sealed.batch.keys]), this.#young])
        for (const [id, row] of map) if (row !== null && this.key(id)?.position === row.position) return row;
      return null;
    }
  }

  #foldRules(item: RulesItem): void {
    if (this.#rules.has(item.digest)) return;
    const parts = this.#parts.get(item.digest) ?? Array.from({ length: item.parts }, () => null);
    if (parts.length !== item.parts || item.part >= item.parts)
      throw new GatewayError(
        "GW_LOG_CORRUPT",
        `part ${item.part} of ${item.parts} of the rules ${item.digest} in the log belongs to no text`,
      );
    parts[item.part] = Buffer.from(item.text);
    this.#parts.set(item.digest, parts);
    if (parts.some((part) => part === null)) return;
    this.#parts.delete(item.digest);
    const text = unpacked(Buffer.concat(parts as Buffer[]));
    if (text === null || policyDigest(text) !== item.digest)
      throw new GatewayError("GW_LOG_CORRUPT", `the rules text of ${item.digest} in the log has another digest`);
    this.#rules.set(item.digest, text);
  }

  #forgetIdleProducers(): void {
    for (const row of this.#producers.values())
      if (row.sequence < this.#sequence - staleRecords) this.#producers.delete(row.producer);
  }

  /** How much waits for a commit. */
  get uncommitted(): number {
    return this.#young.size + this.#exceptions.length + this.#bodies.length;
  }

  /** True while a cut waits for a commit. */
  get hasCut(): boolean {
    return this.#sealed !== null;
  }

  /** SHA-256 of the bodies that entries of `fromSequence` and later refer to, as far as the log is folded. */
  async bodies(fromSequence: number): Promise<ReadonlySet<string>> {
    // Memory first: what is committed meanwhile is found in the store.
    const rows = [this.#committingBatch?.bodies ?? [], this.#sealed?.batch.bodies ?? [], this.#bodies].flat();
    const found = new Set(await this.#store.bodies(fromSequence));
    for (const row of rows) if (sequenceOf(row.position) >= fromSequence) found.add(row.sha256);
    return found;
  }

  /**
   * The state exactly as it is now, when commits have brought it to the store; the fold goes on meanwhile. Rejects when the commit fails, and
   * with GW_CONFLICT while another cut waits. */
  cut(): Promise<StateCut> {
    if (this.#sealed !== null)
      return Promise.reject(
        new GatewayError("GW_CONFLICT", `the reader state is being cut at record ${this.#sealed.batch.head.sequence}`),
      );
    const batch = this.#take();
    return new Promise((resolve, reject) => {
      this.#sealed = { batch, resolve, reject };
    });
  }

  /** No commit will come any more. */
  abandonCut(error: GatewayError): void {
    this.#sealed?.reject(error);
  }

  /** Writes the fold so far. One commit at a time: the caller waits for it. */
  async commit(): Promise<void> {
    const cut = this.#sealed;
    if (cut !== null) {
      this.#sealed = null;
      try {
        await this.#write(cut.batch);
        // Right here, where nothing can have been committed in between.
        cut.resolve(this.#store.cut());
      } catch (error) {
        cut.reject(error);
        throw error;
      }
    }
    await this.#write(this.#take());
  }

  #take(): Taken {
    const taken = {
      head: this.#head(),
      keys: this.#young,
      gonePositions: this.#gone,
      exceptions: this.#exceptions,
      bodies: this.#bodies,
    };
    this.#young = new Map();
    this.#gone = [];
    this.#exceptions = [];
    this.#bodies = [];
    return taken;
  }

  /** Canonical: everything in an order that does not depend on when this process began. */
  #head(): StateHead {
    const producers = [...this.#producers.values()].sort((a, b) => (a.producer < b.producer ? -1 : 1));
    return {
      version: 1,
      epoch: this.#epoch,
      sequence: this.#sequence,
      hash: this.hash,
      entries: this.#entries,
      logTimeMs: this.#logTimeMs,
      keyCount: this.#keyCount,
      producers,
      rules: Object.fromEntries([...this.#rules].sort(byDigest)),
      parts: Object.fromEntries(
        [...this.#parts]
          .sort(byDigest)
          .map(([digest, parts]) => [digest, parts.map((part) => part?.toString("base64") ?? null)]),
      ),
    };
  }

  async #write(batch: Taken): Promise<void> {
    this.#committing = batch.keys;
    this.#committingBatch = batch;
    try {
      await this.#store.commit(batch);
      this.#committedTo = batch.head.sequence;
    } catch (error) {
      // The next commit has to bring what this one did not.
      if (this.#sealed !== null) this.#sealed = { ...this.#sealed, batch: merged(batch, this.#sealed.batch) };
      else {
        const all = merged(batch, this.#take());
        this.#young = all.keys;
        this.#gone = [...all.gonePositions];
        this.#exceptions = [...all.exceptions];
        this.#bodies = [...all.bodies];
      }
      throw error;
    } finally {
      this.#committing = new Map();
      this.#committingBatch = null;
    }
  }
}

const byDigest = ([a]: readonly [string, unknown], [b]: readonly [string, unknown]): number => (a < b ? -1 : 1);

/** Older rows first; younger ones win, and stand behind all others: the order of a map is the order of positions. */
function merged(older: Taken, younger: Taken): Taken {
  const keys = older.keys;
  for (const [id, row] of younger.keys) {
    if (row !== null && keys.get(id)?.position !== row.position) keys.delete(id);
    keys.set(id, row);
  }
  return {
    head: younger.head,
    keys,
    gonePositions: [...older.gonePositions, ...younger.gonePositions],
    exceptions: [...older.exceptions, ...younger.exceptions],
    bodies: [...older.bodies, ...younger.bodies],
  };
}

const recentMax = 32_768;

function unpacked(packed: Buffer): string | null {
  try {
    return gunzipSync(packed).toString("utf8");
  } catch {
    return null;
  }
}

export const policyText = (policy: Policy): string =>
  JSON.stringify({ rules: policy.rules, retentionMs: policy.retentionMs, window: policy.window });
export const policyDigest = (text: string): string => sha256(Buffer.from(text, "utf8")).toString("hex");

/** The control items that bring a policy into the log, split so that each fits into a record. */
export function rulesItems(text: string, partBytes: number): readonly RulesItem[] {
  const packed = gzipSync(Buffer.from(text, "utf8"));
  const parts = Math.max(1, Math.ceil(packed.length / partBytes));
  const digest = policyDigest(text);
  return Array.from({ length: parts }, (_, part) => ({
    kind: "rules",
    digest,
    part,
    parts,
    text: packed.subarray(part * partBytes, (part + 1) * partBytes),
  }));
}
