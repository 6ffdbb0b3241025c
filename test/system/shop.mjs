// A small stateful service that knows nothing of the gateway: state per key, and a journal of every request it executed.
// PORT and STATE_DIR (and SHOP_FAULT) come from the environment. State and journal are one file, written before the answer, read again at start.
//
// SHOP_ROLE=none leaves the role out of the journal: then equal executions are equal files.
//
//   PUT /r/:k {…}   sets      POST /c/:k/add {by}   counts (any other first segment does, too)      GET /r/:k  GET /c/:k   read
//   /u/:k/add counts as well; GET /u/:k is 404 until then, PUT /u/:k {total} and DELETE /u/:k put back what it was
//   GET /probe?id=X   GET /witness   GET /health   GET /ws (echo)      POST /poison  ends the process
//   POST /fault {…}   see `fault` below; not through the gateway

import { createHash } from "node:crypto";
import { mkdirSync, openSync, readFileSync, writeSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";

const folder = process.env["STATE_DIR"] ?? ".";
mkdirSync(folder, { recursive: true });
const file = join(folder, "journal.jsonl");
const hasRole = process.env["SHOP_ROLE"] !== "none";
const state = { r: {}, c: {} };
const applied = new Set();
for (const line of read(file).split("\n")) if (line !== "") apply(JSON.parse(line));
const journal = openSync(file, "a");

/** What the next requests meet. `left`: so many of them (absent: all). `only`: requests whose target contains it. */
const none = { beforeMs: 0, afterMs: 0, kind: "none", left: Infinity, only: "" };
let fault = { ...none, ...JSON.parse(process.env["SHOP_FAULT"] ?? "{}") };
let served = 0;
let inside = 0;

function read(path) {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

function apply(row) {
  applied.add(row.id);
  if (row.kind === "set") state.r[row.k] = { v: row.v, id: row.id, position: row.position };
  else if (row.kind === "add") state.c[row.k] = (state.c[row.k] ?? 0) + row.by;
  else if (row.kind === "put-back" && row.total === null) delete state.c[row.k];
  else if (row.kind === "put-back") state.c[row.k] = row.total;
}

const execute = (row) => {
  // One write(2): a kill -9 leaves the line whole or not at all.
  writeSync(journal, `${JSON.stringify(row)}\n`);
  apply(row);
};

const later = (ms) => (ms > 0 ? new Promise((resolve) => setTimeout(resolve, ms)) : null);
const jitter = (ms) => ms * (0.5 + Math.random());

const server = createServer({ keepAliveTimeout: 120_000, requestTimeout: 0 }, (request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("error", () => {});
  request.on("end", () => void handle(request, response, Buffer.concat(chunks).toString()));
});

async function handle(request, response, text) {
  const url = new URL(request.url, "http://shop");
  const answer = (status, value) => {
    const bytes = Buffer.from(JSON.stringify(value));
    response.writeHead(status, { "content-type": "application/json", "content-length": bytes.length });
    response.end(bytes);
  };
  switch (url.pathname) {
    case "/health":
      answer(200, { ok: true });
      break;
    case "/fault":
      fault = { ...none, ...JSON.parse(text) };
      answer(200, { ok: true });
      break;
    case "/facts":
      answer(200, { served, inside, executed: applied.size, rss: process.memoryUsage().rss });
      break;
    case "/probe":
      answer(200, { applied: applied.has(url.searchParams.get("id")) });
      break;
    case "/witness":
      answer(200, { state: witness() });
      break;
    default:
      served += 1;
      inside += 1;
      await serve(request, url, text, answer);
      inside -= 1;
  }
}

async function serve(request, url, text, answer) {
  const hit = fault.left > 0 && request.url.includes(fault.only) ? fault : none;
  if (hit.kind !== "none") fault.left -= 1;
  const { socket } = request;
  await later(jitter(hit.beforeMs));
  if (hit.kind === "hang") return;
  if (hit.kind === "reset") socket.resetAndDestroy();
  else if (hit.kind === "garbage")
    socket.end("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n\0\0\0");
  else if (hit.kind === "noise") socket.end("\x16\x03\x01 this is not HTTP at all\r\n\r\n");
  else if (hit.kind === "refuse") answer(500, { error: "as told" });
  else if (request.method === "GET" || request.method === "HEAD") look(url, answer);
  else {
    const row = rowOf(request, url, text);
    execute(row);
    await later(jitter(hit.afterMs));
    if (hit.kind === "hang-after") return;
    if (hit.kind === "reset-after") socket.resetAndDestroy();
    else if (hit.kind === "differ") answer(418, { error: "I am different" });
    else if (row.kind === "set") answer(200, { k: row.k, v: row.v });
    else if (row.kind === "put-back") answer(200, {});
    else answer(200, { k: row.k, id: row.id, by: row.by });
  }
}

function look(url, answer) {
  const [, kind, k] = url.pathname.split("/");
  if (kind === "r") answer(state.r[k] ? 200 : 404, { k, ...state.r[k] });
  else if (kind === "c") answer(200, { k, total: state.c[k] ?? 0 });
  else if (kind === "u" && k in state.c) answer(200, { total: state.c[k] });
  else answer(404, { error: "no such thing" });
}

function rowOf(request, url, text) {
  const [, kind, k] = url.pathname.split("/");
  if (kind === "poison") process.kill(process.pid, "SIGKILL");
  const body = text === "" ? {} : JSON.parse(text);
  const isPutBack = kind === "u" && request.method !== "POST";
  return {
    id: url.searchParams.get("id") ?? "",
    position: Number(request.headers["replication-position"] ?? -1),
    key: request.headers["idempotency-key"] ?? null,
    role: hasRole ? (request.headers["replication-role"] ?? null) : null,
    kind: kind === "r" ? "set" : isPutBack ? "put-back" : "add",
    k,
    v: body.v,
    by: body.by ?? 1,
    ...(isPutBack ? { total: body.total ?? null } : {}),
  };
}

const sorted = (map) => Object.entries(map).sort(([a], [b]) => (a < b ? -1 : 1));

/** Equal on copies with equal state, in whatever order independent keys were written. */
function witness() {
  return createHash("sha256")
    .update(JSON.stringify([sorted(state.r), sorted(state.c)]))
    .digest("hex");
}

server.on("upgrade", (request, socket, head) => {
  const accept = createHash("sha1")
    .update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
    .digest("base64");
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
  );
  let bytes = head;
  socket.on("error", () => {});
  const take = (chunk) => {
    bytes = Buffer.concat([bytes, chunk]);
    // Small frames of a client, each masked: unmask, send back, and answer a close with a close.
    while (bytes.length >= 6) {
      const size = bytes[1] & 0x7f;
      if (size > 125 || bytes.length < 6 + size) return;
      const mask = bytes.subarray(2, 6);
      const payload = Buffer.from(bytes.subarray(6, 6 + size).map((byte, i) => byte ^ mask[i % 4]));
      socket.write(Buffer.concat([Buffer.from([bytes[0], size]), payload]));
      if ((bytes[0] & 0x0f) === 8) socket.end();
      bytes = bytes.subarray(6 + size);
    }
  };
  take(Buffer.alloc(0));
  socket.on("data", take);
});

process.on("SIGTERM", () => process.exit(0));
server.listen(Number(process.env["PORT"] ?? 0), "127.0.0.1", 1024, () => {
  process.stdout.write(`${JSON.stringify({ port: server.address().port })}\n`);
});
