// Where captures, restores and hashing run: a child process a job, of low priority and bounded memory, so that the gateway's event loop is
// never held and its threads never wait. Whatever becomes of the child becomes an error here, and ends no more than its job.

import { fork } from "node:child_process";
import { existsSync } from "node:fs";
import { setPriority } from "node:os";
import { fileURLToPath } from "node:url";
import { GatewayError } from "../gateway/errors.ts";
import type { ChildProcess } from "node:child_process";
import type { ErrorCode } from "../gateway/errors.ts";
import type {
  Archived,
  CaptureJob,
  DrillJob,
  FromChild,
  Job,
  JobProgress,
  JobResults,
  PutBackJob,
  RestoreJob,
  RootJob,
} from "./jobs.ts";

export type OnProgress = (progress: JobProgress) => void;

export interface WorkshopOptions {
  /** The process's own. The child gets it without the gateway's settings. */
  readonly environment: Readonly<Record<string, string | undefined>>;
}

const jobsAtOnce = 2;
const jobsWaitingMax = 64;
/** From SIGTERM, at which a job cleans up, to SIGKILL. */
const graceMs = 5_000;
/** It takes a few hundred milliseconds; more only where hardly anything runs. */
const startMs = 60_000;
/** The tree is in the heap, contents are not: the child took 310 MB in all for 100,000 files. */
const heapMiB = 1_024;
/** Reading, compressing and syncing at once: more of them would outweigh the gateway in spite of their priority. */
const threads = 4;
export const workerNice = 10;

const failureOf = {
  capture: "GW_SNAPSHOT_FAILED",
  root: "GW_SNAPSHOT_FAILED",
  restore: "GW_RESTORE_FAILED",
  drill: "GW_RESTORE_FAILED",
  "put-back": "GW_RESTORE_FAILED",
} as const satisfies Record<Job["kind"], ErrorCode>;

const nameOf = {
  capture: "captures",
  root: "hashes",
  restore: "restores",
  drill: "restores on trial",
  "put-back": "puts back",
} as const satisfies Record<Job["kind"], string>;

export class Workshop {
  readonly #options: WorkshopOptions;
  readonly #closed = new AbortController();
  readonly #jobs = new Set<Promise<unknown>>();
  #free = jobsAtOnce;
  /** In order; each is given the place of a job that ended. */
  readonly #waiting: (() => void)[] = [];

  constructor(options: WorkshopOptions) {
    this.#options = options;
  }

  capture(job: CaptureJob, signal: AbortSignal, onProgress: OnProgress): Promise<Archived> {
    return this.#do(job, signal, onProgress);
  }

  async restore(job: RestoreJob, signal: AbortSignal, onProgress: OnProgress): Promise<void> {
    await this.#do(job, signal, onProgress);
  }

  root(job: RootJob, signal: AbortSignal, onProgress: OnProgress): Promise<string> {
    return this.#do(job, signal, onProgress);
  }

  /** Rejects with GW_SNAPSHOT_CORRUPT when what was restored is not what was recorded. */
  async drill(job: DrillJob, signal: AbortSignal, onProgress: OnProgress): Promise<void> {
    await this.#do(job, signal, onProgress);
  }

  putBack(job: PutBackJob, signal: AbortSignal): Promise<boolean> {
    return this.#do(job, signal, () => undefined);
  }

  /** Ends all jobs, those that wait too; resolves when no child is left. May be called twice. */
  async close(): Promise<void> {
    this.#closed.abort(new GatewayError("GW_STOPPING", "the gateway is stopping"));
    await Promise.allSettled(this.#jobs);
  }

  async #do<J extends Job>(job: J, given: AbortSignal, onProgress: OnProgress): Promise<JobResults[J["kind"]]> {
    const signal = AbortSignal.any([given, this.#closed.signal]);
    const done = this.#inTurn(job, signal, () => new Child(job, onProgress, this.#options).run(signal));
    this.#jobs.add(done);
    try {
      return (await done) as JobResults[J["kind"]];
    } finally {
      this.#jobs.delete(done);
    }
  }

  async #inTurn<T>(job: Job, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    signal.throwIfAborted();
    if (this.#free > 0) this.#free -= 1;
    else await this.#wait(job, signal);
    try {
      signal.throwIfAborted();
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free += 1;
      else next();
    }
  }

  /** Resolves with a place of its own; rejects without one. */
  #wait({ kind }: Job, signal: AbortSignal): Promise<void> {
    if (this.#waiting.length >= jobsWaitingMax) {
      throw new GatewayError(
        failureOf[kind],
        `${jobsWaitingMax} captures and restores are waiting already: this one was not begun. Try again when some are done`,
      );
    }
    return new Promise((resolve, reject) => {
      const go = (): void => {
        signal.removeEventListener("abort", leave);
        resolve();
      };
      const leave = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(go), 1);
        reject(signal.reason as Error);
      };
      this.#waiting.push(go);
      signal.addEventListener("abort", leave, { once: true });
    });
  }
}

/** One child, from fork to exit. */
class Child {
  readonly #job: Job;
  readonly #onProgress: OnProgress;
  readonly #child: ChildProcess;
  #outcome: Extract<FromChild, { readonly kind: "done" | "failed" | "aborted" }> | null = null;
  #isLate = false;
  #said = "";
  readonly #timers = new Set<NodeJS.Timeout>();

  constructor(job: Job, onProgress: OnProgress, { environment }: WorkshopOptions) {
    this.#job = job;
    this.#onProgress = onProgress;
    const kept = Object.entries(environment).filter(([name]) => !/^GATEWAY_(?!CRASH_|STEPS_)/.test(name));
    this.#child = fork(workerFile(), [], {
      env: { ...Object.fromEntries(kept), UV_THREADPOOL_SIZE: String(threads) },
      execArgv: [`--max-old-space-size=${heapMiB}`],
      stdio: ["ignore", "ignore", "pipe", "ipc"],
    });
    this.#child.stderr?.on("data", (chunk: Buffer) => {
      this.#said = (this.#said + chunk.toString("utf8")).slice(-16_384);
    });
    // From its first moment; it sees to threads that are older than this.
    if (this.#child.pid !== undefined) lowerPriority(this.#child.pid);
  }

  /** Settles when the child has ended: whatever comes next at the same place is alone there. */
  async run(signal: AbortSignal): Promise<JobResults[Job["kind"]]> {
    const onAbort = (): void => this.#end();
    signal.addEventListener("abort", onAbort);
    const starting = this.#after(startMs, () => {
      this.#isLate = true;
      this.#child.kill("SIGKILL");
    });
    this.#child.on("message", (message: FromChild) => {
      if (message.kind === "ready") {
        clearTimeout(starting);
        this.#send(this.#job);
      } else if (message.kind === "progress") this.#onProgress(message.progress);
      else {
        this.#outcome = message;
        // It ends by that; only now, so that nothing it says is lost.
        if (this.#child.connected) this.#child.disconnect();
        this.#after(graceMs, () => this.#child.kill("SIGKILL"));
      }
    });
    try {
      const how = await new Promise<string>((resolve) => {
        this.#child.on("error", (error) => {
          if (this.#child.pid === undefined) resolve(`could not be started: ${error.message}`);
        });
        this.#child.once("exit", (code, by) =>
          resolve(code === null ? `was killed by ${by}` : `ended with code ${code}`),
        );
      });
      return this.#resultOf(this.#isLate ? `did not start within ${startMs} ms` : how, signal);
    } finally {
      signal.removeEventListener("abort", onAbort);
      for (const timer of this.#timers) clearTimeout(timer);
    }
  }

  #resultOf(how: string, signal: AbortSignal): JobResults[Job["kind"]] {
    const outcome = this.#outcome;
    if (outcome?.kind === "done") return outcome.result;
    const code = failureOf[this.#job.kind];
    if (outcome?.kind === "failed") throw new GatewayError(outcome.code ?? code, outcome.message);
    if (signal.aborted) throw signal.reason;
    const why = outcome?.kind === "aborted" ? "was told to end by a SIGTERM that is not the gateway's" : how;
    // Of V8 and Node, which print a good deal around it.
    const line = /^.*(?:FATAL ERROR|Error): .*$/m.exec(this.#said)?.[0].trim().slice(0, 300);
    throw new GatewayError(
      code,
      `the process that ${nameOf[this.#job.kind]} ${why}${line === undefined ? "" : ` (${line})`}: ${this.#known()}. ` +
        "A SIGKILL that nobody sent is the kernel's, when memory is short",
    );
  }

  /** After a death. */
  #known(): string {
    const job = this.#job;
    const isStream = job.kind === "restore" && (job.place.kind === "command" || job.place.kind === "http");
    return isStream
      ? "the state that it wrote is unknown now, and must be restored again before it is used"
      : "nothing was concluded, and what it left is cleaned up by the next one at the same place";
  }

  #end(): void {
    this.#child.kill("SIGTERM");
    this.#after(graceMs, () => this.#child.kill("SIGKILL"));
  }

  #send(job: Job): void {
    // A child that is gone has an exit that tells.
    this.#child.send(job, () => {});
  }

  #after(ms: number, act: () => void): NodeJS.Timeout {
    const timer = setTimeout(act, ms);
    this.#timers.add(timer);
    return timer;
  }
}

/** Beside this file when it is compiled. Sources are run by tests, which need the compiled worker all the same. */
function workerFile(): string {
  const isCompiled = import.meta.url.endsWith(".js");
  const file = fileURLToPath(new URL(isCompiled ? "./worker.js" : "../dist/recorder/worker.js", import.meta.url));
  if (isCompiled || existsSync(file)) return file;
  throw new Error(`${file} is missing, and captures and restores run in it. Mend: npm run build`);
}

function lowerPriority(pid: number): void {
  try {
    setPriority(pid, workerNice);
  } catch {
    // It has ended.
  }
}
