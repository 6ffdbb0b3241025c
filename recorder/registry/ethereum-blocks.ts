// How long a chain is, and how much of it will not be undone.

import { isDevelopmentChain } from "./ethereum-account.ts";
import { RpcError, RpcFailure, toHex, toNumber } from "./ethereum-rpc.ts";
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

export class Blocks {
  readonly #options: BlocksOptions;
  /** Endpoints that told of a finalized block once: an error in its place is an error from then on. */
  readonly #finalizing = new WeakSet<Endpoint>();

  constructor(options: BlocksOptions) {
    this.#options = options;
  }

  async head(endpoint: Endpoint): Promise<number> {
    return toNumber(await this.#options.rpc.callAt(endpoint, "eth_blockNumber", []));
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
    const deep = await this.#block(endpoint, toHex(this.deepest(await this.head(endpoint))));
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
