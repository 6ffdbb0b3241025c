// Header fields at the edge: one pass over what a client sent, what backends get of it, and what clients get of an answer.
// Names keep their case, fields their order, duplicates stay. Framing and forwarding fields are the gateway's own.

import type { RawHeaders } from "../entry.ts";

/** What the front treats apart from plain fields. */
type Kind =
  | "plain"
  | "host"
  | "content-length"
  | "transfer-encoding"
  | "connection"
  | "expect"
  | "upgrade"
  | "trailer"
  | "hop"
  | "replication-position"
  | "replication"
  | "forwarded-for"
  | "forwarded-proto"
  | "forwarded-host"
  | "forwarded"
  | "websocket"
  | "content-disposition";

const kinds: ReadonlyMap<string, Kind> = new Map<string, Kind>([
  ["host", "host"],
  ["content-length", "content-length"],
  ["transfer-encoding", "transfer-encoding"],
  ["connection", "connection"],
  ["expect", "expect"],
  ["upgrade", "upgrade"],
  ["trailer", "trailer"],
  // RFC 9110 7.6.1, and what proxies have used. `Proxy-Status` and `Proxy-Features` are end to end: no prefix match.
  ["keep-alive", "hop"],
  ["proxy-connection", "hop"],
  ["proxy-authenticate", "hop"],
  ["proxy-authorization", "hop"],
  ["proxy-authentication-info", "hop"],
  ["te", "hop"],
  ["http2-settings", "hop"],
  ["x-forwarded-for", "forwarded-for"],
  ["x-forwarded-proto", "forwarded-proto"],
  ["x-forwarded-host", "forwarded-host"],
  ["forwarded", "forwarded"],
  ["sec-websocket-key", "websocket"],
  ["sec-websocket-version", "websocket"],
  ["sec-websocket-extensions", "websocket"],
  ["sec-websocket-protocol", "websocket"],
  ["sec-websocket-accept", "websocket"],
  ["replication-position", "replication-position"],
  ["content-disposition", "content-disposition"],
]);

/** By name as it was written, so that names in use are lower-cased once. Bounded: clients choose what they write. */
const known = new Map<string, Kind>();
const knownMax = 4096;

function kindOf(name: string): Kind {
  const seen = known.get(name);
  if (seen !== undefined) return seen;
  const lower = name.toLowerCase();
  const kind = kinds.get(lower) ?? (lower.startsWith("replication-") ? "replication" : "plain");
  if (known.size < knownMax && name.length <= 64) known.set(name, kind);
  return kind;
}

/** What a client's header section says. Counts, because of most fields only one may be there. */
export class ClientFields {
  /** Without what belongs to this connection, to framing, or to the gateway. */
  readonly kept: string[] = [];
  count = 0;
  bytes = 0;
  hosts = 0;
  host = "";
  contentLengths = 0;
  contentLength = "";
  transferEncodings = 0;
  transferEncoding = "";
  /** All lines joined by commas, as sent. */
  connection = "";
  upgrade = "";
  expects = 0;
  expect = "";
  hasTrailerField = false;
  sessionPosition: string | null = null;
  forwardedFor = "";
  forwardedProto = "";
  forwardedHost = "";
  /** RFC 7239: names and values, kept only of trusted peers. */
  forwarded: string[] | null = null;
  websocketKey = "";
  websocketVersion = "";
  websocketProtocols = "";
}

export function readFields(raw: RawHeaders): ClientFields {
  const fields = new ClientFields();
  const { kept } = fields;
  let bytes = 0;
  for (let i = 0; i + 1 < raw.length; i += 2) {
    const name = raw[i]!;
    const value = raw[i + 1]!;
    bytes += name.length + value.length + 4;
    const kind = kindOf(name);
    switch (kind) {
      case "plain":
      case "content-disposition":
        kept.push(name, value);
        break;
      case "host":
        fields.hosts += 1;
        fields.host = value;
        kept.push(name, value);
        break;
      case "content-length":
        fields.contentLengths += 1;
        fields.contentLength = value;
        break;
      case "transfer-encoding":
        fields.transferEncodings += 1;
        fields.transferEncoding = value;
        break;
      case "connection":
        fields.connection = joined(fields.connection, value);
        break;
      case "upgrade":
        fields.upgrade = joined(fields.upgrade, value);
        break;
      case "expect":
        fields.expects += 1;
        fields.expect = joined(fields.expect, value);
        break;
      case "trailer":
        fields.hasTrailerField = true;
        break;
      case "replication-position":
        // Two of them are joined: no position, which the flow may judge.
        fields.sessionPosition = joined(fields.sessionPosition ?? "", value);
        break;
      case "forwarded-for":
        fields.forwardedFor = joined(fields.forwardedFor, value);
        break;
      case "forwarded-proto":
        fields.forwardedProto = joined(fields.forwardedProto, value);
        break;
      case "forwarded-host":
        fields.forwardedHost = joined(fields.forwardedHost, value);
        break;
      case "forwarded":
        (fields.forwarded ??= []).push(name, value);
        break;
      case "websocket":
        readWebSocketField(fields, name, value);
        break;
      case "hop":
      case "replication":
        break;
      default:
        kind satisfies never;
    }
  }
  fields.count = raw.length / 2;
  fields.bytes = bytes;
  return fields;
}

function readWebSocketField(fields: ClientFields, name: string, value: string): void {
  const lower = name.toLowerCase();
  if (lower.endsWith("-key")) fields.websocketKey = joined(fields.websocketKey, value);
  else if (lower.endsWith("-version")) fields.websocketVersion = joined(fields.websocketVersion, value);
  else if (lower.endsWith("-protocol")) fields.websocketProtocols = joined(fields.websocketProtocols, value);
}

const joined = (before: string, value: string): string => (before === "" ? value : `${before}, ${value}`);

/** How this gateway names itself in `Via` (RFC 9110, 7.6.3). */
const pseudonym = "gateway";

export interface Forwarding {
  /** Of the connection. */
  readonly peer: string;
  readonly isTrusted: boolean;
  readonly proto: "http" | "https";
  /** `1.1` or `1.0`, as received. */
  readonly version: string;
  /** Stands in for the Host field that HTTP/1.0 may leave out: every copy has to see the same one. */
  readonly authority: string;
}

/** What backends get. Names that `Connection` lists are gone; `Content-Length` and `Transfer-Encoding` are for the sender to set. */
export function forwardedHeaders(fields: ClientFields, named: ReadonlySet<string> | null, by: Forwarding): RawHeaders {
  const headers = named === null ? fields.kept : withoutNamed(fields.kept, named);
  if (fields.hosts === 0) headers.unshift("Host", by.authority);
  const { isTrusted } = by;
  if (isTrusted && fields.forwarded !== null) headers.push(...fields.forwarded);
  headers.push(
    "X-Forwarded-For",
    isTrusted ? joined(fields.forwardedFor, by.peer) : by.peer,
    "X-Forwarded-Proto",
    isTrusted && fields.forwardedProto !== "" ? fields.forwardedProto : by.proto,
  );
  if (isTrusted && fields.forwardedHost !== "") headers.push("X-Forwarded-Host", fields.forwardedHost);
  else if (fields.hosts > 0) headers.push("X-Forwarded-Host", fields.host);
  headers.push("Via", by.version === "1.1" ? `1.1 ${pseudonym}` : `${by.version} ${pseudonym}`);
  return headers;
}

function withoutNamed(headers: readonly string[], named: ReadonlySet<string>): string[] {
  const kept: string[] = [];
  for (let i = 0; i + 1 < headers.length; i += 2) {
    if (!named.has(headers[i]!.toLowerCase())) kept.push(headers[i]!, headers[i + 1]!);
  }
  return kept;
}

/** How the body of an answer is framed towards the client. */
export type AnswerFraming =
  /** HEAD, 204, 304: no body; a Content-Length says what it would be. */
  | { readonly kind: "none"; readonly status: number }
  /** Whole, of this size. */
  | { readonly kind: "sized"; readonly sizeBytes: number }
  /** Streamed: with the backend's Content-Length, if it gave one. */
  | { readonly kind: "open" }
  /** Trailers follow: chunks, and no Content-Length. */
  | { readonly kind: "chunked" };

export interface AnswerFields {
  /** The backend's fields, then the gateway's. */
  readonly headers: string[];
  /** As it will stand in the head; −1: none. */
  readonly contentLength: number;
}

/**
 * An answer's fields for the client. Only these are touched: what belongs to one connection, framing that would contradict ours, and
 * `Replication-*`, which no backend may say in the gateway's name.
 */
export function answerFields(raw: RawHeaders, framing: AnswerFraming, extra: RawHeaders): AnswerFields {
  const headers: string[] = [];
  let named: ReadonlySet<string> | null = null;
  let lengthAt = -1;
  let contentLength = -1;
  for (let i = 0; i + 1 < raw.length; i += 2) {
    const name = raw[i]!;
    const value = raw[i + 1]!;
    switch (kindOf(name)) {
      case "transfer-encoding":
      case "hop":
      case "upgrade":
      case "replication":
      case "replication-position":
        continue;
      case "connection":
        named = namedIn(value, named);
        continue;
      case "trailer":
        // Node throws when a head announces trailers that its framing cannot carry.
        if (framing.kind !== "chunked") continue;
        break;
      case "content-length": {
        const length = answerLength(framing, value);
        if (length === -1 || lengthAt !== -1) continue;
        lengthAt = headers.length;
        contentLength = length;
        break;
      }
      case "content-disposition":
        if (lengthAt !== -1 && beyondAscii.test(value)) {
          // Behind a Content-Length Node recodes this field's bytes (nodejs/node#46528): it goes before it, and they stay.
          headers.splice(lengthAt, 0, name, value);
          lengthAt += 2;
          continue;
        }
        break;
      default:
        break;
    }
    headers.push(name, value);
  }
  const kept = named === null ? headers : withoutNamed(headers, named);
  if (framing.kind === "sized" && contentLength === -1) {
    contentLength = framing.sizeBytes;
    kept.push("Content-Length", String(contentLength));
  }
  for (let i = 0; i < extra.length; i++) kept.push(extra[i]!);
  return { headers: kept, contentLength };
}

/** −1: must not stand. */
function answerLength(framing: AnswerFraming, value: string): number {
  const length = digits.test(value) ? Number(value) : -1;
  switch (framing.kind) {
    case "none":
      // RFC 9110 8.6: none with a 204; many servers send 0, and it does no harm.
      return framing.status === 204 && length !== 0 ? -1 : length;
    case "sized":
      return length === framing.sizeBytes ? length : -1;
    case "open":
      return length;
    case "chunked":
      return -1;
    default:
      return framing satisfies never;
  }
}

const digits = /^\d{1,15}$/;
// oxlint-disable-next-line no-control-regex
const beyondAscii = /[^\u0000-\u007f]/;

/** What a `Connection` field of a backend names beyond its own options. */
function namedIn(connection: string, before: ReadonlySet<string> | null): ReadonlySet<string> | null {
  let names: Set<string> | null = before === null ? null : new Set(before);
  for (const token of connection.toLowerCase().split(",")) {
    const name = token.trim();
    if (name === "" || name === "close" || name === "keep-alive" || name === "content-length") continue;
    names ??= new Set();
    names.add(name);
  }
  return names;
}

/** The value of a field the gateway itself adds, or null. Names compare without case. */
export function fieldOf(headers: RawHeaders, lowerName: string): string | null {
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const name = headers[i]!;
    if (name.length === lowerName.length && name.toLowerCase() === lowerName) return headers[i + 1]!;
  }
  return null;
}
