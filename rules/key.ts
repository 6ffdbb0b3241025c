// The idempotency key of a request: one spelling-independent value, or the reason why there is none.
import { headerValues, render } from "./template.ts";
import type { Verdict } from "./match.ts";
import type { TemplateContext } from "./template.ts";

export type IdempotencyKey =
  | { readonly kind: "none" }
  | { readonly kind: "key"; readonly value: string }
  /** The rule requires one. */
  | { readonly kind: "missing" }
  | { readonly kind: "malformed"; readonly reason: string };

const keyCharsMax = 255;

export function idempotencyKey(verdict: Pick<Verdict, "rule">, request: TemplateContext): IdempotencyKey {
  const { from, required } = verdict.rule.key;
  const absent: IdempotencyKey = { kind: required ? "missing" : "none" };
  if (verdict.rule.mode === "refuse") return { kind: "none" };
  const [part] = from.parts;
  if (from.parts.length === 1 && part?.kind === "header") {
    const lines = headerValues(request.headers, part.name);
    if (lines.length === 0) return absent;
    // Which of them counts would be anyone's guess.
    return lines.length > 1 ? malformed("there are several") : parseKey(lines[0]!);
  }
  const value = render(from, request);
  return value === null ? absent : checked(value);
}

/** A structured-field string (RFC 8941 3.3.3) or the same characters bare, as most clients send them. */
export function parseKey(line: string): IdempotencyKey {
  const text = line.replace(/^[ \t]+|[ \t]+$/g, "");
  if (!text.startsWith('"')) {
    return /^[A-Za-z0-9!#$%&'*+\-.^_`|~:/=@]*$/.test(text)
      ? checked(text)
      : malformed("it contains invalid characters");
  }
  if (!/^"(?:[\u0020\u0021\u0023-\u005b\u005d-\u007e]|\\["\\])*"$/.test(text)) {
    return malformed("it is not a quoted string of printable ASCII");
  }
  return checked(text.slice(1, -1).replaceAll(/\\(.)/g, "$1"));
}

function checked(value: string): IdempotencyKey {
  if (value === "") return malformed("it is empty");
  return value.length > keyCharsMax ? malformed(`it is longer than ${keyCharsMax} characters`) : { kind: "key", value };
}

function malformed(reason: string): IdempotencyKey {
  return { kind: "malformed", reason };
}
