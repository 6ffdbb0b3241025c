// The head of a backend's answer: raw header fields as they came, without those that belong to one connection, and how the body ends.

import type { RawHeaders } from "../entry.ts";

export interface Head {
  readonly headers: RawHeaders;
  /** −1: none. */
  readonly contentLength: number;
  /** How the body ends, where there is one. `unreadable`: a transfer coding other than chunked, which would have to be undone. */
  readonly framing: "length" | "chunked" | "close" | "unreadable";
  readonly hasTrailerField: boolean;
}

/** From undici's buffers (names and values alternate), each byte one latin1 character. */
export function readHead(raw: readonly (Buffer | string)[]): Head {
  const headers: string[] = [];
  let contentLength = -1;
  let coding: string | null = null;
  let connection = "";
  let hasTrailerField = false;
  for (let i = 0; i + 1 < raw.length; i += 2) {
    const name = latin1(raw[i]!);
    const value = latin1(raw[i + 1]!);
    // The length alone lets most fields pass without lower-casing them.
    switch (name.length) {
      case 2:
      case 7:
      case 10:
      case 14:
      case 16:
      case 17:
      case 18:
      case 19:
      case 25: {
        const lower = name.toLowerCase();
        if (lower === "content-length") contentLength = Number(value);
        else if (lower === "transfer-encoding") coding = coding === null ? value : `${coding}, ${value}`;
        else if (lower === "connection") connection += `,${value}`;
        else if (lower === "trailer") hasTrailerField = true;
        if (perConnection.has(lower)) continue;
        break;
      }
    }
    headers.push(name, value);
  }
  const framing =
    coding === null
      ? contentLength < 0
        ? "close"
        : "length"
      : coding.trim().toLowerCase() === "chunked"
        ? "chunked"
        : "unreadable";
  const named = connection === "" ? null : namedFields(connection);
  // `Trailer` announces what only a chunked body can carry; elsewhere it is noise that Node refuses to send on.
  if (hasTrailerField && framing !== "chunked")
    return { headers: without(headers, named, "trailer"), contentLength, framing, hasTrailerField: false };
  return { headers: named === null ? headers : without(headers, named, null), contentLength, framing, hasTrailerField };
}

/** Trailer fields, without those that frame or route a message (RFC 9110, 6.5.1). */
export function readTrailers(raw: readonly (Buffer | string)[] | null | undefined): RawHeaders {
  if (raw === null || raw === undefined || raw.length === 0) return none;
  const trailers: string[] = [];
  for (let i = 0; i + 1 < raw.length; i += 2) {
    const name = latin1(raw[i]!);
    const lower = name.toLowerCase();
    if (perConnection.has(lower) || lower === "content-length" || lower === "trailer" || lower === "host") continue;
    trailers.push(name, latin1(raw[i + 1]!));
  }
  return trailers;
}

export function withoutField(headers: RawHeaders, lowerName: string): RawHeaders {
  return without(headers, null, lowerName);
}

// RFC 9110, 7.6.1, and what proxies have used. `Proxy-Status` and the like are end to end: no prefix match.
const perConnection: ReadonlySet<string> = new Set([
  "connection",
  "keep-alive",
  "proxy-connection",
  "proxy-authenticate",
  "proxy-authorization",
  "proxy-authentication-info",
  "te",
  "transfer-encoding",
  "upgrade",
]);

const none: RawHeaders = Object.freeze([]);

const latin1 = (bytes: Buffer | string): string => (typeof bytes === "string" ? bytes : bytes.toString("latin1"));

function namedFields(connection: string): ReadonlySet<string> | null {
  // What nearly all say; each value is preceded by a comma.
  if (connection === ",keep-alive" || connection === ",close") return null;
  const names = new Set<string>();
  for (const token of connection.toLowerCase().split(",")) {
    const name = token.trim();
    // Our own framing depends on Content-Length, whatever a backend says of it.
    if (name !== "" && name !== "close" && name !== "keep-alive" && name !== "content-length") names.add(name);
  }
  return names.size === 0 ? null : names;
}

function without(headers: RawHeaders, names: ReadonlySet<string> | null, other: string | null): RawHeaders {
  const kept: string[] = [];
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const lower = headers[i]!.toLowerCase();
    if (lower !== other && (names === null || !names.has(lower))) kept.push(headers[i]!, headers[i + 1]!);
  }
  return kept;
}
