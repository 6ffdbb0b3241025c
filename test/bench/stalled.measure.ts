// Does a gateway's memory grow while one copy stands still under load? `npm run bench:stalled`. STALL_MINUTES (10).

import { readFileSync } from "node:fs";
import { setTimeout as passed } from "node:timers/promises";
import { expect, onTestFinished, test } from "vitest";
import { Clients } from "../helpers/clients.ts";
import { caughtUp, put, startSystem } from "../system/system.ts";

const minutes = Number(process.env["STALL_MINUTES"] ?? 10);

test(`one of three copies is stopped for ${minutes} minutes under load`, async () => {
  const system = await startSystem({ config: { timeouts: { firstByte: "5s" } } });
  const { gateway, shops } = system;
  const clients = new Clients({
    front: gateway.front,
    count: 16,
    workload: (client, n) => put(client, n, false),
    thinkMs: 5,
    repeatEvery: 0,
  });
  clients.start();
  onTestFinished(() => clients.stop());
  await clients.busy({ acknowledged: 2000, inFlight: 1, withinMs: 120_000 });
  const before = await residentMiB(gateway.pid);
  const stalled = shops[2];
  stalled?.pause();
  onTestFinished(() => stalled?.resume());
  const samples: number[] = [];
  const begunAt = clients.acknowledged;
  for (let second = 0; second < minutes * 60; second += 10) {
    await passed(10_000);
    samples.push(await residentMiB(gateway.pid));
  }
  const acknowledged = clients.acknowledged - begunAt;
  await clients.stop();
  const lag = (await gateway.status()).replicas.find((it) => it.name === stalled?.name)?.lag ?? 0;
  stalled?.resume();
  await caughtUp(gateway, 600_000);
  const third = Math.floor(samples.length / 3);
  const [early, late] = [median(samples.slice(0, third)), median(samples.slice(-third))];
  process.stdout.write(
    `memory of the gateway, MiB: ${before} before; in the first third ${early}, in the last third ${late} (${(late / early).toFixed(2)}), most ${Math.max(...samples)}; ` +
      `${acknowledged} requests acknowledged meanwhile, the copy was ${lag} entries behind and caught up\n`,
  );
  expect(late / early).toBeLessThan(1.2);
});

/** Resident memory, MiB. */
async function residentMiB(pid: number): Promise<number> {
  const line = readFileSync(`/proc/${pid}/status`, "utf8")
    .split("\n")
    .find((it) => it.startsWith("VmRSS:"));
  return Math.round(Number(/\d+/.exec(line ?? "0")?.[0] ?? 0) / 1024);
}

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
