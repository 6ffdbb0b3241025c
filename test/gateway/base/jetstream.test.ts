// The base beside the log on NATS: the contract on a real server, and what several gateways and servers can do to it.
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";

import { openJetStreamBases } from "../../../gateway/base/jetstream.ts";
import type { KeyRow } from "../../../gateway/state/store.ts";
import { openNats } from "../../../gateway/drivers/nats.ts";
import type { Nats } from "../../../gateway/drivers/nats.ts";
import { startNats, startNatsCluster } from "../../helpers/servers.ts";
import type { NatsServer } from "../../helpers/servers.ts";
import { sampleState } from "../state/samples.ts";
import { basesContract, expected, whole } from "./base.contract.ts";

let server: NatsServer;
let nats: Nats;
let services = 0;
const maxBytes = 256 * 1024 * 1024;

beforeAll(async () => {
  server = await startNats();
  nats = await openNats({ servers: [server.url], name: "test" }, AbortSignal.timeout(15_000));
});
afterAll(async () => {
  await nats?.close();
  await server?.close();
});

basesContract("jetstream", async () => {
  const service = `contract-${++services}`;
  return {
    open: () => openJetStreamBases({ nats, service, replicas: 1, maxBytes }),
    childArguments: ["jetstream", server.url, service],
    damage: (change) => damage(service, change),
    close: async () => void (await nats.manager.streams.delete(`GW_${service}_BASE`)),
  };
});

describe("the base beside the log on NATS", () => {
  test("is saved and loaded over a kill -9 of the server", async () => {
    const { bases } = await newBases();
    const restarts: Promise<void>[] = [];
    const state = sampleState(100, 60_000);
    const interrupted = async function* (rows: AsyncIterable<KeyRow>): AsyncGenerator<KeyRow> {
      let count = 0;
      for await (const row of rows) {
        if (count++ === 30_000) restarts.push(server.kill9().then(() => server.restart()));
        yield row;
      }
    };
    await bases.save({ ...state, keys: interrupted(state.keys) });
    await Promise.all(restarts);
    const loaded = await bases.load();
    const rows: KeyRow[] = [];
    for await (const row of interrupted(loaded?.keys ?? state.keys)) rows.push(row);
    await Promise.all(restarts);
    expect(restarts.length).toBe(2);
    expect(rows).toEqual(state.rows());
  });

  test("is saved by one gateway at a time: of two one is told, and what stays is whole", async () => {
    const { bases, options } = await newBases();
    const other = await openJetStreamBases(options);
    const saved = new Set<string>();
    for (let round = 0; round < 6; round++) {
      const mine = sampleState(20 + 2 * round, 9000);
      const theirs = sampleState(21 + 2 * round, 9000);
      const results = await Promise.allSettled([bases.save(mine), other.save(theirs)]);
      for (const it of results) if (it.status === "rejected") expect(it.reason).toMatchObject({ code: "GW_CONFLICT" });
      saved.add(results.map((it) => it.status).join(" and "));
      const found = await whole(round % 2 === 0 ? bases : other);
      expect(found).toEqual(expected(found.head.sequence, 9000));
      const last = results[1]?.status === "fulfilled" ? theirs : mine;
      if (results.some((it) => it.status === "fulfilled")) expect(found.head.sequence).toBe(last.head.sequence);
    }
    expect([...saved].some((it) => it.includes("rejected"))).toBe(true);
  });

  test("leaves nothing beside it: neither the former one nor what a saver that was killed had stored", async () => {
    const { bases, options, stream } = await newBases();
    await bases.save(sampleState(20, 9000));
    await nats.connection.request(`gw.${options.service}.base.chunk.abandoned`, Buffer.alloc(1000));
    await bases.save(sampleState(21, 9000));
    const info = await nats.manager.streams.info(stream, { subjects_filter: ">" });
    const subjects = Object.entries(info.state.subjects ?? {}).map(([name, count]) => [name.split(".")[3], count]);
    expect(subjects.toSorted()).toEqual([
      ["chunk", 2],
      ["ref", 1],
    ]);
    expect(await whole(bases)).toEqual(expected(21, 9000));
  });

  test("whose chunk is gone is GW_LOG_CORRUPT", async () => {
    const { bases, options, stream } = await newBases();
    await bases.save(sampleState(200, 30_000));
    await nats.manager.streams.purge(stream, { filter: `gw.${options.service}.base.chunk.*`, keep: 2 });
    await expect(bases.load()).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
  });

  test("finds the stream full with GW_LOG_FULL; the former one stays, and there is room for a smaller one", async () => {
    const { bases } = await newBases(1024 * 1024);
    await bases.save(sampleState(20, 5000));
    await expect(bases.save(sampleState(21, 40_000))).rejects.toMatchObject({ code: "GW_LOG_FULL" });
    expect(await whole(bases)).toEqual(expected(20, 5000));
    await bases.save(sampleState(22, 6000));
    expect(await whole(bases)).toEqual(expected(22, 6000));
  });

  test("refuses a stream that was edited", async () => {
    const { options, stream } = await newBases();
    await nats.manager.streams.update(stream, { max_age: 60_000_000_000 });
    await expect(openJetStreamBases(options)).rejects.toMatchObject({ code: "GW_LOG_CONFIGURATION" });
  });

  test("with three replicas is never one that was replaced, whoever leads", { timeout: 60_000 }, async () => {
    const cluster = await startNatsCluster();
    onTestFinished(() => cluster.close());
    const nats = await openNats({ servers: cluster.url.split(","), name: "test" }, AbortSignal.timeout(15_000));
    onTestFinished(() => nats.close());
    const options = { nats, service: "replicated", replicas: 3, maxBytes };
    const bases = await openJetStreamBases(options);
    expect(await bases.load()).toBe(null);
    await bases.save(sampleState(20, 3000));
    // The deposed leader still believes that it leads, and that the base is the former one.
    const deposed = await cluster.streamLeader("GW_replicated_BASE");
    await deposed.pause();
    await bases.save(sampleState(21, 3000));
    deposed.resume();
    expect(await whole(bases)).toEqual(expected(21, 3000));
    expect(await whole(await openJetStreamBases(options))).toEqual(expected(21, 3000));
  });
});

async function newBases(bytes = maxBytes) {
  const service = `own-${++services}`;
  onTestFinished(async () => void (await nats.manager.streams.delete(`GW_${service}_BASE`)));
  const options = { nats, service, replicas: 1, maxBytes: bytes };
  return { bases: await openJetStreamBases(options), options, stream: `GW_${service}_BASE` };
}

/** Other chunks under a marker that names them. */
async function damage(service: string, change: (bytes: Buffer) => Buffer): Promise<void> {
  const stream = `GW_${service}_BASE`;
  const subject = `gw.${service}.base`;
  const { manager, connection } = nats;
  const last = await manager.streams.getMessage(stream, { last_by_subj: `${subject}.ref.current` });
  const marker = last?.json() as { base: { steps: number[] } };
  let at = 0;
  const pieces: Buffer[] = [];
  for (const step of marker.base.steps)
    pieces.push(Buffer.from((await manager.streams.getMessage(stream, { seq: (at += step) }))?.data ?? []));
  const stored = await connection.request(`${subject}.chunk.damaged`, change(Buffer.concat(pieces)));
  const base = { ...marker.base, upload: "damaged", steps: [(stored.json() as { seq: number }).seq] };
  await connection.request(`${subject}.ref.current`, JSON.stringify({ ...marker, base }));
}
