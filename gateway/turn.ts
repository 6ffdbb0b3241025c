// One turn of the event loop for all replicas: answers are noted, sends are decided and noted, one write(2) makes the notes durable
// against any kill, and only then answers are given and requests sent.

import type { Intents } from "./intents/intents.ts";

export interface TurnTaker {
  /** Notes what finished since the last turn. */
  note(): void;
  /** Decides what is sent next and notes it. */
  decide(): void;
  /** The notes are written: gives answers, sends. */
  act(): void;
  /** The notes could not be written: nothing that was decided may be sent. Tried again at the next turn. */
  undo(error: unknown): void;
}

export class Turn {
  readonly #intents: Intents;
  #takers = new Set<TurnTaker>();
  #isScheduled = false;

  constructor(intents: Intents) {
    this.#intents = intents;
  }

  /** The taker has something to do. Idempotent within a turn. */
  ask(taker: TurnTaker): void {
    this.#takers.add(taker);
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    setImmediate(() => this.#run());
  }

  #run(): void {
    this.#isScheduled = false;
    const takers = this.#takers;
    this.#takers = new Set();
    for (const taker of takers) taker.note();
    for (const taker of takers) taker.decide();
    try {
      this.#intents.flush();
    } catch (error) {
      for (const taker of takers) taker.undo(error);
      return;
    }
    for (const taker of takers) taker.act();
  }
}
