// Snapshots in NATS.
import { afterAll, beforeAll } from "vitest";

import { startNats } from "../../helpers/servers.ts";
import type { NatsServer } from "../../helpers/servers.ts";
import { storeContract } from "./store.contract.ts";

let server: NatsServer;
let buckets = 0;
beforeAll(async () => {
  server = await startNats();
});
afterAll(() => server?.close());

storeContract(
  "nats",
  () =>
    Promise.resolve({
      kind: "nats",
      bucket: `bucket-${++buckets}`,
      servers: [server.url],
      replicas: 1,
      credentialsFile: null,
      tls: null,
    }),
  { manyObjects: 300 },
);
