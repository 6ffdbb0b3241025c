// Adapter of the peers' port, in memory: messages between gateways, late, lost and out of step with each other, but in order between any two.

import type { Message, Peers, Question, Reply } from "../../gateway/peers/peers.ts";
import type { Process, World } from "./world.ts";

export class PeerNet {
  readonly world: World;
  readonly ports = new Map<string, PeerPort>();
  /** Gateways' names that hear nothing of each other. */
  readonly cut = new Set<string>();
  lost = 0;
  delayMs: readonly [number, number] = [0.1, 2];

  constructor(world: World) {
    this.world = world;
  }

  isCut(a: string, b: string): boolean {
    return this.cut.has(a) || this.cut.has(b);
  }
}

export class PeerPort implements Peers {
  readonly #net: PeerNet;
  readonly #process: Process;
  readonly #boot: string;
  readonly #listeners: ((message: Message, from: string) => void)[] = [];
  #handler: ((question: Question, from: string) => Promise<Reply>) | null = null;
  /** When the last message to each of the others comes there. */
  readonly #lastMs = new Map<string, number>();

  constructor(net: PeerNet, process: Process, boot: string) {
    this.#net = net;
    this.#process = process;
    this.#boot = boot;
    net.ports.set(boot, this);
    process.onEnd(() => net.ports.delete(boot));
  }

  tell(message: Message): void {
    for (const boot of this.#net.ports.keys()) if (boot !== this.#boot) this.send(boot, message);
  }

  send(boot: string, message: Message): void {
    this.#carry(boot, (to) => {
      for (const listener of to.#listeners) listener(message, this.#boot);
    });
  }

  ask(boot: string, question: Question, timeoutMs: number): Promise<Reply | null> {
    return new Promise((resolve) => {
      this.#net.world.in(timeoutMs, this.#process, () => resolve(null));
      this.#carry(boot, (to) => {
        const handler = to.#handler;
        if (handler === null) return;
        void handler(question, this.#boot)
          .catch((error: unknown): Reply => ({ ok: false, text: String(error) }))
          .then((reply) => to.#carry(this.#boot, () => resolve(reply)));
      });
    });
  }

  hear(listener: (message: Message, from: string) => void): void {
    this.#listeners.push(listener);
  }
  reply(handler: (question: Question, from: string) => Promise<Reply>): void {
    this.#handler = handler;
  }
  close(): Promise<void> {
    this.#net.ports.delete(this.#boot);
    return Promise.resolve();
  }

  #carry(boot: string, arrive: (to: PeerPort) => void): void {
    const { ports, world, lost, delayMs } = this.#net;
    const to = ports.get(boot);
    if (to === undefined || !this.#process.isAlive) return;
    if (this.#net.isCut(this.#process.name, to.#process.name) || world.random.chance(lost)) return;
    const atMs = Math.max(this.#lastMs.get(boot) ?? 0, world.nowMs + world.random.between(...delayMs));
    this.#lastMs.set(boot, atMs);
    world.in(atMs - world.nowMs, to.#process, () => arrive(to));
  }
}
