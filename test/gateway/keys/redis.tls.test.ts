// A real Redis that speaks TLS, asks for certificates, and knows users.
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureContext } from "node:tls";
import { inspect } from "node:util";
import { describe, expect, onTestFinished, test } from "vitest";
import { openRedisKeys } from "../../../gateway/keys/redis.ts";
import { Authority, expired, writePair } from "../../helpers/certificates.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import { freePort, startRedis } from "../../helpers/servers.ts";
import { waitFor } from "../../helpers/wait.ts";
import { settings } from "./keys.contract.ts";
import { answer, hash, newKey } from "./samples.ts";
import type { SecureContextOptions } from "node:tls";
import type { RedisKeys, RedisKeysOptions } from "../../../gateway/keys/redis.ts";
import type { Pair } from "../../helpers/certificates.ts";

const authority = new Authority("test");
const stranger = new Authority("stranger");
const canary = `canary-${randomBytes(8).toString("hex")}`;

interface Secured {
  readonly port: number;
  readonly folder: string;
  readonly replace: (pair: Pair) => Promise<void>;
}

/** What an operator gives the gateway, and no more; deploy/runbook.md says the same. */
const rights =
  "~gw:* -@all +auth +select +client +ping +info +evalsha +eval +get +set +setnx +del +hset +hsetnx +hget +hmget +hgetall +hdel +pexpire +persist +pttl";

async function start(pair: Pair, more: readonly string[] = []): Promise<Secured> {
  const folder = temporaryFolder("redis-tls");
  const files = writePair(folder, "server", pair, authority.cert);
  const port = await freePort();
  const server = await startRedis({
    appendonly: true,
    config: [
      `tls-port ${port}`,
      `tls-cert-file ${files.certFile}`,
      `tls-key-file ${files.keyFile}`,
      `tls-ca-cert-file ${files.caFile}`,
      "tls-auth-clients optional",
      `user gw on >${canary} ${rights}`,
      `user weak on >${canary} ~gw:* -@all +auth +select +client +ping +info +get`,
      ...more,
    ],
  });
  onTestFinished(() => server.close());
  return {
    port,
    folder,
    replace: async (renewed) => {
      writePair(folder, "server", renewed);
      await server.restart();
    },
  };
}

async function open(
  url: string,
  tls?: () => SecureContextOptions,
  changed: Partial<RedisKeysOptions> = {},
): Promise<RedisKeys> {
  const context = tls === undefined ? null : { tls: () => createSecureContext(tls()) };
  const keys = await openRedisKeys({ ...settings, url, service: "shop", timeoutMs: 2000, ...context, ...changed });
  onTestFinished(() => keys.close());
  return keys;
}

const works = async (keys: RedisKeys): Promise<boolean> => (await keys.claim(newKey(), "gw")).kind === "fresh";

describe("Redis with TLS", () => {
  test("is used by name and by address, where its authority is believed", async () => {
    const { port } = await start(authority.issue());
    for (const host of ["localhost", "127.0.0.1"])
      expect(await works(await open(`rediss://${host}:${port}`, () => ({ ca: authority.cert })))).toBe(true);
  });

  test.each([
    ["by nobody who is believed", () => stranger.issue(), "self-signed certificate|unable to (get|verify)"],
    ["for another name", () => authority.issue({ hosts: ["elsewhere.example"] }), "does not match"],
    ["until last year", () => authority.issue(expired), "certificate has expired"],
  ])(
    "is away, with the reason, while its certificate was made %s, and no key is taken for fresh",
    async (_what, pair, why) => {
      const { port, replace } = await start(pair());
      const keys = await open(`rediss://gw:${canary}@localhost:${port}`, () => ({ ca: authority.cert }));
      expect(keys.warnings.join("\n")).toMatch(new RegExp(why));
      const refused = await keys.claim(newKey(), "gw").catch((error: unknown) => error);
      expect(refused).toMatchObject({ code: "GW_KEYS_UNAVAILABLE", message: expect.stringMatching(why) });
      expect(inspect([refused, keys, keys.warnings], { depth: 9 })).not.toContain(canary);
      await replace(authority.issue());
      await waitFor(() => works(keys).catch(() => false), {
        what: "claims with a sound certificate",
        timeoutMs: 10_000,
      });
    },
  );

  test("is shown the certificate that it asks for, a renewed one when it is connected to again", async () => {
    const { port, replace } = await start(authority.issue(), ["tls-auth-clients yes"]);
    const none = await open(`rediss://127.0.0.1:${port}`, () => ({ ca: authority.cert }));
    await expect(none.claim(newKey(), "gw")).rejects.toMatchObject({ code: "GW_KEYS_UNAVAILABLE" });
    let shown = authority.issue({ name: "gw" });
    const keys = await open(`rediss://127.0.0.1:${port}`, () => ({ ca: authority.cert, ...shown }));
    const [key, decision] = [newKey(), { position: 9 * 4096, digest: hash(), answer: answer("kept") }];
    await keys.decide(key, decision);
    shown = stranger.issue({ name: "gw" });
    await replace(authority.issue());
    const why = (): Promise<string> => works(keys).then(String, (error: unknown) => (error as Error).message);
    await waitFor(async () => /alert|certificate/.test(await why()), { what: "the refusal of a stranger's" });
    shown = authority.issue({ name: "gw" });
    await waitFor(() => works(keys).catch(() => false), { what: "the renewed certificate", timeoutMs: 10_000 });
    expect(await keys.decided(key)).toEqual(decision);
  });
});

describe("Redis with users", () => {
  test("takes a user that may do what the runbook lists, and nothing else", async () => {
    expect(readFileSync(new URL("../../../deploy/runbook.md", import.meta.url), "utf8")).toContain(rights);
    const { port } = await start(authority.issue());
    const keys = await open(`rediss://gw:${canary}@localhost:${port}/0`, () => ({ ca: authority.cert }));
    const [key, decision] = [newKey(), { position: 9 * 4096, digest: hash(), answer: answer("kept") }];
    expect((await keys.claim(key, "gw")).kind).toBe("fresh");
    await keys.decide(key, decision);
    expect(await keys.decided(key)).toEqual(decision);
    expect(keys.warnings).toEqual([]);
    const other = await open(`rediss://gw:${canary}@localhost:${port}`, () => ({ ca: authority.cert }));
    expect(await other.decided(key)).toEqual(decision);
  });

  test.each([
    ["a wrong password", `gw:${canary}-wrong`, "WRONGPASS|NOAUTH|NOPERM"],
    ["a user that may not write", `weak:${canary}`, "NOPERM|permission"],
  ])("%s is told of without the password", async (_what, who, why) => {
    const { port } = await start(authority.issue(), ["user default off"]);
    const keys = await open(`rediss://${who}@localhost:${port}`, () => ({ ca: authority.cert })).catch(
      (error: unknown) => error as Error,
    );
    const said =
      keys instanceof Error ? keys : await keys.claim(newKey(), "gw").catch((error: unknown) => error as Error);
    expect(said).toMatchObject({ message: expect.stringMatching(why) });
    expect(inspect([said, keys], { depth: 9 })).not.toContain(canary);
  });
});
