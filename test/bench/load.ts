// The load process: N connections, each an undici client with one request in flight, closed loop, for a time.
// Asked over IPC: one command, one result. Latencies in microseconds.

import { randomBytes } from "node:crypto";
import { createHistogram } from "node:perf_hooks";
import { Client } from "undici";
import type { Dispatcher } from "undici";

export interface LoadCommand {
  readonly origin: string;
  readonly connections: number;
  readonly warmupMs: number;
  readonly measureMs: number;
  readonly kind: "write" | "keyed" | "read";
}

export interface LoadResult {
  readonly requests: number;
  readonly elapsedMs: number;
  readonly perSecond: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly maxUs: number;
  readonly errors: number;
  /** Answers other than 200, by status: more than none makes the round void. */
  readonly others: Readonly<Record<string, number>>;
  /** All requests that were sent, warm-up included: what the backends must have counted. */
  readonly sent: number;
}

const body = Buffer.from(JSON.stringify({ item: "a thing that was ordered", quantity: 3, note: "x".repeat(48) }));
/** So many order keys: enough that 256 connections seldom meet on one. */
const spread = 10_000;

class Run {
  isMeasuring = false;
  isOver = false;
  requests = 0;
  errors = 0;
  sent = 0;
  firstError = "";
  readonly others: Record<string, number> = {};
  readonly histogram = createHistogram();
  readonly prefix = randomBytes(6).toString("hex");
}

class Connection implements Dispatcher.DispatchHandler {
  readonly #client: Client;
  readonly #run: Run;
  readonly #command: LoadCommand;
  readonly #onIdle: () => void;
  #startedAt = 0n;
  #status = 0;
  #n: number;

  constructor(run: Run, command: LoadCommand, index: number, onIdle: () => void) {
    this.#run = run;
    this.#command = command;
    this.#onIdle = onIdle;
    this.#n = index * 7919;
    this.#client = new Client(command.origin, { keepAliveTimeout: 60_000, keepAliveMaxTimeout: 60_000 });
  }

  next(): void {
    if (this.#run.isOver) {
      void this.#client.close().then(this.#onIdle);
      return;
    }
    this.#n += 1;
    this.#run.sent += 1;
    const path = `/orders/${this.#n % spread}`;
    const isRead = this.#command.kind === "read";
    const headers = isRead ? ["accept", "application/json"] : ["content-type", "application/json"];
    if (this.#command.kind === "keyed")
      headers.push("idempotency-key", `${this.#run.prefix}-${this.#n}-${this.#run.sent}`);
    this.#startedAt = process.hrtime.bigint();
    this.#client.dispatch({ path, method: isRead ? "GET" : "POST", headers, body: isRead ? null : body }, this);
  }

  onRequestStart(): void {
    // Required, and nothing to do.
  }

  onResponseStart(_controller: Dispatcher.DispatchController, status: number): void {
    this.#status = status;
  }

  onResponseData(): void {
    // The bytes are not looked at.
  }

  onResponseEnd(): void {
    const run = this.#run;
    if (run.isMeasuring) {
      if (this.#status === 200) {
        run.requests += 1;
        run.histogram.record(process.hrtime.bigint() - this.#startedAt);
      } else {
        run.others[this.#status] = (run.others[this.#status] ?? 0) + 1;
      }
    }
    this.next();
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    this.#run.errors += 1;
    this.#run.firstError ||= String(error);
    // Not at once: a target that refuses would turn the loop into a busy one.
    setTimeout(() => this.next(), 10);
  }
}

async function measure(command: LoadCommand): Promise<LoadResult & { firstError: string }> {
  const run = new Run();
  const idle: Promise<void>[] = [];
  for (let i = 0; i < command.connections; i += 1) {
    idle.push(
      new Promise((resolve) => {
        new Connection(run, command, i, resolve).next();
      }),
    );
  }
  await passed(command.warmupMs);
  process.send?.({ phase: "measuring" });
  run.isMeasuring = true;
  const startedAt = performance.now();
  await passed(command.measureMs);
  run.isMeasuring = false;
  const elapsedMs = performance.now() - startedAt;
  process.send?.({ phase: "measured" });
  run.isOver = true;
  await Promise.all(idle);
  return {
    requests: run.requests,
    elapsedMs,
    perSecond: (run.requests * 1000) / elapsedMs,
    p50Us: run.histogram.percentile(50) / 1000,
    p99Us: run.histogram.percentile(99) / 1000,
    maxUs: run.histogram.max / 1000,
    errors: run.errors,
    others: run.others,
    sent: run.sent,
    firstError: run.firstError,
  };
}

const passed = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

process.on("message", (command: LoadCommand) => {
  void measure(command).then((result) => process.send?.({ phase: "result", ...result }));
});
process.on("disconnect", () => process.exit(0));
process.send?.({ isReady: true });
