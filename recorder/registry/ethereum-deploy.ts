// Brings the contract onto a chain: once for as many services as there are.

import { GatewayError } from "../../gateway/errors.ts";
import { bytecode } from "../contract/artifact.ts";
import { openAccount, refuseDevelopmentKey } from "./ethereum-account.ts";
import { keepInMemory } from "./ethereum-notes.ts";
import { Rpc, translated } from "./ethereum-rpc.ts";
import { Sender } from "./ethereum-sender.ts";
import type { Secret } from "../../gateway/config/secret.ts";

export interface Deployed {
  /** 0x…, lower case. */
  readonly contract: string;
  readonly transaction: string;
  readonly chainId: string;
  readonly account: string;
}

export interface DeployOptions {
  readonly rpc: Secret;
  readonly key: Secret;
  readonly keyPassword: Secret | null;
}

const times = { pollMs: 1_000, stuckMs: 90_000, waitMs: 600_000 };

/** Resolves when it stands in a block. Rejects with GW_REGISTRY_UNAVAILABLE, GW_REGISTRY_REFUSED or GW_CONFIG_INVALID. */
export async function deployRegistry(options: DeployOptions, signal: AbortSignal): Promise<Deployed> {
  const wallet = await openAccount(options.key, options.keyPassword);
  const rpc = new Rpc({ urls: [options.rpc], timeoutMs: 10_000 });
  try {
    const chainId = await rpc.chainId();
    refuseDevelopmentKey(wallet, chainId);
    const notes = keepInMemory(String(chainId), "");
    const sender = new Sender({ ...times, rpc, wallet, notes, chainId, maxFeeGwei: 0 });
    const call = { to: null, data: bytecode, what: "deploys the contract", publication: null };
    const receipt = await sender.send(call, signal);
    const contract = receipt?.contract ?? null;
    const code = contract === null ? "0x" : await rpc.call("eth_getCode", [contract, "latest"]);
    if (receipt === null || receipt.isReverted || contract === null || code === "0x")
      throw new GatewayError(
        "GW_REGISTRY_UNAVAILABLE",
        `the transaction ${receipt?.transaction ?? "of the deployment"} did not leave a contract on chain ${chainId}: look at it, then try again`,
      );
    return { contract, transaction: receipt.transaction, chainId: String(chainId), account: sender.address };
  } catch (error) {
    throw translated(error);
  } finally {
    await rpc.close();
  }
}
