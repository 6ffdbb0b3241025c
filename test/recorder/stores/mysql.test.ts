// Snapshots in MariaDB.
import { afterAll, beforeAll } from "vitest";

import { startMariadb } from "../../helpers/mariadb.ts";
import type { MariadbServer } from "../../helpers/mariadb.ts";
import { storeContract } from "./store.contract.ts";

let server: MariadbServer;
beforeAll(async () => {
  server = await startMariadb();
});
afterAll(() => server?.close());

storeContract("mysql", async () => ({ kind: "mysql", ...(await server.newDatabase()) }), { manyObjects: 1_100 });
