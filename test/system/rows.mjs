// A small backend that keeps its rows in PostgreSQL, in a database that it is told the name of, and asks psql for everything. Knows nothing of the gateway.
//
//   PORT=3000 PSQL=/usr/bin/psql PGHOST=… node rows.mjs DATABASE
//
//   POST /rows {"text"}   GET /rows   GET /health

import { execFile } from "node:child_process";
import { createServer } from "node:http";
import { promisify } from "node:util";

const [database] = process.argv.slice(2);
const { PORT: port = "0", PSQL: psql = "psql" } = process.env;
const run = promisify(execFile);

async function query(sql) {
  const options = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql];
  return (await run(psql, options, { maxBuffer: 16 << 20 })).stdout;
}

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

async function answerTo(method, path, body) {
  if (path === "/health") return [200, "{}\n"];
  if (path !== "/rows") return [404, "{}\n"];
  if (method === "GET") return [200, await query("select coalesce(json_agg(r order by id), '[]') from rows r")];
  const inserted = await query(`insert into rows (text) values (${quoted(JSON.parse(body).text)}) returning id`);
  return [201, JSON.stringify({ id: Number(inserted) })];
}

const server = createServer({ keepAliveTimeout: 75_000 }, (request, response) => void serve(request, response));

async function serve(request, response) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const [path] = request.url.split("?", 1);
  const [status, text] = await answerTo(request.method, path, Buffer.concat(chunks).toString()).catch((error) => [
    500,
    JSON.stringify({ error: error.message }),
  ]);
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text) });
  response.end(text);
}

await query("set client_min_messages = warning; create table if not exists rows (id bigserial primary key, text text)");
server.listen(Number(port), "127.0.0.1");
process.once("SIGTERM", () => process.exit(0));
