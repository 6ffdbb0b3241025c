// A process that publishes version 1 of a service and then stays, until it is killed.

import { Secret } from "../../../gateway/config/secret.ts";
import { openEthereumRegistry } from "../../../recorder/registry/ethereum.ts";
import { publication } from "./samples.ts";

const [rpc = "", contract = "", service = "", folder = ""] = process.argv.slice(2);
const registry = await openEthereumRegistry({
  rpc: [new Secret(rpc)],
  contract,
  service,
  owner: null,
  key: new Secret(process.env["TEST_KEY"] ?? ""),
  keyPassword: null,
  confirmations: 1,
  publishers: [],
  maxFeeGwei: 0,
  folder,
  // Nothing is raised meanwhile: the test compares what was sent.
  times: { timeoutMs: 30_000, pollMs: 15, stuckMs: 30_000, waitMs: 30_000 },
});
await registry.publish(publication(service, 1), new AbortController().signal);
setInterval(() => undefined, 1000);
