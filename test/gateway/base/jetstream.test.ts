// The base beside the log on NATS: the contract on a real server, and what several gateways and servers can do to it.
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";

import { openJetStreamBases } from "../../../gateway/base/jetstream.ts";
import type { KeyRow } from "../../../gateway/state/store.ts";
import { openNats } from "../../../gateway/drivers/nats.ts";
import type { Nats } from "../../../gateway/drivers/nats.ts";
import { startNats, startNatsCluster } from "../../helpers/servers.ts";
import type { NatsServer } from "../../helpers/servers.ts";
import { waitFor } from "../../helpers/wait.ts";
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
    const subjects = Object.entries(info.state.subjects ?? {}).map(([name, count]) => `${name.split(".")[3]} ${count}`);
    expect(new Set(subjects)).toEqual(new Set(["chunk 2", "ref 1"]));
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

  test("with three servers is never told by a deposed leader that does not know the newest", async () => {
    const cluster = await startNatsCluster(3);
    onTestFinished(() => cluster.close());
    const patient = await Promise.all(cluster.servers.map(connectPatiently));
    const all = await Promise.all(
      patient.map((nats) => openJetStreamBases({ nats, service: "replicated", replicas: 3, maxBytes })),
    );
    // One that leads the stream alone comes back and knows that it missed its leader; one that leads both takes itself for it.
    const leaderOfBoth = async (): Promise<NatsServer | null> => {
      const leader = await cluster.streamLeader("GW_replicated_BASE");
      if (leader === (await cluster.metaLeader())) return leader;
      await patient[0]?.connection.request("$JS.API.STREAM.LEADER.STEPDOWN.GW_replicated_BASE", "", { timeout: 2000 });
      return null;
    };
    const leader = await waitFor(leaderOfBoth, { timeoutMs: 60_000, what: "a leader of both groups" });
    const at = cluster.servers.indexOf(leader);
    const [deposed, other] = [all[at], all[(at + 1) % 3]];
    const connection = patient[at]?.connection;
    if (deposed === undefined || other === undefined || connection === undefined) throw new Error("no place");
    expect(await other.load()).toBe(null);
    await other.save(sampleState(20, 3000));
    expect(await whole(deposed)).toEqual(expected(20, 3000));

    await leader.pause();
    await other.save(sampleState(21, 3000));
    // The first questions wait in the old leader's socket and are what it reads when it goes on, still taking itself for the leader.
    const seen: unknown[] = [];
    const sentBefore = connection.stats().outMsgs;
    const untilMs = performance.now() + 1000;
    const ask = async (): Promise<void> => {
      // Ends after the time in which a deposed leader was seen to answer, and once somebody has answered.
      do
        await deposed.load().then(
          (base) => seen.push(base?.head.sequence),
          // Not to be had is an answer, for a while; damage that is none is not.
          (error: { code?: unknown }) => void (error.code === "GW_LOG_UNAVAILABLE" || seen.push(error.code)),
        );
      while (performance.now() < untilMs || seen.length === 0);
    };
    const asking = Promise.all(Array.from({ length: 8 }, ask));
    await waitFor(() => connection.stats().outMsgs >= sentBefore + 8, { what: "the first questions to be written" });
    leader.resume();
    await asking;
    expect(new Set(seen)).toEqual(new Set([21]));
    expect(await whole(deposed)).toEqual(expected(21, 3000));
  }, 120_000);
});

/** As openNats, but for the pings that would give a stopped server's connection up. */
async function connectPatiently(server: NatsServer): Promise<Nats> {
  const connection = await connect({ servers: server.url, pingInterval: 600_000 });
  onTestFinished(() => connection.close());
  return {
    connection,
    jetstream: jetstream(connection),
    manager: await jetstreamManager(connection),
    hastyManager: await jetstreamManager(connection),
    isConnected: () => true,
    onConnected: () => () => {},
    goElsewhere: () => {},
    serverVersion: () => server.version,
    close: () => connection.close(),
  };
}

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
  const base = { ...marker.base, upload: "damaged", steps: [stored.json<{ seq: number }>().seq] };
  await connection.request(`${subject}.ref.current`, JSON.stringify({ ...marker, base }));
}
