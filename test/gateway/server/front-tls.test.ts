// HTTPS on the front: whom it lets in, what it shows, how that is renewed; and WebSockets on to copies at https://.

import { createHash } from "node:crypto";
import { createServer as createHttps } from "node:https";
import { connect as connectTls, createSecureContext } from "node:tls";
import { afterEach, describe, expect, onTestFinished, test } from "vitest";
import { dial } from "../../../gateway/drivers/dial.ts";
import { Authority, expired } from "../../helpers/certificates.ts";
import { waitFor } from "../../helpers/wait.ts";
import { startFront, text } from "./front.harness.ts";
import type { AddressInfo } from "node:net";
import type { ConnectionOptions, PeerCertificate, TLSSocket } from "node:tls";
import type { Fact } from "../../../gateway/events.ts";
import type { Settings, TestFront } from "./front.harness.ts";

const authority = new Authority("test");
const clients = new Authority("clients");

let front: TestFront;
afterEach(() => front.close());

const facts: Fact[] = [];
const open = async (settings: Settings): Promise<void> => {
  facts.length = 0;
  front = await startFront((exchange) => exchange.reply.answer(text("ok"), []), {
    ...settings,
    onFact: (fact) => facts.push(fact),
  });
};

interface Asked {
  readonly answer: string;
  readonly error: string;
  readonly shown: PeerCertificate;
}

/** One request on a connection of its own: what came back, or why nothing did. */
function ask(options: ConnectionOptions = {}): Promise<Asked> {
  return new Promise((resolve) => {
    let answer = "";
    let error = "";
    let shown = {} as PeerCertificate;
    const socket: TLSSocket = connectTls({
      port: front.port,
      host: "localhost",
      servername: "localhost",
      ca: authority.cert,
      ...options,
    });
    socket.on("secureConnect", () => {
      shown = socket.getPeerCertificate();
      socket.write("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    });
    socket.on("data", (bytes: Buffer) => (answer += bytes.toString("latin1")));
    socket.on("error", (cause) => (error = cause.message));
    socket.on("close", () => resolve({ answer, error, shown }));
  });
}

describe("a front with TLS", () => {
  test("shows a renewed certificate from the next connection on, and keeps those that are open", async () => {
    const [first, second] = [authority.issue(), authority.issue()];
    await open({ tls: first });
    const kept = connectTls({ port: front.port, host: "localhost", ca: authority.cert });
    onTestFinished(() => void kept.destroy());
    let received = "";
    kept.on("data", (bytes: Buffer) => (received += bytes.toString("latin1")));
    await new Promise<void>((resolve) => kept.once("secureConnect", () => resolve()));
    const before = (await ask()).shown.fingerprint256;
    front.front.renew(second);
    const after = await ask();
    expect(after.answer).toMatch(/^HTTP\/1\.1 200 /);
    expect(after.shown.fingerprint256).not.toBe(before);
    kept.write("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    await waitFor(() => received.startsWith("HTTP/1.1 200 "), { what: "an answer on the former connection" });
  });

  test("speaks nothing older than TLS 1.2, before and after a renewal", async () => {
    await open({ tls: authority.issue() });
    for (let round = 0; round < 2; round += 1) {
      const old = await ask({ minVersion: "TLSv1", maxVersion: "TLSv1.1", ciphers: "DEFAULT:@SECLEVEL=0" });
      expect(old.answer).toBe("");
      expect(old.error).not.toBe("");
      expect((await ask({ maxVersion: "TLSv1.2" })).answer).toMatch(/^HTTP\/1\.1 200 /);
      front.front.renew(authority.issue());
    }
  });

  test.each(["TLSv1.2", "TLSv1.3"] as const)(
    "lets in by %s only who has a certificate of the clients' authority",
    async (version) => {
      await open({ tls: { ...authority.issue(), clientCa: clients.cert } });
      const only = { minVersion: version, maxVersion: version } as const;
      expect((await ask({ ...only, ...clients.issue({ name: "a client" }) })).answer).toMatch(/^HTTP\/1\.1 200 /);
      for (const shown of [{}, authority.issue({ name: "of the servers" }), clients.issue(expired)]) {
        const refused = await ask({ ...only, ...shown });
        expect(refused.answer).toBe("");
      }
      await waitFor(() => facts.filter((it) => it.type === "handshake-failed").length === 3, {
        what: "three failures",
      });
      expect(front.seen).toHaveLength(1);
    },
  );

  test("asks for certificates of another authority once it was renewed with one, tickets of earlier sessions notwithstanding", async () => {
    const others = new Authority("others");
    const own = authority.issue();
    await open({ tls: { ...own, clientCa: clients.cert } });
    const client = clients.issue({ name: "a client" });
    let session: Buffer | undefined;
    await new Promise<void>((resolve) => {
      const socket = connectTls({ port: front.port, host: "localhost", ca: authority.cert, ...client });
      socket.once("session", (bytes: Buffer) => {
        session = bytes;
        socket.destroy();
        resolve();
      });
    });
    front.front.renew({ ...own, clientCa: others.cert });
    expect((await ask({ ...client, ...(session === undefined ? null : { session }) })).answer).toBe("");
    expect((await ask(others.issue())).answer).toMatch(/^HTTP\/1\.1 200 /);
  });
});

async function startCopy(pair = authority.issue()): Promise<{ readonly url: string; readonly names: string[] }> {
  const names: string[] = [];
  const server = createHttps({
    ...pair,
    ca: authority.cert,
    requestCert: true,
    rejectUnauthorized: true,
  });
  server.on("upgrade", (request, socket) => {
    names.push(String((request.socket as TLSSocket).getPeerCertificate().subject?.CN));
    socket.on("error", () => {});
    const accept = createHash("sha1")
      .update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
      .digest("base64");
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
    );
    // One text frame.
    socket.write(Buffer.from([0x81, 5, ...Buffer.from("hello")]));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `https://localhost:${(server.address() as AddressInfo).port}`, names };
}

describe("a WebSocket to a copy at https://", () => {
  const key = "dGhlIHNhbXBsZSBub25jZQ==";
  const upgrade = `GET /live HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: ${key}\r\nSec-WebSocket-Version: 13\r\n\r\n`;

  test("is opened with the gateway's certificate, to a copy that its authority vouches for", async () => {
    const copy = await startCopy();
    const context = createSecureContext({ ca: authority.cert, ...authority.issue({ name: "gw-1" }) });
    await open({ upgrade: async () => ({ url: copy.url, replica: "b" }), dial: (url) => dial(url, () => context) });
    const client = await front.send(upgrade);
    await waitFor(() => client.received.includes("hello"), { what: "the copy's frame" });
    expect(copy.names).toEqual(["gw-1"]);
  });

  test.each([
    ["that is not believed", () => ({ ca: clients.cert }), {}],
    ["that was made for other names", () => ({ ca: authority.cert }), { hosts: [`${"elsewhere.".repeat(12)}example`] }],
  ])(
    "is closed where the copy shows a certificate %s, and the client hears no more than that",
    async (_what, tls, pair) => {
      const copy = await startCopy(authority.issue(pair));
      const context = createSecureContext({ ...tls(), ...authority.issue({ name: "gw-1" }) });
      await open({ upgrade: async () => ({ url: copy.url, replica: "b" }), dial: (url) => dial(url, () => context) });
      const client = await front.send(upgrade);
      // Opcode 8, the length, 1011 and the reason.
      await waitFor(() => client.received.includes("\x88\x19\x03\xf3no connection to a copy"), { what: "the close" });
      expect(copy.names).toEqual([]);
      expect(facts).toContainEqual(
        expect.objectContaining({ type: "warning", detail: expect.stringContaining(copy.url) }),
      );
    },
  );
});
