// Adapter of the launch port: a backend that runs already, and that we may be told how to stop and start.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { fillCommand, runCommand } from "./command.ts";
import { checkAccepts, waitReady } from "./ready.ts";
import type { TlsContext } from "../drivers/dial.ts";
import type { Command } from "./command.ts";
import type { Incarnation, Launch } from "./launch.ts";
import type { HealthRequest, ReadyTarget } from "./ready.ts";

export interface StaticLaunchOptions {
  readonly url: string;
  readonly name: string;
  readonly state?: string;
  /** `{name}`, `{url}` and `{state}` are filled in. */
  readonly stop?: Command;
  readonly start?: Command;
  /** Null: ready when the port accepts. */
  readonly ready: HealthRequest | null;
  readonly tls?: TlsContext;
}

export function createStaticLaunch(options: StaticLaunchOptions): Launch {
  return new StaticLaunch(options);
}

class StaticLaunch implements Launch {
  /** Its lives are not ours to see: even with `stop` and `start` an operator restarts it without telling us. */
  readonly isManaged = false;
  readonly state: string | null;
  readonly #options: StaticLaunchOptions;
  readonly #target: ReadyTarget;
  readonly #closed = new AbortController();
  #isStopped = false;

  constructor(options: StaticLaunchOptions) {
    const { ready, state = null, tls, url } = options;
    this.#options = options;
    this.state = state;
    this.#target = { url, request: ready, ...(tls === undefined ? null : { tls }) };
  }

  /** Called again after a refused or reset connect: each call is taken for a new life, as nothing proves that it is the old one. */
  async start(signal: AbortSignal): Promise<Incarnation> {
    const either = AbortSignal.any([signal, this.#closed.signal]);
    either.throwIfAborted();
    if (this.#options.start !== undefined && (this.#isStopped || !(await this.#accepts()))) {
      await runCommand(this.#fill(this.#options.start), either);
    }
    this.#isStopped = false;
    await waitReady(this.#target, either);
    return { id: randomUUID(), url: this.#options.url };
  }

  async stop(graceMs: number): Promise<void> {
    const { name, stop } = this.#options;
    if (stop === undefined) throw new Error(`replica ${name} has no \`stop\` command`);
    // Not AbortSignal.timeout: on Node 20 the collector may take it while `any` still waits for it.
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(new Error(`replica ${name} did not end within ${graceMs} ms`)), graceMs);
    try {
      await this.#end(stop, AbortSignal.any([late.signal, this.#closed.signal]));
    } finally {
      clearTimeout(timer);
    }
    this.#isStopped = true;
  }

  async #end(stop: Command, over: AbortSignal): Promise<void> {
    const { name, url } = this.#options;
    await runCommand(this.#fill(stop), over);
    // A command that succeeded and a port that refuses: nothing stronger can be seen from here.
    for (;;) {
      // Ends when the port refuses, or with the grace.
      if (!(await this.#accepts())) break;
      if (over.aborted)
        throw new Error(`${url} still accepts connections after the \`stop\` command of replica ${name}`);
      await sleep(50, undefined, { signal: over }).catch(() => {});
    }
  }

  /** Somebody else's. */
  async missingState(): Promise<string | null> {
    return null;
  }

  /** Never heard: a URL does not tell of its ends. */
  onExit(): void {}

  async close(): Promise<void> {
    this.#closed.abort(new Error(`replica ${this.#options.name} was closed`));
  }

  async #accepts(): Promise<boolean> {
    return (await checkAccepts(this.#target.url, 2_000)).isReady;
  }

  #fill(command: Command): string[] {
    const { name, url } = this.#options;
    return fillCommand(command, { name, url, ...(this.state === null ? null : { state: this.state }) });
  }
}
