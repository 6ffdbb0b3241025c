// Adapter of the peers port: plain NATS subjects, one for all gateways of a service and one for each.

import { randomBytes } from "node:crypto";
import type { Msg } from "@nats-io/transport-node";
import { serviceToken } from "../drivers/nats.ts";
import type { Nats } from "../drivers/nats.ts";
import { decodeMessage, encodeMessage } from "./message.ts";
import type { Message, Peers, Question, Reply } from "./peers.ts";

export interface NatsPeersOptions {
  /** Opened and closed by the caller. */
  readonly nats: Nats;
  readonly service: string;
  readonly boot: string;
}

export const openNatsPeers = (options: NatsPeersOptions): Peers => new NatsPeers(options);

/** What the header of a part costs. */
const partHeaderBytes = 1024;
/** Parts of messages that are not whole yet. */
const partsBytesMax = 64 * 1024 * 1024;

interface Parts {
  readonly pieces: (Buffer | undefined)[];
  missing: number;
  bytes: number;
}

class NatsPeers implements Peers {
  readonly #nats: Nats;
  readonly #boot: string;
  readonly #all: string;
  readonly #one: (boot: string) => string;
  readonly #listeners: ((message: Message, from: string) => void)[] = [];
  #handler: ((question: Question, from: string) => Promise<Reply>) | null = null;
  readonly #parts = new Map<string, Parts>();
  #partBytes = 0;
  #isClosed = false;

  constructor({ nats, service, boot }: NatsPeersOptions) {
    this.#nats = nats;
    this.#boot = boot;
    const token = serviceToken(service);
    this.#all = `gw-peers.${token}.all`;
    this.#one = (to) => `gw-peers.${token}.one.${to}`;
    const { connection } = nats;
    for (const subject of [`${this.#all}.*`, `${this.#one(boot)}.*`])
      connection.subscribe(subject, {
        callback: (error, message) => (error === null ? this.#heard(message) : undefined),
      });
    connection.subscribe(`${this.#one(boot)}.*.ask`, {
      callback: (error, message) => (error === null ? void this.#asked(message) : undefined),
    });
  }

  tell(message: Message): void {
    this.#publish(`${this.#all}.${this.#boot}`, encodeMessage(message));
  }

  send(boot: string, message: Message): void {
    this.#publish(`${this.#one(boot)}.${this.#boot}`, encodeMessage(message));
  }

  async ask(boot: string, question: Question, timeoutMs: number): Promise<Reply | null> {
    if (this.#isClosed || !this.#nats.isConnected()) return null;
    try {
      const subject = `${this.#one(boot)}.${this.#boot}.ask`;
      const message = await this.#nats.connection.request(subject, JSON.stringify(question), { timeout: timeoutMs });
      return message.json<Reply>();
    } catch {
      // Nobody there, too late, or no JSON: each of them is no reply.
      return null;
    }
  }

  hear(listener: (message: Message, from: string) => void): void {
    this.#listeners.push(listener);
  }

  reply(handler: (question: Question, from: string) => Promise<Reply>): void {
    this.#handler = handler;
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    // What was said last is on its way before the connection ends.
    if (this.#nats.isConnected()) await this.#nats.connection.flush().catch(() => undefined);
    this.#isClosed = true;
  }

  /** What is said while the connection is away is lost, as the law allows. */
  #publish(subject: string, bytes: Buffer): void {
    const { connection } = this.#nats;
    if (this.#isClosed || !this.#nats.isConnected()) return;
    const most = (connection.info?.max_payload ?? 1024 * 1024) - partHeaderBytes;
    if (bytes.length <= most) {
      connection.publish(subject, bytes);
      return;
    }
    const id = randomBytes(8).toString("hex");
    const count = Math.ceil(bytes.length / most);
    for (let at = 0; at < count; at++) {
      const head = Buffer.from(`${partMark}${id}/${at}/${count}\n`);
      connection.publish(subject, Buffer.concat([head, bytes.subarray(at * most, (at + 1) * most)]));
    }
  }

  #heard(message: Msg): void {
    const from = message.subject.slice(message.subject.lastIndexOf(".") + 1);
    if (from === this.#boot || this.#isClosed) return;
    const bytes = Buffer.from(message.data.buffer, message.data.byteOffset, message.data.byteLength);
    const whole = bytes[0] === partMark.charCodeAt(0) ? this.#joined(bytes, from) : bytes;
    const told = whole === null ? null : decodeMessage(whole);
    if (told !== null) for (const listener of this.#listeners) listener(told, from);
  }

  async #asked(message: Msg): Promise<void> {
    const from = message.subject.split(".").at(-2) ?? "";
    if (this.#isClosed || this.#handler === null || from === this.#boot) return;
    let reply: Reply;
    try {
      reply = await this.#handler(message.json<Question>(), from);
    } catch (error) {
      reply = { ok: false, text: error instanceof Error ? error.message : String(error) };
    }
    message.respond(JSON.stringify(reply));
  }

  /** The whole message once its last part is there. Parts come in order, and a lost one leaves the rest waiting for room. */
  #joined(bytes: Buffer, from: string): Buffer | null {
    const end = bytes.indexOf(0x0a);
    const [id, at, count] = bytes.toString("latin1", 1, end).split("/");
    const [index, of] = [Number(at), Number(count)];
    if (id === undefined || !Number.isInteger(index) || !Number.isInteger(of) || of > 4096 || index >= of) return null;
    const key = `${from}/${id}`;
    const parts = this.#parts.get(key) ?? {
      pieces: Array.from<Buffer | undefined>({ length: of }),
      missing: of,
      bytes: 0,
    };
    this.#parts.set(key, parts);
    if (parts.pieces[index] !== undefined) return null;
    const piece = bytes.subarray(end + 1);
    parts.pieces[index] = piece;
    parts.missing--;
    parts.bytes += piece.length;
    this.#partBytes += piece.length;
    if (parts.missing === 0) {
      this.#forget(key, parts);
      return Buffer.concat(parts.pieces.map((it) => it ?? Buffer.alloc(0)));
    }
    for (const [oldest, those] of this.#parts) {
      if (this.#partBytes <= partsBytesMax) break;
      this.#forget(oldest, those);
    }
    return null;
  }

  #forget(key: string, { bytes }: Parts): void {
    this.#parts.delete(key);
    this.#partBytes -= bytes;
  }
}

/** No message begins with it: those begin with their version. */
const partMark = "P";
