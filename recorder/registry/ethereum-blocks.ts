// How long a chain is, and how much of it will not be undone.

import { isDevelopmentChain } from "./ethereum-account.ts";
import { RpcError, RpcFailure, toHex, toNumber } from "./ethereum-rpc.ts";
import type { View } from "./ethereum-line.ts";
import type { Endpoint, Rpc } from "./ethereum-rpc.ts";

export interface Block {
  readonly number: number;
  readonly hash: string;
}

export interface BlocksOptions {
  readonly rpc: Rpc;
  readonly chainId: bigint;
  /** Blocks that a thing stands in, its own included, until it counts; at least 1. */
  readonly confirmations: number;
}

/** A reorganisation put another block in the place of the one that was being read. */
export class Exchanged extends RpcFailure {}

const triesMax = 5;

export class Blocks {
  readonly #options: BlocksOptions;
  /** Endpoints that told of a finalized block once: an error in its place is an error from then on. */
  readonly #finalizing = new WeakSet<Endpoint>();

  constructor(options: BlocksOptions) {
    this.#options = options;
  }

  async head(endpoint: Endpoint): Promise<Block> {
    const number = toNumber(await this.#options.rpc.callAt(endpoint, "eth_blockNumber", []));
    const block = await this.at(endpoint, number);
    if (block === null) throw new RpcFailure(`${endpoint.name} does not have its newest block`);
    return block;
  }

  /** Reads the same block throughout, or rejects with Exchanged: what was read of two blocks means nothing, errors included. */
  async read<T>(endpoint: Endpoint, { number, hash }: Block, work: (view: View) => Promise<T>): Promise<T> {
    const [outcome] = await Promise.allSettled([work({ endpoint, block: number })]);
    if ((await this.at(endpoint, number))?.hash !== hash)
      throw new Exchanged(`${endpoint.name} exchanged the block ${number} while it was read`);
    if (outcome.status === "rejected") throw outcome.reason;
    return outcome.value;
  }

  async readHead<T>(endpoint: Endpoint, work: (view: View) => Promise<T>): Promise<T> {
    // Ends after triesMax.
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.read(endpoint, await this.head(endpoint), work);
      } catch (error) {
        if (!(error instanceof Exchanged) || attempt === triesMax) throw error;
      }
    }
  }

  /** The newest block whose contents stand as deep as the confirmations ask. */
  deepest(head: number): number {
    return Math.max(0, head + 1 - Math.max(1, this.#options.confirmations));
  }

  async at(endpoint: Endpoint, block: number): Promise<Block | null> {
    return this.#block(endpoint, toHex(block));
  }

  /** "finalized", else as deep as the confirmations ask. Development chains name a finalized block that means nothing: they make blocks on demand. */
  async final(endpoint: Endpoint): Promise<Block> {
    if (!isDevelopmentChain(this.#options.chainId)) {
      const finalized = await this.#finalized(endpoint);
      if (finalized !== null) return finalized;
    }
    const deep = await this.#block(endpoint, toHex(this.deepest((await this.head(endpoint)).number)));
    if (deep === null) throw new RpcFailure(`${endpoint.name} does not have a block below its newest`);
    return deep;
  }

  async #finalized(endpoint: Endpoint): Promise<Block | null> {
    try {
      const block = await this.#block(endpoint, "finalized");
      if (block !== null) this.#finalizing.add(endpoint);
      else if (this.#finalizing.has(endpoint))
        throw new RpcFailure(`${endpoint.name} no longer tells a finalized block`);
      return block;
    } catch (error) {
      // Chains without finality answer with all sorts of errors to the word; a limit that was reached is none of them.
      const isUnknownWord =
        error instanceof RpcError &&
        /finali[sz]ed|tag|block ?num|unknown block|not found|invalid|unsupported|hex/i.test(error.message);
      if (!isUnknownWord || this.#finalizing.has(endpoint)) throw error;
      return null;
    }
  }

  async #block(endpoint: Endpoint, which: string): Promise<Block | null> {
    const value = (await this.#options.rpc.callAt(endpoint, "eth_getBlockByNumber", [which, false])) as Readonly<
      Record<string, unknown>
    > | null;
    if (value === null) return null;
    const hash = value["hash"];
    if (typeof hash !== "string") throw new RpcFailure(`${endpoint.name} answers with a block without a hash`);
    return { number: toNumber(value["number"]), hash };
  }
}
