// How long a replica is fed by nobody after its gateway was killed, and how long clients see no answer: `npm run bench:takeover`.
// TAKEOVER_KILLS (50), TAKEOVER_LEASE_MS (3000).

import { setTimeout as passed } from "node:timers/promises";
import { Client } from "undici";
import { expect, onTestFinished, test } from "vitest";
import type { Gateway } from "../helpers/gateway.ts";
import { Clients } from "../helpers/clients.ts";
import { faultsOfFleet, spread, startFleet } from "../system/fleet.ts";
import { put } from "../system/system.ts";

const kills = Number(process.env["TAKEOVER_KILLS"] ?? 50);
const leaseMs = Number(process.env["TAKEOVER_LEASE_MS"] ?? 3000);

test(`${kills} kills of one of three gateways, lease ${leaseMs} ms`, async () => {
  const system = await startFleet({ gateways: 3, leaseMs });
  await spread(system.gateways, { "gw-1": 1, "gw-2": 1, "gw-3": 1 });
  const clients = new Clients({
    front: (client) => {
      const running = system.gateways.filter((it) => it.isRunning);
      return (running[client % running.length] as Gateway).front;
    },
    count: 8,
    workload: (client, n) => put(client, n, true),
    thinkMs: 5,
  });
  clients.start();
  onTestFinished(() => clients.stop());
  const probe = new Probe(system.gateways);
  onTestFinished(() => probe.stop());
  const takeovers: number[] = [];
  const gaps: number[] = [];
  for (let n = 0; n < kills; n++) {
    await clients.busy({ acknowledged: 30, inFlight: 1, withinMs: 60_000 });
    const victim = system.gateways[n % 3] as Gateway;
    const observer = system.gateways[(n + 1) % 3] as Gateway;
    const name = (await observer.status()).replicas.find((it) => it.owner === `gw-${(n % 3) + 1}`)?.name ?? "";
    const killedAtMs = performance.now();
    await victim.kill9();
    await observer.until(`${name} to be fed again`, leaseMs + 20_000, ({ replicas }) =>
      replicas.some(
        (it) => it.name === name && it.owner !== null && it.owner !== `gw-${(n % 3) + 1}` && it.state === "live",
      ),
    );
    takeovers.push(performance.now() - killedAtMs);
    gaps.push(probe.longestSince(killedAtMs));
    await victim.start();
    await spread(system.gateways, { "gw-1": 1, "gw-2": 1, "gw-3": 1 });
  }
  probe.stop();
  await clients.stop();
  report(
    "takeover after kill -9, ms beyond the lease",
    takeovers.map((ms) => ms - leaseMs),
  );
  report("longest wait for an answer around a kill, ms (a client that goes elsewhere when its gateway is gone)", gaps);
  expect(await faultsOfFleet(system, clients, (id) => !id.startsWith("probe-"))).toEqual([]);
});

/** Writes one request after the other with a key, at whichever gateway answers: how long was nothing answered? */
class Probe {
  readonly #answers: number[] = [];
  #isStopped = false;

  constructor(gateways: readonly Gateway[]) {
    void this.#run(gateways);
  }

  stop(): void {
    this.#isStopped = true;
  }

  /** The longest time between two answers, of those that ended since. */
  longestSince(sinceMs: number): number {
    let longest = 0;
    for (let at = 1; at < this.#answers.length; at++)
      if ((this.#answers[at] as number) > sinceMs)
        longest = Math.max(longest, (this.#answers[at] as number) - (this.#answers[at - 1] as number));
    return longest;
  }

  /** Ends with `stop`. */
  async #run(gateways: readonly Gateway[]): Promise<void> {
    for (let n = 0; !this.#isStopped; n++) {
      const key = `probe-${n}`;
      // The same request with the same key, elsewhere, until it is answered.
      for (let tries = 0; !this.#isStopped; tries++) {
        const running = gateways.filter((it) => it.isRunning);
        const gateway = running[(n + tries) % running.length];
        if (gateway !== undefined && (await this.#ask(gateway, key, n))) break;
        await passed(10);
      }
      this.#answers.push(performance.now());
    }
  }

  async #ask(gateway: Gateway, key: string, n: number): Promise<boolean> {
    const client = new Client(gateway.front, { headersTimeout: 5000 });
    try {
      const answer = await client.request({
        method: "PUT",
        path: `/r/probe?id=${key}`,
        headers: { "content-type": "application/json", "idempotency-key": key },
        body: JSON.stringify({ v: String(n) }),
      });
      await answer.body.dump();
      return answer.statusCode < 300;
    } catch {
      return false;
    } finally {
      await client.destroy();
    }
  }
}

function report(what: string, values: readonly number[]): void {
  const sorted = values.toSorted((a, b) => a - b);
  const quantile = (q: number): string =>
    String(Math.round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? 0));
  process.stdout.write(
    `${what}: p50 ${quantile(0.5)}, p90 ${quantile(0.9)}, p99 ${quantile(0.99)}, max ${quantile(1)} (${values.length})\n`,
  );
}
