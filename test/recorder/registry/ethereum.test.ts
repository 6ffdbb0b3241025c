import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { AbiCoder, encryptKeystoreJson, Interface, keccak256, Transaction, Wallet } from "ethers";
import { afterAll, afterEach, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { Secret } from "../../../gateway/config/secret.ts";
import { abi } from "../../../recorder/contract/artifact.ts";
import { deployRegistry } from "../../../recorder/registry/ethereum-deploy.ts";
import { openEthereumRegistry } from "../../../recorder/registry/ethereum.ts";
import { developmentKeys, startAnvil } from "../../helpers/anvil.ts";
import { createFolder, endWithUs, temporaryFolder } from "../../helpers/folder.ts";
import { startTcpProxy } from "../../helpers/tcp-proxy.ts";
import { waitFor } from "../../helpers/wait.ts";
import { registryContract } from "./registry.contract.ts";
import { startRpcProxy } from "./rpc-proxy.ts";
import { publication, sha256, zeros } from "./samples.ts";
import type { EthereumOptions, EthereumRegistry } from "../../../recorder/registry/ethereum.ts";
import type { Anvil } from "../../helpers/anvil.ts";
import type { RpcCall, RpcProxy, Tamper } from "./rpc-proxy.ts";

const contractInterface = new Interface(abi);
const signal = new AbortController().signal;
const times = { timeoutMs: 10_000, pollMs: 15, stuckMs: 400, waitMs: 25_000 };
/** Where the test compares what was sent: nothing is replaced meanwhile. */
const patient = { ...times, stuckMs: 25_000 };
const opened: EthereumRegistry[] = [];
const proxies: RpcProxy[] = [];
let services = 0;

type Given = Partial<EthereumOptions> & { readonly service: string };

/** With a folder of its own and the first development key, unless the test gives others. */
async function open(contract: string, rpc: readonly string[], given: Given): Promise<EthereumRegistry> {
  const registry = await openEthereumRegistry({
    rpc: rpc.map((url) => new Secret(url)),
    contract,
    owner: null,
    key: new Secret(developmentKeys[0]),
    keyPassword: null,
    confirmations: 1,
    publishers: [],
    maxFeeGwei: 0,
    folder: temporaryFolder("notes"),
    times,
    ...given,
  });
  opened.push(registry);
  return registry;
}

async function deployOn(anvil: Anvil, key: string = developmentKeys[0]): Promise<string> {
  return (await deployRegistry({ rpc: new Secret(anvil.url), key: new Secret(key), keyPassword: null }, signal))
    .contract;
}

async function proxyTo(anvil: Anvil): Promise<RpcProxy> {
  const proxy = await startRpcProxy(anvil.url);
  proxies.push(proxy);
  return proxy;
}

/** An account that nobody else sends from. */
async function newKey(
  anvil: Anvil,
  ether = 10,
): Promise<{ readonly key: Secret; readonly wallet: Wallet; readonly address: string }> {
  const wallet = new Wallet(Wallet.createRandom().privateKey);
  await anvil.fund(wallet.address, ether);
  return { key: new Secret(wallet.privateKey), wallet, address: wallet.address.toLowerCase() };
}

const newService = (): string => `shop-${(services += 1)}`;
const idOf = (owner: string, service: string): string =>
  keccak256(AbiCoder.defaultAbiCoder().encode(["address", "string"], [owner, service]));

/** All events that made a version of the service final. */
async function finals(
  anvil: Anvil,
  contract: string,
  id: string,
): Promise<readonly { readonly transactionHash: string }[]> {
  const topics = [contractInterface.getEvent("Final")?.topicHash, id];
  return anvil.call("eth_getLogs", [{ address: contract, fromBlock: "0x0", toBlock: "latest", topics }]);
}

const nonceOf = async (anvil: Anvil, address: string): Promise<number> =>
  Number(await anvil.call("eth_getTransactionCount", [address, "latest"]));

/** Transactions of an account that wait in the node. */
async function waiting(
  anvil: Anvil,
  address: string,
): Promise<readonly { readonly hash: string; readonly input: string }[]> {
  const pool = await anvil.call<{ pending: Record<string, Record<string, { hash: string; input: string }>> }>(
    "txpool_content",
  );
  const found = Object.entries(pool.pending).find(([from]) => from.toLowerCase() === address);
  return found === undefined ? [] : Object.values(found[1]);
}

/** Calls of the contract's function, as a proxy sees them. */
const asks = ({ method, params }: RpcCall, name: string): boolean =>
  method === "eth_call" &&
  ((params[0] as { data?: string }).data ?? "").startsWith(contractInterface.getFunction(name)?.selector ?? "?");

/** Shows another manifest in the contract's history. */
const lying: Tamper = async (call, forward) => {
  const answer = await forward(call);
  if (!asks(call, "history")) return answer;
  const [hashes] = contractInterface.decodeFunctionResult("history", answer as string);
  const forged = [...(hashes as string[])].map((hash, i, all) =>
    i === all.length - 1 ? `0x${sha256("forged")}` : hash,
  );
  return contractInterface.encodeFunctionResult("history", [forged]);
};

const feesOf = ({ maxFeePerGas, maxPriorityFeePerGas }: Transaction): readonly bigint[] => [
  maxFeePerGas ?? 0n,
  maxPriorityFeePerGas ?? 0n,
];

const unavailable = (part: string) => ({
  code: "GW_REGISTRY_UNAVAILABLE",
  message: expect.stringContaining(part) as unknown,
});
const refused = (part: string) => ({
  code: "GW_REGISTRY_REFUSED",
  message: expect.stringContaining(part) as unknown,
});

afterEach(async () => {
  await Promise.all(opened.splice(0).map((registry) => registry.close()));
  await Promise.all(proxies.splice(0).map((proxy) => proxy.close()));
});

describe("the registry on a chain", () => {
  let anvil: Anvil;
  let contract: string;
  beforeAll(async () => {
    anvil = await startAnvil();
    contract = await deployOn(anvil);
  });
  afterAll(() => anvil?.close());

  registryContract(async () => {
    const service = newService();
    const folder = createFolder("notes");
    return {
      service,
      open: () => open(contract, [anvil.url], { service, folder }),
      settle: () => Promise.resolve(),
    };
  });

  /** Nothing is put into a block until the test says so. */
  const holdBlocks = async (): Promise<void> => {
    await anvil.call("evm_setAutomine", [false]);
    onTestFinished(async () => {
      await anvil.call("evm_setAutomine", [true]);
      await anvil.mine();
    });
  };

  it("registers the service for its own account with the first publication, and publishes with that key alone", async () => {
    const service = newService();
    const { key, address } = await newKey(anvil);
    const registry = await open(contract, [anvil.url], { service, key });
    expect(await registry.line()).toMatchObject({ isRegistered: false, account: address });
    const published = await registry.publish(publication(service, 0), signal);
    expect(published).toMatchObject({ publishers: [address], quorum: 1, isFinal: true });
    expect(published.transaction).toMatch(/^0x[0-9a-f]{64}$/);
    expect(await registry.line()).toMatchObject({
      isRegistered: true,
      owner: address,
      publishers: [address],
      firstVersion: 0,
      nextVersion: 1,
      quorum: 1,
      id: idOf(address, service),
    });
    expect([registry.chainId, registry.contract]).toEqual(["31337", contract]);
    expect(await nonceOf(anvil, address)).toBe(2);
    // Somebody else with the same name has another line, and does not see this one.
    const other = await open(contract, [anvil.url], { service, key: (await newKey(anvil)).key });
    expect(await other.latest()).toBeNull();
    // Who has no key reads, and needs to know whose service it is.
    const reader = await open(contract, [anvil.url], { service, key: null, owner: address });
    expect(await reader.latest()).toEqual(published);
    await expect(reader.publish(publication(service, 1), signal)).rejects.toMatchObject({
      code: "GW_REGISTRY_REFUSED",
    });
    await expect(open(contract, [anvil.url], { service, key: null })).rejects.toMatchObject({
      code: "GW_CONFIG_INVALID",
    });
  });

  it("waits for its confirmations", async () => {
    const service = newService();
    const { key } = await newKey(anvil);
    const registry = await open(contract, [anvil.url], { service, key, confirmations: 3 });
    const before = Number(await anvil.call("eth_blockNumber"));
    let isDone = false;
    const publishing = registry.publish(publication(service, 0), signal).finally(() => (isDone = true));
    // Registered in one block, published in the next.
    await waitFor(async () => Number(await anvil.call("eth_blockNumber")) === before + 2, {
      what: "both transactions",
    });
    expect(await registry.find(0)).toMatchObject({ version: 0, isFinal: false });
    expect(await registry.latest()).toBeNull();
    await anvil.mine();
    expect(isDone).toBe(false);
    await anvil.mine();
    expect(await publishing).toMatchObject({ isFinal: true, block: before + 2 });
    expect(await registry.latest()).toMatchObject({ version: 0 });
  });

  it("publishes again, with the same bytes, what a reorganisation took back", async () => {
    const service = newService();
    const { key, address } = await newKey(anvil);
    const registry = await open(contract, [anvil.url], { service, key, times: patient });
    await registry.publish(publication(service, 0), signal);
    const { block, transaction } = await registry.publish(publication(service, 1), signal);
    const hashOf = async (number: number): Promise<string> =>
      (await anvil.call<{ hash: string }>("eth_getBlockByNumber", [`0x${number.toString(16)}`, false])).hash;
    const before = await hashOf(block ?? 0);
    await anvil.call("anvil_reorg", [1, []]);
    expect(await hashOf(block ?? 0)).not.toBe(before);
    expect(await registry.find(1)).toBeNull();
    expect(await registry.find(0)).toMatchObject({ version: 0 });
    const again = await registry.publish(publication(service, 1), signal);
    expect(again).toMatchObject({ ...publication(service, 1), isFinal: true, transaction });
    expect(again.block).toBeGreaterThan(block ?? 0);
    expect(await nonceOf(anvil, address)).toBe(3);
    expect(await finals(anvil, contract, idOf(address, service))).toHaveLength(2);
  });

  it("takes nothing for true that it read partly before and partly after a reorganisation", async () => {
    const service = newService();
    const { key, address } = await newKey(anvil);
    const proxy = await proxyTo(anvil);
    const registry = await open(contract, [proxy.url], { service, key, times: patient });
    for (const version of [0, 1]) await registry.publish(publication(service, version), signal);
    for (const work of [() => registry.publish(publication(service, 1), signal), () => registry.find(1)]) {
      let isDone = false;
      proxy.tamper = async (call, forward) => {
        if (!isDone && asks(call, "history")) {
          isDone = true;
          await anvil.call("anvil_reorg", [1, []]);
        }
        return forward(call);
      };
      const found = await work();
      expect(isDone).toBe(true);
      // Published again; or seen to be gone.
      if (found === null) expect(await nonceOf(anvil, address)).toBe(2);
      else expect(found).toMatchObject({ version: 1, isFinal: true });
    }
  });

  it("finds a publication undone while it waits for its confirmations, and brings it back", async () => {
    const service = newService();
    const { key, address } = await newKey(anvil);
    const first = await open(contract, [anvil.url], { service, key });
    await first.publish(publication(service, 0), signal);
    await first.close();
    const registry = await open(contract, [anvil.url], { service, key, confirmations: 2 });
    const publishing = registry.publish(publication(service, 1), signal);
    await waitFor(async () => (await nonceOf(anvil, address)) === 3, { what: "the transaction in a block" });
    await anvil.call("anvil_reorg", [1, []]);
    await waitFor(async () => (await nonceOf(anvil, address)) === 3, { what: "the transaction in a block again" });
    await anvil.mine();
    expect(await publishing).toMatchObject({ version: 1, isFinal: true });
    expect(await finals(anvil, contract, idOf(address, service))).toHaveLength(2);
  });

  it("says so while the chain is away, opens without it where it was before, and publishes when it is back", async () => {
    const service = newService();
    const { key, address } = await newKey(anvil);
    const folder = temporaryFolder("notes");
    const proxy = await startTcpProxy({ targetPort: anvil.port });
    onTestFinished(() => proxy.close());
    const url = `http://127.0.0.1:${proxy.port}`;
    const registry = await open(contract, [url], { service, key, folder });
    await registry.publish(publication(service, 0), signal);
    await proxy.cut();
    const away = { code: "GW_REGISTRY_UNAVAILABLE", message: expect.stringContaining(url) as unknown };
    await expect(registry.publish(publication(service, 1), signal)).rejects.toMatchObject(away);
    await expect(registry.latest()).rejects.toMatchObject(away);
    const status = await registry.status();
    expect(status).toMatchObject({ isReachable: false, trouble: expect.stringContaining("refuses") as unknown });
    expect(status.errors).toBeGreaterThan(0);
    await registry.close();

    const reopened = await open(contract, [url], { service, key, folder });
    expect(reopened.chainId).toBe("31337");
    await expect(open(contract, [url], { service, key })).rejects.toMatchObject(away);
    await proxy.heal();
    expect(await reopened.publish(publication(service, 1), signal)).toMatchObject({ version: 1 });
    expect(await nonceOf(anvil, address)).toBe(3);
  });

  it("ends each call in time when the chain hangs, and asks the second endpoint", async () => {
    const service = newService();
    const { key } = await newKey(anvil);
    const proxy = await startTcpProxy({ targetPort: anvil.port });
    onTestFinished(() => proxy.close());
    const url = `http://127.0.0.1:${proxy.port}`;
    const quick = { ...times, timeoutMs: 300 };
    const alone = await open(contract, [url], { service, key, times: quick });
    const both = await open(contract, [url, anvil.url], { service, key, times: quick });
    proxy.pause();
    const begunMs = performance.now();
    await expect(alone.latest()).rejects.toMatchObject({ message: expect.stringContaining("300 ms") as unknown });
    expect(performance.now() - begunMs).toBeLessThan(5000);
    expect(await both.publish(publication(service, 0), signal)).toMatchObject({ version: 0, isFinal: true });
    expect(await both.latest()).toMatchObject({ version: 0 });
    expect(await both.status()).toMatchObject({
      isReachable: true,
      trouble: expect.stringContaining(`decided by ${anvil.url} alone`) as unknown,
    });
    await proxy.heal();
  });

  it("decides nothing where two endpoints contradict each other, and names the difference", async () => {
    const service = newService();
    const { key } = await newKey(anvil);
    const proxy = await proxyTo(anvil);
    const registry = await open(contract, [anvil.url, proxy.url], { service, key });
    for (const version of [0, 1]) await registry.publish(publication(service, version), signal);
    expect(await registry.latest()).toMatchObject({ version: 1 });

    const refusal = async (): Promise<string> => {
      const error = await registry.latest().then(
        () => null,
        (reason: Error & { readonly code: string }) => reason,
      );
      expect(error?.code).toBe("GW_REGISTRY_UNAVAILABLE");
      return error?.message ?? "";
    };
    proxy.tamper = lying;
    expect(await refusal()).toContain(`${proxy.url} shows version 1`);
    // A liar that forges the event as well is found by the other's word alone.
    proxy.tamper = async (call, forward) => {
      const answer = await lying(call, forward);
      return JSON.parse(JSON.stringify(answer).replaceAll(sha256("manifest 1"), sha256("forged"))) as unknown;
    };
    const difference = await refusal();
    for (const part of [anvil.url, proxy.url, sha256("manifest 1"), sha256("forged")])
      expect(difference).toContain(part);
    proxy.tamper = async (call, forward) => {
      const answer = (await forward(call)) as { hash?: string } | null;
      return call.method === "eth_getBlockByNumber" ? { ...answer, hash: `0x${sha256("another block")}` } : answer;
    };
    expect(await refusal()).toContain(sha256("another block"));
    await expect(registry.find(1)).rejects.toMatchObject({ code: "GW_REGISTRY_UNAVAILABLE" });
    await expect(registry.history(0, 9)).rejects.toMatchObject({ code: "GW_REGISTRY_UNAVAILABLE" });
    expect((await registry.status()).trouble).toContain("contradict");
    proxy.tamper = (call, forward) => forward(call);
    expect(await registry.latest()).toMatchObject({ version: 1, manifestHash: sha256("manifest 1") });
  });

  it("takes the word of the endpoint that is further, where the other only lags", async () => {
    const service = newService();
    const { key } = await newKey(anvil);
    const proxy = await proxyTo(anvil);
    const registry = await open(contract, [proxy.url, anvil.url], { service, key });
    await registry.publish(publication(service, 0), signal);
    await registry.publish(publication(service, 1), signal);
    const lag = Number(await anvil.call("eth_blockNumber")) - 1;
    proxy.tamper = async (call, forward) =>
      call.method === "eth_blockNumber" ? `0x${lag.toString(16)}` : forward(call);
    expect(await registry.latest()).toMatchObject({ version: 1 });
    expect(await registry.history(0, 9)).toHaveLength(2);
  });

  it("does not believe one endpoint that shows another hash, less than it showed before, or another chain", async () => {
    const service = newService();
    const { key } = await newKey(anvil);
    const folder = temporaryFolder("notes");
    const proxy = await proxyTo(anvil);
    const registry = await open(contract, [proxy.url], { service, key, folder });
    for (const version of [0, 1]) await registry.publish(publication(service, version), signal);
    proxy.tamper = lying;
    await expect(registry.latest()).rejects.toMatchObject(unavailable("does not tell the truth"));
    // Its own publication is gone from there, it says: nothing is published over it.
    await expect(registry.publish(publication(service, 1), signal)).rejects.toMatchObject({
      code: "GW_REGISTRY_REFUSED",
    });
    proxy.tamper = (call, forward) => forward(call);
    expect(await registry.latest()).toMatchObject({ version: 1 });

    const early = Number(await anvil.call("eth_blockNumber")) - 1;
    proxy.tamper = async (call, forward) =>
      call.method === "eth_blockNumber" ? `0x${early.toString(16)}` : forward(call);
    await expect(registry.latest()).rejects.toMatchObject(unavailable("version 1 of the line was final"));
    await registry.close();
    // It is remembered over a restart.
    const reopened = await open(contract, [proxy.url], { service, key, folder });
    await expect(reopened.latest()).rejects.toMatchObject(unavailable("version 1 of the line was final"));

    proxy.tamper = async (call, forward) => (call.method === "eth_chainId" ? "0x1" : forward(call));
    await expect(reopened.latest()).rejects.toMatchObject(unavailable("shows chain 1, the registry is on chain 31337"));
    await expect(reopened.publish(publication(service, 2), signal)).rejects.toMatchObject(unavailable("chain 1"));
    proxy.tamper = (call, forward) => forward(call);
    expect(await reopened.publish(publication(service, 2), signal)).toMatchObject({ version: 2 });
  });

  it("goes behind a transaction that somebody else sends from the account, and around one that takes its nonce", async () => {
    const service = newService();
    const { key, wallet, address } = await newKey(anvil);
    const registry = await open(contract, [anvil.url], { service, key });
    await registry.publish(publication(service, 0), signal);
    await holdBlocks();
    const foreign = async (nonce: number, gwei: bigint): Promise<void> => {
      const fee = gwei * 10n ** 9n;
      const fees = { type: 2, maxFeePerGas: fee, maxPriorityFeePerGas: fee };
      const raw = await wallet.signTransaction({ ...fees, chainId: 31337, nonce, to: address, gasLimit: 21_000 });
      await anvil.call("eth_sendRawTransaction", [raw]);
    };
    await foreign(2, 10n);
    const behind = registry.publish(publication(service, 1), signal);
    await waitFor(async () => (await waiting(anvil, address)).length === 2, { what: "both transactions in the node" });
    await anvil.mine();
    expect(await behind).toMatchObject({ version: 1, isFinal: true });

    const around = registry.publish(publication(service, 2), signal);
    await waitFor(async () => (await waiting(anvil, address)).length === 1, { what: "the publication in the node" });
    await foreign(4, 100n);
    await anvil.mine();
    await waitFor(async () => (await waiting(anvil, address)).length === 1, {
      what: "the publication in the node again",
    });
    await anvil.mine();
    expect(await around).toMatchObject({ version: 2, isFinal: true });
    expect(await nonceOf(anvil, address)).toBe(6);
    expect(await finals(anvil, contract, idOf(address, service))).toHaveLength(3);
  });

  it("replaces a transaction that is stuck with one under the same nonce that pays at least an eighth more", async () => {
    const service = newService();
    const { key, address } = await newKey(anvil, 1000);
    const registry = await open(contract, [anvil.url], { service, key });
    await registry.publish(publication(service, 0), signal);
    await holdBlocks();
    const publishing = registry.publish(publication(service, 1), signal);
    const sentNow = async (): Promise<Transaction | null> => {
      const [one] = await waiting(anvil, address);
      const raw = one === undefined ? null : await anvil.call<string | null>("eth_getRawTransactionByHash", [one.hash]);
      return raw === null ? null : Transaction.from(raw);
    };
    const first = await waitFor(sentNow, { what: "the publication in the node" });
    const second = await waitFor(
      async () => {
        const now = await sentNow();
        return now?.hash === first.hash ? null : now;
      },
      { what: "its replacement" },
    );
    expect([second.nonce, second.data]).toEqual([first.nonce, first.data]);
    for (const [i, fee] of feesOf(second).entries())
      expect(fee * 8n).toBeGreaterThanOrEqual((feesOf(first)[i] ?? 0n) * 9n);
    // Then the chain becomes far more expensive: the next one pays what the chain asks for.
    const base = (second.maxFeePerGas ?? 0n) * 20n;
    await anvil.call("anvil_setNextBlockBaseFeePerGas", [`0x${base.toString(16)}`]);
    await anvil.mine();
    expect(await nonceOf(anvil, address)).toBe(2);
    await waitFor(async () => ((await sentNow())?.maxFeePerGas ?? 0n) > base, { what: "one that pays enough" });
    await anvil.mine();
    const paid = await anvil.call<{ nonce: string }>("eth_getTransactionByHash", [(await publishing).transaction]);
    expect(Number(paid.nonce)).toBe(2);
    expect(await finals(anvil, contract, idOf(address, service))).toHaveLength(2);
  });

  it("sends the same bytes again when the node dropped them", async () => {
    const service = newService();
    const { key, address } = await newKey(anvil);
    const registry = await open(contract, [anvil.url], { service, key, times: patient });
    await registry.publish(publication(service, 0), signal);
    await holdBlocks();
    const publishing = registry.publish(publication(service, 1), signal);
    const hashes = async (): Promise<string[]> => (await waiting(anvil, address)).map(({ hash }) => hash);
    await waitFor(async () => (await hashes()).length === 1, { what: "the publication in the node" });
    const [sent] = await hashes();
    await anvil.call("anvil_dropTransaction", [sent]);
    await waitFor(async () => (await hashes())[0] === sent, { what: "the same one in the node again" });
    await anvil.mine();
    expect(await publishing).toMatchObject({ transaction: sent, isFinal: true });
  });

  it("pays no more than maxFeeGwei, and sends nothing while the chain asks for more", async () => {
    const service = newService();
    const { key, address } = await newKey(anvil);
    const registry = await open(contract, [anvil.url], { service, key, maxFeeGwei: 0.001 });
    await anvil.call("anvil_setNextBlockBaseFeePerGas", ["0x3b9aca00"]);
    await anvil.mine();
    await expect(registry.publish(publication(service, 0), signal)).rejects.toMatchObject({
      code: "GW_REGISTRY_UNAVAILABLE",
      message: expect.stringContaining("maxFeeGwei") as unknown,
    });
    expect(await nonceOf(anvil, address)).toBe(0);
    const enough = await open(contract, [anvil.url], { service, key, maxFeeGwei: 1.5 });
    const { transaction } = await enough.publish(publication(service, 0), signal);
    const paid = await anvil.call<{ maxFeePerGas: string }>("eth_getTransactionByHash", [transaction]);
    expect(BigInt(paid.maxFeePerGas)).toBeLessThanOrEqual(1_500_000_000n);
  });

  it("names the account that has no money, and publishes when it has some", async () => {
    const service = newService();
    const { key, address } = await newKey(anvil, 0);
    const registry = await open(contract, [anvil.url], { service, key });
    await expect(registry.publish(publication(service, 0), signal)).rejects.toMatchObject({
      code: "GW_REGISTRY_UNAVAILABLE",
      message: expect.stringContaining(address) as unknown,
    });
    expect(await registry.status()).toMatchObject({
      balanceWei: "0",
      trouble: expect.stringContaining("0 publications") as unknown,
    });
    await anvil.fund(address, 1);
    await registry.publish(publication(service, 0), signal);
    const rich = await open(contract, [anvil.url], { service, key });
    const status = await rich.status();
    expect(status).toMatchObject({ trouble: null, isReachable: true, chainId: "31337" });
    expect(BigInt(status.balanceWei ?? "0")).toBeGreaterThan(9n * 10n ** 17n);
  });

  it("is final when two publishers attested the same, though a third attested another hash first", async () => {
    const service = newService();
    const keys = [await newKey(anvil), await newKey(anvil), await newKey(anvil)] as const;
    const [a, b, c] = keys;
    const owner = a.address;
    const first = await open(contract, [anvil.url], { service, key: a.key, owner });
    await first.register(
      keys.map(({ address }) => address),
      2,
      signal,
    );
    const second = await open(contract, [anvil.url], { service, key: b.key, owner });
    const third = await open(contract, [anvil.url], { service, key: c.key, owner });
    const forged = publication(service, 0, { manifestHash: sha256("forged") });
    expect(await third.publish(forged, signal)).toMatchObject({ isFinal: false, publishers: [c.address] });
    const mine = publication(service, 0);
    expect(await first.publish(mine, signal)).toMatchObject({ isFinal: false, publishers: [a.address], quorum: 2 });
    expect(await first.find(0)).toMatchObject({ ...mine, isFinal: false, publishers: [a.address] });
    const reader = await open(contract, [anvil.url], { service, key: null, owner });
    expect(await reader.find(0)).toMatchObject({ ...forged, isFinal: false, publishers: [c.address] });
    // Each is told what others attest, and not what it attests itself.
    expect([await first.othersFor(forged), await first.othersFor(mine)]).toEqual([[c.address], []]);
    expect([await second.othersFor(mine), await second.othersFor(publication(service, 1))]).toEqual([[a.address], []]);
    const careful = await open(contract, [anvil.url], { service, key: b.key, owner, publishers: [b.address] });
    expect(await careful.othersFor(mine)).toEqual([]);
    // The same again attests nothing twice.
    expect(await first.publish(mine, signal)).toMatchObject({ isFinal: false });
    expect(await nonceOf(anvil, a.address)).toBe(2);
    expect(await first.latest()).toBeNull();
    expect(await second.publish(mine, signal)).toMatchObject({
      ...mine,
      isFinal: true,
      publishers: [a.address, b.address],
    });
    for (const registry of [first, second, third, reader])
      expect(await registry.latest()).toMatchObject({
        ...mine,
        publishers: [a.address, b.address],
        quorum: 2,
        isFinal: true,
      });
    await expect(third.publish(forged, signal)).rejects.toMatchObject({
      code: "GW_REGISTRY_REFUSED",
      message: expect.stringContaining(mine.manifestHash) as unknown,
    });
    // What stands is found by who did not attest it, too.
    expect(await third.publish(mine, signal)).toMatchObject({ isFinal: true });
    expect(await nonceOf(anvil, c.address)).toBe(1);
  });

  it("begins with the version that two publishers attested, and walks over no event below it", async () => {
    const service = newService();
    const [a, b, c] = [await newKey(anvil), await newKey(anvil), await newKey(anvil)] as const;
    const owner = a.address;
    const proxy = await proxyTo(anvil);
    const first = await open(contract, [proxy.url], { service, key: a.key });
    const second = await open(contract, [anvil.url], { service, key: b.key, owner });
    const third = await open(contract, [anvil.url], { service, key: c.key, owner });
    await first.register([a.address, b.address, c.address], 2, signal);
    const [seven, nine] = [7, 9].map((version) => publication(service, version, { previousHash: zeros }));
    if (seven === undefined || nine === undefined) throw new Error("two publications");
    expect(await third.publish(nine, signal)).toMatchObject({ version: 9, isFinal: false, publishers: [c.address] });
    expect(await first.publish(seven, signal)).toMatchObject({ version: 7, isFinal: false, publishers: [a.address] });
    // Both may be the first; the same again attests nothing twice.
    expect(await first.publish(seven, signal)).toMatchObject({ version: 7, isFinal: false });
    expect(await nonceOf(anvil, a.address)).toBe(2);
    expect(await first.find(9)).toMatchObject({ ...nine, isFinal: false });
    expect(await first.find(7)).toMatchObject({ ...seven, isFinal: false });
    expect(await first.find(8)).toBeNull();
    expect([await first.latest(), await first.history(0, 10)]).toEqual([null, []]);

    expect(await second.publish(seven, signal)).toMatchObject({ ...seven, isFinal: true });
    await expect(third.publish(nine, signal)).rejects.toMatchObject(
      refused("version 9 cannot be published: the line begins with version 7, and its next one is 8"),
    );
    await expect(third.publish(publication(service, 3), signal)).rejects.toMatchObject(refused("version 3"));
    for (const registry of [first, second]) await registry.publish(publication(service, 8), signal);
    const before = proxy.methods.length;
    for (const version of [0, 3, 6, 10]) expect(await first.find(version)).toBeNull();
    expect(proxy.methods.slice(before)).not.toContain("eth_getLogs");
    expect(await first.history(0, 10)).toMatchObject([seven, publication(service, 8)]);
    expect(await first.latest()).toMatchObject({ version: 8, publishers: [a.address, b.address] });
    expect(await first.line()).toMatchObject({ firstVersion: 7, nextVersion: 9 });
    // What was attested as the first of another line does not stand in this one.
    expect(await first.find(9)).toBeNull();
    await expect(third.publish(nine, signal)).rejects.toMatchObject(refused("builds on another version"));
    expect(await third.publish(publication(service, 9), signal)).toMatchObject({ isFinal: false });
    expect(await first.find(9)).toMatchObject({ ...publication(service, 9), publishers: [c.address] });
    expect(await second.publish(publication(service, 9), signal)).toMatchObject({ isFinal: true });
  });

  it("brings back what a reorganisation took, though it was the first of its line", async () => {
    const service = newService();
    const { key, address } = await newKey(anvil);
    const registry = await open(contract, [anvil.url], { service, key, times: patient });
    const seven = publication(service, 7, { previousHash: zeros });
    const { transaction } = await registry.publish(seven, signal);
    await anvil.call("anvil_reorg", [1, []]);
    expect(await registry.find(7)).toBeNull();
    expect(await registry.publish(seven, signal)).toMatchObject({ ...seven, isFinal: true, transaction });
    expect(await finals(anvil, contract, idOf(address, service))).toHaveLength(1);
  });

  it("does not tell what publishers attested who are not on its own list", async () => {
    const service = newService();
    const [a, b] = [await newKey(anvil), await newKey(anvil)];
    const first = await open(contract, [anvil.url], { service, key: a.key });
    await first.register([a.address, b.address], 1, signal);
    await first.publish(publication(service, 0), signal);
    const second = await open(contract, [anvil.url], { service, key: b.key, owner: a.address });
    await second.publish(publication(service, 1), signal);
    const careful = await open(contract, [anvil.url], {
      service,
      key: null,
      owner: a.address,
      publishers: [a.address.toUpperCase().replace("0X", "0x")],
    });
    expect(await second.latest()).toMatchObject({ version: 1 });
    expect(await careful.latest()).toMatchObject({ version: 0, publishers: [a.address] });
    expect(await careful.history(0, 9)).toHaveLength(1);
    expect(await careful.find(1)).toMatchObject({ isFinal: false, publishers: [] });
  });

  it("says what the contract refuses in words: an account that is no publisher, a paused line, a service of another", async () => {
    const service = newService();
    const [a, b] = [await newKey(anvil), await newKey(anvil)];
    const first = await open(contract, [anvil.url], { service, key: a.key });
    const second = await open(contract, [anvil.url], { service, key: b.key, owner: a.address });
    await expect(second.publish(publication(service, 0), signal)).rejects.toMatchObject(refused("not registered"));
    await first.publish(publication(service, 0), signal);
    await expect(second.publish(publication(service, 1), signal)).rejects.toMatchObject(
      refused(`gateway registry publishers --add ${b.address}`),
    );
    const change = { add: [b.address], remove: [], quorum: 1 };
    await expect(second.changePublishers(change, signal)).rejects.toMatchObject(refused(`only its owner ${a.address}`));
    await first.changePublishers({ add: [b.address], remove: [a.address], quorum: 1 }, signal);
    await expect(first.publish(publication(service, 1), signal)).rejects.toMatchObject(
      refused("not one of its publishers"),
    );
    expect(await second.publish(publication(service, 1), signal)).toMatchObject({ isFinal: true });
    const pause = contractInterface.encodeFunctionData("setPaused", [idOf(a.address, service), true]);
    const raw = await a.wallet.signTransaction({
      chainId: 31337,
      nonce: await nonceOf(anvil, a.address),
      to: contract,
      data: pause,
      gasLimit: 100_000,
      gasPrice: 10n ** 12n,
      type: 0,
    });
    await anvil.call("eth_sendRawTransaction", [raw]);
    await expect(second.publish(publication(service, 2), signal)).rejects.toMatchObject(refused("paused"));
    expect((await second.line()).isPaused).toBe(true);
  });

  it("says that there is no contract where there is none", async () => {
    const nowhere = `0x${"ab".repeat(20)}`;
    const service = newService();
    const registry = await open(nowhere, [anvil.url], { service });
    const missing = {
      code: "GW_REGISTRY_UNAVAILABLE",
      message: expect.stringContaining("no SnapshotRegistry") as unknown,
    };
    await expect(registry.latest()).rejects.toMatchObject(missing);
    await expect(registry.publish(publication(service, 0), signal)).rejects.toMatchObject(missing);
  });

  it("takes an encrypted keystore, and neither key, password nor the path of an address is in any message or note", async () => {
    const service = newService();
    const wallet = new Wallet(Wallet.createRandom().privateKey);
    await anvil.fund(wallet.address, 1);
    const keystore = new Secret(await encryptKeystoreJson(wallet, "correct horse", { scrypt: { N: 2 } }));
    const folder = temporaryFolder("notes");
    const proxy = await proxyTo(anvil);
    const secretUrl = `${proxy.url.replace("//", "//user:passw0rd@")}/v3/0123456789abcdef?token=tokentoken`;
    const keyPassword = new Secret("correct horse");
    const registry = await open(contract, [secretUrl], { service, key: keystore, keyPassword, folder });
    await registry.publish(publication(service, 0), signal);
    const told: string[] = [JSON.stringify(await registry.status()), JSON.stringify(await registry.line())];
    const failures = [
      () => open(contract, [anvil.url], { service, key: keystore, keyPassword: new Secret("wrong battery") }),
      () => open(contract, [anvil.url], { service, key: keystore }),
      () => open(contract, [anvil.url], { service, key: new Secret(`${wallet.privateKey}00`) }),
      () => open(contract, [anvil.url], { service, key: new Secret("{}"), keyPassword }),
      () => registry.publish(publication(service, 9), signal),
      () => registry.latest(),
      () => registry.latest(),
    ];
    for (const failing of failures) {
      if (failing === failures.at(-2))
        proxy.tamper = () => Promise.reject(new Error(`no quota for 0123456789abcdef at ${secretUrl}`));
      if (failing === failures.at(-1)) await proxy.close();
      const error = await failing().then(
        () => null,
        (reason: Error) => reason,
      );
      expect(error).not.toBeNull();
      told.push(error?.message ?? "", error?.stack ?? "", String(error?.cause));
    }
    told.push(JSON.stringify(await registry.status()));
    for (const name of readdirSync(folder)) told.push(readFileSync(join(folder, name), "utf8"));
    const canaries = [
      wallet.privateKey.slice(2),
      "correct horse",
      "wrong battery",
      "0123456789abcdef",
      "tokentoken",
      "passw0rd",
    ];
    for (const canary of canaries) for (const text of told) expect(text).not.toContain(canary);
  });

  /** A process of its own that publishes version 1; ends only by a kill. */
  const publisherProcess = async (
    rpc: string,
    service: string,
    key: Secret,
    folder: string,
  ): Promise<() => Promise<void>> => {
    const script = fileURLToPath(new URL("publish-once.ts", import.meta.url));
    const child = spawn(process.execPath, ["--import", "tsx", script, rpc, contract, service, folder], {
      stdio: ["ignore", "inherit", "inherit"],
      env: { ...process.env, TEST_KEY: key.reveal() },
    });
    const gone = endWithUs(child.pid ?? 0);
    return async () => {
      child.kill("SIGKILL");
      if (child.signalCode === null) await once(child, "exit");
      gone();
    };
  };

  it("publishes once when it is killed between the send and the receipt, with its notes and without them", async () => {
    for (const isRemembering of [true, false]) {
      const service = newService();
      const { key, address } = await newKey(anvil);
      const folder = temporaryFolder("notes");
      const first = await open(contract, [anvil.url], { service, key, folder });
      await first.publish(publication(service, 0), signal);
      await first.close();
      await anvil.call("evm_setAutomine", [false]);
      const kill = await publisherProcess(anvil.url, service, key, folder);
      await waitFor(async () => (await waiting(anvil, address)).length === 1, {
        what: "the publication in the node",
        timeoutMs: 30_000,
      });
      const [sent] = await waiting(anvil, address);
      await kill();
      const given = { service, key, times: patient, ...(isRemembering ? { folder } : {}) };
      const proxy = await proxyTo(anvil);
      // Not every node estimates behind what is under way.
      proxy.tamper = ({ method, params }, forward) =>
        forward({ method, params: method === "eth_estimateGas" ? [params[0], "latest"] : params });
      const registry = await open(contract, [proxy.url], given);
      const publishing = registry.publish(publication(service, 1), signal);
      // It has seen that something is under way, and waits for it.
      const looks = (): number => proxy.methods.filter((method) => method === "eth_getTransactionCount").length;
      await waitFor(() => looks() > 5, { what: "several looks" });
      await anvil.mine();
      await anvil.call("evm_setAutomine", [true]);
      expect((await publishing).transaction).toBe(sent?.hash);
      expect(await nonceOf(anvil, address)).toBe(3);
      expect(await finals(anvil, contract, idOf(address, service))).toHaveLength(2);
    }
  });

  it("sends the same bytes after a kill -9 between the note and the send", async () => {
    const service = newService();
    const { key, address } = await newKey(anvil);
    const folder = temporaryFolder("notes");
    const first = await open(contract, [anvil.url], { service, key, folder, times: patient });
    await first.publish(publication(service, 0), signal);
    await first.close();
    const proxy = await proxyTo(anvil);
    const never = new Promise<never>(() => undefined);
    proxy.tamper = (call, forward) => (call.method === "eth_sendRawTransaction" ? never : forward(call));
    const kill = await publisherProcess(proxy.url, service, key, folder);
    await waitFor(() => proxy.methods.includes("eth_sendRawTransaction"), { what: "the send", timeoutMs: 30_000 });
    await kill();
    const [name = ""] = readdirSync(folder).filter((file) => file.endsWith(".json"));
    const notes = JSON.parse(readFileSync(join(folder, name), "utf8")) as { sent: { raws: string[] } };
    const noted = Transaction.from(notes.sent.raws[0] ?? "");
    const registry = await open(contract, [anvil.url], { service, key, folder, times: patient });
    expect(await registry.publish(publication(service, 1), signal)).toMatchObject({ transaction: noted.hash });
    expect(await nonceOf(anvil, address)).toBe(3);
  });
});

describe("the registry on other chains", () => {
  it("goes on where a chain goes on from its state", async () => {
    const folder = createFolder("chain");
    const anvil = await startAnvil({ state: join(folder, "state.json") });
    onTestFinished(() => anvil.close());
    const contract = await deployOn(anvil);
    const service = newService();
    const notes = temporaryFolder("notes");
    const registry = await open(contract, [anvil.url], { service, folder: notes });
    for (const version of [0, 1]) await registry.publish(publication(service, version), signal);
    expect(await registry.latest()).toMatchObject({ version: 1 });
    await anvil.restart();
    expect(await registry.latest()).toMatchObject({ ...publication(service, 1), isFinal: true });
    expect(await registry.publish(publication(service, 2), signal)).toMatchObject({ version: 2, isFinal: true });
    expect(await registry.history(0, 9)).toHaveLength(3);
  });

  it("tells only what is finalized where the chain says so, and takes no well-known key there", async () => {
    const anvil = await startAnvil({ chainId: 8217, args: ["--slots-in-an-epoch", "2"] });
    onTestFinished(() => anvil.close());
    const { key, wallet } = await newKey(anvil);
    const developmentKey = { rpc: new Secret(anvil.url), key: new Secret(developmentKeys[1]), keyPassword: null };
    await expect(deployRegistry(developmentKey, signal)).rejects.toMatchObject(refused("development key"));
    const contract = await deployOn(anvil, wallet.privateKey);
    const service = newService();
    await expect(open(contract, [anvil.url], { service })).rejects.toMatchObject(refused("development key"));
    const registry = await open(contract, [anvil.url], { service, key });
    expect(await registry.publish(publication(service, 0), signal)).toMatchObject({ isFinal: false, version: 0 });
    const { block } = (await registry.find(0)) ?? {};
    const finalized = async (): Promise<number> =>
      Number((await anvil.call<{ number: string }>("eth_getBlockByNumber", ["finalized", false])).number);
    expect(await finalized()).toBeLessThan(block ?? 0);
    await anvil.mine(20);
    expect(await finalized()).toBeGreaterThanOrEqual(block ?? 0);
    expect(await registry.find(0)).toMatchObject({ isFinal: true });
    expect(await registry.latest()).toMatchObject({ version: 0 });
  });

  it("sends transactions of the old kind where blocks have no base fee", async () => {
    const anvil = await startAnvil({ args: ["--hardfork", "berlin"] });
    onTestFinished(() => anvil.close());
    const contract = await deployOn(anvil);
    const service = newService();
    const registry = await open(contract, [anvil.url], { service });
    const { transaction } = await registry.publish(publication(service, 0), signal);
    const sent = await anvil.call<{ type: string }>("eth_getTransactionByHash", [transaction]);
    expect(Number(sent.type)).toBe(0);
    expect(await registry.latest()).toMatchObject({ version: 0 });
  });
});
