// An endpoint between the gateway and a node that a test lets lie, fail or hold calls back.

import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

export interface RpcCall {
  readonly method: string;
  readonly params: readonly unknown[];
}

/** What the caller gets as the result; what it throws becomes a JSON-RPC error. */
export type Tamper = (call: RpcCall, forward: (call: RpcCall) => Promise<unknown>) => Promise<unknown>;

export interface RpcProxy {
  readonly url: string;
  /** Methods in the order of their arrival. */
  readonly methods: readonly string[];
  tamper: Tamper;
  close(): Promise<void>;
}

export const honest: Tamper = (call, forward) => forward(call);

export async function startRpcProxy(target: string): Promise<RpcProxy> {
  const methods: string[] = [];
  const server = createServer((request, response) => {
    void (async () => {
      const chunks: Buffer[] = [];
      for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
      const { id, method, params } = JSON.parse(Buffer.concat(chunks).toString()) as RpcCall & { readonly id: number };
      methods.push(method);
      const answer = await proxy
        .tamper({ method, params }, (call) => forward(target, call))
        .then(
          (result) => ({ result }),
          (error: Error & { readonly data?: unknown }) => ({
            error: { code: -32000, message: error.message, data: error.data },
          }),
        );
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify({ jsonrpc: "2.0", id, ...answer }));
    })();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const proxy: RpcProxy = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    methods,
    tamper: honest,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
  return proxy;
}

async function forward(target: string, { method, params }: RpcCall): Promise<unknown> {
  const response = await fetch(target, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }),
  });
  const { result, error } = (await response.json()) as {
    readonly result?: unknown;
    readonly error?: { readonly message: string; readonly data?: unknown };
  };
  if (error !== undefined) throw Object.assign(new Error(error.message), { data: error.data });
  return result;
}
