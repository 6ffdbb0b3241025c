// npm run bench: the gateway beside its yardsticks, in one run, on the same backends, by the same client, in alternating rounds.
// Prints a table of medians with ratios and writes test/bench/results.json.
//
//   npm run bench -- [--rounds 5] [--seconds 4] [--connections 1,32,256] [--only bare,embedded] [--list] [--out FILE]

import { execFileSync } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { cpus, loadavg, totalmem } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { isBuilt, startGateway } from "../helpers/gateway.ts";
import { startNats, startRedis } from "../helpers/servers.ts";
import { benchMatch } from "../rules/match.bench.ts";
import { cpuMs, startChild } from "./child.ts";
import type { BenchChild } from "./child.ts";
import { rowOf, table } from "./figures.ts";
import type { Row, Sample } from "./figures.ts";
import type { LoadCommand, LoadResult } from "./load.ts";
import { findNginx, startMirror } from "./mirror.ts";

/** Something that is measured while it runs; started once, before the first round. */
interface Target {
  readonly origin: string;
  /** Whose CPU is told per request. */
  readonly pids: readonly number[];
  close(): Promise<void>;
}

interface System {
  readonly name: string;
  readonly kind: LoadCommand["kind"];
  /** How many backends must have counted each request. */
  readonly width: number;
  readonly ratioTo: string | null;
  readonly about: string;
  /** Systems of one group share one running target. */
  readonly group: string;
  /** Null: it cannot run here; the reason was said. */
  start(backends: readonly string[]): Promise<Target | null>;
}

const rules = [
  { name: "order", match: "POST /orders/:id", mode: "replicate", order: ["order:{path.id}"] },
  { name: "read-any", match: "GET /any/:id", mode: "only-once", consistency: "any" },
  { name: "read", match: "GET /orders/:id", mode: "only-once" },
  { name: "total", match: "POST /total/:id", mode: "replicate" },
];

const fanOut = async (backends: readonly string[]): Promise<Target> =>
  ofChild(await startChild("./fanout.ts", backends));

const mirror =
  (tuned: boolean, workers: number) =>
  async (backends: readonly string[]): Promise<Target | null> => {
    const nginx = findNginx();
    if (nginx === null) {
      say("nginx is not on PATH: `mirror` is not measured, and the ratios to the bare fan-out are not vouched for");
      return null;
    }
    const started = await startMirror(nginx, backends, { tuned, workers });
    return { origin: started.url, pids: started.pids, close: () => started.close() };
  };

async function gateway(backends: readonly string[], config: Readonly<Record<string, unknown>>): Promise<Target | null> {
  if (!isBuilt()) {
    say("dist/gateway/cli.js is missing: run `npm run build`; the gateway is not measured");
    return null;
  }
  const started = await startGateway({
    config: {
      rules,
      replicas: backends.map((url, i) => ({ name: "abc"[i], url })),
      logs: { level: "warn" },
      ...config,
    },
  });
  return { origin: started.front, pids: [started.pid], close: () => started.close() };
}

async function onNats(backends: readonly string[]): Promise<Target | null> {
  const nats = await startNats();
  const redis = await startRedis({ appendonly: true });
  const target = await gateway(backends, {
    log: { nats: { servers: [nats.url], replicas: 1, monitor: [nats.monitorUrl] } },
    keys: { redis: { url: redis.url } },
  });
  return {
    origin: target?.origin ?? "",
    pids: target?.pids ?? [],
    async close() {
      await target?.close();
      await nats.close();
      await redis.close();
    },
  };
}

const direct = (backends: readonly string[]): Promise<Target> =>
  Promise.resolve({ origin: backends[0] ?? "", pids: [], close: () => Promise.resolve() });

const systems: readonly System[] = [
  {
    name: "direct",
    kind: "write",
    width: 1,
    ratioTo: "bare",
    group: "direct",
    about: "POST to one backend",
    start: direct,
  },
  {
    name: "bare",
    kind: "write",
    width: 3,
    ratioTo: null,
    group: "bare",
    about: "bare fan-out to three, first answer",
    start: fanOut,
  },
  {
    name: "mirror",
    kind: "write",
    width: 3,
    ratioTo: "bare",
    group: "mirror",
    about: "nginx mirror to three, keep-alive to them, 1 worker",
    start: mirror(true, 1),
  },
  {
    name: "mirror-2",
    kind: "write",
    width: 3,
    ratioTo: "bare",
    group: "mirror-2",
    about: "the same with 2 workers",
    start: mirror(true, 2),
  },
  {
    name: "mirror-plain",
    kind: "write",
    width: 3,
    ratioTo: "bare",
    group: "mirror-plain",
    about: "nginx mirror as its manual shows it",
    start: mirror(false, 1),
  },
  {
    name: "embedded",
    kind: "write",
    width: 3,
    ratioTo: "bare",
    group: "embedded",
    about: "replicate on LMDB, order keys",
    start: (b) => gateway(b, {}),
  },
  {
    name: "embedded-keyed",
    kind: "keyed",
    width: 3,
    ratioTo: "bare",
    group: "embedded",
    about: "the same, each request with an Idempotency-Key",
    start: (b) => gateway(b, {}),
  },
  {
    name: "nats",
    kind: "write",
    width: 3,
    ratioTo: "bare",
    group: "nats",
    about: "replicate on NATS R1 with sync_interval always, Redis keys configured",
    start: onNats,
  },
  {
    name: "nats-keyed",
    kind: "keyed",
    width: 3,
    ratioTo: "bare",
    group: "nats",
    about: "the same, each request with an Idempotency-Key",
    start: onNats,
  },
  {
    name: "direct-read",
    kind: "read",
    width: 1,
    ratioTo: "http-proxy",
    group: "direct",
    about: "GET from one backend",
    start: direct,
  },
  {
    name: "http-proxy",
    kind: "read",
    width: 1,
    ratioTo: null,
    group: "http-proxy",
    about: "GET through plain @fastify/http-proxy",
    start: async (b) => ofChild(await startChild("./read-proxy.ts", [b[0] ?? ""])),
  },
  {
    name: "read",
    kind: "read",
    width: 1,
    ratioTo: "http-proxy",
    group: "embedded",
    about: "linearizable GET through the gateway, embedded",
    start: (b) => gateway(b, {}),
  },
  {
    name: "read-nats",
    kind: "read",
    width: 1,
    ratioTo: "http-proxy",
    group: "nats",
    about: "linearizable GET through the gateway, NATS",
    start: onNats,
  },
];

const ofChild = (child: BenchChild): Target => ({
  origin: `http://127.0.0.1:${String(child.ready["port"])}`,
  pids: [child.pid],
  close: () => child.close(),
});

const say = (line: string): void => void process.stderr.write(`${line}\n`);

const { values: options } = parseArgs({
  options: {
    rounds: { type: "string", default: "5" },
    seconds: { type: "string", default: "4" },
    warmup: { type: "string", default: "1" },
    connections: { type: "string", default: "1,32,256" },
    only: { type: "string" },
    list: { type: "boolean", default: false },
    out: { type: "string", default: fileURLToPath(new URL("results.json", import.meta.url)) },
  },
});

async function main(): Promise<void> {
  if (options.list) {
    for (const system of systems) process.stdout.write(`${system.name.padEnd(16)}${system.about}\n`);
    process.stdout.write(`${"rules".padEnd(16)}matching 1 rule and 1,000 rules\n`);
    return;
  }
  const wanted = options.only?.split(",") ?? null;
  const strange = wanted?.filter((name) => name !== "rules" && !systems.some((system) => system.name === name)) ?? [];
  if (strange.length > 0) {
    say(`unknown: ${strange.join(", ")}; --list shows all`);
    process.exitCode = 2;
    return;
  }
  const chosen = systems.filter((system) => wanted?.includes(system.name) ?? system.name !== "mirror-2");
  const startedAt = new Date();
  const { rows, faults } = await measureAll(chosen);
  const matching = wanted === null || wanted.includes("rules") ? benchMatch() : null;
  if (rows.length > 0) process.stdout.write(`${table(rows)}\n`);
  const verdicts = [...judge(rows), ...faults];
  for (const verdict of verdicts) process.stdout.write(`${verdict}\n`);
  if (matching !== null)
    process.stdout.write(
      `matching: ${matching.nsOf1.toFixed(0)} ns with 1 rule, ${matching.nsOf1000.toFixed(0)} ns with 1,000\n`,
    );
  const facts = {
    command: `npm run bench -- ${process.argv.slice(2).join(" ")}`.trim(),
    startedAt: startedAt.toISOString(),
    seconds: Number(options.seconds),
    rounds: Number(options.rounds),
    node: process.version,
    cores: cpus().length,
    cpu: cpus()[0]?.model ?? "",
    memoryBytes: totalmem(),
    loadBefore: loadBefore[0],
    commit: commit(),
    nginx: nginxVersion(),
    systems: chosen.map(({ name, about }) => ({ name, about })),
    rows,
    verdicts,
    matching,
  };
  await writeFile(options.out, `${JSON.stringify(facts, null, 2)}\n`);
  say(`written: ${options.out}`);
}

const loadBefore = loadavg();

async function measureAll(chosen: readonly System[]): Promise<{ rows: Row[]; faults: string[] }> {
  if (chosen.length === 0) return { rows: [], faults: [] };
  const backends = await Promise.all([0, 1, 2].map(() => startChild("./backend.ts")));
  const origins = backends.map((backend) => `http://127.0.0.1:${String(backend.ready["port"])}`);
  const load = await startChild("./load.ts");
  const targets = new Map<string, Target | null>();
  const samples = new Map<string, Sample[]>();
  const faults: string[] = [];
  const widths = options.connections.split(",").map(Number);
  try {
    for (const system of chosen) {
      if (!targets.has(system.group)) targets.set(system.group, await system.start(origins));
    }
    const running = chosen.filter((system) => targets.get(system.group) !== null);
    for (let round = 0; round < Number(options.rounds); round += 1) {
      for (const connections of widths) {
        // Every second round backwards: whoever comes after a heavy neighbour is not always the same.
        for (const system of round % 2 === 0 ? running : [...running].reverse()) {
          const target = targets.get(system.group);
          if (!target) continue;
          const { sample, fault } = await measure(system, target, connections, load, backends);
          if (fault !== null) faults.push(`round ${round}, ${system.name} at ${connections}: ${fault}`);
          const id = `${system.name} ${connections}`;
          samples.set(id, [...(samples.get(id) ?? []), sample]);
          say(
            `round ${round} ${id}: ${sample.perSecond.toFixed(0)}/s p50 ${(sample.p50Us / 1000).toFixed(2)} p99 ${(sample.p99Us / 1000).toFixed(2)}${fault === null ? "" : ` FAULT ${fault}`}`,
          );
        }
      }
    }
    const rows = widths.flatMap((connections) =>
      running.map((system) => {
        const yardstick = system.ratioTo === null ? undefined : samples.get(`${system.ratioTo} ${connections}`);
        return rowOf(
          system.name,
          connections,
          samples.get(`${system.name} ${connections}`) ?? [],
          system.ratioTo === null || yardstick === undefined ? null : { name: system.ratioTo, samples: yardstick },
        );
      }),
    );
    return { rows, faults };
  } finally {
    for (const target of targets.values()) await target?.close();
    for (const child of [...backends, load]) await child.close();
  }
}

async function measure(
  system: System,
  target: Target,
  connections: number,
  load: BenchChild,
  backends: readonly BenchChild[],
): Promise<{ sample: Sample; fault: string | null }> {
  const before = await counted(backends);
  let cpuAtStart = 0;
  let cpuUsed = 0;
  const command: LoadCommand = {
    origin: target.origin,
    connections,
    warmupMs: Number(options.warmup) * 1000,
    measureMs: Number(options.seconds) * 1000,
    kind: system.kind,
  };
  const result = (await load.ask(command, (phase) => {
    if (phase === "measuring") cpuAtStart = cpuMs(target.pids);
    else cpuUsed = cpuMs(target.pids) - cpuAtStart;
  })) as unknown as LoadResult & { firstError: string };
  const faults: string[] = [];
  if (result.errors > 0) faults.push(`${result.errors} connection errors (${result.firstError})`);
  if (Object.keys(result.others).length > 0) faults.push(`other statuses ${JSON.stringify(result.others)}`);
  const missing = await notCounted(system, result, before, backends);
  if (missing !== null) faults.push(missing);
  return {
    sample: {
      perSecond: result.perSecond,
      p50Us: result.p50Us,
      p99Us: result.p99Us,
      cpuUsPerRequest: target.pids.length === 0 ? null : (cpuUsed * 1000) / result.requests,
    },
    fault: faults.length === 0 ? null : faults.join("; "),
  };
}

type Counts = readonly { readonly safe: number; readonly unsafe: number }[];

const counted = async (backends: readonly BenchChild[]): Promise<Counts> =>
  (await Promise.all(backends.map((backend) => backend.ask({})))) as unknown as Counts;

/** Whoever leaves work out is not measured: each request must have reached as many backends as it should, also those answered late. */
async function notCounted(
  system: System,
  result: LoadResult,
  before: Counts,
  backends: readonly BenchChild[],
): Promise<string | null> {
  const end = performance.now() + 10_000;
  const wanted = result.sent * system.width;
  // Ends when all arrived or after ten seconds.
  for (;;) {
    const after = await counted(backends);
    const of = (row: Counts[number] | undefined): number => (system.kind === "read" ? row?.safe : row?.unsafe) ?? 0;
    const reached = after.reduce((sum, row, i) => sum + of(row) - of(before[i]), 0);
    if (reached === wanted) return null;
    if (performance.now() > end) return `the backends counted ${reached} requests instead of ${wanted}`;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** What the table means. */
function judge(rows: readonly Row[]): string[] {
  const verdicts: string[] = [];
  for (const connections of new Set(rows.map((row) => row.connections))) {
    const of = (name: string): Row | undefined => rows.find((r) => r.system === name && r.connections === connections);
    const bare = of("bare");
    for (const name of ["mirror", "mirror-2", "mirror-plain"]) {
      const row = of(name);
      if (!bare || !row) continue;
      verdicts.push(
        bare.perSecond > row.perSecond
          ? `at ${connections}: the bare fan-out beats nginx ${name} (${(bare.perSecond / row.perSecond).toFixed(2)} times)`
          : `at ${connections}: VOID, the bare fan-out does not beat nginx ${name} (${(bare.perSecond / row.perSecond).toFixed(2)} times)`,
      );
    }
    const aims: readonly (readonly [string, number])[] = [
      ["embedded", 0.8],
      ["nats", 0.6],
      ["read", 1],
      ["read-nats", 1],
    ];
    for (const [name, aim] of aims) {
      const row = of(name);
      if (!row || row.ratio === null) continue;
      verdicts.push(
        `at ${connections}: ${name} ${row.ratio.toFixed(2)} of ${row.ratioTo}, aim ${aim}: ${row.ratio >= aim ? "met" : "MISSED"}`,
      );
    }
  }
  return verdicts;
}

function commit(): string {
  try {
    return execFileSync("git", ["describe", "--always", "--dirty"], { encoding: "utf8" }).trim();
  } catch {
    return "unknown";
  }
}

function nginxVersion(): string | null {
  const nginx = findNginx();
  return nginx === null ? null : execFileSync("sh", ["-c", `${nginx} -v 2>&1`], { encoding: "utf8" }).trim();
}

await main();
