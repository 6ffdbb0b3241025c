// What captures and rebuilds cost, side by side in one run: the longest wait that clients see with and without a capture under way, and the rate of a replay against
// the rate at which the same entries were applied live. Prints a table. `npm run bench:recover -- --seconds 8 --clients 16`

import { join } from "node:path";
import { parseArgs } from "node:util";
import { Client } from "undici";
import type { Operation } from "../../gateway/status.ts";
import { createFolder, removeFolder } from "../helpers/folder.ts";
import { startGateway } from "../helpers/gateway.ts";
import type { Gateway } from "../helpers/gateway.ts";
import { journalBackendFile } from "../helpers/journal-backend.ts";

const { values } = parseArgs({
  options: { seconds: { type: "string", default: "8" }, clients: { type: "string", default: "16" } },
});
const seconds = Number(values.seconds);
const clientCount = Number(values.clients);

const state = createFolder("bench-recover");
const gateway = await startGateway({
  config: {
    rules: [
      { name: "add", match: "POST /c/:k/add", mode: "replicate", order: ["c:{path.k}"], retry: "safe" },
      { name: "rest", match: "* /*", mode: "replicate" },
    ],
    logs: { level: "warn", format: "json" },
    replicas: {
      count: 3,
      command: [process.execPath, journalBackendFile],
      state: join(state, "copies"),
      ready: "GET /health",
    },
    snapshots: { store: join(state, "snapshots"), every: { entries: 100_000_000 } },
  },
});
try {
  await gateway.until("version 0 is taken", 30_000, ({ snapshots }) => snapshots?.last !== null);
  await run(gateway);
} finally {
  await gateway.close();
  removeFolder(state);
}

async function run(of: Gateway): Promise<void> {
  await load(of, 1);
  const calm = await load(of, seconds);
  const capturing = load(of, seconds);
  await new Promise((resolve) => setTimeout(resolve, 500));
  const begunMs = performance.now();
  await ended(of, await begin(of, "/v1/snapshots"));
  const captureMs = performance.now() - begunMs;
  const captured = await capturing;
  await of.until("nothing is left to apply", 60_000, (status) =>
    status.replicas.every((it) => it.state === "live" && it.lag === 0),
  );
  const { log } = await of.status();
  const replay = await rebuild(of);
  const rows = [
    ["", "requests/s", "p50 ms", "p99 ms", "longest ms"],
    ["without a capture", ...figures(calm)],
    [`with one (${(captureMs / 1000).toFixed(1)} s)`, ...figures(captured)],
  ];
  for (const row of rows)
    process.stdout.write(`${row.map((cell, i) => (i === 0 ? cell.padEnd(24) : cell.padStart(12))).join("")}\n`);
  const live = calm.waits.length / seconds;
  process.stdout.write(
    `\nreplay of ${replay.entries} of ${log.entries} entries: ${Math.round(replay.perSecond)}/s, ${(replay.perSecond / live).toFixed(2)} of the live rate\n`,
  );
}

interface Load {
  readonly waits: readonly number[];
}

async function load(of: Gateway, forSeconds: number): Promise<Load> {
  const until = performance.now() + forSeconds * 1000;
  const waits: number[] = [];
  await Promise.all(
    Array.from({ length: clientCount }, async (_, client) => {
      const connection = new Client(of.front);
      for (let n = 0; performance.now() < until; n++) {
        const sentMs = performance.now();
        const answer = await connection.request({
          method: "POST",
          path: `/c/k${(client * 31 + n) % 256}/add`,
          headers: { "content-type": "application/json" },
          body: '{"by":1}',
        });
        await answer.body.dump();
        if (answer.statusCode !== 200) throw new Error(`answered ${answer.statusCode}`);
        waits.push(performance.now() - sentMs);
      }
      await connection.close();
    }),
  );
  return { waits };
}

function figures({ waits }: Load): readonly string[] {
  const sorted = waits.toSorted((a, b) => a - b);
  const at = (share: number): string =>
    (sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0).toFixed(1);
  return [String(Math.round(waits.length / seconds)), at(0.5), at(0.99), at(1)];
}

/** From version 0: all entries. The clock runs while the log is replayed, not while the state is restored. */
async function rebuild(of: Gateway): Promise<{ readonly entries: number; readonly perSecond: number }> {
  const operation = await begin(of, "/v1/replicas/r3/rebuild", { version: 0 });
  let first: { readonly atMs: number; readonly done: number } | null = null;
  let last = { atMs: 0, done: 0 };
  for (;;) {
    const { json } = await of.api("GET", `/v1/operations/${operation.id}`);
    const { state: is, progress, error } = json as Operation;
    if (is === "failed") throw new Error(JSON.stringify(error));
    if (progress?.unit === "entries") {
      last = { atMs: performance.now(), done: progress.done };
      first ??= last;
    }
    if (is === "done") break;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  if (first === null || last.atMs === first.atMs)
    throw new Error("the replay was too short to be measured: more --seconds");
  const entries = last.done - first.done;
  return { entries, perSecond: entries / ((last.atMs - first.atMs) / 1000) };
}

async function begin(of: Gateway, path: string, body: object = {}): Promise<Operation> {
  const begun = await of.api("POST", path, body);
  if (begun.status !== 202) throw new Error(begun.text);
  return begun.json as Operation;
}

async function ended(of: Gateway, { id }: Operation): Promise<void> {
  for (;;) {
    const { state: is, error } = (await of.api("GET", `/v1/operations/${id}`)).json as Operation;
    if (is === "done") return;
    if (is === "failed") throw new Error(JSON.stringify(error));
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
