// A gateway of a hundred lines that keeps its promises slowly, and breaks one of them when FAKE_BUG says so.
// It proves the harness: the ledger must accept it as it is, and must reject each bug.

import { randomUUID } from "node:crypto";
import { appendFileSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { Pool } from "undici";
import { parse } from "yaml";

const config = parse(readFileSync(process.argv[process.argv.indexOf("-c") + 1], "utf8"));
const bug = process.env["FAKE_BUG"] ?? "";
mkdirSync(config.data, { recursive: true });
const file = join(config.data, "log.jsonl");
const lines = existsSync(file) ? readFileSync(file, "utf8").split("\n") : [];
const log = lines.filter((line) => line !== "").map((line) => JSON.parse(line));
const replicas = config.replicas.map(({ name, url }) => ({ name, pool: new Pool(url), applied: 0, state: "starting" }));
const byKey = new Map(log.filter((entry) => entry.key).map((entry) => [entry.key, entry]));
const waiting = new Map();
let isReady = false;

/** One loop a replica: the log from its beginning, skipping what a probe says was done by an earlier life. */
async function feed(replica) {
  const old = log.length;
  for (let i = 0; ; i += 1) {
    while (i >= log.length) await new Promise((resolve) => setTimeout(resolve, 1));
    const entry = log[i];
    if (i < old && (bug !== "double" || i < old - 20)) {
      const { body } = await replica.pool.request({ method: "GET", path: `/probe?id=${entry.id}` });
      if ((await body.json()).applied) {
        done(entry);
        continue;
      }
    }
    if (bug === "skip" && replica.name === "b" && i % 50 === 49) continue;
    const answer = await replica.pool.request({
      method: entry.method,
      path: entry.target,
      headers: {
        "content-type": "application/json",
        "replication-position": String(entry.position),
        ...(entry.key && bug !== "keyless" ? { "idempotency-key": entry.key } : {}),
      },
      body: entry.body,
    });
    const bytes = Buffer.from(await answer.body.arrayBuffer());
    entry.answer ??= { status: answer.statusCode, type: answer.headers["content-type"], bytes };
    tell(entry);
    replica.applied = entry.position;
    replica.state = "live";
    if (i >= old - 1) isReady = true;
  }
}

/** Executed in an earlier life: when no replica executes it in this one, its answer is lost. */
function done(entry) {
  entry.done = (entry.done ?? 0) + 1;
  if (entry.done < replicas.length || entry.answer) return;
  const bytes = Buffer.from(JSON.stringify({ status: 503, code: "GW_ANSWER_LOST" }));
  entry.answer = { status: 503, type: "application/problem+json", bytes };
  tell(entry);
}

function tell(entry) {
  for (const resolve of waiting.get(entry.position) ?? []) resolve();
  waiting.delete(entry.position);
}

function front(request, response) {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("error", () => {});
  request.on("end", async () => {
    const key = request.headers["idempotency-key"];
    if (bug === "refuse" && Math.random() < 0.25) {
      append(request, Buffer.concat(chunks), key);
      return problem(response, 503, "GW_OVERLOADED", "not-executed");
    }
    if (Math.random() < 0.02) return problem(response, 503, "GW_OVERLOADED", "not-executed");
    const known = key ? byKey.get(key) : undefined;
    const entry = known ?? append(request, Buffer.concat(chunks), key);
    if (bug === "lose" && !known && Math.random() < 0.02) {
      log.pop();
      entry.answer = { status: 200, type: "application/json", bytes: Buffer.from("{}") };
    }
    if (!entry.answer) {
      await new Promise((resolve) => waiting.set(entry.position, [...(waiting.get(entry.position) ?? []), resolve]));
    }
    const { status, type } = entry.answer;
    const bytes = bug === "answers" && known ? Buffer.from(randomUUID()) : entry.answer.bytes;
    response.writeHead(status, {
      "content-type": type,
      "content-length": bytes.length,
      "replication-outcome": "executed",
      "replication-position": `${entry.position}@fa4e`,
      ...(known ? { "idempotency-replayed": "true" } : {}),
    });
    response.end(bytes);
  });
}

function append(request, body, key) {
  const entry = {
    position: (log.length + 1) * 4096,
    method: request.method,
    target: request.url,
    id: new URL(request.url, "http://x").searchParams.get("id"),
    key: key ?? null,
    body: body.toString(),
  };
  const at = bug === "reorder" && log.length % 40 === 39 ? Math.max(0, log.length - 1) : log.length;
  log.splice(at, 0, entry);
  appendFileSync(file, `${JSON.stringify(entry)}\n`);
  if (key) byKey.set(key, entry);
  return entry;
}

function problem(response, status, code, outcome) {
  const body = JSON.stringify({ status, code, title: code });
  response.writeHead(status, { "content-type": "application/problem+json", "replication-outcome": outcome });
  response.end(body);
}

function admin(request, response) {
  const rows = replicas.map(({ name, state, applied }) => ({ name, state, applied, lag: 0 }));
  const status = { tail: log.length * 4096, replicas: rows };
  response.writeHead(request.url !== "/readyz" || isReady || log.length === 0 ? 200 : 503);
  response.end(JSON.stringify(request.url === "/v1/unknown" ? [] : status));
}

const port = (address) => Number(address.split(":")[1]);
process.on("SIGTERM", () => process.exit(0));
for (const replica of replicas) void feed(replica);
createServer(front).listen(port(config.listen), "127.0.0.1");
createServer(admin).listen(port(config.admin.listen), "127.0.0.1");
