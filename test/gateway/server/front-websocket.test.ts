// WebSocket upgrades through @fastify/http-proxy, by hand: frames are written and read as bytes.

import { createHash, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { GatewayError } from "../../../gateway/errors.ts";
import { waitFor } from "../../helpers/wait.ts";
import { gate, pour, startFront, text, untilStill } from "./front.harness.ts";
import type { Server } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { RawClient } from "../../helpers/raw-client.ts";
import type { Settings, TestFront } from "./front.harness.ts";

interface Opened {
  readonly line: string;
  readonly headers: readonly string[];
}

/** Answers every text or binary frame with the same, and a close with a close. */
class EchoBackend {
  readonly opened: Opened[] = [];
  readonly sockets: Socket[] = [];
  received = 0;
  /** Do not read what comes. */
  isDeaf = false;
  readonly #server: Server;

  constructor() {
    this.#server = createServer();
    this.#server.on("upgrade", (request, socket: Socket) => {
      this.opened.push({ line: `${request.method} ${request.url}`, headers: request.rawHeaders });
      this.sockets.push(socket);
      const accept = createHash("sha1")
        .update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
        .digest("base64");
      const protocol = request.headers["sec-websocket-protocol"];
      socket.write(
        `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n` +
          `${protocol === undefined ? "" : `Sec-WebSocket-Protocol: ${protocol}\r\n`}\r\n`,
      );
      if (this.isDeaf) return;
      let unread = Buffer.alloc(0);
      socket.on("error", () => {});
      socket.on("data", (chunk: Buffer) => {
        unread = Buffer.concat([unread, chunk]);
        for (let frame = readFrame(unread); frame !== null; frame = readFrame(unread)) {
          unread = unread.subarray(frame.length);
          this.received += frame.payload.length;
          socket.write(writeFrame(frame.opcode, frame.payload, false));
          if (frame.opcode === 8) socket.end();
        }
      });
    });
  }

  async start(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }
}

interface Frame {
  readonly opcode: number;
  readonly payload: Buffer;
  readonly length: number;
}

function readFrame(bytes: Buffer): Frame | null {
  if (bytes.length < 2) return null;
  const isMasked = (bytes[1]! & 0x80) !== 0;
  let size = bytes[1]! & 0x7f;
  let at = 2;
  if (size === 126) {
    if (bytes.length < 4) return null;
    size = bytes.readUInt16BE(2);
    at = 4;
  } else if (size === 127) {
    if (bytes.length < 10) return null;
    size = Number(bytes.readBigUInt64BE(2));
    at = 10;
  }
  const mask = isMasked ? bytes.subarray(at, at + 4) : null;
  if (isMasked) at += 4;
  if (bytes.length < at + size) return null;
  const payload = Buffer.from(bytes.subarray(at, at + size));
  if (mask !== null) for (let i = 0; i < payload.length; i++) payload[i]! ^= mask[i % 4]!;
  return { opcode: bytes[0]! & 0x0f, payload, length: at + size };
}

function writeFrame(opcode: number, payload: Buffer, isMasked: boolean): Buffer {
  const size = payload.length;
  const head = size < 126 ? Buffer.from([0, size]) : size < 65536 ? Buffer.alloc(4) : Buffer.alloc(10);
  if (head.length === 4) head.writeUInt16BE(size, 2);
  if (head.length === 10) head.writeBigUInt64BE(BigInt(size), 2);
  if (head.length > 2) head[1] = head.length === 4 ? 126 : 127;
  head[0] = 0x80 | opcode;
  if (!isMasked) return Buffer.concat([head, payload]);
  head[1]! |= 0x80;
  const mask = randomBytes(4);
  const masked = Buffer.from(payload);
  for (let i = 0; i < size; i++) masked[i]! ^= mask[i % 4]!;
  return Buffer.concat([head, mask, masked]);
}

let front: TestFront;
let backend: EchoBackend;
beforeEach(async () => {
  backend = new EchoBackend();
  await backend.start();
});
afterEach(async () => {
  await front.close();
  await backend.close();
});

const key = "dGhlIHNhbXBsZSBub25jZQ==";
const upgrade = (fields = "", target = "/live"): string =>
  `GET ${target} HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: ${key}\r\nSec-WebSocket-Version: 13\r\n${fields}\r\n`;

const open = async (settings: Settings = {}): Promise<void> => {
  front = await startFront((exchange) => exchange.reply.answer(text("plain"), []), {
    upgrade: async () => ({ url: backend.url, replica: "b" }),
    ...settings,
  });
};

const frameOf = async (client: RawClient): Promise<Frame> => {
  const headEnd = client.received.indexOf("\r\n\r\n") + 4;
  const frame = await waitFor(() => readFrame(Buffer.from(client.received.slice(headEnd), "latin1")), {
    what: "a frame",
  });
  client.received = client.received.slice(0, headEnd) + client.received.slice(headEnd + frame.length);
  return frame;
};

const connectTo = async (fields = "", target = "/live"): Promise<RawClient> => {
  const client = await front.send(upgrade(fields, target));
  await waitFor(() => client.received.includes("\r\n\r\n"), { what: "the handshake" });
  expect(client.received).toMatch(/^HTTP\/1\.1 101 /);
  return client;
};

describe("an upgrade that a rule allows", () => {
  test("is answered with the right key, and echoes text, binary, empty and large messages", async () => {
    await open();
    const client = await connectTo();
    expect(client.received).toContain("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    for (const [opcode, payload] of [
      [1, Buffer.from("héllo")],
      [2, randomBytes(1000)],
      [1, Buffer.alloc(0)],
      [2, randomBytes(200_000)],
    ] as const) {
      client.send(writeFrame(opcode, payload, true));
      const frame = await frameOf(client);
      expect([frame.opcode, frame.payload.equals(payload)]).toEqual([opcode, true]);
    }
    expect(await front.fact()).toMatchObject({
      status: 101,
      method: "GET",
      path: "/live",
      replica: "b",
      mode: "only-once",
    });
    expect(front.seen).toHaveLength(0);
  });

  test("frames that come with the handshake are not lost", async () => {
    const held = gate();
    await open({
      upgrade: async () => {
        await held.opened;
        return { url: backend.url, replica: "b" };
      },
    });
    const client = await front.send(Buffer.concat([Buffer.from(upgrade()), writeFrame(1, Buffer.from("one"), true)]));
    client.send(writeFrame(1, Buffer.from("two"), true));
    await waitFor(() => client.socket.writableLength === 0, { what: "the frames to be out" });
    held.open();
    await waitFor(() => client.received.includes("\r\n\r\n"), { what: "the handshake" });
    expect([(await frameOf(client)).payload.toString(), (await frameOf(client)).payload.toString()]).toEqual([
      "one",
      "two",
    ]);
  });

  test("the backend gets the fields that every request gets, the client's Replication fields not among them", async () => {
    await open();
    await connectTo(
      "Origin: http://a.example\r\nCookie: sid=1\r\nAuthorization: Bearer x\r\nX-A: 1\r\nx-a: 2\r\n" +
        "Replication-Seed: 1\r\nReplication-Position: 4@a\r\nX-Forwarded-For: 9.9.9.9\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
    );
    await waitFor(() => backend.opened.length === 1, { what: "the backend" });
    const { headers } = backend.opened[0]!;
    const own = headers.filter((_, i) => i % 2 === 0 && !/^(sec-websocket|connection|upgrade)/i.test(headers[i]!));
    expect(own).toEqual([
      "Host",
      "Origin",
      "Cookie",
      "Authorization",
      "X-A",
      "X-A",
      "X-Forwarded-For",
      "X-Forwarded-Proto",
      "X-Forwarded-Host",
      "Via",
    ]);
    const valueOf = (name: string): string => headers[headers.indexOf(name) + 1]!;
    expect([valueOf("Host"), valueOf("Cookie"), valueOf("X-Forwarded-For"), valueOf("Via")]).toEqual([
      "a.example",
      "sid=1",
      "127.0.0.1",
      "1.1 gateway",
    ]);
  });

  for (const [target, line] of [
    ["/live?a='b'&c=%2f|d", "/live?a='b'&c=%2f|d"],
    ["//double//slash", "//double//slash"],
    ["/%6cive/%e2%82%ac", "/live/%E2%82%AC"],
    ["/a;v=1/b*(c)", "/a;v=1/b*(c)"],
    [`/${"long/".repeat(100)}`, `/${"long/".repeat(100)}`],
  ] as const) {
    test(`the target ${target.slice(0, 30)} arrives byte for byte`, async () => {
      await open();
      await connectTo("", target);
      await waitFor(() => backend.opened.length === 1, { what: "the backend" });
      expect(backend.opened[0]!.line).toBe(`GET ${line}`);
    });
  }

  test("the first subprotocol is offered and confirmed", async () => {
    await open();
    const client = await connectTo("Sec-WebSocket-Protocol: chat, superchat\r\n");
    expect(client.received).toContain("Sec-WebSocket-Protocol: chat\r\n");
    await waitFor(() => backend.opened.length === 1, { what: "the backend" });
    const { headers } = backend.opened[0]!;
    expect(headers[headers.indexOf("Sec-WebSocket-Protocol") + 1]).toBe("chat");
  });

  test("each goes to the copy that the flow names", async () => {
    const other = new EchoBackend();
    await other.start();
    try {
      await open({
        upgrade: async (head) => ({ url: head.target.segments[0] === "b" ? other.url : backend.url, replica: "x" }),
      });
      await Promise.all([connectTo("", "/a"), connectTo("", "/b"), connectTo("", "/b")]);
      await waitFor(() => backend.opened.length === 1 && other.opened.length === 2, { what: "all three" });
    } finally {
      await other.close();
    }
  });

  test("a close goes through with its code", async () => {
    await open();
    const client = await connectTo();
    client.send(writeFrame(8, Buffer.from([0x0b, 0xb8]), true));
    const frame = await frameOf(client);
    expect([frame.opcode, frame.payload.readUInt16BE(0)]).toEqual([8, 3000]);
    await client.ended();
  });

  test("a backend that cannot be reached closes the socket", async () => {
    await open({ upgrade: async () => ({ url: "http://127.0.0.1:1", replica: "b" }) });
    const client = await connectTo();
    const frame = await frameOf(client);
    expect([frame.opcode, frame.payload.readUInt16BE(0)]).toEqual([8, 1011]);
  });

  test("a backend that does not read stops the client, and memory with it", async () => {
    backend.isDeaf = true;
    await open();
    const client = await connectTo();
    await waitFor(() => backend.opened.length === 1, { what: "the backend" });
    const poured = pour(client, writeFrame(2, Buffer.alloc(256 * 1024), true), 256);
    expect(await untilStill(() => poured.sent, 0, "the client to stand still")).toBeLessThan(128);
    expect(client.isEnded).toBe(false);
    // And goes on when the backend reads.
    backend.sockets[0]!.resume();
    await waitFor(() => poured.sent === 256, { what: "the rest to go out" });
  });

  test("draining tells both ends that the gateway goes away", async () => {
    await open();
    const client = await connectTo();
    await waitFor(() => backend.opened.length === 1, { what: "the backend" });
    client.send(writeFrame(1, Buffer.from("one"), true));
    await frameOf(client);
    const drained = front.front.drain();
    const frame = await frameOf(client);
    expect([frame.opcode, frame.payload.readUInt16BE(0)]).toEqual([8, 1001]);
    client.send(writeFrame(8, frame.payload, true));
    client.socket.end();
    await drained;
  });

  test("a client that does not answer a close is cut at the deadline", async () => {
    await open({ timeouts: { shutdownMs: 200 } });
    const client = await connectTo();
    await front.front.drain();
    await client.ended();
  });
});

describe("an upgrade that nobody allows", () => {
  test("is refused with a problem, and nothing behind it is read", async () => {
    await open({ upgrade: async () => new GatewayError("GW_UPGRADE_REFUSED", "no rule allows this upgrade") });
    const client = await front.send(`${upgrade()}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n`);
    const answer = await client.answer();
    expect([answer.status, answer.field("content-type"), answer.field("connection")]).toEqual([
      400,
      "application/problem+json",
      "close",
    ]);
    await client.ended();
    expect(front.seen).toHaveLength(0);
    expect(backend.opened).toHaveLength(0);
    expect(await front.fact()).toMatchObject({ status: 400, code: "GW_UPGRADE_REFUSED", method: "GET", path: "/live" });
  });

  test("has the flow's status, and when to come back", async () => {
    await open({ upgrade: async () => new GatewayError("GW_NO_REPLICA", "none is live") });
    const client = await front.send(upgrade());
    const answer = await client.answer();
    expect([answer.status, answer.field("retry-after")]).toEqual([503, "1"]);
  });

  test("a flow that rejects gives 500", async () => {
    await open({
      upgrade: async () => {
        throw new Error("secret");
      },
    });
    const client = await front.send(upgrade());
    const answer = await client.answer();
    expect(answer.status).toBe(500);
    expect(answer.body).not.toContain("secret");
  });

  test("plain requests on the same path stay with the flow", async () => {
    await open();
    const client = await front.send("GET /live HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n");
    expect((await client.answer()).body).toBe("plain");
  });

  test("a draining gateway begins none", async () => {
    const never = gate();
    front = await startFront(() => never.opened, { upgrade: async () => ({ url: backend.url, replica: "b" }) });
    const busy = await front.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    await waitFor(() => front.seen.length === 1, { what: "the request" });
    const client = await front.connect();
    client.send("GET /li");
    await waitFor(() => client.socket.writableLength === 0, { what: "the first bytes to be out" });
    void front.front.drain();
    client.send(upgrade().slice("GET /li".length));
    await client.ended();
    if (client.received !== "") expect((await client.answer()).body).toContain("GW_STOPPING");
    expect(backend.opened).toHaveLength(0);
    busy.close();
    never.open();
  });
});
