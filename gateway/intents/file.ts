// Intents in one file a process: rows of fixed shape, appended by one write(2) a turn. When it has grown it is rewritten with what still counts.

import { closeSync, openSync, readdirSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { GatewayError } from "../errors.ts";
import type { ChainNotes, Intents } from "./intents.ts";
import { step } from "../steps.ts";

const rewriteBytes = 4 * 1024 * 1024;
const bufferBytes = 64 * 1024;
/** Of a buffer that grew. */
const keptBytesMax = 1024 * 1024;
const magic = "GWI2";
// Rows: kind u8, replica u8, then 16 bytes of nonce (begin), a double (sent, done), a double and length-prefixed bytes (saved), or a length-prefixed
// name (replica).
const rowReplica = 0;
const rowBegin = 1;
const rowSent = 2;
const rowDone = 3;
const rowSaved = 4;

interface FormerChain {
  readonly nonce: string;
  readonly sent: Set<number>;
  readonly done: Set<number>;
  readonly saved: Map<number, Buffer>;
}
interface Chain {
  readonly nonce: string;
  readonly current: () => ChainNotes;
}

export interface IntentsOptions {
  readonly folder: string;
  /** Boot id of this process, 32 hex digits. */
  readonly boot: string;
  /** Boot id of the machine. */
  readonly machine: string;
}

export function openFileIntents({ folder, boot, machine }: IntentsOptions): Intents {
  return new FileIntents(folder, boot, machine);
}

class FileIntents implements Intents {
  readonly #folder: string;
  readonly #boot: string;
  readonly #machine: string;
  #file: number;
  #written: number;
  /** What counts may be more than the usual size, by what is saved: then it is not written anew at every flush. */
  #rewriteAt = rewriteBytes;
  #buffer = Buffer.allocUnsafe(bufferBytes);
  #at = 0;
  readonly #indexes = new Map<string, number>();
  readonly #chains = new Map<string, Chain>();
  readonly #former = new Map<string, Map<string, FormerChain>>();
  #isClosed = false;

  constructor(folder: string, boot: string, machine: string) {
    this.#folder = folder;
    this.#boot = boot;
    this.#machine = machine;
    for (const name of readdirSync(folder)) {
      const former = /^intents-([0-9a-f]{32})$/.exec(name)?.[1];
      if (former !== undefined) this.#former.set(former, readChains(readFileSync(join(folder, name)), machine));
    }
    this.#file = openSync(this.#path(boot), "w", 0o600);
    this.#written = 0;
    this.#written = this.#write(header(machine));
  }

  begin(replica: string, nonce: string, current: () => ChainNotes): void {
    this.#chains.set(replica, { nonce, current });
    const index = this.#index(replica);
    this.#room(18);
    this.#buffer[this.#at++] = rowBegin;
    this.#buffer[this.#at++] = index;
    this.#at += this.#buffer.write(nonce, this.#at, 16, "hex");
  }

  save(replica: string, position: number, undo: Buffer): void {
    this.#row(rowSaved, replica, position);
    this.#room(4 + undo.length);
    this.#at = this.#buffer.writeUInt32BE(undo.length, this.#at);
    this.#at += undo.copy(this.#buffer, this.#at);
  }

  sent(replica: string, position: number): void {
    this.#row(rowSent, replica, position);
  }

  done(replica: string, position: number): void {
    this.#row(rowDone, replica, position);
  }

  flush(): void {
    if (this.#at === 0) return;
    try {
      if (this.#written + this.#at > this.#rewriteAt) this.#rewrite();
      this.#written += this.#write(this.#buffer.subarray(0, this.#at));
      this.#at = 0;
      if (this.#buffer.length > keptBytesMax) this.#buffer = Buffer.allocUnsafe(bufferBytes);
    } catch (error) {
      throw new GatewayError(
        "GW_DISK_FULL",
        `intents cannot be written to ${this.#folder}: nothing is sent to any replica until they can`,
        { cause: error },
      );
    }
  }

  notes(ownerBoot: string, replica: string, nonce: string): ChainNotes | null {
    const chain = this.#former.get(ownerBoot)?.get(replica);
    if (chain === undefined || chain.nonce !== nonce) return null;
    const { saved } = chain;
    return {
      unknown: [...chain.sent].sort((a, b) => a - b),
      done: [...chain.done].sort((a, b) => a - b),
      ...(saved.size === 0 ? {} : { saved }),
    };
  }

  forgetFormer(): void {
    for (const boot of this.#former.keys()) rmSync(this.#path(boot), { force: true });
    this.#former.clear();
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    closeSync(this.#file);
  }

  #path(boot: string): string {
    return join(this.#folder, `intents-${boot}`);
  }

  #index(replica: string): number {
    const known = this.#indexes.get(replica);
    if (known !== undefined) return known;
    const index = this.#indexes.size;
    if (index > 255) throw new RangeError("more than 256 replicas");
    this.#indexes.set(replica, index);
    const name = Buffer.from(replica, "utf8");
    this.#room(3 + name.length);
    this.#buffer[this.#at++] = rowReplica;
    this.#buffer[this.#at++] = index;
    this.#buffer[this.#at++] = name.length;
    this.#at += name.copy(this.#buffer, this.#at);
    return index;
  }

  #row(kind: number, replica: string, position: number): void {
    const index = this.#index(replica);
    this.#room(10);
    this.#buffer[this.#at++] = kind;
    this.#buffer[this.#at++] = index;
    this.#at = this.#buffer.writeDoubleBE(position, this.#at);
  }

  #room(size: number): void {
    if (this.#at + size <= this.#buffer.length) return;
    const larger = Buffer.allocUnsafe(Math.max(this.#buffer.length * 2, this.#at + size));
    this.#buffer.copy(larger, 0, 0, this.#at);
    this.#buffer = larger;
  }

  #write(bytes: Buffer): number {
    step("intents.write");
    let at = 0;
    // At a place of its own: after a write that was cut short by a full disk the next one begins where that one did.
    while (at < bytes.length) at += writeSync(this.#file, bytes, at, bytes.length - at, this.#written + at);
    return bytes.length;
  }

  /** A new file with the chains as they are, put in place of the old one by rename. */
  #rewrite(): void {
    const pending = Buffer.from(this.#buffer.subarray(0, this.#at));
    const indexes = new Map(this.#indexes);
    const path = this.#path(this.#boot);
    const old = this.#file;
    const oldWritten = this.#written;
    const file = openSync(`${path}.new`, "w", 0o600);
    this.#file = file;
    this.#at = 0;
    this.#indexes.clear();
    try {
      this.#written = 0;
      this.#written = this.#write(header(this.#machine));
      for (const [replica, { nonce, current }] of this.#chains) {
        this.begin(replica, nonce, current);
        const { unknown, done, saved } = current();
        for (const [position, undo] of saved ?? []) this.save(replica, position, undo);
        for (const position of unknown) this.sent(replica, position);
        for (const position of done) this.done(replica, position);
      }
      this.#written += this.#write(this.#buffer.subarray(0, this.#at));
      step("intents.rename");
      renameSync(`${path}.new`, path);
      closeSync(old);
      this.#at = 0;
      this.#rewriteAt = Math.max(rewriteBytes, 2 * this.#written);
    } catch (error) {
      closeSync(file);
      rmSync(`${path}.new`, { force: true });
      this.#file = old;
      this.#written = oldWritten;
      this.#at = pending.copy(this.#buffer, 0);
      this.#indexes.clear();
      for (const [replica, index] of indexes) this.#indexes.set(replica, index);
      throw error;
    }
  }
}

const header = (machine: string): Buffer => Buffer.from(magic + machine.padEnd(36).slice(0, 36), "latin1");

/** Torn rows at the end are rows whose entry was never sent. */
function readChains(bytes: Buffer, machine: string): Map<string, FormerChain> {
  const chains = new Map<string, FormerChain>();
  if (!bytes.subarray(0, 40).equals(header(machine))) return chains;
  const names: string[] = [];
  let at = 40;
  while (at + 3 <= bytes.length) {
    const kind = bytes[at] as number;
    const index = bytes[at + 1] as number;
    if (kind === rowReplica) {
      const length = bytes[at + 2] as number;
      if (at + 3 + length > bytes.length) break;
      names[index] = bytes.toString("utf8", at + 3, at + 3 + length);
      at += 3 + length;
      continue;
    }
    const name = names[index];
    if (name === undefined) break;
    if (kind === rowBegin) {
      if (at + 18 > bytes.length) break;
      chains.set(name, {
        nonce: bytes.toString("hex", at + 2, at + 18),
        sent: new Set(),
        done: new Set(),
        saved: new Map(),
      });
      at += 18;
      continue;
    }
    if (at + 10 > bytes.length) break;
    const position = bytes.readDoubleBE(at + 2);
    const chain = chains.get(name);
    if (kind === rowSaved) {
      if (at + 14 > bytes.length) break;
      const end = at + 14 + bytes.readUInt32BE(at + 10);
      if (end > bytes.length) break;
      chain?.saved.set(position, bytes.subarray(at + 14, end));
      at = end;
      continue;
    }
    if (kind === rowSent) chain?.sent.add(position);
    else if (kind === rowDone) {
      chain?.sent.delete(position);
      chain?.saved.delete(position);
      chain?.done.add(position);
    } else break;
    at += 10;
  }
  return chains;
}
