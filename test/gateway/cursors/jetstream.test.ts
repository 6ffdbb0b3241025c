import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect as dial } from "@nats-io/transport-node";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { cursorsBucket, openJetStreamCursors } from "../../../gateway/cursors/jetstream.ts";
import type { Cursors, Saved, StoredCursor } from "../../../gateway/cursors/cursors.ts";
import { openNats } from "../../../gateway/drivers/nats.ts";
import type { Nats } from "../../../gateway/drivers/nats.ts";
import { startNats, startNatsCluster } from "../../helpers/servers.ts";
import type { NatsServer } from "../../helpers/servers.ts";
import { waitFor } from "../../helpers/wait.ts";
import { cursorsContract } from "./cursors.contract.ts";
import { cursor } from "./samples.ts";

let server: NatsServer;
let services = 0;
const newService = (): string => `shop-${String((services += 1))}`;

beforeAll(async () => {
  server = await startNats();
});
afterAll(async () => {
  await server.close();
});

async function connect(...servers: readonly NatsServer[]): Promise<Nats> {
  const nats = await openNats({ servers: servers.map(({ url }) => url), name: "test" }, AbortSignal.timeout(20_000));
  onTestFinished(() => nats.close());
  return nats;
}

const revisionOf = (saved: Saved): number => {
  if (saved.kind !== "saved") throw new Error(saved.kind, { cause: saved });
  return saved.revision;
};

describe("JetStream cursors", () => {
  cursorsContract(() => {
    const service = newService();
    return Promise.resolve({
      open: async () => openJetStreamCursors({ nats: await connect(server), service, replicas: 1 }),
    });
  });

  it("of two clients that save at once exactly one wins, 200 times", async () => {
    const service = newService();
    const open = async (): Promise<Cursors> =>
      openJetStreamCursors({ nats: await connect(server), service, replicas: 1 });
    const clients = await Promise.all([open(), open()]);
    let revision = 0;
    const wins = [0, 0];
    for (let round = 0; round < 200; round += 1) {
      const at = revision;
      const results = await Promise.all(
        clients.map((client, i) => client.save(cursor("a", { nonce: `${String(round)} of ${String(i)}` }), at)),
      );
      expect(results.map(({ kind }) => kind).sort()).toEqual(["conflict", "saved"]);
      const winner = results.findIndex(({ kind }) => kind === "saved");
      wins[winner] = (wins[winner] ?? 0) + 1;
      const seen = await clients[1 - winner]?.load("a");
      expect(seen?.cursor.nonce).toBe(`${String(round)} of ${String(winner)}`);
      revision = seen?.revision ?? 0;
    }
    expect(Math.min(...wins)).toBeGreaterThan(0);
  });

  it("the bucket is one that `nats kv` can read, without direct reads", async () => {
    const service = newService();
    const nats = await connect(server);
    await openJetStreamCursors({ nats, service, replicas: 1 });
    const { config } = await nats.manager.streams.info(`KV_${cursorsBucket(service)}`);
    expect(config).toMatchObject({ max_msgs_per_subject: 1, storage: "file", num_replicas: 1, deny_delete: true });
    expect(config.allow_direct ?? false).toBe(false);
  });

  it("a bucket that could lose or hide a cursor is refused with its faults", async () => {
    const service = newService();
    const nats = await connect(server);
    const bucket = cursorsBucket(service);
    await nats.manager.streams.add({
      name: `KV_${bucket}`,
      subjects: [`$KV.${bucket}.>`],
      max_msgs_per_subject: 1,
      allow_direct: true,
      max_age: 60_000_000_000,
    });
    const opening = openJetStreamCursors({ nats, service, replicas: 1 });
    await expect(opening).rejects.toMatchObject({
      code: "GW_LOG_CONFIGURATION",
      message: expect.stringMatching(/max_age is 60000000000 .*allow_direct is true and must be false/) as string,
    });
  });

  it("a value that cannot be read is a lost cursor, and a save over it must name its revision", async () => {
    const service = newService();
    const nats = await connect(server);
    const cursors = await openJetStreamCursors({ nats, service, replicas: 1 });
    const revision = revisionOf(await cursors.save(cursor("a"), 0));
    for (const garbage of ["", "garbage", JSON.stringify(cursor("a"))]) {
      const { seq } = await nats.jetstream.publish(`$KV.${cursorsBucket(service)}.a.cursor`, garbage);
      await expect(cursors.load("a")).rejects.toMatchObject({ code: "GW_CURSOR_LOST", revision: seq });
    }
    expect(await cursors.save(cursor("a"), revision)).toEqual({ kind: "conflict" });
    const lost = await cursors.load("a").catch((error: unknown) => error as { revision: number });
    expect((await cursors.save(cursor("a"), lost?.revision ?? 0)).kind).toBe("saved");
  });

  it("a bucket that is gone is a lost cursor, not a new replica", async () => {
    const service = newService();
    const nats = await connect(server);
    const cursors = await openJetStreamCursors({ nats, service, replicas: 1 });
    await cursors.save(cursor("a"), 0);
    await nats.manager.streams.delete(`KV_${cursorsBucket(service)}`);
    await expect(cursors.load("a")).rejects.toMatchObject({ code: "GW_CURSOR_LOST", revision: 0 });
    expect((await cursors.save(cursor("a"), 1)).kind).toBe("unknown");
  });

  it("a save that meets a kill -9 is unknown or certain, and afterwards load tells which", async () => {
    const own = await startNats();
    onTestFinished(() => own.close());
    const nats = await connect(own);
    const cursors = await openJetStreamCursors({ nats, service: "shop", replicas: 1, timeoutMs: 2000 });
    let revision = 0;
    let unknowns = 0;
    for (let round = 0; round < 4; round += 1) {
      let last = "";
      let result: Saved = { kind: "saved", revision };
      const kill = waitFor(() => revision > round * 30 + 20, { what: "some saves" }).then(() => own.kill9());
      // Ends at the first save that is not acknowledged: the server is killed meanwhile.
      for (let n = 0; result.kind === "saved"; n += 1) {
        revision = result.revision;
        last = `${String(round)}-${String(n)}`;
        result = await cursors.save(cursor("a", { nonce: last, entries: n }), revision);
      }
      await kill;
      if (result.kind === "unknown") unknowns += 1;
      expect(result.kind).toBe("unknown");
      expect(await cursors.save(cursor("a"), revision)).toMatchObject({ kind: "unknown" });
      await expect(cursors.load("a")).rejects.toMatchObject({ code: "GW_LOG_UNAVAILABLE" });
      await own.restart();
      const loaded = await waitFor(() => cursors.load("a"), { what: "the cursor after the restart" });
      const isStored = loaded.revision > revision;
      expect(loaded.cursor.nonce === last).toBe(isStored);
      // The truth can be built upon: what load told is what the next save must name.
      revision = revisionOf(await cursors.save(cursor("a", { nonce: "next" }), loaded.revision));
    }
    expect(unknowns).toBe(4);
  });

  it("a save that meets a stopped server is unknown in bounded time, and afterwards load tells whether it was stored", async () => {
    const own = await startNats();
    onTestFinished(() => own.close());
    const nats = await connect(own);
    const cursors = await openJetStreamCursors({ nats, service: "shop", replicas: 1, timeoutMs: 500 });
    const revision = revisionOf(await cursors.save(cursor("a", { nonce: "before" }), 0));
    await own.pause();
    const startMs = performance.now();
    expect((await cursors.save(cursor("a", { nonce: "unknown" }), revision)).kind).toBe("unknown");
    await expect(cursors.load("a")).rejects.toMatchObject({ code: "GW_LOG_UNAVAILABLE" });
    expect(performance.now() - startMs).toBeLessThan(7000);
    own.resume();
    const isKnown = async (): Promise<boolean> => (await cursors.load("a"))?.cursor.nonce === "unknown";
    await waitFor(isKnown, { what: "the save that was stored although nobody said so" });
    expect(await cursors.save(cursor("a"), revision)).toEqual({ kind: "conflict" });
  });

  it("with three servers a deposed leader that comes back never tells an old cursor", async () => {
    const cluster = await startNatsCluster(3);
    onTestFinished(() => cluster.close());
    const service = "shop";
    const patient = await Promise.all(cluster.servers.map(connectPatiently));
    const open = (nats: Nats): Promise<Cursors> =>
      openJetStreamCursors({ nats, service, replicas: 3, timeoutMs: 2000 });
    const stores = await Promise.all(patient.map(open));
    const stream = `KV_${cursorsBucket(service)}`;
    // One that leads the stream alone comes back and knows that it missed its leader; one that leads both takes itself for it.
    const leaderOfBoth = async (): Promise<NatsServer | null> => {
      const leader = await cluster.streamLeader(stream);
      if (leader === (await cluster.metaLeader())) return leader;
      await patient[0]?.connection.request(`$JS.API.STREAM.LEADER.STEPDOWN.${stream}`, "", { timeout: 2000 });
      return null;
    };
    for (let round = 0; round < 2; round += 1) {
      const leader = await waitFor(leaderOfBoth, { timeoutMs: 60_000, what: "a leader of both groups" });
      const at = cluster.servers.indexOf(leader);
      const [deposed, other] = [stores[at], stores[(at + 1) % 3]];
      if (deposed === undefined || other === undefined) throw new Error("no store");
      let revision = 0;
      // Right after a leader stepped down there is none for a moment.
      const known = async (): Promise<boolean> => {
        revision = (await other.load("a"))?.revision ?? 0;
        return true;
      };
      await waitFor(known, { timeoutMs: 30_000, what: "the cursor to be read" });
      await leader.pause();
      const save = async (): Promise<boolean> => {
        const result = await other.save(cursor("a", { entries: round + 1 }), revision);
        if (result.kind === "saved") revision = result.revision;
        else revision = (await other.load("a"))?.revision ?? 0;
        return result.kind === "saved";
      };
      await waitFor(save, { timeoutMs: 60_000, what: "a save through the new leader" });
      // The first loads wait in the old leader's socket and are what it reads when it goes on, still taking itself for the leader.
      const seen: (StoredCursor | null)[] = [];
      const untilMs = performance.now() + 1000;
      const ask = async (): Promise<void> => {
        // Ends after the time in which a deposed leader was seen to answer, and once somebody has answered.
        do
          await deposed.load("a").then(
            (loaded) => seen.push(loaded),
            () => undefined,
          );
        while (performance.now() < untilMs || seen.length === 0);
      };
      const deposedConnection = patient[at]?.connection;
      if (deposedConnection === undefined) throw new Error("no connection");
      const sentBefore = deposedConnection.stats().outMsgs;
      const asking = Promise.all(Array.from({ length: 8 }, ask));
      const isWritten = (): boolean => deposedConnection.stats().outMsgs >= sentBefore + 8;
      await waitFor(isWritten, { what: "the first loads to be written" });
      leader.resume();
      await asking;
      for (const loaded of seen) expect(loaded).toMatchObject({ revision, cursor: { entries: round + 1 } });
      await cluster.ready();
    }
  }, 180_000);
});

/** As openNats, but for the pings that would give a stopped server's connection up. */
async function connectPatiently(server: NatsServer): Promise<Nats> {
  const connection = await dial({ servers: server.url, pingInterval: 600_000 });
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
