// Adapter of the launch port: a backend as a child process in a group of its own, on a port that no life of it had before.

import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fillCommand, inheritedEnvironment } from "./command.ts";
import { endOrphans, forgetProcess, markOf, markVariable, recordProcess } from "./orphans.ts";
import { OutputLines } from "./output.ts";
import { foreignListener, releasePort, takePort } from "./port.ts";
import { machineBootId, readStat, signal } from "./proc.ts";
import { waitReady } from "./ready.ts";
import { prepareState } from "./seed.ts";
import type { ChildProcess } from "node:child_process";
import type { Command } from "./command.ts";
import type { Incarnation, Launch } from "./launch.ts";
import type { PortRange } from "./port.ts";
import type { HealthRequest } from "./ready.ts";

export interface ProcessLaunchOptions {
  readonly name: string;
  /** `{port}`, `{state}` and `{name}` are filled in. */
  readonly command: Command;
  readonly cwd: string;
  /** Added to the gateway's own environment without its `GATEWAY_*`; `PORT`, `STATE_DIR` and the mark are set last. */
  readonly env: Readonly<Record<string, string>>;
  readonly stateFolder: string;
  /** Copied into a new state folder. */
  readonly seed?: string;
  /** Null: ready when the port accepts. */
  readonly ready: HealthRequest | null;
  readonly portRange?: PortRange;
  /** Default 127.0.0.1. */
  readonly host?: string;
  /** Where orphans.ts keeps its records: one folder a gateway. */
  readonly recordsFolder: string;
  readonly onOutput: (line: string, stream: "stdout" | "stderr") => void;
}

/** What a child that was still starting, or that `close` finds, gets before SIGKILL. */
const shortGraceMs = 2_000;

export function createProcessLaunch(options: ProcessLaunchOptions): Launch {
  return new ProcessLaunch(options);
}

class ProcessLaunch implements Launch {
  readonly isManaged = true;
  readonly state: string;
  readonly #options: ProcessLaunchOptions;
  readonly #listeners: ((reason: string) => void)[] = [];
  #life: Life | null = null;
  #starting: Promise<unknown> | null = null;
  readonly #closed = new AbortController();

  constructor(options: ProcessLaunchOptions) {
    this.#options = options;
    this.state = options.stateFolder;
  }

  async start(signal: AbortSignal): Promise<Incarnation> {
    if (this.#starting !== null || this.#life?.isOver === false) {
      throw new Error(`replica ${this.#options.name} runs already`);
    }
    const starting = this.#start(AbortSignal.any([signal, this.#closed.signal]));
    this.#starting = starting;
    try {
      return await starting;
    } finally {
      this.#starting = null;
    }
  }

  async missingState(): Promise<string | null> {
    const { stateFolder } = this.#options;
    return existsSync(stateFolder) ? null : `its folder ${stateFolder} is gone`;
  }

  async stop(graceMs: number): Promise<void> {
    await this.#life?.end(graceMs);
    // Whatever it started and left in other groups is a part of its life too.
    await this.#sweep();
  }

  onExit(listener: (reason: string) => void): void {
    this.#listeners.push(listener);
  }

  async close(): Promise<void> {
    this.#closed.abort(new Error(`replica ${this.#options.name} was closed`));
    await this.#starting?.catch(() => {});
    await this.stop(shortGraceMs);
  }

  async #start(signal: AbortSignal): Promise<Incarnation> {
    const {
      name,
      host = "127.0.0.1",
      portRange = null,
      ready,
      recordsFolder,
      seed = null,
      stateFolder,
    } = this.#options;
    signal.throwIfAborted();
    // Of a crash, ours or its own: two lives on one state folder would destroy it.
    await this.#sweep();
    await prepareState(stateFolder, seed);
    const mark = await markOf(recordsFolder, name);
    const port = await takePort(host, portRange);
    signal.throwIfAborted();
    const url = `http://${host}:${port}`;
    const life = new Life(this.#options, port, mark, (reason) => this.#onExit(life, reason));
    this.#life = life;
    try {
      await life.record();
      await waitReady({ url, request: ready }, AbortSignal.any([signal, life.over]));
      const foreign = foreignListener(port, markVariable, mark);
      if (foreign !== null) throw new Error(`port ${port} is served by ${foreign}, not by replica ${name}`);
      if (life.isOver) throw new Error(`replica ${name} ended as it became ready`);
      life.isReady = true;
      return { id: life.id, url };
    } catch (error) {
      const reason = life.describeEnd();
      await life.end(shortGraceMs);
      await this.#sweep();
      if (signal.aborted) throw signal.reason;
      throw reason === null ? error : new Error(`replica ${name} ${reason} before it was ready`, { cause: error });
    }
  }

  #onExit(life: Life, reason: string): void {
    if (!life.isReady || life.isEnding) return;
    for (const listener of this.#listeners) listener(reason);
  }

  async #sweep(): Promise<void> {
    await endOrphans(this.#options.recordsFolder, { name: this.#options.name, graceMs: 0 });
  }
}

/** From spawn to exit. */
/** Whatever ends this process without `stop`, a second Ctrl-C say, ends its children as well; after a kill -9 the next start does. */
const running = new Set<number>();
process.once("exit", () => {
  for (const pid of running) signal(-pid, "SIGKILL");
});

class Life {
  readonly id: string;
  isReady = false;
  /** We end it: its exit is no news. */
  isEnding = false;
  readonly #options: ProcessLaunchOptions;
  readonly #child: ChildProcess;
  readonly #pid: number | null;
  readonly #over = new AbortController();
  readonly #exited: Promise<void>;
  readonly #lastLines: string[] = [];
  #reason: string | null = null;

  constructor(options: ProcessLaunchOptions, port: number, mark: string, onExit: (reason: string) => void) {
    this.#options = options;
    const { cwd, env, name, stateFolder } = options;
    const [program = "", ...args] = fillCommand(options.command, { port: String(port), state: stateFolder, name });
    this.#child = spawn(program, args, {
      cwd,
      // A group and session of its own: Ctrl-C at our terminal is ours to pass on, and its children can be signalled with it.
      detached: true,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...inheritedEnvironment(), ...env, PORT: String(port), STATE_DIR: stateFolder, [markVariable]: mark },
    });
    this.#pid = this.#child.pid ?? null;
    if (this.#pid !== null) running.add(this.#pid);
    const startTime = this.#pid === null ? null : (readStat(this.#pid)?.startTime ?? null);
    // Unique for ever: no two processes of one machine boot have both. Where the kernel does not say, a random id is.
    this.id = `${machineBootId() ?? randomUUID()}:${this.#pid ?? 0}:${startTime ?? randomUUID()}`;
    this.#hear("stdout");
    this.#hear("stderr");
    this.#exited = new Promise((resolve) => {
      const settle = (reason: string): void => {
        if (this.#reason !== null) return;
        this.#reason = reason;
        // Its children must not outlive it: they may hold its port and write its state.
        if (this.#pid !== null) {
          signal(-this.#pid, "SIGKILL");
          running.delete(this.#pid);
        }
        releasePort(port);
        this.#over.abort(new Error(`replica ${name} ${reason}`));
        onExit(reason);
        resolve();
      };
      this.#child.once("error", (error) => {
        if (this.#pid === null) settle(`could not be started: ${error.message}`);
      });
      this.#child.once("exit", (code, by) =>
        settle(code === null ? `was killed by ${by}` : `exited with code ${code}`),
      );
    });
  }

  get isOver(): boolean {
    return this.#reason !== null;
  }

  get over(): AbortSignal {
    return this.#over.signal;
  }

  /** How it ended, with what it said last. Null: it has not. */
  describeEnd(): string | null {
    return this.#reason === null ? null : [this.#reason, ...this.#lastLines].join("\n");
  }

  async record(): Promise<void> {
    const { name, recordsFolder } = this.#options;
    const bootId = machineBootId();
    const startTime = this.#pid === null ? null : (readStat(this.#pid)?.startTime ?? null);
    if (this.#pid === null || bootId === null || startTime === null) return;
    await recordProcess(recordsFolder, name, { bootId, pid: this.#pid, startTime });
  }

  /** Resolves when the exit was seen. */
  async end(graceMs: number): Promise<void> {
    this.isEnding = true;
    if (this.#pid !== null && !this.isOver) {
      if (graceMs > 0) {
        signal(-this.#pid, "SIGTERM");
        const over = new AbortController();
        await Promise.race([this.#exited, sleep(graceMs, undefined, { signal: over.signal }).catch(() => {})]);
        over.abort();
      }
      if (!this.isOver) signal(-this.#pid, "SIGKILL");
    }
    await this.#exited;
    await forgetProcess(this.#options.recordsFolder, this.#options.name);
  }

  #hear(name: "stdout" | "stderr"): void {
    const stream = this.#child[name];
    if (stream === null) return;
    const lines = new OutputLines(stream, (line) => {
      this.#lastLines.push(line);
      if (this.#lastLines.length > 5) this.#lastLines.shift();
      this.#options.onOutput(line, name);
    });
    this.#over.signal.addEventListener("abort", () => lines.flush());
  }
}
