// What the front makes of requests and answers: fields both ways, framing, problems, limits, pipelining, facts.

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { GatewayError } from "../../../gateway/errors.ts";
import { ask } from "../../helpers/raw-client.ts";
import { waitFor } from "../../helpers/wait.ts";
import { echoSize, gate, startFront, text } from "./front.harness.ts";
import type { Answer, RawHeaders } from "../../../gateway/entry.ts";
import type { ErrorCode } from "../../../gateway/errors.ts";
import type { Exchange } from "../../../gateway/exchange.ts";
import type { Handle, Settings, TestFront } from "./front.harness.ts";

let front: TestFront;
afterEach(() => front.close());

const open = async (handle: Handle, settings: Settings = {}): Promise<TestFront> => {
  front = await startFront(handle, settings);
  return front;
};
const ok: Handle = (exchange) => exchange.reply.answer(text("ok"), []);
const put = (target: string): string => `PUT ${target} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n`;
const get = (fields = "", target = "/x"): string => `GET ${target} HTTP/1.1\r\nHost: a.example\r\n${fields}\r\n`;
const post = (body: string, fields = ""): string =>
  `POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: ${body.length}\r\n${fields}\r\n${body}`;
const tail = (proto = "http"): string[] => [
  "X-Forwarded-For",
  "127.0.0.1",
  "X-Forwarded-Proto",
  proto,
  "X-Forwarded-Host",
  "a.example",
  "Via",
  "1.1 gateway",
];

const forwardedOf = async (request: string, settings: Settings = {}): Promise<Exchange> => {
  await open(echoSize, settings);
  const answer = await ask(front.port, request);
  expect(answer.status).toBe(200);
  return front.seen[0]!;
};

describe("fields towards backends", () => {
  test("case, order and duplicates are kept", async () => {
    const exchange = await forwardedOf(
      "GET /x HTTP/1.1\r\nzeta: 1\r\nHOST: a.example\r\nX-A: 1\r\nx-a: 2\r\nCOOKIE: a=1\r\nCookie: b=2\r\nX-Empty:\r\nX-A: \t3 \r\n\r\n",
    );
    expect(exchange.headers).toEqual([
      "zeta",
      "1",
      "HOST",
      "a.example",
      "X-A",
      "1",
      "x-a",
      "2",
      "COOKIE",
      "a=1",
      "Cookie",
      "b=2",
      "X-Empty",
      "",
      "X-A",
      "3",
      ...tail(),
    ]);
  });

  test("bytes beyond ASCII arrive as latin1", async () => {
    const exchange = await forwardedOf(get("X-Name: \xe4\xc3\xa4\xff\r\n"));
    expect(exchange.headers).toContain("\xe4\xc3\xa4\xff");
  });

  test("what belongs to one connection is gone, and so is what Connection names", async () => {
    const exchange = await forwardedOf(
      get(
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nx-hop: 2\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nUpgrade: foo\r\n" +
          "Proxy-Authorization: x\r\nProxy-Connection: keep-alive\r\nHTTP2-Settings: AA\r\nProxy-Status: kept\r\nX-Kept: 1\r\n",
      ),
    );
    expect(exchange.headers).toEqual(["Host", "a.example", "Proxy-Status", "kept", "X-Kept", "1", ...tail()]);
  });

  test("framing is the sender's: Content-Length, Transfer-Encoding and Expect are not in the fields", async () => {
    await open(echoSize);
    const client = await front.send(post("abc", "Expect: 100-continue\r\n"));
    expect((await client.answer()).status).toBe(100);
    expect((await client.answer()).body).toBe("3");
    client.send("POST /x HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    expect((await client.answer()).body).toBe("3");
    for (const exchange of front.seen) expect(exchange.headers).toEqual(["Host", "a.example", ...tail()]);
    expect(front.seen.map(({ body }) => body.sizeBytes)).toEqual([3, null]);
  });

  test("Replication fields of clients are stripped, and the position is handed over", async () => {
    const exchange = await forwardedOf(
      get(
        "Replication-Position: 42@ab\r\nReplication-Seed: 1\r\nREPLICATION-ROLE: primary\r\nReplication-X: 1\r\nReplicationX: 1\r\n",
      ),
    );
    expect(exchange.headers).toEqual(["Host", "a.example", "ReplicationX", "1", ...tail()]);
    expect(exchange.sessionPosition).toBe("42@ab");
  });

  test("rules see every field as the client sent it", async () => {
    const exchange = await forwardedOf(get("Replication-Seed: 1\r\nX-Forwarded-For: 9.9.9.9\r\n"));
    expect(exchange.head.headers).toEqual(["Host", "a.example", "Replication-Seed", "1", "X-Forwarded-For", "9.9.9.9"]);
    expect(exchange.head.host).toBe("a.example");
  });

  test("forwarding fields of strangers are dropped", async () => {
    const exchange = await forwardedOf(
      get(
        "X-Forwarded-For: 9.9.9.9\r\nx-forwarded-proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=9.9.9.9\r\n",
      ),
    );
    expect(exchange.headers).toEqual(["Host", "a.example", ...tail()]);
    expect(exchange.peer).toBe("127.0.0.1");
  });

  test("those of trusted proxies are kept and appended to", async () => {
    const exchange = await forwardedOf(
      get(
        "X-Forwarded-For: 6.6.6.6, 9.9.9.9\r\nX-Forwarded-For: 10.0.0.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop\r\nForwarded: for=9.9.9.9\r\nVia: 1.1 lb\r\n",
      ),
      { trustedProxies: ["127.0.0.0/8", "10.0.0.7"] },
    );
    expect(exchange.headers).toEqual([
      "Host",
      "a.example",
      "Via",
      "1.1 lb",
      "Forwarded",
      "for=9.9.9.9",
      "X-Forwarded-For",
      "6.6.6.6, 9.9.9.9, 10.0.0.7, 127.0.0.1",
      "X-Forwarded-Proto",
      "https",
      "X-Forwarded-Host",
      "shop",
      "Via",
      "1.1 gateway",
    ]);
    // The nearest that no trusted proxy vouches for.
    expect(exchange.peer).toBe("9.9.9.9");
  });

  test("HTTP/1.0 without a Host gets one that is equal for all copies, and its version in Via", async () => {
    const exchange = await forwardedOf("GET /x HTTP/1.0\r\n\r\n");
    expect(exchange.headers).toEqual([
      "Host",
      `127.0.0.1:${front.port}`,
      "X-Forwarded-For",
      "127.0.0.1",
      "X-Forwarded-Proto",
      "http",
      "Via",
      "1.0 gateway",
    ]);
  });

  test("the target is canonical, and the query untouched", async () => {
    const exchange = await forwardedOf(get("", "/%6frders/%e2%82%ac?q=%6f&a='"));
    expect(exchange.target.target).toBe("/orders/%E2%82%AC?q=%6f&a='");
    expect(exchange.target.segments).toEqual(["orders", "€"]);
  });
});

const headOf = async (answer: Answer, extra: RawHeaders = [], request = get()): Promise<string> => {
  await open((exchange) => exchange.reply.answer(answer, extra));
  const got = await ask(front.port, request);
  return got.head;
};

describe("answers of backends", () => {
  test("arrive byte for byte: case, order, duplicates, Date, several Set-Cookie, latin1", async () => {
    const head = await headOf(
      text("hello", [
        "server",
        "x",
        "DATE",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Set-Cookie",
        "a=1",
        "X-A",
        "1",
        "set-cookie",
        "b=2; Path=/",
        "Content-Length",
        "5",
        "x-a",
        "2",
        "Set-Cookie",
        "a=1",
        "X-Name",
        "\xe4\xc3\xa4",
        "X-Empty",
        "",
      ]),
      ["Replication-Outcome", "executed"],
    );
    expect(head).toBe(
      "HTTP/1.1 200 OK\r\nserver: x\r\nDATE: Thu, 01 Jan 1970 00:00:00 GMT\r\nSet-Cookie: a=1\r\nX-A: 1\r\nset-cookie: b=2; Path=/\r\n" +
        "Content-Length: 5\r\nx-a: 2\r\nSet-Cookie: a=1\r\nX-Name: \xe4\xc3\xa4\r\nX-Empty: \r\nReplication-Outcome: executed\r\n" +
        "Connection: keep-alive\r\nKeep-Alive: timeout=75\r\n\r\n",
    );
  });

  test("no Date is made up", async () => {
    expect(await headOf(text("ok"))).not.toMatch(/^date:/im);
  });

  test("raw UTF-8 in Content-Disposition keeps its bytes behind a Content-Length", async () => {
    // Node would recode it (latin1 → UTF-8 → latin1) or refuse to send it.
    const name = Buffer.from('attachment; filename="日本-ä.txt"').toString("latin1");
    const head = await headOf(text("ok", ["Content-Length", "2", "X", "1", "Content-Disposition", name]));
    expect(head).toContain(`Content-Disposition: ${name}\r\nContent-Length: 2\r\nX: 1\r\n`);
  });

  test("a body whose backend gave no length gets one", async () => {
    const head = await headOf(
      text("hello", ["Transfer-Encoding", "chunked", "Connection", "close, X-Hop", "X-Hop", "1"]),
    );
    expect(head).toBe(
      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\nKeep-Alive: timeout=75\r\n\r\n",
    );
  });

  test("a length that contradicts the body is replaced", async () => {
    const head = await headOf(text("hello", ["Content-Length", "7", "content-length", "7"]));
    expect(head.match(/content-length: \d+/gi)).toEqual(["Content-Length: 5"]);
  });

  test("Replication fields of a backend do not pass for the gateway's", async () => {
    const head = await headOf(text("ok", ["Replication-Outcome", "executed", "replication-position", "9"]), [
      "Replication-Outcome",
      "unknown",
    ]);
    expect(head.match(/^replication-.*$/gim)).toEqual(["Replication-Outcome: unknown"]);
  });

  test("HEAD keeps its Content-Length and has no body", async () => {
    await open((exchange) => exchange.reply.answer(text("", ["Content-Length", "1234", "ETag", "x"]), []));
    const client = await front.send(get().replace("GET", "HEAD") + get().replace("GET", "HEAD"));
    const first = await client.answer("HEAD");
    expect(first.field("content-length")).toBe("1234");
    expect(first.field("transfer-encoding")).toBe(null);
    expect((await client.answer("HEAD")).status).toBe(200);
    expect(client.unread).toBe("");
  });

  test("HEAD with a Trailer field or without a length is fine too", async () => {
    await open((exchange) => exchange.reply.answer(text("", ["Trailer", "X-T"]), []));
    const answer = await ask(front.port, get().replace("GET", "HEAD"));
    expect(answer.head).toBe("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=75\r\n\r\n");
  });

  for (const [status, headers, expected] of [
    [204, [], []],
    [204, ["Content-Length", "0"], ["Content-Length: 0"]],
    [204, ["Content-Length", "5"], []],
    [304, ["Content-Length", "5", "ETag", "x"], ["Content-Length: 5"]],
    [304, ["Trailer", "x"], []],
  ] as const) {
    test(`${status} with ${JSON.stringify(headers)} has no body, and the connection goes on`, async () => {
      await open((exchange) => exchange.reply.answer(text("", headers, status), []));
      const client = await front.send(get() + get());
      const answer = await client.answer();
      expect(answer.head.match(/^(content-length|transfer-encoding|trailer):.*$/gim) ?? []).toEqual(expected);
      expect((await client.answer()).status).toBe(status);
    });
  }

  test("trailers go out behind chunks, and not to HTTP/1.0", async () => {
    const answer: Answer = {
      ...text("hello", ["Trailer", "X-T", "Content-Length", "5"]),
      trailers: ["X-T", "1", "x-t", "2"],
    };
    await open((exchange) => exchange.reply.answer(answer, []));
    const got = await ask(front.port, get());
    expect(got.body).toBe("hello");
    expect(got.trailers).toEqual(["X-T", "1", "x-t", "2"]);
    expect(got.fields("trailer")).toEqual(["X-T"]);
    expect(got.field("content-length")).toBe(null);
    const old = await ask(front.port, "GET /x HTTP/1.0\r\n\r\n");
    expect([old.body, old.field("content-length"), old.field("trailer")]).toEqual(["hello", "5", null]);
  });

  test("an unknown status passes", async () => {
    expect(await headOf(text("ok", [], 599))).toMatch(/^HTTP\/1.1 599 \r\n/);
  });

  test("a field that cannot be written becomes 502", async () => {
    await open((exchange) =>
      exchange.reply.answer(text("ok", ["X-A", "a\u0001b"]), ["Replication-Outcome", "executed"]),
    );
    const answer = await ask(front.port, get());
    expect(answer.status).toBe(502);
    expect(answer.body).toContain("GW_BACKEND_FAILED");
    expect(answer.fields("replication-outcome")).toEqual(["executed"]);
  });

  test("bodies are bytes: small, large, and of every value", async () => {
    const all = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
    const bodies = [all, Buffer.concat(Array.from({ length: 4096 }, () => all)), Buffer.alloc(0)];
    let n = 0;
    await open((exchange) => exchange.reply.answer({ ...text(""), body: bodies[n++]! }, []));
    const client = await front.connect();
    for (const body of bodies) {
      client.send(get());
      const answer = await client.answer();
      expect(Buffer.from(answer.body, "latin1").equals(body)).toBe(true);
    }
  });

  test("HTTP/1.0 gets the answer and the end of the connection, or keeps it when it asks to", async () => {
    await open(ok);
    const once = await front.send("GET /x HTTP/1.0\r\n\r\n");
    expect((await once.answer()).field("connection")).toBe("close");
    await once.ended();
    const kept = await front.send("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    expect((await kept.answer()).field("connection")).toBe("keep-alive");
    kept.send("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    expect((await kept.answer()).body).toBe("ok");
  });
});

const problem = async (code: ErrorCode, facts: object, request: string, extra: RawHeaders = []) => {
  await open((exchange) => exchange.reply.problem(new GatewayError(code, "why", facts), extra));
  const answer = await ask(front.port, request);
  return { answer, body: answer.body === "" ? null : (JSON.parse(answer.body) as Record<string, unknown>) };
};

describe("problems", () => {
  test("have type, title, status, detail, code and position", async () => {
    const { answer, body } = await problem("GW_PARKED", { position: 8193, outcome: "not-executed" }, post("abc"));
    expect(answer.status).toBe(503);
    expect(answer.field("content-type")).toBe("application/problem+json");
    expect(answer.field("date")).not.toBe(null);
    expect(body).toEqual({
      type: "urn:br2k:error:GW_PARKED",
      title: "The entry is parked and will not be executed",
      status: 503,
      detail: "why",
      code: "GW_PARKED",
      position: 8193,
    });
  });

  test("503 and 409 say when to come back", async () => {
    expect((await problem("GW_NO_REPLICA", {}, get())).answer.field("retry-after")).toBe("1");
    await front.close();
    expect((await problem("GW_KEY_RUNNING", { retryAfterS: 7 }, get())).answer.field("retry-after")).toBe("7");
    await front.close();
    expect((await problem("GW_KEY_REUSED", {}, get())).answer.field("retry-after")).toBe(null);
  });

  for (const [name, code, facts, extra, expected] of [
    ["what the flow says", "GW_LOG_UNAVAILABLE", { outcome: "unknown" }, [], "unknown"],
    ["what the flow adds itself, once", "GW_LOG_UNAVAILABLE", {}, ["replication-outcome", "executed"], "executed"],
    ["not-executed where a repeat is safe", "GW_NO_REPLICA", {}, [], "not-executed"],
    ["unknown where it is not", "GW_BACKEND_FAILED", {}, [], "unknown"],
  ] as const) {
    test(`an unsafe request is told its outcome: ${name}`, async () => {
      const { answer } = await problem(code, facts, post("abc"), extra);
      expect(answer.fields("replication-outcome")).toEqual([expected]);
      expect((await front.fact()).outcome).toBe(expected);
    });
  }

  test("a safe request has no outcome unless the flow gives one (a rule may say that a GET changes things)", async () => {
    expect((await problem("GW_NO_REPLICA", {}, get())).answer.field("replication-outcome")).toBe(null);
    await front.close();
    const { answer } = await problem("GW_NO_REPLICA", { outcome: "unknown" }, get());
    expect(answer.field("replication-outcome")).toBe("unknown");
  });

  test("HEAD gets the head alone", async () => {
    const { answer } = await problem("GW_NO_REPLICA", {}, get().replace("GET", "HEAD"));
    expect(answer.status).toBe(503);
    expect(Number(answer.field("content-length"))).toBeGreaterThan(50);
  });

  test("a refuse rule's status wins", async () => {
    expect((await problem("GW_REFUSED", { status: 404 }, get())).answer.status).toBe(404);
  });

  test("text beyond latin1 in a detail is UTF-8 of the right length", async () => {
    await open((exchange) => exchange.reply.problem(new GatewayError("GW_REFUSED", "日本"), []));
    const client = await front.send(get() + get());
    const answer = await client.answer();
    expect((JSON.parse(Buffer.from(answer.body, "latin1").toString("utf8")) as { detail: string }).detail).toBe("日本");
    expect((await client.answer()).status).toBe(403);
  });

  test("a flow that rejects, or forgets to answer, gives 500", async () => {
    await open(async () => {
      throw new Error("secret");
    });
    const answer = await ask(front.port, post("abc"));
    expect([answer.status, answer.fields("replication-outcome")]).toEqual([500, ["unknown"]]);
    expect(answer.body).not.toContain("secret");
    await front.close();
    await open(() => {});
    expect((await ask(front.port, get())).status).toBe(500);
  });
});

test("a flow that rejects within a stream cuts it", async () => {
  await open((exchange) => {
    const sink = exchange.reply.stream(() => []);
    sink.head(200, ["Content-Length", "10"]);
    sink.data(Buffer.from("hello"));
    throw new Error("secret");
  });
  const client = await front.send(get());
  await client.ended();
  expect(client.received).not.toContain("secret");
  expect((await front.fact()).code).toBe("GW_BACKEND_FAILED");
});

describe("limits", () => {
  test("requests beyond inFlight get 503, and the next one is served", async () => {
    const held = gate();
    await open(
      async (exchange) => {
        if (exchange.target.target === "/held") await held.opened;
        exchange.reply.answer(text("ok"), []);
      },
      { limits: { inFlight: 2 } },
    );
    const clients = await Promise.all([front.send(get("", "/held")), front.send(get("", "/held"))]);
    await waitFor(() => front.seen.length === 2, { what: "two requests under way" });
    const refused = await front.send(post("abc"));
    const answer = await refused.answer();
    expect([answer.status, answer.field("retry-after"), answer.field("replication-outcome")]).toEqual([
      503,
      "1",
      "not-executed",
    ]);
    expect(answer.body).toContain("GW_OVERLOADED");
    held.open();
    for (const client of clients) expect((await client.answer()).status).toBe(200);
    // Refusing did not cost the connection.
    refused.send(post("abc"));
    expect((await refused.answer()).status).toBe(200);
    expect(front.seen).toHaveLength(3);
  });

  test("a place is given back when the client leaves, but not before the flow is done", async () => {
    const held = gate();
    await open(
      async (exchange) => {
        if (exchange.target.target === "/held") await held.opened;
        exchange.reply.answer(text("ok"), []);
      },
      { limits: { inFlight: 1 } },
    );
    const client = await front.send(get("", "/held"));
    await waitFor(() => front.seen.length === 1, { what: "the request" });
    client.close();
    await waitFor(() => front.seen[0]!.isGone(), { what: "the client to be gone" });
    expect((await ask(front.port, get())).status).toBe(503);
    held.open();
    await waitFor(async () => (await ask(front.port, get())).status === 200, { what: "the place" });
    expect(front.facts.filter((fact) => fact.path === "/held")).toMatchObject([{ status: 499, code: null }]);
  });

  test("connections beyond one address's share are told so and closed; trusted proxies have no share", async () => {
    await open(ok, { limits: { connectionsPerAddress: 2 } });
    const kept = [await front.connect(), await front.connect()];
    const third = await front.connect();
    const answer = await third.answer();
    expect([answer.status, answer.field("retry-after")]).toEqual([503, "1"]);
    await third.ended();
    third.close();
    kept[0]!.close();
    await waitFor(async () => (await ask(front.port, get())).status === 200, { what: "a free place" });
    await front.close();
    await open(ok, { limits: { connectionsPerAddress: 1 }, trustedProxies: ["127.0.0.1"] });
    await front.connect();
    expect((await ask(front.port, get())).status).toBe(200);
  });
});

describe("several requests on one connection", () => {
  test("pipelined answers come in order, and safe requests run side by side", async () => {
    const first = gate();
    await open(async (exchange) => {
      if (exchange.target.target === "/1") await first.opened;
      exchange.reply.answer(text(exchange.target.target), []);
    });
    const client = await front.send(get("", "/1") + get("", "/2") + get("", "/3"));
    await waitFor(() => front.seen.length === 3, { what: "all three at the service" });
    expect(client.received).toBe("");
    first.open();
    expect([await client.answer(), await client.answer(), await client.answer()].map(({ body }) => body)).toEqual([
      "/1",
      "/2",
      "/3",
    ]);
  });

  test("an unsafe request waits for those before it, and those behind wait for it", async () => {
    const gates = [gate(), gate(), gate()];
    await open(async (exchange) => {
      const at = front.seen.length - 1;
      await exchange.body.collect(100);
      await gates[at]!.opened;
      exchange.reply.answer(text(String(at)), []);
    });
    const client = await front.send(post("abc") + post("def") + get());
    await waitFor(() => front.seen.length === 1, { what: "the first" });
    gates[0]!.open();
    expect((await client.answer()).body).toBe("0");
    await waitFor(() => front.seen.length === 2, { what: "the second" });
    expect(front.seen).toHaveLength(2);
    gates[1]!.open();
    gates[2]!.open();
    expect((await client.answer()).body).toBe("1");
    expect((await client.answer()).body).toBe("2");
  });

  test("garbage behind a request under way is answered after it, and is never taken for its answer", async () => {
    const held = gate();
    await open(async (exchange) => {
      await held.opened;
      exchange.reply.answer(text("mine"), []);
    });
    const client = await front.send(`${get()}garbage\r\n\r\n`);
    await waitFor(() => front.seen.length === 1, { what: "the request" });
    await waitFor(() => client.socket.writableLength === 0, { what: "the bytes to be out" });
    expect(client.received).toBe("");
    held.open();
    expect((await client.answer()).body).toBe("mine");
    expect((await client.answer()).status).toBe(400);
    await client.ended();
  });

  test("what follows a refused request is not executed, also when it was there first", async () => {
    const held = gate();
    await open(async (exchange) => {
      await held.opened;
      exchange.reply.answer(text("ok"), []);
    });
    const client = await front.send(`${get()}GET /two HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n${get("", "/three")}`);
    await waitFor(() => front.seen.length === 1, { what: "the first" });
    held.open();
    expect((await client.answer()).status).toBe(200);
    expect((await client.answer()).status).toBe(400);
    await client.ended();
    expect(client.unread).toBe("");
    expect(front.seen).toHaveLength(1);
  });

  test("what waits before a refused request is served, and gives its place back", async () => {
    const held = gate();
    await open(
      async (exchange) => {
        await held.opened;
        exchange.reply.answer(text(exchange.target.target), []);
      },
      { limits: { inFlight: 3 } },
    );
    const client = await front.send(
      `${get()}${put("/two")}${put("/three")}GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n${get("", "/smuggled")}`,
    );
    await waitFor(() => front.seen.length === 1, { what: "the first" });
    held.open();
    expect((await client.answer()).status).toBe(200);
    expect((await client.answer()).body).toBe("/two");
    expect((await client.answer()).body).toBe("/three");
    expect((await client.answer()).status).toBe(400);
    await client.ended();
    expect(front.seen.map(({ target }) => target.target)).toEqual(["/x", "/two", "/three"]);
    const again = await Promise.all([1, 2, 3].map(() => ask(front.port, get())));
    expect(again.map(({ status }) => status)).toEqual([200, 200, 200]);
  });

  test("nothing behind Connection: close is executed", async () => {
    await open(ok);
    const client = await front.send(get("Connection: close\r\n") + get("", "/two"));
    expect((await client.answer()).field("connection")).toBe("close");
    await client.ended();
    expect(front.seen).toHaveLength(1);
  });

  test("nothing behind an expectation that nobody meets is executed: Node closes behind its answer", async () => {
    const held = gate();
    await open(async (exchange) => {
      await held.opened;
      exchange.reply.answer(text("ok"), []);
    });
    const client = await front.send(get("Expect: 100-continue\r\n") + get("", "/two"));
    await waitFor(() => front.seen.length > 0, { what: "the first" });
    held.open();
    expect((await client.answer()).field("connection")).toBe("close");
    await client.ended();
    expect(front.seen.map(({ target }) => target.target)).toEqual(["/x"]);
  });

  test("an upgrade behind a request under way ends the connection: its bytes would come amid an answer", async () => {
    const held = gate();
    await open(async (exchange) => {
      await held.opened;
      exchange.reply.answer(text("ok"), []);
    });
    const client = await front.send(
      `${get()}GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n`,
    );
    await client.ended();
    held.open();
    expect(client.received).toBe("");
  });

  test("keep-alive lasts, and an idle connection is closed", async () => {
    await open(ok, { timeouts: { keepAliveMs: 1000 } });
    const client = await front.send(get());
    expect((await client.answer()).field("keep-alive")).toBe("timeout=1");
    client.send(get());
    expect((await client.answer()).status).toBe(200);
    await client.ended(5000);
  });

  test("a client that leaves is noticed by everything it left behind, once each", async () => {
    const heard: string[] = [];
    const never = gate();
    await open(async (exchange) => {
      exchange.onGone(() => heard.push(exchange.target.target));
      await never.opened;
      // Late answers go nowhere and break nothing.
      exchange.reply.answer(text("late"), []);
    });
    const client = await front.send(get("", "/1") + get("", "/2") + post("abc"));
    await waitFor(() => front.seen.length === 2, { what: "the safe ones" });
    client.close();
    await waitFor(() => heard.length === 2, { what: "both to hear" });
    expect(front.seen.every((exchange) => exchange.isGone())).toBe(true);
    never.open();
    await front.fact(3);
    // The POST never began: the flow was not bothered with it.
    expect(front.seen).toHaveLength(2);
    expect(heard).toEqual(["/1", "/2"]);
  });
});

describe("facts", () => {
  test("each request is told once, with what the flow said of it and without its query", async () => {
    await open((exchange) => exchange.reply.answer(text("ok", [], 201), ["Replication-Outcome", "executed"]));
    await ask(front.port, post("abc").replace("/x", "/orders/%61?token=secret"));
    expect(await front.fact()).toEqual({
      type: "request",
      rule: "test",
      mode: "only-once",
      method: "POST",
      path: "/orders/a",
      status: 201,
      code: null,
      outcome: "executed",
      position: 7,
      replica: "a",
      durationMs: expect.any(Number) as number,
      peer: "127.0.0.1",
    });
    expect(front.facts).toHaveLength(1);
  });

  test("a refused target shows its path without a query, or nothing", async () => {
    await open(ok);
    await ask(front.port, get("", "/a/../b?token=secret"));
    await ask(front.port, get("", "http://user:secret@a/"));
    await front.fact(2);
    expect(front.facts.map(({ path, code }) => [path, code])).toEqual([
      ["/a/../b", "GW_BAD_TARGET"],
      ["", "GW_BAD_TARGET"],
    ]);
  });
});

test("the front does not start when Node's parser is told to be lenient", async () => {
  await open(ok);
  const script = fileURLToPath(new URL("../../../gateway/server/framing.ts", import.meta.url));
  const frontFile = fileURLToPath(new URL("../../../gateway/server/front.ts", import.meta.url));
  expect(script).toContain("framing");
  const code = `import(${JSON.stringify(frontFile)}).then(({ createFront }) => { try { createFront({}); } catch (error) { console.log(error.code, error.message); } })`;
  const tsx = ["--import", "tsx", "-e", code];
  const byFlag = spawnSync(process.execPath, ["--insecure-http-parser", ...tsx], { encoding: "utf8" });
  expect(byFlag.stdout).toMatch(/^GW_CONFIG_INVALID .*--insecure-http-parser/);
  // All of them work on Node.
  for (const NODE_OPTIONS of ["--insecure-http-parser", "--insecure_http_parser", '"--insecure-http-parser"']) {
    const byOptions = spawnSync(process.execPath, tsx, { encoding: "utf8", env: { ...process.env, NODE_OPTIONS } });
    expect(byOptions.stdout, NODE_OPTIONS).toMatch(/^GW_CONFIG_INVALID .*--insecure-http-parser/);
  }
});
