// Starts journal-backend.mjs as its own process, kills it, starts it again, and reads its journal from the disk, dead or alive.

import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { ChildProcess } from "node:child_process";
import { createFolder, endWithUs, removeFolder } from "./folder.ts";

export const journalBackendFile = fileURLToPath(new URL("journal-backend.mjs", import.meta.url));

/** One executed request. `value` is the body, parsed where it is JSON. */
export interface JournalRow {
  readonly n: number;
  readonly position: number | null;
  readonly method: string;
  readonly path: string;
  readonly bodyHash: string;
  readonly value: unknown;
  readonly role: string | null;
  readonly key: string | null;
  readonly time: string | null;
  readonly seed: string | null;
}

export interface Fault {
  /**
   * Not executed: `hang`, `reset-before`, `exit-before`, `status`, `lose` (answered as if it were). Executed: `hang-after`, `reset-after`,
   * `exit-after`, `garbage`, `half` (a cut answer), `different` (another answer), `wrong` (another state). `slow` waits `ms` before it
   * executes, `slow-after` before it answers. `unhealthy`: /health says 503.
   */
  readonly kind:
    | "hang"
    | "hang-after"
    | "reset-before"
    | "reset-after"
    | "exit-before"
    | "exit-after"
    | "garbage"
    | "half"
    | "different"
    | "wrong"
    | "lose"
    | "slow"
    | "slow-after"
    | "status"
    | "unhealthy";
  /** Default 1; 0: until `clearFaults`. */
  readonly times?: number;
  readonly method?: string;
  /** A prefix. */
  readonly path?: string;
  readonly ms?: number;
  readonly status?: number;
}

export interface JournalBackend {
  readonly url: string;
  readonly port: number;
  /** Of the present process. */
  readonly pid: number;
  readonly folder: string;
  /** What it executed, in order, over all its lives: read from the disk. */
  journal(): JournalRow[];
  fault(fault: Fault): Promise<void>;
  clearFaults(): Promise<void>;
  kill9(): Promise<void>;
  /** SIGTERM. */
  stop(): Promise<void>;
  /** SIGSTOP. */
  pause(): void;
  resume(): void;
  /** Same port, same state; one that runs is killed first. */
  restart(): Promise<void>;
  close(): Promise<void>;
}

export interface JournalBackendOptions {
  /** Default: its own, removed by `close`. */
  readonly folder?: string;
  readonly port?: number;
  readonly fsync?: boolean;
  readonly journalReads?: boolean;
}

export async function startJournalBackend(options: JournalBackendOptions = {}): Promise<JournalBackend> {
  const backend = new Started(options);
  await backend.start();
  return backend;
}

export function readJournal(folder: string): JournalRow[] {
  const path = join(folder, "journal.jsonl");
  if (!existsSync(path)) return [];
  const text = readFileSync(path, "utf8");
  return text
    .slice(0, text.lastIndexOf("\n") + 1)
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as JournalRow);
}

class Started implements JournalBackend {
  readonly folder: string;
  port: number;
  readonly #options: JournalBackendOptions;
  #child: ChildProcess | null = null;
  #forget: () => void = () => {};

  constructor(options: JournalBackendOptions) {
    this.#options = options;
    this.folder = options.folder ?? createFolder("journal");
    this.port = options.port ?? 0;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  get pid(): number {
    return this.#child?.pid ?? 0;
  }

  async start(): Promise<void> {
    const child = spawn(process.execPath, [journalBackendFile], {
      stdio: ["ignore", "pipe", "inherit"],
      env: {
        PATH: process.env["PATH"],
        PORT: String(this.port),
        STATE_DIR: this.folder,
        FSYNC: this.#options.fsync === true ? "1" : "0",
        JOURNAL_READS: this.#options.journalReads === true ? "1" : "0",
      },
    });
    this.#child = child;
    this.#forget = endWithUs(child.pid ?? 0);
    this.port = await new Promise<number>((resolve, reject) => {
      let output = "";
      child.stdout.on("data", (chunk: Buffer) => {
        output += chunk.toString();
        const port = /^listening (\d+)\n/.exec(output)?.[1];
        if (port !== undefined) resolve(Number(port));
      });
      child.once("exit", (code, by) => reject(new Error(`the journal backend ended: ${code ?? by}`)));
    });
  }

  journal(): JournalRow[] {
    return readJournal(this.folder);
  }

  async fault(fault: Fault): Promise<void> {
    await fetch(`${this.url}/fault`, { method: "POST", body: JSON.stringify(fault) });
  }

  async clearFaults(): Promise<void> {
    await fetch(`${this.url}/fault`, { method: "DELETE" });
  }

  kill9(): Promise<void> {
    return this.#end("SIGKILL");
  }

  stop(): Promise<void> {
    return this.#end("SIGTERM");
  }

  pause(): void {
    this.#child?.kill("SIGSTOP");
  }

  resume(): void {
    this.#child?.kill("SIGCONT");
  }

  async restart(): Promise<void> {
    await this.kill9();
    await this.start();
  }

  async close(): Promise<void> {
    await this.kill9();
    if (this.#options.folder === undefined) removeFolder(this.folder);
  }

  async #end(signal: NodeJS.Signals): Promise<void> {
    const child = this.#child;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await ended;
    this.#forget();
  }
}
