// What `registry.ethereum:` means: the endpoints, the contract, and the key that publishes, as a private key or a keystore.

import { Secret } from "./secret.ts";
import { readSecret } from "./secretfile.ts";
import type { Fault } from "../../rules/document.ts";
import type { ParsedConfig } from "./schema.ts";
import type { Sources } from "./sources.ts";
import type { EthereumConfig } from "./values.ts";

/** With faults it is what is left of it. */
export function ethereumOf(
  { registry }: ParsedConfig,
  sources: Sources,
  collect: { readonly faults: Fault[]; readonly warnings: Fault[] },
): EthereumConfig | null {
  const ethereum = registry?.ethereum;
  if (ethereum === undefined) return null;
  const bad = (key: string, message: string): number =>
    collect.faults.push(sources.fault(["registry", "ethereum", key], message));
  const secret = (name: "key" | "keyPassword"): Secret | null => {
    const given = { value: ethereum[name], file: ethereum[`${name}File`] };
    return readSecret(sources, ["registry", "ethereum", name], given, collect);
  };
  const written = (name: "key" | "keyPassword"): string => (ethereum[name] === undefined ? `${name}File` : name);

  const [one, other] = ethereum.rpc;
  if (one !== undefined && one === other)
    bad("rpc", "names one endpoint twice: the second is there to contradict the first");
  const twice = ethereum.publishers.find((it, i) => ethereum.publishers.indexOf(it) !== i);
  if (twice !== undefined) bad("publishers", `names ${twice} twice`);

  const found = secret("key");
  const password = secret("keyPassword");
  const key = found === null ? null : keyIn(found.reveal());
  if (found !== null && key === null) {
    bad(written("key"), "is neither a private key (0x and 64 hex digits) nor an encrypted keystore (JSON)");
  }
  if (key?.isKeystore === true && password === null)
    bad("keyPasswordFile", "is missing: the key is an encrypted keystore");
  if (key?.isKeystore !== true && password !== null) {
    bad(written("keyPassword"), "means nothing without an encrypted keystore in keyFile");
  }
  return {
    rpc: ethereum.rpc.map((url) => new Secret(url)),
    contract: ethereum.contract,
    owner: ethereum.owner ?? null,
    key: key === null ? null : new Secret(key.text),
    keyPassword: password,
    confirmations: ethereum.confirmations,
    publishers: ethereum.publishers,
    publishEveryMs: ethereum.publishEvery,
    maxFeeGwei: ethereum.maxFeeGwei,
  };
}

function keyIn(text: string): { readonly text: string; readonly isKeystore: boolean } | null {
  if (/^(0x)?[0-9a-fA-F]{64}$/.test(text)) {
    return { text: `0x${text.replace(/^0x/, "").toLowerCase()}`, isKeystore: false };
  }
  try {
    const value: unknown = JSON.parse(text);
    const keys = typeof value === "object" && value !== null ? Object.keys(value) : [];
    return keys.some((key) => key.toLowerCase() === "crypto") ? { text, isKeystore: true } : null;
  } catch {
    return null;
  }
}
