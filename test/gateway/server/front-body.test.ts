// Bodies in both directions: whole and streamed, with backpressure, cut, late, too large, and slow.

import { afterEach, describe, expect, test } from "vitest";
import { GatewayError } from "../../../gateway/errors.ts";
import { ask } from "../../helpers/raw-client.ts";
import { waitFor } from "../../helpers/wait.ts";
import { echoSize, gate, pour, startFront, text, untilStill } from "./front.harness.ts";
import type { StreamSink } from "../../../gateway/backend/backend.ts";
import type { RawHeaders } from "../../../gateway/entry.ts";
import type { RawClient } from "../../helpers/raw-client.ts";
import type { Handle, Settings, TestFront } from "./front.harness.ts";

let front: TestFront;
afterEach(() => front.close());

const open = async (handle: Handle, settings: Settings = {}): Promise<TestFront> => {
  front = await startFront(handle, settings);
  return front;
};
const get = (fields = "", target = "/x"): string => `GET ${target} HTTP/1.1\r\nHost: a\r\n${fields}\r\n`;
const chunkedHead = (fields = ""): string =>
  `POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n${fields}\r\n`;
const sizedHead = (size: number, fields = ""): string =>
  `POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: ${size}\r\n${fields}\r\n`;
const mib = 1024 * 1024;
const codeOf = (body: string): string => (JSON.parse(body) as { code: string }).code;

describe("bodies of requests", () => {
  test("are collected whole, in pieces or not, and are bytes", async () => {
    const bytes = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
    await open(async (exchange) => {
      const body = await exchange.body.collect(1000);
      exchange.reply.answer({ ...text(""), body: body! }, []);
    });
    const client = await front.send(sizedHead(256));
    client.send(bytes.subarray(0, 100));
    await waitFor(() => client.socket.writableLength === 0, { what: "the first piece to be out" });
    client.send(bytes.subarray(100));
    expect(Buffer.from((await client.answer()).body, "latin1").equals(bytes)).toBe(true);
    client.send(`${chunkedHead()}3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n`);
    expect((await client.answer()).body).toBe("abcde");
    client.send(sizedHead(0));
    expect((await client.answer()).body).toBe("");
    client.send(`${chunkedHead()}0\r\n\r\n`);
    expect((await client.answer()).body).toBe("");
  });

  test("collect gives null for a larger body, and the stream then yields all of it", async () => {
    for (const isChunked of [false, true]) {
      await open(async (exchange) => {
        const whole = await exchange.body.collect(1000);
        const pieces: Buffer[] = [];
        for await (const piece of exchange.body.stream()) pieces.push(piece);
        exchange.reply.answer(text(`${whole === null} ${Buffer.concat(pieces).equals(Buffer.alloc(mib, "x"))}`), []);
      });
      const body = "x".repeat(mib);
      const client = await front.send(
        isChunked ? `${chunkedHead()}${mib.toString(16)}\r\n${body}\r\n0\r\n\r\n` : sizedHead(mib) + body,
      );
      expect((await client.answer()).body).toBe("true true");
      await front.close();
    }
    await open(echoSize);
  });

  test("a small body can be collected and streamed", async () => {
    await open(async (exchange) => {
      const whole = await exchange.body.collect(1000);
      const pieces: Buffer[] = [];
      for await (const piece of exchange.body.stream()) pieces.push(piece);
      exchange.reply.answer(text(`${whole!.toString()} ${Buffer.concat(pieces).toString()}`), []);
    });
    expect((await ask(front.port, `${chunkedHead()}3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n`)).body).toBe("abcdef abcdef");
  });

  test("an upload that nobody reads stops at the client, and goes on when somebody does", async () => {
    const size = 48 * mib;
    const held = gate();
    await open(async (exchange) => {
      let bytes = 0;
      for await (const piece of exchange.body.stream()) {
        bytes += piece.length;
        if (bytes > mib) await held.opened;
      }
      exchange.reply.answer(text(String(bytes)), []);
    });
    const client = await front.send(sizedHead(size));
    const before = process.memoryUsage().arrayBuffers;
    const poured = pour(client, Buffer.alloc(256 * 1024, "x"), size / (256 * 1024));
    expect(await untilStill(() => poured.sent, 0, "the upload to stand still")).toBeLessThan(4 * 24);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(16 * mib);
    held.open();
    expect((await client.answer()).body).toBe(String(size));
  });

  test("above limits.body a Content-Length gets 413 at once, and a client in mid-upload can read it", async () => {
    await open(echoSize, { limits: { bodyBytes: mib } });
    const client = await front.send(sizedHead(32 * mib));
    // More than any socket buffer holds, most of it behind the refusal.
    client.send(Buffer.alloc(8 * mib, "x"));
    const answer = await client.answer();
    expect([answer.status, codeOf(answer.body), answer.field("connection")]).toEqual([
      413,
      "GW_BODY_TOO_LARGE",
      "close",
    ]);
    expect(answer.field("replication-outcome")).toBe("not-executed");
    await client.ended();
    expect(client.error).toBe(null);
    expect(front.seen).toHaveLength(0);
  });

  test("above limits.body a chunked upload gets 413 while it comes", async () => {
    await open(echoSize, { limits: { bodyBytes: mib } });
    const client = await front.send(chunkedHead());
    const chunk = `${(64 * 1024).toString(16)}\r\n${"x".repeat(64 * 1024)}\r\n`;
    for (let i = 0; i < 64; i++) client.send(chunk);
    const answer = await client.answer();
    expect([answer.status, answer.field("connection")]).toEqual([413, "close"]);
    await client.ended();
    expect(client.error).toBe(null);
  });

  test("exactly limits.body is allowed", async () => {
    await open(echoSize, { limits: { bodyBytes: 1000 } });
    const body = "x".repeat(1000);
    expect((await ask(front.port, sizedHead(1000) + body)).body).toBe("1000");
    expect((await ask(front.port, `${chunkedHead()}3e8\r\n${body}\r\n0\r\n\r\n`)).body).toBe("1000");
    expect((await ask(front.port, `${chunkedHead()}3e9\r\n${body}y\r\n0\r\n\r\n`)).status).toBe(413);
  });

  test("a client that leaves within its body is no request: collect rejects, and so does the stream", async () => {
    const errors: unknown[] = [];
    await open(async (exchange) => {
      try {
        if (exchange.target.target === "/collect") await exchange.body.collect(100);
        else for await (const _ of exchange.body.stream()) void _;
      } catch (error) {
        errors.push(error);
        exchange.reply.problem(error as GatewayError, []);
      }
    });
    for (const target of ["/collect", "/stream"]) {
      const client = await front.send(sizedHead(50).replace("/x", target) + "abc");
      await waitFor(() => front.seen.some((exchange) => exchange.target.target === target), { what: "the request" });
      client.socket.resetAndDestroy();
    }
    await waitFor(() => errors.length === 2, { what: "both to reject" });
    for (const error of errors) expect(error).toMatchObject({ code: "GW_BAD_REQUEST" });
    await front.fact(2);
    expect(front.facts.map(({ outcome }) => outcome)).toEqual(["not-executed", "not-executed"]);
  });

  test("a body whose bytes stop coming is given up after timeouts.idle, and told 408", async () => {
    await open(echoSize, { timeouts: { idleMs: 200 } });
    const client = await front.send(`${sizedHead(50)}abc`);
    const answer = await client.answer();
    expect([answer.status, codeOf(answer.body), answer.field("connection")]).toEqual([
      408,
      "GW_REQUEST_TIMEOUT",
      "close",
    ]);
    await client.ended();
  });

  test("a body that trickles is bounded as a whole", async () => {
    await open(echoSize, { timeouts: { headersMs: 300, requestMs: 600 } });
    const client = await front.send(sizedHead(10_000));
    const trickle = setInterval(() => client.send("x"), 20);
    try {
      expect((await client.answer()).status).toBe(408);
    } finally {
      clearInterval(trickle);
    }
  });

  test("a backend's silence is not the client's: a paused upload and a long answer outlast timeouts.idle", async () => {
    const held = gate();
    await open(
      async (exchange) => {
        await held.opened;
        await echoSize(exchange);
      },
      { timeouts: { idleMs: 100 } },
    );
    const client = await front.send(sizedHead(3) + "abc");
    const other = await front.send(get());
    await waitFor(() => front.seen.length === 2, { what: "both requests" });
    const from = performance.now();
    await waitFor(() => performance.now() - from > 400, { what: "four idle times" });
    held.open();
    expect((await client.answer()).body).toBe("3");
    expect((await other.answer()).status).toBe(200);
  });

  test("an unread small body does not cost the connection, a large one does", async () => {
    await open((exchange) => exchange.reply.answer(text("no"), []));
    const client = await front.send(`${sizedHead(3)}abc${get()}`);
    expect((await client.answer()).field("connection")).toBe("keep-alive");
    expect((await client.answer()).status).toBe(200);
    const large = await front.send(sizedHead(10 * mib));
    large.send(Buffer.alloc(10 * mib));
    expect((await large.answer()).field("connection")).toBe("close");
    await large.ended();
    expect(large.error).toBe(null);
  });
});

describe("Expect: 100-continue", () => {
  test("100 is sent when the body is asked for, not before", async () => {
    const held = gate();
    await open(async (exchange) => {
      await held.opened;
      await echoSize(exchange);
    });
    const client = await front.send(sizedHead(3, "Expect: 100-Continue\r\n"));
    await waitFor(() => front.seen.length === 1, { what: "the request" });
    expect(client.received).toBe("");
    held.open();
    const interim = await client.answer();
    expect(interim.head).toBe("HTTP/1.1 100 Continue\r\n\r\n");
    client.send("abc");
    expect((await client.answer()).body).toBe("3");
    client.send(get());
    expect((await client.answer()).status).toBe(200);
  });

  for (const [name, request, status, settings] of [
    ["a body that is too large", sizedHead(mib + 1, "Expect: 100-continue\r\n"), 413, { limits: { bodyBytes: mib } }],
    ["a bad target", sizedHead(3, "Expect: 100-continue\r\n").replace("/x", "/a/../b"), 400, {}],
    ["a full gateway", sizedHead(3, "Expect: 100-continue\r\n"), 503, { limits: { inFlight: 0 } }],
    ["a flow that refuses", sizedHead(3, "Expect: 100-continue\r\n"), 403, {}],
  ] as const) {
    test(`${name} is refused without 100, and the connection ends`, async () => {
      await open((exchange) => exchange.reply.problem(new GatewayError("GW_REFUSED", "no"), []), settings);
      const client = await front.send(request);
      const answer = await client.answer();
      expect([answer.status, answer.field("connection")]).toEqual([status, "close"]);
      await client.ended();
      expect(client.received).not.toContain("100 Continue");
    });
  }

  test("behind another request 100 comes in its turn, and never amid an answer", async () => {
    const held = gate();
    await open(async (exchange) => {
      if (exchange.target.target === "/first") await held.opened;
      return echoSize(exchange);
    });
    const client = await front.send(
      `GET /first HTTP/1.1\r\nHost: a\r\n\r\nQUERY /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabcGET /last HTTP/1.1\r\nHost: a\r\n\r\n`,
    );
    await waitFor(() => front.seen.length > 0, { what: "the first" });
    held.open();
    expect((await client.answer()).body).toBe("0");
    expect((await client.answer()).status).toBe(100);
    expect((await client.answer()).body).toBe("3");
    expect((await client.answer()).body).toBe("0");
    expect(client.unread).toBe("");
  });

  test("HTTP/1.0 is not answered 100, and GET has nothing to wait for", async () => {
    await open(echoSize);
    const old = await ask(front.port, "POST /x HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc");
    expect([old.status, old.body]).toEqual([200, "3"]);
    const answer = await ask(front.port, get("Expect: 100-continue\r\n"));
    expect(answer.status).toBe(200);
  });
});

const streamed = async (
  play: (sink: StreamSink) => Promise<void> | void,
  request = get(),
  extra: RawHeaders = [],
): Promise<RawClient> => {
  await open(async (exchange) => {
    const sink = exchange.reply.stream(() => extra);
    sink.onDrain(() => {});
    await play(sink);
  });
  return front.send(request);
};

describe("streamed answers", () => {
  test("a length is kept, and the gateway's fields stand behind the backend's", async () => {
    const client = await streamed(
      (sink) => {
        sink.head(206, ["content-length", "5", "X-A", "1"]);
        sink.data(Buffer.from("he"));
        sink.data(Buffer.from("llo"));
        sink.end([]);
      },
      get(),
      ["Replication-Position", "5@ab"],
    );
    const answer = await client.answer();
    expect(answer.head).toBe(
      "HTTP/1.1 206 Partial Content\r\ncontent-length: 5\r\nX-A: 1\r\nReplication-Position: 5@ab\r\nConnection: keep-alive\r\nKeep-Alive: timeout=75\r\n\r\n",
    );
    expect(answer.body).toBe("hello");
    client.send(get());
    expect((await client.answer()).status).toBe(206);
  });

  test("without a length it goes in chunks, with trailers", async () => {
    const client = await streamed((sink) => {
      sink.head(200, ["Trailer", "X-T"]);
      sink.data(Buffer.from("hello"));
      sink.end(["X-T", "1"]);
    });
    const answer = await client.answer();
    expect([answer.body, answer.trailers, answer.field("trailer")]).toEqual(["hello", ["X-T", "1"], "X-T"]);
  });

  test("the head goes out before the first byte of the body", async () => {
    const held = gate();
    const client = await streamed(async (sink) => {
      sink.head(200, ["Content-Type", "text/event-stream"]);
      await held.opened;
      sink.data(Buffer.from("data: 1\n\n"));
      await waitFor(() => client.unread.includes("data: 1"), { what: "the event" });
      sink.end([]);
    });
    await waitFor(() => client.received.includes("\r\n\r\n"), { what: "the head" });
    held.open();
    expect((await client.answer()).body).toBe("data: 1\n\n");
  });

  test("head and body of a small answer share a packet", async () => {
    let packets = 0;
    const client = await streamed((sink) => {
      sink.head(200, ["Content-Length", "5"]);
      sink.data(Buffer.from("hello"));
      sink.end([]);
    });
    client.socket.on("data", () => packets++);
    expect((await client.answer()).body).toBe("hello");
    expect(packets).toBe(1);
  });

  test("HEAD, 204 and 304 have a head only", async () => {
    const client = await streamed(
      (sink) => {
        sink.head(200, ["Content-Length", "5", "Trailer", "x"]);
        sink.data(Buffer.from("hello"));
        sink.end([]);
      },
      get().replace("GET", "HEAD") + get().replace("GET", "HEAD"),
    );
    expect((await client.answer("HEAD")).field("content-length")).toBe("5");
    expect((await client.answer("HEAD")).status).toBe(200);
    await front.close();
    for (const status of [204, 304]) {
      const other = await streamed((sink) => {
        sink.head(status, ["ETag", "x"]);
        sink.end([]);
      }, get() + get());
      await other.answer();
      expect((await other.answer()).status).toBe(status);
      expect(other.unread).toBe("");
      await front.close();
    }
    await open(echoSize);
  });

  test("HTTP/1.0 gets no chunks: the body ends with the connection", async () => {
    const client = await streamed((sink) => {
      sink.head(200, []);
      sink.data(Buffer.from("hello"));
      sink.end(["X-T", "1"]);
    }, "GET /x HTTP/1.0\r\nConnection: keep-alive\r\nTE: chunked\r\n\r\n");
    const answer = await client.answer();
    expect([answer.body, answer.field("transfer-encoding"), answer.field("connection")]).toEqual([
      "hello",
      null,
      "close",
    ]);
  });

  for (const [name, isStarted, method, status, code, outcome] of [
    ["that was not reached", false, "GET", 503, "GW_NO_REPLICA", null],
    ["that was not reached, unsafe", false, "POST", 503, "GW_NO_REPLICA", "not-executed"],
    ["that broke off", true, "GET", 502, "GW_BACKEND_FAILED", null],
    ["that broke off, unsafe", true, "POST", 502, "GW_BACKEND_FAILED", "unknown"],
  ] as const) {
    test(`a backend ${name} before its head becomes a problem`, async () => {
      const client = await streamed((sink) => sink.fail(new Error("x"), isStarted), get().replace("GET", method));
      const answer = await client.answer();
      expect([answer.status, codeOf(answer.body), answer.field("replication-outcome")]).toEqual([
        status,
        code,
        outcome,
      ]);
    });
  }

  test("a failure that has a code keeps it", async () => {
    const client = await streamed((sink) => sink.fail(new GatewayError("GW_BACKEND_TIMEOUT", "slow"), true));
    expect((await client.answer()).status).toBe(504);
  });

  for (const [name, headers, request] of [
    ["in chunks", [], get()],
    ["with a length", ["Content-Length", "10"], get()],
    ["that ends with its connection", [], "GET /x HTTP/1.0\r\n\r\n"],
  ] as const) {
    test(`a backend that breaks off within a body ${name} never looks like an end`, async () => {
      const client = await streamed(async (sink) => {
        sink.head(200, headers);
        sink.data(Buffer.from("hello"));
        await waitFor(() => client.received.includes("hello"), { what: "the first bytes" });
        sink.fail(new Error("reset"), true);
      }, request);
      await waitFor(() => client.isEnded || client.isClosed, { what: "the cut" });
      if (request.includes("1.0")) expect(client.error?.code).toBe("ECONNRESET");
      else expect(client.received.endsWith("hello\r\n") || client.received.endsWith("hello")).toBe(true);
      expect((await front.fact()).code).toBe("GW_BACKEND_FAILED");
    });
  }

  for (const [name, body] of [
    ["more", "hello world"],
    ["less", "he"],
  ] as const) {
    test(`a backend that sends ${name} than its Content-Length is cut`, async () => {
      const client = await streamed((sink) => {
        sink.head(200, ["Content-Length", "5"]);
        sink.data(Buffer.from(body));
        sink.end([]);
      }, get() + get());
      await client.ended();
      expect(client.received.match(/HTTP\/1\.1/g)?.length ?? 0).toBeLessThan(2);
    });
  }

  test("a head that cannot be written is refused and becomes 502", async () => {
    let taken: boolean | null = null;
    const client = await streamed((sink) => {
      taken = sink.head(200, ["X-A", "a\u0000b"]);
      sink.fail(new Error("refused"), true);
    });
    expect((await client.answer()).status).toBe(502);
    expect(taken).toBe(false);
  });

  test("200 MB to a slow client: the backend is paused, memory stays flat, every byte arrives", async () => {
    const size = 200 * mib;
    const chunk = Buffer.alloc(256 * 1024, "x");
    let sent = 0;
    let pauses = 0;
    let mostWaiting = 0;
    await open((exchange) => {
      const sink = exchange.reply.stream(() => []);
      const pump = (): void => {
        while (sent < size) {
          sent += chunk.length;
          if (!sink.data(chunk)) {
            pauses += 1;
            return;
          }
        }
        sink.end([]);
      };
      sink.onDrain(pump);
      sink.head(200, ["Content-Length", String(size)]);
      pump();
    });
    const client = await front.connect();
    client.keeps = false;
    client.socket.pause();
    client.send(get());
    await waitFor(() => pauses > 0, { what: "the first pause" });
    expect(await untilStill(() => sent, mib, "the stream to stand still")).toBeLessThan(32 * mib);
    const before = process.memoryUsage().rss;
    const sampler = setInterval(() => {
      mostWaiting = Math.max(mostWaiting, process.memoryUsage().rss - before);
    }, 5);
    client.socket.resume();
    await waitFor(() => client.receivedBytes >= size, { what: "200 MB", timeoutMs: 25_000 });
    clearInterval(sampler);
    expect(pauses).toBeGreaterThan(20);
    expect(mostWaiting).toBeLessThan(64 * mib);
    expect(client.receivedBytes).toBeLessThan(size + 1000);
  });

  test("a client that does not read is cut after timeouts.idle, and the flow hears of it", async () => {
    let heard = 0;
    await open(
      (exchange) => {
        exchange.onGone(() => heard++);
        const sink = exchange.reply.stream(() => []);
        const chunk = Buffer.alloc(mib);
        const pump = (): void => {
          while (sink.data(chunk));
        };
        sink.onDrain(pump);
        sink.head(200, []);
        pump();
      },
      { timeouts: { idleMs: 300 } },
    );
    const client = await front.connect();
    client.socket.pause();
    client.send(get());
    await waitFor(() => heard === 1, { what: "the client to be given up" });
    expect(front.seen[0]!.isGone()).toBe(true);
  });

  test("when the client leaves, the sink takes no more and onGone tells the flow", async () => {
    let heard = 0;
    let sink: StreamSink | null = null;
    await open((exchange) => {
      exchange.onGone(() => heard++);
      sink = exchange.reply.stream(() => []);
      sink.head(200, []);
      sink.data(Buffer.from("hello"));
    });
    const client = await front.send(get());
    await waitFor(() => client.received.includes("hello"), { what: "the first bytes" });
    client.close();
    await waitFor(() => heard === 1, { what: "onGone" });
    expect(sink!.data(Buffer.from("more"))).toBe(false);
    sink!.end([]);
    expect((await front.fact()).status).toBe(200);
  });
});
