// What a gateway's data folder keeps: own marks, intents and reader state. It survives a kill of the process; a reboot of the machine voids the intents.

import { sequenceOf } from "../../gateway/entry.ts";
import { GatewayError } from "../../gateway/errors.ts";
import type { ChainNotes, Intents } from "../../gateway/intents/intents.ts";
import type { Marks, OwnMarks } from "../../gateway/state/marks.ts";
import type { Exception, KeyRow, SkipRow, StateBatch, StateHead, StateStore } from "../../gateway/state/store.ts";
import type { Process, World } from "./world.ts";

interface Chain {
  readonly nonce: string;
  readonly sent: Set<number>;
  readonly done: Set<number>;
  readonly saved: Map<number, Buffer>;
}
type Chains = Map<string, Chain>;

export class Machine {
  readonly name: string;
  readonly formerBoots = new Set<string>();
  readonly marks = new MemoryMarks();
  readonly state = new MemoryState();
  /** By boot of the process, of this boot of the machine. */
  intents = new Map<string, Chains>();

  constructor(name: string) {
    this.name = name;
  }

  reboot(): void {
    this.intents = new Map();
  }
}

/** Intents of one process. */
export class MemoryIntents implements Intents {
  readonly #world: World;
  readonly #process: Process;
  readonly #former: ReadonlyMap<string, Chains>;
  readonly #chains: Chains = new Map();
  /** Noted and not written yet. */
  #buffer: (() => void)[] = [];
  /** Fails the next so many flushes: the disk is full. */
  failing = 0;
  /** Asked after a flush was written and before anything is sent: true kills the process right there. */
  readonly #diesAfterFlush: () => boolean;

  constructor(machine: Machine, boot: string, world: World, process: Process, diesAfterFlush: () => boolean) {
    this.#world = world;
    this.#process = process;
    this.#diesAfterFlush = diesAfterFlush;
    this.#former = new Map(machine.intents);
    machine.intents.set(boot, this.#chains);
  }

  begin(replica: string, nonce: string): void {
    this.#buffer.push(() => this.#chains.set(replica, { nonce, sent: new Set(), done: new Set(), saved: new Map() }));
  }
  save(replica: string, position: number, undo: Buffer): void {
    this.#buffer.push(() => this.#chains.get(replica)?.saved.set(position, undo));
  }
  sent(replica: string, position: number): void {
    this.#buffer.push(() => this.#chains.get(replica)?.sent.add(position));
  }
  done(replica: string, position: number): void {
    this.#buffer.push(() => {
      const chain = this.#chains.get(replica);
      chain?.sent.delete(position);
      chain?.saved.delete(position);
      chain?.done.add(position);
    });
  }
  flush(): void {
    if (this.#buffer.length === 0 || !this.#process.isAlive) return;
    if (this.failing > 0) {
      this.failing--;
      throw new GatewayError("GW_DISK_FULL", "intents cannot be written");
    }
    for (const write of this.#buffer.splice(0)) write();
    if (this.#diesAfterFlush()) {
      this.#world.note(`${this.#process.name} is killed between its notes and its sends`);
      this.#process.kill();
    }
  }
  notes(ownerBoot: string, replica: string, nonce: string): ChainNotes | null {
    const chain = this.#former.get(ownerBoot)?.get(replica);
    if (chain === undefined || chain.nonce !== nonce) return null;
    return { unknown: ascending(chain.sent), done: ascending(chain.done), saved: new Map(chain.saved) };
  }
  forgetFormer(): void {}
  close(): void {}
}

const ascending = (set: ReadonlySet<number>): number[] => [...set].sort((a, b) => a - b);

class MemoryMarks implements OwnMarks {
  #place: Omit<Marks, "revisions"> | null = null;
  #revisions: Readonly<Record<string, number>> = {};

  get current(): Marks | null {
    if (this.#place === null && Object.keys(this.#revisions).length === 0) return null;
    return { epoch: "", sequence: 0, recordHash: "", hash: "", ...this.#place, revisions: this.#revisions };
  }
  note(epoch: string, sequence: number, recordHash: string, hash: string): void {
    if (this.#place?.epoch === epoch && sequence <= this.#place.sequence) return;
    this.#place = { epoch, sequence, recordHash, hash };
  }
  noteRevision(replica: string, revision: number): void {
    if ((this.#revisions[replica] ?? 0) < revision) this.#revisions = { ...this.#revisions, [replica]: revision };
  }
  checkRevision(replica: string, revision: number): void {
    const seen = this.#revisions[replica] ?? 0;
    if (revision < seen)
      throw new GatewayError("GW_LOG_REGRESSED", `the cursor of ${replica} has revision ${revision}, ${seen} was seen`);
  }
}

class MemoryState implements StateStore {
  #head: StateHead | null = null;
  readonly #keys = new Map<string, KeyRow>();
  /** Ids by position, ascending where it matters. */
  readonly #positions = new Map<number, string>();
  readonly #exceptions: Exception[] = [];

  head(): StateHead | null {
    return this.#head;
  }
  key(id: string): KeyRow | null {
    return this.#keys.get(id) ?? null;
  }
  oldestKeys(abovePosition: number, limit: number): readonly KeyRow[] {
    return [...this.#positions.keys()]
      .filter((it) => it > abovePosition)
      .sort((a, b) => a - b)
      .slice(0, limit)
      .flatMap((position) => {
        const row = this.#keys.get(this.#positions.get(position) ?? "");
        return row?.position === position ? [row] : [];
      });
  }
  exceptions(fromSequence: number, toSequence: number): readonly Exception[] {
    return this.#exceptions.filter((it) => {
      const sequence = it.kind === "dropped" ? it.sequence : sequenceOf(it.position);
      return sequence >= fromSequence && sequence <= toSequence;
    });
  }
  skips(limit: number): readonly SkipRow[] {
    return this.#exceptions.filter((it) => it.kind === "skip").slice(0, limit);
  }
  bodies(): Promise<ReadonlySet<string>> {
    return Promise.resolve(new Set());
  }
  commit(batch: StateBatch): Promise<void> {
    for (const position of batch.gonePositions) this.#positions.delete(position);
    for (const [id, row] of batch.keys) {
      if (row === null) this.#keys.delete(id);
      else {
        this.#keys.set(id, row);
        this.#positions.set(row.position, id);
      }
    }
    this.#exceptions.push(...batch.exceptions);
    this.#head = batch.head;
    return Promise.resolve();
  }
  cut(): never {
    throw new Error("no simulated state is cut");
  }
  reset(): Promise<void> {
    return Promise.reject(new Error("no simulated state is replaced"));
  }
  truncate(): Promise<void> {
    return Promise.resolve();
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}
