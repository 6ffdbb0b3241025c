// A backend of the simulation: registers and counters, a journal of all that it executed, and everything that a real one does wrong.

import { ForbiddenError } from "../../gateway/backend/backend.ts";
import type { Backend, BackendRequest, Execution, StreamHandle, StreamSink } from "../../gateway/backend/backend.ts";
import type { Answer } from "../../gateway/entry.ts";
import type { Incarnation, Launch } from "../../gateway/launch/launch.ts";
import type { Random } from "./random.ts";
import { Process } from "./world.ts";
import type { World } from "./world.ts";

/** One request that changed something, or could have. */
export interface Executed {
  /** Null: not of the log (only-once, an undo). */
  readonly position: number | null;
  readonly op: string;
}

/** What a copy of the service holds; the same for whoever executes the same requests in the same order. */
export class Registers {
  readonly values = new Map<string, string>();
  readonly counts = new Map<string, number>();
  readonly seen = new Set<string>();

  execute(method: string, target: string, op: string, body: string): { status: number; body: string } {
    const [, kind = "", id = ""] = target.split("/");
    if (method === "GET" && kind === "r")
      return { status: 200, body: JSON.stringify({ value: this.values.get(id) ?? null }) };
    if (method === "GET" && kind === "c")
      return { status: 200, body: JSON.stringify({ value: this.counts.get(id) ?? 0 }) };
    if (method === "GET" && kind === "seen")
      return { status: 200, body: JSON.stringify({ applied: this.seen.has(id) }) };
    if (method === "GET" && kind === "state") return { status: 200, body: this.text() };
    if (method === "GET") return { status: 200, body: "" };
    if (method === "PUT" && kind === "r") {
      this.values.set(id, body);
      return { status: 200, body: JSON.stringify({ value: body }) };
    }
    if (method === "PUT" && kind === "all") {
      for (const name of this.values.keys()) this.values.set(name, body);
      return { status: 200, body: JSON.stringify({ value: body }) };
    }
    if (method === "POST" && kind === "cas") {
      const [from = "", to = ""] = body.split(">");
      this.seen.add(op);
      const isEqual = (this.values.get(id) ?? "") === from;
      if (isEqual) this.values.set(id, to);
      return { status: isEqual ? 200 : 409, body: JSON.stringify({ value: this.values.get(id) ?? null }) };
    }
    if (method === "POST" && (kind === "c" || kind === "h")) {
      const count = (this.counts.get(id) ?? 0) + 1;
      this.counts.set(id, count);
      this.seen.add(op);
      return { status: 201, body: JSON.stringify({ value: count }) };
    }
    if (method === "POST" && kind === "once") return { status: 201, body: JSON.stringify({ once: op }) };
    return { status: 404, body: "" };
  }

  /** Equal states, equal texts. */
  text(): string {
    return JSON.stringify([sorted(this.values), sorted(this.counts), [...this.seen].sort()]);
  }
}

const sorted = <T>(map: ReadonlyMap<string, T>): [string, T][] => [...map].sort(([a], [b]) => (a < b ? -1 : 1));

export interface BackendFaults {
  slow: number;
  resetBefore: number;
  resetAfter: number;
  /** The connection is reset, and the request runs all the same, within the time that is waited for. */
  late: number;
  refused: number;
  garbage: number;
}

export const noBackendFaults: BackendFaults = {
  slow: 0,
  resetBefore: 0,
  resetAfter: 0,
  late: 0,
  refused: 0,
  garbage: 0,
};

/** A request whose connection is gone runs no later than so: what a gateway waits for at least. */
const lateMs = 900;
const connectMs = 300;

export class SimBackend {
  readonly name: string;
  readonly url: string;
  readonly world: World;
  readonly random: Random;
  readonly isManaged: boolean;
  faults: BackendFaults = noBackendFaults;
  registers = new Registers();
  journal: Executed[] = [];
  process: Process;
  lives = 0;
  /** Its state went with one of its lives. */
  hasForgotten = false;
  /** Gateways that cannot reach it. */
  readonly cut = new Set<string>();
  readonly delayMs: readonly [number, number] = [0.1, 1];

  constructor(world: World, name: string, isManaged: boolean) {
    this.world = world;
    this.name = name;
    this.url = `http://${name}.test:80`;
    this.isManaged = isManaged;
    this.random = world.random.fork();
    this.process = new Process(name);
    if (isManaged) this.process.kill();
    else this.begin();
  }

  get isUp(): boolean {
    return this.process.isAlive;
  }

  begin(): void {
    this.lives++;
    this.process = new Process(this.name);
    this.world.note(`${this.name} begins life ${this.lives}`);
  }

  crash(forgets: boolean): void {
    if (!this.isUp) return;
    this.world.note(`${this.name} ends${forgets ? " and forgets" : ""}`);
    if (forgets) {
      this.registers = new Registers();
      this.journal = [];
      this.hasForgotten = true;
    }
    this.process.kill();
  }

  delay(): number {
    return this.random.between(...this.delayMs);
  }

  isReachableFrom(gateway: string): boolean {
    return this.isUp && !this.cut.has(gateway);
  }

  execute(request: BackendRequest): Answer {
    const { method, target, headers } = request;
    const position = valueOf(headers, "replication-position");
    const op = valueOf(headers, "x-op") ?? "";
    const text = Buffer.isBuffer(request.body) ? request.body.toString("utf8") : "";
    const { status, body } = this.registers.execute(method, target, op, text);
    if (method !== "GET") {
      this.journal.push({ position: position === null ? null : Number(position), op });
      this.world.note(() => `${this.name} executes ${position ?? "-"} ${method} ${target} ${op} ${text}: ${status}`);
    }
    return { status, headers: ["Content-Type", "application/json"], body: Buffer.from(body), trailers: [] };
  }
}

export function valueOf(headers: readonly string[], name: string): string | null {
  for (let at = 0; at < headers.length; at += 2)
    if (headers[at]?.toLowerCase() === name) return headers[at + 1] ?? null;
  return null;
}

/** What becomes of a request, as whoever asked hears it. */
interface Heard {
  readonly answered: (answer: Answer) => void;
  readonly broken: () => void;
  readonly refused: (cause: Error) => void;
  readonly closed: (cause: string) => void;
}

interface Leaving {
  readonly exchange: Exchange;
  readonly heard: Heard;
  readonly hear: (act: () => void) => void;
  /** When its connection was given up. */
  readonly closedMs: () => number;
}

interface Exchange {
  /** The connection's end, as whoever asked sees it. */
  close: () => void;
}

/** The connections of one gateway process to one backend. */
export class BackendPort implements Backend {
  readonly url: string;
  readonly #backend: SimBackend;
  readonly #process: Process;
  readonly #open = new Set<Exchange>();

  constructor(backend: SimBackend, process: Process) {
    this.url = backend.url;
    this.#backend = backend;
    this.#process = process;
  }

  execute(request: BackendRequest, limits: { readonly firstByteMs: number }): Promise<Execution> {
    const { world } = this.#backend;
    const sentMs = world.nowMs;
    return new Promise((resolve) => {
      let settle: (execution: Execution) => void = resolve;
      const timeout = world.in(limits.firstByteMs, this.#process, () => {
        const late = new Promise<Execution>((settleLate) => (settle = settleLate));
        resolve({ kind: "unknown", reason: "timeout", cause: new Error("no first byte in time"), late });
      });
      let isOver = false;
      const end = (execution: Execution): void => {
        if (isOver) return;
        isOver = true;
        timeout.run = null;
        settle(execution);
      };
      this.#send(request, {
        answered: (answer) => end({ kind: "done", answer, tookMs: world.nowMs - sentMs }),
        broken: () => end({ kind: "broken", status: 0, isTooLarge: false, cause: new Error("garbage") }),
        refused: (cause) => end({ kind: "not-started", cause }),
        closed: (cause) => end({ kind: "unknown", reason: "closed", cause: new Error(cause), late: null }),
      });
    });
  }

  stream(
    request: BackendRequest,
    sink: StreamSink,
    limits: { readonly firstByteMs: number; readonly idleMs: number },
  ): StreamHandle {
    const { world, random } = this.#backend;
    let isOver = false;
    const fail = (error: Error, isStarted: boolean): void => {
      if (isOver) return;
      isOver = true;
      sink.fail(error, isStarted);
    };
    const timeout = world.in(limits.firstByteMs, this.#process, () => fail(new Error("no first byte in time"), true));
    this.#send(request, {
      answered: ({ status, headers, body }) => {
        if (isOver) return;
        timeout.run = null;
        if (!sink.head(status, headers)) {
          fail(new Error("the head was refused"), true);
          return;
        }
        // The body comes a moment later.
        world.in(random.between(0, 2), this.#process, () => {
          if (isOver) return;
          isOver = true;
          sink.data(body);
          sink.end([]);
        });
      },
      broken: () => fail(new Error("garbage"), true),
      refused: (cause) => fail(cause, false),
      closed: (cause) => fail(new Error(cause), true),
    });
    return { abort: (reason) => fail(reason, true) };
  }

  probe(timeoutMs: number): Promise<"reachable" | "refused" | "timeout"> {
    const backend = this.#backend;
    const { world } = backend;
    return new Promise((resolve) => {
      world.in(timeoutMs, this.#process, () => resolve("timeout"));
      world.in(backend.delay() * 2, this.#process, () => {
        if (!backend.cut.has(this.#process.name)) resolve(backend.isUp ? "reachable" : "refused");
      });
    });
  }

  abandon(): Promise<void> {
    for (const exchange of this.#open) exchange.close();
    return Promise.resolve();
  }
  close(): Promise<void> {
    return this.abandon();
  }

  #send(request: BackendRequest, heard: Heard): void {
    const backend = this.#backend;
    const { world, random } = backend;
    const gateway = this.#process;
    if (!gateway.isAlive) return;
    let closedMs = Number.POSITIVE_INFINITY;
    const exchange: Exchange = {
      close: () => {
        if (!this.#open.delete(exchange)) return;
        closedMs = world.nowMs;
        if (gateway.isAlive) world.in(0, gateway, () => heard.closed("the connection was closed here"));
      },
    };
    this.#open.add(exchange);
    gateway.onEnd(() => exchange.close());
    const hear = (act: () => void): void => {
      world.in(backend.delay(), gateway, () => {
        if (this.#open.delete(exchange)) act();
      });
    };
    // A request waits a moment for its connection: its process may be stopped meanwhile.
    world.in(random.between(0, 0.3), gateway, () => {
      if (!this.#open.has(exchange)) return;
      if (request.mayStart?.() !== false) {
        this.#leave(request, { exchange, hear, heard, closedMs: () => closedMs });
        return;
      }
      this.#open.delete(exchange);
      heard.refused(new ForbiddenError("it may not be sent any more"));
    });
  }

  /** Its first byte goes out. */
  #leave(request: BackendRequest, { exchange, hear, heard, closedMs }: Leaving): void {
    const backend = this.#backend;
    const { world, random, faults } = backend;
    const gateway = this.#process;
    if (backend.cut.has(gateway.name)) {
      world.in(connectMs, gateway, () => {
        if (this.#open.delete(exchange)) heard.refused(new Error("connecting took too long"));
      });
      return;
    }
    if (random.chance(faults.refused)) {
      hear(() => heard.refused(new Error("no connection")));
      return;
    }
    world.in(backend.delay(), world.nature, () => {
      if (!backend.isUp) {
        hear(() => heard.refused(new Error("connection refused")));
        return;
      }
      const life = backend.process;
      life.onEnd(() => hear(() => heard.closed("the backend ended")));
      /** At the backend, in its own time: a stopped one takes it up when it goes on. */
      const run = (delayMs: number, then: (answer: Answer) => void): void => {
        const plannedMs = world.nowMs + delayMs;
        world.in(delayMs, life, () => {
          if (plannedMs <= closedMs() + lateMs) then(backend.execute(request));
        });
      };
      // What cannot come through is sent again until it can, as TCP does.
      const answer = (given: Answer): void => {
        if (backend.cut.has(gateway.name)) world.in(50, world.nature, () => answer(given));
        else hear(() => heard.answered(given));
      };
      if (random.chance(faults.resetBefore)) hear(() => heard.closed("connection reset"));
      else if (random.chance(faults.resetAfter))
        run(random.between(0, 2), () => hear(() => heard.closed("connection reset")));
      else if (random.chance(faults.late)) {
        hear(() => heard.closed("connection reset"));
        run(random.between(1, lateMs), () => undefined);
      } else if (random.chance(faults.garbage)) run(random.between(0, 2), () => hear(() => heard.broken()));
      else if (random.chance(faults.slow)) run(random.between(50, 2500), answer);
      else run(random.between(0.1, 3), answer);
    });
  }
}

/** Of a backend that runs by itself, or that its gateway starts. */
export class SimLaunch implements Launch {
  readonly isManaged: boolean;
  readonly state = null;
  readonly #backend: SimBackend;
  readonly #process: Process;
  readonly #listeners: ((reason: string) => void)[] = [];
  #isStopping = false;

  constructor(backend: SimBackend, process: Process) {
    this.#backend = backend;
    this.#process = process;
    this.isManaged = backend.isManaged;
  }

  async start(signal: AbortSignal): Promise<Incarnation> {
    const backend = this.#backend;
    const { world } = backend;
    const clock = world.clockOf(this.#process);
    if (this.isManaged) {
      if (backend.isUp) backend.crash(false);
      await clock.sleep(backend.random.between(5, 50), signal);
      signal.throwIfAborted();
      backend.begin();
      const life = backend.process;
      // A gateway that is killed leaves it behind; the next start ends it.
      life.onEnd(() => {
        if (this.#isStopping) return;
        world.in(backend.delay(), this.#process, () => {
          if (backend.process === life) for (const listener of this.#listeners) listener("the process exited");
        });
      });
      return { id: `${this.#backend.name}:${backend.lives}`, url: backend.url };
    }
    // Ends when it is ready, or with the signal.
    while (!(await isReady(backend, this.#process, 500))) {
      await clock.sleep(50, signal);
      signal.throwIfAborted();
    }
    return { id: world.random.hex(16), url: backend.url };
  }

  missingState(): Promise<string | null> {
    return Promise.resolve(null);
  }
  stop(): Promise<void> {
    if (!this.isManaged) return Promise.reject(new Error("it has no stop"));
    this.#isStopping = true;
    this.#backend.crash(false);
    this.#isStopping = false;
    return Promise.resolve();
  }
  onExit(listener: (reason: string) => void): void {
    this.#listeners.push(listener);
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** What a health request finds. */
export function isReady(backend: SimBackend, process: Process, timeoutMs: number): Promise<boolean> {
  const { world } = backend;
  return new Promise((resolve) => {
    world.in(timeoutMs, process, () => resolve(false));
    if (!backend.isReachableFrom(process.name)) {
      world.in(backend.delay(), process, () => resolve(false));
      return;
    }
    world.in(backend.delay(), backend.process, () => world.in(backend.delay(), process, () => resolve(true)));
  });
}
