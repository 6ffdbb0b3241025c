// What Node's parser lets through and a backend may read otherwise: refused here, before anything acts on the request.
// Node itself refuses Content-Length beside Transfer-Encoding, folded lines, bare CR or LF, bad chunks and the like; tests pin both.

import { GatewayError } from "../errors.ts";
import type { ErrorCode } from "../errors.ts";
import type { ClientFields } from "./fields.ts";

export interface HeadLimits {
  /** Fields in one header section. */
  readonly headersCount: number;
  /** Names and values of one header section, with four bytes a line. */
  readonly headerBytes: number;
}

/** Null: one reading only. `named` takes the fields that `Connection` lists, to be removed. */
export function headFault(
  method: string,
  url: string,
  version: string,
  fields: ClientFields,
  named: ReadonlySet<string> | null,
  limits: HeadLimits,
): GatewayError | null {
  if (version !== "1.1" && version !== "1.0") {
    return refuse("GW_BAD_REQUEST", `HTTP/${version} is not spoken here`);
  }
  if (fields.count > limits.headersCount) {
    return refuse("GW_HEADERS_TOO_LARGE", `${fields.count} header fields, at most ${limits.headersCount} are read`);
  }
  if (fields.bytes > limits.headerBytes) {
    return refuse("GW_HEADERS_TOO_LARGE", `a header section of more than ${limits.headerBytes} bytes`);
  }
  return (
    hostFault(version, fields) ??
    bodyFramingFault(version, fields) ??
    connectionFault(named) ??
    lineFault(method, url) ??
    expectFault(version, fields)
  );
}

function hostFault(version: string, fields: ClientFields): GatewayError | null {
  if (fields.hosts === 1) {
    return isHost(fields.host) ? null : refuse("GW_BAD_HEADER", "the Host field is not a host with an optional port");
  }
  if (fields.hosts > 1) return refuse("GW_BAD_HEADER", "there are several Host fields");
  return version === "1.1" ? refuse("GW_BAD_HEADER", "HTTP/1.1 needs a Host field") : null;
}

function bodyFramingFault(version: string, fields: ClientFields): GatewayError | null {
  if (fields.transferEncodings === 0) {
    if (fields.contentLengths === 0) return null;
    if (fields.contentLengths > 1) return refuse("GW_BAD_REQUEST", "there are several Content-Length fields");
    return /^\d+$/.test(fields.contentLength) ? null : refuse("GW_BAD_REQUEST", "Content-Length is not a number");
  }
  if (version === "1.0") return refuse("GW_BAD_REQUEST", "HTTP/1.0 has no Transfer-Encoding");
  if (fields.contentLengths > 0) return refuse("GW_BAD_REQUEST", "Content-Length and Transfer-Encoding contradict");
  if (fields.transferEncodings > 1 || fields.transferEncoding.toLowerCase() !== "chunked") {
    return refuse("GW_BAD_REQUEST", 'the only Transfer-Encoding that is read is "chunked"');
  }
  // A backend cannot be sent trailers (undici), and none is dropped in silence.
  if (fields.hasTrailerField) return refuse("GW_BAD_HEADER", "request trailers cannot be forwarded");
  return null;
}

function connectionFault(named: ReadonlySet<string> | null): GatewayError | null {
  if (named === null) return null;
  for (const name of named) {
    if (protectedNames.has(name) || name.startsWith("replication-") || name.startsWith("sec-")) {
      return refuse("GW_BAD_HEADER", `Connection must not name ${name}: it would be removed on the way`);
    }
    if (!token.test(name)) return refuse("GW_BAD_HEADER", "Connection lists something that is not a name");
  }
  return null;
}

function lineFault(method: string, url: string): GatewayError | null {
  if (method === "CONNECT")
    return refuse("GW_METHOD_NOT_SUPPORTED", "CONNECT asks for a tunnel: this is no proxy of the client's");
  if (url === "*") {
    return method === "OPTIONS"
      ? refuse(
          "GW_METHOD_NOT_SUPPORTED",
          "OPTIONS * is about the server, not the service: it cannot be forwarded (undici sends paths only)",
        )
      : refuse("GW_BAD_TARGET", '"*" is a target of OPTIONS only');
  }
  return null;
}

/** RFC 9110 10.1.1: HTTP/1.0 clients do not wait for 100, whatever they write. */
function expectFault(version: string, fields: ClientFields): GatewayError | null {
  if (fields.expects === 0 || fields.expect.toLowerCase() === "100-continue") return null;
  if (version === "1.0" && fields.expect === "") return null;
  return refuse("GW_EXPECTATION_FAILED", "only 100-continue can be expected");
}

/** The names that `Connection` lists beyond its own options; null in the usual case. */
export function connectionNames(connection: string): ReadonlySet<string> | null {
  if (connection === "" || connection === "keep-alive" || connection === "close" || connection === "Keep-Alive")
    return null;
  let names: Set<string> | null = null;
  for (const part of connection.toLowerCase().split(",")) {
    const name = part.trim();
    if (options.has(name)) continue;
    names ??= new Set();
    names.add(name);
  }
  return names;
}

/** `Connection` options, and fields that are removed anyhow. */
const options: ReadonlySet<string> = new Set([
  "",
  "close",
  "keep-alive",
  "upgrade",
  "te",
  "trailer",
  "http2-settings",
  "proxy-connection",
]);

// Removing one of these changes what a request means or who sent it (a field named in Connection is removed by each proxy on the way).
const protectedNames: ReadonlySet<string> = new Set([
  "accept",
  "accept-encoding",
  "accept-language",
  "authorization",
  "cache-control",
  "content-digest",
  "content-encoding",
  "content-length",
  "content-location",
  "content-range",
  "content-type",
  "cookie",
  "date",
  "digest",
  "expect",
  "forwarded",
  "host",
  "idempotency-key",
  "if-match",
  "if-modified-since",
  "if-none-match",
  "if-range",
  "if-unmodified-since",
  "origin",
  "prefer",
  "range",
  "referer",
  "repr-digest",
  "set-cookie",
  "signature",
  "signature-input",
  "traceparent",
  "tracestate",
  "transfer-encoding",
  "user-agent",
  "via",
  "want-digest",
  "x-api-key",
  "x-csrf-token",
  "x-forwarded-for",
  "x-forwarded-host",
  "x-forwarded-proto",
  "x-http-method-override",
  "x-real-ip",
  "x-request-id",
  "x-xsrf-token",
]);

const token = /^[!#$%&'*+\-.^_`|~0-9a-z]+$/;

// RFC 3986 reg-name without sub-delims (a comma makes a list of it), or a bracketed IPv6 address; a port may follow.
const hostForm = /^(?:[A-Za-z0-9\-._~]+|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{0,5})?$/;

const lastHost = { name: "localhost" };

function isHost(host: string): boolean {
  // Most requests name the host that the last one named.
  if (host === lastHost.name) return true;
  if (host.length > 255 + 6 || !hostForm.test(host)) return false;
  lastHost.name = host;
  return true;
}

/** Node's parser can be told to accept what is refused above. It must not be. */
export function lenientParserFlag(argv: readonly string[], nodeOptions: string): string | null {
  const flag = "--insecure-http-parser";
  // Node takes underscores for dashes, quotes in NODE_OPTIONS, and the last of several.
  const given = [...argv, ...nodeOptions.replaceAll(/["\\]/g, "").split(/\s+/)].map((one) => one.replaceAll("_", "-"));
  return given.includes(flag) ? flag : null;
}

/** With what Node adds to an error of its parser. */
export interface ParserError extends NodeJS.ErrnoException {
  readonly rawPacket?: Buffer;
  readonly bytesParsed?: number;
}

/** A parser's error, or Node's timeouts, as what the client is told. */
export function parserFault(error: ParserError): GatewayError {
  switch (error.code) {
    case "HPE_HEADER_OVERFLOW":
      return refuse("GW_HEADERS_TOO_LARGE", "the header section is too large");
    case "ERR_HTTP_REQUEST_TIMEOUT":
      return refuse("GW_REQUEST_TIMEOUT", "the request did not arrive in time");
    case "HPE_INVALID_METHOD":
      return isUnknownMethod(error)
        ? refuse("GW_METHOD_NOT_SUPPORTED", "Node's parser does not know the method")
        : refuse("GW_BAD_REQUEST", "the request line is malformed");
    case "HPE_INVALID_EOF_STATE":
      return refuse("GW_BAD_REQUEST", "the connection ended within the request");
    default:
      return refuse("GW_BAD_REQUEST", `the request is malformed (${error.code ?? "unreadable"})`);
  }
}

/** A well-formed request line whose method llhttp has no number for. */
function isUnknownMethod({ rawPacket, bytesParsed }: ParserError): boolean {
  if (rawPacket === undefined || bytesParsed === undefined) return false;
  // The packet may begin with other requests.
  const lineStart = rawPacket.subarray(0, bytesParsed).lastIndexOf("\n") + 1;
  const line = rawPacket.subarray(lineStart, lineStart + 4096).toString("latin1");
  return /^[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64} [!-~]+ HTTP\/1\.[01]\r\n/.test(line);
}

function refuse(code: ErrorCode, message: string): GatewayError {
  return new GatewayError(code, message);
}
