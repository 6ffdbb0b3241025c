// Bodies beside the log on NATS: the contract on a real server, and what servers can suffer.
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";

import { openJetStreamBodies } from "../../../gateway/bodies/jetstream.ts";
import { openNats } from "../../../gateway/drivers/nats.ts";
import type { Nats } from "../../../gateway/drivers/nats.ts";
import { startNats } from "../../helpers/servers.ts";
import type { NatsServer } from "../../helpers/servers.ts";
import { MiB, bodiesContract, clockAt, inPieces, read, refOf } from "./bodies.contract.ts";

let server: NatsServer;
let nats: Nats;
let services = 0;

beforeAll(async () => {
  server = await startNats();
  nats = await openNats({ servers: [server.url], name: "test" }, AbortSignal.timeout(15_000));
});
afterAll(async () => {
  await nats?.close();
  await server?.close();
});

bodiesContract("jetstream", async (maxBytes, clock) => {
  const service = `contract-${++services}`;
  return {
    open: () => openJetStreamBodies({ nats, service, replicas: 1, maxBytes, clock }),
    close: async () => void (await nats.manager.streams.delete(`GW_${service}_BODIES`)),
  };
});

describe("bodies beside the log on NATS", () => {
  test("are put and read over a kill -9 of the server", async () => {
    const { bodies } = await newBodies();
    const bytes = randomBytes(8 * MiB);
    const restarts: Promise<void>[] = [];
    const source = async function* (): AsyncGenerator<Buffer> {
      for (let at = 0; at < bytes.length; at += MiB) {
        if (at === 4 * MiB) restarts.push(server.kill9().then(() => server.restart()));
        yield bytes.subarray(at, at + MiB);
      }
    };
    const ref = await bodies.put(source(), bytes.length);
    await Promise.all(restarts);
    expect(ref).toEqual(refOf(bytes));
    const chunks: Buffer[] = [];
    for await (const chunk of bodies.read(ref)) {
      chunks.push(chunk);
      if (chunks.length === 5) restarts.push(server.kill9().then(() => server.restart()));
    }
    await Promise.all(restarts);
    expect(Buffer.concat(chunks).equals(bytes)).toBe(true);
  });

  test("are throughout one stream that two gateways may put into and sweep at once", { timeout: 60_000 }, async () => {
    const time = { ms: 1_000 };
    const { bodies, options, stream } = await newBodies(time);
    const other = await openJetStreamBodies(options);
    const bytes = randomBytes(600_000);
    for (let round = 0; round < 30; round++) {
      const limitMs = (time.ms += 1_000);
      const results = await Promise.all([
        bodies.put(inPieces(bytes, 2), MiB),
        other.put(inPieces(bytes, 2), MiB),
        bodies.sweep(new Set(), limitMs),
        other.sweep(new Set(), limitMs),
      ]);
      expect(Buffer.concat(await read(round % 2 ? bodies : other, results[0])).equals(bytes)).toBe(true);
    }
    // Later than any put, also than the two hours after which unmarked chunks count as garbage: nothing is left.
    time.ms = Date.now() + 10 * 3_600_000;
    await bodies.sweep(new Set(), time.ms);
    expect((await nats.manager.streams.info(stream)).state.messages).toBe(0);
  });

  test("find chunks garbage that no marker names, but not those of a put under way", async () => {
    const time = { ms: Date.now() };
    const { bodies, stream, options } = await newBodies(time);
    const subject = `gw.${options.service}.bodies.chunk.abandoned`;
    await nats.connection.request(subject, randomBytes(1000));
    await bodies.sweep(new Set(), time.ms + 1_000_000);
    expect((await nats.manager.streams.info(stream)).state.messages).toBe(1);
    time.ms += 3 * 3_600_000;
    await bodies.sweep(new Set(), time.ms);
    expect((await nats.manager.streams.info(stream)).state.messages).toBe(0);
  });

  test("are refused when a chunk is gone", async () => {
    const { bodies, options, stream } = await newBodies();
    const ref = await bodies.put(inPieces(randomBytes(600_000), 1), MiB);
    await nats.manager.streams.purge(stream, { filter: `gw.${options.service}.bodies.chunk.*`, keep: 2 });
    await expect(read(bodies, ref)).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
  });

  test("refuse a stream that was edited", async () => {
    const { options, stream } = await newBodies();
    await nats.manager.streams.update(stream, { max_age: 60_000_000_000 });
    await expect(openJetStreamBodies(options)).rejects.toMatchObject({ code: "GW_LOG_CONFIGURATION" });
  });
});

async function newBodies(time = { ms: 1_000 }) {
  const service = `own-${++services}`;
  onTestFinished(async () => void (await nats.manager.streams.delete(`GW_${service}_BODIES`)));
  const options = { nats, service, replicas: 1, maxBytes: 64 * MiB, clock: clockAt(time) };
  return { bodies: await openJetStreamBodies(options), options, stream: `GW_${service}_BODIES` };
}
