// Before the first test: finds the servers, or unpacks them, so that no test's time is spent on it.
import { findDisks } from "./disk.ts";
import { findEngine } from "./engine.ts";
import { natsServerBinary, redisServerBinary, versionOf } from "./servers.ts";

export default async function setup(): Promise<void> {
  const [nats, redis] = await Promise.all([natsServerBinary(), redisServerBinary()]);
  // The workers inherit these: they need not search again.
  process.env["NATS_SERVER"] = nats;
  process.env["REDIS_SERVER"] = redis;
  const versions = await Promise.all([versionOf(nats), versionOf(redis)]);
  process.stdout.write(`tests use nats-server ${versions[0]} (${nats}), redis-server ${versions[1]} (${redis})\n`);
  process.stdout.write(`${await findEngine()}\n${findDisks()}\n`);
}
