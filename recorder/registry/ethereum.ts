// The registry as the contract SnapshotRegistry on an EVM chain: wires account, endpoints, reads and publisher of one service.

import { GatewayError } from "../../gateway/errors.ts";
import { openAccount, refuseDevelopmentKey } from "./ethereum-account.ts";
import { Blocks } from "./ethereum-blocks.ts";
import { Decider } from "./ethereum-decided.ts";
import { contractInterface, LineReader } from "./ethereum-line.ts";
import { chainOfNotes, keepInFile, keepInMemory } from "./ethereum-notes.ts";
import { Publisher } from "./ethereum-publisher.ts";
import { Reads } from "./ethereum-reads.ts";
import { refusalOf } from "./ethereum-refusal.ts";
import { Rpc, RpcFailure, toBigInt, translated } from "./ethereum-rpc.ts";
import { coins, Sender } from "./ethereum-sender.ts";
import type { Secret } from "../../gateway/config/secret.ts";
import type { Line, View } from "./ethereum-line.ts";
import type { Place } from "./ethereum-refusal.ts";
import type { SenderTimes } from "./ethereum-sender.ts";
import type { Publication, Published, Registry, RegistryStatus } from "./registry.ts";

export interface EthereumOptions {
  /** One or two; they may hold keys. */
  readonly rpc: readonly Secret[];
  /** 0x… */
  readonly contract: string;
  readonly service: string;
  /** Whose service it is, as it was registered; null: the account of `key`. */
  readonly owner: string | null;
  /** Private key or encrypted keystore; null: read only. */
  readonly key: Secret | null;
  readonly keyPassword: Secret | null;
  /** Blocks that a publication stands in, its own included, until it counts. */
  readonly confirmations: number;
  /** Whose attestations count, whatever the contract says; empty: whose the contract takes. */
  readonly publishers: readonly string[];
  /** 0: no limit. */
  readonly maxFeeGwei: number;
  /** For notes that no other process may write; null: nothing is kept. */
  readonly folder: string | null;
  readonly times?: Partial<EthereumTimes>;
}

export interface EthereumTimes extends SenderTimes {
  /** Of one call. */
  readonly timeoutMs: number;
}

/** A service's line, for people. */
export interface ServiceLine extends Omit<Line, "position" | "block"> {
  readonly id: string;
  readonly publishers: readonly string[];
  /** Of the key; null: read only. */
  readonly account: string | null;
}

const usualTimes: EthereumTimes = { timeoutMs: 10_000, pollMs: 2_000, stuckMs: 90_000, waitMs: 900_000 };
const statusTimeoutMs = 3_000;
const statusKeptMs = 10_000;
const gasOfPublication = 60_000n;
const lowBalancePublications = 10n;
const waitingMax = 64;

/**
 * Rejects with GW_REGISTRY_UNAVAILABLE while neither the chain nor former notes tell the chain's id; with GW_REGISTRY_REFUSED or GW_CONFIG_INVALID
 * for a key that cannot be used.
 */
export async function openEthereumRegistry(options: EthereumOptions): Promise<EthereumRegistry> {
  const times = { ...usualTimes, ...options.times };
  const contract = options.contract.toLowerCase();
  const wallet = options.key === null ? null : await openAccount(options.key, options.keyPassword);
  const owner = (options.owner ?? wallet?.address)?.toLowerCase();
  if (owner === undefined)
    throw new GatewayError(
      "GW_CONFIG_INVALID",
      "registry.ethereum: without a key it needs `owner`, the account that registered the service",
    );
  const rpc = new Rpc({ urls: options.rpc, timeoutMs: times.timeoutMs });
  try {
    const { folder, confirmations, maxFeeGwei, publishers, service } = options;
    const chainId = await chainIdOf(rpc, folder, contract);
    rpc.pin(chainId);
    if (wallet !== null) refuseDevelopmentKey(wallet, chainId);
    const id = String(chainId);
    const notes = folder === null ? keepInMemory(id, contract) : keepInFile(folder, id, contract);
    const sender = wallet === null ? null : new Sender({ ...times, rpc, wallet, notes, chainId, maxFeeGwei });
    const blocks = new Blocks({ rpc, chainId, confirmations });
    const decider = new Decider(rpc, blocks);
    const reader = new LineReader(rpc, contract, owner, service);
    const place = { service, contract };
    const reads = new Reads({ rpc, blocks, decider, reader, notes, publishers });
    const publisher = new Publisher({ ...times, rpc, blocks, reader, sender, place, owner, confirmations });
    return new EthereumRegistry({ chainId: id, place, rpc, blocks, decider, reader, reads, publisher, sender });
  } catch (error) {
    await rpc.close();
    throw translated(error);
  }
}

/** With the chain away, what it was before: a gateway starts without it. */
async function chainIdOf(rpc: Rpc, folder: string | null, contract: string): Promise<bigint> {
  try {
    return await rpc.chainId();
  } catch (error) {
    const former = error instanceof RpcFailure && folder !== null ? chainOfNotes(folder, contract) : null;
    if (former === null) throw error;
    return BigInt(former);
  }
}

interface Parts {
  readonly chainId: string;
  readonly place: Place;
  readonly rpc: Rpc;
  readonly blocks: Blocks;
  readonly decider: Decider;
  readonly reader: LineReader;
  readonly reads: Reads;
  readonly publisher: Publisher;
  readonly sender: Sender | null;
}

export class EthereumRegistry implements Registry {
  readonly kind = "ethereum";
  readonly chainId: string;
  readonly contract: string;
  readonly #parts: Parts;
  readonly #closing = new AbortController();
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #status: { readonly atMs: number; readonly answer: Promise<RegistryStatus> } | null = null;

  constructor(parts: Parts) {
    this.#parts = parts;
    this.chainId = parts.chainId;
    this.contract = parts.place.contract;
  }

  publish(publication: Publication, signal: AbortSignal): Promise<Published> {
    const { publisher, reads, place } = this.#parts;
    return this.#alone(signal, async (until) => {
      await publisher.publish(publication, until);
      const published = await reads.find(publication.version);
      if (published !== null) return published;
      throw new GatewayError(
        "GW_REGISTRY_UNAVAILABLE",
        `${place.service} at ${place.contract}: version ${publication.version} stood a moment ago and does not now: it is looked for again at the next try`,
      );
    });
  }

  find(version: number): Promise<Published | null> {
    return this.#guarded(() => this.#parts.reads.find(version));
  }

  othersFor(publication: Publication): Promise<readonly string[]> {
    const { reads, sender } = this.#parts;
    return this.#guarded(() => reads.othersFor(publication, sender?.address ?? null));
  }

  latest(): Promise<Published | null> {
    return this.#guarded(() => this.#parts.reads.latest());
  }

  history(fromVersion: number, limit: number): Promise<readonly Published[]> {
    return this.#guarded(() => this.#parts.reads.history(fromVersion, limit));
  }

  /** Whose the line is, who may write to it and how far it is, at the chain's head. */
  line(): Promise<ServiceLine> {
    const { rpc, blocks, reader, sender } = this.#parts;
    const read = async (view: View): Promise<ServiceLine> => {
      const { position: _position, block: _block, ...line } = await reader.line(view);
      return { ...line, id: reader.id, account: sender?.address ?? null, publishers: await reader.publishers(view) };
    };
    return this.#guarded(() => rpc.withOne((endpoint) => blocks.readHead(endpoint, read)));
  }

  /** Registers the service as this account's. */
  register(publishers: readonly string[], quorum: number, signal: AbortSignal): Promise<void> {
    const { place } = this.#parts;
    const data = contractInterface.encodeFunctionData("register", [place.service, publishers, quorum]);
    return this.#order(data, `registers ${place.service}`, signal);
  }

  changePublishers(
    change: { readonly add: readonly string[]; readonly remove: readonly string[]; readonly quorum: number },
    signal: AbortSignal,
  ): Promise<void> {
    const { place, reader } = this.#parts;
    const args = [reader.id, change.add, change.remove, change.quorum];
    const data = contractInterface.encodeFunctionData("changePublishers", args);
    return this.#order(data, `changes the publishers of ${place.service}`, signal);
  }

  status(): Promise<RegistryStatus> {
    const nowMs = performance.now();
    if (this.#status === null || nowMs - this.#status.atMs > statusKeptMs)
      this.#status = { atMs: nowMs, answer: this.#askStatus() };
    return this.#status.answer;
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await this.#parts.rpc.close();
    await this.#last;
  }

  async #askStatus(): Promise<RegistryStatus> {
    const { rpc, sender, decider } = this.#parts;
    let balance: bigint | null = null;
    let trouble = decider.trouble;
    let isReachable = false;
    try {
      await within(rpc.call("eth_blockNumber"), statusTimeoutMs);
      isReachable = true;
      if (sender !== null) {
        balance = toBigInt(await within(rpc.call("eth_getBalance", [sender.address, "latest"]), statusTimeoutMs));
        const price = await within(sender.priceOf(gasOfPublication), statusTimeoutMs);
        if (balance < price * lowBalancePublications)
          trouble = `the account ${sender.address} holds ${coins(balance)}, enough for ${balance / price} publications: send it some`;
      }
    } catch (error) {
      trouble = error instanceof Error ? error.message : String(error);
    }
    return {
      kind: "ethereum",
      where: `${this.contract} on chain ${this.chainId}`,
      chainId: this.chainId,
      isReachable,
      trouble,
      balanceWei: balance === null ? null : String(balance),
      errors: rpc.errors,
    };
  }

  #order(data: string, what: string, signal: AbortSignal): Promise<void> {
    return this.#alone(signal, (until) => this.#parts.publisher.order(data, what, until));
  }

  /** One after the other: an account has one line of nonces. */
  async #alone<T>(signal: AbortSignal, work: (until: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#waiting === waitingMax)
      throw new GatewayError("GW_REGISTRY_UNAVAILABLE", `${waitingMax} publications wait for their turn already`);
    this.#waiting += 1;
    const until = AbortSignal.any([signal, this.#closing.signal]);
    const turn = this.#last.then(() => this.#guarded(() => work(until)));
    this.#last = turn.then(
      () => void (this.#waiting -= 1),
      () => void (this.#waiting -= 1),
    );
    return turn;
  }

  async #guarded<T>(work: () => Promise<T>): Promise<T> {
    if (this.#closing.signal.aborted) throw new GatewayError("GW_REGISTRY_UNAVAILABLE", "the registry is closed");
    try {
      return await work();
    } catch (error) {
      throw refusalOf(error, this.#parts.place)?.error ?? translated(error);
    }
  }
}

async function within<T>(work: Promise<T>, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const over = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new RpcFailure(`the chain did not answer within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([work, over]);
  } finally {
    clearTimeout(timer);
  }
}
