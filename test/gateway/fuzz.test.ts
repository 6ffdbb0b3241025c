// Ten thousand mutated requests over raw sockets through a whole gateway to a raw backend. What each one deserves is said by parsers
// of the tests' own (strict-http.ts): it is executed once, as it was sent and under the rule that its bytes ask for, or not at all; its
// answer is its own. Afterwards the process is as it was before. `FUZZ_SEED=N` replays a run, `FUZZ_REQUESTS=N` makes it longer.

import { readdirSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { expect, onTestFinished, test } from "vitest";
import { loadConfig } from "../../gateway/config.ts";
import { Events } from "../../gateway/events.ts";
import { startGateway } from "../../gateway/gateway.ts";
import { createFolder, removeFolder } from "../helpers/folder.ts";
import { freePort } from "../helpers/servers.ts";
import { ask, RawClient } from "../helpers/raw-client.ts";
import { readConnection, takeAnswered, takeForwarded, valuesOf } from "../helpers/strict-http.ts";
import { waitFor } from "../helpers/wait.ts";
import { Mutator } from "./fuzz.mutator.ts";
import type { AddressInfo } from "node:net";
import type { RunningGateway } from "../../gateway/gateway.ts";
import type { Answered, Deserved, Field, Forwarded, Reading } from "../helpers/strict-http.ts";

const seed = Number(process.env["FUZZ_SEED"] ?? 20_261_120);
const requestsMin = Number(process.env["FUZZ_REQUESTS"] ?? 10_000);

const rules = [
  { name: "admins", match: { path: "/*", header: { "x-role": ["admin"] } }, mode: "refuse", status: 403 },
  { name: "private", match: "* /private/*", mode: "refuse", status: 404 },
  { name: "once-get", match: "GET /once/:id", mode: "only-once" },
  { name: "once-post", match: "POST /once/:id", mode: "only-once" },
  { name: "write", match: "POST /write/:id", mode: "replicate", order: ["{path.id}"] },
];

const forbidding: ReadonlySet<string> = new Set(["admins", "private"]);

/** The rule that a request deserves, by the documentation: first match, decoded segments. */
function ruleOf({ method, target, fields }: Pick<Deserved, "method" | "target" | "fields">): string {
  if (valuesOf(fields, "x-role").includes("admin")) return "admins";
  const [first, ...rest] = target.slice(1).split("?", 1)[0]!.split("/").map(decodeURIComponent);
  if (first === "private" && rest.length > 0) return "private";
  const isOne = rest.length === 1 && rest[0] !== "";
  if (first === "once" && isOne && method === "GET") return "once-get";
  if (first === "once" && isOne && method === "POST") return "once-post";
  if (first === "write" && isOne && method === "POST") return "write";
  return ["GET", "HEAD", "OPTIONS", "TRACE", "QUERY"].includes(method) ? "default-safe" : "default-other";
}

/** Of a client's fields, those that reach a backend as they are. */
const replaced =
  /^(?:connection|keep-alive|proxy-.*|te|trailer|transfer-encoding|content-length|upgrade|expect|http2-settings|host|via|forwarded|x-forwarded-.*|replication-.*|sec-websocket-.*)$/i;
const endToEnd = (fields: readonly Field[]): string =>
  fields
    .flatMap(([name, value]) => (replaced.test(name) && !/^proxy-status$/i.test(name) ? [] : [`${name}: ${value}`]))
    .join("\n");

const shapeOf = (
  { method, target, fields, body }: Pick<Deserved, "method" | "target" | "fields" | "body">,
  host: string,
): string => JSON.stringify([method, target, body, endToEnd(fields), host]);

interface RawTarget {
  readonly port: number;
  readonly forwarded: Forwarded[];
  readonly faults: string[];
  readonly executed: number;
}

/** Reads strictly, and answers each request with its own target. */
async function startStrictBackend(): Promise<RawTarget> {
  const forwarded: Forwarded[] = [];
  const faults: string[] = [];
  let executed = 0;
  const server = createServer((socket) => {
    let unread = "";
    socket.on("error", () => {});
    socket.on("data", (chunk) => {
      unread += chunk.toString("latin1");
      // Ends with the whole requests that came.
      for (;;) {
        const taken = takeForwarded(unread);
        if (taken === null) return;
        if (typeof taken === "string") {
          faults.push(`${taken} in ${JSON.stringify(unread.slice(0, 500))}`);
          socket.destroy();
          return;
        }
        unread = unread.slice(taken.length);
        forwarded.push(taken.request);
        executed += 1;
        const { method, target } = taken.request;
        const body = `${method} ${target}`;
        socket.write(
          `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${method === "HEAD" ? "" : body}`,
          "latin1",
        );
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  return {
    port: (server.address() as AddressInfo).port,
    forwarded,
    faults,
    get executed() {
      return executed;
    },
  };
}

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;
const heapBytes = (): number => {
  collect();
  collect();
  return process.memoryUsage().heapUsed + process.memoryUsage().external;
};
const descriptors = (): number => readdirSync("/proc/self/fd").length;

/** Sends one connection's bytes in pieces and reads what comes until everything that is owed has come. */
async function converse(port: number, pieces: readonly string[], reading: Reading): Promise<string[]> {
  const client = await RawClient.connect({ port });
  const owed = [...reading.requests];
  const faults: string[] = [];
  let read = 0;
  const check = (deserved: Deserved, answer: Answered): void => {
    const isRefusal = answer.status >= 400;
    if (isRefusal !== (deserved.fate === "refuse")) {
      faults.push(`${deserved.fate}, and the answer is ${answer.status} ${answer.body}`);
    } else if (isRefusal) {
      if (!["HEAD", ""].includes(deserved.method) && !answer.body.includes('"code":"GW_'))
        faults.push(`a refusal without a code: ${answer.body}`);
    } else if (deserved.method !== "HEAD" && answer.body !== `${deserved.method} ${deserved.target}`) {
      faults.push(`another request's answer: ${answer.body}`);
    }
  };
  /** True when nothing more can be read for now. */
  const take = (): void => {
    // Ends with the whole answers that came.
    for (;;) {
      const text = client.received.slice(read);
      if (text === "") return;
      const next = owed[0];
      // Where not even the method could be read it may have been HEAD.
      const taken = takeAnswered(text, next?.method === "" ? "HEAD" : (next?.method ?? "GET"));
      if (taken === null) return;
      if (typeof taken === "string") {
        faults.push(`an answer with ${taken}`);
        read = client.received.length;
        return;
      }
      read += taken.length;
      if (taken.answer.status === 100) continue;
      if (next === undefined) {
        // Of a request that was cut: that it was.
        if (!reading.isCut || taken.answer.status < 400) faults.push(`an answer to nothing: ${taken.answer.status}`);
        continue;
      }
      owed.shift();
      check(next, taken.answer);
    }
  };
  try {
    for (const piece of pieces) {
      if (client.isEnded || client.isClosed) break;
      client.send(piece);
      await new Promise((resolve) => setImmediate(resolve));
    }
    const uncertain = owed.length - reading.certain;
    await waitFor(
      () => {
        take();
        return faults.length > 0 || client.isEnded || client.isClosed || owed.length <= uncertain;
      },
      { what: () => `${owed.length} answers; came: ${JSON.stringify(client.received.slice(read))}`, timeoutMs: 15_000 },
    ).catch((error: unknown) => faults.push(String(error)));
    if (reading.isCut || uncertain > 0) client.socket.end();
    if (reading.isCut || uncertain > 0 || reading.requests.at(-1)?.isLast === true) {
      await client.ended().catch((error: unknown) => faults.push(`the connection stays: ${String(error)}`));
      take();
    }
    if (owed.length > uncertain && faults.length === 0) faults.push(`${owed.length} answers are missing`);
    const rest = client.received.slice(read);
    // What cannot be read has an answer with a body, even where HEAD was meant: nobody knows.
    const isUnread = reading.requests.at(-1)?.isLast === true && rest.startsWith('{"type":"urn:br2k:error:GW_');
    if (!reading.isCut && rest !== "" && !isUnread) faults.push(`more came: ${JSON.stringify(rest)}`);
  } finally {
    client.close();
  }
  return faults;
}

test(
  `${requestsMin} fuzzed requests crash nothing, leak nothing and reach nobody they should not (FUZZ_SEED=${seed})`,
  { timeout: 300_000 },
  async () => {
    process.stdout.write(`fuzz: FUZZ_SEED=${seed}\n`);
    const unhandled: unknown[] = [];
    const onUnhandled = (reason: unknown): void => void unhandled.push(reason);
    process.on("unhandledRejection", onUnhandled);
    const folder = createFolder("fuzz");
    const backend = await startStrictBackend();
    const events = new Events();
    const ruleByPath = new Map<string, Set<string>>();
    const defects: string[] = [];
    events.listen((fact) => {
      if (fact.type === "warning" && fact.about !== "first start") defects.push(`${fact.about}: ${fact.detail}`);
      if (fact.type !== "request") return;
      if (fact.code === "GW_INTERNAL") defects.push(`GW_INTERNAL at ${fact.path}`);
      const at = `${fact.method} ${fact.path}`;
      if (fact.rule !== "-") ruleByPath.set(at, (ruleByPath.get(at) ?? new Set()).add(fact.rule));
    });
    const config = loadConfig({
      file: join(folder, "gateway.yaml"),
      text: JSON.stringify({
        service: "fuzz",
        listen: `127.0.0.1:${await freePort()}`,
        admin: { listen: `127.0.0.1:${await freePort()}` },
        data: "./data",
        rules,
        timeouts: { idle: "3s" },
        limits: { body: "1MB" },
        replicas: [{ name: "a", url: `http://127.0.0.1:${backend.port}` }],
      }),
      env: {},
    });
    let gateway: RunningGateway | null = null;
    onTestFinished(async () => {
      process.off("unhandledRejection", onUnhandled);
      await gateway?.stop();
      removeFolder(folder);
    });
    gateway = await startGateway(config, { events, isNewLog: false, version: "fuzz" });
    const port = Number(new URL(gateway.front ?? "").port);
    const ready = async (): Promise<boolean> => {
      const answer = await ask(port, "POST /write/ready HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
      return answer.status === 200;
    };
    await waitFor(ready, { what: "the gateway to take writes" });

    const mutator = new Mutator(seed);
    const counts = { requests: 0, connections: 0, served: 0, refused: 0, cut: 0 };
    const faults: string[] = [];
    const run = async (count: number): Promise<void> => {
      const shapes = new Map<string, { must: number; may: number }>();
      backend.forwarded.length = 0;
      ruleByPath.clear();
      const end = counts.requests + count;
      const sent: string[] = [];
      const worker = async (): Promise<void> => {
        // Ends with the number of requests, or with the first faults.
        while (counts.requests < end && faults.length < 5) {
          const { messages, pieces } = mutator.connection();
          const bytes = pieces.join("");
          sent.push(bytes);
          const reading = readConnection(bytes, (request) => forbidding.has(ruleOf(request)));
          const serial = (counts.connections += 1);
          counts.requests += messages;
          if (reading.isCut) counts.cut += 1;
          for (const [i, deserved] of reading.requests.entries()) {
            counts[deserved.fate === "serve" ? "served" : "refused"] += 1;
            if (deserved.fate === "refuse") continue;
            const shape = shapeOf(deserved, valuesOf(deserved.fields, "host")[0] ?? "");
            const known = shapes.get(shape) ?? { must: 0, may: 0 };
            known[i < reading.certain ? "must" : "may"] += 1;
            shapes.set(shape, known);
          }
          for (const fault of await converse(port, pieces, reading)) {
            faults.push(
              `${fault}\n  connection ${serial}: ${JSON.stringify(bytes.slice(0, 3000))}\n  read as ${JSON.stringify(reading).slice(0, 1500)}`,
            );
          }
        }
      };
      await Promise.all(Array.from({ length: 48 }, worker));
      // Entries are applied in order: with this one all are.
      expect(await ready()).toBe(true);
      for (const request of backend.forwarded) {
        if (request.target === "/write/ready") continue;
        const shape = shapeOf(request, valuesOf(request.fields, "x-forwarded-host")[0] ?? "");
        const known = shapes.get(shape);
        if (known === undefined || known.must + known.may === 0) {
          const [number = "?"] = /\d{2,}/.exec(request.target) ?? [];
          const from = sent.find((bytes) => bytes.includes(number)) ?? "";
          faults.push(
            `${known === undefined ? "nobody asked for" : "once too often:"} ${JSON.stringify(request)}, perhaps of ${JSON.stringify(from)}`,
          );
          continue;
        }
        if (known.must > 0) known.must -= 1;
        else known.may -= 1;
        const told = ruleByPath.get(`${request.method} ${request.target.split("?", 1)[0]}`);
        const expected = ruleOf(request);
        if (told !== undefined && !told.has(expected)) {
          faults.push(`${request.method} ${request.target} was matched by ${[...told].join()}, not by ${expected}`);
        }
        if (told === undefined) faults.push(`${request.method} ${request.target} was executed under no rule`);
      }
      for (const [shape, { must }] of shapes) if (must > 0) faults.push(`${must} × not executed: ${shape}`);
    };

    await run(requestsMin / 10);
    expect(faults.join("\n\n")).toBe("");
    backend.forwarded.length = 0;
    ruleByPath.clear();
    const before = { heap: heapBytes(), descriptors: descriptors() };
    const from = performance.now();
    await run((requestsMin * 9) / 10);
    const seconds = (performance.now() - from) / 1000;
    expect(faults.slice(0, 5).join("\n\n")).toBe("");
    expect(backend.faults).toEqual([]);
    expect(defects).toEqual([]);
    expect(unhandled).toEqual([]);
    // Neither does it pass by refusing everything, or nothing.
    expect(Math.min(counts.served, counts.refused) / counts.requests).toBeGreaterThan(0.15);
    backend.forwarded.length = 0;
    ruleByPath.clear();
    await waitFor(() => descriptors() <= before.descriptors, {
      what: () => `${before.descriptors} descriptors; there are ${descriptors()}`,
      timeoutMs: 15_000,
    });
    const grownMiB = (heapBytes() - before.heap) / 1024 / 1024;
    process.stdout.write(
      `fuzz: ${JSON.stringify(counts)}, ${Math.round((requestsMin * 0.9) / seconds)} a second, heap ${grownMiB.toFixed(1)} MiB more\n`,
    );
    expect(grownMiB).toBeLessThan(32);
    expect(await ready()).toBe(true);
  },
);
