// Which versions are kept, and how they come to be published: the registry away for longer than they are kept, and publishers that begin elsewhere.

import { Wallet } from "ethers";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { Secret } from "../../gateway/config/secret.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { Events } from "../../gateway/events.ts";
import type { Fact } from "../../gateway/events.ts";
import { Line } from "../../recorder/line.ts";
import type { Version } from "../../recorder/line.ts";
import { manifestFormat, noManifest } from "../../recorder/manifest.ts";
import { Publishing } from "../../recorder/publishing.ts";
import { deployRegistry } from "../../recorder/registry/ethereum-deploy.ts";
import { openEthereumRegistry } from "../../recorder/registry/ethereum.ts";
import type { EthereumRegistry } from "../../recorder/registry/ethereum.ts";
import { openFileRegistry } from "../../recorder/registry/file.ts";
import type { Registry } from "../../recorder/registry/registry.ts";
import { surplusOf, thinOut } from "../../recorder/retention.ts";
import { manifestSample } from "../fixtures/manifests/samples.ts";
import { developmentKeys, startAnvil } from "../helpers/anvil.ts";
import type { Anvil } from "../helpers/anvil.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import { MemoryDisk, MemoryStore } from "./memory-store.ts";

const service = manifestSample().service;
const { signal } = new AbortController();

/** One recorder's view: its store, its line, its publishing, and what it told. */
class Desk {
  readonly events = new Events();
  readonly told: Fact[] = [];
  readonly disk: MemoryDisk;
  readonly #registry: Registry;
  readonly #folder: string;
  readonly #owedMax: number | undefined;
  #nowMs = 1_800_000_000_000;
  line!: Line;
  publishing!: Publishing;

  constructor(registry: Registry, options: { readonly disk?: MemoryDisk; readonly owedMax?: number } = {}) {
    this.disk = options.disk ?? new MemoryDisk();
    this.#registry = registry;
    this.#folder = temporaryFolder("line");
    this.#owedMax = options.owedMax;
    this.events.listen((fact) => this.told.push(fact));
  }

  async open(folder = this.#folder): Promise<this> {
    const owed = this.#owedMax === undefined ? {} : { owedMax: this.#owedMax };
    const registry = this.#registry;
    this.line = await Line.open({ service, store: new MemoryStore(this.disk), registry, folder, ...owed });
    const settings = { service, publishEveryMs: 0, uri: "memory" };
    const clock = { now: () => this.#nowMs, wallMs: () => this.#nowMs, sleep: () => Promise.resolve() };
    this.publishing = new Publishing({ settings, line: this.line, registry, events: this.events, clock });
    return this;
  }

  /** As the recorder does, of a state that is `n`. */
  async take(n: number): Promise<Version> {
    const { version, previousHash } = this.line.next();
    const former = this.line.find(version);
    const position = (n + 1) * 4096;
    const root = String(n).padStart(64, "0");
    const sample = manifestSample({ format: manifestFormat, version, previousHash, position, root });
    const taken = await this.line.add(sample, { takenMs: (this.#nowMs += 1000) });
    if (former !== null) await this.line.replaced(former);
    return taken;
  }

  async keep(count: number): Promise<void> {
    await this.line.settleOwed();
    await thinOut(this.line, count, this.events);
    expect(surplusOf(this.line, count).filter((it) => !this.line.isOwingAll || !this.line.isWaiting(it))).toEqual([]);
  }

  /** Long after what was tried before. */
  async goOn(): Promise<void> {
    this.#nowMs += 3_600_000;
    await this.publishing.goOn(signal);
  }

  states(): readonly string[] {
    return this.told.flatMap((fact) => (fact.type === "publication" ? [`${fact.version} ${fact.state}`] : []));
  }
}

const numbers = (desk: Desk): readonly number[] => desk.line.versions.map((it) => it.version);

const away = (): Promise<never> => Promise.reject(new GatewayError("GW_REGISTRY_UNAVAILABLE", "it is away"));

/** A file that can be away. */
interface Leaving {
  readonly registry: Registry;
  isAway: boolean;
}

function registryThatLeaves(): Leaving {
  const file = openFileRegistry({ folder: temporaryFolder("registry"), service, name: "gw" });
  const it: Leaving = {
    isAway: false,
    registry: {
      kind: file.kind,
      chainId: file.chainId,
      contract: file.contract,
      publish: (publication, until) => (it.isAway ? away() : file.publish(publication, until)),
      find: (version) => (it.isAway ? away() : file.find(version)),
      othersFor: (publication) => (it.isAway ? away() : file.othersFor(publication)),
      latest: () => (it.isAway ? away() : file.latest()),
      history: (from, limit) => (it.isAway ? away() : file.history(from, limit)),
      status: () => file.status(),
      close: () => file.close(),
    },
  };
  return it;
}

/** Version 0 is published, ten more are taken while it is away, and two are kept. */
async function beginAway(owedMax?: number): Promise<{ desk: Desk; chain: Leaving }> {
  const chain = registryThatLeaves();
  const desk = await new Desk(chain.registry, owedMax === undefined ? {} : { owedMax }).open();
  await desk.take(0);
  await desk.goOn();
  chain.isAway = true;
  for (let n = 1; n <= 10; n++) {
    await desk.take(n);
    await desk.goOn();
    await desk.keep(2);
  }
  return { desk, chain };
}

/** Nothing is left out, and each names the one before. */
async function expectWholeLine(registry: Registry, last: number): Promise<void> {
  const history = await registry.history(0, 100);
  expect(history.map((it) => it.version)).toEqual(Array.from({ length: last + 1 }, (_, n) => n));
  for (const [n, it] of history.entries()) expect(it.previousHash).toBe(history[n - 1]?.manifestHash ?? noManifest);
}

describe("a registry that is away for longer than versions are kept", () => {
  test("gets every version when it is back, though only `keep` of them are in the store", async () => {
    const { desk, chain } = await beginAway();
    expect(numbers(desk)).toEqual([0, 9, 10]);
    expect(desk.disk.names("manifests/")).toHaveLength(3);
    expect(desk.disk.names("owed/")).toHaveLength(8);
    chain.isAway = false;
    for (let n = 1; n <= 10; n++) await desk.goOn();
    await expectWholeLine(chain.registry, 10);
    await desk.keep(2);
    expect(numbers(desk)).toEqual([9, 10]);
    expect(desk.disk.names("owed/")).toEqual([]);
    expect(desk.line.waiting).toEqual([]);
    expect(desk.publishing.pendingMs).toBe(0);
  });

  test("gets them from a recorder that was started again and has lost its notes, too", async () => {
    const { desk, chain } = await beginAway();
    await desk.open(temporaryFolder("other"));
    expect(desk.line.waiting.map((it) => it.version)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    chain.isAway = false;
    for (let n = 0; n <= 10; n++) await desk.goOn();
    await expectWholeLine(chain.registry, 10);
  });

  test("gets them where the recorder was killed between the two steps of a removal", async () => {
    const { desk, chain } = await beginAway();
    const [nine] = desk.disk.names("manifests/").slice(1);
    const bytes = desk.disk.objects.get(nine as string);
    desk.disk.objects.set((nine as string).replace("manifests/", "owed/"), bytes as never);
    await desk.open();
    expect(desk.line.waiting.map((it) => it.version)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    chain.isAway = false;
    for (let n = 1; n <= 10; n++) await desk.goOn();
    await expectWholeLine(chain.registry, 10);
  });

  test("for so long that no more may be owed gets a line without gaps all the same: the newest takes its predecessor's number", async () => {
    const { desk, chain } = await beginAway(4);
    // 1 to 4 are owed; 5 is as old as it is kept, and 6 was taken again and again.
    expect(numbers(desk)).toEqual([0, 5, 6]);
    expect(desk.disk.names("owed/")).toHaveLength(4);
    expect(desk.disk.names("manifests/")).toHaveLength(3);
    expect(desk.line.newest?.position).toBe(11 * 4096);
    // It was the newest before the start, too.
    await desk.open();
    expect(desk.line.newest?.position).toBe(11 * 4096);
    chain.isAway = false;
    for (let n = 1; n <= 6; n++) await desk.goOn();
    await expectWholeLine(chain.registry, 6);
    expect(await desk.take(11)).toMatchObject({ version: 7 });
    await desk.goOn();
    await expectWholeLine(chain.registry, 7);
  });

  test("keeps the snapshot whose number could not be taken: what was to replace it is taken back", async () => {
    const { desk } = await beginAway(4);
    const { newest } = desk.line;
    const { version, previousHash } = desk.line.next();
    expect(version).toBe(newest?.version);
    const taken = await desk.line.add(manifestSample({ version, previousHash, position: 99 * 4096 }), { takenMs: 1 });
    await desk.line.retract(taken);
    expect(desk.line.newest).toEqual(newest);
  });
});

describe("two publishers with quorum 2 whose stores begin at different versions", () => {
  let anvil: Anvil;
  let contract: string;
  beforeAll(async () => {
    anvil = await startAnvil();
    const key = new Secret(developmentKeys[0]);
    contract = (await deployRegistry({ rpc: new Secret(anvil.url), key, keyPassword: null }, signal)).contract;
  });
  afterAll(() => anvil?.close());

  async function open(owner: Wallet, wallet: Wallet): Promise<EthereumRegistry> {
    await anvil.fund(wallet.address, 10);
    const registry = await openEthereumRegistry({
      rpc: [new Secret(anvil.url)],
      contract,
      service,
      owner: owner.address,
      key: new Secret(wallet.privateKey),
      keyPassword: null,
      confirmations: 1,
      publishers: [],
      maxFeeGwei: 0,
      folder: temporaryFolder("notes"),
      times: { timeoutMs: 10_000, pollMs: 15, stuckMs: 25_000, waitMs: 25_000 },
    });
    onTestFinished(() => registry.close());
    return registry;
  }

  /** Versions 0 to 5 of equal copies: `a` has those from 1 on, `b` those from 3 on. */
  async function begin(): Promise<{ a: Desk; b: Desk; registry: EthereumRegistry }> {
    const wallets = [0, 1].map(() => new Wallet(Wallet.createRandom().privateKey)) as [Wallet, Wallet];
    const first = await open(wallets[0], wallets[0]);
    const second = await open(wallets[0], wallets[1]);
    await first.register(
      wallets.map((it) => it.address),
      2,
      signal,
    );
    const source = await new Desk(first).open();
    for (let n = 0; n <= 5; n++) await source.take(n);
    const from = async (registry: Registry, begins: number): Promise<Desk> => {
      const disk = new MemoryDisk();
      for (const name of source.disk.names("manifests/").slice(begins))
        disk.objects.set(name, source.disk.objects.get(name) as never);
      return new Desk(registry, { disk }).open();
    };
    return { a: await from(first, 1), b: await from(second, 3), registry: first };
  }

  test("come to one beginning, whoever comes first, say what they wait for meanwhile, and go on from there", async () => {
    for (const order of ["ab", "ba"]) {
      const { a, b, registry } = await begin();
      const turns = order === "ab" ? [a, b] : [b, a];
      for (const it of turns) await it.goOn();
      for (const it of turns) await it.goOn();
      expect((await registry.history(0, 10))[0], order).toMatchObject({ version: 3 });
      for (let n = 0; n < 3; n++) for (const it of turns) await it.goOn();
      expect(
        (await registry.history(0, 10)).map((it) => it.version),
        order,
      ).toEqual([3, 4, 5]);
      expect([a.line.waiting, b.line.waiting], order).toEqual([[], []]);
      expect(turns[0]?.states().slice(0, 2)).toEqual(
        order === "ab" ? ["1 sent", "1 waiting"] : ["3 sent", "3 waiting"],
      );
      expect([...a.states(), ...b.states()].filter((it) => it.endsWith("failed"))).toEqual([]);
    }
  }, 60_000);

  test("attest nothing that is not the same at home, and say so", async () => {
    const { a, b, registry } = await begin();
    for (const it of b.line.versions) await b.line.remove(it.version);
    for (const name of b.disk.names("")) b.disk.objects.delete(name);
    await b.open();
    for (const version of [3, 4, 5])
      await b.line.add(manifestSample({ version, position: (version + 1) * 4096, root: "ab".repeat(32) }), {});
    for (let n = 0; n < 3; n++) for (const it of [a, b]) await it.goOn();
    expect([a.states(), b.states()]).toEqual([
      ["1 sent", "1 waiting"],
      ["3 sent", "3 waiting"],
    ]);
    expect(await registry.latest()).toBeNull();
  }, 60_000);
});
