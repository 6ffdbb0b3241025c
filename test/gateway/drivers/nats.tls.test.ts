// A real nats-server that speaks TLS, asks for certificates, users, tokens or .creds.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { nkeys } from "@nats-io/transport-node";
import { afterEach, describe, expect, onTestFinished, test } from "vitest";
import { openNats } from "../../../gateway/drivers/nats.ts";
import { Authority, expired, writePair } from "../../helpers/certificates.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import { startNats } from "../../helpers/servers.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { NatsOptions } from "../../../gateway/drivers/nats.ts";
import type { NatsServer } from "../../helpers/servers.ts";
import type { Pair } from "../../helpers/certificates.ts";

type KeyPair = ReturnType<typeof nkeys.createUser>;

const authority = new Authority("test");
const stranger = new Authority("stranger");
const ends: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0)) await end();
});

async function start(config: readonly string[]): Promise<NatsServer> {
  const server = await startNats({ config });
  ends.push(() => server.close());
  return server;
}

interface Secured {
  readonly folder: string;
  readonly server: NatsServer;
  readonly caFile: string;
}

async function startTls(pair: Pair, more = ""): Promise<Secured> {
  const folder = temporaryFolder("nats-tls");
  const { caFile, certFile, keyFile } = writePair(folder, "server", pair, authority.cert);
  const server = await start([
    `tls { cert_file: "${certFile}", key_file: "${keyFile}", ca_file: "${caFile}", timeout: 5 ${more} }`,
  ]);
  return { folder, server, caFile };
}

/** What `work` gives, or the code and message it fails with. */
async function opened(options: Partial<NatsOptions> & Pick<NatsOptions, "servers">): Promise<string> {
  const given = { name: "test", ...options };
  // Without an end a refusal that is taken for an absence would wait for ever.
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(), 5_000);
  onTestFinished(() => clearTimeout(timer));
  try {
    const nats = await openNats(given, late.signal);
    const { protocol } = new URL(options.servers[0] ?? "");
    await nats.manager.getAccountInfo();
    await nats.close();
    return `open ${protocol}`;
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    return `${code} ${message}`;
  }
}

describe("NATS with TLS", () => {
  test("is spoken with servers that its authority vouches for, by name and by address", async () => {
    const { server, caFile } = await startTls(authority.issue());
    for (const host of ["127.0.0.1", "localhost"])
      expect(await opened({ servers: [`nats://${host}:${server.port}`], tls: { caFile } })).toBe("open nats:");
    expect(await opened({ servers: [`tls://localhost:${server.port}`], tls: { caFile } })).toBe("open tls:");
  });

  test.each([
    ["by nobody who is believed", () => stranger.issue(), "self-signed certificate|unable to (get|verify)"],
    [
      "for another name",
      () => authority.issue({ hosts: ["elsewhere.example", "10.9.9.9"] }),
      "does not match|altnames",
    ],
    ["until last year", () => authority.issue(expired), "expired"],
  ])("a server whose certificate was made %s is refused at once, not waited for", async (_what, pair, why) => {
    const { server, caFile } = await startTls(pair());
    const said = await opened({ servers: [`nats://localhost:${server.port}`], tls: { caFile } });
    expect(said).toMatch(/^GW_LOG_CONFIGURATION /);
    expect(said).toMatch(new RegExp(why));
  });

  test("shows its own certificate where one is asked for, and says so when it has none", async () => {
    const { folder, server, caFile } = await startTls(authority.issue(), ", verify: true");
    const own = writePair(folder, "own", authority.issue({ name: "gw-1" }));
    const servers = [`nats://127.0.0.1:${server.port}`];
    expect(await opened({ servers, tls: { ...own, caFile } })).toBe("open nats:");
    const none = await opened({ servers, tls: { caFile } });
    expect(none).toMatch(/^GW_LOG_CONFIGURATION .*certificate/);
    const foreign = writePair(folder, "foreign", stranger.issue({ name: "gw-1" }));
    expect(await opened({ servers, tls: { ...foreign, caFile } })).toMatch(/^GW_LOG_CONFIGURATION /);
  });

  test("comes back with the certificates that the files hold by then", async () => {
    const { folder, server, caFile } = await startTls(authority.issue(), ", verify: true");
    const own = writePair(folder, "own", authority.issue({ name: "gw-1" }));
    const nats = await openNats(
      { servers: [`nats://127.0.0.1:${server.port}`], name: "test", tls: { ...own, caFile } },
      new AbortController().signal,
    );
    ends.push(() => nats.close());
    await server.kill9();
    writePair(folder, "server", stranger.issue());
    writeFileSync(caFile, stranger.cert);
    writePair(folder, "own", stranger.issue({ name: "gw-1" }));
    await server.restart();
    await waitFor(() => nats.isConnected(), { what: "the connection", timeoutMs: 10_000 });
    await nats.manager.getAccountInfo();
  });
});

describe("NATS that asks who it is", () => {
  test("by user and password", async () => {
    const { port } = await start([`authorization { user: "gw", password: "canary-1" }`]);
    const servers = [`nats://127.0.0.1:${port}`];
    expect(await opened({ servers, auth: { user: "gw", password: "canary-1" } })).toBe("open nats:");
    for (const auth of [undefined, { user: "gw", password: "canary-2" }, { token: "canary-2" }]) {
      const said = await opened({ servers, ...(auth === undefined ? {} : { auth }) });
      expect(said).toMatch(/^GW_LOG_CONFIGURATION .*[Aa]uthorization/);
      expect(said).not.toContain("canary");
    }
  });

  test("by token", async () => {
    const { port } = await start([`authorization { token: "canary-1" }`]);
    const servers = [`nats://127.0.0.1:${port}`];
    expect(await opened({ servers, auth: { token: "canary-1" } })).toBe("open nats:");
    expect(await opened({ servers, auth: { token: "canary-2" } })).toMatch(/^GW_LOG_CONFIGURATION /);
  });

  test("by a .creds file: a user's token, signed by an account that its operator signed, and the user's key", async () => {
    const folder = temporaryFolder("creds");
    const made = await chainOfTrust();
    const { port } = await start([
      `operator: "${made.operatorToken}"`,
      "resolver: MEMORY",
      `resolver_preload: { ${made.account}: "${made.accountToken}", ${made.system}: "${made.systemToken}" }`,
      `system_account: ${made.system}`,
    ]);
    const servers = [`nats://127.0.0.1:${port}`];
    writeFileSync(join(folder, "gw.creds"), made.creds, { mode: 0o600 });
    expect(await opened({ servers, credentialsFile: join(folder, "gw.creds") })).toBe("open nats:");
    const other = await chainOfTrust();
    writeFileSync(join(folder, "other.creds"), other.creds, { mode: 0o600 });
    const said = await opened({ servers, credentialsFile: join(folder, "other.creds") });
    expect(said).toMatch(/^GW_LOG_CONFIGURATION /);
    expect(said).not.toContain(other.seed);
    expect(await opened({ servers, credentialsFile: join(folder, "gone.creds") })).toMatch(/^GW_CONFIG_INVALID /);
  });
});

const framed = (name: string, text: string): string => `-----BEGIN ${name}-----\n${text}\n------END ${name}------\n\n`;
const encoded = (value: object): string => Buffer.from(JSON.stringify(value)).toString("base64url");

/** An operator, its accounts, and a user, as `nsc` makes them: tokens signed by keys of their issuers (NATS JWT, version 2). */
async function chainOfTrust() {
  const operator = nkeys.createOperator();
  const [account, system] = [nkeys.createAccount(), nkeys.createAccount()];
  const user = nkeys.createUser();
  const unlimited = { subs: -1, data: -1, payload: -1 };
  const limits = { ...unlimited, imports: -1, exports: -1, wildcards: true, conn: -1, leaf: -1 };
  const storage = { mem_storage: -1, disk_storage: -1, streams: -1, consumer: -1 };
  const userToken = token(account, user, { type: "user", version: 2, ...unlimited, pub: {}, sub: {} });
  const seed = Buffer.from(user.getSeed()).toString("latin1");
  return {
    seed,
    account: account.getPublicKey(),
    system: system.getPublicKey(),
    operatorToken: token(operator, operator, { type: "operator", version: 2 }),
    accountToken: token(operator, account, { type: "account", version: 2, limits: { ...limits, ...storage } }),
    systemToken: token(operator, system, { type: "account", version: 2, limits }),
    creds: framed("NATS USER JWT", userToken) + framed("USER NKEY SEED", seed),
  };
}

function token(issuer: KeyPair, subject: KeyPair, nats: object): string {
  const sub = subject.getPublicKey();
  const claims = { jti: sub, iat: Math.floor(Date.now() / 1000), iss: issuer.getPublicKey(), name: "test", sub, nats };
  const signed = `${encoded({ typ: "JWT", alg: "ed25519-nkey" })}.${encoded(claims)}`;
  return `${signed}.${Buffer.from(issuer.sign(Buffer.from(signed))).toString("base64url")}`;
}
