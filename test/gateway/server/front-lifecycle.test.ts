// Opening, draining and closing; and clients that are too slow to be let in.

import { afterEach, describe, expect, test } from "vitest";
import { systemClock } from "../../../gateway/clock.ts";
import { Events } from "../../../gateway/events.ts";
import { createFront } from "../../../gateway/server/front.ts";
import { RawClient, ask } from "../../helpers/raw-client.ts";
import { waitFor } from "../../helpers/wait.ts";
import { gate, startFront, text } from "./front.harness.ts";
import type { GatewayError } from "../../../gateway/errors.ts";
import type { StreamSink } from "../../../gateway/backend/backend.ts";
import type { Handle, Settings, TestFront } from "./front.harness.ts";

let front: TestFront;
afterEach(() => front.close());

const open = async (handle: Handle, settings: Settings = {}): Promise<TestFront> => {
  front = await startFront(handle, settings);
  return front;
};
const ok: Handle = (exchange) => exchange.reply.answer(text("ok"), []);
const get = (fields = "", target = "/x"): string => `GET ${target} HTTP/1.1\r\nHost: a\r\n${fields}\r\n`;

describe("draining", () => {
  test("answers under way end with Connection: close, idle and silent connections are closed, new ones refused", async () => {
    const held = gate();
    await open(async (exchange) => {
      if (exchange.target.target === "/held") await held.opened;
      exchange.reply.answer(text("ok"), []);
    });
    const silent = await front.connect();
    const idle = await front.send(get());
    await idle.answer();
    const busy = await front.send(get("", "/held"));
    await waitFor(() => front.seen.length === 2, { what: "the request under way" });
    const drained = front.front.drain();
    await idle.ended();
    await silent.ended();
    expect(busy.isEnded).toBe(false);
    await expect(RawClient.connect({ port: front.port })).rejects.toMatchObject({ code: "ECONNREFUSED" });
    held.open();
    const answer = await busy.answer();
    expect([answer.status, answer.field("connection")]).toEqual([200, "close"]);
    await drained;
  });

  test("a connection whose stream began before is closed when the stream ends", async () => {
    let sink: StreamSink | null = null;
    await open((exchange) => {
      sink = exchange.reply.stream(() => []);
      sink.onDrain(() => {});
      sink.head(200, []);
      sink.data(Buffer.from("begun"));
    });
    const client = await front.send(get());
    await waitFor(() => client.received.includes("begun"), { what: "the first bytes" });
    const drained = front.front.drain();
    sink!.data(Buffer.from(" ended"));
    sink!.end([]);
    expect((await client.answer()).body).toBe("begun ended");
    await drained;
  });

  test("a request that comes on an open connection while it drains is served, once", async () => {
    const held = gate();
    await open(async (exchange) => {
      if (exchange.target.target === "/held") await held.opened;
      exchange.reply.answer(text("ok"), []);
    });
    const client = await front.send(get("", "/held"));
    await waitFor(() => front.seen.length === 1, { what: "the request" });
    const drained = front.front.drain();
    client.send(get());
    held.open();
    expect((await client.answer()).field("connection")).toBe("close");
    await client.ended();
    await drained;
  });

  test("what is left at the deadline is cut", async () => {
    const never = gate();
    await open(() => never.opened, { timeouts: { shutdownMs: 200 } });
    const client = await front.send(get());
    await waitFor(() => front.seen.length === 1, { what: "the request" });
    await front.front.drain();
    await client.ended();
    expect(front.seen[0]!.isGone()).toBe(true);
    never.open();
  });

  test("drain and close may be called twice, in any order", async () => {
    await open(ok);
    await Promise.all([front.front.drain(), front.front.drain()]);
    await Promise.all([front.front.close(), front.front.close()]);
    await front.front.drain();
  });

  test("close cuts at once", async () => {
    const never = gate();
    await open(() => never.opened);
    const client = await front.send(get());
    await waitFor(() => front.seen.length === 1, { what: "the request" });
    await front.front.close();
    await client.ended();
    never.open();
  });

  test("an address that is taken makes start reject", async () => {
    await open(ok);
    const second = createFront({
      listen: { host: "127.0.0.1", port: front.port },
      service: { handle: never, upgrade: never },
      limits: { bodyBytes: 1, inFlight: 1 },
      timeouts: { idleMs: 1, shutdownMs: 1 },
      encodedSlash: "refuse",
      trustedProxies: [],
      events: new Events(),
      clock: systemClock,
    });
    await expect(second.start()).rejects.toMatchObject({ code: "EADDRINUSE" });
    await second.close();
  });
});

const never = async (): Promise<never> => {
  throw new Error("never called");
};

describe("slow clients", () => {
  test("a head that is not here in time gets 408, however it trickles", async () => {
    await open(ok, { timeouts: { headersMs: 300 } });
    const client = await front.send("GET /x HTTP/1.1\r\nHost: a\r\n");
    const trickle = setInterval(() => client.send("X-A: 1\r\n"), 20);
    try {
      const answer = await client.answer();
      expect(answer.status).toBe(408);
      expect(answer.body).toContain("GW_REQUEST_TIMEOUT");
    } finally {
      clearInterval(trickle);
    }
    expect(front.seen).toHaveLength(0);
    expect(await front.fact()).toMatchObject({ status: 408, code: "GW_REQUEST_TIMEOUT", path: "" });
  });

  test("slow heads do not keep others out", async () => {
    await open(ok, { timeouts: { headersMs: 2000 } });
    for (let i = 0; i < 200; i++) await front.send("GET /x HTTP/1.1\r\nHost: a\r\n");
    expect((await ask(front.port, get())).status).toBe(200);
  });

  test("on a second request of a connection the head's time begins with its first byte", async () => {
    await open(ok, { timeouts: { headersMs: 300 } });
    const client = await front.send(get());
    await client.answer();
    const from = performance.now();
    await waitFor(() => performance.now() - from > 900, { what: "three header times" });
    client.send(get());
    expect((await client.answer()).status).toBe(200);
    client.send("GET /x HT");
    expect((await client.answer()).status).toBe(408);
  });
});

describe("a storm of broken clients", () => {
  test("leaves no place taken, no connection open and nothing unhandled", async () => {
    const chunk = Buffer.alloc(64 * 1024, "x");
    await open(
      async (exchange) => {
        if (exchange.target.target === "/held") return held.opened.then(() => exchange.reply.answer(text("ok"), []));
        try {
          await exchange.body.collect(100);
        } catch (error) {
          exchange.reply.problem(error as GatewayError, []);
          return undefined;
        }
        if (exchange.target.target === "/whole") {
          exchange.reply.answer({ ...text(""), body: chunk }, []);
          return undefined;
        }
        const sink = exchange.reply.stream(() => []);
        let sent = 0;
        const pump = (): void => {
          while (sent++ < 100) if (!sink.data(chunk)) return;
          if (sent++ < 200) sink.end([]);
        };
        sink.onDrain(pump);
        if (sink.head(200, [])) pump();
        return undefined;
      },
      { limits: { inFlight: 30 }, timeouts: { idleMs: 300 } },
    );
    let held = gate();
    let seed = 1;
    const random = (below: number): number => (seed = (seed * 48_271) % 2_147_483_647) % below;
    const requests = [
      get("", "/stream"),
      get("", "/whole"),
      "POST /whole HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
    ];
    for (let i = 0; i < 200; i++) {
      const client = await front.send(Array.from({ length: 1 + random(4) }, () => requests[random(3)]!).join(""));
      if (random(2) === 0) client.socket.pause();
      if (random(3) === 0) setImmediate(() => client.socket.resetAndDestroy());
      else if (random(2) === 0) client.socket.end();
      else setImmediate(() => client.close());
    }
    const before = front.facts.length;
    await waitFor(async () => (await ask(front.port, get("", "/whole"))).status === 200, { what: "a place" });
    expect(front.facts.length).toBeGreaterThan(before);
    await waitFor(
      async () => {
        held = gate();
        const from = front.seen.length;
        const clients = await Promise.all(Array.from({ length: 30 }, () => front.send(get("", "/held"))));
        const isRefused = (): boolean => clients.some((client) => client.received !== "");
        await waitFor(() => front.seen.length === from + 30 || isRefused(), { what: "thirty requests" });
        const isRoom = !isRefused();
        held.open();
        for (const client of clients) await client.answer();
        return isRoom;
      },
      { what: "all thirty places" },
    );
  });
});

describe("TLS", () => {
  test("is spoken where it is configured, and told to backends", async () => {
    await open(ok, { tls: { cert: certificate, key: privateKey } });
    expect(front.front.address.url).toMatch(/^https:/);
    const client = await RawClient.connect({ port: front.port, host: "localhost", tls: { ca: certificate } });
    try {
      client.send(get());
      expect((await client.answer()).body).toBe("ok");
      expect(front.seen[0]!.headers).toEqual([
        "Host",
        "a",
        "X-Forwarded-For",
        "127.0.0.1",
        "X-Forwarded-Proto",
        "https",
        "X-Forwarded-Host",
        "a",
        "Via",
        "1.1 gateway",
      ]);
    } finally {
      client.close();
    }
    const plain = await front.send(get());
    await plain.ended();
    expect(front.seen).toHaveLength(1);
  });
});

// Of `localhost`, until 2126, for nothing but this test:
// openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=localhost -addext subjectAltName=DNS:localhost
const certificate = `-----BEGIN CERTIFICATE-----
MIIBlDCCATugAwIBAgIUfZcog3KevvEYUETa3VUxQBSLuqUwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMDE3MTc1MFoYDzIxMjYxMDI3
MTcxNzUwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQyefVwLCTYu6UZYVvs/x28uNmWPrykcN9jTCd821jgkIkPSN5Wm/iJ
d4SnO0EXOiOJSMYuQRkT7dl5VzW9jjKFo2kwZzAdBgNVHQ4EFgQU30cHt2KtvZDa
Clha5lfj0n7pBlQwHwYDVR0jBBgwFoAU30cHt2KtvZDaClha5lfj0n7pBlQwDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
RwAwRAIgdYC0ZGTGajr2f9j7uHRfoWreE2fhk7IAUW8UAh1MMrQCIBZoZkjXNiGQ
0IZ+JZdI4c+UvNzg1V336qisj8/4gtYe
-----END CERTIFICATE-----
`;
const privateKey = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgzo41ullwye5SdpBq
iUAJFU1LJe36ncZA43dVre8lgEehRANCAAQyefVwLCTYu6UZYVvs/x28uNmWPryk
cN9jTCd821jgkIkPSN5Wm/iJd4SnO0EXOiOJSMYuQRkT7dl5VzW9jjKF
-----END PRIVATE KEY-----
`;
