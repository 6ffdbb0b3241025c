// Compiles the contract with the pinned solc. Run as a program it writes what is committed: npx tsx test/recorder/contract/compile.ts

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { Interface } from "ethers";
import type { JsonFragment } from "ethers";

export interface Artifact {
  readonly contract: string;
  readonly compiler: string;
  readonly settings: object;
  readonly abi: readonly JsonFragment[];
  readonly bytecode: string;
}

const contract = "SnapshotRegistry";
const folder = new URL("../../../recorder/contract/", import.meta.url);

const settings = {
  // The oldest instruction set that chains in use share; newer ones add instructions that some lack.
  evmVersion: "paris",
  viaIR: true,
  optimizer: { enabled: true, runs: 200 },
  // Without it a comment would change the bytecode.
  metadata: { bytecodeHash: "none", appendCBOR: false },
};

export function compile(): Artifact {
  // No types, and 9 MB of it: loaded when it is needed.
  const solc = createRequire(import.meta.url)("solc") as { compile(input: string): string; version(): string };
  const source = `${contract}.sol`;
  const input = {
    language: "Solidity",
    sources: { [source]: { content: readFileSync(new URL(source, folder), "utf8") } },
    settings: { ...settings, outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } } },
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input))) as Output;
  if (output.errors !== undefined && output.errors.length > 0)
    throw new Error(output.errors.map(({ formattedMessage }) => formattedMessage).join("\n"));
  const compiled = output.contracts[source]?.[contract];
  if (compiled === undefined) throw new Error(`${source} holds no contract ${contract}`);
  const { abi, evm } = compiled;
  return { contract, compiler: solc.version(), settings, abi, bytecode: `0x${evm.bytecode.object}` };
}

interface Output {
  readonly errors?: readonly { readonly formattedMessage: string }[];
  readonly contracts: Record<
    string,
    Record<string, { readonly abi: JsonFragment[]; readonly evm: { readonly bytecode: { readonly object: string } } }>
  >;
}

/** The same as the program needs it: `tsc` copies no JSON, and Node 20 warns of importing it. */
export function asTypeScript(artifact: Artifact): string {
  return `// Generated from SnapshotRegistry.sol, by test/recorder/contract/compile.ts: what the program needs to deploy and to call it.

export const abi: readonly string[] = ${JSON.stringify(new Interface(artifact.abi).format())};

export const bytecode =
  ${JSON.stringify(artifact.bytecode)};
`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const artifact = compile();
  const [json, typescript] = [`${contract}.json`, "artifact.ts"].map((name) => fileURLToPath(new URL(name, folder)));
  writeFileSync(json ?? "", `${JSON.stringify(artifact, null, 2)}\n`);
  writeFileSync(typescript ?? "", asTypeScript(artifact));
  execFileSync("npx", ["oxfmt", json ?? "", typescript ?? ""]);
}
