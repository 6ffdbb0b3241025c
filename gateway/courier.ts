// Carries answers from the gateway that feeds a replica to the one that appended the entry and has its client. What is lost on the way is asked for
// again; what its owner has not kept is called unusable, and the other replicas' answers count.

import type { Agreement } from "./agreement.ts";
import type { AnswerNews, Peers } from "./peers/peers.ts";

export interface CourierParts {
  readonly peers: Peers;
  readonly agreement: Agreement;
  /** A gateway that was heard of lately: nobody else waits for answers. */
  readonly isThere: (boot: string) => boolean;
}

/** Answers kept for whoever asks again, bytes. */
const keptBytesMax = 16 * 1024 * 1024;
/** Answers in one message, bytes: a message above it is one answer. */
const messageBytesMax = 256 * 1024;
const answerOverheadBytes = 256;

interface Kept {
  readonly producer: string;
  readonly news: AnswerNews;
  readonly bytes: number;
}

export class Courier {
  readonly #parts: CourierParts;
  /** By producer: what leaves at the end of this turn. */
  #leaving = new Map<string, AnswerNews[]>();
  #isScheduled = false;
  /** Oldest first. */
  #kept: Kept[] = [];
  #keptFrom = 0;
  #keptBytes = 0;

  constructor(parts: CourierParts) {
    this.#parts = parts;
  }

  /** An answer to an entry that another gateway appended. */
  deliver(producer: string, news: AnswerNews): void {
    if (!this.#parts.isThere(producer)) return;
    this.#keep(producer, news);
    const list = this.#leaving.get(producer);
    if (list === undefined) this.#leaving.set(producer, [news]);
    else list.push(news);
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    setImmediate(() => this.#leave());
  }

  /** Of another gateway's replicas, to entries of ours. */
  received(answers: readonly AnswerNews[]): void {
    const { agreement } = this.#parts;
    for (const { position, replica, incarnation, backendVersion, answer, isFirstSend, isTooLarge } of answers)
      if (answer === null) agreement.unusable(position, replica, isTooLarge);
      else agreement.heard(position, { replica, incarnation, backendVersion }, answer, isFirstSend);
  }

  /** A front has not got them. */
  again(producer: string, replica: string, positions: readonly number[]): void {
    const wanted = new Set(positions);
    const found: AnswerNews[] = [];
    for (let at = this.#kept.length - 1; at >= this.#keptFrom; at--) {
      const { producer: of, news } = this.#kept[at] as Kept;
      if (of === producer && news.replica === replica && wanted.delete(news.position)) found.push(news);
    }
    for (const position of wanted)
      found.push({
        position,
        replica,
        incarnation: "",
        backendVersion: "",
        isFirstSend: false,
        answer: null,
        isTooLarge: false,
      });
    this.#send(producer, found);
  }

  #leave(): void {
    this.#isScheduled = false;
    const leaving = this.#leaving;
    this.#leaving = new Map();
    for (const [producer, answers] of leaving) this.#send(producer, answers);
  }

  #send(producer: string, answers: readonly AnswerNews[]): void {
    let from = 0;
    let bytes = 0;
    for (let at = 0; at < answers.length; at++) {
      const size = sizeOf(answers[at] as AnswerNews);
      if (at > from && bytes + size > messageBytesMax) {
        this.#parts.peers.send(producer, { kind: "answers", answers: answers.slice(from, at) });
        from = at;
        bytes = 0;
      }
      bytes += size;
    }
    if (from < answers.length) this.#parts.peers.send(producer, { kind: "answers", answers: answers.slice(from) });
  }

  #keep(producer: string, news: AnswerNews): void {
    const bytes = sizeOf(news);
    this.#kept.push({ producer, news, bytes });
    this.#keptBytes += bytes;
    while (this.#keptBytes > keptBytesMax && this.#keptFrom < this.#kept.length - 1)
      this.#keptBytes -= (this.#kept[this.#keptFrom++] as Kept).bytes;
    // What is gone leaves its place behind, until half of the places are such.
    if (this.#keptFrom > 1024 && this.#keptFrom * 2 > this.#kept.length) {
      this.#kept = this.#kept.slice(this.#keptFrom);
      this.#keptFrom = 0;
    }
  }
}

const sizeOf = ({ answer }: AnswerNews): number => answerOverheadBytes + (answer?.body.length ?? 0);
