// The one definition of a request target: what rules match is what is forwarded, and nothing in it reads two ways.

export interface CanonicalTarget {
  readonly ok: true;
  /** The exact bytes to forward: path and query. */
  readonly target: string;
  readonly path: string;
  /** Of the path, percent-decoded. `/` has one empty segment, `/a/` ends in one. */
  readonly segments: readonly string[];
  /** Behind the first `?`, as it came. */
  readonly query: string | null;
}

export interface RefusedTarget {
  readonly ok: false;
  readonly reason: string;
}

export interface TargetOptions {
  /** `keep`: `%2F` is forwarded byte for byte, as part of one segment. */
  readonly encodedSlash: "refuse" | "keep";
}

export const targetCharsMax = 16 * 1024;

// Most targets: nothing encoded, nothing odd, and no segment that begins with a dot.
const plainPath = /^(?:\/(?:[A-Za-z0-9\-_~!$&'()*+,;=:@][A-Za-z0-9\-._~!$&'()*+,;=:@]*)?)+$/;
const plainQuery = /^[!$-~]*$/;
const unreserved = /[A-Za-z0-9\-._~]/;
// oxlint-disable-next-line no-control-regex
const control = /[\u0000-\u001f\u007f-\u009f]/;

/**
 * `raw` is the request-target as Node gives it: one char a byte. Canonical is: encoded unreserved characters decoded
 * (RFC 3986 6.2.2.2), hex digits upper-cased, all else kept, `//` included. Decoding happens once: `%252e` stays what it
 * is. Applying it twice changes nothing.
 */
export function canonicalTarget(raw: string, options: TargetOptions): CanonicalTarget | RefusedTarget {
  if (raw.length > targetCharsMax) return refuse(`the target is longer than ${targetCharsMax} bytes`);
  // Absolute and authority form, and `*`, name things that are not paths of the service.
  if (raw.charCodeAt(0) !== 47) return refuse('the target does not begin with "/"');
  const mark = raw.indexOf("?");
  const rawPath = mark === -1 ? raw : raw.slice(0, mark);
  const query = mark === -1 ? null : raw.slice(mark + 1);
  if (query !== null) {
    const reason = queryFault(query);
    if (reason !== null) return refuse(reason);
  }
  if (plainPath.test(rawPath)) {
    return { ok: true, target: raw, path: rawPath, segments: rawPath.slice(1).split("/"), query };
  }
  const reason = bytesFault(rawPath, "path");
  if (reason !== null) return refuse(reason);
  const path = rawPath.replaceAll(/%(..)/g, (_, hex: string) => {
    const char = String.fromCharCode(Number.parseInt(hex, 16));
    return unreserved.test(char) ? char : `%${hex.toUpperCase()}`;
  });
  // Windows servers and browsers take a backslash for a slash, some after decoding.
  if (path.includes("\\") || path.includes("%5C")) return refuse("the path contains a backslash");
  if (options.encodedSlash === "refuse" && path.includes("%2F")) return refuse("the path contains an encoded slash");
  const segments: string[] = [];
  for (const segment of path.slice(1).split("/")) {
    const decoded = decode(segment);
    if (decoded === null) return refuse("the path is not valid UTF-8");
    if (control.test(decoded)) return refuse("the path contains an encoded control character");
    if (hidesDots(decoded)) return refuse("the path contains a dot segment");
    segments.push(decoded);
  }
  return { ok: true, target: query === null ? path : `${path}?${query}`, path, segments, query };
}

// An encoded "#" or "?" is kept: it is plain data ("C%23"). Unlike a slash it divides nothing once the target has been
// split, and whoever decodes before splitting sees at most a shorter path without dots, never another folder.
function hidesDots(segment: string): boolean {
  if (!segment.includes(".")) return false;
  // With `keep` a decoded slash lies within the segment; a server that splits there must not find dots either.
  return segment.split("/").some((part) => {
    // Servlet containers drop ";…" from each segment before they resolve dots: "..;x" is "..".
    const name = part.includes(";") ? part.slice(0, part.indexOf(";")) : part;
    return name === "." || name === "..";
  });
}

function decode(segment: string): string | null {
  if (!segment.includes("%")) return segment;
  try {
    // Refuses overlong forms, surrogates and everything beyond U+10FFFF.
    return decodeURIComponent(segment);
  } catch {
    return null;
  }
}

/**
 * The query is the service's own: kept byte for byte, and whatever it encodes is data. Only what a parser may cut or
 * decode differently is refused: raw `#`, control characters, spaces, non-ASCII, and `%` without two hex digits, which
 * parsers drop, keep or read as `%uXXXX`, so that a rule's `query:` could see another value than the backend.
 */
function queryFault(query: string): string | null {
  if (plainQuery.test(query) && !query.includes("%")) return null;
  return bytesFault(query, "query");
}

function bytesFault(text: string, where: "path" | "query"): string | null {
  for (let i = 0; i < text.length; i++) {
    const byte = text.charCodeAt(i);
    if (byte <= 0x20 || byte === 0x7f) return `the ${where} contains a space or control character`;
    if (byte > 0x7f) return `the ${where} contains a byte beyond ASCII that is not percent-encoded`;
    if (byte === 35) return 'the target contains "#"';
    if (byte === 37 && !/^[0-9A-Fa-f]{2}$/.test(text.slice(i + 1, i + 3))) {
      return `the ${where} contains "%" without two hex digits`;
    }
  }
  return null;
}

function refuse(reason: string): RefusedTarget {
  return { ok: false, reason };
}
