import { createServer } from "node:net";
import type { AddressInfo } from "node:net";
import { inspect } from "node:util";
import { Redis } from "ioredis";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { openRedisKeys } from "../../../gateway/keys/redis.ts";
import type { RedisKeys, RedisKeysOptions } from "../../../gateway/keys/redis.ts";
import { startRedis } from "../../helpers/servers.ts";
import type { RedisOptions, RedisServer } from "../../helpers/servers.ts";
import { waitFor } from "../../helpers/wait.ts";
import { keysContract, settings } from "./keys.contract.ts";
import { answer, hash, newKey } from "./samples.ts";

const position = 9 * 4096;
let shared: RedisServer;
let services = 0;
const newService = (): string => `shop-${String((services += 1))}`;

beforeAll(async () => {
  shared = await startRedis({ appendonly: true });
});
afterAll(async () => {
  await shared.close();
});

async function open(server: RedisServer, changed: Partial<RedisKeysOptions> = {}): Promise<RedisKeys> {
  const keys = await openRedisKeys({ ...settings, url: server.url, service: "shop", timeoutMs: 2000, ...changed });
  onTestFinished(() => keys.close());
  return keys;
}

async function start(options: RedisOptions = {}): Promise<RedisServer> {
  const server = await startRedis(options);
  onTestFinished(() => server.close());
  return server;
}

/** A look behind the scenes. */
function look(server: RedisServer): Redis {
  const redis = new Redis(server.port, "127.0.0.1");
  redis.on("error", () => {});
  onTestFinished(() => redis.disconnect());
  return redis;
}

const decisionAt = (at: number, text: string) => ({ position: at, digest: hash(), answer: answer(text) });
const unavailable = { code: "GW_KEYS_UNAVAILABLE" };
async function failsWithin(ms: number, call: () => Promise<unknown>): Promise<void> {
  const startMs = performance.now();
  await expect(call()).rejects.toMatchObject(unavailable);
  expect(performance.now() - startMs).toBeLessThan(ms);
}
const works = async (keys: RedisKeys): Promise<boolean> => (await keys.claim(newKey(), "gw")).kind === "fresh";

describe("Redis keys", () => {
  keysContract(() => {
    const service = newService();
    return Promise.resolve({
      open: (changed) => openRedisKeys({ ...changed, url: shared.url, service, timeoutMs: 2000 }),
    });
  });

  describe("when Redis is away", () => {
    it("a kill -9 is GW_KEYS_UNAVAILABLE at once, and all is well by itself after a restart", async () => {
      const server = await start({ appendonly: true });
      const keys = await open(server);
      const key = newKey();
      const decision = decisionAt(position, "kept");
      await keys.decide(key, decision);
      await server.kill9();
      await failsWithin(500, () => keys.claim(newKey(), "gw"));
      expect(keys.isReachable()).toBe(false);
      await server.restart();
      await waitFor(() => works(keys), { what: "claims to work again" });
      expect(keys.isReachable()).toBe(true);
      expect(await keys.decided(key)).toEqual(decision);
    });

    it("calls in flight at a kill -9 reject at once and are never sent again", async () => {
      const server = await start({ appendonly: true });
      const keys = await open(server, { timeoutMs: 10_000 });
      await works(keys);
      await server.pause();
      const calls = Array.from({ length: 20 }, () => keys.claim(newKey(), "gw"));
      const settled = Promise.allSettled(calls);
      await new Promise<void>((resolve) => setImmediate(() => setImmediate(resolve))); // they are written
      const startMs = performance.now();
      await server.kill9();
      expect((await settled).map(({ status }) => status)).toEqual(calls.map(() => "rejected"));
      expect(performance.now() - startMs).toBeLessThan(2000);
      await server.restart();
      await waitFor(() => works(keys), { what: "claims to work again" });
    });

    it("a stopped Redis costs one time limit, then calls reject at once, and all is well when it goes on", async () => {
      const server = await start();
      const keys = await open(server, { timeoutMs: 300 });
      await works(keys);
      await server.pause();
      await failsWithin(1000, () => keys.claim(newKey(), "gw"));
      await failsWithin(100, () => keys.claim(newKey(), "gw"));
      expect(keys.isReachable()).toBe(false);
      server.resume();
      await waitFor(() => works(keys), { what: "claims to work again" });
    });

    it("while it stays stopped one call at a time is a probe, the others reject at once", async () => {
      const server = await start();
      const keys = await open(server, { timeoutMs: 300 });
      await works(keys);
      await server.pause();
      await failsWithin(1000, () => keys.claim(newKey(), "gw"));
      let quick = 0;
      let slow = 0;
      const untilMs = performance.now() + 1500;
      // Ends with the time: it asks again and again, as clients do.
      while (performance.now() < untilMs) {
        const startMs = performance.now();
        const calls = await Promise.allSettled([keys.claim(newKey(), "gw"), works(keys)]);
        expect(calls.every(({ status }) => status === "rejected")).toBe(true);
        if (performance.now() - startMs > 200) slow += 1;
        else quick += 1;
        await new Promise<void>((resolve) => setImmediate(resolve));
      }
      expect(slow).toBeGreaterThanOrEqual(1);
      expect(slow).toBeLessThanOrEqual(4);
      expect(quick).toBeGreaterThan(20);
      server.resume();
    });

    it("a claim that had no reply does not block its key: this process takes it over", async () => {
      const server = await start();
      const keys = await open(server, { timeoutMs: 300 });
      const key = newKey();
      await works(keys);
      await server.pause();
      await expect(keys.claim(key, "gw")).rejects.toMatchObject(unavailable);
      server.resume();
      const claim = async (): Promise<boolean> => (await keys.claim(key, "gw")).kind === "fresh";
      await waitFor(claim, { what: "the key to be fresh, although the first claim was stored" });
      expect((await keys.claim(key, "gw")).kind).toBe("running");
    });

    it("the gateway starts without Redis, says so, and uses it when it comes", async () => {
      const server = await start();
      await server.kill9();
      const keys = await open(server);
      expect(keys.warnings.join()).toMatch(/cannot be reached yet/);
      await failsWithin(500, () => keys.claim(newKey(), "gw"));
      await server.restart();
      await waitFor(() => works(keys), { what: "claims to work" });
    });
  });

  describe("when Redis lost its content", () => {
    it("FLUSHALL is noticed: what was executed until now is lost, what comes is kept", async () => {
      const server = await start();
      let tail = 0;
      const keys = await open(server, { tail: () => Promise.resolve(tail) });
      const key = newKey();
      expect((await keys.decide(key, decisionAt(position, "before"))).isLost).toBe(false);
      tail = position;
      await look(server).flushall();
      expect(await keys.decided(key)).toBeNull();
      expect(await keys.decide(key, decisionAt(position, "other"))).toMatchObject({ isLost: true, answer: null });
      await keys.offer(key, position, { replica: "a", digest: hash(), answer: answer("late") });
      expect(await keys.candidates(key, position)).toEqual([]);
      expect((await keys.decide(newKey(), decisionAt(position + 1, "new"))).isLost).toBe(false);
    });

    it("two gateways set the floor once, and look up the tail after the loss", async () => {
      const server = await start();
      let lookups = 0;
      const tail = (): Promise<number> => Promise.resolve((lookups += 1));
      const gateways = await Promise.all([open(server, { tail }), open(server, { tail })]);
      const behind = look(server);
      for (let round = 1; round <= 20; round += 1) {
        const calls = gateways.flatMap((keys) => Array.from({ length: 20 }, () => works(keys)));
        expect((await Promise.all(calls)).every(Boolean)).toBe(true);
        expect(lookups).toBe(round);
        expect(await behind.hget("gw:{shop}:sentinel", "floor")).toBe(String(round));
        await behind.flushall();
      }
    });

    it("a gateway that dies while it looks up the tail does not stop the others", async () => {
      const server = await start();
      let begun = false;
      const never = (): Promise<number> => {
        begun = true;
        return new Promise(() => {});
      };
      const dying = await open(server, { tail: never });
      const claim = dying.claim(newKey(), "gw-1");
      claim.catch(() => undefined);
      await waitFor(() => begun, { what: "the first gateway to look up the tail" });
      await dying.close();
      const keys = await open(server);
      await waitFor(() => works(keys), { what: "the second gateway to set the floor" });
    });

    it("while the tail is unknown nothing is decided", async () => {
      const server = await start();
      let isAway = true;
      const tail = (): Promise<number> => (isAway ? Promise.reject(new Error("the log is away")) : Promise.resolve(7));
      const keys = await open(server, { tail });
      await expect(keys.decide(newKey(), decisionAt(position, "x"))).rejects.toMatchObject(unavailable);
      isAway = false;
      expect((await keys.decide(newKey(), decisionAt(position, "x"))).isLost).toBe(false);
      expect(await look(server).hget("gw:{shop}:sentinel", "floor")).toBe("7");
    });

    it("a restart that comes back empty is noticed", async () => {
      const server = await start();
      const keys = await open(server, { tail: () => Promise.resolve(position) });
      const key = newKey();
      await keys.decide(key, decisionAt(position + 1, "before"));
      await server.kill9();
      await server.restart();
      await waitFor(() => works(keys), { what: "claims to work again" });
      expect(await keys.decided(key)).toBeNull();
      expect((await keys.decide(key, decisionAt(position, "other"))).isLost).toBe(true);
    });

    it("a restart with the append-only file raises the floor and still serves what is stored", async () => {
      const server = await start({ appendonly: true });
      let tail = 0;
      const keys = await open(server, { tail: () => Promise.resolve(tail) });
      const [decidedKey, offeredKey] = [newKey(), newKey()];
      const decision = decisionAt(position, "before");
      const digest = hash();
      await keys.decide(decidedKey, decision);
      await keys.offer(offeredKey, position + 1, { replica: "a", digest, answer: answer("offered") });
      tail = position + 1;
      await server.kill9();
      await server.restart();
      await waitFor(() => works(keys), { what: "claims to work again" });
      expect(await keys.claim(decidedKey, "gw")).toEqual({ kind: "done", decision });
      expect(await keys.decide(decidedKey, decisionAt(position, "other"))).toEqual({ ...decision, isLost: false });
      // Its decision, if there was one, may be what the restart lost.
      const late = { position: position + 1, digest, answer: answer("offered") };
      expect(await keys.decide(offeredKey, late)).toMatchObject({ isLost: true, answer: null });
      expect(await look(server).hget("gw:{shop}:sentinel", "floor")).toBe(String(tail));
    });

    it("a script cache that was flushed is filled again", async () => {
      const keys = await open(shared, { service: newService() });
      await works(keys);
      await look(shared).script("FLUSH");
      expect(await works(keys)).toBe(true);
    });
  });

  describe("leases", () => {
    it("a claim is renewed while its process lives, and ends a lease after it", async () => {
      const service = newService();
      const behind = look(shared);
      const holder = await open(shared, { service, leaseMs: 400 });
      const other = await open(shared, { service });
      const key = newKey();
      await holder.claim(key, "gw-1");
      const hint = `gw:{${service}}:h:${key.id}`;
      let renewals = 0;
      let before = await behind.pttl(hint);
      const isRenewed = async (): Promise<boolean> => {
        const left = await behind.pttl(hint);
        if (left > before) renewals += 1;
        before = left;
        return renewals >= 5;
      };
      await waitFor(isRenewed, { what: "five renewals" });
      expect((await other.claim(key, "gw-2")).kind).toBe("running");
      await holder.close();
      const claim = async (): Promise<boolean> => (await other.claim(key, "gw-2")).kind === "fresh";
      await waitFor(claim, { what: "the lease to end" });
    });

    it("a claim that FLUSHALL took is put back while its process holds it", async () => {
      const server = await start();
      const keys = await open(server, { leaseMs: 300 });
      const key = newKey();
      await keys.claim(key, "gw-1");
      await look(server).flushall();
      const isBack = async (): Promise<boolean> => (await look(server).exists(`gw:{shop}:h:${key.id}`)) === 1;
      await waitFor(isBack, { what: "the hint to be put back" });
    });

    it("released and decided claims are not renewed", async () => {
      const service = newService();
      const keys = await open(shared, { service, leaseMs: 90 });
      const [released, decided, held] = [newKey(), newKey(), newKey()];
      for (const key of [released, decided, held]) await keys.claim(key, "gw");
      await keys.release(released, "gw");
      await keys.decide(decided, decisionAt(position, "x"));
      const behind = look(shared);
      const holds = async (key: { id: string }): Promise<number> => await behind.exists(`gw:{${service}}:h:${key.id}`);
      let renewals = 0;
      let before = 0;
      const twice = async (): Promise<boolean> => {
        const left = await behind.pttl(`gw:{${service}}:h:${held.id}`);
        if (left > before) renewals += 1;
        before = left;
        return renewals >= 3;
      };
      await waitFor(twice, { what: "renewals of the claim that is held" });
      expect([await holds(released), await holds(decided), await holds(held)]).toEqual([0, 0, 1]);
    });
  });

  describe("garbage in Redis", () => {
    const garbage: readonly (readonly [string, (redis: Redis, key: string) => Promise<unknown>])[] = [
      ["a wrong type", (redis, key) => redis.lpush(key, "x")],
      ["a string", (redis, key) => redis.set(key, "\u0000garbage")],
      [
        "a foreign hash",
        (redis, key) => redis.hset(key, { w: "zz", "b:": "x", "r:a": "nonsense", run: "x", floor: "y" }),
      ],
    ];
    it.each(garbage)("%s in place of any key is a miss, never an error", async (_, spoil) => {
      const service = newService();
      const keys = await open(shared, { service });
      const behind = look(shared);
      for (const kind of ["h", "k", "e", "sentinel"]) {
        const key = newKey();
        const decision = decisionAt(position, "fine");
        await keys.claim(key, "gw");
        await keys.offer(key, position, { replica: "a", digest: decision.digest, answer: decision.answer });
        await keys.decide(key, decision);
        if (kind === "h") await keys.decide(key, decision);
        const name = { h: `h:${key.id}`, k: `k:${key.id}`, e: `e:${key.id}:${String(position)}`, sentinel: "sentinel" }[
          kind
        ];
        await behind.del(`gw:{${service}}:${name ?? ""}`);
        await spoil(behind, `gw:{${service}}:${name ?? ""}`);
        const { kind: claimed } = await keys.claim(key, "gw");
        expect(claimed).toBe(kind === "k" || kind === "e" ? "fresh" : "done");
        await keys.candidates(key, position);
        await keys.offer(key, position, { replica: "b", digest: decision.digest, answer: decision.answer });
        expect(await keys.decide(key, decision)).toEqual({ ...decision, isLost: false });
        expect(await keys.decided(key)).toEqual(decision);
        await keys.release(key, "gw");
      }
    });

    it("answer bytes that cannot be read back are no answer", async () => {
      const service = newService();
      const keys = await open(shared, { service });
      const key = newKey();
      const decision = decisionAt(position, "fine");
      await keys.decide(key, decision);
      const entry = `gw:{${service}}:e:${key.id}:${String(position)}`;
      await look(shared).hset(entry, `b:${decision.digest}`, "garbage");
      expect(await keys.claim(key, "gw")).toEqual({ kind: "done", decision: { ...decision, answer: null } });
    });
  });

  describe("configuration", () => {
    it("a maxmemory-policy that forgets is refused with its mend", async () => {
      const server = await start({ config: ["maxmemory-policy allkeys-lru"] });
      const opening = open(server);
      await expect(opening).rejects.toMatchObject({
        code: "GW_KEYS_CONFIGURATION",
        message: expect.stringContaining("maxmemory-policy noeviction") as string,
      });
    });

    it("a server that comes back with another policy is not used until it is mended", async () => {
      const server = await start();
      const keys = await open(server);
      await works(keys);
      await server.kill9();
      const wrong = await start({ port: server.port, config: ["maxmemory-policy volatile-lru"] });
      const isRefused = async (): Promise<boolean> =>
        await works(keys).then(
          () => false,
          (error: unknown) => inspect(error).includes("volatile-lru"),
        );
      await waitFor(isRefused, { what: "the wrong policy to be named" });
      expect(keys.isReachable()).toBe(false);
      await look(wrong).config("SET", "maxmemory-policy", "noeviction");
      await waitFor(() => works(keys), { what: "claims to work again" });
      expect(keys.isReachable()).toBe(true);
    });

    it("a full memory is GW_KEYS_UNAVAILABLE, and what is stored is still served", async () => {
      const server = await start({ config: ["maxmemory 3mb"] });
      const keys = await open(server, { answerBytesMax: 1024 * 1024 });
      const key = newKey();
      const decision = decisionAt(position, "kept");
      await keys.decide(key, decision);
      const fill = async (): Promise<boolean> => {
        const large = decisionAt(position, "x".repeat(200_000));
        return await keys.decide(newKey(), large).then(
          () => false,
          (error: unknown) => inspect(error).includes("OOM"),
        );
      };
      await waitFor(fill, { what: "Redis to be full" });
      expect(await keys.decided(key)).toEqual(decision);
      expect(await keys.claim(key, "gw")).toEqual({ kind: "done", decision });
    });

    it("without an append-only file it warns", async () => {
      const server = await start();
      expect((await open(server)).warnings.join()).toMatch(/appendonly yes/);
      expect((await open(shared, { service: newService() })).warnings).toEqual([]);
    });

    it("no error shows the password", async () => {
      const secret = "hunter2/%verysecret";
      const server = await start({ config: [`requirepass ${secret}`] });
      const url = (password: string): string =>
        `redis://:${encodeURIComponent(password)}@127.0.0.1:${String(server.port)}`;
      const keys = await open(server, { url: url(secret) });
      await works(keys);
      const wrong = await open(server, { url: url(`${secret}-wrong`) });
      const seen: unknown[] = [wrong.warnings];
      seen.push(await wrong.claim(newKey(), "gw").catch((error: unknown) => error));
      await server.kill9();
      seen.push(await keys.claim(newKey(), "gw").catch((error: unknown) => error));
      for (const bad of [`redis://:${secret}@[`, `http://:${secret}@x`, `redis://:${secret}@x/db`]) {
        seen.push(await open(server, { url: bad }).catch((error: unknown) => error));
      }
      const text = inspect(seen, { depth: 20, showHidden: true });
      expect(text).toContain("WRONGPASS");
      expect(text).not.toContain("hunter2");
      expect(text).not.toContain("verysecret");
    });

    it("no error shows what a server says of the password", async () => {
      const echo = createServer((socket) => {
        socket.on("data", () => void socket.write("-ERR hunter2 is not the password\r\n"));
        socket.on("error", () => {});
      });
      await new Promise<void>((resolve) => echo.listen(0, "127.0.0.1", resolve));
      onTestFinished(() => void echo.close());
      const { port } = echo.address() as AddressInfo;
      const keys = await open(shared, { url: `redis://:hunter2@127.0.0.1:${String(port)}` });
      const error = await keys.claim(newKey(), "gw").catch((error: unknown) => error);
      const text = inspect([keys.warnings, error], { depth: 20, showHidden: true });
      expect(text).toContain("*** is not the password");
      expect(text).not.toContain("hunter2");
    });

    it("no error holds an answer, although the driver's errors hold the whole command", async () => {
      const server = await start();
      const keys = await open(server);
      await works(keys);
      await look(server).acl("SETUSER", "default", "-evalsha");
      const decision = decisionAt(position, "private");
      const error = await keys.decide(newKey(), decision).catch((error: unknown) => error);
      const text = inspect(error, { depth: 20, showHidden: true });
      expect(text).toContain("NOPERM");
      expect(text).not.toContain(decision.digest);
    });

    it("neither keys nor payloads are in Redis, only their hashes and the answers", async () => {
      const service = newService();
      const keys = await open(shared, { service });
      const key = newKey();
      await keys.claim(key, "gw");
      await keys.decide(key, decisionAt(position, "x"));
      const names = await look(shared).keys(`gw:{${service}}:*`);
      expect(names.sort()).toEqual([
        `gw:{${service}}:e:${key.id}:${String(position)}`,
        `gw:{${service}}:k:${key.id}`,
        `gw:{${service}}:sentinel`,
      ]);
      for (const name of names.filter((one) => !one.endsWith("sentinel"))) {
        expect(await look(shared).pttl(name)).toBeGreaterThan(0);
      }
    });
  });
});
