// Exact bytes against the front: every malformed or ambiguous request gets its status, and nothing of it, nor anything behind it on the
// connection, reaches the service. `node` says what node:http 20.20 does by itself with the same bytes (measured).

import { readFileSync } from "node:fs";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { createHttpBackend } from "../../../gateway/backend/http.ts";
import { RawClient, ask } from "../../helpers/raw-client.ts";
import { answerOf, startRawBackend } from "../../helpers/raw-backend.ts";
import { echoSize, startFront } from "./front.harness.ts";
import type { Backend } from "../../../gateway/backend/backend.ts";
import type { RawBackend } from "../../helpers/raw-backend.ts";
import type { TestFront } from "./front.harness.ts";

const host = "Host: a\r\n";
const get = (fields: string, target = "/x", version = "HTTP/1.1", method = "GET"): string =>
  `${method} ${target} ${version}\r\n${fields}\r\n`;
const post = (fields: string, body = ""): string => `POST /x HTTP/1.1\r\n${host}${fields}\r\n${body}`;
const chunked = (body: string, fields = ""): string => post(`${fields}Transfer-Encoding: chunked\r\n`, body);
const webSocket = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
const padding = (count: number): string => Array.from({ length: count }, (_, i) => `X-${i}: 1\r\n`).join("");

type Row = readonly [name: string, node: number | "closes" | "waits", status: number, code: string, bytes: string];

const rows: readonly Row[] = [
  // Host
  ["two Host fields", 200, 400, "GW_BAD_HEADER", get("Host: a\r\nHost: b\r\n")],
  ["two equal Host fields", 200, 400, "GW_BAD_HEADER", get("Host: a\r\nHost: a\r\n")],
  ["two Host fields in different case", 200, 400, "GW_BAD_HEADER", get("Host: a\r\nHOST: b\r\n")],
  ["no Host in HTTP/1.1", 400, 400, "GW_BAD_HEADER", get("")],
  ["an empty Host", 200, 400, "GW_BAD_HEADER", get("Host:\r\n")],
  ["a list of Hosts", 200, 400, "GW_BAD_HEADER", get("Host: a, b\r\n")],
  ["a Host with a path", 200, 400, "GW_BAD_HEADER", get("Host: a/b\r\n")],
  ["a Host with a user", 200, 400, "GW_BAD_HEADER", get("Host: u@a\r\n")],
  ["a Host with a space", 200, 400, "GW_BAD_HEADER", get("Host: a b\r\n")],
  ["a Host with a bad port", 200, 400, "GW_BAD_HEADER", get("Host: a:80x\r\n")],
  ["a Host beyond ASCII", 200, 400, "GW_BAD_HEADER", get("Host: \xe4\r\n")],
  ["a bare IPv6 Host", 200, 400, "GW_BAD_HEADER", get("Host: ::1\r\n")],
  // Content-Length
  [
    "two different Content-Length",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd"),
  ],
  ["two equal Content-Length", 400, 400, "GW_BAD_REQUEST", post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc")],
  ["a list in Content-Length", 400, 400, "GW_BAD_REQUEST", post("Content-Length: 3, 3\r\n", "abc")],
  ["a plus in Content-Length", 400, 400, "GW_BAD_REQUEST", post("Content-Length: +3\r\n", "abc")],
  ["a minus in Content-Length", 400, 400, "GW_BAD_REQUEST", post("Content-Length: -3\r\n", "abc")],
  ["hex in Content-Length", 400, 400, "GW_BAD_REQUEST", post("Content-Length: 0x3\r\n", "abc")],
  ["an empty Content-Length", 400, 400, "GW_BAD_REQUEST", post("Content-Length: \r\n", "abc")],
  ["a space in Content-Length", 400, 400, "GW_BAD_REQUEST", post("Content-Length: 3 3\r\n", "abc")],
  ["a decimal Content-Length", 400, 400, "GW_BAD_REQUEST", post("Content-Length: 3.0\r\n", "abc")],
  [
    "a Content-Length beyond 64 bits",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Content-Length: 99999999999999999999999\r\n", "abc"),
  ],
  [
    "a Content-Length above limits.body",
    "waits",
    413,
    "GW_BODY_TOO_LARGE",
    post("Content-Length: 2000000000\r\n", "abc"),
  ],
  [
    "two Content-Length in HTTP/1.0",
    400,
    400,
    "GW_BAD_REQUEST",
    `POST /x HTTP/1.0\r\n${host}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd`,
  ],
  // Transfer-Encoding
  [
    "Content-Length, then Transfer-Encoding",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
  ],
  [
    "Transfer-Encoding, then Content-Length",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "0\r\n\r\n"),
  ],
  [
    "Transfer-Encoding: gzip, chunked",
    200,
    400,
    "GW_BAD_REQUEST",
    post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
  ],
  [
    "Transfer-Encoding: chunked, gzip",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"),
  ],
  [
    "Transfer-Encoding: chunked, chunked",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
  ],
  [
    "two Transfer-Encoding fields",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
  ],
  ["Transfer-Encoding: identity", 400, 400, "GW_BAD_REQUEST", post("Transfer-Encoding: identity\r\n")],
  [
    "Transfer-Encoding: identity with Content-Length",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Transfer-Encoding: identity\r\nContent-Length: 3\r\n", "abc"),
  ],
  ["Transfer-Encoding: gzip", 400, 400, "GW_BAD_REQUEST", post("Transfer-Encoding: gzip\r\n", "abc")],
  ["Transfer-Encoding: xchunked", 400, 400, "GW_BAD_REQUEST", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")],
  ["Transfer-Encoding in quotes", 400, 400, "GW_BAD_REQUEST", post('Transfer-Encoding: "chunked"\r\n', "0\r\n\r\n")],
  [
    "Transfer-Encoding with a parameter",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"),
  ],
  [
    "Transfer-Encoding behind a vertical tab",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
  ],
  [
    "Transfer-Encoding with a trailing comma",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Transfer-Encoding: chunked,\r\n", "0\r\n\r\n"),
  ],
  // Node hands this one to its handler as a request without a body, and only then finds the chunks.
  ["an empty Transfer-Encoding", 400, 400, "GW_BAD_REQUEST", post("Transfer-Encoding: \r\n", "0\r\n\r\n")],
  ["a folded Transfer-Encoding", 400, 400, "GW_BAD_REQUEST", post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n")],
  [
    "Transfer-Encoding before a spaced colon",
    400,
    400,
    "GW_BAD_REQUEST",
    post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
  ],
  [
    "Transfer-Encoding in HTTP/1.0",
    200,
    400,
    "GW_BAD_REQUEST",
    `POST /x HTTP/1.0\r\n${host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
  ],
  // Versions
  ["HTTP/0.9", 200, 400, "GW_BAD_REQUEST", "GET /x\r\n\r\n"],
  ["HTTP/0.9, written out", 200, 400, "GW_BAD_REQUEST", get(host, "/x", "HTTP/0.9")],
  ["HTTP/2.0 on a request line", 200, 400, "GW_BAD_REQUEST", get(host, "/x", "HTTP/2.0")],
  ["the HTTP/2 preface", 400, 400, "GW_BAD_REQUEST", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
  ["HTTP/1.2", 400, 400, "GW_BAD_REQUEST", get(host, "/x", "HTTP/1.2")],
  ["HTTP/1.01", 400, 400, "GW_BAD_REQUEST", get(host, "/x", "HTTP/1.01")],
  ["HTTP/11", 400, 400, "GW_BAD_REQUEST", get(host, "/x", "HTTP/11")],
  ["http/1.1 in lower case", 400, 400, "GW_BAD_REQUEST", get(host, "/x", "http/1.1")],
  ["HTTP/3.0", 400, 400, "GW_BAD_REQUEST", get(host, "/x", "HTTP/3.0")],
  ["a space where the version should be", 400, 400, "GW_BAD_REQUEST", "GET /x \r\nHost: a\r\n\r\n"],
  // Methods and targets (the fixture has the rest)
  ["CONNECT", "closes", 501, "GW_METHOD_NOT_SUPPORTED", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"],
  ["CONNECT with a path", "closes", 501, "GW_METHOD_NOT_SUPPORTED", get(host, "/x", "HTTP/1.1", "CONNECT")],
  ["absolute form", 200, 400, "GW_BAD_TARGET", get(host, "http://a/x")],
  ["absolute form of another host", 200, 400, "GW_BAD_TARGET", get(host, "http://b/x")],
  ["authority form", 400, 400, "GW_BAD_REQUEST", get(host, "a:80")],
  ["OPTIONS *", 200, 501, "GW_METHOD_NOT_SUPPORTED", get(host, "*", "HTTP/1.1", "OPTIONS")],
  ["GET *", 200, 400, "GW_BAD_TARGET", get(host, "*")],
  ["an empty target", 400, 400, "GW_BAD_REQUEST", get(host, "")],
  ["a target above 16 KiB", 431, 400, "GW_BAD_TARGET", get(host, `/${"a".repeat(20_000)}`)],
  ["a target above the header limit", 431, 431, "GW_HEADERS_TOO_LARGE", get(host, `/${"a".repeat(70_000)}`)],
  ["a method that Node does not know", 400, 501, "GW_METHOD_NOT_SUPPORTED", get(host, "/x", "HTTP/1.1", "FOO")],
  ["a method in lower case", 400, 501, "GW_METHOD_NOT_SUPPORTED", get(host, "/x", "HTTP/1.1", "get")],
  ["a method that is no token", 400, 400, "GW_BAD_REQUEST", get(host, "/x", "HTTP/1.1", "GE(T")],
  ["tabs in the request line", 400, 400, "GW_BAD_REQUEST", "GET\t/x\tHTTP/1.1\r\nHost: a\r\n\r\n"],
  ["a space behind the version", 400, 400, "GW_BAD_REQUEST", get(host, "/x", "HTTP/1.1 ")],
  ["a space before the method", 400, 400, "GW_BAD_REQUEST", ` ${get(host)}`],
  // Upgrades
  [
    "an upgrade to h2c",
    200,
    400,
    "GW_UPGRADE_REFUSED",
    get(`${host}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n`),
  ],
  ["an upgrade to TLS", 200, 400, "GW_UPGRADE_REFUSED", get(`${host}Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n`)],
  [
    "an upgrade to one of two",
    200,
    400,
    "GW_UPGRADE_REFUSED",
    get(`${host}Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n${webSocket}`),
  ],
  [
    "an upgrade without a rule",
    200,
    400,
    "GW_UPGRADE_REFUSED",
    get(`${host}Connection: Upgrade\r\nUpgrade: websocket\r\n${webSocket}`),
  ],
  [
    "an upgrade with two Hosts",
    200,
    400,
    "GW_BAD_HEADER",
    get(`${host}Host: b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n${webSocket}`),
  ],
  [
    "an upgrade to a bad target",
    200,
    400,
    "GW_BAD_TARGET",
    get(`${host}Connection: Upgrade\r\nUpgrade: websocket\r\n${webSocket}`, "/a/../b"),
  ],
  [
    "an upgrade by POST, with a body",
    200,
    400,
    "GW_UPGRADE_REFUSED",
    post(`Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n${webSocket}`, "abc"),
  ],
  [
    "an upgrade by GET, with a body",
    200,
    400,
    "GW_UPGRADE_REFUSED",
    get(`${host}Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n${webSocket}`),
  ],
  [
    "an upgrade in HTTP/1.0",
    200,
    400,
    "GW_UPGRADE_REFUSED",
    get(`${host}Connection: upgrade\r\nUpgrade: websocket\r\n${webSocket}`, "/x", "HTTP/1.0"),
  ],
  [
    "an upgrade without a key",
    200,
    400,
    "GW_UPGRADE_REFUSED",
    get(`${host}Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n`),
  ],
  [
    "an upgrade with an old version",
    200,
    400,
    "GW_UPGRADE_REFUSED",
    get(`${host}Connection: upgrade\r\nUpgrade: websocket\r\n${webSocket.replace("13", "7")}`),
  ],
  // Connection
  [
    "Connection naming authorization",
    200,
    400,
    "GW_BAD_HEADER",
    get(`${host}Connection: authorization\r\nAuthorization: x\r\n`),
  ],
  ["Connection naming cookie among others", 200, 400, "GW_BAD_HEADER", get(`${host}Connection: close, Cookie\r\n`)],
  [
    "Connection naming content-length",
    200,
    400,
    "GW_BAD_HEADER",
    post("Connection: content-length\r\nContent-Length: 3\r\n", "abc"),
  ],
  ["Connection naming host", 200, 400, "GW_BAD_HEADER", get(`${host}Connection: host\r\n`)],
  [
    "Connection naming idempotency-key",
    200,
    400,
    "GW_BAD_HEADER",
    post("Connection: Idempotency-Key\r\nContent-Length: 3\r\n", "abc"),
  ],
  [
    "Connection naming transfer-encoding",
    200,
    400,
    "GW_BAD_HEADER",
    chunked("0\r\n\r\n", "Connection: transfer-encoding\r\n"),
  ],
  ["Connection naming a Replication field", 200, 400, "GW_BAD_HEADER", get(`${host}Connection: Replication-Seed\r\n`)],
  [
    "Connection naming x-forwarded-for, in a second field",
    200,
    400,
    "GW_BAD_HEADER",
    get(`${host}Connection: close\r\nConnection: X-Forwarded-For\r\n`),
  ],
  ["Connection with something else than names", 200, 400, "GW_BAD_HEADER", get(`${host}Connection: "x y"\r\n`)],
  // Expect
  ["an unknown expectation", 417, 417, "GW_EXPECTATION_FAILED", post("Expect: 200-ok\r\nContent-Length: 3\r\n", "abc")],
  [
    "100-continue and another expectation",
    100,
    417,
    "GW_EXPECTATION_FAILED",
    post("Expect: 100-continue, foo\r\nContent-Length: 3\r\n", "abc"),
  ],
  [
    "100-continue twice",
    100,
    417,
    "GW_EXPECTATION_FAILED",
    post("Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 3\r\n", "abc"),
  ],
  ["an empty expectation", 417, 417, "GW_EXPECTATION_FAILED", post("Expect: \r\nContent-Length: 3\r\n", "abc")],
  [
    "an unknown expectation in HTTP/1.0",
    200,
    417,
    "GW_EXPECTATION_FAILED",
    `POST /x HTTP/1.0\r\n${host}Expect: foo\r\nContent-Length: 3\r\n\r\nabc`,
  ],
  // Fields
  ["a space in a field's name", 400, 400, "GW_BAD_REQUEST", get(`${host}X Y: 1\r\n`)],
  ["a space before the colon", 400, 400, "GW_BAD_REQUEST", get(`${host}X-Y : 1\r\n`)],
  ["an empty field name", 400, 400, "GW_BAD_REQUEST", get(`${host}: 1\r\n`)],
  ["a field without a colon", 400, 400, "GW_BAD_REQUEST", get(`${host}X-Y\r\n`)],
  ["a first field that begins with a space", 400, 400, "GW_BAD_REQUEST", "GET /x HTTP/1.1\r\n Host: a\r\n\r\n"],
  ["a folded field", 400, 400, "GW_BAD_REQUEST", get(`${host}X-Y: 1\r\n 2\r\n`)],
  ["bare LF throughout", 400, 400, "GW_BAD_REQUEST", "GET /x HTTP/1.1\nHost: a\n\n"],
  ["a bare LF between fields", 400, 400, "GW_BAD_REQUEST", "GET /x HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"],
  ["a bare CR in a value", 400, 400, "GW_BAD_REQUEST", get(`${host}X-Y: 1\r2\r\n`)],
  ["bare CR throughout", 400, 400, "GW_BAD_REQUEST", "GET /x HTTP/1.1\rHost: a\r\r"],
  ["NUL in a value", 400, 400, "GW_BAD_REQUEST", get(`${host}X-Y: 1\x002\r\n`)],
  ["a control character in a value", 400, 400, "GW_BAD_REQUEST", get(`${host}X-Y: 1\x012\r\n`)],
  ["DEL in a value", 400, 400, "GW_BAD_REQUEST", get(`${host}X-Y: 1\x7f2\r\n`)],
  ["NUL in a name", 400, 400, "GW_BAD_REQUEST", get(`${host}X\0Y: 1\r\n`)],
  ["a name beyond ASCII", 400, 400, "GW_BAD_REQUEST", get(`${host}X\xe4: 1\r\n`)],
  [
    "authorization behind 1,100 fields",
    200,
    431,
    "GW_HEADERS_TOO_LARGE",
    get(`${host}${padding(1100)}Authorization: secret\r\n`),
  ],
  ["one field too many", 200, 431, "GW_HEADERS_TOO_LARGE", get(`${host}${padding(256)}`)],
  ["a field above the header limit", 431, 431, "GW_HEADERS_TOO_LARGE", get(`${host}X-Big: ${"a".repeat(70_000)}\r\n`)],
  // Chunks
  ["a chunk size that is no number", 400, 400, "GW_BAD_REQUEST", chunked("zz\r\nabc\r\n0\r\n\r\n")],
  ["a chunk size with 0x", 400, 400, "GW_BAD_REQUEST", chunked("0x3\r\nabc\r\n0\r\n\r\n")],
  ["a negative chunk size", 400, 400, "GW_BAD_REQUEST", chunked("-3\r\nabc\r\n0\r\n\r\n")],
  ["a chunk size with a plus", 400, 400, "GW_BAD_REQUEST", chunked("+3\r\nabc\r\n0\r\n\r\n")],
  ["a chunk size with a space", 400, 400, "GW_BAD_REQUEST", chunked("3 \r\nabc\r\n0\r\n\r\n")],
  ["a chunk size beyond 64 bits", 400, 400, "GW_BAD_REQUEST", chunked("fffffffffffffffff\r\nabc\r\n0\r\n\r\n")],
  ["a chunk longer than it says", 400, 400, "GW_BAD_REQUEST", chunked("2\r\nabc\r\n0\r\n\r\n")],
  ["chunks with bare LF", 400, 400, "GW_BAD_REQUEST", chunked("3\nabc\n0\n\n")],
  ["a chunk with a bare CR", 400, 400, "GW_BAD_REQUEST", chunked("3\rabc\r\n0\r\n\r\n")],
  ["a chunk extension with a bare LF", 400, 400, "GW_BAD_REQUEST", chunked("3;a\nabc\r\n0\r\n\r\n")],
  ["a chunk extension with a control character", 400, 400, "GW_BAD_REQUEST", chunked("3;a\x01b\r\nabc\r\n0\r\n\r\n")],
  ["a chunk extension of 20 KB", 413, 400, "GW_BAD_REQUEST", chunked(`3;${"a".repeat(20_000)}\r\nabc\r\n0\r\n\r\n`)],
  ["trailers, announced", 200, 400, "GW_BAD_HEADER", chunked("3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n", "Trailer: X-T\r\n")],
  ["trailers, not announced", 200, 400, "GW_BAD_HEADER", chunked("3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n")],
  ["Content-Length as a trailer", 400, 400, "GW_BAD_REQUEST", chunked("3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n")],
  ["a malformed trailer", 400, 400, "GW_BAD_REQUEST", chunked("3\r\nabc\r\n0\r\nX T: 1\r\n\r\n")],
  // Nothing like HTTP
  ["a TLS hello", 400, 400, "GW_BAD_REQUEST", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
  ["garbage", 400, 400, "GW_BAD_REQUEST", "hello\r\n\r\n"],
];

describe("what is malformed or ambiguous is refused", () => {
  let front: TestFront;
  beforeAll(async () => {
    front = await startFront(echoSize);
  });
  afterAll(() => front.close());
  beforeEach(() => {
    front.facts.length = 0;
    front.seen.length = 0;
  });

  test("the table has at least 60 rows, each of its own name", () => {
    expect(new Set(rows.map(([name]) => name)).size).toBe(rows.length);
    expect(rows.length).toBeGreaterThanOrEqual(60);
  });

  for (const [name, , status, code, bytes] of rows) {
    test(`${name}: ${status} ${code}, and what follows on the connection is not executed`, async () => {
      const client = await front.send(`${bytes}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n`);
      const answer = await client.answer();
      expect([answer.status, (JSON.parse(answer.body) as { code: string }).code]).toEqual([status, code]);
      expect(answer.field("content-type")).toBe("application/problem+json");
      const fact = await front.fact();
      expect(fact).toMatchObject({ type: "request", status, code });
      // A target says nothing of the framing: that connection goes on, and the next request is a request.
      const goesOn = code === "GW_BAD_TARGET" && answer.field("connection") !== "close";
      if (goesOn) expect((await client.answer()).status).toBe(200);
      else {
        await client.ended();
        expect(client.unread).toBe("");
      }
      for (const exchange of front.seen) {
        if (goesOn) expect(exchange.target.target).toBe("/smuggled");
        else await expect(exchange.body.collect(Infinity)).rejects.toMatchObject({ code });
      }
    });
  }
});

describe("the same bytes, one at a time", () => {
  let front: TestFront;
  beforeAll(async () => {
    front = await startFront(echoSize);
  });
  afterAll(() => front.close());
  for (const [name, , , code, bytes] of rows) {
    if (bytes.length > 1000) continue;
    test(`${name} is refused, and what follows is not executed`, async () => {
      front.seen.length = 0;
      const client = await front.connect();
      const all = `${bytes}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n`;
      for (const byte of all) {
        if (client.isEnded) break;
        client.send(byte);
        await new Promise((resolve) => setImmediate(resolve));
      }
      const answer = await client.answer();
      expect(answer.status).toBeGreaterThanOrEqual(400);
      if (code !== "GW_BAD_TARGET") {
        await client.ended();
        expect(client.unread).toBe("");
        for (const exchange of front.seen) await expect(exchange.body.collect(Infinity)).rejects.toBeDefined();
      }
    });
  }
});

describe("what looks odd and has one reading is served", () => {
  let front: TestFront;
  beforeAll(async () => {
    front = await startFront(echoSize);
  });
  afterAll(() => front.close());
  const served: readonly (readonly [name: string, body: string, bytes: string])[] = [
    ["empty lines before the request", "0", `\r\n\r\n${get(host)}`],
    ["Chunked in upper case", "3", post("Transfer-Encoding: CHUNKED\r\n", "3\r\nabc\r\n0\r\n\r\n")],
    ["a tab before a value", "3", post("Content-Length:\t3\r\n", "abc")],
    ["a chunk extension", "3", chunked("3;a=b\r\nabc\r\n0\r\n\r\n")],
    ["leading zeros in a chunk size", "3", chunked("0003\r\nabc\r\n000\r\n\r\n")],
    ["GET with a body", "3", `GET /x HTTP/1.1\r\n${host}Content-Length: 3\r\n\r\nabc`],
    ["an underscore in a name", "3", post("Content_Length: 9\r\nContent-Length: 3\r\n", "abc")],
    ["Upgrade that Connection does not name", "0", get(`${host}Upgrade: websocket\r\n`)],
    ["HTTP/1.0 without a Host", "0", get("", "/x", "HTTP/1.0")],
    ["255 fields", "0", get(`${host}${padding(255)}`)],
    ["a Host with a port", "0", get("Host: a.example:8080\r\n")],
    ["a Host in brackets", "0", get("Host: [::1]:8080\r\n")],
    ["PROPFIND", "0", get(host, "/x", "HTTP/1.1", "PROPFIND")],
    ["PURGE", "0", get(host, "/x", "HTTP/1.1", "PURGE")],
    ["TRACE", "0", get(host, "/x", "HTTP/1.1", "TRACE")],
    ["QUERY with a body", "3", `QUERY /x HTTP/1.1\r\n${host}Content-Length: 3\r\n\r\nabc`],
    ["OPTIONS with a path", "0", get(host, "/x", "HTTP/1.1", "OPTIONS")],
    ["fields beyond ASCII in a value", "0", get(`${host}X-Name: \xe4\xf6\r\n`)],
  ];
  for (const [name, body, bytes] of served) {
    test(name, async () => {
      const answer = await ask(front.port, bytes);
      expect([answer.status, answer.body]).toEqual([200, body]);
    });
  }

  test("an authorization field behind 1,100 others arrives when the limits allow it", async () => {
    const wide = await startFront(echoSize, { limits: { headersCount: 2000 } });
    try {
      const answer = await ask(wide.port, get(`${host}${padding(1100)}Authorization: secret\r\n`));
      expect(answer.status).toBe(200);
      const { headers } = wide.seen[0]!;
      expect(headers[headers.indexOf("Authorization") + 1]).toBe("secret");
      expect(headers.filter((name) => /^X-\d+$/.test(name))).toHaveLength(1100);
    } finally {
      await wide.close();
    }
  });
});

interface Target {
  readonly target: string;
  readonly expect: string | 400;
  readonly method?: string;
  readonly note: string;
}

describe("the fixture of targets, over the wire", () => {
  const targets = JSON.parse(
    readFileSync(new URL("../../fixtures/targets.json", import.meta.url), "utf8"),
  ) as readonly Target[];
  let raw: RawBackend;
  let backend: Backend;
  let front: TestFront;
  beforeAll(async () => {
    raw = await startRawBackend({ onRequest: (_request, connection) => connection.send(answerOf("ok")) });
    backend = createHttpBackend({ url: raw.url, connectMs: 2000, idleMs: 10_000, connections: 4 });
    front = await startFront(async (exchange) => {
      const body = await exchange.body.collect(Infinity);
      const request = {
        method: exchange.head.method,
        target: exchange.target.target,
        headers: exchange.headers,
        body: exchange.body.sizeBytes === 0 ? null : body,
        trailers: [],
      };
      const execution = await backend.execute(request, { firstByteMs: 5000, answerBytesMax: 1e6 });
      if (execution.kind === "done") exchange.reply.answer(execution.answer, []);
    });
  });
  afterAll(async () => {
    await front.close();
    await backend.close();
    await raw.close();
  });
  let before = 0;
  beforeEach(() => {
    before = raw.requests.length;
  });

  test("has at least 80 rows", () => {
    expect(targets.length).toBeGreaterThanOrEqual(80);
  });

  for (const row of targets) {
    const method = row.method ?? "GET";
    test(`${method} ${JSON.stringify(row.target)} → ${row.expect} (${row.note})`, async () => {
      const answer = await ask(front.port, `${method} ${row.target} HTTP/1.1\r\nHost: a\r\n\r\n`, method);
      if (row.expect === 400) {
        expect(answer.status).toBe(400);
        expect(raw.requests.length).toBe(before);
      } else {
        expect(answer.status).toBe(200);
        expect(raw.requests.slice(before).map((request) => request.split("\r\n", 1)[0])).toEqual([
          `${method} ${row.expect} HTTP/1.1`,
        ]);
      }
    });
  }
});

describe("connections that break", () => {
  let front: TestFront;
  afterEach(() => front.close());

  test("a client that leaves within a head is told 400 if it still listens", async () => {
    front = await startFront(echoSize);
    const client = await front.send("GET /x HTTP/1.1\r\nHost");
    client.socket.end();
    const answer = await client.answer();
    expect(answer.status).toBe(400);
    expect(front.seen).toHaveLength(0);
  });

  test("a connection that never sends anything is closed without an answer", async () => {
    front = await startFront(echoSize, { timeouts: { headersMs: 200 } });
    const client = await front.connect();
    await client.ended();
    expect(client.received).toBe("");
    expect(front.facts).toHaveLength(0);
  });

  test("a refusal is not lost to what is still being sent behind it", async () => {
    front = await startFront(echoSize);
    const head = `PUT /x HTTP/1.1\r\nContent-Length: 9\r\n${host}${host}\r\nsome body`;
    const rest = `GET /y HTTP/1.1\r\n${host}X-Cr: a\rb\r\nX-Big: ${"b".repeat(70_000)}\r\n\r\n`;
    for (let i = 0; i < 200; i++) {
      const client = await front.connect();
      client.send(head);
      await new Promise((resolve) => setImmediate(resolve));
      client.send(rest.slice(0, 68_000));
      await new Promise((resolve) => setImmediate(resolve));
      client.send(rest.slice(68_000));
      expect((await client.answer()).status).toBe(400);
      client.close();
    }
  });

  test("a reset within a head is nobody's request", async () => {
    front = await startFront(echoSize);
    const client = await RawClient.connect({ port: front.port });
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n");
    client.socket.resetAndDestroy();
    expect((await ask(front.port, get(host))).status).toBe(200);
    expect(front.seen).toHaveLength(1);
  });
});
