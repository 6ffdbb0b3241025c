// The account that signs: from a private key or an encrypted keystore. Neither is ever part of a message.

import { Wallet } from "ethers";
import { GatewayError } from "../../gateway/errors.ts";
import type { Secret } from "../../gateway/config/secret.ts";

/** Of "test test test test test test test test test test test junk": everybody has these keys. */
const developmentAccounts: ReadonlySet<string> = new Set([
  "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266",
  "0x70997970c51812dc3a010c7d01b50e0d17dc79c8",
  "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc",
  "0x90f79bf6eb2c4f870365e785982e1f101e93b906",
  "0x15d34aaf54267db7d7c367839aaf71a00a2c6a65",
  "0x9965507d1a55bcc2695c58ba16fb37d819b0a4dc",
  "0x976ea74026e726554db657fa54763abd0c3a0aa9",
  "0x14dc79964da2c08b23698b3d3cc7ca32193d9955",
  "0x23618e81e3f5cdf7f54c3d65f7fbc0abf5b21e8f",
  "0xa0ee7a142d267c1f36714e4a8f75612f20a79720",
]);

/** Chains that begin anew on somebody's desk. */
export const isDevelopmentChain = (chainId: bigint): boolean => chainId === 31337n || chainId === 1337n;

/** Rejects with GW_CONFIG_INVALID, never with what ethers says: its errors quote their arguments. */
export async function openAccount(key: Secret, password: Secret | null): Promise<Wallet> {
  const text = key.reveal().trim();
  if (text.startsWith("{")) {
    if (password === null)
      throw new GatewayError(
        "GW_CONFIG_INVALID",
        "the registry's key is an encrypted keystore: its password is missing",
      );
    try {
      return (await Wallet.fromEncryptedJson(text, password.reveal())) as Wallet;
    } catch {
      throw new GatewayError(
        "GW_CONFIG_INVALID",
        "the registry's keystore does not open: the password is wrong, or the file is no keystore of version 3",
      );
    }
  }
  if (/^(0x)?[0-9a-f]{64}$/i.test(text)) {
    try {
      return new Wallet(text.startsWith("0x") ? text : `0x${text}`);
    } catch {
      // 64 hex digits that are no key of this curve: zero, or beyond its order.
    }
  }
  throw new GatewayError(
    "GW_CONFIG_INVALID",
    "the registry's key is neither a private key (0x and 64 hex digits) nor an encrypted keystore (JSON)",
  );
}

export function refuseDevelopmentKey(wallet: Wallet, chainId: bigint): void {
  if (isDevelopmentChain(chainId) || !developmentAccounts.has(wallet.address.toLowerCase())) return;
  throw new GatewayError(
    "GW_REGISTRY_REFUSED",
    `the registry's key is a well-known development key (account ${wallet.address.toLowerCase()}): on chain ${chainId} anybody could publish with it; use a key of your own`,
  );
}
