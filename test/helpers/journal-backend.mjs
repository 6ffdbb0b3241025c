// A backend that keeps a journal of everything it executed, one write(2) a row BEFORE the answer, so that a test can count executions after
// any crash. State is what the journal says: after kill -9 it is read again. Plain JavaScript, so that it starts fast. Environment:
//   PORT (default: any), STATE_DIR, FSYNC=1 (fdatasync each row), JOURNAL_READS=1 (rows for GET and HEAD too)
//
//   PUT /r/K <value>  GET /r/K  DELETE /r/K  POST /r/K/cas {"expected","value"}  POST /r/K/append {"value"}
//   POST /c/K/add {"by"}  GET /c/K  GET /state (witness)  GET /probe?position=P  GET /journal?from=N  GET /health
//   any of them: ?delay=MS (before it is executed) ?answerDelay=MS (after)
// Not journaled, for the test alone:
//   POST /fault {"kind", "times"?, "method"?, "path"?, "ms"?}  GET /fault  DELETE /fault

import { createHash } from "node:crypto";
import { fdatasyncSync, mkdirSync, openSync, readFileSync, truncateSync, writeSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const folder = process.env.STATE_DIR ?? ".";
const isSynced = process.env.FSYNC === "1";
const journalsReads = process.env.JOURNAL_READS === "1";
mkdirSync(folder, { recursive: true });
const path = join(folder, "journal.jsonl");

const rows = [];
const registers = new Map();
const counters = new Map();
const positions = new Set();
let faults = [];

for (const row of readJournal()) {
  execute(row);
  remember(row);
}
const file = openSync(path, "a");

const server = createServer((request, response) => {
  void answer(request, response).catch((error) => {
    if (!response.headersSent) send(response, 500, { error: String(error) });
  });
});
// Longer than any gateway keeps its idle connections.
server.keepAliveTimeout = 75_000;
server.listen(Number(process.env.PORT ?? 0), process.env.HOST ?? "127.0.0.1", () => {
  process.stdout.write(`listening ${server.address().port}\n`);
});
process.once("SIGTERM", () => process.exit(0));

async function answer(request, response) {
  const url = new URL(request.url, "http://x");
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks);
  if (url.pathname === "/fault") {
    armFault(request.method, body, response);
    return;
  }
  const fault = takeFault(request.method, url.pathname) ?? { kind: "none" };
  const parameter = (name) => Number(url.searchParams.get(name) ?? 0);
  if (url.pathname === "/health") send(response, fault.kind === "unhealthy" ? 503 : 200, { rows: rows.length });
  else if (url.pathname === "/probe") send(response, 200, { applied: positions.has(parameter("position")) });
  else if (url.pathname === "/journal") send(response, 200, rows.slice(parameter("from")));
  else if (url.pathname === "/state") send(response, 200, stateOf());
  else {
    await sleep(parameter("delay"));
    if (fault.kind === "slow") await sleep(fault.ms);
    if (failBefore(fault, request, response)) return;
    const result = journaled(rowOf(request, url, body, fault), fault);
    await sleep(parameter("answerDelay"));
    if (fault.kind === "slow-after") await sleep(fault.ms);
    if (failAfter(fault, request)) return;
    send(
      response,
      result.status,
      fault.kind === "different" ? { ...result.body, different: process.pid } : result.body,
    );
  }
}

/** True: there will be no answer, or there was one; nothing is executed. */
function failBefore({ kind, status }, request, response) {
  if (kind === "exit-before") process.kill(process.pid, "SIGKILL");
  if (kind === "reset-before") request.socket.resetAndDestroy();
  if (kind === "status") send(response, status, { error: "armed" });
  return ["hang", "reset-before", "exit-before", "status"].includes(kind);
}

/** True: there will be no good answer, although it was executed. */
function failAfter({ kind }, request) {
  if (kind === "exit-after") process.kill(process.pid, "SIGKILL");
  if (kind === "reset-after") request.socket.resetAndDestroy();
  if (kind === "garbage") request.socket.end("\u0000\u0001 this is not HTTP\r\n\r\n");
  if (kind === "half") request.socket.end("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
  return ["hang-after", "reset-after", "exit-after", "garbage", "half"].includes(kind);
}

function journaled(row, { kind }) {
  if (kind === "lose") return { status: 200, body: {} };
  const result = execute(row);
  const isRead = row.method === "GET" || row.method === "HEAD";
  if (!isRead || journalsReads) {
    append(row);
    remember(row);
  }
  return result;
}

/** Deterministic: the same rows in the same order give the same state and the same results. */
function execute({ method, path: target, value }) {
  const [, kind, key, action] = target.split("?", 1)[0].split("/");
  if (kind === "r" && key !== undefined) {
    const current = registers.get(key);
    if (method === "GET" || method === "HEAD") return current ? ok(key, current) : missing();
    if (method === "DELETE") return registers.delete(key) ? { status: 200, body: { key } } : missing();
    if (method === "PUT") return ok(key, set(key, value));
    if (action === "cas") {
      const isEqual = JSON.stringify(current?.value ?? null) === JSON.stringify(value?.expected ?? null);
      return isEqual
        ? ok(key, set(key, value?.value ?? null))
        : { status: 409, body: { key, value: current?.value ?? null } };
    }
    if (action === "append")
      return ok(key, set(key, [...(Array.isArray(current?.value) ? current.value : []), value?.value ?? null]));
  }
  if (kind === "c" && key !== undefined) {
    if (method === "GET" || method === "HEAD") return { status: 200, body: { key, value: counters.get(key) ?? 0 } };
    if (method === "POST" && action === "add") {
      counters.set(key, (counters.get(key) ?? 0) + Number(value?.by ?? 1));
      return { status: 200, body: { key, value: counters.get(key) } };
    }
  }
  // Anything else is journaled and answered: routes do not matter to most tests.
  return { status: method === "GET" ? 404 : 200, body: { method, path: target } };
}

function ok(key, { value, version }) {
  return { status: 200, body: { key, value, version } };
}

function missing() {
  return { status: 404, body: { error: "not found" } };
}

function set(key, value) {
  const register = { value, version: (registers.get(key)?.version ?? 0) + 1 };
  registers.set(key, register);
  return register;
}

function stateOf() {
  return { registers: sorted(registers), counters: sorted(counters) };
}

function sorted(map) {
  return Object.fromEntries([...map].sort(([a], [b]) => (a < b ? -1 : 1)));
}

function rowOf(request, url, body, fault) {
  const header = (name) => request.headers[name] ?? null;
  const position = header("replication-position");
  return {
    n: rows.length,
    position: position === null ? null : Number(position),
    method: request.method,
    path: url.pathname + url.search,
    bodyHash: createHash("sha256").update(body).digest("hex"),
    value: fault.kind === "wrong" ? { wrong: process.pid } : parse(body),
    role: header("replication-role"),
    key: header("idempotency-key"),
    time: header("replication-time"),
    seed: header("replication-seed"),
  };
}

function parse(body) {
  if (body.length === 0) return null;
  try {
    return JSON.parse(body.toString());
  } catch {
    return body.toString();
  }
}

function append(row) {
  writeSync(file, `${JSON.stringify(row)}\n`);
  if (isSynced) fdatasyncSync(file);
}

function remember(row) {
  rows.push(row);
  if (row.position !== null) positions.add(row.position);
}

function readJournal() {
  let text = "";
  try {
    text = readFileSync(path, "utf8");
  } catch {
    return [];
  }
  const end = text.lastIndexOf("\n") + 1;
  // A row that was torn by a power cut was never answered.
  if (end < text.length) truncateSync(path, Buffer.byteLength(text.slice(0, end)));
  return text
    .slice(0, end)
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line));
}

function armFault(method, body, response) {
  if (method === "POST") faults.push({ times: 1, ms: 1_000, status: 503, ...JSON.parse(body.toString()) });
  if (method === "DELETE") faults = [];
  send(response, 200, faults);
}

/** The first that matches; `times: 0` stays armed. */
function takeFault(method, pathname) {
  const i = faults.findIndex((fault) => {
    // Health is only touched by what names it.
    if (fault.kind === "unhealthy" || pathname === "/health")
      return fault.kind === "unhealthy" && pathname === "/health";
    if (["/journal", "/state", "/probe"].includes(pathname) && fault.path === undefined) return false;
    return (fault.method ?? method) === method && pathname.startsWith(fault.path ?? "/");
  });
  if (i < 0) return null;
  const fault = faults[i];
  if (fault.times > 0 && (fault.times -= 1) === 0) faults.splice(i, 1);
  return fault;
}

function send(response, status, body) {
  const text = JSON.stringify(body);
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text) });
  response.end(text);
}
