// JSON pointers (RFC 6901): parsed once, read without surprises from prototypes.

export interface Pointer {
  /** As written: `/a/0/b`. */
  readonly text: string;
  readonly tokens: readonly string[];
}

export type Scalar = string | number | boolean | null;

export type Parsed<T> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly message: string; readonly suggestion?: string };

export function parsePointer(text: string): Parsed<Pointer> {
  if (text !== "" && !text.startsWith("/")) {
    const suggestion = `/${text.replace(/^\$?\.?/, "").replaceAll(".", "/")}`;
    return { ok: false, message: `"${text}" is not a JSON pointer: it begins with "/"`, suggestion };
  }
  if (/~(?![01])/.test(text)) return { ok: false, message: `"${text}" is not a JSON pointer: "~" is written ~0` };
  const tokens = text
    .split("/")
    .slice(1)
    .map((token) => token.replaceAll("~1", "/").replaceAll("~0", "~"));
  return { ok: true, value: { text, tokens } };
}

export function formatToken(token: string): string {
  return token.replaceAll("~", "~0").replaceAll("/", "~1");
}

/** What readPointer gives where parsers disagree. */
export const ambiguous = Symbol("ambiguous");

/**
 * The value at these tokens, or undefined. Ambiguous where an object has the key in another case, too or instead: a
 * parser that folds case (Go's) takes that one. Own properties only, and "01" and "-" are no indices.
 */
export function readPointer(root: unknown, tokens: readonly string[]): unknown {
  let value = root;
  for (const token of tokens) {
    if (typeof value !== "object" || value === null) return undefined;
    if (Array.isArray(value)) {
      value = /^(0|[1-9]\d{0,9})$/.test(token) ? (value[Number(token)] as unknown) : undefined;
      continue;
    }
    const folded = fold(token);
    for (const key of Object.keys(value)) {
      if (key !== token && key.length <= 2 * token.length && fold(key) === folded) return ambiguous;
    }
    value = Object.hasOwn(value, token) ? (value as Record<string, unknown>)[token] : undefined;
  }
  return value;
}

/** Both ways, so that "ſ" is "s" and the Kelvin sign is "k", as in Unicode's simple folding. */
function fold(key: string): string {
  return key.toUpperCase().toLowerCase();
}

export function isScalar(value: unknown): value is Scalar {
  return value === null || typeof value === "string" || typeof value === "number" || typeof value === "boolean";
}
