import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { boardBucket, openJetStreamBoard } from "../../../gateway/board/jetstream.ts";
import { openNats } from "../../../gateway/drivers/nats.ts";
import type { Nats } from "../../../gateway/drivers/nats.ts";
import { startNats, startNatsCluster } from "../../helpers/servers.ts";
import type { NatsServer } from "../../helpers/servers.ts";
import { boardContract } from "./board.contract.ts";
import type { BoardPlace } from "./board.contract.ts";

let services = 0;
const newService = (): string => `shop-${String((services += 1))}`;

async function connect(server: NatsServer): Promise<Nats> {
  const nats = await openNats({ servers: [server.url], name: "test" }, AbortSignal.timeout(20_000));
  onTestFinished(() => nats.close());
  return nats;
}

function placeOn(servers: readonly NatsServer[], replicas: number): BoardPlace {
  const service = newService();
  let next = 0;
  const nats = (): Promise<Nats> => connect(servers[next++ % servers.length] as NatsServer);
  return {
    open: async () => openJetStreamBoard({ nats: await nats(), service, replicas }),
    damage: async (name) => {
      const { jetstream } = await nats();
      await jetstream.publish(`$KV.${boardBucket(service)}.${name}.value`, '00000000\n{"name":"roster","value":1}');
    },
    isShared: true,
  };
}

describe("the board on one NATS server", () => {
  let server: NatsServer;
  beforeAll(async () => {
    server = await startNats();
  });
  afterAll(() => server.close());

  boardContract(async () => placeOn([server], 1));

  it("a bucket that is gone is a lost board, not an empty one", async () => {
    const service = newService();
    const nats = await connect(server);
    const board = await openJetStreamBoard({ nats, service, replicas: 1 });
    await board.save("roster", "first", 0);
    await nats.manager.streams.delete(`KV_${boardBucket(service)}`);
    await expect(board.load("roster")).rejects.toMatchObject({ code: "GW_BOARD_LOST" });
    expect((await board.save("roster", "second", 1)).kind).toBe("unknown");
  });

  it("a save or load that meets a stopped server ends in bounded time, and what was saved shows afterwards", async () => {
    const own = await startNats();
    onTestFinished(() => own.close());
    const board = await openJetStreamBoard({ nats: await connect(own), service: "shop", replicas: 1, timeoutMs: 500 });
    const first = await board.save("roster", "first", 0);
    if (first.kind !== "saved") throw new Error(first.kind);
    await own.kill9();
    expect((await board.save("roster", "second", first.revision)).kind).toBe("unknown");
    await expect(board.load("roster")).rejects.toMatchObject({ code: "GW_LOG_UNAVAILABLE" });
  });
});

describe("the board on three NATS servers", () => {
  let servers: readonly NatsServer[];
  let close: () => Promise<void>;
  beforeAll(async () => {
    const cluster = await startNatsCluster(3);
    servers = cluster.servers;
    close = () => cluster.close();
  }, 120_000);
  afterAll(() => close());

  boardContract(async () => placeOn(servers, 3));
});
