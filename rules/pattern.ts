// Path patterns: literal segments, `:id` for one segment that is not empty, `*` at the end for everything below.
import { nearest } from "./fault.ts";
import { canonicalTarget } from "./target.ts";
import type { Parsed } from "./pointer.ts";

export interface PathPattern {
  readonly text: string;
  /** A literal is compared with the decoded segment, so that no spelling of it slips by. */
  readonly segments: readonly ({ readonly literal: string } | { readonly param: string })[];
  /** `*`: one or more further segments, empty ones included. */
  readonly hasRest: boolean;
  readonly params: readonly string[];
}

export function parsePattern(text: string): Parsed<PathPattern> {
  if (!text.startsWith("/")) return { ok: false, message: `"${text}" does not begin with "/"`, suggestion: `/${text}` };
  const cut = /[?#]/.exec(text);
  if (cut !== null) {
    const hint = cut[0] === "?" ? "; conditions on the query go under query:" : "";
    return { ok: false, message: `"${text}": a path pattern has no "${cut[0]}"${hint}` };
  }
  const pieces = text.slice(1).split("/");
  const hasRest = pieces.at(-1) === "*";
  if (hasRest) pieces.pop();
  const segments: ({ literal: string } | { param: string })[] = [];
  const params: string[] = [];
  for (const piece of pieces) {
    if (piece.includes("*")) {
      return { ok: false, message: `"${text}": "*" is the whole last segment or is written %2A` };
    }
    if (piece.startsWith(":")) {
      const name = piece.slice(1);
      // "__proto__" would not become a property.
      if (!/^(?!__)[A-Za-z_]\w*$/.test(name)) {
        return { ok: false, message: `"${text}": "${piece}" is not a parameter; ":name" is a whole segment` };
      }
      if (params.includes(name)) return { ok: false, message: `"${text}": ":${name}" is there twice` };
      params.push(name);
      segments.push({ param: name });
      continue;
    }
    if (/^[{<].*[}>]$/.test(piece)) {
      const suggestion = text.replace(piece, `:${piece.slice(1, -1)}`);
      return { ok: false, message: `"${text}": "${piece}" is not how a parameter is written`, suggestion };
    }
    const canonical = canonicalTarget(`/${encodeOdd(piece)}`, { encodedSlash: "keep" });
    if (!canonical.ok) return { ok: false, message: `"${text}" can never match: ${canonical.reason}` };
    segments.push({ literal: canonical.segments[0]! });
  }
  return { ok: true, value: { text, segments, hasRest, params } };
}

/** True only if every path that `b` matches is matched by `a`. */
export function patternCovers(a: PathPattern, b: PathPattern): boolean {
  const [m, n] = [a.segments.length, b.segments.length];
  if (a.hasRest ? n < (b.hasRest ? m : m + 1) : b.hasRest || m !== n) return false;
  return a.segments.every((segment, i) => {
    const other = b.segments[i]!;
    if ("param" in segment) return "param" in other || other.literal !== "";
    return "literal" in other && other.literal === segment.literal;
  });
}

/** The method that was probably meant by `post` or `PSOT`. */
export function nearestMethod(method: string): string | undefined {
  const known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"];
  const upper = method.toUpperCase();
  return known.includes(upper) ? upper : nearest(method, known);
}

/** Letters beyond ASCII, and spaces, may be written plainly in a pattern. */
function encodeOdd(piece: string): string {
  return piece.replaceAll(/\p{Surrogate}/gu, "\ufffd").replaceAll(/[\u0080-\u{10ffff}]+| /gu, encodeURIComponent);
}
