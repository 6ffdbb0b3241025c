// Copies in real containers behind the whole gateway: killed, left behind, rebuilt, recovered from nothing, and never of another image by accident.

import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { engineLabels } from "../../gateway/drivers/state-volume.ts";
import type { ListedContainer } from "../../gateway/drivers/docker-container.ts";
import { readTar, tarEnd, tarHead, tarPadding } from "../../recorder/capture/tar.ts";
import { Clients } from "../helpers/clients.ts";
import type { Call } from "../helpers/clients.ts";
import {
  commit,
  engine,
  engineAddress,
  hasEngine,
  pause,
  removeImage,
  removeService,
  testImage,
} from "../helpers/engine.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import { startGateway } from "../helpers/gateway.ts";
import type { Gateway } from "../helpers/gateway.ts";
import { waitFor } from "../helpers/wait.ts";
import { demoShop, runCli } from "./recorded.ts";
import type { Ran } from "./recorded.ts";
import { ask, caughtUp } from "./system.ts";

const run = randomBytes(4).toString("hex");
const service = `system-${run}`;
const repository = `localhost/gateway-${service}`;
const image = `${repository}:1`;
const names = ["r1", "r2", "r3"];
const env = { DOCKER_HOST: engineAddress };

/** Node and the bundled shop, under one name for all tests. Each call makes another image of it. */
async function nameNewImage(): Promise<string> {
  const program = await readFile(demoShop[1] as string);
  const built = await engine.createContainer(`${service}-image-${randomBytes(3).toString("hex")}`, {
    image: await testImage(),
    labels: { "io.br2k.gateway.test": randomBytes(4).toString("hex") },
    command: ["node", "/app/shop.mjs"],
    env: {},
    port: null,
    mount: null,
  });
  const head = { kind: "file", path: "shop.mjs", target: "", mode: 0o644, uid: 0, gid: 0 } as const;
  async function* archive(): AsyncGenerator<Buffer> {
    yield tarHead({ ...head, sizeBytes: program.length }, 0);
    yield program;
    yield tarPadding(program.length);
    yield tarEnd;
  }
  try {
    await engine.putArchive(built, "/app", archive(), AbortSignal.timeout(30_000));
    await commit(built, repository, "1");
  } finally {
    await engine.removeContainer(built);
  }
  return (await engine.imageId(image)) as string;
}

/** Nothing here can be repeated or asked for: only a rebuild helps a copy that was killed meanwhile. */
const order = (client: number, n: number): Call => ({
  method: "POST",
  path: "/orders",
  orderKeys: [],
  isKeyed: false,
  isRepeatable: false,
  body: { item: `tea ${client}`, count: 1 + (n % 7) },
});

async function startInContainers(): Promise<Gateway> {
  const gateway = await startGateway({
    env,
    withinMs: 60_000,
    config: {
      service,
      replicas: { count: 3, image, port: 3000, state: "/data", ready: "GET /health" },
      snapshots: { store: join(temporaryFolder("kept"), "snapshots"), every: { entries: 1_000_000 } },
    },
  });
  onTestFinished(async () => {
    await gateway.close();
    await removeService(service);
  });
  await gateway.until("version 0 is taken", 30_000, ({ snapshots: it }) => it?.last !== null && it?.last !== undefined);
  await caughtUp(gateway, 30_000);
  return gateway;
}

async function load(gateway: Gateway): Promise<Clients> {
  const clients = new Clients({ front: gateway.front, count: 3, workload: order, thinkMs: 250 });
  clients.start();
  await clients.busy({ acknowledged: 10, inFlight: 1 });
  return clients;
}

const ours = (): Promise<ListedContainer[]> => engine.containers("label", `${engineLabels.service}=${service}`);
const running = async (): Promise<ListedContainer[]> => (await ours()).filter(({ isAlive }) => isAlive);

async function containerOf(replica: string): Promise<string> {
  const found = (await running()).filter(({ labels }) => labels[engineLabels.replica] === replica);
  expect(found.length, `containers of ${replica}`).toBe(1);
  return (found[0] as ListedContainer).id;
}

/** What a copy wrote into its volume. */
async function fileOf(replica: string): Promise<string> {
  const archive = await engine.archive(await containerOf(replica), "/data/shop.json", AbortSignal.timeout(30_000));
  const pieces: Buffer[] = [];
  for await (const { content } of readTar(archive as AsyncGenerator<Buffer>))
    for await (const piece of content) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}

/** Everybody has everything that was acknowledged. */
async function expectEqualFiles(gateway: Gateway, clients: Clients): Promise<string> {
  await clients.stop();
  await caughtUp(gateway, 30_000);
  const files = await Promise.all(names.map(fileOf));
  expect(new Set(files).size).toBe(1);
  const { orders } = JSON.parse(files[0] as string) as { orders: { lastId: number } };
  expect(orders.lastId).toBeGreaterThanOrEqual(clients.acknowledged);
  return files[0] as string;
}

const cli = (gateway: Gateway, ...args: readonly string[]): Promise<Ran> =>
  runCli([...args, "-c", gateway.file], { env });
const said = ({ stdout, stderr }: Ran): string => stdout + stderr;

describe.skipIf(!hasEngine)("copies in containers", { timeout: 180_000 }, () => {
  beforeAll(async () => {
    await nameNewImage();
  }, 120_000);
  afterAll(async () => {
    await removeService(service);
    await removeImage(image);
  }, 60_000);

  test("one that is killed comes back with the state of the others, and so do all that a killed gateway left behind", async () => {
    const gateway = await startInContainers();
    const clients = await load(gateway);
    const killed = await containerOf("r3");
    // Frozen with a request inside, then killed: nothing can tell what became of it.
    await pause(killed);
    await waitFor(async () => (await gateway.metric("gateway_replica_lag_entries", { replica: "r3" })) > 2, {
      what: "entries that r3 does not answer",
    });
    await engine.killContainer(killed, "KILL");
    await gateway.until("r3 is rebuilt", 40_000, ({ replicas }) => replicas[2]?.state === "restoring");
    await gateway.until("all live", 40_000, (status) => status.live === 3);
    expect(await containerOf("r3")).not.toBe(killed);
    expect(await gateway.unknown()).toEqual([]);

    const created = await cli(gateway, "snapshot", "create");
    expect(created.code, said(created)).toBe(0);
    const verified = await cli(gateway, "snapshot", "verify");
    expect(verified.code, said(verified)).toBe(0);
    const audited = await cli(gateway, "audit");
    expect([audited.code, said(audited)]).toEqual([0, expect.stringContaining("state of r1, r2, r3 is equal")]);
    const rebuilt = await cli(gateway, "replica", "rebuild", "r2");
    expect([rebuilt.code, said(rebuilt)]).toEqual([0, expect.stringContaining("r2 is live again: snapshot 1")]);
    await gateway.until("all live", 40_000, (status) => status.live === 3);

    const left = await Promise.all(names.map(containerOf));
    await clients.busy({ acknowledged: 5, inFlight: 1 });
    await gateway.kill9();
    expect((await running()).map(({ id }) => id).toSorted()).toEqual(left.toSorted());
    // And one of them loses its state meanwhile.
    await engine.removeContainer(left[2] as string);
    for (const volume of await engine.volumes(`${engineLabels.service}=${service}`))
      if (volume.startsWith(`${service}-r3-`)) await engine.removeVolume(volume);
    await gateway.start();
    await gateway.until("all live", 40_000, (status) => status.live === 3);
    const now = await Promise.all(names.map(containerOf));
    expect(now.filter((it) => left.includes(it))).toEqual([]);
    await clients.busy({ acknowledged: 5, inFlight: 1 });
    await expectEqualFiles(gateway, clients);
    expect(await gateway.stop()).toBe(0);
    expect(await ours()).toEqual([]);
  });

  test("come back when all containers and volumes are gone, of the image that was recorded, or of another that a person allows", async () => {
    const gateway = await startInContainers();
    for (let n = 0; n < 20; n++)
      expect((await ask(gateway.front, "POST", "/orders", { body: order(0, n).body })).status).toBe(201);
    await caughtUp(gateway);
    const expected = await fileOf("r1");
    const expectAsBefore = async (): Promise<void> => {
      await gateway.start();
      await caughtUp(gateway, 30_000);
      expect(await Promise.all(names.map(fileOf))).toEqual(names.map(() => expected));
      expect(await gateway.stop()).toBe(0);
      expect(await ours()).toEqual([]);
    };
    expect(await gateway.stop()).toBe(0);
    await removeService(service);
    const recovered = await cli(gateway, "recover", "--yes");
    expect(recovered.code, said(recovered)).toBe(0);
    await expectAsBefore();

    const recorded = (await engine.imageId(image)) as string;
    const other = await nameNewImage();
    expect(other).not.toBe(recorded);
    const one = ["recover", "--replica", "r2", "--yes"];
    const refused = await cli(gateway, ...one);
    expect(refused.code, said(refused)).toBe(1);
    expect(said(refused)).toContain(recorded);
    expect(said(refused)).toContain(other);
    const allowed = await cli(gateway, ...one, "--allow-image");
    expect(allowed.code, said(allowed)).toBe(0);
    await expectAsBefore();
  });
});
