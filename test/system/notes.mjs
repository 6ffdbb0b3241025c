// A small backend whose state can be had in several ways: a list of notes, in a file that is whole before the answer, or in memory alone.
// Knows nothing of the gateway. Plain JavaScript, so that it starts fast. Equal states are equal files and equal dumps.
//
//   PORT=3000 node notes.mjs [FILE]      without a file it has forgotten everything when it ends
//   LIVES_WITH=PID                       ends when that process does
//   WRITES_AT_REST=1                     the file is written by POST /quiesce alone
//   TOKEN_MAX_AGE_MS=1000                POST takes `Authorization: Token <ms since 1970>` no older than that, and `Service s3rvice` at any time
//
//   POST /notes {"text"}   GET /notes   GET /dump   PUT /dump   GET /health
//   POST /quiesce   GET /quiesced (how many notes there were at each)   POST /unwilling (refuses to quiesce from now on)
//   POST /clumsy (the next PUT /dump loses everything and fails)

import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { dirname } from "node:path";

const [file = null] = process.argv.slice(2);
const { LIVES_WITH: parent, PORT: port = "0", TOKEN_MAX_AGE_MS: tokenMaxAgeMs, WRITES_AT_REST } = process.env;
const quiesced = [];
let isWilling = true;
let isClumsy = false;
let notes = load();

function load() {
  if (file === null) return [];
  mkdirSync(dirname(file), { recursive: true });
  try {
    return JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    if (error.code === "ENOENT") return [];
    throw error;
  }
}

function save() {
  if (file === null) return;
  writeFileSync(`${file}.new`, dump());
  renameSync(`${file}.new`, file);
}

const dump = () => `${JSON.stringify(notes, null, 1)}\n`;

function answerTo(method, path, { authorization = "" }, body) {
  switch (`${method} ${path}`) {
    case "GET /health":
      return [200, "{}\n"];
    case "GET /notes":
    case "GET /dump":
      return [200, dump()];
    case "GET /quiesced":
      return [200, JSON.stringify(quiesced)];
    case "POST /notes": {
      if (!isTrusted(authorization)) return [401, "{}\n"];
      const note = { id: notes.length + 1, text: JSON.parse(body).text };
      notes.push(note);
      if (WRITES_AT_REST === undefined) save();
      return [201, JSON.stringify(note)];
    }
    case "PUT /dump":
      notes = isClumsy ? [] : JSON.parse(body);
      save();
      if (!isClumsy) return [204, ""];
      isClumsy = false;
      return [500, "dropped it\n"];
    case "POST /clumsy":
      isClumsy = true;
      return [204, ""];
    case "POST /quiesce":
      quiesced.push(notes.length);
      save();
      return [isWilling ? 204 : 409, ""];
    case "POST /unwilling":
      isWilling = false;
      return [204, ""];
    default:
      return [404, "{}\n"];
  }
}

function isTrusted(authorization) {
  if (tokenMaxAgeMs === undefined || authorization === "Service s3rvice") return true;
  const [, ms] = /^Token (\d+)$/.exec(authorization) ?? [];
  return ms !== undefined && Date.now() - Number(ms) <= Number(tokenMaxAgeMs);
}

const server = createServer({ keepAliveTimeout: 75_000 }, (request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("error", () => {});
  request.on("end", () => {
    const [path] = request.url.split("?", 1);
    const [status, text] = answerTo(request.method, path, request.headers, Buffer.concat(chunks).toString());
    response.writeHead(status, {
      "content-type": "application/json",
      ...(status === 204 ? null : { "content-length": Buffer.byteLength(text) }),
    });
    response.end(text);
  });
});
server.listen(Number(port), "127.0.0.1");
process.once("SIGTERM", () => process.exit(0));
if (parent !== undefined)
  setInterval(() => {
    try {
      process.kill(Number(parent), 0);
    } catch {
      process.exit(0);
    }
  }, 500).unref();
