// Lines of a child's output, bounded in length and in number: a backend that logs without end costs neither memory nor our log.

import { StringDecoder } from "node:string_decoder";
import type { Readable } from "node:stream";

export interface OutputLimits {
  readonly lineCharsMax: number;
  readonly linesPerSecond: number;
  /** As many may come at once. */
  readonly burst: number;
}

export const defaultOutputLimits: OutputLimits = { lineCharsMax: 8_192, linesPerSecond: 200, burst: 1_000 };

/** Always reads, so that the child never blocks on its own output; drops what is too much, and says how much. */
export class OutputLines {
  readonly #onLine: (line: string) => void;
  readonly #limits: OutputLimits;
  readonly #now: () => number;
  readonly #decoder = new StringDecoder("utf8");
  #line = "";
  #isCut = false;
  #credit: number;
  #creditMs: number;
  #dropped = 0;

  constructor(
    stream: Readable,
    onLine: (line: string) => void,
    limits: OutputLimits = defaultOutputLimits,
    now: () => number = () => performance.now(),
  ) {
    this.#onLine = onLine;
    this.#limits = limits;
    this.#now = now;
    this.#credit = limits.burst;
    this.#creditMs = now();
    stream.on("data", (chunk: Buffer) => this.#add(this.#decoder.write(chunk)));
    stream.on("error", () => {});
    stream.once("close", () => this.flush());
  }

  /** Gives an unfinished last line, and how many were dropped. */
  flush(): void {
    if (this.#line !== "") this.#give();
    if (this.#dropped > 0) this.#onLine(`(${this.#dropped} lines dropped)`);
    this.#dropped = 0;
  }

  #add(text: string): void {
    const parts = text.split("\n");
    for (const [i, part] of parts.entries()) {
      if (i > 0) this.#give();
      const room = this.#limits.lineCharsMax - this.#line.length;
      if (part.length > room) this.#isCut = true;
      this.#line += part.length > room ? part.slice(0, room) : part;
    }
  }

  #give(): void {
    const line = this.#line.endsWith("\r") ? this.#line.slice(0, -1) : this.#line;
    const isCut = this.#isCut;
    this.#line = "";
    this.#isCut = false;
    const nowMs = this.#now();
    const { burst, linesPerSecond } = this.#limits;
    this.#credit = Math.min(burst, this.#credit + ((nowMs - this.#creditMs) * linesPerSecond) / 1_000);
    this.#creditMs = nowMs;
    if (this.#credit < 1) {
      this.#dropped += 1;
      return;
    }
    this.#credit -= 1;
    if (this.#dropped > 0) {
      this.#onLine(`(${this.#dropped} lines dropped)`);
      this.#dropped = 0;
    }
    this.#onLine(isCut ? `${line}…` : line);
  }
}
