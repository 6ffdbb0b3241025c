// HTTP/1.x read anew and strictly, so that tests need not trust the parsers they test: what a client's bytes deserve of the gateway,
// whether a backend was sent what can be read in one way only, and whether a client was answered so.

import { METHODS } from "node:http";

export type Field = readonly [name: string, value: string];

/** One request as its bytes say it, and what it deserves. */
export interface Deserved {
  /** refuse: must not reach a backend. */
  readonly fate: "serve" | "refuse";
  /** Nothing behind it on its connection may be answered or executed. */
  readonly isLast: boolean;
  readonly method: string;
  /** Canonical; "" where it has none. */
  readonly target: string;
  readonly fields: readonly Field[];
  readonly body: string;
}

export interface Reading {
  readonly requests: readonly Deserved[];
  /** The bytes end within a request, which is nobody's. */
  readonly isCut: boolean;
  /** So many of them have to be answered. Behind these it is up to the gateway whether the connection goes on. */
  readonly certain: number;
}

const token = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const host = /^(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{0,5})?$/;
const headBytesMax = 60_000;

/** Everything that one connection carried, as latin1. `isForbidden`: what the rules refuse. */
export function readConnection(bytes: string, isForbidden: (request: Deserved) => boolean): Reading {
  const requests: Deserved[] = [];
  let certain = Infinity;
  let at = 0;
  const done = (isCut: boolean): Reading => {
    // A tunnel or another protocol behind requests under way: there is no place for its answer, the connection just ends. That goes
    // for what stands behind a last request as well, which is not looked at otherwise.
    const isTakenOver = requests.at(-1)?.isLast === true && /^(?:CONNECT |upgrade[ \t]*:)/im.test(bytes.slice(at));
    return { requests, isCut, certain: isTakenOver ? 0 : Math.min(certain, requests.length) };
  };
  // Ends with the bytes, or at what nothing may follow.
  for (;;) {
    while (bytes[at] === "\r" || bytes[at] === "\n") at += 1;
    if (at === bytes.length) return done(false);
    const head = readHead(bytes, at);
    if (head === "cut") return done(true);
    // Before the end of a head a fault in it may not be looked at yet.
    if (head === "fault" && !/\n\r?\n/.test(bytes.slice(at)) && bytes.length - at < headBytesMax) return done(true);
    if (head === "fault") {
      requests.push(refused("", true));
      return done(false);
    }
    let judged = judge(head);
    if (isOdd(bytes.slice(at, head.end))) {
      certain = Math.min(certain, requests.length + 1);
      if (judged.fields.length > 0) judged = { ...judged, isLast: false };
    }
    if (judged.fate === "serve" && isForbidden(judged)) judged = { ...judged, fate: "refuse" };
    if (judged.fate === "refuse" && judged.isLast) {
      requests.push(judged);
      return done(false);
    }
    const body = readBody(bytes, head);
    // Whoever is refused need not wait for the rest; and how much of it there is may not be worth finding out.
    if (judged.fate === "refuse" && mayEnd(head)) certain = Math.min(certain, requests.length + 1);
    if (body === "cut") {
      if (judged.fate === "refuse") requests.push({ ...judged, isLast: true });
      return done(true);
    }
    if (body === "fault") {
      requests.push({ ...judged, fate: "refuse", isLast: true });
      return done(false);
    }
    if (body.hasTrailers === true && judged.fate === "serve") {
      // Safe requests behind it may have begun before they were seen.
      certain = Math.min(certain, requests.length + 1);
      judged = { ...judged, fate: "refuse", isLast: false };
    }
    requests.push({ ...judged, body: body.text });
    at = body.end;
    if (judged.isLast) return done(false);
  }
}

/** What Connection says of the connection itself can be read in two ways, which both do no harm. */
const isOdd = (head: string): boolean => {
  const lines =
    head
      .match(/^(?:proxy-)?connection:.*$/gim)
      ?.join()
      .toLowerCase() ?? "";
  return (lines.includes("close") && lines.includes("keep-alive")) || lines.includes("\t");
};

const mayEnd = ({ target, fields }: Head): boolean =>
  // A URL of another form may be none to Node's parser, which then reads no further.
  !target.startsWith("/") || valuesOf(fields, "transfer-encoding").length + valuesOf(fields, "expect").length > 0;

interface Head {
  readonly method: string;
  readonly target: string;
  readonly version: string;
  readonly fields: readonly Field[];
  /** Behind the empty line. */
  readonly end: number;
}

function readHead(bytes: string, from: number): Head | "cut" | "fault" {
  const fields: Field[] = [];
  let at = from;
  let line: readonly string[] | null = null;
  for (;;) {
    const end = bytes.indexOf("\n", at);
    const isWhole = end !== -1;
    const text = bytes.slice(at, isWhole ? end : undefined);
    if (text.length > headBytesMax || at - from > headBytesMax) return "fault";
    if (!isWhole) return "cut";
    if (!text.endsWith("\r")) return "fault";
    const content = text.slice(0, -1);
    at = end + 1;
    if (line === null) {
      // Without a version it is HTTP/0.9, whose head ends as every other.
      line = /^([!-~]+) +([!-~]+)(?: +HTTP\/(\d\.\d))?$/.exec(content);
      if (line === null) return "fault";
    } else if (content === "") {
      const [, method = "", target = "", version = "0.9"] = line;
      return { method, target, version, fields, end: at };
    } else {
      const field = readField(content);
      if (field === null) return "fault";
      fields.push(field);
    }
  }
}

function readField(line: string): Field | null {
  const colon = line.indexOf(":");
  const name = line.slice(0, Math.max(colon, 0));
  // Node's parser takes blanks behind these two, and no tab.
  if (/^(?:content-length|transfer-encoding)$/i.test(name) && line.trimEnd() !== line.replace(/ +$/, "")) return null;
  const value = line.slice(colon + 1).replaceAll(/^[ \t]+|[ \t]+$/g, "");
  // oxlint-disable-next-line no-control-regex
  return token.test(name) && !/[\u0000-\u0008\u000a-\u001f\u007f]/.test(value) ? [name, value] : null;
}

export const valuesOf = (fields: readonly Field[], name: string): string[] =>
  fields.flatMap(([one, value]) => (one.toLowerCase() === name ? [value] : []));

const refused = (method: string, isLast: boolean): Deserved => ({
  fate: "refuse",
  isLast,
  method,
  target: "",
  fields: [],
  body: "",
});

const ownOptions = new Set([
  "",
  "close",
  "keep-alive",
  "upgrade",
  "te",
  "trailer",
  "http2-settings",
  "proxy-connection",
]);

/** Fields that may not be taken away on the way by naming them in Connection. */
const meaningful =
  /^(?:accept.*|authorization|cache-control|content-.*|cookie|date|expect|forwarded|host|idempotency-key|if-.*|origin|range|referer|replication-.*|sec-.*|transfer-encoding|user-agent|via|x-forwarded-.*|x-real-ip|x-request-id|x-api-key)$/;

function judge({ method, target, version, fields }: Head): Deserved {
  const values = (name: string): string[] => valuesOf(fields, name);
  const no = refused(method, true);
  // Node's parser knows paths, "*" and URLs; what else stands there is no request to it.
  if (!/^(?:\/|\*|[a-z]+:\/\/)/i.test(target)) return no;
  if (!METHODS.includes(method) || method === "CONNECT" || !/^1\.[01]$/.test(version) || target === "*") return no;
  if (fields.length > 256) return no;
  const hosts = values("host");
  if (hosts.length > 1 || (hosts.length === 0 && version === "1.1")) return no;
  if (hosts.length === 1 && (!host.test(hosts[0]!) || hosts[0]!.length > 261)) return no;
  const codings = values("transfer-encoding");
  const lengths = values("content-length");
  if (lengths.length > 1 || (lengths.length === 1 && !/^\d{1,15}$/.test(lengths[0]!))) return no;
  if (codings.length > 0) {
    if (lengths.length > 0 || codings.length > 1 || codings[0]!.toLowerCase() !== "chunked" || version === "1.0")
      return no;
    if (values("trailer").length > 0) return no;
  }
  const options = values("connection").flatMap((value) =>
    value
      .toLowerCase()
      .split(",")
      .map((part) => part.trim()),
  );
  if (options.some((option) => !ownOptions.has(option) && (!token.test(option) || meaningful.test(option)))) return no;
  if (options.includes("upgrade") && values("upgrade").length > 0) return no;
  const expects = values("expect");
  if (expects.length > 1 || (expects.length === 1 && expects[0]!.toLowerCase() !== "100-continue")) return no;
  if (Number(lengths[0] ?? 0) > 1_000_000) return no;

  const canonical = canonicalOf(target);
  // Whoever asks whether to go on and is not told so (there is no body, or HTTP/1.0 does not wait) gets his answer and the end.
  const isUntold = expects.length > 0 && (version === "1.0" || (codings.length === 0 && Number(lengths[0] ?? 0) === 0));
  // llhttp reads Proxy-Connection too.
  const staying = [...options, ...values("proxy-connection").map((value) => value.toLowerCase())];
  const isLast = isUntold || staying.includes("close") || (version === "1.0" && !staying.includes("keep-alive"));
  const kept = fields.filter(([name]) => !options.includes(name.toLowerCase()));
  return {
    fate: canonical === null ? "refuse" : "serve",
    isLast,
    method,
    target: canonical ?? "",
    fields: kept,
    body: "",
  };
}

interface Body {
  readonly text: string;
  /** Behind it. */
  readonly end: number;
  readonly hasTrailers?: true;
}

function readBody(bytes: string, { fields, end }: Head): Body | "cut" | "fault" {
  const [length] = valuesOf(fields, "content-length");
  if (valuesOf(fields, "transfer-encoding").length > 0) return readChunks(bytes, end);
  const stop = end + Number(length ?? 0);
  return stop > bytes.length ? "cut" : { text: bytes.slice(end, stop), end: stop };
}

function readChunks(bytes: string, from: number): Body | "cut" | "fault" {
  let at = from;
  let text = "";
  // Ends with the last chunk, with a fault, or with the bytes.
  for (;;) {
    const end = bytes.indexOf("\n", at);
    const line = bytes.slice(at, end === -1 ? undefined : end);
    // oxlint-disable-next-line no-control-regex
    const [, digits, rest] = /^([0-9A-Fa-f]*)((?:;[^\u0000-\u0008\u000a-\u001f\u007f]*)?\r?)$/.exec(line) ?? [];
    if (digits === undefined || rest === undefined || digits.length > 15) return "fault";
    if (end === -1) return digits === "" && rest !== "" ? "fault" : "cut";
    if (digits === "" || !rest.endsWith("\r") || rest.length > 1000) return "fault";
    // What an extension may hold is for its sender to know: nobody forwards it.
    if (rest.length > 1 && !/^(?:;[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:=[!#$%&'*+\-.^_`|~0-9A-Za-z]+)?)+\r$/.test(rest))
      return "fault";
    const size = Number.parseInt(digits, 16);
    at = end + 1;
    if (size === 0) {
      const left = bytes.slice(at, at + 2);
      if (left === "\r\n") return { text, end: at + 2 };
      // Trailers, which cannot be forwarded; but one sees where they end.
      const [whole = "", lines = ""] = /^((?:[^\r\n]+\r\n)+)\r\n/.exec(bytes.slice(at, at + 2000)) ?? [];
      if (
        lines !== "" &&
        lines
          .slice(0, -2)
          .split("\r\n")
          .every((line) => readField(line) !== null && !/^content-length:/i.test(line))
      ) {
        return { text, end: at + whole.length, hasTrailers: true };
      }
      return left === "\r" || left === "" ? "cut" : "fault";
    }
    const closing = bytes.slice(at + size, at + size + 2);
    if (closing !== "\r\n".slice(0, closing.length)) return "fault";
    if (closing.length < 2) return "cut";
    text += bytes.slice(at, at + size);
    at += size + 2;
  }
}

/** The canonical form of a target, or null where it has none: byte by byte, by the documentation and not by the code. */
export function canonicalOf(raw: string): string | null {
  if (raw.length > 16 * 1024 || raw[0] !== "/") return null;
  let path = "";
  let decoded = "";
  let i = 0;
  // The path, up to the first question mark.
  for (; i < raw.length && raw[i] !== "?"; i++) {
    const char = raw[i]!;
    if (char <= " " || char >= "\u007f" || char === "#" || char === "\\") return null;
    if (char !== "%") {
      path += char;
      decoded += char;
      continue;
    }
    const byte = hexByte(raw, i);
    if (byte === null || byte < 0x20 || byte === 0x7f || byte === 0x2f || byte === 0x5c) return null;
    const one = String.fromCharCode(byte);
    decoded += one;
    path += /[A-Za-z0-9._~-]/.test(one) ? one : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
    i += 2;
  }
  const text = utf8(decoded);
  if (text === null) return null;
  // oxlint-disable-next-line no-control-regex
  if (/[\u0080-\u009f]/.test(text)) return null;
  if (decoded.split("/").some((segment) => /^\.{1,2}(?:;.*)?$/s.test(segment))) return null;
  const query = raw.slice(i);
  for (let at = 0; at < query.length; at++) {
    const char = query[at]!;
    if (char <= " " || char >= "\u007f" || char === "#") return null;
    if (char === "%" && hexByte(query, at) === null) return null;
  }
  return path + query;
}

function hexByte(text: string, percent: number): number | null {
  const digits = text.slice(percent + 1, percent + 3);
  return /^[0-9A-Fa-f]{2}$/.test(digits) ? Number.parseInt(digits, 16) : null;
}

function utf8(bytes: string): string | null {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Buffer.from(bytes, "latin1"));
  } catch {
    return null;
  }
}

// --- what a backend receives

export interface Forwarded {
  readonly method: string;
  readonly target: string;
  readonly fields: readonly Field[];
  readonly body: string;
}

/** The next whole request of what a backend received, the reason why it is none, or null where bytes are missing. */
export function takeForwarded(bytes: string): { readonly request: Forwarded; readonly length: number } | string | null {
  const end = bytes.indexOf("\r\n\r\n");
  if (end === -1) return null;
  const [line = "", ...lines] = bytes.slice(0, end).split("\r\n");
  const [, method = "", target = ""] = /^([A-Z-]+) (\/[!-~]*) HTTP\/1\.1$/.exec(line) ?? [];
  if (method === "" || target.includes("#")) return `request line ${JSON.stringify(line)}`;
  const fields: Field[] = [];
  for (const text of lines) {
    const [, name = "", value = ""] =
      /^([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ?((?:[!-~\u0080-\u00ff](?:[\t -~\u0080-\u00ff]*[!-~\u0080-\u00ff])?)?)$/.exec(
        text,
      ) ?? [];
    if (name === "") return `field ${JSON.stringify(text)}`;
    fields.push([name, value]);
  }
  if (valuesOf(fields, "host").length !== 1) return "not one Host";
  for (const name of ["expect", "upgrade", "te", "trailer", "keep-alive", "proxy-connection", "http2-settings"]) {
    if (valuesOf(fields, name).length > 0) return `a field ${name}`;
  }
  const lengths = valuesOf(fields, "content-length");
  const codings = valuesOf(fields, "transfer-encoding");
  if (lengths.length + codings.length > 1) return "two framings";
  if (codings.length === 1 && codings[0] !== "chunked") return `the coding ${codings[0]}`;
  if (lengths.length === 1 && !/^\d+$/.test(lengths[0]!)) return `the length ${lengths[0]}`;
  const head: Head = { method, target, version: "1.1", fields, end: end + 4 };
  const body = readBody(bytes, head);
  if (body === "fault" || (body !== "cut" && body.hasTrailers === true)) return "chunks";
  if (body === "cut") return null;
  return { request: { method, target, fields, body: body.text }, length: body.end };
}

// --- what a client receives

export interface Answered {
  readonly status: number;
  readonly fields: readonly Field[];
  readonly body: string;
}

/** The next whole answer to a request of this method, the reason why it is none, or null where bytes are missing. */
export function takeAnswered(
  bytes: string,
  method: string,
): { readonly answer: Answered; readonly length: number } | string | null {
  const end = bytes.indexOf("\r\n\r\n");
  if (end === -1) return null;
  const [line = "", ...lines] = bytes.slice(0, end).split("\r\n");
  const status = Number(/^HTTP\/1\.1 (\d{3}) [\t -~]*$/.exec(line)?.[1] ?? 0);
  if (status < 100) return `status line ${JSON.stringify(line)}`;
  const fields: Field[] = [];
  for (const text of lines) {
    const field = readField(text);
    if (field === null) return `field ${JSON.stringify(text)}`;
    fields.push(field);
  }
  const lengths = valuesOf(fields, "content-length");
  const codings = valuesOf(fields, "transfer-encoding");
  if (lengths.length + codings.length > 1) return "two framings";
  const head: Head = { method, target: "", version: "1.1", fields, end: end + 4 };
  if (status < 200 || status === 204 || status === 304 || method === "HEAD") {
    return { answer: { status, fields, body: "" }, length: end + 4 };
  }
  if (lengths.length + codings.length === 0) return "no framing";
  const body = readBody(bytes, head);
  if (body === "fault") return "chunks";
  if (body === "cut") return null;
  return { answer: { status, fields, body: body.text }, length: body.end };
}
