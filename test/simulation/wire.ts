// What lies between a process and a server: it takes time, loses what is sent over it, and can be cut.

import type { Process, World } from "./world.ts";

export interface Weather {
  /** Of one way, ms. */
  readonly delayMs: readonly [number, number];
  /** Of these shares of all calls the request, or its answer, never comes. */
  readonly lostRequests: number;
  readonly lostAnswers: number;
  /** So many requests come after their caller has given up. */
  readonly lateRequests: number;
}

export type Called<T> = { readonly kind: "answered"; readonly value: T } | { readonly kind: "unknown" };

/** One process's way to one server. */
export class Wire {
  readonly #world: World;
  readonly #process: Process;
  readonly name: string;
  weather: Weather;
  isCut = false;
  readonly #onMended: (() => void)[] = [];

  constructor(world: World, process: Process, name: string, weather: Weather) {
    this.#world = world;
    this.#process = process;
    this.name = name;
    this.weather = weather;
  }

  delay(): number {
    const [low, high] = this.weather.delayMs;
    return this.#world.random.between(low, high);
  }

  mend(): void {
    this.isCut = false;
    for (const listener of this.#onMended.splice(0)) listener();
  }
  onMended(listener: () => void): void {
    this.#onMended.push(listener);
  }

  /** `act` happens at the server, at one moment, or it does not; `unknown` after the time is over. */
  call<T>(timeoutMs: number, act: () => T): Promise<Called<T>> {
    const world = this.#world;
    const process = this.#process;
    const { random } = world;
    return new Promise((resolve) => {
      if (!process.isAlive) return;
      let isOver = false;
      const end = (called: Called<T>): void => {
        if (isOver) return;
        isOver = true;
        timeout.run = null;
        resolve(called);
      };
      const timeout = world.in(timeoutMs, process, () => end({ kind: "unknown" }));
      const { lostRequests, lostAnswers, lateRequests } = this.weather;
      if (this.isCut || random.chance(lostRequests)) return;
      const isAnswerLost = random.chance(lostAnswers);
      const lateMs = random.chance(lateRequests) ? timeoutMs + random.between(0, 1500) : 0;
      world.in(this.delay() + lateMs, world.nature, () => {
        const value = act();
        if (!isAnswerLost && !this.isCut) world.in(this.delay(), process, () => end({ kind: "answered", value }));
      });
    });
  }
}

export const calm: Weather = { delayMs: [0.2, 2], lostRequests: 0, lostAnswers: 0, lateRequests: 0 };
