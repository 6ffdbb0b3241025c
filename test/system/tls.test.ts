// TLS everywhere at once, with real servers: clients to the front, the gateway to its copies, to NATS with its monitor, and to Redis.
// Certificates are renewed while it runs; wrong ones are told of, and cost nothing that was acknowledged.

import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:https";
import { join } from "node:path";
import { connect } from "node:tls";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { Client } from "undici";
import { Authority, expired, writePair } from "../helpers/certificates.ts";
import { createFolder, removeFolder } from "../helpers/folder.ts";
import { runToExit, startGateway } from "../helpers/gateway.ts";
import { freePort, startNats, startRedis } from "../helpers/servers.ts";
import { waitFor } from "../helpers/wait.ts";
import type { Server } from "node:https";
import type { AddressInfo } from "node:net";
import type { TLSSocket } from "node:tls";
import type { Gateway } from "../helpers/gateway.ts";
import type { NatsServer, RedisServer } from "../helpers/servers.ts";

const authority = new Authority("services");
const clients = new Authority("clients");
const stranger = new Authority("stranger");
const folder = createFolder("tls");
const own = writePair(folder, "gw", authority.issue({ name: "gw-1" }), authority.cert);
const canaries = ["canary-of-nats", "canary-of-redis"];

let nats: NatsServer;
let redis: RedisServer;
let redisPort = 0;
beforeAll(async () => {
  const { caFile, certFile, keyFile } = writePair(folder, "servers", authority.issue(), authority.cert);
  redisPort = await freePort();
  nats = await startNats({
    monitorsByTls: true,
    config: [
      `tls { cert_file: "${certFile}", key_file: "${keyFile}", ca_file: "${caFile}", verify: true, timeout: 5 }`,
      `authorization { user: "gw", password: "${canaries[0]}" }`,
    ],
  });
  redis = await startRedis({
    appendonly: true,
    config: [
      `tls-port ${redisPort}`,
      `tls-cert-file ${certFile}`,
      `tls-key-file ${keyFile}`,
      `tls-ca-cert-file ${caFile}`,
      `user gw on >${canaries[1]} ~gw:* +@all`,
    ],
  });
});
afterAll(async () => {
  await nats.close();
  await redis.close();
  removeFolder(folder);
});

/** Keeps what it is sent in order; gives and takes all of it. Speaks only with whom its authority vouches for. */
class Copy {
  readonly name: string;
  items: string[] = [];
  readonly askers = new Set<string>();
  requests = 0;
  readonly #server: Server;

  constructor(name: string) {
    this.name = name;
    this.#server = createServer(
      { ...authority.issue(), ca: authority.cert, requestCert: true, rejectUnauthorized: true },
      (request, response) => {
        this.askers.add(String((request.socket as TLSSocket).getPeerCertificate().subject?.CN));
        let body = "";
        request.on("data", (bytes: Buffer) => (body += bytes.toString()));
        request.on("end", () => {
          if (request.method === "POST") this.items.push(`${body} by ${String(request.headers["x-forwarded-proto"])}`);
          if (request.method === "POST") this.requests += 1;
          if (request.method === "PUT") this.items = JSON.parse(body) as string[];
          const text = JSON.stringify(this.items);
          response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(text) });
          response.end(text);
        });
      },
    );
  }

  get url(): string {
    return `https://localhost:${(this.#server.address() as AddressInfo).port}`;
  }
  renew(): void {
    this.#server.setSecureContext({ ...authority.issue(), ca: authority.cert });
  }
  spoil(pair = stranger.issue()): void {
    this.#server.setSecureContext({ ...pair, ca: authority.cert });
    this.#server.closeAllConnections();
  }
  async start(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return this;
  }
  close(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }
}

async function startCopies(): Promise<readonly Copy[]> {
  const copies = await Promise.all(["a", "b", "c"].map((name) => new Copy(name).start()));
  onTestFinished(() => {
    for (const copy of copies) copy.close();
  });
  return copies;
}

const files = (name: string) => ({ certFile: join(folder, `${name}.pem`), keyFile: join(folder, `${name}.key`) });
const toCopies = (copies: readonly Copy[]): Record<string, unknown> => ({
  replicas: copies.map(({ name, url }) => ({ name, url, onReturn: "trust" })),
  upstream: own,
});

async function start(config: Readonly<Record<string, unknown>>): Promise<Gateway> {
  const gateway = await startGateway({ config });
  onTestFinished(() => gateway.close());
  return gateway;
}

/** Asks with a client's certificate. */
async function ask(
  gateway: Gateway,
  method: "GET" | "POST",
  body: string | null = null,
  headers: Record<string, string> = {},
) {
  const { port } = new URL(gateway.front);
  const client = new Client(`https://localhost:${port}`, {
    connect: { ca: authority.cert, ...clients.issue({ name: "a client" }) },
  });
  try {
    const answer = await client.request({ method, path: "/items", body, headers });
    return {
      status: answer.statusCode,
      outcome: answer.headers["replication-outcome"],
      text: await answer.body.text(),
    };
  } finally {
    await client.destroy();
  }
}

function shownBy(gateway: Gateway): Promise<string> {
  return new Promise((resolve, reject) => {
    const { port } = new URL(gateway.front);
    const socket = connect({ port: Number(port), host: "localhost", ca: authority.cert, ...clients.issue() }, () => {
      resolve(socket.getPeerCertificate().fingerprint256);
      socket.destroy();
    });
    socket.on("error", reject);
  });
}

describe("TLS everywhere", () => {
  test("a service is served, captured and brought back, and no secret is told of", async () => {
    const copies = await startCopies();
    writeFileSync(join(folder, "clients-ca.pem"), clients.cert);
    writePair(folder, "front", authority.issue());
    writeFileSync(join(folder, "nats.password"), `${canaries[0]}\n`, { mode: 0o600 });
    writeFileSync(join(folder, "redis.url"), `rediss://gw:${canaries[1]}@localhost:${redisPort}\n`, { mode: 0o600 });
    const gateway = await start({
      ...toCopies(copies),
      tls: { ...files("front"), clientCaFile: join(folder, "clients-ca.pem") },
      health: { request: "GET /items", every: "200ms" },
      log: {
        minGuarantee: "power-loss",
        nats: {
          servers: [`tls://localhost:${nats.port}`],
          monitor: [nats.monitorUrl],
          user: "gw",
          passwordFile: join(folder, "nats.password"),
          tls: own,
        },
      },
      keys: { redis: { urlFile: join(folder, "redis.url"), tls: own } },
      snapshots: { capture: { export: "GET /dump", import: "PUT /dump" }, store: "nats://tls-snapshots" },
    });
    await gateway.until("three live copies", 20_000, (status) => status.live === 3);
    for (let n = 0; n < 20; n += 1)
      expect(await ask(gateway, "POST", `item ${n}`, { "idempotency-key": `k-${n}` })).toMatchObject({
        status: 200,
        outcome: "executed",
      });
    const all = JSON.stringify(Array.from({ length: 20 }, (_, n) => `item ${n} by https`));
    await waitFor(() => copies.every((it) => JSON.stringify(it.items) === all), { what: "equal copies" });
    expect(await ask(gateway, "POST", "item 0", { "idempotency-key": "k-0" })).toMatchObject({
      text: '["item 0 by https"]',
    });
    expect((await ask(gateway, "GET")).text).toBe(all);

    expect((await gateway.api("POST", "/v1/snapshots", {})).status).toBe(202);
    await gateway.until("a snapshot", 20_000, (status) => status.snapshots?.kept === 1);
    await ask(gateway, "POST", "after it");
    copies[1]!.items = ["spoilt"];
    expect((await gateway.api("POST", "/v1/replicas/b/rebuild", {})).status).toBe(202);
    const whole = JSON.stringify([...(JSON.parse(all) as string[]), "after it by https"]);
    await waitFor(() => copies.every((it) => JSON.stringify(it.items) === whole), {
      what: "the rebuilt copy",
      timeoutMs: 20_000,
    });
    for (const copy of copies) expect([...copy.askers]).toEqual(["gw-1"]);

    // A client without a certificate is let nowhere; a renewed one is shown within seconds.
    const { port } = new URL(gateway.front);
    const bare = new Client(`https://localhost:${port}`, { connect: { ca: authority.cert } });
    await expect(bare.request({ method: "GET", path: "/items" })).rejects.toThrow();
    await bare.destroy();
    expect(await gateway.metric("gateway_tls_handshake_failures_total")).toBeGreaterThan(0);
    const before = await shownBy(gateway);
    writePair(folder, "front", authority.issue({ to: new Date("2040-01-01T00:00:00Z") }));
    await waitFor(async () => (await shownBy(gateway)) !== before, { what: "the renewed certificate" });
    const ends = { use: "tls" };
    expect(await gateway.metric("gateway_certificate_not_after_timestamp_seconds", ends)).toBe(
      Date.parse("2040-01-01T00:00:00Z") / 1000,
    );
    for (const use of ["upstream", "log.nats.tls"])
      expect(await gateway.metric("gateway_certificate_not_after_timestamp_seconds", { use })).toBeGreaterThan(
        Date.now() / 1000,
      );
    writeFileSync(files("front").keyFile, stranger.issue().key);
    const trouble = async (): Promise<boolean> =>
      (await gateway.metric("gateway_certificate_last_reload_successful", ends)) === 0;
    await waitFor(trouble, { what: "the refused pair" });
    expect((await ask(gateway, "GET")).text).toBe(whole);
    writePair(folder, "front", authority.issue());
    await waitFor(async () => !(await trouble()), { what: "a sound pair" });

    expect(await gateway.stop()).toBe(0);
    const told = gateway.output();
    expect(told).toContain("is not the key of the certificate");
    for (const secret of [...canaries, readFileSync(own.keyFile, "utf8").split("\n")[1] ?? "?"])
      expect(told).not.toContain(secret);
  }, 90_000);

  test("a copy whose certificate goes bad loses nothing: the others answer, it is given the rest when it is mended", async () => {
    const copies = await startCopies();
    const gateway = await start({ ...toCopies(copies), health: { every: "200ms" }, tls: files("servers") });
    await gateway.until("three live copies", 20_000, (status) => status.live === 3);
    const [bad] = copies as [Copy];
    for (const spoilt of [
      stranger.issue(),
      authority.issue(expired),
      authority.issue({ hosts: ["elsewhere.example"] }),
    ]) {
      // What is in flight when its connection is cut would rightly be unknown.
      await gateway.until("nothing is under way", 20_000, ({ replicas }) =>
        replicas.every((it) => it.lag === 0 && it.inFlight === 0),
      );
      bad.spoil(spoilt);
      for (let n = 0; n < 5; n += 1)
        expect(await ask(gateway, "POST", "x")).toMatchObject({ status: 200, outcome: "executed" });
      await gateway.until("it is not live", 20_000, (status) => status.live === 2);
      bad.renew();
      await gateway.until("it is live again", 30_000, (status) => status.live === 3);
    }
    await waitFor(() => copies.every((it) => it.requests === 15 && it.items.length === 15), {
      what: "fifteen on each",
    });
    expect((await gateway.status()).replicas.flatMap((it) => it.unknown)).toEqual([]);
  }, 90_000);

  test("what is wrong at the start is told with its place and code, and the process ends", async () => {
    const copies = await startCopies();
    const wrong = await runToExit({
      config: { ...toCopies(copies), tls: { certFile: own.certFile, keyFile: join(folder, "gone.key") } },
    });
    expect(wrong).toMatchObject({ code: 2 });
    expect(wrong.stderr).toMatch(/gateway\.yaml:\d+:\d+: tls\.keyFile: .*gone\.key does not exist/);
    const foreign = writePair(createFolder("foreign"), "gw", stranger.issue(), stranger.cert);
    const servers = [`nats://localhost:${nats.port}`];
    const refused = await runToExit({
      config: { ...toCopies(copies), log: { nats: { servers, tls: { caFile: foreign.caFile } } } },
    });
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/TLS failed \((self-signed|unable to)/);
    expect(refused.stderr).toContain("GW_LOG_CONFIGURATION");
  });
});
