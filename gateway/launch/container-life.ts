// One life of a replica in a container: from `create` to its end, which is heard however it comes, also while the engine itself restarts.

import { constants } from "node:os";
import { PassThrough } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { endContainer } from "./container-end.ts";
import { OutputLines } from "./output.ts";
import { machineBootId } from "./proc.ts";
import type { Container, ContainerSpec } from "../drivers/docker-container.ts";
import type { DockerEngine } from "../drivers/docker.ts";

export type Output = (line: string, stream: "stdout" | "stderr") => void;

/** Between two attempts to reach an engine that is away; doubles up to the second. */
const pauseMsMin = 20;
const pauseMsMax = 2_000;
/** What it said last may come a little later than its end. */
const lastWordsMs = 1_000;

export class ContainerLife {
  /** Unique for ever: a container's id is random, and another start of the same one has another time. */
  readonly id: string;
  readonly imageId: string;
  readonly url: string;
  isReady = false;
  /** We end it: its end is no news. */
  isEnding = false;
  readonly #engine: DockerEngine;
  readonly #container: string;
  readonly #startedAt: string;
  readonly #over = new AbortController();
  readonly #onExit: (life: ContainerLife, reason: string) => void;
  readonly #said: Promise<void>;
  readonly #lastLines: string[] = [];
  #reason: string | null = null;
  /** Its end was seen; a life may be over without, when somebody else began another one in its container. */
  #hasEnded = false;

  /** Creates and starts a container. What of it is left when this rejects bears the mark, and is ended by the next start. */
  static async begin(
    engine: DockerEngine,
    { name, port, spec }: { readonly name: string; readonly port: number; readonly spec: ContainerSpec },
    onOutput: Output,
    onExit: (life: ContainerLife, reason: string) => void,
    signal: AbortSignal,
  ): Promise<ContainerLife> {
    const id = await engine.createContainer(name, spec, signal);
    await engine.startContainer(id, signal);
    const seen = await engine.container(id, signal);
    if (seen === null) throw new Error(`container ${name} was removed as it started`);
    return new ContainerLife(engine, seen, port, onOutput, onExit);
  }

  private constructor(
    engine: DockerEngine,
    seen: Container,
    port: number,
    onOutput: Output,
    onExit: (life: ContainerLife, reason: string) => void,
  ) {
    this.#engine = engine;
    this.#container = seen.id;
    this.#startedAt = seen.startedAt;
    this.#onExit = onExit;
    this.id = `${machineBootId() ?? ""}:container-${seen.id}:${seen.startedAt}`;
    this.imageId = seen.imageId;
    this.url = `http://127.0.0.1:${seen.published.get(port) ?? 0}`;
    this.#said = this.#hear(onOutput);
    if (seen.isAlive) void this.#watch();
    else this.#settle(seen);
  }

  get isOver(): boolean {
    return this.#reason !== null;
  }

  get over(): AbortSignal {
    return this.#over.signal;
  }

  /** How it ended, with what it said last. Null: it has not. */
  async describeEnd(): Promise<string | null> {
    if (this.#reason === null) return null;
    await Promise.race([this.#said, sleep(lastWordsMs)]);
    return [this.#reason, ...this.#lastLines].join("\n");
  }

  /** Resolves when its end was seen. */
  async end(graceMs: number): Promise<void> {
    this.isEnding = true;
    if (!this.#hasEnded) this.#settle(await endContainer(this.#engine, this.#container, graceMs));
    await Promise.race([this.#said, sleep(lastWordsMs)]);
    // Its end is what was asked for: what cannot be removed now, the next start removes.
    await this.#engine.removeContainer(this.#container).catch(() => {});
  }

  /** The engine is asked until the life is over; while it is away nothing is known, and nothing is said. */
  async #watch(): Promise<void> {
    let pauseMs = pauseMsMin;
    // Ends with the life.
    while (!this.isOver) {
      try {
        // First: while the engine was away, the life may have given way to another one, which is not waited for.
        const seen = await this.#engine.container(this.#container, this.over);
        if (this.#isThisLife(seen)) await this.#engine.waitContainer(this.#container, this.over);
        else this.#settle(seen);
        pauseMs = pauseMsMin;
      } catch {
        // Away, or the life is over: the next round sees which.
        pauseMs = Math.min(pauseMs * 2, pauseMsMax);
      }
      if (!this.isOver) await sleep(pauseMs, undefined, { signal: this.over }).catch(() => {});
    }
  }

  #isThisLife(seen: Container | null): boolean {
    return seen !== null && seen.isAlive && seen.startedAt === this.#startedAt;
  }

  #settle(seen: Container | null): void {
    this.#hasEnded ||= seen === null || !seen.isAlive;
    if (this.#reason !== null) return;
    const reason = seen === null ? "was removed" : seen.isAlive ? "was started again by somebody else" : describe(seen);
    this.#reason = reason;
    this.#over.abort(new Error(reason));
    this.#onExit(this, reason);
  }

  /** Follows what it prints, over restarts of the engine; resolves when the life is over and all was heard. */
  async #hear(onOutput: Output): Promise<void> {
    const streams = { stdout: new PassThrough(), stderr: new PassThrough() };
    for (const name of ["stdout", "stderr"] as const) {
      const hear = (line: string): void => {
        this.#lastLines.push(line);
        if (this.#lastLines.length > 5) this.#lastLines.shift();
        onOutput(line, name);
      };
      // It hears by itself, and gives what is left when the stream is closed.
      void new OutputLines(streams[name], hear);
    }
    const tooLate = new AbortController();
    this.over.addEventListener("abort", () => setTimeout(() => tooLate.abort(), lastWordsMs).unref());
    let sinceMs = 0;
    let pauseMs = pauseMsMin;
    // Ends with the life: then the engine ends the stream, or it is given up.
    for (;;) {
      try {
        for await (const { bytes, stream } of this.#engine.logs(this.#container, sinceMs, tooLate.signal)) {
          pauseMs = pauseMsMin;
          if (!streams[stream].write(bytes)) await new Promise((resolve) => streams[stream].once("drain", resolve));
        }
      } catch {
        // The engine is away: what was printed until now is not heard twice.
      }
      if (this.isOver) break;
      sinceMs = Date.now();
      await sleep(pauseMs, undefined, { signal: this.over }).catch(() => {});
      pauseMs = Math.min(pauseMs * 2, pauseMsMax);
    }
    streams.stdout.end();
    streams.stderr.end();
  }
}

function describe({ exitCode, wasOutOfMemory }: Container): string {
  if (wasOutOfMemory) return "was killed because it ran out of memory";
  const by = Object.entries(constants.signals).find(([, number]) => exitCode === 128 + number)?.[0];
  return by === undefined ? `exited with code ${exitCode}` : `was killed by ${by}`;
}
