// A canary in every secret place of a configuration and of clients' requests: real traffic, real errors, every store away for a while.
// Afterwards none of them sings in anything that people, programs or other machines get to read.

import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { nkeys } from "@nats-io/transport-node";
import { computeAddress } from "ethers";
import { Agent, request } from "undici";
import { expect, onTestFinished, test } from "vitest";
import { startAnvil } from "../helpers/anvil.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import { startGateway } from "../helpers/gateway.ts";
import { ask } from "../helpers/raw-client.ts";
import { startS3Stub } from "../helpers/s3-stub.ts";
import { startNats, startRedis } from "../helpers/servers.ts";
import { waitFor } from "../helpers/wait.ts";
import { demoShop, runCli } from "./recorded.ts";
import type { Anvil } from "../helpers/anvil.ts";

/** Whatever it is written in, a secret is a secret. */
function formsOf(canary: string): string[] {
  const bytes = Buffer.from(canary);
  const isHex = /^[0-9a-f]{64}$/.test(canary);
  const raw = isHex ? Buffer.from(canary, "hex") : bytes;
  const base64 = raw.toString("base64").replace(/=+$/, "");
  return [
    canary,
    raw.toString("latin1"),
    raw.toString("hex"),
    base64,
    raw.toString("base64url"),
    encodeURIComponent(canary),
  ];
}

const canary = (name: string): string => `canary-${name}-${randomBytes(9).toString("hex")}`;
const hex = (): string => randomBytes(32).toString("hex");

const everything = (folder: string): Map<string, Buffer> =>
  new Map(
    readdirSync(folder, { withFileTypes: true, recursive: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .map((path) => [path, readFileSync(path)]),
  );

test("no secret is in anything that is printed, answered, kept or published", { timeout: 240_000 }, async () => {
  const folder = temporaryFolder("canaries");
  const file = (name: string, text: string): string => {
    writeFileSync(join(folder, name), text, { mode: 0o600 });
    return join(folder, name);
  };
  const user = nkeys.createUser();
  const seed = Buffer.from(user.getSeed()).toString();
  /** The gateway's own. */
  const own = {
    adminToken: canary("admin"),
    redisPassword: canary("redis"),
    natsSeed: seed,
    natsJwt: canary("jwt"),
    s3Secret: "the-secret-of-the-stub",
    snapshotKey: hex(),
    registryKey: hex(),
    rpcKey: canary("rpc"),
    replayToken: canary("replay"),
    backendEnv: canary("env"),
  };
  /** Of clients. The log has to keep what it replays; nobody else has to. */
  const clients = {
    authorization: canary("authorization"),
    basic: Buffer.from(`user:${canary("basic")}`).toString("base64"),
    otherCaller: canary("other"),
    cookie: canary("cookie"),
    apiKey: canary("apikey"),
    query: canary("query"),
    key: canary("key"),
    wrongToken: canary("wrong"),
  };

  const [nats, redis, anvil, s3] = await Promise.all([
    startNats({ config: [`authorization { users = [ { nkey: ${user.getPublicKey()} } ] }`] }),
    startRedis({ appendonly: true, config: [`requirepass ${own.redisPassword}`, "maxmemory-policy noeviction"] }),
    startAnvil(),
    startS3Stub(),
  ]);
  onTestFinished(async () => {
    await Promise.all([nats.close(), redis.close(), anvil.close(), s3.close()]);
  });
  const keyFile = file("registry.key", own.registryKey);
  await anvil.fund(computeAddress(`0x${own.registryKey}`), 10);
  const rpc = `${anvil.url}/?apikey=${own.rpcKey}`;
  const printed: string[] = [];
  const cli = async (...args: string[]): Promise<string> => {
    const ran = await runCli(args, { env });
    printed.push(ran.stdout, ran.stderr);
    return ran.stdout;
  };
  const env = {
    AWS_ENDPOINT_URL: s3.access.endpoint,
    AWS_REGION: s3.access.region,
    AWS_ACCESS_KEY_ID: s3.access.accessKeyId,
    AWS_SECRET_ACCESS_KEY: own.s3Secret,
    REPLAY_TOKEN: own.replayToken,
    RPC_URL: rpc,
    BACKEND_ENV: own.backendEnv,
  };
  const deployed = await cli("registry", "deploy", "--rpc", rpc, "--key-file", keyFile, "--json");
  const { contract } = JSON.parse(deployed) as { contract: string };

  const gateway = await startGateway({
    env,
    withinMs: 60_000,
    until: "live",
    config: {
      admin: { tokenFile: file("admin.token", own.adminToken) },
      logs: { level: "trace", format: "json" },
      log: {
        nats: {
          servers: [nats.url],
          monitor: [nats.monitorUrl],
          credentialsFile: file(
            "nats.creds",
            `-----BEGIN NATS USER JWT-----\n${own.natsJwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n${seed}\n------END USER NKEY SEED------\n`,
          ),
        },
      },
      keys: { redis: { urlFile: file("redis.url", `redis://:${own.redisPassword}@127.0.0.1:${redis.port}`) } },
      replicas: { count: 3, command: demoShop, state: join(folder, "state"), env: { SECRET: "${BACKEND_ENV}" } },
      rules: [
        { name: "refused", match: "* /refused/*", mode: "refuse", status: 404 },
        {
          name: "order",
          match: "POST /orders",
          mode: "replicate",
          key: { required: true },
          replay: { set: { authorization: "Bearer ${REPLAY_TOKEN}" } },
        },
        { name: "once", match: "POST /accounts", mode: "only-once" },
      ],
      snapshots: {
        store: `s3://${s3.access.bucket}/shop`,
        every: { entries: 1_000_000 },
        encrypt: { keyFile: file("snapshot.key", own.snapshotKey) },
      },
      registry: { ethereum: { rpc: ["${RPC_URL}"], contract, keyFile, confirmations: 1 } },
    },
  });
  onTestFinished(() => gateway.close());
  const agent = new Agent({ connections: 8 });
  onTestFinished(() => agent.close());
  const answers: string[] = [];
  const send = async (
    method: "GET" | "POST" | "PUT",
    path: string,
    headers: Record<string, string> = {},
    body?: object,
  ) => {
    const answer = await request(`${gateway.front}${path}`, {
      method,
      dispatcher: agent,
      headers: {
        authorization: `Bearer ${clients.authorization}`,
        cookie: `sid=${clients.cookie}`,
        "x-api-key": clients.apiKey,
        "content-type": "application/json",
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await answer.body.text();
    answers.push(JSON.stringify(answer.headers), text);
    return { status: answer.statusCode, headers: answer.headers, text };
  };
  const admin = async (
    method: "GET" | "POST",
    path: string,
    token = own.adminToken,
  ): Promise<{ status: number; text: string }> => {
    const answer = await request(`${gateway.admin}${path}`, {
      method,
      dispatcher: agent,
      headers: {
        authorization: `Bearer ${token}`,
        ...(method === "POST" ? { "content-type": "application/json" } : {}),
      },
      ...(method === "POST" ? { body: "{}" } : {}),
    });
    const text = await answer.body.text();
    answers.push(JSON.stringify(answer.headers), text);
    return { status: answer.statusCode, text };
  };
  const statusIs = async (isTrue: (status: Record<string, unknown>) => boolean, what: string): Promise<void> => {
    await waitFor(async () => isTrue(JSON.parse((await admin("GET", "/v1/status")).text) as Record<string, unknown>), {
      what,
      timeoutMs: 60_000,
    });
  };
  await waitFor(async () => (await admin("GET", "/readyz?for=writes")).status === 200, {
    what: "writes",
    timeoutMs: 60_000,
  });
  const order = (key: string, headers: Record<string, string> = {}, item = "tea") =>
    send("POST", `/orders?token=${clients.query}`, { "idempotency-key": key, ...headers }, { item, count: 1 });

  // What goes well, is repeated, and is somebody else's.
  const first = await order(clients.key);
  expect(first.status, first.text).toBe(201);
  const again = await order(clients.key);
  expect([again.status, again.headers["idempotency-replayed"], again.text]).toEqual([201, "true", first.text]);
  for (const [headers, item] of [
    [{ authorization: `Bearer ${clients.otherCaller}` }, "tea"],
    [{}, "coffee"],
    [{ authorization: `Basic ${clients.basic}` }, "tea"],
  ] as const) {
    const stolen = await order(clients.key, headers, item);
    expect([stolen.status, (JSON.parse(stolen.text) as { code: string }).code]).toEqual([422, "GW_KEY_REUSED"]);
    expect(stolen.text).not.toContain(first.text);
    expect(stolen.headers["idempotency-replayed"]).toBeUndefined();
  }
  await send("POST", `/accounts?id=a&api_key=${clients.query}`, {}, { owner: "a" });
  await send("GET", `/orders?access_token=${clients.query}`);

  // What goes wrong at the edge.
  const port = Number(new URL(gateway.front).port);
  const secrets = `Host: a\r\nAuthorization: Bearer ${clients.authorization}\r\nCookie: sid=${clients.cookie}\r\n`;
  for (const bytes of [
    `GET /a/../b?token=${clients.query} HTTP/1.1\r\n${secrets}\r\n`,
    `GET /%zz?token=${clients.query} HTTP/1.1\r\n${secrets}\r\n`,
    `GET http://u:${clients.query}@a/?token=${clients.query} HTTP/1.1\r\n${secrets}\r\n`,
    `GET /x?token=${clients.query} HTTP/1.1\r\n${secrets}Host: b\r\n\r\n`,
    `GET /x HTTP/1.1\r\n${secrets}Connection: authorization\r\n\r\n`,
    `GET /x HTTP/1.1\r\n${secrets}X-Ctl: \u0001${clients.apiKey}\r\n\r\n`,
    `POST /x HTTP/1.1\r\n${secrets}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n`,
    `POST /orders HTTP/1.1\r\n${secrets}Idempotency-Key: ${clients.key} ${clients.key}\r\nContent-Length: 0\r\n\r\n`,
    `POST /orders HTTP/1.1\r\n${secrets}Content-Length: 99999999999\r\n\r\n`,
    `POST /orders?token=${clients.query} HTTP/1.1\r\n${secrets}Content-Length: 0\r\n\r\n`,
    `GET /refused/x?token=${clients.query} HTTP/1.1\r\n${secrets}\r\n`,
    `GET /x HTTP/1.1\r\n${secrets}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n`,
  ]) {
    const { head, body, status } = await ask(port, bytes);
    expect(status, body).toBeGreaterThanOrEqual(400);
    answers.push(head, body);
  }
  for (const path of ["/v1/status", "/v1/nothing"])
    expect((await admin("GET", path, clients.wrongToken)).status).toBe(401);

  // Snapshots, publications, and every store away while it is asked for.
  expect((await admin("POST", "/v1/snapshots")).status).toBe(202);
  await statusIs(
    ({ registry }) => ((registry as { publishedPosition?: number } | null)?.publishedPosition ?? 0) > 0,
    "a publication",
  );
  s3.fault = () => ({ status: 403, code: "SignatureDoesNotMatch" });
  await order(`${clients.key}-2`);
  await admin("POST", "/v1/snapshots");
  await waitFor(() => /snapshot \d+: failed/.test(gateway.output()), {
    what: "a snapshot that fails",
    timeoutMs: 60_000,
  });
  s3.fault = () => null;
  await redis.kill9();
  expect((await order(`${clients.key}-3`)).status).toBe(503);
  await redis.restart();
  await waitFor(async () => (await order(`${clients.key}-4`)).status === 201, {
    what: "keys again",
    timeoutMs: 30_000,
  });
  await anvil.pause();
  await admin("POST", "/v1/snapshots");
  await waitFor(async () => /gateway_registry_errors_total [1-9]/.test((await admin("GET", "/metrics")).text), {
    what: "a chain that is away",
    timeoutMs: 60_000,
  });
  anvil.resume();
  await nats.kill9();
  await order(`${clients.key}-5`);
  await nats.restart();
  await waitFor(async () => (await order(`${clients.key}-6`)).status === 201, {
    what: "the log again",
    timeoutMs: 60_000,
  });
  const [survivor] = gateway.orphans();
  if (survivor !== undefined) process.kill(survivor, "SIGKILL");
  await order(`${clients.key}-7`);
  await admin("POST", "/v1/audit");

  // Everything that the admin address and the command line tell.
  const paths = [
    "/",
    "/livez",
    "/readyz",
    "/metrics",
    "/v1/status",
    "/v1/replicas",
    "/v1/log?last=1000",
    "/v1/unknown",
    "/v1/parked",
    "/v1/unfinished",
    "/v1/disagreements",
    "/v1/snapshots",
    "/v1/operations",
    "/v1/log/verify",
  ];
  for (const path of paths) expect((await admin("GET", path)).status, path).toBe(200);
  const { rows } = JSON.parse((await admin("GET", "/v1/log?last=1000")).text) as {
    rows: { position: number; kind: string }[];
  };
  expect(rows.length).toBeGreaterThan(3);
  for (const { position } of rows) await admin("GET", `/v1/log/${position}`);
  const where = ["-c", gateway.file];
  for (const args of [
    ["status"],
    ["log", "ls"],
    ["log", "info"],
    ["log", "tail"],
    ["replica", "ls"],
    ["snapshot", "ls"],
    ["registry", "show"],
    ["check"],
    ["recovery-kit"],
    ["disagreement", "ls"],
  ]) {
    const ran = await runCli([...args, ...where], { env });
    expect(ran.code, args.join(" ") + ran.stderr).toBe(0);
    printed.push(ran.stdout, ran.stderr);
  }
  const shown = await cli("log", "show", String(rows.findLast(({ kind }) => kind === "entry")?.position), ...where);
  expect(shown).toContain("POST");
  await cli("status", "--admin", gateway.admin, "--token-file", file("wrong.token", clients.wrongToken));
  const commandLine = readFileSync(`/proc/${gateway.pid}/cmdline`, "latin1");
  await gateway.stop();

  // --- the search
  const found: string[] = [];
  const search = (where: string, what: string | Buffer, canaries: Record<string, string>): void => {
    const text = typeof what === "string" ? what : what.toString("latin1");
    for (const [name, value] of Object.entries(canaries)) {
      for (const form of formsOf(value)) if (text.includes(form)) found.push(`${name} in ${where}`);
    }
  };
  const all = { ...own, ...clients };
  expect(gateway.output().length).toBeGreaterThan(10_000);
  search("output", gateway.output(), all);
  search("command line", commandLine, all);
  for (const text of answers) search(`an answer: ${text.slice(0, 200)}`, text, all);
  for (const text of printed) search(`what a command printed: ${text.slice(0, 200)}`, text, all);
  const redisFiles = everything(redis.folder);
  redisFiles.delete(join(redis.folder, "redis.conf"));
  expect([...redisFiles.values()].some((bytes) => bytes.includes("201"))).toBe(true);
  for (const [path, bytes] of redisFiles) search(path, bytes, all);
  expect(s3.objects.size).toBeGreaterThan(2);
  for (const [key, { bytes, metadata }] of s3.objects) {
    search(`object ${key}`, bytes, all);
    search(`object ${key}`, key + JSON.stringify(metadata), all);
  }
  for (const line of s3.requests) search(`request to the store ${line}`, line, all);
  const blocks = JSON.stringify(await chainOf(anvil));
  expect(blocks.length).toBeGreaterThan(1000);
  search("the chain", blocks, all);
  search("the chain", Buffer.from(blocks.replaceAll("0x", ""), "hex"), all);
  // The log keeps what has to be replayed, as it came: its places are the operator's. What is the gateway's own is not in there.
  for (const [path, bytes] of everything(gateway.data)) search(path, bytes, own);
  for (const [path, bytes] of everything(nats.storeDir)) search(path, bytes, own);
  expect([...new Set(found)]).toEqual([]);

  // The search can find: the entries hold what clients sent.
  const kept = [...everything(nats.storeDir).values()];
  expect(kept.some((bytes) => bytes.includes(clients.authorization))).toBe(true);
});

async function chainOf(anvil: Anvil): Promise<unknown[]> {
  const blocks: unknown[] = [];
  const last = Number(await anvil.call("eth_blockNumber"));
  for (let n = 0; n <= last; n++) blocks.push(await anvil.call("eth_getBlockByNumber", [`0x${n.toString(16)}`, true]));
  return blocks;
}
