// What a disk can do to a gateway and to its stores: lose its power, be full, be slow, refuse to sync. Acknowledged is acknowledged.

import { randomUUID } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import { describe, expect, onTestFinished, test } from "vitest";
import { Clients } from "../helpers/clients.ts";
import type { Workload } from "../helpers/clients.ts";
import { hasDisks, hasStrace, newDisk } from "../helpers/disk.ts";
import type { Disk } from "../helpers/disk.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import { builtCli } from "../helpers/gateway.ts";
import { waitFor } from "../helpers/wait.ts";
import { add, allLive, ask, faultsOf, put, settled, startSystem } from "./system.ts";
import type { System } from "./system.ts";

function givenDisk(mebibytes: number): Disk {
  const disk = newDisk(mebibytes);
  onTestFinished(() => disk.close());
  return disk;
}

function startClients(system: System, workload: Workload = settled, count = 16): Clients {
  const clients = new Clients({ front: system.gateway.front, count, workload });
  clients.start();
  return clients;
}

/** What runs the gateway as on a machine of its own, that starts again when it is told to: by its boot id the gateway knows what a kill of itself leaves and a power cut does not. */
function machine(): { readonly command: readonly string[]; readonly reboot: () => void } {
  const file = join(temporaryFolder("machine"), "boot_id");
  const reboot = (): void => writeFileSync(file, `${randomUUID()}\n`);
  reboot();
  const script = `mount --bind ${file} /proc/sys/kernel/random/boot_id && exec "$@"`;
  return { command: ["unshare", "--mount", "/bin/sh", "-c", script, "sh", process.execPath, builtCli], reboot };
}

/** Streams are promised more than they take: a server counts what it promised. */
const room = ["max_file_store: 1GB"];

const big: Workload = (client, n) => ({
  ...put(client, n, n % 2 === 0),
  body: { v: `${client}-${n}-${"x".repeat(16_384)}` },
});

describe.skipIf(!hasDisks)("power cuts", () => {
  test.each(["embedded", "nats"] as const)(
    "%s: a gateway whose machine lost its power twice has everything that it acknowledged, exactly once",
    async (stores) => {
      const disk = givenDisk(256);
      const { command, reboot } = machine();
      const system = await startSystem({
        stores,
        config: { data: join(disk.folder, "data") },
        gateway: { command },
      });
      const { gateway } = system;
      if (stores === "embedded") expect((await gateway.status()).guarantee.level).toBe("power-loss");
      const clients = startClients(system);
      for (let cut = 1; cut <= 2; cut += 1) {
        await clients.busy({ acknowledged: 300, inFlight: 5 });
        await disk.losePower(
          () => gateway.pause(),
          () => gateway.kill9(),
        );
        reboot();
        await gateway.start();
        await allLive(gateway, 20_000);
      }
      await clients.busy({ acknowledged: 100, inFlight: 1 });
      await clients.stop();
      expect(await faultsOf(system, clients)).toEqual([]);
    },
    120_000,
  );

  test("a NATS server that syncs each write lost nothing with its power, twice", async () => {
    const disk = givenDisk(256);
    const system = await startSystem({
      stores: "nats",
      nats: { storeDir: join(disk.folder, "store"), jetstreamConfig: room },
      config: { log: { max: "64MiB" } },
    });
    const { gateway, nats } = system;
    expect((await gateway.status()).guarantee.level).toBe("power-loss");
    const clients = startClients(system);
    for (let cut = 1; cut <= 2; cut += 1) {
      await clients.busy({ acknowledged: 300, inFlight: 5 });
      await disk.losePower(
        () => nats?.pause(),
        async () => nats?.kill9(),
      );
      await nats?.restart();
    }
    await clients.busy({ acknowledged: 100, inFlight: 1 });
    await clients.stop();
    expect(await faultsOf(system, clients)).toEqual([]);
  }, 120_000);

  // The control: were nothing lost here, the tests above would prove nothing.
  test("a NATS server as it comes loses what it acknowledged with its power; the gateway promised no more, and says so", async () => {
    const disk = givenDisk(256);
    const system = await startSystem({
      stores: "nats",
      nats: { storeDir: join(disk.folder, "store"), syncAlways: false, jetstreamConfig: room },
      config: { log: { max: "64MiB" }, limits: { queueWait: "2s" } },
    });
    const { gateway, nats } = system;
    expect((await gateway.status()).guarantee.level).toBe("process-crash");
    // Without keys: nobody repeats for a minute what is lost.
    const clients = startClients(system, (client, n) => put(client, n, false));
    await clients.busy({ acknowledged: 300, inFlight: 5 });
    await disk.losePower(
      () => nats?.pause(),
      async () => nats?.kill9(),
    );
    const acknowledged = (await gateway.status()).tail;
    await nats?.restart();
    await waitFor(
      async () => (await ask(gateway.front, "PUT", "/r/late?id=late", { body: { v: 1 } })).code === "GW_LOG_REGRESSED",
      { timeoutMs: 20_000, what: "GW_LOG_REGRESSED" },
    );
    expect(await lastSequence(nats?.url ?? "")).toBeLessThan(Math.floor(acknowledged / 4096));
    await clients.stop();
    for (const journal of system.journals().values()) expect(journal.map(({ id }) => id)).not.toContain("late");
  }, 120_000);
});

/** Of the log's stream; 0: there is none. */
async function lastSequence(url: string): Promise<number> {
  const connection = await connect({ servers: url });
  try {
    const manager = await jetstreamManager(connection);
    const all = await manager.streams.list().next();
    return all.find(({ config }) => config.name === "GW_shop")?.state.last_seq ?? 0;
  } finally {
    await connection.close();
  }
}

describe.skipIf(!hasDisks)("full disks", () => {
  test("the gateway's own, with NATS elsewhere: nothing is lost, and it goes on when there is room", async () => {
    const disk = givenDisk(64);
    const system = await startSystem({ stores: "nats", config: { data: join(disk.folder, "data") } });
    const clients = startClients(system, settled, 4);
    await clients.busy({ acknowledged: 50, inFlight: 1 });
    const makeRoom = disk.fill();
    // Whether it meets the end of its disk at once depends on what its files hold in reserve.
    let [answered, since] = [clients.answered, performance.now()];
    const until = answered + 300;
    await waitFor(
      () => {
        if (clients.answered !== answered) [answered, since] = [clients.answered, performance.now()];
        return answered >= until || performance.now() - since > 2_000;
      },
      { timeoutMs: 30_000, what: "300 answers, or none" },
    );
    makeRoom();
    await clients.busy({ acknowledged: 50, inFlight: 1 });
    await clients.stop();
    await allLive(system.gateway, 20_000);
    expect(await faultsOf(system, clients)).toEqual([]);
  }, 120_000);

  test("that of NATS: writes are refused, nothing is lost, and they are taken again when there is room", async () => {
    const disk = givenDisk(96);
    const system = await startSystem({
      stores: "nats",
      nats: { storeDir: join(disk.folder, "store"), jetstreamConfig: room },
      config: { log: { max: "64MiB" }, limits: { queueWait: "2s" } },
    });
    const clients = startClients(system, big, 4);
    await clients.busy({ acknowledged: 50, inFlight: 1 });
    const makeRoom = disk.fill();
    await waitFor(() => /503 GW_LOG_(FULL|UNAVAILABLE)/.test(clients.lately(20)), {
      timeoutMs: 20_000,
      what: "a refusal",
    });
    expect((await ask(system.gateway.front, "GET", "/r/k0?level=any")).status).toBeLessThan(500);
    makeRoom();
    // A server that met a full disk may have ended its JetStream for good: a person starts it again.
    await system.nats?.restart();
    await clients.busy({ acknowledged: 50, inFlight: 1 });
    await clients.stop();
    expect(await faultsOf(system, clients)).toEqual([]);
  }, 120_000);
});

const injecting = (...injections: readonly string[]): readonly string[] => [
  "strace",
  "-D", // beside the program, whose pid, signals and exit stay its own
  "-f",
  "--seccomp-bpf",
  "-o",
  "/dev/null",
  "-e",
  "trace=fdatasync,fsync",
  ...injections.flatMap((injection) => ["-e", `inject=${injection}`]),
];
const median = (times: readonly number[]): number => times.toSorted((a, b) => a - b)[times.length >> 1] ?? 0;
const slowly = injecting("fdatasync,fsync:delay_exit=60000");

describe.skipIf(!hasStrace)("disks that sync slowly or not at all", () => {
  test.each([
    ["embedded", { gateway: { command: [...slowly, process.execPath, builtCli] } }],
    ["nats", { nats: { under: slowly } }],
  ] as const)(
    "%s: a slow one makes writes slow, and nothing else",
    async (stores, options) => {
      const system = await startSystem({ stores, ...options });
      const clients = startClients(system, settled, 8);
      await clients.busy({ acknowledged: 150, inFlight: 1 });
      const reads: number[] = [];
      for (let n = 0; n < 20; n += 1) {
        const at = performance.now();
        expect((await ask(system.gateway.front, "GET", "/r/k0?level=any")).status).toBeLessThan(500);
        reads.push(performance.now() - at);
      }
      await clients.stop();
      const writes = clients.history.flatMap(({ attempts }) =>
        attempts.map(({ sentAtMs, endedAtMs }) => (endedAtMs ?? Number.POSITIVE_INFINITY) - sentAtMs),
      );
      expect(median(writes)).toBeGreaterThan(60);
      expect(median(reads)).toBeLessThan(60);
      const refused = clients.history.flatMap(({ attempts }) => attempts.filter(({ status }) => status !== 200));
      expect(refused).toEqual([]);
      expect(await faultsOf(system, clients)).toEqual([]);
    },
    120_000,
  );

  test("a sync that fails ends the gateway; the next one has everything that was acknowledged", async () => {
    const folder = temporaryFolder("once");
    const program = join(folder, "once.sh");
    const strace = injecting("fdatasync:error=EIO:when=60+").join(" ");
    // Only the first life meets it.
    writeFileSync(program, `if [ -e ${folder}/met ]; then exec "$@"; fi\ntouch ${folder}/met\nexec ${strace} "$@"\n`);
    const system = await startSystem({ gateway: { command: ["/bin/sh", program, process.execPath, builtCli] } });
    const clients = startClients(system, (client, n) => add(client, n, n % 2 === 0));
    const exit = await system.gateway.exited(20_000);
    expect(exit.code).not.toBe(0);
    expect(exit.stderr + exit.stdout).toMatch(/Writing to .* failed/);
    expect(clients.acknowledged).toBeGreaterThan(20);
    await system.gateway.start();
    await clients.busy({ acknowledged: 100, inFlight: 1 });
    await clients.stop();
    expect(await faultsOf(system, clients)).toEqual([]);
  }, 120_000);
});
