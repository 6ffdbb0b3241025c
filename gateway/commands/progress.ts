// How far something is: on a terminal a bar that is drawn anew, with rate and time left; elsewhere a line when a step begins and every ten
// seconds; for programs the same lines as JSON. Always on stderr: it is no result.

import { formatBytes, formatCount, formatRate, formatSeconds, pad, printable, width } from "./terminal.ts";
import type { RecoveryProgress } from "../recoverplan.ts";
import type { Terminal } from "./terminal.ts";

const drawMs = 200;
const lineMs = 10_000;
/** Rates are of this much of the past: what is slower now shows soon. */
const windowMs = 15_000;
const barMin = 8;
const barMax = 30;

export class Progress {
  readonly #terminal: Terminal;
  readonly #isDrawn: boolean;
  readonly #timer: NodeJS.Timeout;
  #now: RecoveryProgress | null = null;
  #beganMs = 0;
  #samples: { readonly atMs: number; readonly done: number }[] = [];

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
    this.#isDrawn = terminal.isErrTerminal && !terminal.isJson;
    this.#timer = setInterval(() => this.#show(), this.#isDrawn ? drawMs : lineMs);
  }

  tell(progress: RecoveryProgress): void {
    const atMs = performance.now();
    const before = this.#now;
    this.#now = progress;
    const isNew = before?.step !== progress.step || before.replica !== progress.replica;
    if (isNew || before.unit !== progress.unit) this.#samples = [{ atMs, done: progress.done }];
    if (isNew) {
      if (before !== null && this.#isDrawn) this.#finish(before, atMs);
      this.#beganMs = atMs;
      this.#show();
      return;
    }
    const last = this.#samples.at(-1);
    if (last === undefined || atMs - last.atMs < 500) return;
    this.#samples.push({ atMs, done: progress.done });
    while ((this.#samples[1]?.atMs ?? atMs) < atMs - windowMs) this.#samples.shift();
  }

  /** May be called twice. What was drawn stays as the line of the last step. */
  end(): void {
    clearInterval(this.#timer);
    if (this.#now !== null && this.#isDrawn) this.#finish(this.#now, performance.now());
    this.#now = null;
  }

  #show(): void {
    if (this.#now === null) return;
    if (this.#terminal.isJson) this.#terminal.note(JSON.stringify({ progress: this.#now }));
    else if (this.#isDrawn) this.#terminal.draw(this.#bar(this.#now));
    else this.#terminal.note([nameOf(this.#now), ...this.#facts(this.#now)].join(", "));
  }

  /** What is known of it, the most important first. */
  #facts({ done, total, unit }: RecoveryProgress): string[] {
    const count = (value: number): string => (unit === "bytes" ? formatBytes(value) : formatCount(value));
    const facts = [];
    if (total > 0) facts.push(`${percent(done, total)} %`, `${count(done)} of ${count(total)}`);
    else if (done > 0) facts.push(unit === "bytes" ? count(done) : `${count(done)} entries`);
    const perSecond = this.#perSecond(done);
    if (perSecond === null) return facts;
    facts.push(formatRate(perSecond, unit));
    if (total > done && perSecond > 0) facts.push(`${formatSeconds((total - done) / perSecond)} left`);
    return facts;
  }

  /** Null: too early to tell. */
  #perSecond(done: number): number | null {
    const first = this.#samples[0];
    const seconds = first === undefined ? 0 : (performance.now() - first.atMs) / 1000;
    return first === undefined || seconds < 1 || done === 0 ? null : Math.max(0, done - first.done) / seconds;
  }

  #bar(progress: RecoveryProgress): string {
    const { done, total } = progress;
    const [share = "", ...facts] = this.#facts(progress);
    const name = nameOf(progress);
    if (total === 0) return [name, share, ...facts].filter((text) => text !== "").join("  ");
    // What is furthest right goes first where the terminal is narrow.
    for (let shown = facts.length; ; shown--) {
      const right = [pad(share, 5, true), ...facts.slice(0, shown)].join("  ");
      const room = Math.min(barMax, this.#terminal.columns - 1 - width(name) - width(right) - 6);
      if (room < barMin && shown > 0) continue;
      if (room < barMin) return `${name}  ${right}`;
      const full = Math.round((Math.min(done, total) / total) * room);
      return `${name}  [${"#".repeat(full)}${"-".repeat(room - full)}]  ${right}`;
    }
  }

  #finish(progress: RecoveryProgress, nowMs: number): void {
    const { done, unit } = progress;
    const what = done === 0 ? "" : `${unit === "bytes" ? formatBytes(done) : `${formatCount(done)} entries`} in `;
    this.#terminal.draw(`${nameOf(progress)}  ${what}${formatSeconds((nowMs - this.#beganMs) / 1000)}`);
    this.#terminal.note("");
  }
}

function nameOf({ step, replica }: RecoveryProgress): string {
  const isNamed = replica === null || step.split(/\s+/).includes(replica);
  return printable(isNamed ? step : `${replica}: ${step}`);
}

/** 100 is only what is finished. */
const percent = (done: number, total: number): number => (done >= total ? 100 : Math.floor((done / total) * 100));
