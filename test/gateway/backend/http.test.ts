import { createServer as createHttp } from "node:http";
import { createServer as createTls } from "node:https";
import { execFileSync, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { connect } from "node:net";
import { createSecureContext } from "node:tls";
import { describe, expect, onTestFinished, test } from "vitest";
import { ForbiddenError } from "../../../gateway/backend/backend.ts";
import { createHttpBackend } from "../../../gateway/backend/http.ts";
import { headBytesMax } from "../../../gateway/backend/line.ts";
import { answerOf, startRawBackend } from "../../helpers/raw-backend.ts";
import { endWithUs, temporaryFolder } from "../../helpers/folder.ts";
import { startJournalBackend } from "../../helpers/journal-backend.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { AddressInfo, Socket } from "node:net";
import type { Backend, BackendRequest, Execution, RawHeaders, StreamSink } from "../../../gateway/backend/backend.ts";
import type { HttpBackendOptions } from "../../../gateway/backend/http.ts";
import type { RawBackend, RawScript } from "../../helpers/raw-backend.ts";

describe("what is sent", () => {
  test("a request arrives byte for byte: method, target, header case, order and duplicates, body", async () => {
    const { raw, backend } = await start({ onRequest: (_request, connection) => connection.send(answerOf("ok")) });
    await done(
      backend.execute(
        {
          ...post("{}"),
          target: "/a//b/%7e?x=\u00e9&y=1",
          headers: ["Host", "shop.example", "X-B", "1", "x-a", "z\u00fcrich", "X-B", "2", "Content-Length", "2"],
        },
        limits,
      ),
    );
    // undici writes Host and Connection first, and Content-Length last.
    expect(raw.requests).toEqual([
      "POST /a//b/%7e?x=\u00e9&y=1 HTTP/1.1\r\nhost: shop.example\r\nconnection: keep-alive\r\nX-B: 1\r\nx-a: z\u00fcrich\r\nX-B: 2\r\ncontent-length: 2\r\n\r\n{}",
    ]);
  });

  test.each(["GET", "PROPFIND", "PURGE", "QUERY", "TRACE", "DELETE", "MY-method_1"])(
    "%s is sent as it is, with a body",
    async (method) => {
      const { raw, backend } = await start({ onRequest: (_request, connection) => connection.send(answerOf("ok")) });
      const { answer } = await done(backend.execute({ ...post("body"), method }, limits));
      expect(answer.body.toString()).toBe("ok");
      expect(raw.requests[0]).toMatch(
        new RegExp(`^${method} /x HTTP/1.1\r\n.*\r\ncontent-length: 4\r\n\r\nbody$`, "s"),
      );
    },
  );

  test("a request without a body gets no framing, except the Content-Length: 0 of undici for methods that expect one", async () => {
    const { raw, backend } = await start({ onRequest: (_request, connection) => connection.send(answerOf("ok")) });
    for (const method of ["GET", "DELETE", "PURGE", "POST"]) await done(backend.execute({ ...get, method }, limits));
    expect(raw.requests.map((request) => /content-length: \d+/.exec(request)?.[0] ?? null)).toEqual([
      null,
      null,
      null,
      "content-length: 0",
    ]);
  });

  test("a body that is a stream is sent with its Content-Length, or chunked", async () => {
    const { raw, backend } = await start({ onRequest: (_request, connection) => connection.send(answerOf("ok")) });
    await done(backend.execute({ ...post("x"), body: chunksOf("ab", "cd"), headers: ["content-length", "4"] }, limits));
    await done(backend.execute({ ...post("x"), body: chunksOf("ab", "cd"), headers: [] }, limits));
    expect(raw.requests[0]).toMatch(/\r\ncontent-length: 4\r\n\r\nabcd$/);
    expect(raw.requests[1]).toMatch(/\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n$/);
  });

  test.each([
    ["CONNECT", { method: "CONNECT", target: "/x" }],
    ["an authority", { method: "CONNECT", target: "shop:80" }],
    ["an absolute target", { target: "http://other/x" }],
    ["the target *", { method: "OPTIONS", target: "*" }],
    ["Expect", { headers: ["Expect", "100-continue"] }],
    ["two Host fields", { headers: ["Host", "a", "host", "b"] }],
    ["a control character", { headers: ["X", "a\u0001"] }],
    ["Transfer-Encoding", { headers: ["Transfer-Encoding", "chunked"] }],
  ])("%s is never forwarded: not started, no byte sent", async (_name, part: Partial<BackendRequest>) => {
    const { raw, backend } = await start({});
    expect(await backend.execute({ ...get, ...part }, limits)).toMatchObject({ kind: "not-started" });
    expect(raw.connections.map(({ received }) => received).join("")).toBe("");
  });

  test("what may not be sent any more when its connection is there is not started, and nothing of it arrives", async () => {
    const { raw, backend } = await start({ onRequest: (_request, connection) => connection.send(answerOf("ok")) });
    let isMine = true;
    const waiting = backend.execute({ ...post("late"), mayStart: () => isMine }, limits);
    isMine = false;
    const execution = await waiting;
    expect(execution.kind === "not-started" && execution.cause).toBeInstanceOf(ForbiddenError);
    // The line is as good as before.
    await done(backend.execute({ ...post("next"), mayStart: () => true }, limits));
    expect(raw.requests).toHaveLength(1);
    expect(raw.requests[0]).toContain("next");
  });

  test("nothing is sent twice, on whatever error, for whatever method", async () => {
    for (const method of ["GET", "PUT", "DELETE", "POST"]) {
      const { raw, backend } = await start({ onRequest: (_request, connection) => connection.reset() });
      expect(await backend.execute({ ...get, method }, limits)).toMatchObject({ kind: "unknown", reason: "closed" });
      await waitFor(() => raw.connections.every(({ isClosed }) => isClosed), { what: "closed connections" });
      expect(raw.requests.length).toBe(1);
    }
  });

  test("no redirect is followed", async () => {
    const { raw, backend } = await start({
      onRequest: (_request, connection) => connection.send(answerOf("", "307 Temporary", "Location: /y\r\n")),
    });
    const { answer } = await done(backend.execute(post("x"), limits));
    expect([answer.status, answer.headers[1], raw.requests.length]).toEqual([307, "/y", 1]);
  });
});

describe("what comes back", () => {
  test("an answer comes through byte for byte: header case, order, duplicates, latin1, Set-Cookie lines, body", async () => {
    const body = Buffer.from([0, 255, 10, 13, 128]);
    const { backend } = await start({
      onRequest: (_request, connection) => {
        connection.send(
          "HTTP/1.1 201 Made\r\nSET-cookie: a=1; Path=/\r\nX-B: \u00e9\u00ff\r\nset-Cookie: b=2\r\nx-b: \r\nDATE: x\r\nContent-Length: 5\r\n\r\n",
        );
        connection.send(body);
      },
    });
    const { answer, tookMs } = await done(backend.execute(get, limits));
    expect(answer.status).toBe(201);
    expect(answer.headers).toEqual([
      "SET-cookie",
      "a=1; Path=/",
      "X-B",
      "\u00e9\u00ff",
      "set-Cookie",
      "b=2",
      "x-b",
      "",
      "DATE",
      "x",
      "Content-Length",
      "5",
    ]);
    expect(answer.body).toEqual(body);
    expect(answer.trailers).toEqual([]);
    expect(tookMs).toBeGreaterThan(0);
  });

  test("fields of one connection are stripped, also those that Connection names; others of the same family stay", async () => {
    const { backend } = await start({
      onRequest: (_request, connection) =>
        connection.send(
          answerOf(
            "ok",
            "200 OK",
            "Connection: X-Inner, keep-alive\r\nX-Inner: 1\r\nKeep-Alive: timeout=9\r\nProxy-Connection: x\r\nTE: x\r\n" +
              "Proxy-Authenticate: Basic\r\nProxy-Status: kept\r\nTrailer: X-T\r\nX-Kept: 1\r\n",
          ),
        ),
    });
    const { answer } = await done(backend.execute(get, limits));
    expect(answer.headers).toEqual(["Proxy-Status", "kept", "X-Kept", "1", "Content-Length", "2"]);
  });

  test("a chunked answer is put together, its trailers are kept and its framing is dropped", async () => {
    const { backend } = await start({
      onRequest: (_request, connection) =>
        connection.send(
          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n",
        ),
    });
    const { answer } = await done(backend.execute(get, limits));
    expect(answer).toEqual({
      status: 200,
      headers: ["Trailer", "X-Sum"],
      body: Buffer.from("abcde"),
      trailers: ["X-Sum", "5"],
    });
  });

  test("announced trailers that do not come are no longer announced", async () => {
    const { backend } = await start({
      onRequest: (_request, connection) =>
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n1\r\na\r\n0\r\n\r\n"),
    });
    expect((await done(backend.execute(get, limits))).answer.headers).toEqual([]);
  });

  test.each([
    ["GET", "304 Not Modified", "Content-Length: 5\r\nETag: x\r\n", ["Content-Length", "5", "ETag", "x"]],
    ["GET", "304 Not Modified", "", []],
    ["DELETE", "204 No Content", "Content-Length: 5\r\n", ["Content-Length", "5"]],
    ["HEAD", "200 OK", "Content-Length: 5\r\n", ["Content-Length", "5"]],
    ["HEAD", "200 OK", "Transfer-Encoding: chunked\r\n", []],
    ["HEAD", "200 OK", "", []],
  ])("%s answered with %s and %j has no body and is whole", async (method, status, headers, expected) => {
    const { backend } = await start({
      onRequest: (_request, connection) => connection.send(`HTTP/1.1 ${status}\r\n${headers}\r\n`),
    });
    const execution = await done(backend.execute({ ...get, method }, limits));
    expect(execution.answer).toEqual({
      status: Number(status.slice(0, 3)),
      headers: expected,
      body: Buffer.alloc(0),
      trailers: [],
    });
    expect(execution.isCloseDelimited).toBeUndefined();
    expect((await done(backend.execute({ ...get, method }, limits))).answer.status).toBe(Number(status.slice(0, 3)));
  });

  test("1xx heads other than 100 are passed over, but not without end", async () => {
    const { raw, backend } = await start({
      onRequest: (request, connection) => {
        const count = request.includes("/storm") ? 1000 : 2;
        connection.send("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(count) + answerOf("ok"));
      },
    });
    expect((await done(backend.execute(get, limits))).answer.body.toString()).toBe("ok");
    expect(await backend.execute({ ...get, target: "/storm" }, limits)).toMatchObject({
      kind: "unknown",
      reason: "closed",
    });
    await waitFor(() => raw.connections.every(({ isClosed }) => isClosed), { what: "the closed connection" });
  });

  test("an answer before the request's end counts, and the connection is closed", async () => {
    const { raw, backend } = await start({
      onData: (connection, bytes) => {
        if (bytes.startsWith("POST")) connection.send(answerOf("no", "413 Too Large"));
      },
    });
    const body = endlessAfter("first");
    const { answer } = await done(backend.execute({ ...post(""), body, headers: [] }, limits));
    expect(answer.status).toBe(413);
    await waitFor(() => raw.connections[0]?.isClosed, { what: "the closed connection" });
  });
});

describe("a close-delimited answer", () => {
  const head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n";

  test("that ends in order is done, and says that nothing proves it whole", async () => {
    const { backend } = await start({ onRequest: (_request, connection) => connection.end(`${head}hello`) });
    const execution = await done(backend.execute(get, limits));
    expect([execution.answer.body.toString(), execution.isCloseDelimited]).toEqual(["hello", true]);
  });

  test("that is reset is broken", async () => {
    const { raw, backend } = await start({ onRequest: (_request, connection) => connection.send(`${head}hel`) });
    const sink = new Sink();
    backend.stream(get, sink, streamLimits);
    await waitFor(() => sink.body === "hel", { what: "the first bytes" });
    raw.connections[0]?.reset();
    await waitFor(() => sink.failure, { what: "the failure" });
    expect(sink.hasEnded).toBe(false);

    const execution = backend.execute(get, { ...limits, answerBytesMax: 1000 });
    await waitFor(() => raw.requests.length === 2, { what: "the second request" });
    await new Promise((resolve) => setTimeout(resolve, 50)); // lets the bytes arrive before the reset drops them
    raw.connections[1]?.reset();
    expect(await execution).toMatchObject({ kind: "broken", status: 200 });
  });
});

describe("what is known when it goes wrong", () => {
  test("a refused connection is not started", async () => {
    const { raw, backend } = await start({});
    await raw.close();
    expect(await backend.execute(post("x"), limits)).toMatchObject({
      kind: "not-started",
      cause: { code: "ECONNREFUSED" },
    });
  });

  test("a connection that is not accepted in time is not started", async () => {
    // TLS to a server that never answers the handshake is a connect that hangs.
    const { raw, backend } = await start({}, { connectMs: 150, scheme: "https" });
    const startedMs = performance.now();
    expect(await backend.execute(post("x"), limits)).toMatchObject({
      kind: "not-started",
      cause: { name: "TimeoutError" },
    });
    expect(performance.now() - startedMs).toBeLessThan(2_000);
    expect(raw.requests).toEqual([]);
  });

  test("without a free connection in time it is not started, and is not sent when one becomes free", async () => {
    const { raw, backend } = await start({}, { connections: 1 });
    const first = backend.execute(post("1"), limits);
    await waitFor(() => raw.requests.length === 1, { what: "the first request" });
    expect(await backend.execute(post("2"), { ...limits, firstByteMs: 100 })).toMatchObject({ kind: "not-started" });
    raw.connections[0]?.send(answerOf("one"));
    expect((await done(first)).answer.body.toString()).toBe("one");
    const third = backend.execute(post("3"), limits);
    await waitFor(() => raw.requests.length === 2, { what: "the third request" });
    expect(raw.requests[1]).toMatch(/3$/);
    raw.connections[0]?.send(answerOf("three"));
    await done(third);
  });

  test("requests beyond the connections wait their turn, in order", async () => {
    const { raw, backend } = await start(
      { onRequest: (request, connection) => connection.send(answerOf(request.slice(-1))) },
      { connections: 2 },
    );
    const answers = await Promise.all(
      ["a", "b", "c", "d", "e", "f"].map((letter) => done(backend.execute(post(letter), limits))),
    );
    expect(answers.map(({ answer }) => answer.body.toString()).join("")).toBe("abcdef");
    expect(raw.requests.map((request) => request.slice(-1)).join("")).toBe("abcdef");
    expect(raw.connections.length).toBe(2);
  });

  test.each<[string, RawScript]>([
    ["as soon as it is accepted", { onConnection: (connection) => connection.reset() }],
    ["at the first byte of the request", { onData: (connection) => connection.reset() }],
    ["after the whole request", { onRequest: (_request, connection) => connection.reset() }],
    [
      "in the status line",
      { onRequest: (_request, connection) => connection.socket.write("HTTP/1.1 2", () => connection.reset()) },
    ],
  ])("a fresh connection reset %s: unknown, or certainly not started, never done", async (when, script) => {
    const { backend } = await start(script);
    const execution = await backend.execute(post("x"), limits);
    if (when.startsWith("as soon")) expect(["unknown", "not-started"]).toContain(execution.kind);
    else expect(execution).toMatchObject({ kind: "unknown", reason: "closed", late: null });
  });

  test("closed in order without an answer is unknown", async () => {
    const { backend } = await start({ onRequest: (_request, connection) => connection.end() });
    expect(await backend.execute(post("x"), limits)).toMatchObject({ kind: "unknown", reason: "closed" });
  });

  test("a kept connection that is reset as the next request is sent on it: unknown", async () => {
    const { raw, backend } = await start({
      onRequest: (_request, connection) =>
        connection.requests === 1 ? connection.send(answerOf("ok")) : connection.reset(),
    });
    await done(backend.execute(post("1"), limits));
    expect(await backend.execute(post("2"), limits)).toMatchObject({ kind: "unknown", reason: "closed" });
    expect(raw.connections.length).toBe(1);
  });

  test("a kept connection that was closed while idle is not used: the next request goes over a new one", async () => {
    const { raw, backend } = await start({ onRequest: (_request, connection) => connection.send(answerOf("ok")) });
    await done(backend.execute(post("1"), limits));
    raw.connections[0]?.end();
    await waitFor(() => raw.connections[0]?.isClosed, { what: "the closed connection" });
    await done(backend.execute(post("2"), limits));
    expect(raw.connections.length).toBe(2);
  });

  test.each<[string, string, "reset" | "end"]>([
    ["after the head", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "reset"],
    ["half-way in the body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "reset"],
    ["half-way in the body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "end"],
    ["half-way in the body, announced", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhel", "end"],
    ["half-way in a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "reset"],
    [
      "before the last chunk",
      "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
      "end",
    ],
  ])("an answer cut %s (%#) is broken, with its status", async (_when, bytes, how) => {
    const { backend } = await start({
      onRequest: (_request, connection) => {
        connection.send(bytes);
        setTimeout(() => (how === "end" ? connection.end() : connection.reset()), 30);
      },
    });
    expect(await backend.execute(post("x"), limits)).toMatchObject({ kind: "broken", status: 200 });
  });

  test.each<[string, string, { kind: string; status?: number }]>([
    ["no HTTP", "SSH-2.0-OpenSSH\r\n", { kind: "unknown" }],
    ["HTTP/0.9", "<html>hi</html>", { kind: "unknown" }],
    [
      "Content-Length and Transfer-Encoding",
      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      { kind: "broken", status: 0 },
    ],
    [
      "Transfer-Encoding and Content-Length",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
      { kind: "broken", status: 0 },
    ],
    [
      "two Content-Lengths",
      "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nhello",
      { kind: "broken", status: 0 },
    ],
    ["a signed Content-Length", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", { kind: "broken", status: 0 }],
    [
      "a NUL in a header field",
      "HTTP/1.1 200 OK\r\nX: a\u0000b\r\nContent-Length: 2\r\n\r\nok",
      { kind: "broken", status: 0 },
    ],
    ...(
      [
        ["a bare CR before another field", "X: a\rSet-Cookie: evil=1"],
        ["a bare LF before another field", "X: a\nSet-Cookie: evil=1"],
        ["a folded field", "X: a\r\n Set-Cookie: evil=1"],
        ["a space before a colon", "X : a"],
        ["a control character in a value", "Set-Cookie: a\u0001b"],
        ["a field without a name", ": a"],
      ] as const
    ).map(([what, line]): [string, string, { kind: string; status?: number }] => [
      what,
      `HTTP/1.1 200 OK\r\n${line}\r\nContent-Length: 2\r\n\r\nok`,
      { kind: "broken", status: 0 },
    ]),
    [
      "a bad chunk size",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
      { kind: "broken", status: 200 },
    ],
    [
      "an unknown transfer coding",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
      { kind: "broken", status: 200 },
    ],
    [
      "two transfer codings",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
      { kind: "broken", status: 200 },
    ],
    [
      "a giant head",
      `HTTP/1.1 200 OK\r\nX: ${"x".repeat(headBytesMax + 1)}\r\nContent-Length: 2\r\n\r\nok`,
      { kind: "broken", status: 0 },
    ],
    ["many header fields", `HTTP/1.1 200 OK\r\n${"A: b\r\n".repeat(headBytesMax)}`, { kind: "broken", status: 0 }],
    [
      "a switch of protocol",
      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
      { kind: "unknown" },
    ],
    // undici's own rule; the answer after it would be lost.
    ["100 unasked for", `HTTP/1.1 100 Continue\r\n\r\n${answerOf("ok")}`, { kind: "unknown" }],
  ])("an answer with %s is not one, and its connection is closed", async (_what, bytes, expected) => {
    const { raw, backend } = await start({ onRequest: (_request, connection) => connection.send(bytes) });
    expect(await backend.execute(post("x"), limits)).toMatchObject(expected);
    await waitFor(() => raw.connections.every(({ isClosed }) => isClosed), { what: "the closed connection" });
  });

  test("bytes after an answer never become the next one: the connection is closed", async () => {
    const { raw, backend } = await start({
      onRequest: (request, connection) =>
        connection.send(answerOf(request.slice(-1)) + (connection === raw.connections[0] ? answerOf("smuggled") : "")),
    });
    expect((await done(backend.execute(post("1"), limits))).answer.body.toString()).toBe("1");
    expect((await done(backend.execute(post("2"), limits))).answer.body.toString()).toBe("2");
    expect(raw.connections.length).toBe(2);
    expect(raw.connections[0]?.isClosed).toBe(true);
  });

  test("bytes on an idle connection close it, and never become an answer", async () => {
    const { raw, backend } = await start({
      onRequest: (request, connection) => connection.send(answerOf(request.slice(-1))),
    });
    await done(backend.execute(post("1"), limits));
    raw.connections[0]?.send(answerOf("stray"));
    await waitFor(() => raw.connections[0]?.isClosed, { what: "the closed connection" });
    expect((await done(backend.execute(post("2"), limits))).answer.body.toString()).toBe("2");
    expect(raw.connections.length).toBe(2);
  });

  test("an answer above the limit is broken, by its Content-Length or by what came, and is not collected", async () => {
    const { raw, backend } = await start({
      onRequest: (request, connection) =>
        connection.send(
          request.includes("/length")
            ? "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n"
            : "HTTP/1.1 201 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n",
        ),
    });
    const small = { ...limits, answerBytesMax: 10 };
    expect(await backend.execute({ ...get, target: "/length" }, small)).toMatchObject({ kind: "broken", status: 200 });
    expect(await backend.execute(get, small)).toMatchObject({ kind: "broken", status: 201 });
    await waitFor(() => raw.connections.every(({ isClosed }) => isClosed), { what: "closed connections" });
    await new Promise((resolve) => setTimeout(resolve, 100)); // undici would have connected again by now
    expect(raw.connections.length).toBe(2);
  });

  test("a HEAD may name any Content-Length", async () => {
    const { backend } = await start({
      onRequest: (_request, connection) => connection.send("HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n"),
    });
    await done(backend.execute({ ...get, method: "HEAD" }, { ...limits, answerBytesMax: 10 }));
  });

  test("a body that stops coming is broken after the idle time", async () => {
    const { backend } = await start(
      { onRequest: (_request, connection) => connection.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel") },
      { idleMs: 100 },
    );
    expect(await backend.execute(get, limits)).toMatchObject({
      kind: "broken",
      status: 200,
      cause: { name: "TimeoutError" },
    });
  });

  test("a request body whose source fails before its first byte is not started, later it is unknown, and never looks whole", async () => {
    const { raw, backend } = await start({ onRequest: (_request, connection) => connection.send(answerOf("ok")) });
    expect(await backend.execute({ ...post(""), headers: [], body: failingAfter() }, limits)).toMatchObject({
      kind: "not-started",
    });
    expect(await backend.execute({ ...post(""), headers: [], body: failingAfter("ab") }, limits)).toMatchObject({
      kind: "unknown",
    });
    await waitFor(() => raw.connections.every(({ isClosed }) => isClosed), { what: "closed connections" });
    expect(raw.requests).toEqual([]);
  });

  test("a request body that stops moving is cut after the idle time", async () => {
    const { raw, backend } = await start({}, { idleMs: 100 });
    const execution = await backend.execute({ ...post(""), headers: [], body: endlessAfter("ab") }, limits);
    expect(execution).toMatchObject({ kind: "unknown", reason: "closed" });
    await waitFor(() => raw.connections[0]?.isClosed, { what: "the closed connection" });
  });
});

describe("after a timeout of the first byte", () => {
  const soon = { ...limits, firstByteMs: 100 };

  test("the connection stays open and the late answer is given when it comes", async () => {
    const { raw, backend } = await start({});
    const execution = await backend.execute(post("x"), soon);
    if (execution.kind !== "unknown" || execution.late === null) throw new Error(execution.kind);
    expect(execution.reason).toBe("timeout");
    expect(await Promise.race([execution.late, new Promise((resolve) => setTimeout(resolve, 250, "pending"))])).toBe(
      "pending",
    );
    expect(raw.connections[0]?.isClosed).toBe(false);
    raw.connections[0]?.send(answerOf("late"));
    expect(await execution.late).toMatchObject({ kind: "done", answer: { status: 200, body: Buffer.from("late") } });
    await waitFor(async () => (await backend.execute(post("y"), soon)).kind === "unknown", { what: "another request" });
    expect(raw.connections.length).toBe(1);
  });

  test.each<[string, (raw: RawBackend) => void, Partial<Execution>]>([
    ["closes", (raw) => raw.connections[0]?.end(), { kind: "unknown", reason: "closed" }],
    ["resets", (raw) => raw.connections[0]?.reset(), { kind: "unknown", reason: "closed" }],
    [
      "answers with half a body",
      (raw) => raw.connections[0]?.end("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"),
      { kind: "broken", status: 200 },
    ],
  ])("late tells when the backend %s", async (_how, act, expected) => {
    const { raw, backend } = await start({});
    const execution = await backend.execute(post("x"), soon);
    if (execution.kind !== "unknown" || execution.late === null) throw new Error(execution.kind);
    act(raw);
    expect(await execution.late).toMatchObject(expected);
  });

  test("a late request keeps its place: the next one waits for another connection", async () => {
    const { backend } = await start({}, { connections: 1 });
    await backend.execute(post("x"), soon);
    expect(await backend.execute(post("y"), soon)).toMatchObject({ kind: "not-started" });
  });

  test("abandon gives the late ones up, closes idle connections, and leaves what is being answered", async () => {
    const { raw, backend } = await start({
      onRequest: (request, connection) => {
        if (request.endsWith("idle")) connection.send(answerOf("ok"));
      },
    });
    const idle = done(backend.execute(post("idle"), limits));
    const execution = await backend.execute(post("late"), soon);
    const running = backend.execute(post("running"), limits);
    await idle;
    await waitFor(() => raw.requests.length === 3, { what: "three requests" });
    await backend.abandon();
    if (execution.kind !== "unknown" || execution.late === null) throw new Error(execution.kind);
    expect(await execution.late).toMatchObject({ kind: "unknown", reason: "closed", late: null });
    const live = raw.connections.find(({ received }) => received.endsWith("running"));
    await waitFor(() => raw.connections.every((connection) => connection === live || connection.isClosed), {
      what: "closed connections",
    });
    expect(live?.isClosed).toBe(false);
    live?.send(answerOf("ran"));
    expect((await done(running)).answer.body.toString()).toBe("ran");
    await waitFor(() => live?.isClosed, { what: "the close of the old connection", timeoutMs: 2_000 });
    expect((await done(backend.execute(post("idle"), limits))).answer.body.toString()).toBe("ok");
  });

  test("close ends everything, in flight, late and waiting, and may be called twice", async () => {
    const { raw, backend } = await start({}, { connections: 2 });
    const late = await backend.execute(post("1"), soon);
    const running = backend.execute(post("2"), limits);
    const waiting = backend.execute(post("3"), limits);
    await waitFor(() => raw.requests.length === 2, { what: "two requests" });
    await Promise.all([backend.close(), backend.close()]);
    await backend.close();
    if (late.kind !== "unknown" || late.late === null) throw new Error(late.kind);
    expect(await late.late).toMatchObject({ kind: "unknown", reason: "closed" });
    expect(await running).toMatchObject({ kind: "unknown", reason: "closed" });
    expect(await waiting).toMatchObject({ kind: "not-started" });
    expect(await backend.execute(post("4"), limits)).toMatchObject({ kind: "not-started" });
    await backend.abandon();
  });

  test("a late answer whose body stops coming is broken after the idle time", async () => {
    const { raw, backend } = await start({}, { idleMs: 100 });
    const execution = await backend.execute(post("x"), soon);
    if (execution.kind !== "unknown" || execution.late === null) throw new Error(execution.kind);
    raw.connections[0]?.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe");
    expect(await execution.late).toMatchObject({ kind: "broken", status: 200, cause: { name: "TimeoutError" } });
  });

  test("an answer that waits in our own buffers while the process was stopped is no timeout", async () => {
    const other = await startJournalBackend();
    onTestFinished(() => other.close());
    const backend = open(other.url, {});
    await done(backend.execute({ ...get, target: "/c/a" }, limits));
    const execution = backend.execute({ ...get, target: "/c/a?answerDelay=100" }, { ...limits, firstByteMs: 300 });
    await new Promise((resolve) => setTimeout(resolve, 60)); // sent by now, and not answered
    await new Promise((resolve) => setImmediate(resolve)); // the phase of the loop after which timers come before sockets
    const untilMs = performance.now() + 600;
    while (performance.now() < untilMs); // the event loop stands still, as after SIGSTOP
    expect((await done(execution)).answer.status).toBe(200);
  });
});

describe("a kept connection", () => {
  test("is closed by us after keepAliveMs, or earlier when the backend's Keep-Alive says so", async () => {
    for (const [hint, keepAliveMs] of [
      ["", 200],
      ["Keep-Alive: timeout=1\r\n", 60_000],
    ] as const) {
      const { raw, backend } = await start(
        {
          onRequest: (_request, connection) =>
            connection.send(answerOf("ok", "200 OK", `Connection: keep-alive\r\n${hint}`)),
        },
        { keepAliveMs },
      );
      await done(backend.execute(post("x"), limits));
      await waitFor(() => raw.connections[0]?.isClosed, { what: `the close by us ${hint}`, timeoutMs: 3_000 });
    }
  });

  test("lives a second less than the backend says", async () => {
    const { raw, backend } = await start(
      {
        onRequest: (_request, connection) =>
          connection.send(answerOf("ok", "200 OK", "Connection: keep-alive\r\nKeep-Alive: timeout=2\r\n")),
      },
      { keepAliveMs: 60_000 },
    );
    await done(backend.execute(post("1"), limits));
    await done(backend.execute(post("2"), limits));
    expect(raw.connections.length).toBe(1);
    await waitFor(() => raw.connections[0]?.isClosed, { what: "the close by us", timeoutMs: 1_900 });
  });
});

describe("stream", () => {
  test("head, body and trailers pass through", async () => {
    const { backend } = await start({
      onRequest: (_request, connection) =>
        connection.send(
          "HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\nSet-Cookie: a\r\nset-cookie: b\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nab\r\n0\r\nX-T: 1\r\n\r\n",
        ),
    });
    const sink = await streamed(backend, get);
    expect([sink.status, sink.headers, sink.body, sink.trailers]).toEqual([
      200,
      ["Set-Cookie", "a", "set-cookie", "b", "Trailer", "X-T"],
      "ab",
      ["X-T", "1"],
    ]);
  });

  test.each([
    ["GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"],
    ["HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"],
  ])("a %s without a body ends", async (method, bytes) => {
    const { backend } = await start({ onRequest: (_request, connection) => connection.send(bytes) });
    const sink = await streamed(backend, { ...get, method });
    expect([sink.headers, sink.body]).toEqual([["Content-Length", "5"], ""]);
  });

  test("a sink that does not read stops the backend, and nothing is lost when it goes on", async () => {
    const sizeBytes = 64 * 1024 * 1024;
    let sentBytes = 0;
    const server = createHttp((_request, response) => {
      response.setHeader("content-length", sizeBytes);
      const chunk = Buffer.alloc(64 * 1024, "x");
      const more = (): void => {
        // Ends when all is written or the socket is full.
        while (sentBytes < sizeBytes) {
          sentBytes += chunk.length;
          if (!response.write(chunk)) {
            response.once("drain", more);
            return;
          }
        }
        response.end();
      };
      more();
    });
    const backend = await serve(server);
    let resume = ignore;
    let gotBytes = 0;
    let heldBytes = 0;
    const end = new Promise<void>((resolve, reject) => {
      backend.stream(
        get,
        {
          onDrain: (give) => {
            resume = give;
          },
          head: () => true,
          data: (chunk) => {
            gotBytes += chunk.length;
            heldBytes += chunk.length;
            return heldBytes < 1024 * 1024;
          },
          end: () => resolve(),
          fail: reject,
        },
        streamLimits,
      );
    });
    await waitFor(() => heldBytes >= 1024 * 1024, { what: "a full sink" });
    const before = { gotBytes, sentBytes };
    await new Promise((resolve) => setTimeout(resolve, 300)); // more would have come by now
    expect(gotBytes).toBe(before.gotBytes);
    expect(sentBytes).toBeLessThan(32 * 1024 * 1024);
    const memoryBytes = process.memoryUsage().arrayBuffers;
    let peakBytes = 0;
    const drain = setInterval(() => {
      heldBytes = 0;
      peakBytes = Math.max(peakBytes, process.memoryUsage().arrayBuffers - memoryBytes);
      resume();
    }, 1);
    await end;
    clearInterval(drain);
    expect(gotBytes).toBe(sizeBytes);
    expect(peakBytes).toBeLessThan(40 * 1024 * 1024);
  });

  test("a sink that resumes within its own data call loses no wake-up", async () => {
    const { backend } = await start({
      onRequest: (_request, connection) => connection.send(answerOf("x".repeat(300_000))),
    });
    let resume = ignore;
    const sink = new Sink(
      (give) => (resume = give),
      () => (resume(), false),
    );
    await streamed(backend, get, sink);
    expect(sink.body.length).toBe(300_000);
  });

  test("a large request body is pulled as the backend reads it", async () => {
    const { backend } = await start({ isDeaf: true });
    let pulled = 0;
    const body = (async function* () {
      for (let i = 0; i < 1024; i++) {
        pulled += 1;
        yield Buffer.alloc(64 * 1024);
      }
    })();
    const sink = new Sink();
    const handle = backend.stream({ ...post(""), headers: [], body }, sink, streamLimits);
    await waitFor(() => pulled > 1, { what: "the first chunks" });
    await waitFor(
      async () => {
        const before = pulled;
        await new Promise((resolve) => setTimeout(resolve, 200));
        return pulled === before;
      },
      { what: "the body to stop" },
    );
    expect(pulled).toBeLessThan(512);
    handle.abort(new Error("enough"));
    expect([sink.failure?.message, sink.isStarted]).toEqual(["enough", true]);
  });

  test("aborting closes the connection and fails the sink once", async () => {
    const { raw, backend } = await start({
      onRequest: (_request, connection) => connection.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"),
    });
    const sink = new Sink();
    const handle = backend.stream(get, sink, streamLimits);
    await waitFor(() => sink.body === "he", { what: "two bytes" });
    handle.abort(new Error("client gone"));
    expect([sink.failure?.message, sink.isStarted, sink.calls]).toEqual(["client gone", true, 1]);
    await waitFor(() => raw.connections[0]?.isClosed, { what: "the closed connection" });
  });

  test("aborting while it connects: not started, and not sent when the connection is there", async () => {
    const { raw, backend } = await start(
      { onRequest: (request, connection) => connection.send(answerOf(request.slice(-1))) },
      { connections: 1 },
    );
    const sink = new Sink();
    const handle = backend.stream(post("1"), sink, streamLimits);
    handle.abort(new Error("gone while connecting"));
    expect([sink.failure?.message, sink.isStarted]).toEqual(["gone while connecting", false]);
    expect((await done(backend.execute(post("2"), limits))).answer.body.toString()).toBe("2");
    expect([raw.requests.length, raw.connections.length]).toEqual([1, 1]);
  });

  test("a head that the sink refuses closes the connection", async () => {
    const { raw, backend } = await start({ onRequest: (_request, connection) => connection.send(answerOf("ok")) });
    const sink = new Sink(undefined, undefined, () => false);
    backend.stream(get, sink, streamLimits);
    await waitFor(() => raw.connections[0]?.isClosed, { what: "the closed connection" });
    expect([sink.calls, sink.body]).toEqual([1, ""]);
  });

  test.each<[string, string, boolean]>([
    ["no head", "", false],
    ["half a body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", true],
  ])("silence with %s fails the sink and closes the connection", async (_what, bytes, hasHead) => {
    const { raw, backend } = await start({ onRequest: (_request, connection) => connection.send(bytes) });
    const sink = new Sink();
    backend.stream(get, sink, { firstByteMs: 100, idleMs: 100 });
    await waitFor(() => sink.failure, { what: "the failure" });
    expect([sink.failure?.name, sink.isStarted, sink.status !== 0]).toEqual(["TimeoutError", true, hasHead]);
    await waitFor(() => raw.connections[0]?.isClosed, { what: "the closed connection" });
  });

  test("a refused connection fails the sink as not started", async () => {
    const { raw, backend } = await start({});
    await raw.close();
    const sink = new Sink();
    backend.stream(get, sink, streamLimits);
    await waitFor(() => sink.failure, { what: "the failure" });
    expect(sink.isStarted).toBe(false);
  });
});

describe("probe", () => {
  test("tells a listener from nobody, and sends nothing", async () => {
    const { raw, backend } = await start({});
    expect(await backend.probe(1_000)).toBe("reachable");
    await raw.close();
    expect(await backend.probe(1_000)).toBe("refused");
    expect(raw.connections.map(({ received }) => received)).toEqual([""]);
  });

  test("gives up in time when the listener accepts nobody", async () => {
    const full = await startFullListener();
    const backend = open(full, {});
    expect(await backend.probe(150)).toBe("timeout");
    expect(await open(full, { connectMs: 150 }).execute(post("x"), limits)).toMatchObject({ kind: "not-started" });
  });
});

describe("TLS", () => {
  test("the backend is checked by its own name, whatever Host says, and the connection is kept over different Hosts", async () => {
    const folder = temporaryFolder("tls");
    execFileSync(
      "openssl",
      // prettier-ignore
      ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2",
       "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
      { cwd: folder, stdio: "ignore" },
    );
    const [key, cert] = ["key.pem", "cert.pem"].map((file) => readFileSync(join(folder, file), "utf8")) as [
      string,
      string,
    ];
    const names: (string | false)[] = [];
    let connections = 0;
    const server = createTls(
      { key, cert, ca: cert, requestCert: true, SNICallback: (name, use) => (names.push(name), use(null)) },
      (request, response) => response.end(request.headers.host),
    );
    server.on("secureConnection", () => (connections += 1));
    await new Promise<void>((resolve) => server.listen(0, resolve));
    onTestFinished(() => void server.close());
    const { port } = server.address() as AddressInfo;
    for (const host of ["localhost", "127.0.0.1"]) {
      connections = 0;
      const backend = open(`https://${host}:${port}`, { tls: () => createSecureContext({ ca: cert, cert, key }) });
      for (const name of ["shop.example", "other.example"]) {
        const { answer } = await done(backend.execute({ ...get, headers: ["Host", name] }, limits));
        expect(answer.body.toString()).toBe(name);
      }
      expect(connections).toBe(1);
    }
    expect(names).toEqual(["localhost"]);
    const untrusting = open(`https://localhost:${port}`, {});
    expect(await untrusting.execute(get, limits)).toMatchObject({ kind: "not-started" });
  });
});

const ignore = (): void => {};
const limits = { firstByteMs: 10_000, answerBytesMax: 8 * 1024 * 1024 };
const streamLimits = { firstByteMs: 10_000, idleMs: 10_000 };
const get: BackendRequest = {
  method: "GET",
  target: "/x",
  headers: ["Host", "shop.example"],
  body: null,
  trailers: [],
};
const post = (body: string): BackendRequest => ({
  ...get,
  method: "POST",
  headers: ["Host", "shop.example", "Content-Length", String(body.length)],
  body: Buffer.from(body, "latin1"),
});

type Options = Partial<HttpBackendOptions> & { readonly scheme?: "http" | "https" };

function open(url: string, { scheme: _scheme, ...options }: Options): Backend {
  const backend = createHttpBackend({ url, connectMs: 5_000, idleMs: 10_000, connections: 8, ...options });
  onTestFinished(() => backend.close());
  return backend;
}

async function start(script: RawScript, options: Options = {}): Promise<{ raw: RawBackend; backend: Backend }> {
  const raw = await startRawBackend(script);
  onTestFinished(() => raw.close());
  return { raw, backend: open(raw.url.replace("http:", `${options.scheme ?? "http"}:`), options) };
}

async function serve(server: ReturnType<typeof createHttp>): Promise<Backend> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.close();
    server.closeAllConnections();
  });
  return open(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, {});
}

/** A listener in another, stopped process, its queue full: further connects hang. */
async function startFullListener(): Promise<string> {
  const child = spawn(
    process.execPath,
    [
      "-e",
      "const s = require('net').createServer(); s.listen({ port: 0, host: '127.0.0.1', backlog: 1 }, () => console.log(s.address().port))",
    ],
    { stdio: ["ignore", "pipe", "ignore"] },
  );
  const forget = endWithUs(child.pid ?? 0);
  onTestFinished(() => {
    child.kill("SIGKILL");
    forget();
  });
  const port = await new Promise<number>((resolve) => child.stdout.once("data", (line) => resolve(Number(line))));
  child.kill("SIGSTOP");
  const sockets: Socket[] = [];
  // Ends when a connect hangs: the queue holds a few.
  for (let isAccepted = true; isAccepted;) {
    const socket = connect(port, "127.0.0.1");
    sockets.push(socket);
    isAccepted = await new Promise<boolean>((resolve) => {
      socket.once("connect", () => resolve(true));
      setTimeout(() => resolve(false), 300);
    });
  }
  onTestFinished(() => sockets.forEach((socket) => socket.on("error", ignore).destroy()));
  return `http://127.0.0.1:${port}`;
}

async function done(execution: Promise<Execution>): Promise<Extract<Execution, { kind: "done" }>> {
  const settled = await execution;
  if (settled.kind !== "done") throw new Error(settled.kind, { cause: settled.cause });
  return settled;
}

async function streamed(backend: Backend, request: BackendRequest, sink = new Sink()): Promise<Sink> {
  backend.stream(request, sink, streamLimits);
  await waitFor(() => sink.calls > 0, { what: "the end" });
  if (sink.failure !== null) throw sink.failure;
  return sink;
}

class Sink implements StreamSink {
  status = 0;
  headers: RawHeaders = [];
  body = "";
  trailers: RawHeaders = [];
  failure: Error | null = null;
  isStarted: boolean | null = null;
  hasEnded = false;
  /** Of `end` and `fail`. */
  calls = 0;
  readonly onDrain: (resume: () => void) => void;
  readonly #data: () => boolean;
  readonly #head: () => boolean;

  constructor(
    onDrain: (resume: () => void) => void = () => {},
    data: () => boolean = () => true,
    head: () => boolean = () => true,
  ) {
    this.onDrain = onDrain;
    this.#data = data;
    this.#head = head;
  }

  head(status: number, headers: RawHeaders): boolean {
    this.status = status;
    this.headers = headers;
    return this.#head();
  }

  data(chunk: Buffer): boolean {
    this.body += chunk.toString("latin1");
    return this.#data();
  }

  end(trailers: RawHeaders): void {
    this.calls += 1;
    this.trailers = trailers;
    this.hasEnded = true;
  }

  fail(error: unknown, isStarted: boolean): void {
    this.calls += 1;
    this.failure = error as Error;
    this.isStarted = isStarted;
  }
}

async function* chunksOf(...chunks: string[]): AsyncGenerator<Buffer> {
  for (const chunk of chunks) yield await Promise.resolve(Buffer.from(chunk));
}

async function* failingAfter(...chunks: string[]): AsyncGenerator<Buffer> {
  yield* chunksOf(...chunks);
  throw new Error("the source failed");
}

async function* endlessAfter(...chunks: string[]): AsyncGenerator<Buffer> {
  yield* chunksOf(...chunks);
  await new Promise(() => {});
}
