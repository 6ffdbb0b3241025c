// Answers of copies reduced to digests, under a rule's idea of equal, and told apart for people to read.
import { createHash, hash } from "node:crypto";
import { formatToken, isScalar } from "./pointer.ts";
import { headerValues } from "./template.ts";
import type { Rule } from "./compile.ts";

export interface Answer {
  readonly status: number;
  /** Raw name, value, name, value. */
  readonly headers: readonly string[];
  readonly body: Buffer;
}

export interface AnswerDigest {
  /** 16 bytes over what decides by the rule's `compare`. */
  readonly decisive: Buffer;
  /** 16 bytes over status and body, for what is only reported. */
  readonly full: Buffer;
}

export interface Difference {
  /** `status`, `header location`, `body /items/0/id`, `body byte 17`. */
  readonly where: string;
  readonly left: string;
  readonly right: string;
}

const digestBytes = 16;
const differencesMax = 20;
const shownCharsMax = 200;

/** Equal bytes in, equal digests out, on every machine: they are kept in the log and compared years later. */
export function digestAnswer(rule: Pick<Rule, "compare">, answer: Answer): AnswerDigest {
  const { status, headers, body } = rule.compare;
  const content = body === "json" ? (normalJson(rule, answer.body) ?? answer.body) : answer.body;
  const full = digest(`${answer.status}\n`, content);
  if (headers.length === 0 && body === "off") return { decisive: statusDigest(answer.status), full };
  if (headers.length === 0 && status) return { decisive: full, full };
  const lines = headers.map((name) => [name, ...headerValues(answer.headers, name)]);
  const head = JSON.stringify([status ? answer.status : null, lines]);
  return { decisive: digest(`${head}\n`, body === "off" ? nothing : content), full };
}

/** What differs and counts, and how the bodies differ; at most 20, each side at most 200 characters. */
export function describeDifferences(rule: Pick<Rule, "compare">, a: Answer, b: Answer): Difference[] {
  const found: Difference[] = [];
  if (a.status !== b.status) found.push({ where: "status", left: String(a.status), right: String(b.status) });
  for (const name of rule.compare.headers) {
    const [left, right] = [headerValues(a.headers, name), headerValues(b.headers, name)];
    if (JSON.stringify(left) !== JSON.stringify(right)) {
      found.push({ where: `header ${name}`, left: shorten(left.join(", ")), right: shorten(right.join(", ")) });
    }
  }
  if (!a.body.equals(b.body)) found.push(...bodyDifferences(rule, a.body, b.body));
  return found.slice(0, differencesMax);
}

const nothing = Buffer.alloc(0);
const statusDigests = new Map<number, Buffer>();

function statusDigest(status: number): Buffer {
  let known = statusDigests.get(status);
  // A thousand statuses at most: HTTP has three digits.
  if (known === undefined) statusDigests.set(status, (known = digest(`${status}\n`, nothing)));
  return known;
}

function digest(head: string, content: Buffer): Buffer {
  // The one-shot hash is about twice as fast on short input; a long one is not copied for it.
  if (content.length <= 4096) {
    const bytes = Buffer.allocUnsafe(head.length + content.length);
    content.copy(bytes, bytes.write(head, "latin1"));
    return hash("sha256", bytes, "buffer").subarray(0, digestBytes);
  }
  return createHash("sha256").update(head, "latin1").update(content).digest().subarray(0, digestBytes);
}

/** Keys sorted, ignored values gone, numbers as they mean. Null for what is no JSON: then its bytes count. */
function normalJson(rule: Pick<Rule, "compare">, body: Buffer): Buffer | null {
  try {
    const ignore = rule.compare.ignore.map((pointer) => pointer.tokens);
    return Buffer.from(JSON.stringify(normal(parseExactly(body.toString("utf8")), ignore)));
  } catch {
    // No JSON, or so deep that it exhausts the stack.
    return null;
  }
}

/** Numbers that a double cannot hold stay what they are, as marked texts: two of them must not become equal. */
function parseExactly(text: string): unknown {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  JSON.parse(text);
  return JSON.parse(
    text.replaceAll(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, (token) =>
      token.startsWith('"') || !/\d{16}/.test(token) ? token : JSON.stringify(`\u0000${token}`),
    ),
  );
}

function normal(value: unknown, ignore: readonly (readonly string[])[]): unknown {
  if (ignore.some((tokens) => tokens.length === 0)) return null;
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map((item, i) => normal(item, below(ignore, String(i))));
  const entries: [string, unknown][] = [];
  for (const key of Object.keys(value).sort()) {
    const inner = below(ignore, key);
    // An ignored member may as well be absent.
    if (inner.some((tokens) => tokens.length === 0)) continue;
    entries.push([key, normal((value as Record<string, unknown>)[key], inner)]);
  }
  return Object.fromEntries(entries);
}

/** The pointers that go on below this key. `*` is any one. */
function below(ignore: readonly (readonly string[])[], key: string): (readonly string[])[] {
  return ignore.length === 0
    ? []
    : ignore.filter(([first]) => first === key || first === "*").map((tokens) => tokens.slice(1));
}

function bodyDifferences(rule: Pick<Rule, "compare">, a: Buffer, b: Buffer): Difference[] {
  try {
    const ignore = rule.compare.body === "json" ? rule.compare.ignore.map((pointer) => pointer.tokens) : [];
    const [left, right] = [parseExactly(a.toString("utf8")), parseExactly(b.toString("utf8"))];
    const found: Difference[] = [];
    compareValues(normal(left, ignore), normal(right, ignore), "", found);
    // Equal as JSON: what is left is spelling, of which only "bytes" rules want to hear.
    if (found.length > 0 || rule.compare.body === "json") return found;
  } catch {
    // Told as bytes below.
  }
  let at = 0;
  while (at < a.length && at < b.length && a[at] === b[at]) at++;
  const around = (bytes: Buffer): string => shorten(bytes.subarray(Math.max(0, at - 20), at + 60).toString("latin1"));
  return [{ where: `body byte ${at}`, left: around(a), right: around(b) }];
}

function compareValues(a: unknown, b: unknown, path: string, found: Difference[]): void {
  if (found.length >= differencesMax || a === b) return;
  if (kindOf(a) !== kindOf(b) || kindOf(a) === "scalar") {
    found.push({ where: `body ${shorten(path)}`.trimEnd(), left: show(a), right: show(b) });
    return;
  }
  const [left, right] = [a as Record<string, unknown>, b as Record<string, unknown>];
  for (const key of new Set([...Object.keys(left), ...Object.keys(right)])) {
    const [l, r] = [left, right].map((side) => (Object.hasOwn(side, key) ? side[key] : undefined));
    compareValues(l, r, `${path}/${formatToken(key)}`, found);
    if (found.length >= differencesMax) return;
  }
}

function kindOf(value: unknown): "list" | "map" | "scalar" {
  if (Array.isArray(value)) return "list";
  return value === undefined || isScalar(value) ? "scalar" : "map";
}

function show(value: unknown): string {
  if (value === undefined) return "(absent)";
  // The mark of parseExactly is not shown.
  return shorten(typeof value === "string" && value.startsWith("\u0000") ? value.slice(1) : JSON.stringify(value));
}

function shorten(text: string): string {
  return text.length > shownCharsMax ? `${text.slice(0, shownCharsMax - 1)}…` : text;
}
