// Sends transactions of one account, one after the other. A transaction is written down before it is sent, the same bytes are sent until it is in a
// block, and a stuck one is replaced under its own nonce: no gaps, and nothing is sent twice after a crash.

import { setTimeout as sleep } from "node:timers/promises";
import { keccak256, Transaction } from "ethers";
import { GatewayError } from "../../gateway/errors.ts";
import { step } from "../../gateway/steps.ts";
import { isPassing, joined, RpcError, toBigInt, toNumber } from "./ethereum-rpc.ts";
import type { Wallet } from "ethers";
import type { NotesKeeper, SentTransaction } from "./ethereum-notes.ts";
import type { Rpc } from "./ethereum-rpc.ts";
import type { Publication } from "./registry.ts";

export interface SenderTimes {
  /** The longest between two looks for a receipt; the first ones are closer. */
  readonly pollMs: number;
  /** Without a receipt for so long, the fee is raised. */
  readonly stuckMs: number;
  /** Without one for so long, the caller is told; the transaction stays written down. */
  readonly waitMs: number;
}

export interface SenderOptions extends SenderTimes {
  readonly rpc: Rpc;
  readonly wallet: Wallet;
  readonly notes: NotesKeeper;
  readonly chainId: bigint;
  /** Per gas; 0: no limit. */
  readonly maxFeeGwei: number;
}

export interface Call {
  /** Null: a new contract. */
  readonly to: string | null;
  readonly data: string;
  readonly what: string;
  readonly publication: Publication | null;
}

/** What became of the transaction before. */
export type Former =
  | { readonly kind: "none" }
  | { readonly kind: "mined"; readonly block: number }
  /** It was under way, and is no longer: what stands may have changed. */
  | { readonly kind: "ended" };

export interface Receipt {
  readonly transaction: string;
  readonly block: number;
  readonly isReverted: boolean;
  readonly gasUsed: bigint;
  /** Of a new contract, lower case. */
  readonly contract: string | null;
}

interface Fees {
  readonly type: 0 | 2;
  /** Gas price of type 0. */
  readonly maxWei: bigint;
  readonly tipWei: bigint;
}

/** Of one nonce; each raises the fee by an eighth at least, so that the last pays six times the first. */
const replacementsMax = 16;
/** Development chains are quicker than the usual pause by so much. */
const firstLooks = 20;
/** Looks in a row that failed, until the caller is told. */
const failuresMax = 5;
/** Pauses through which the nonce is used and none of our receipts is known: an endpoint may know one before the other. */
const missedPauses = 2;

export class Sender {
  readonly address: string;
  readonly #options: SenderOptions;

  constructor(options: SenderOptions) {
    this.#options = options;
    this.address = options.wallet.address.toLowerCase();
  }

  /** Sees to the end of what was sent last, by an earlier call or an earlier life of the process. */
  async settle(signal: AbortSignal): Promise<Former> {
    const { sent } = this.#options.notes.read();
    if (sent === null || sent.account !== this.address) return { kind: "none" };
    const receipt = await this.#receiptOf(sent);
    if (receipt !== null) return { kind: "mined", block: receipt.block };
    if ((await this.#count("latest")) > sent.nonce) return { kind: "none" };
    await this.#ended(sent, signal);
    return { kind: "ended" };
  }

  /** Nothing may be under way. Null: another transaction of the account took the nonce, and this one can no longer be executed. */
  async send(call: Call, signal: AbortSignal): Promise<Receipt | null> {
    const { rpc, notes } = this.#options;
    const nonce = await this.#nextNonce(signal);
    const gas = toBigInt(
      await rpc.call("eth_estimateGas", [{ from: this.address, to: call.to ?? undefined, data: call.data }]),
    );
    const fees = await this.#fees();
    // Attestations of others may come between the estimate and the block: then it takes the way that costs more.
    const gasLimit = (gas * 3n) / 2n;
    await this.#checkBalance(gasLimit * fees.maxWei);
    const raw = this.#sign({ to: call.to, data: call.data, nonce, gasLimit }, fees);
    const sent = { account: this.address, nonce, raws: [raw], what: call.what, publication: call.publication };
    notes.write({ ...notes.read(), sent });
    return this.#ended(sent, signal);
  }

  /** What a publication of so much gas may cost now. */
  async priceOf(gas: bigint): Promise<bigint> {
    return gas * (await this.#suggestedFees()).maxWei;
  }

  async #ended(sent: SentTransaction, signal: AbortSignal): Promise<Receipt | null> {
    const { notes } = this.#options;
    const receipt = await this.#untilMined(sent, signal);
    if (receipt === null) notes.write({ ...notes.read(), sent: null });
    return receipt;
  }

  async #untilMined(first: SentTransaction, signal: AbortSignal): Promise<Receipt | null> {
    const { pollMs, stuckMs, waitMs } = this.#options;
    const begunMs = performance.now();
    let sent = first;
    let sentMs = begunMs;
    let failures = 0;
    let usedMs: number | null = null;
    let pauseMs = pollMs / firstLooks;
    // Ends with a receipt, a nonce that went elsewhere, too many failures, the time limit or the signal.
    for (;;) {
      try {
        const receipt = await this.#receiptOf(sent);
        if (receipt !== null) return receipt;
        const isUsed = (await this.#count("latest")) > sent.nonce;
        usedMs = isUsed ? (usedMs ?? performance.now()) : null;
        if (usedMs !== null && performance.now() - usedMs > missedPauses * pollMs) return null;
        const isLow = isUsed ? "no" : await this.#offer(sent);
        if (isLow === "taken" && sent.raws.length === 1) return null;
        if (!isUsed && (isLow !== "no" || performance.now() - sentMs >= stuckMs)) {
          if ((await this.#count("pending")) < sent.nonce) return null;
          sent = await this.#replaced(sent);
          sentMs = performance.now();
        }
        failures = 0;
      } catch (error) {
        if (!isPassing(error) || (failures += 1) === failuresMax) throw error;
      }
      if (performance.now() - begunMs > waitMs) throw this.#stillWaiting(sent, waitMs);
      await pause(pauseMs, signal, () => this.#underWay(sent));
      pauseMs = Math.min(pollMs, pauseMs * 1.5);
    }
  }

  /** Makes the node know it. "taken": it holds another one with this nonce; "low": the fee is below what it accepts. */
  async #offer(sent: SentTransaction): Promise<"no" | "low" | "taken"> {
    const { rpc } = this.#options;
    const raw = newestOf(sent);
    if ((await rpc.call("eth_getTransactionByHash", [keccak256(raw)])) !== null) return "no";
    step("chain.send");
    const results = await rpc.ofAll((endpoint) => rpc.callAt(endpoint, "eth_sendRawTransaction", [raw]));
    const errors = results.flatMap((result) => (result.status === "rejected" ? [result.reason as unknown] : []));
    if (errors.length < results.length) return "no";
    const messages = errors.map((error) => (error instanceof RpcError ? error.message : ""));
    const says = (pattern: RegExp): boolean => messages.some((message) => pattern.test(message));
    // Known already; or its nonce was used meanwhile, which the next look finds out.
    if (says(/already (known|imported|exists)|known transaction|nonce (is )?too low|old nonce/i)) return "no";
    if (says(/replacement/i)) return "taken";
    if (says(/underpriced|fee.*(less than|too low|below)|gas ?price.*(too low|below)/i)) return "low";
    const refusal = errors.find((error) => error instanceof RpcError);
    throw refusal === undefined
      ? joined(errors)
      : new GatewayError(
          "GW_REGISTRY_UNAVAILABLE",
          `the chain does not take the transaction that ${sent.what}: ${refusal.message}; it is sent again, byte for byte, at the next try`,
        );
  }

  /** With a higher fee under the same nonce; as it was, where maxFeeGwei or the number of replacements allows none. */
  async #replaced(sent: SentTransaction): Promise<SentTransaction> {
    const { notes } = this.#options;
    if (sent.raws.length > replacementsMax) return sent;
    const old = Transaction.from(newestOf(sent));
    const suggested = await this.#suggestedFees();
    const least = raised(old.type === 2 ? old.maxFeePerGas : old.gasPrice);
    const cap = this.#capWei();
    if (cap !== null && least > cap) return sent;
    const wanted = suggested.maxWei > least ? suggested.maxWei : least;
    const maxWei = cap !== null && wanted > cap ? cap : wanted;
    const leastTip = raised(old.maxPriorityFeePerGas);
    const tipWei = suggested.tipWei > leastTip ? suggested.tipWei : leastTip;
    const raw = this.#sign(old, { type: old.type === 2 ? 2 : 0, maxWei, tipWei: tipWei < maxWei ? tipWei : maxWei });
    const next = { ...sent, raws: [...sent.raws, raw] };
    notes.write({ ...notes.read(), sent: next });
    return next;
  }

  #sign(
    { to, data, nonce, gasLimit }: Pick<Transaction, "to" | "data" | "nonce" | "gasLimit">,
    { type, maxWei, tipWei }: Fees,
  ): string {
    const { wallet, chainId } = this.#options;
    const price = type === 2 ? { maxFeePerGas: maxWei, maxPriorityFeePerGas: tipWei } : { gasPrice: maxWei };
    const transaction = Transaction.from({ type, chainId, nonce, to, data, gasLimit, value: 0n, ...price });
    transaction.signature = wallet.signingKey.sign(transaction.unsignedHash);
    return transaction.serialized;
  }

  async #receiptOf({ raws }: SentTransaction): Promise<Receipt | null> {
    const { rpc } = this.#options;
    for (const raw of raws.toReversed()) {
      const hash = keccak256(raw);
      const value = (await rpc.call("eth_getTransactionReceipt", [hash])) as Readonly<Record<string, unknown>> | null;
      if (value === null) continue;
      const contract = value["contractAddress"];
      return {
        transaction: hash,
        block: toNumber(value["blockNumber"]),
        isReverted: toBigInt(value["status"]) === 0n,
        gasUsed: toBigInt(value["gasUsed"]),
        contract: typeof contract === "string" ? contract.toLowerCase() : null,
      };
    }
    return null;
  }

  /** Behind what else the account has under way: transactions of other programs, or ours whose notes are lost. They are waited for, never replaced. */
  async #nextNonce(signal: AbortSignal): Promise<number> {
    const { pollMs, stuckMs } = this.#options;
    const untilMs = performance.now() + stuckMs;
    // Ends when nothing else is under way, or after stuckMs.
    for (;;) {
      const [latest, pending] = [await this.#count("latest"), await this.#count("pending")];
      if (pending <= latest || performance.now() > untilMs) return Math.max(latest, pending);
      await pause(pollMs, signal, () => `other transactions of ${this.address} are under way: nothing was sent`);
    }
  }

  async #count(at: "latest" | "pending"): Promise<number> {
    return toNumber(await this.#options.rpc.call("eth_getTransactionCount", [this.address, at]));
  }

  async #fees(): Promise<Fees> {
    const fees = await this.#suggestedFees();
    const cap = this.#capWei();
    if (cap === null || fees.maxWei <= cap) return fees;
    const leastWei = fees.type === 2 ? (fees.maxWei - fees.tipWei) / 2n : fees.maxWei;
    if (leastWei >= cap)
      throw new GatewayError(
        "GW_REGISTRY_UNAVAILABLE",
        `the chain asks for ${gwei(leastWei)} gwei per gas, maxFeeGwei allows ${this.#options.maxFeeGwei}: nothing was sent, it is tried again later`,
      );
    return { ...fees, maxWei: cap, tipWei: fees.tipWei < cap ? fees.tipWei : cap };
  }

  /** Twice the base fee: enough for six full blocks in a row. Type 0 where blocks have no base fee. */
  async #suggestedFees(): Promise<Fees> {
    const { rpc } = this.#options;
    const block = (await rpc.call("eth_getBlockByNumber", ["latest", false])) as Readonly<
      Record<string, unknown>
    > | null;
    const base = block?.["baseFeePerGas"];
    if (typeof base !== "string") {
      const price = toBigInt(await rpc.call("eth_gasPrice"));
      return { type: 0, maxWei: price, tipWei: price };
    }
    const tipWei = await rpc.call("eth_maxPriorityFeePerGas").then(toBigInt, async (error: unknown) => {
      if (!(error instanceof RpcError)) throw error;
      const over = toBigInt(await rpc.call("eth_gasPrice")) - toBigInt(base);
      return over > 0n ? over : 0n;
    });
    return { type: 2, maxWei: toBigInt(base) * 2n + tipWei, tipWei };
  }

  #capWei(): bigint | null {
    const { maxFeeGwei } = this.#options;
    return maxFeeGwei > 0 ? BigInt(Math.round(maxFeeGwei * 1e9)) : null;
  }

  async #checkBalance(neededWei: bigint): Promise<void> {
    const balance = toBigInt(await this.#options.rpc.call("eth_getBalance", [this.address, "latest"]));
    if (balance < neededWei)
      throw new GatewayError(
        "GW_REGISTRY_UNAVAILABLE",
        `the registry's account ${this.address} holds ${coins(balance)}, a transaction may take up to ${coins(neededWei)}: send it some; nothing was sent`,
      );
  }

  #stillWaiting(sent: SentTransaction, waitMs: number): GatewayError {
    const price = Transaction.from(newestOf(sent));
    const fee = gwei(price.maxFeePerGas ?? price.gasPrice ?? 0n);
    return new GatewayError(
      "GW_REGISTRY_UNAVAILABLE",
      `${this.#underWay(sent)} (nonce ${sent.nonce}, at most ${fee} gwei per gas): in no block after ${Math.round(waitMs / 1000)} s`,
    );
  }

  #underWay(sent: SentTransaction): string {
    return `the transaction ${keccak256(newestOf(sent))} that ${sent.what} is under way, and is looked for again at the next try`;
  }
}

/** With a time limit of its own behind it; rejects when the signal aborts. */
export async function pause(ms: number, signal: AbortSignal, state: () => string): Promise<void> {
  try {
    await sleep(ms, undefined, { signal });
  } catch {
    throw new GatewayError("GW_REGISTRY_UNAVAILABLE", `interrupted: ${state()}`);
  }
}

/** Such as 0.00123 (of ether, KAIA …). */
export function coins(wei: bigint): string {
  const text = (Number(wei) / 1e18).toPrecision(4);
  return text.includes("e") ? text : String(Number(text));
}

/** Nodes keep the old one unless both fees grow by 10 %, some by 12.5 %. */
const raised = (wei: bigint | null): bigint => ((wei ?? 0n) * 9n) / 8n + 1n;

const gwei = (wei: bigint): string => String(Number((Number(wei) / 1e9).toPrecision(4)));

const newestOf = ({ raws }: SentTransaction): string => raws.at(-1) as string;
