// What a rule asks of a request beyond its path, answered with no, maybe or yes.
import { headerValues } from "./template.ts";
import { patternCovers } from "./pattern.ts";
import { ambiguous, readPointer } from "./pointer.ts";
import type { PathPattern } from "./pattern.ts";
import type { Pointer, Scalar } from "./pointer.ts";

export interface ValueCondition {
  readonly name: string;
  readonly values: readonly string[];
}

export interface BodyCondition {
  readonly pointer: Pointer;
  readonly values: readonly Scalar[];
}

export interface RuleMatch {
  /** Null: any. */
  readonly methods: readonly string[] | null;
  readonly pattern: PathPattern;
  /** Lower case; `*.example.org` is every host below. */
  readonly host: string | null;
  readonly headers: readonly ValueCondition[];
  readonly query: readonly ValueCondition[];
  readonly body: readonly BodyCondition[];
}

/**
 * Maybe: two parsers would disagree, because a header, a parameter or a JSON key is there twice (or, in JSON, in another
 * case: Go takes `METHOD` for `method`). An only-once rule needs a yes: what might be a write is not treated as a read.
 * Replicate and refuse rules take a maybe, for they err on the safe side.
 */
export type Truth = "no" | "maybe" | "yes";

export interface ConditionHead {
  readonly host: string;
  readonly headers: readonly string[];
  readonly query: () => { getAll: (name: string) => readonly string[] };
}

/** Host, headers and query. */
export function headTruth(match: RuleMatch, head: ConditionHead): Truth {
  if (match.host !== null && !hostMatches(match.host, head.host)) return "no";
  let truth: Truth = "yes";
  for (const { name, values } of match.headers) {
    const found = valuesTruth(headerValues(head.headers, name), values);
    if (found === "no") return "no";
    if (found === "maybe") truth = "maybe";
  }
  for (const { name, values } of match.query) {
    const found = valuesTruth(head.query().getAll(name), values);
    if (found === "no") return "no";
    if (found === "maybe") truth = "maybe";
  }
  return truth;
}

/** One object of a body. `isAmbiguous`: some object in the text has a key twice, and which one counts is the parser's. */
export function bodyTruth(match: RuleMatch, member: unknown, isAmbiguous: boolean): Truth {
  if (match.body.length === 0) return "yes";
  if (typeof member !== "object" || member === null || Array.isArray(member)) return "no";
  if (isAmbiguous) return "maybe";
  let truth: Truth = "yes";
  for (const { pointer, values } of match.body) {
    const value = readPointer(member, pointer.tokens);
    if (value === ambiguous) truth = "maybe";
    else if (!values.includes(value as Scalar)) return "no";
  }
  return truth;
}

/** `shop.example.org:8080` → `shop.example.org` */
export function hostName(host: string): string {
  return host.replace(/:\d*$/, "").replace(/\.$/, "").toLowerCase();
}

/**
 * True only if every request that `b` accepts is accepted by `a`, `needsYes` as above: a
 * rule that needs a yes does not cover the maybes of one that does not.
 */
export function matchCovers(
  a: { readonly match: RuleMatch; readonly needsYes: boolean },
  b: { readonly match: RuleMatch; readonly needsYes: boolean },
  method: string | null,
): boolean {
  if (a.match.methods !== null && (method === null || !a.match.methods.includes(method))) return false;
  if (!patternCovers(a.match.pattern, b.match.pattern)) return false;
  if (a.match.host !== null && !(b.match.host !== null && hostCovers(a.match.host, b.match.host))) return false;
  const hasValues = a.match.headers.length + a.match.query.length + a.match.body.length > 0;
  if (hasValues && a.needsYes && !b.needsYes) return false;
  return (
    valuesCover(a.match.headers, b.match.headers) &&
    valuesCover(a.match.query, b.match.query) &&
    a.match.body.every(({ pointer, values }) =>
      b.match.body.some(
        (other) => other.pointer.text === pointer.text && other.values.every((v) => values.includes(v)),
      ),
    )
  );
}

function valuesCover(a: readonly ValueCondition[], b: readonly ValueCondition[]): boolean {
  return a.every(({ name, values }) =>
    b.some((other) => other.name === name && other.values.every((value) => values.includes(value))),
  );
}

function valuesTruth(found: readonly string[], allowed: readonly string[]): Truth {
  let hits = 0;
  for (const value of found) if (allowed.includes(value)) hits++;
  if (hits === 0) return "no";
  return hits === found.length ? "yes" : "maybe";
}

function hostMatches(wanted: string, host: string): boolean {
  return wanted.startsWith("*.") ? host.endsWith(wanted.slice(1)) && host.length >= wanted.length : host === wanted;
}

function hostCovers(a: string, b: string): boolean {
  return (
    a === b || (a.startsWith("*.") && (b.startsWith("*.") ? b : `*${b}`).endsWith(a.slice(1)) && b.length >= a.length)
  );
}
