// A real EVM node for tests: anvil from npm, spawned itself, because its wrapper would leave it behind.
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { createFolder } from "./folder.ts";
import { extend, startServer } from "./servers.ts";
import type { Server } from "./servers.ts";

export interface Anvil extends Server {
  readonly chainId: number;
  /** One JSON-RPC call; rejects with what the node says. */
  call<T = unknown>(method: string, params?: readonly unknown[]): Promise<T>;
  mine(blocks?: number): Promise<void>;
  /** Funds an account with so much ether. */
  fund(address: string, ether: number): Promise<void>;
}

export interface AnvilOptions {
  /** Default 31337. */
  readonly chainId?: number;
  readonly args?: readonly string[];
  /** A file that the chain is written to when it is stopped, and read from when it starts. */
  readonly state?: string;
}

/** Keys of the accounts that every such node funds. */
export const developmentKeys = [
  "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
  "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
  "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
  "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
] as const;

export async function startAnvil(options: AnvilOptions = {}): Promise<Anvil> {
  const { chainId = 31337, args = [], state } = options;
  const server = await startServer({
    what: "anvil",
    folder: createFolder("anvil"),
    port: undefined,
    command: async (port) => [
      binary(),
      "--port",
      String(port),
      "--chain-id",
      String(chainId),
      ...(state === undefined ? [] : ["--state", state, "--preserve-historical-states"]),
      ...args,
    ],
    isReady: async (port) => (await ask(`http://127.0.0.1:${port}`, "eth_chainId", [])) !== null,
  });
  const url = `http://127.0.0.1:${server.port}`;
  const call = <T>(method: string, params: readonly unknown[] = []): Promise<T> =>
    ask(url, method, params) as Promise<T>;
  return extend(server, {
    url,
    chainId,
    call,
    mine: async (blocks = 1) => void (await call("anvil_mine", [`0x${blocks.toString(16)}`])),
    fund: async (address: string, ether: number) =>
      void (await call("anvil_setBalance", [
        address,
        `0x${(BigInt(Math.round(ether * 1e6)) * 10n ** 12n).toString(16)}`,
      ])),
  });
}

/** Of the package for this machine, wherever npm put it. */
function binary(): string {
  const wrapper = createRequire(import.meta.url).resolve("@foundry-rs/anvil/package.json");
  const platform = `${process.platform}-${process.arch === "x64" ? "amd64" : process.arch}`;
  return join(dirname(dirname(wrapper)), `anvil-${platform}`, "bin", "anvil");
}

async function ask(url: string, method: string, params: readonly unknown[]): Promise<unknown> {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }),
    signal: AbortSignal.timeout(10_000),
  });
  const answer = (await response.json()) as {
    readonly result?: unknown;
    readonly error?: { readonly message: string };
  };
  if (answer.error !== undefined) throw new Error(`${method}: ${answer.error.message}`);
  return answer.result ?? null;
}
