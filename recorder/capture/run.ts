// One run of a command: no shell, a process group of its own that outlives neither it nor us, its last words kept, its time limited.

import { spawn } from "node:child_process";
import { basename } from "node:path";
import type { ChildProcess } from "node:child_process";
import type { Readable, Writable } from "node:stream";

export interface RunOptions {
  readonly command: readonly string[];
  readonly cwd: string;
  /** All of it. */
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly timeoutMs: number;
  /** feed: it is written to, and its output are only words. read: its output is read, and its input is empty. */
  readonly way: "feed" | "read";
}

/** Of what it said last, where errors stand. */
const lastCharsMax = 2_000;
/** For the last words of a group that was killed. */
const lastWordsMs = 500;

export class Run {
  /** How it ended; null: with code 0. Never rejects. */
  readonly ended: Promise<string | null>;
  readonly #child: ChildProcess | null = null;
  readonly #secrets: readonly string[];
  #said = "";
  /** Why it was killed, or what it ended with. */
  #problem: string | null = null;
  #isOver = false;
  /** Of the one write that is under way. */
  #tell: ((isTaken: boolean) => void) | null = null;

  constructor({ command, cwd, env, timeoutMs, way }: RunOptions, signal: AbortSignal) {
    this.#secrets = secretsIn(env);
    const [program = "", ...args] = command;
    let child: ChildProcess;
    try {
      child = spawn(program, args, {
        cwd,
        env,
        detached: true,
        stdio: [way === "feed" ? "pipe" : "ignore", "pipe", "pipe"],
      });
    } catch (error) {
      // What no process can be given: an empty name, a NUL.
      this.#isOver = true;
      this.ended = Promise.resolve(`could not be started: ${(error as Error).message}`);
      return;
    }
    this.#child = child;
    this.#hear(child.stderr);
    if (way === "feed") this.#hear(child.stdout);
    // Each failed write tells its own caller.
    child.stdin?.on("error", () => {});
    const guard = child.pid === undefined ? null : startGuard(child.pid);
    const timer = setTimeout(() => this.kill(`did not end within ${timeoutMs} ms and was killed`), timeoutMs);
    const onAbort = (): void => this.kill("was killed, because it was no longer wanted");
    signal.addEventListener("abort", onAbort);
    this.ended = new Promise((resolve) => {
      const settle = (problem: string | null): void => {
        if (this.#isOver) return;
        // What it left behind ends with it.
        this.#signalGroup();
        this.#isOver = true;
        clearTimeout(timer);
        signal.removeEventListener("abort", onAbort);
        guard?.kill("SIGKILL");
        this.#tell?.(false);
        resolve(problem);
      };
      child.once("error", (error) => {
        if (child.pid === undefined) settle(`could not be started in ${cwd}: ${error.message}`);
      });
      child.once("exit", (code, by) => {
        if (code !== 0) this.kill(code === null ? `was killed by ${by}` : `exited with code ${code}`);
      });
      // Only then has it said everything. What it left behind may hold its output open, and write to it, until it ends or time is over.
      child.once("close", () => settle(this.#problem));
    });
    if (signal.aborted) onAbort();
  }

  get output(): Readable | null {
    return this.#child?.stdout ?? null;
  }

  /** For messages: what it said last, without passwords; null: nothing. */
  get lastWords(): string | null {
    let text = this.#said;
    // Those that it was given, and those inside of addresses that it repeats.
    for (const secret of this.#secrets) text = text.replaceAll(secret, "***");
    text = text.replaceAll(/(:\/\/[^\s:/@]*):[^\s/@]*@/g, "$1:***@");
    if (text.length > lastCharsMax) text = text.slice(-lastCharsMax).replace(/^[^\n]*\n/, "");
    // No control characters: it is printed on terminals.
    text = text.replaceAll(/[^\P{C}\n\t]/gu, "").trim();
    return text === "" ? null : text;
  }

  /** Resolves when the system has taken the piece, so no faster than the command reads. False: it reads no more. One at a time. */
  write(piece: Buffer): Promise<boolean> {
    return this.#toInput((stdin, done) => stdin.write(piece, done));
  }

  /** That was all. False: it had stopped reading. */
  end(): Promise<boolean> {
    return this.#toInput((stdin, done) => stdin.end(done));
  }

  /** The whole group, and before its input ends: to a restore the end of its input looks like the end of the state. */
  kill(reason: string): void {
    if (this.#isOver) return;
    this.#problem ??= reason;
    this.#signalGroup();
    const { stdin, stdout, stderr } = this.#child ?? {};
    stdin?.destroy();
    // What left the group may hold the other ends for ever.
    setTimeout(() => {
      stdout?.destroy();
      stderr?.destroy();
    }, lastWordsMs).unref();
  }

  #toInput(act: (stdin: Writable, done: (error?: Error | null) => void) => void): Promise<boolean> {
    const stdin = this.#child?.stdin;
    if (this.#isOver || stdin === undefined || stdin === null) return Promise.resolve(false);
    return new Promise((resolve) => {
      this.#tell = resolve;
      // A destroyed stream takes pending writes for done.
      act(stdin, (error) => resolve((error === undefined || error === null) && this.#problem === null));
    });
  }

  #hear(stream: Readable | null): void {
    // Always read, so that the command never waits for us.
    stream?.on("data", (chunk: Buffer) => {
      this.#said = (this.#said + chunk.toString("utf8")).slice(-2 * lastCharsMax);
    });
    stream?.on("error", () => {});
  }

  #signalGroup(): void {
    const pid = this.#child?.pid;
    if (pid === undefined) return;
    try {
      process.kill(-pid, "SIGKILL");
    } catch {
      // All of it has ended.
    }
  }
}

/** For people: without its arguments, which may hold passwords. */
export const programOf = (command: readonly string[]): string =>
  `${basename(command[0] ?? "")}${command.length > 1 ? " …" : ""}`;

/**
 * Kills the group when we are gone, even by kill -9: a restore that loses its feeder would take the end of its input for the end of the
 * state, and might still be writing when the next one begins. Where there is no shell there is no guard.
 */
function startGuard(pid: number): ChildProcess {
  const script = 'while read -r _; do :; done; kill -9 "-$1"';
  const guard = spawn("/bin/sh", ["-c", script, "sh", String(pid)], {
    detached: true,
    stdio: ["pipe", "ignore", "ignore"],
  });
  guard.on("error", () => {});
  guard.stdin.on("error", () => {});
  guard.unref();
  return guard;
}

function secretsIn(env: Readonly<Record<string, string | undefined>>): string[] {
  return Object.entries(env).flatMap(([name, value = ""]) =>
    /PASS|SECRET|TOKEN|KEY/i.test(name) && value.length >= 4 ? [value] : [],
  );
}
