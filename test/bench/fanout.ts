// The yardstick: a bare fan-out. A plain node:http server that sends each request to all backends with undici's dispatch over
// keep-alive connections and answers with the first whole answer. No log, no keys, no order, no rules.
// It does what any fan-out must (whole body, raw headers, hop-by-hop fields dropped, whole answer) and nothing else.

import { createServer } from "node:http";
import type { ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { Client } from "undici";
import type { Dispatcher } from "undici";

/** Idle clients on a stack: picking one costs the same with 1 as with 256 connections (undici's Pool searches its list). */
class Connections {
  readonly #origin: string;
  readonly #idle: Client[] = [];

  constructor(origin: string) {
    this.#origin = origin;
  }

  take(): Client {
    return this.#idle.pop() ?? new Client(this.#origin, { keepAliveTimeout: 60_000, keepAliveMaxTimeout: 60_000 });
  }

  give(client: Client): void {
    this.#idle.push(client);
  }
}

/** One request on its way to all backends; the first whole answer wins. */
class Fan {
  #left: number;
  #isAnswered = false;
  readonly #response: ServerResponse;

  constructor(response: ServerResponse, width: number) {
    this.#response = response;
    this.#left = width;
  }

  answer(status: number, headers: string[], body: Buffer): void {
    this.#left -= 1;
    if (this.#isAnswered) return;
    this.#isAnswered = true;
    this.#response.writeHead(status, headers);
    this.#response.end(body);
  }

  fail(): void {
    this.#left -= 1;
    if (this.#left === 0 && !this.#isAnswered) {
      this.#response.writeHead(502);
      this.#response.end();
    }
  }
}

const dropped = new Set([
  "connection",
  "keep-alive",
  "transfer-encoding",
  "host",
  "content-length",
  "expect",
  "upgrade",
]);
const droppedOfAnswers = new Set(["connection", "keep-alive", "transfer-encoding"]);
const empty = Buffer.alloc(0);

class Handler implements Dispatcher.DispatchHandler {
  readonly #fan: Fan;
  readonly #connections: Connections;
  readonly #client: Client;
  #status = 0;
  #headers: string[] = [];
  #body: Buffer = empty;

  constructor(fan: Fan, connections: Connections, client: Client) {
    this.#fan = fan;
    this.#connections = connections;
    this.#client = client;
  }

  onRequestStart(): void {
    // Required, and nothing to do: the request cannot be cancelled here.
  }

  onResponseStart(controller: Dispatcher.DispatchController, status: number): void {
    if (status < 200) return;
    this.#status = status;
    const raw = controller.rawHeaders as Buffer[];
    const headers: string[] = [];
    for (let i = 0; i + 1 < raw.length; i += 2) {
      const name = raw[i]?.toString("latin1") ?? "";
      if (!droppedOfAnswers.has(name.toLowerCase())) headers.push(name, raw[i + 1]?.toString("latin1") ?? "");
    }
    this.#headers = headers;
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    this.#body = this.#body.length === 0 ? chunk : Buffer.concat([this.#body, chunk]);
  }

  onResponseEnd(): void {
    this.#connections.give(this.#client);
    this.#fan.answer(this.#status, this.#headers, this.#body);
  }

  onResponseError(): void {
    this.#connections.give(this.#client);
    this.#fan.fail();
  }
}

const backends = process.argv.slice(2).map((origin) => new Connections(origin));

const server = createServer({ keepAliveTimeout: 120_000 }, (request, response) => {
  let body: Buffer = empty;
  request.on("data", (chunk: Buffer) => {
    body = body.length === 0 ? chunk : Buffer.concat([body, chunk]);
  });
  request.once("end", () => {
    const raw = request.rawHeaders;
    const headers: string[] = ["host", request.headers.host ?? ""];
    for (let i = 0; i + 1 < raw.length; i += 2) {
      const name = raw[i] ?? "";
      if (!dropped.has(name.toLowerCase())) headers.push(name, raw[i + 1] ?? "");
    }
    const fan = new Fan(response, backends.length);
    const options: Dispatcher.DispatchOptions = {
      path: request.url ?? "/",
      method: request.method ?? "GET",
      headers,
      body,
    };
    for (const connections of backends) {
      const client = connections.take();
      client.dispatch(options, new Handler(fan, connections, client));
    }
  });
});
process.on("disconnect", () => process.exit(0));
server.listen(0, "127.0.0.1", 4096, () => {
  process.send?.({ port: (server.address() as AddressInfo).port });
});
