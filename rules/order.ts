// What a request must not overtake, nor be overtaken by: its order keys, or none for a barrier.
import { createHash } from "node:crypto";
import { render } from "./template.ts";
import type { Verdict } from "./match.ts";
import type { Template, TemplateContext } from "./template.ts";

const keyCharsMax = 256;
const keysMax = 1024;

/**
 * `[]` is a barrier: the rule has no `order`, a value is missing, or members of a batch fall under several rules. Values
 * are percent-encoded, so that `{path.a}:{path.b}` never reads two ways; the text around them stays as written.
 */
export function orderKeys(verdict: Pick<Verdict, "rule" | "batch">, request: TemplateContext): readonly string[] {
  const { order } = verdict.rule;
  if (order === null || verdict.batch === "mixed") return [];
  if (verdict.batch === "none") return keysOf(order, request) ?? [];
  const members = request.body();
  if (!Array.isArray(members)) return [];
  const union = new Set<string>();
  for (const member of members as unknown[]) {
    const keys = keysOf(order, { ...request, body: () => member });
    if (keys === null || union.size > keysMax) return [];
    for (const key of keys) union.add(key);
  }
  return [...union];
}

function keysOf(order: readonly Template[], request: TemplateContext): readonly string[] | null {
  const keys: string[] = [];
  for (const template of order) {
    const key = render(template, request, encode);
    if (key === null) return null;
    const short = key.length <= keyCharsMax ? key : `sha256:${createHash("sha256").update(key).digest("hex")}`;
    if (!keys.includes(short)) keys.push(short);
  }
  return keys;
}

function encode(value: string): string {
  // Lone surrogates differ from each other and cannot be encoded; JSON's escapes can.
  return /^[A-Za-z0-9._~-]*$/.test(value)
    ? value
    : encodeURIComponent(/\p{Surrogate}/u.test(value) ? JSON.stringify(value) : value);
}
