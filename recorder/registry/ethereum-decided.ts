// Reads that decide: what both endpoints show of blocks that will not be undone, or nothing where they contradict each other.

import { GatewayError } from "../../gateway/errors.ts";
import { Exchanged } from "./ethereum-blocks.ts";
import { isPassing } from "./ethereum-rpc.ts";
import type { Block, Blocks } from "./ethereum-blocks.ts";
import type { View } from "./ethereum-line.ts";
import type { Endpoint, Rpc } from "./ethereum-rpc.ts";

interface End extends Block {
  readonly endpoint: Endpoint;
}

const triesMax = 3;

export class Decider {
  readonly #rpc: Rpc;
  readonly #blocks: Blocks;
  /** Why not both endpoints decided the last time; null: they did. */
  trouble: string | null = null;

  constructor(rpc: Rpc, blocks: Blocks) {
    this.#rpc = rpc;
    this.#blocks = blocks;
  }

  /**
   * What every endpoint shows in the newest final block that they share, and then what the one with the newest block shows there: who lags hides
   * nothing, and who lies of a block that both have is found out. One that cannot be asked leaves the decision to the other.
   */
  async decide<T>(read: (view: View) => Promise<T>): Promise<T> {
    // Ends after triesMax.
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await this.#decide(read);
      } catch (error) {
        if (!(error instanceof Exchanged) || attempt === triesMax) throw error;
      }
    }
  }

  async #decide<T>(read: (view: View) => Promise<T>): Promise<T> {
    this.#rpc.distrust();
    const finals = await this.#rpc.ofAll(async (endpoint) => ({ endpoint, ...(await this.#blocks.final(endpoint)) }));
    const reasons = finals.flatMap((one) => (one.status === "rejected" ? [one.reason as unknown] : []));
    const ends: End[] = finals.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
    const [ahead, behind] = ends.toSorted((a, b) => b.number - a.number);
    if (ahead === undefined) throw reasons[0];
    const readAt = (end: End, block: Block): Promise<T> => this.#blocks.read(end.endpoint, block, read);
    const alone = (end: End, reason: unknown): Promise<T> => {
      this.trouble = `decided by ${end.endpoint.name} alone: ${(reason as Error).message}`;
      return readAt(end, end);
    };
    if (behind === undefined && reasons.length > 0) return alone(ahead, reasons[0]);
    if (behind !== undefined) {
      const answers = await Promise.allSettled([
        this.#checkShared(ahead, behind).then(() => readAt(ahead, behind)),
        readAt(behind, behind),
      ]);
      const [first, second] = answers;
      for (const one of answers)
        if (one.status === "rejected" && (!isPassing(one.reason) || one.reason instanceof Exchanged)) throw one.reason;
      if (first.status === "rejected") return alone(behind, first.reason);
      if (second.status === "rejected") return alone(ahead, second.reason);
      if (JSON.stringify(first.value) !== JSON.stringify(second.value))
        throw this.#contradiction(
          `in block ${behind.number} ${ahead.endpoint.name} shows ${summaryOf(first.value)}, ${behind.endpoint.name} shows ${summaryOf(second.value)}`,
        );
    }
    this.trouble = null;
    return readAt(ahead, ahead);
  }

  async #checkShared(ahead: End, behind: End): Promise<void> {
    const shared = await this.#blocks.at(ahead.endpoint, behind.number);
    if (shared?.hash !== behind.hash)
      throw this.#contradiction(
        `block ${behind.number} is ${shared?.hash ?? "unknown"} at ${ahead.endpoint.name} and ${behind.hash} at ${behind.endpoint.name}`,
      );
  }

  #contradiction(what: string): GatewayError {
    this.trouble = `the two endpoints contradict each other: ${what}`;
    return new GatewayError(
      "GW_REGISTRY_UNAVAILABLE",
      `${this.trouble}; one of them does not tell the truth, and nothing is decided until it is taken out of registry.ethereum.rpc`,
    );
  }
}

/** What differs is nearly always in the newest one. */
function summaryOf(answer: unknown): string {
  const text = JSON.stringify((Array.isArray(answer) ? answer.at(-1) : answer) ?? null);
  return text.length > 400 ? `${text.slice(0, 400)}…` : text;
}
