// A key-value service that knows nothing of the gateway. Its state is its journal: one row a request that it executed, synced before the answer,
// read again at the start. Registers, lists and counters come about by what is done to them. PORT and STATE_DIR come from the environment.
//
//   GET PUT DELETE /kv/:k {value}   POST /kv/:k/cas {expected, value}   POST /kv/:k/append {value}   POST /kv/:k/incr {by}
//   GET POST /total/:k…             the same, under paths of their own
//   GET /probe?id=X                 was it executed         GET /root    a hash of the state         GET /health
//   GET PUT /dump                   the rows, equal wherever the state is: sorted by position, without what differs between copies
//   POST /fault {…}                 see `fault` below; not through the gateway

import { createHash } from "node:crypto";
import {
  closeSync,
  fdatasync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeSync,
} from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";

const folder = process.env["STATE_DIR"] ?? ".";
mkdirSync(folder, { recursive: true });
const path = join(folder, "journal.jsonl");

let rows = [];
let values = new Map();
let ids = new Set();
let file = open(read(path));

/** What the next requests meet, until it is set again. `kind`: see `spoil`. `writesOnly`: reads are answered as ever. */
let fault = { kind: "none", ms: 0, writesOnly: false };

function read(from) {
  try {
    const text = readFileSync(from, "utf8");
    return text.slice(0, text.lastIndexOf("\n") + 1);
  } catch {
    return "";
  }
}

/** Takes over what the rows say; returns where to go on writing. */
function open(text) {
  rows = [];
  values = new Map();
  ids = new Set();
  for (const line of text.split("\n")) if (line !== "") remember(JSON.parse(line));
  return openSync(path, "a");
}

function remember(row) {
  rows.push(row);
  ids.add(row.id);
  return apply(row);
}

/** The same rows in the same order give the same state and the same answers. */
function apply({ verb, k, value, expected }) {
  const current = values.get(k) ?? null;
  switch (verb) {
    case "put":
      values.set(k, value);
      return [200, { k, value }];
    case "delete":
      values.delete(k);
      return [200, { k }];
    case "cas":
      if (current !== expected) return [409, { k, value: current }];
      values.set(k, value);
      return [200, { k, value }];
    case "append": {
      const list = [...(current ?? []), value];
      values.set(k, list);
      return [200, { k, length: list.length }];
    }
    case "incr": {
      const total = (current ?? 0) + value;
      values.set(k, total);
      return [200, { k, total }];
    }
    default:
      return [404, { error: `nothing is called ${verb}` }];
  }
}

// ---- durability: rows are written at once, so that a kill -9 keeps them, and answered when a sync that began after them has ended ------------

let unsynced = [];
let isSyncing = false;

function whenSynced() {
  return new Promise((resolve, reject) => {
    unsynced.push({ resolve, reject });
    if (!isSyncing) sync();
  });
}

function sync() {
  const waiting = unsynced;
  unsynced = [];
  isSyncing = true;
  fdatasync(file, (error) => {
    isSyncing = false;
    for (const { resolve, reject } of waiting)
      if (error) reject(error);
      else resolve();
    if (unsynced.length > 0) sync();
  });
}

// ---- requests --------------------------------------------------------------------------------------------------------------------------------

const server = createServer({ keepAliveTimeout: 120_000, requestTimeout: 0 }, (request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("error", () => {});
  request.on("end", () => {
    handle(request, response, Buffer.concat(chunks)).catch((error) => {
      process.stderr.write(`${error.stack}\n`);
      process.exit(1);
    });
  });
});

async function handle(request, response, body) {
  const url = new URL(request.url, "http://kv");
  const answer = (status, value) => {
    const bytes = Buffer.isBuffer(value) ? value : Buffer.from(JSON.stringify(value));
    response.writeHead(status, { "content-type": "application/json", "content-length": bytes.length });
    response.end(bytes);
  };
  switch (`${request.method} ${url.pathname}`) {
    case "GET /health":
      return answer(200, { rows: rows.length });
    case "GET /root":
      return answer(200, { root: rootOf() });
    case "GET /probe":
      return answer(200, { applied: ids.has(url.searchParams.get("id")) });
    case "GET /dump":
      return answer(200, Buffer.from(dump()));
    case "PUT /dump":
      replace(body.toString());
      return answer(200, {});
    case "POST /fault":
      fault = JSON.parse(body.toString());
      return answer(200, {});
    default:
      return serve(request, url, body.toString(), answer);
  }
}

async function serve(request, url, text, answer) {
  const isRead = request.method === "GET";
  const { kind, ms } = fault.writesOnly && isRead ? { kind: "none", ms: 0 } : fault;
  if (kind === "slow") await new Promise((resolve) => setTimeout(resolve, ms));
  if (kind === "reset") request.socket.resetAndDestroy();
  if (kind === "hang" || kind === "reset") return;
  const [, , k, action] = url.pathname.split("/");
  if (isRead) {
    const value = values.get(k) ?? null;
    spoil(kind, request.socket, answer, value === null ? 404 : 200, { k, value });
    return;
  }
  const row = rowOf(request, url, k, action, text === "" ? {} : JSON.parse(text));
  writeSync(file, `${JSON.stringify(row)}\n`);
  const [status, value] = remember(row);
  await whenSynced();
  spoil(kind, request.socket, answer, status, value);
}

function spoil(kind, socket, answer, status, value) {
  switch (kind) {
    case "reset-after":
      return socket.resetAndDestroy();
    case "hang-after":
      return undefined;
    case "garbage":
      return socket.end("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n\0\0\0");
    case "noise":
      return socket.end("\x16\x03\x01 this is not HTTP\r\n\r\n");
    case "half":
      return socket.end("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
    case "differ":
      return answer(418, { error: "different" });
    default:
      return answer(status, value);
  }
}

function rowOf(request, url, k, action, body) {
  return {
    id: url.searchParams.get("id") ?? "",
    position: Number(request.headers["replication-position"] ?? -1),
    key: request.headers["idempotency-key"] ?? null,
    role: request.headers["replication-role"] ?? null,
    verb: action ?? request.method.toLowerCase(),
    k,
    value: action === "incr" ? body.by : (body.value ?? null),
    expected: body.expected ?? null,
  };
}

// ---- state as a whole ------------------------------------------------------------------------------------------------------------------------

function rootOf() {
  const state = [...values].sort(([a], [b]) => (a < b ? -1 : 1));
  return createHash("sha256").update(JSON.stringify(state)).digest("hex");
}

/** A PUT or DELETE that was executed twice left the same state: one row of it is enough. */
function dump() {
  const seen = new Set();
  const lines = [];
  for (const row of rows.toSorted((a, b) => a.position - b.position)) {
    const isRepeated = (row.verb === "put" || row.verb === "delete") && seen.has(row.position);
    seen.add(row.position);
    if (!isRepeated) lines.push(`${JSON.stringify({ ...row, role: null })}\n`);
  }
  return lines.join("");
}

/** What was there before stays beside it, for who wants to see what was executed. */
function replace(text) {
  const fresh = join(folder, "journal.new");
  const writing = openSync(fresh, "w");
  writeSync(writing, text);
  fsyncSync(writing);
  closeSync(writing);
  closeSync(file);
  const past = readdirSync(folder).filter((name) => name.startsWith("past-")).length;
  renameSync(path, join(folder, `past-${past}.jsonl`));
  renameSync(fresh, path);
  file = open(text);
}

process.on("SIGTERM", () => process.exit(0));
server.listen(Number(process.env["PORT"] ?? 0), "127.0.0.1", 1024);
