// One world: a queue of events in virtual time, and the processes they happen to. Between two events every promise that can settle does. Timers of the
// global scope, `performance.now` and `Date.now` belong to the process whose event is under way, so that the flow's own code runs in it unchanged.

import type { Clock } from "../../gateway/clock.ts";
import type { Random } from "./random.ts";

interface Event {
  atMs: number;
  /** Among events of one moment those that were planned first come first. */
  order: number;
  readonly process: Process;
  run: (() => void) | null;
}

/** What can be killed or stopped on its own: a gateway, a backend, a client. */
export class Process {
  readonly name: string;
  isAlive = true;
  isPaused = false;
  /** Of its wall clock. */
  skewMs = 0;
  /** What came while it was stopped. */
  readonly deferred: Event[] = [];
  readonly #onEnd: (() => void)[] = [];

  constructor(name: string) {
    this.name = name;
  }

  /** kill -9: nothing of it runs any more. */
  kill(): void {
    if (!this.isAlive) return;
    this.isAlive = false;
    for (const listener of this.#onEnd.splice(0)) listener();
  }
  /** Heard by the rest of the world, whose connections to it break. */
  onEnd(listener: () => void): void {
    this.#onEnd.push(listener);
  }
}

/** 2030: later than any clock that is really asked for. */
const bornMs = 1_893_456_000_000;
/** Events between two looks at the real event loop. */
const eventsAtOnce = 256;

export class World {
  readonly random: Random;
  /** What there is besides processes: servers, wires. */
  readonly nature = new Process("world");
  readonly trace: string[] = [];
  nowMs = 0;
  events = 0;
  /** Changes with every event: two runs that end with the same one took the same way. */
  way = 0;
  readonly #keepsTrace: boolean;
  readonly #heap: Event[] = [];
  #planned = 0;
  #current: Process | null = null;
  readonly #failures: string[] = [];

  constructor(random: Random, keepsTrace: boolean) {
    this.random = random;
    this.#keepsTrace = keepsTrace;
  }

  get current(): Process | null {
    return this.#current;
  }
  get failures(): readonly string[] {
    return this.#failures;
  }

  fail(what: string): void {
    this.note(`FAILURE ${what}`);
    if (this.#failures.length < 20) this.#failures.push(what);
  }

  /** A line of the trace. What costs to be told is passed as a function. */
  note(line: string | (() => string)): void {
    if (this.#keepsTrace)
      this.trace.push(`${this.nowMs.toFixed(3).padStart(11)} ${typeof line === "string" ? line : line()}`);
  }

  /** Plans an event of a process. It does not happen when that one is dead by then. */
  in(delayMs: number, process: Process, run: () => void): Event {
    const event = { atMs: this.nowMs + Math.max(0, delayMs), order: this.#planned++, process, run };
    this.#push(event);
    return event;
  }

  pause(process: Process): void {
    if (!process.isAlive || process.isPaused) return;
    process.isPaused = true;
    this.note(`${process.name} is stopped`);
  }
  resume(process: Process): void {
    if (!process.isPaused) return;
    process.isPaused = false;
    this.note(`${process.name} goes on`);
    for (const event of process.deferred.splice(0)) {
      event.atMs = this.nowMs;
      event.order = this.#planned++;
      this.#push(event);
    }
  }

  clockOf(process: Process): Clock {
    return {
      now: () => this.nowMs,
      wallMs: () => Math.floor(bornMs + this.nowMs + process.skewMs),
      sleep: (ms, signal) =>
        new Promise((resolve) => {
          if (signal?.aborted === true) {
            resolve();
            return;
          }
          const event = this.in(ms, process, () => {
            signal?.removeEventListener("abort", done);
            resolve();
          });
          const done = (): void => {
            event.run = null;
            resolve();
          };
          signal?.addEventListener("abort", done, { once: true });
        }),
    };
  }

  /** Runs events until `isOver`, which is asked now and then, or until so many have happened or so much time has passed. */
  run(isOver: () => boolean, limits: { readonly untilMs: number; readonly events: number }): Promise<void> {
    const real = install(this);
    return new Promise<void>((resolve, reject) => {
      let isDone = false;
      const end = (): void => {
        isDone = true;
        this.#current = null;
        real.restore();
        resolve();
      };
      const step = (): void => {
        if (isDone) return;
        try {
          const event = this.#heap[0];
          if (event === undefined || event.atMs > limits.untilMs || this.events >= limits.events) {
            end();
            return;
          }
          this.#pop();
          this.#happen(event);
        } catch (error) {
          isDone = true;
          this.#current = null;
          real.restore();
          reject(error instanceof Error ? error : new Error(String(error)));
        }
      };
      // Promises settle between two immediates, all of them; other work of this Node process happens only between two batches.
      const batch = (): void => {
        if (isDone) return;
        if (isOver()) {
          end();
          return;
        }
        for (let count = 0; count < eventsAtOnce; count++) real.setImmediate(step);
        real.setImmediate(() => {
          this.#current = null;
          real.setImmediate(batch);
        });
      };
      real.setImmediate(batch);
    });
  }

  #happen(event: Event): void {
    const { process, run } = event;
    if (run === null || !process.isAlive) return;
    this.nowMs = event.atMs;
    if (process.isPaused) {
      process.deferred.push(event);
      return;
    }
    this.events++;
    this.way = (Math.imul(this.way ^ event.order, 0x01000193) + Math.floor(event.atMs * 1000)) >>> 0;
    this.#current = process;
    event.run = null;
    run();
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (!isBefore(event, heap[above] as Event)) break;
      heap[at] = heap[above] as Event;
      at = above;
    }
    heap[at] = event;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop() as Event;
    if (heap.length === 0) return;
    let at = 0;
    for (;;) {
      let below = 2 * at + 1;
      if (below >= heap.length) break;
      if (below + 1 < heap.length && isBefore(heap[below + 1] as Event, heap[below] as Event)) below++;
      if (!isBefore(heap[below] as Event, last)) break;
      heap[at] = heap[below] as Event;
      at = below;
    }
    heap[at] = last;
  }
}

const isBefore = (a: Event, b: Event): boolean => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);

/** What a timer of a simulated process looks like to who made it. */
class Timer {
  event: Event | null = null;
  unref(): this {
    return this;
  }
  ref(): this {
    return this;
  }
  hasRef(): boolean {
    return true;
  }
}

/** False: it is a real one. */
function cancel(timer: unknown): boolean {
  if (!(timer instanceof Timer)) return false;
  if (timer.event !== null) timer.event.run = null;
  timer.event = null;
  return true;
}

/** The time it takes a process to come to its next turn, at most. */
const turnMs = 0.05;

/** The global timers and clocks are the world's while one of its processes runs, and the real ones else. */
function install(world: World): { readonly setImmediate: (run: () => void) => void; restore: () => void } {
  const { setTimeout, setInterval, setImmediate, clearTimeout, clearInterval, clearImmediate } = globalThis;
  const dateNow = Date.now;
  const realPerformanceNow = performance.now.bind(performance);

  const plan = (process: Process, ms: number, repeats: boolean, run: () => void): Timer => {
    const timer = new Timer();
    const once = (): void => {
      timer.event = world.in(Math.max(1, ms), process, () => {
        timer.event = null;
        if (repeats) once();
        run();
      });
    };
    once();
    return timer;
  };
  type Run = (...args: unknown[]) => void;
  const patched = {
    setTimeout: (run: Run, ms = 0, ...args: unknown[]): unknown =>
      world.current === null ? setTimeout(run, ms, ...args) : plan(world.current, ms, false, () => run(...args)),
    setInterval: (run: Run, ms = 0, ...args: unknown[]): unknown =>
      world.current === null ? setInterval(run, ms, ...args) : plan(world.current, ms, true, () => run(...args)),
    setImmediate: (run: Run, ...args: unknown[]): unknown => {
      if (world.current === null) return setImmediate(run, ...args);
      const timer = new Timer();
      timer.event = world.in(world.random.between(0, turnMs), world.current, () => run(...args));
      return timer;
    },
    clearTimeout: (timer: unknown): void => void (cancel(timer) || clearTimeout(timer as NodeJS.Timeout)),
    clearInterval: (timer: unknown): void => void (cancel(timer) || clearInterval(timer as NodeJS.Timeout)),
    clearImmediate: (timer: unknown): void => void (cancel(timer) || clearImmediate(timer as NodeJS.Immediate)),
  };
  Object.assign(globalThis, patched);
  Date.now = () => (world.current === null ? dateNow() : Math.floor(bornMs + world.nowMs + world.current.skewMs));
  performance.now = () => (world.current === null ? realPerformanceNow() : world.nowMs);
  return {
    setImmediate: (run) => void setImmediate(run),
    restore: () => {
      Object.assign(globalThis, { setTimeout, setInterval, setImmediate, clearTimeout, clearInterval, clearImmediate });
      Date.now = dateNow;
      Reflect.deleteProperty(performance, "now");
    },
  };
}
