// The bundled demo: a small shop with customer accounts and orders, as one might write it in an afternoon. It uses node:http and a file, and
// knows nothing of gateways or copies. What makes it easy to replicate: ids are counted, and nothing depends on clock or chance.
//
//   PORT=3000 STATE_DIR=./shop node shop.js
//
//   POST /accounts {"owner":"ada"}               GET /accounts      GET /accounts/1
//   PUT /accounts/1 {"owner":"ada","balance":7}  DELETE /accounts/1
//   POST /accounts/1/deposits {"amount":5}       POST /transfers {"from":1,"to":2,"amount":3}
//   POST /orders {"item":"tea","count":2}        GET /orders        GET /orders/1       PUT /orders/1       GET /health

import { mkdirSync, readFileSync } from "node:fs";
import { open, rename } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";
import type { IncomingMessage } from "node:http";

interface Account {
  readonly id: number;
  readonly owner: string;
  readonly balance: number;
}

interface Order {
  readonly id: number;
  readonly item: string;
  readonly count: number;
}

interface State {
  accounts: Table<Account>;
  orders: Table<Order>;
}

interface Table<Row> {
  lastId: number;
  rows: Record<string, Row>;
}

interface Reply {
  readonly status: number;
  readonly body?: unknown;
  readonly location?: string;
  readonly isChange?: boolean;
}

const folder = process.env["STATE_DIR"] ?? "./shop";
const file = join(folder, "shop.json");
const bodyBytesMax = 64 * 1024;
mkdirSync(folder, { recursive: true });
const state = load();
let saving: Promise<void> = Promise.resolve();
let nextSave: Promise<void> | null = null;

const server = createServer((request, response) => {
  void handle(request)
    .catch((error: unknown): Reply => {
      if (error instanceof Refusal) return { status: error.status, body: { error: error.message } };
      throw error;
    })
    .then((reply) => {
      const text = reply.body === undefined ? "" : `${JSON.stringify(reply.body)}\n`;
      response.writeHead(reply.status, {
        ...(text === "" ? null : { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) }),
        ...(reply.location === undefined ? null : { Location: reply.location }),
      });
      response.end(text);
    });
});
server.listen(Number(process.env["PORT"] ?? 3000), process.env["HOST"] ?? "127.0.0.1");
process.once("SIGTERM", () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});

async function handle(request: IncomingMessage): Promise<Reply> {
  const body = await read(request);
  const path = (request.url ?? "/").split("?", 1)[0] ?? "/";
  const [resource = "", id = "", action = ""] = path.slice(1).split("/");
  const reply = route(request.method ?? "GET", { resource, id, action, depth: path.split("/").length - 1 }, body);
  // Answered when it is on the disk; requests that come meanwhile share one write.
  if (reply.isChange === true) await save();
  return reply;
}

interface Path {
  readonly resource: string;
  readonly id: string;
  readonly action: string;
  readonly depth: number;
}

function route(method: string, path: Path, body: () => Record<string, unknown>): Reply {
  const { resource, id, action, depth } = path;
  const what = `${method} ${resource}${depth > 1 ? "/:id" : ""}${depth > 2 ? `/${action}` : ""}`;
  switch (what) {
    case "GET health":
      return { status: 200, body: { status: "ok" } };
    case "GET accounts":
      return { status: 200, body: list(state.accounts) };
    case "POST accounts":
      return create(state.accounts, "/accounts/", (id) => ({ id, owner: text(body(), "owner"), balance: 0 }));
    case "GET accounts/:id":
      return { status: 200, body: find(state.accounts, id) };
    case "PUT accounts/:id": {
      const account = find(state.accounts, id);
      const { owner = account.owner, balance = account.balance } = body();
      return replace(state.accounts, {
        id: account.id,
        owner: text({ owner }, "owner"),
        balance: count({ balance }, "balance", 0),
      });
    }
    case "DELETE accounts/:id": {
      const account = find(state.accounts, id);
      delete state.accounts.rows[account.id];
      return { status: 204, isChange: true };
    }
    case "POST accounts/:id/deposits": {
      const account = find(state.accounts, id);
      return replace(state.accounts, { ...account, balance: account.balance + count(body(), "amount", 1) });
    }
    case "POST transfers":
      return transfer(body());
    case "GET orders":
      return { status: 200, body: list(state.orders) };
    case "POST orders":
      return create(state.orders, "/orders/", (id) => order(id, body()));
    case "GET orders/:id":
      return { status: 200, body: find(state.orders, id) };
    case "PUT orders/:id":
      return replace(state.orders, order(find(state.orders, id).id, body()));
  }
  throw new Refusal(404, `there is no ${method} ${path.resource === "" ? "/" : `/${path.resource}`} here`);
}

function transfer(body: Record<string, unknown>): Reply {
  const from = find(state.accounts, String(count(body, "from", 1)));
  const to = find(state.accounts, String(count(body, "to", 1)));
  const amount = count(body, "amount", 1);
  if (from.id === to.id) throw new Refusal(400, "from and to are the same account");
  if (from.balance < amount) throw new Refusal(409, `account ${from.id} holds only ${from.balance}`);
  replace(state.accounts, { ...from, balance: from.balance - amount });
  replace(state.accounts, { ...to, balance: to.balance + amount });
  return {
    status: 200,
    body: { from: find(state.accounts, String(from.id)), to: find(state.accounts, String(to.id)) },
    isChange: true,
  };
}

const order = (id: number, body: Record<string, unknown>): Order => ({
  id,
  item: text(body, "item"),
  count: count({ count: 1, ...body }, "count", 1),
});

const list = <Row extends { readonly id: number }>(table: Table<Row>): Row[] =>
  Object.values(table.rows).sort((a, b) => a.id - b.id);

function find<Row>(table: Table<Row>, id: string): Row {
  // One spelling for each id: /accounts/01 is nobody's.
  const row = /^[1-9][0-9]*$/.test(id) ? table.rows[id] : undefined;
  if (row === undefined) throw new Refusal(404, `there is no ${id === "" ? "such thing" : id}`);
  return row;
}

function create<Row extends { readonly id: number }>(
  table: Table<Row>,
  prefix: string,
  make: (id: number) => Row,
): Reply {
  const row = make(table.lastId + 1);
  table.lastId = row.id;
  table.rows[row.id] = row;
  return { status: 201, body: row, location: `${prefix}${row.id}`, isChange: true };
}

function replace<Row extends { readonly id: number }>(table: Table<Row>, row: Row): Reply {
  table.rows[row.id] = row;
  return { status: 200, body: row, isChange: true };
}

function text(body: Record<string, unknown>, name: string): string {
  const value = body[name];
  if (typeof value !== "string" || value === "" || value.length > 200)
    throw new Refusal(400, `${name} has to be a text`);
  return value;
}

function count(body: Record<string, unknown>, name: string, least: number): number {
  const value = body[name];
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= least && value <= 1e12) return value;
  throw new Refusal(400, `${name} has to be a whole number of at least ${least}`);
}

class Refusal extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

async function read(request: IncomingMessage): Promise<() => Record<string, unknown>> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    sizeBytes += chunk.length;
    if (sizeBytes <= bodyBytesMax) chunks.push(chunk);
  }
  if (sizeBytes > bodyBytesMax) throw new Refusal(413, "the body is too large");
  return () => {
    let value: unknown;
    try {
      value = JSON.parse(Buffer.concat(chunks).toString());
    } catch {
      throw new Refusal(400, "the body is not JSON");
    }
    if (typeof value !== "object" || value === null || Array.isArray(value))
      throw new Refusal(400, "the body is not an object");
    return value as Record<string, unknown>;
  };
}

function load(): State {
  try {
    return JSON.parse(readFileSync(file, "utf8")) as State;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return { accounts: { lastId: 0, rows: {} }, orders: { lastId: 0, rows: {} } };
  }
}

/** Resolves when a write that began after this call is on the disk. */
function save(): Promise<void> {
  nextSave ??= saving.then(() => {
    saving = nextSave ?? saving;
    nextSave = null;
    return write();
  });
  return nextSave;
}

/** Whole or not at all: the same state is the same file, byte for byte, whatever way led to it. */
async function write(): Promise<void> {
  const text = JSON.stringify(state, null, 1);
  const handle = await open(`${file}.new`, "w");
  await handle.writeFile(`${text}\n`);
  await handle.sync();
  await handle.close();
  await rename(`${file}.new`, file);
  const parent = await open(folder, "r");
  await parent.sync();
  await parent.close();
}
