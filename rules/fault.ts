// What is wrong with a text a person wrote, and where: one Fault a mistake, all of them thrown together.

export interface Fault {
  readonly file: string;
  /** 1-based. */
  readonly line: number;
  /** 1-based, in UTF-16 units. */
  readonly column: number;
  /** `rules[0].mode`; empty for the document itself. */
  readonly path: string;
  readonly message: string;
  /** What was probably meant. */
  readonly suggestion?: string;
  /** The line itself, as written. */
  readonly source?: string;
}

export type DocumentPath = readonly (string | number)[];

export class FaultsError extends Error {
  readonly faults: readonly Fault[];

  constructor(faults: readonly Fault[]) {
    super(faults.map(formatFault).join("\n"));
    this.name = "FaultsError";
    this.faults = faults;
  }
}

/** `gateway.yaml:8:15: rules[0].mode: "replicte" is not one of … (did you mean "replicate"?)`, then the line and a caret. */
export function formatFault(fault: Fault): string {
  const path = fault.path === "" ? "" : `${fault.path}: `;
  const meant = fault.suggestion === undefined ? "" : ` (did you mean "${fault.suggestion}"?)`;
  const head = `${fault.file}:${fault.line}:${fault.column}: ${path}${printable(fault.message)}${printable(meant)}`;
  if (fault.source === undefined) return head;
  const { text, caret } = excerpt(fault.source, fault.column - 1);
  const gutter = String(fault.line);
  const blank = " ".repeat(gutter.length);
  return `${head}\n ${gutter} | ${text}\n ${blank} | ${caret}^`;
}

/** `rules[0].match.body["/method"]` */
export function formatPath(path: DocumentPath): string {
  let text = "";
  for (const step of path) {
    if (typeof step === "number") text += `[${step}]`;
    else if (/^[A-Za-z_][\w-]*$/.test(step)) text += text === "" ? step : `.${step}`;
    else text += `[${JSON.stringify(step)}]`;
  }
  return text;
}

/** The candidate nearest to `word`, if near enough to be a slip of the fingers. */
export function nearest(word: string, candidates: Iterable<string>): string | undefined {
  if (word.length > 64) return undefined;
  const lower = word.toLowerCase();
  let best: string | undefined;
  let bestDistance = Math.floor(Math.max(word.length, 3) / 3) + 1;
  for (const candidate of candidates) {
    if (candidate === word || candidate.length > 64) continue;
    const distance = editDistance(lower, candidate.toLowerCase());
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return best;
}

/** Optimal string alignment: swapped neighbours count once, as fingers do them. */
function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let cost = Math.min(last[j]! + 1, row[j - 1]! + 1, last[j - 1]! + (same ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        cost = Math.min(cost, beforeLast[j - 2]! + 1);
      row.push(cost);
    }
    [beforeLast, last] = [last, row];
  }
  return last[b.length]!;
}

const sourceCharsMax = 160;

/** The part of a long line around `at`, and the blank before the caret (tabs stay tabs, so that the caret stands right). */
function excerpt(source: string, at: number): { text: string; caret: string } {
  const from = source.length <= sourceCharsMax ? 0 : Math.max(0, at - sourceCharsMax / 2);
  const to = Math.min(source.length, from + sourceCharsMax);
  const left = from > 0 ? "…" : "";
  const text = left + printable(source.slice(from, to)) + (to < source.length ? "…" : "");
  const caret = (left + source.slice(from, at)).replaceAll(/[^\t]/g, " ");
  return { text, caret };
}

/** Control characters of a hostile file must not reach the terminal. */
function printable(text: string): string {
  // oxlint-disable-next-line no-control-regex
  return text.replaceAll(/[\u0000-\u0008\u000a-\u001f\u007f-\u009f]/g, "\ufffd");
}
