// Digests beside the log on NATS.
import { afterAll, beforeAll, expect, test } from "vitest";

import { openJetStreamDigests } from "../../../gateway/digests/jetstream.ts";
import { openNats } from "../../../gateway/drivers/nats.ts";
import type { Nats } from "../../../gateway/drivers/nats.ts";
import { positionOf } from "../../../gateway/entry.ts";
import { startNats } from "../../helpers/servers.ts";
import type { NatsServer } from "../../helpers/servers.ts";
import { all, digestsContract, positions, row } from "./digests.contract.ts";

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

const open = (service: string, maxBytes = 64 * 1024 * 1024) =>
  openJetStreamDigests({ nats, service, replicas: 1, maxBytes });

digestsContract("jetstream", async () => {
  const service = `contract-${++services}`;
  return {
    open: () => open(service),
    close: async () => void (await nats.manager.streams.delete(`GW_${service}_DIGESTS`)),
  };
});

test("digests beside the log on NATS take 35 bytes each and a little for the batch", async () => {
  const digests = await open("compact");
  await digests.append(Array.from({ length: 1_000 }, (_, n) => row({ position: n, replica: `r${n % 3}` })));
  const { state } = await nats.manager.streams.info("GW_compact_DIGESTS");
  expect(state.messages).toBe(1);
  expect(state.bytes).toBeLessThan(36_000);
});

test("digests beside the log on NATS lose their oldest batches when the stream is full, and are never refused", async () => {
  const digests = await open("bounded", 100_000);
  for (let n = 0; n < 100; n++) {
    await digests.append(Array.from({ length: 50 }, (_, index) => row({ position: positionOf(n * 64, index) })));
  }
  const left = await positions(digests, 0, Number.MAX_SAFE_INTEGER);
  expect(left.at(-1)).toBe(positionOf(99 * 64, 49));
  expect(left.length).toBeGreaterThan(1_000);
  expect(left.length).toBeLessThan(3_000);
});

test("digests beside the log on NATS are appended and read over a kill -9 of the server", async () => {
  const digests = await open("killed");
  await digests.append([row({ position: 1 })]);
  await server.kill9();
  const appending = digests.append([row({ position: 2 })]);
  const reading = all(digests, 0, 1);
  await server.restart();
  await appending;
  expect((await reading).length).toBe(1);
  expect(await positions(digests, 0, 100)).toEqual([1, 2]);
});
