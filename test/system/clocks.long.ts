// Somebody sets the gateway's clock, by hours, forwards and backwards, under load: nothing that is promised hangs on it.

import { renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import type { LogRow } from "../../gateway/status.ts";
import { Clients } from "../helpers/clients.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import { rowsOf } from "../helpers/gateway.ts";
import type { Gateway } from "../helpers/gateway.ts";
import { checkLedger } from "../helpers/ledger.ts";
import { waitFor } from "../helpers/wait.ts";
import { allLive, ask, caughtUp, settled, startSystem } from "./system.ts";

const hourMs = 3_600_000;
const movedClock = new URL("../helpers/moved-clock.mjs", import.meta.url).href;

test.each(["embedded", "nats"] as const)(
  "%s: order, keys, snapshots and the lives of copies go on over a clock that is set by hours",
  async (stores) => {
    const file = join(temporaryFolder("clock"), "offset");
    const set = (hours: number): void => {
      writeFileSync(`${file}.new`, String(hours * hourMs));
      renameSync(`${file}.new`, file);
    };
    set(0);
    const system = await startSystem({
      stores,
      replicas: "managed",
      config: {
        snapshots: { store: join(temporaryFolder("store"), "s"), every: { entries: 100, atLeast: "500ms" } },
      },
      gateway: { env: { CLOCK_FILE: file, NODE_OPTIONS: `--import ${movedClock}` } },
    });
    const { gateway } = system;
    const clients = new Clients({ front: gateway.front, count: 8, workload: settled, repeatEvery: 3, thinkMs: 5 });
    clients.start();
    const versionOf = async (): Promise<number> => (await gateway.status()).snapshots?.last?.version ?? -1;
    const once = (): ReturnType<typeof ask> =>
      ask(gateway.front, "POST", "/c/once/add?id=once", {
        body: { by: 1 },
        headers: { "idempotency-key": "before-all" },
      });
    const first = await once();
    expect(first.outcome).toBe("executed");
    for (const hours of [5, -5]) {
      const version = await versionOf();
      set(hours);
      await waitFor(async () => Math.abs((await wallOffset(gateway)) - hours * hourMs) < hourMs / 60, {
        what: "the clock to be set",
      });
      await clients.busy({ acknowledged: 60, inFlight: 1 });
      const again = await once();
      expect([again.status, again.text, again.position]).toEqual([200, first.text, first.position]);
      await waitFor(async () => (await versionOf()) > version, {
        timeoutMs: 15_000,
        what: () => `a snapshot at ${hours} h after version ${version}`,
      });
      expect((await gateway.status()).live).toBeGreaterThanOrEqual(2);
    }
    // A start in the past, too: what was written later than now is no reason to wait, and none to forget.
    await gateway.restart();
    await allLive(gateway, 20_000);
    const version = await versionOf();
    await clients.busy({ acknowledged: 60, inFlight: 1 });
    await waitFor(async () => (await versionOf()) > version, { timeoutMs: 15_000, what: "a snapshot after the start" });
    const again = await once();
    expect([again.outcome, again.position]).toEqual(["executed", first.position]);
    await clients.stop();
    await caughtUp(gateway);
    const ours = new Set(["once", "clock"]);
    const journals = new Map(
      [...system.journals()].map(([name, rows]) => [name, rows.filter(({ id }) => !ours.has(id))]),
    );
    expect(checkLedger({ sent: clients.history, journals })).toEqual([]);
    for (const journal of system.journals().values()) expect(journal.filter(({ id }) => id === "once")).toHaveLength(1);
  },
  90_000,
);

/** The time that the gateway gives an entry of now, beside ours. */
async function wallOffset(gateway: Gateway): Promise<number> {
  const { position } = await ask(gateway.front, "PUT", "/r/clock?id=clock", { body: { v: 1 } });
  const { json } = await gateway.api("GET", `/v1/log?from=${position?.split("@")[0]}&limit=1`);
  return ((rowsOf(json) as LogRow[])[0]?.timeMs ?? Number.NaN) - Date.now();
}
