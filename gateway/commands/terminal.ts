// What a command writes with: results on stdout, everything else on stderr, colour only where a person looks, tables that fit.

import { inspect } from "node:util";

/** Where a command runs. Tests give their own. */
export interface Surroundings {
  readonly out: (text: string) => void;
  readonly err: (text: string) => void;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly cwd: string;
  /** Whether stdout is a terminal, and how wide. */
  readonly isTerminal: boolean;
  readonly columns: number;
  /** Whether stderr is one. */
  readonly isErrTerminal: boolean;
  /** Puts a question to the person and gives the line that was typed, "" at the end of input; null: nobody is there. */
  readonly ask: ((question: string) => Promise<string>) | null;
}

export type Style = "bold" | "dim" | "red" | "green" | "yellow" | "cyan";

/** What went wrong and what to do next; the exit code says of which kind it is. */
export class CommandError extends Error {
  readonly exitCode: number;
  readonly next: string;
  readonly code: string | null;

  constructor(message: string, next: string, facts: { readonly exitCode?: number; readonly code?: string } = {}) {
    super(message);
    this.name = "CommandError";
    this.next = next;
    this.exitCode = facts.exitCode ?? 1;
    this.code = facts.code ?? null;
  }
}

export interface Column {
  readonly title: string;
  readonly isNumber?: boolean;
  /** May be cut when the table is too wide for the terminal. */
  readonly isElastic?: boolean;
}

export class Terminal {
  readonly #around: Surroundings;
  readonly isJson: boolean;

  constructor(around: Surroundings, isJson: boolean) {
    this.#around = around;
    this.isJson = isJson;
  }

  get env(): Readonly<Record<string, string | undefined>> {
    return this.#around.env;
  }

  get cwd(): string {
    return this.#around.cwd;
  }

  get columns(): number {
    return this.#around.isTerminal ? this.#around.columns : 80;
  }

  get isErrTerminal(): boolean {
    return this.#around.isErrTerminal;
  }

  /** Whether there is a person who can be asked. */
  get isAttended(): boolean {
    return this.#around.ask !== null;
  }

  /** True for a yes that was typed out; false for anything else, and where nobody is. */
  async confirm(question: string): Promise<boolean> {
    const answer = (await this.#around.ask?.(question)) ?? "";
    return answer.trim().toLowerCase() === "yes";
  }

  /** A result: one line, or several. */
  print(text: string): void {
    this.#around.out(`${text}\n`);
  }

  /** A result for programs. */
  printJson(value: unknown): void {
    this.print(JSON.stringify(value, null, this.#around.isTerminal ? 2 : undefined));
  }

  /** What is no result: progress, hints, warnings. */
  note(text: string): void {
    this.#around.err(`${text}\n`);
  }

  /** The last line of stderr anew, where that is a terminal; "" takes it away. */
  draw(line: string): void {
    this.#around.err(`\r${cut(line, this.#around.columns - 1)}\u001b[K`);
  }

  style(style: Style, text: string): string {
    return paint(style, text, isColoured(this.#around.env, this.#around.isTerminal));
  }

  styleErr(style: Style, text: string): string {
    return paint(style, text, isColoured(this.#around.env, this.#around.isErrTerminal));
  }

  /** Columns two blanks apart. On a terminal a wide table loses characters of its elastic columns, never a line's shape. */
  table(columns: readonly Column[], rows: readonly (readonly string[])[]): void {
    const widths = columns.map(({ title }, i) => Math.max(title.length, ...rows.map((row) => width(row[i] ?? ""))));
    const total = widths.reduce((sum, one) => sum + one, 0) + 2 * (columns.length - 1);
    let excess = this.#around.isTerminal ? total - this.#around.columns : 0;
    for (const [i, column] of [...columns.entries()].toReversed()) {
      if (excess <= 0 || column.isElastic !== true) continue;
      const room = Math.max(0, (widths[i] ?? 0) - Math.max(column.title.length, 12));
      widths[i] = (widths[i] ?? 0) - Math.min(room, excess);
      excess -= room;
    }
    const line = (cells: readonly string[]): string =>
      columns
        .map(({ isNumber }, i) => pad(cut(cells[i] ?? "", widths[i] ?? 0), widths[i] ?? 0, isNumber === true))
        .join("  ")
        .trimEnd();
    this.print(this.style("dim", line(columns.map(({ title }) => title))));
    for (const row of rows) this.print(line(row));
  }
}

/** Without escape sequences. */
export function width(text: string): number {
  // oxlint-disable-next-line no-control-regex
  return Array.from(text.replaceAll(/\u001b\[[0-9;]*m/g, "")).length;
}

/** What comes from clients and backends must not steer the terminal. */
export function printable(text: string): string {
  // oxlint-disable-next-line no-control-regex
  return text.replaceAll(/[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
}

export function cut(text: string, columns: number): string {
  if (width(text) <= columns) return text;
  return columns < 1
    ? ""
    : `${Array.from(text)
        .slice(0, columns - 1)
        .join("")}…`;
}

export function pad(text: string, columns: number, isRight = false): string {
  const blank = " ".repeat(Math.max(0, columns - width(text)));
  return isRight ? blank + text : text + blank;
}

/** Words broken into lines of at most `columns`. */
export function wrap(text: string, columns: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > columns) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, line];
}

export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** Of files that are hashed or moved: 85.3 MiB/s; of anything else: 1,204/s. */
export function formatRate(perSecond: number, unit: "bytes" | "entries"): string {
  return unit === "bytes" ? `${formatBytes(perSecond)}/s` : `${formatCount(Math.round(perSecond))}/s`;
}

export function formatSeconds(seconds: number): string {
  if (seconds < 10) return `${Math.round(seconds * 10) / 10} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} days`;
}

export function formatCount(count: number): string {
  return count.toLocaleString("en-US");
}

/** 1 entry, 2 entries. */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${formatCount(count)} ${count === 1 ? one : many}`;
}

/** Local time of today, date and time of other days. */
export function formatTime(ms: number | null, nowMs: number): string {
  if (ms === null) return "";
  const [date = "", time = ""] = isoLocal(ms).split("T");
  return isoLocal(nowMs).startsWith(date) ? time : `${date} ${time}`;
}

function isoLocal(ms: number): string {
  const offset = new Date(ms).getTimezoneOffset() * 60_000;
  return new Date(ms - offset).toISOString().slice(0, 19);
}

function isColoured(env: Readonly<Record<string, string | undefined>>, isTerminal: boolean): boolean {
  const force = env["FORCE_COLOR"];
  if (force !== undefined && force !== "" && force !== "0") return true;
  if ((env["NO_COLOR"] ?? "") !== "" || force === "0" || env["TERM"] === "dumb") return false;
  return isTerminal;
}

function paint(style: Style, text: string, isOn: boolean): string {
  if (!isOn) return text;
  // Not styleText: from Node 22 on it looks at streams and variables by itself.
  const [open = 0, close = 0] = inspect.colors[style] ?? [];
  return text === "" ? "" : `\u001b[${open}m${text}\u001b[${close}m`;
}
