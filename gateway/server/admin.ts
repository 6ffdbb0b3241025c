// The admin address: health, metrics and the API, on a listener of its own. Nothing of it is ever on the front.
//
// Who may ask: without a token only this machine can (the listener is on loopback), and no web page may make a browser ask in its
// name: a Host that is a foreign name (DNS rebinding), a foreign Origin and a form-like POST are refused. With a token every
// request shows it, except /livez, /readyz and, where `metrics: open`, /metrics. There is no CORS.

import { createHash, timingSafeEqual } from "node:crypto";
import { isIP } from "node:net";
import { fastify } from "fastify";
import { formatAddress, isLoopback } from "../config/address.ts";
import { itemsMax, positionOf, sequenceOf } from "../entry.ts";
import { GatewayError } from "../errors.ts";
import { bad, bodyOf, numberOf, paramOf, positionParam, queryOf, textOf } from "./asked.ts";
import { operationRoutes } from "./operations.ts";
import { problemOf } from "./problem.ts";
import type { Socket } from "node:net";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { Address } from "../config/address.ts";
import type { Secret } from "../config/secret.ts";
import type { Events } from "../events.ts";
import type { Control, DisagreementRow, LogRow, NewReplica } from "../status.ts";
import type { Metrics } from "./metrics.ts";

export interface AdminOptions {
  readonly listen: Address;
  /** Null only on loopback; the configuration sees to that. */
  readonly token: Secret | null;
  readonly control: Control;
  readonly metrics: Metrics;
  readonly events: Events;
  /** /metrics needs no token. */
  readonly openMetrics: boolean;
  /** A body of `POST /v1/replicas` read and found harmless; null: one more of those that the gateway starts. */
  readonly readReplica: (body: unknown) => Promise<NewReplica | null>;
  /** Until a request's head is here. Default: 10 s. */
  readonly headersMs?: number;
}

export interface Admin {
  /** Resolves with the URL, the real port in it. */
  listen(): Promise<string>;
  /** Takes a second at most, whatever clients do. May be called twice. */
  close(): Promise<void>;
}

const bodyBytesMax = 16 * 1024;
const pageMax = 1000;
const streamsMax = 32;
const heartbeatMs = 10_000;
const closeMs = 1000;
const headersMsDefault = 10_000;
/** Of one address: whoever can reach the listener may use up neither its descriptors nor the front's, before he showed any token. */
export const adminConnectionsPerAddress = 128;

export function createAdmin(options: AdminOptions): Admin {
  const { control, events, listen, headersMs = headersMsDefault } = options;
  const app = fastify({
    bodyLimit: bodyBytesMax,
    requestTimeout: 10_000,
    http: {
      insecureHTTPParser: false,
      headersTimeout: headersMs,
      connectionsCheckingInterval: Math.min(500, headersMs),
    },
    keepAliveTimeout: 5000,
    forceCloseConnections: "idle",
    routerOptions: { maxParamLength: 200 },
  });
  const closing = new AbortController();
  let isStopping = false;
  events.listen((fact) => {
    if (fact.type === "gateway" && (fact.state === "stopping" || fact.state === "stopped")) isStopping = true;
  });

  limitConnections(app);
  guard(app, options);
  // Bodies are small JSON objects, or nothing.
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("application/json", { parseAs: "string" }, (_request, text, done) => {
    try {
      done(null, text === "" ? {} : JSON.parse(String(text)));
    } catch {
      done(new GatewayError("GW_BAD_REQUEST", "The body is not JSON."));
    }
  });
  app.addContentTypeParser("*", (_request, payload, done) => {
    payload.resume().on("end", () => done(null, {}));
  });
  app.setNotFoundHandler((request, reply) =>
    refuse(
      reply,
      new GatewayError(
        "GW_NOT_FOUND",
        `There is no ${request.method} ${request.url.split("?", 1)[0]} here; GET / lists what is.`,
      ),
    ),
  );
  app.setErrorHandler((error, request, reply) => {
    const told = translated(error);
    if (told.code === "GW_INTERNAL") {
      events.tell({
        type: "warning",
        about: "admin",
        detail: `${request.method} ${request.routeOptions.url ?? ""}: ${String(error)}`,
      });
    }
    return refuse(reply, told);
  });

  healthRoutes(app, options, () => isStopping);
  replicaRoutes(app, control);
  operationRoutes(app, options);
  logRoutes(app, control);
  streamRoute(app, control, closing.signal);
  operatorRoutes(app, control);

  let closed: Promise<void> | null = null;
  return {
    async listen() {
      await app.listen({ host: listen.host, port: listen.port });
      const address = app.server.address();
      const port = typeof address === "object" && address !== null ? address.port : listen.port;
      return `http://${formatAddress({ host: listen.host, port })}`;
    },
    close() {
      closed ??= close(app, closing);
      return closed;
    },
  };
}

/** Fastify alone waits for idle keep-alive connections (70 s, measured). */
async function close(app: FastifyInstance, closing: AbortController): Promise<void> {
  closing.abort();
  const sweep = setInterval(() => app.server.closeIdleConnections(), 50);
  const cut = setTimeout(() => app.server.closeAllConnections(), closeMs);
  try {
    await app.close();
  } finally {
    clearInterval(sweep);
    clearTimeout(cut);
  }
}

function limitConnections(app: FastifyInstance): void {
  const perAddress = new Map<string, number>();
  app.server.on("connection", (socket: Socket) => {
    const peer = socket.remoteAddress ?? "";
    const count = (perAddress.get(peer) ?? 0) + 1;
    perAddress.set(peer, count);
    socket.once("close", () => {
      const left = perAddress.get(peer)! - 1;
      if (left === 0) perAddress.delete(peer);
      else perAddress.set(peer, left);
    });
    if (count > adminConnectionsPerAddress) socket.destroy();
  });
}

const forbidden = (message: string): GatewayError => new GatewayError("GW_FORBIDDEN", message);

function guard(app: FastifyInstance, { token, listen, openMetrics }: AdminOptions): void {
  const wanted = token === null ? null : sha256(token.reveal());
  const open = new Set(["/livez", "/readyz", ...(openMetrics ? ["/metrics"] : [])]);
  app.addHook("onRequest", async (request, reply) => {
    for (const [name, value] of securityHeaders) reply.header(name, value);
    const path = request.url.split("?", 1)[0] ?? "";
    const isProbe = (request.method === "GET" || request.method === "HEAD") && open.has(path);
    // Off loopback the token decides: there the address has names that are not known here.
    if (isLoopback(listen.host) && !isProbe && !isOwnHost(request.headers.host ?? "")) {
      throw forbidden("The Host field names another machine: ask by address, or as localhost.");
    }
    checkOrigin(request);
    if (wanted !== null && !isProbe && !isAuthorized(request.headers.authorization, wanted)) {
      reply.header("www-authenticate", 'Bearer realm="gateway"');
      throw new GatewayError("GW_UNAUTHORIZED", "Send the admin token: Authorization: Bearer …");
    }
    if (request.method !== "GET" && request.method !== "HEAD") checkMutation(request);
  });
}

const securityHeaders = [
  ["cache-control", "no-store"],
  ["x-content-type-options", "nosniff"],
  ["content-security-policy", "default-src 'none'; frame-ancestors 'none'"],
  ["cross-origin-resource-policy", "same-origin"],
  ["referrer-policy", "no-referrer"],
] as const;

/** An IP address cannot be rebound; a name can, but for localhost. */
function isOwnHost(host: string): boolean {
  const name = host.replace(/:\d{1,5}$/, "").replace(/^\[(.*)\]$/, "$1");
  return isIP(name) !== 0 || isLoopback(name);
}

function checkOrigin({ headers }: FastifyRequest): void {
  const { origin, host } = headers;
  if (origin !== undefined && origin !== `http://${host}`) throw forbidden("Pages of other origins may not ask.");
  // Older engines send no Origin with some requests; those that send this one tell the truth in it.
  const site = headers["sec-fetch-site"];
  if ((site === "cross-site" || site === "same-site") && headers["sec-fetch-mode"] !== "navigate") {
    throw forbidden("Pages of other sites may not ask.");
  }
}

/** A page can make a browser send a form anywhere, but neither JSON nor a field of its own without a preflight, which fails here. */
function checkMutation({ headers }: FastifyRequest): void {
  const type = headers["content-type"]?.split(";", 1)[0]?.trim().toLowerCase();
  if (type === "application/json") return;
  const isEmpty = headers["content-length"] === undefined || headers["content-length"] === "0";
  const isPlain = type === undefined && isEmpty && headers["transfer-encoding"] === undefined;
  if (headers["x-gateway-request"] !== undefined && isPlain) return;
  // What only a program sends: nothing at all. Browsers tell the origin of every POST, and where it comes from.
  const isBrowser = ["origin", "referer", "cookie", "sec-fetch-site"].some((name) => headers[name] !== undefined);
  if (isPlain && !isBrowser) return;
  throw forbidden("Send what changes something as Content-Type: application/json, or empty with X-Gateway-Request: 1.");
}

function isAuthorized(field: string | undefined, wanted: Buffer): boolean {
  const [, shown = ""] = /^bearer +(\S+)\s*$/i.exec(field ?? "") ?? [];
  // Hashes have one length, so that the comparison tells nothing of the token's.
  return timingSafeEqual(sha256(shown), wanted);
}

function sha256(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}

function healthRoutes(app: FastifyInstance, { control, metrics }: AdminOptions, isStopping: () => boolean): void {
  app.get("/", (_request, reply) => reply.type("text/plain; charset=utf-8").send(index));
  app.get("/livez", () => ({ alive: true }));
  app.get("/readyz", (request, reply) => {
    const asked = queryOf(request)["for"] ?? "any";
    if (!["any", "reads", "writes"].includes(asked)) throw bad("for is reads or writes");
    const { reads, writes } = control.readiness();
    const can = { reads: reads.length === 0, writes: writes.length === 0 };
    const canServe = asked === "any" ? can.reads || can.writes : can[asked as "reads" | "writes"];
    const isReady = canServe && !isStopping();
    const reasons = isStopping()
      ? { reads: ["the gateway is stopping"], writes: ["the gateway is stopping"] }
      : { reads, writes };
    return reply.code(isReady ? 200 : 503).send({ ready: isReady, ...reasons });
  });
  app.get("/metrics", async (_request, reply) => reply.type(metrics.contentType).send(await metrics.render()));
  app.get("/v1/status", () => control.status());
}

const index = `br2k-gateway: admin address

GET  /livez                          the process runs
GET  /readyz[?for=reads|writes]      whether requests can be served, or why not
GET  /metrics                        for Prometheus
GET  /v1/status
GET  /v1/replicas
POST /v1/replicas                                    {name, url, …}, or {}: 202
POST /v1/replicas/sync               the roster becomes as this file has it
DEL  /v1/replicas/NAME                               202
POST /v1/replicas/NAME/rebuild                       {version}: 202
POST /v1/replicas/NAME/drain|resume|quarantine       {reason}
POST /v1/replicas/NAME/resolve                       {position|"all", applied}
GET  /v1/unknown[?replica=NAME]      entries whose outcome is not known
GET  /v1/log?from=P&limit=N, ?last=N
GET  /v1/log/POSITION
GET  /v1/log/stream?from=P           events, resumes with Last-Event-ID
GET  /v1/log/verify                  reads all of it
GET  /v1/unfinished                  once-only parts that may not have been done
GET  /v1/parked
POST /v1/parked/POSITION/retry|skip
GET  /v1/disagreements
GET  /v1/disagreements/POSITION
GET  /v1/snapshots[/VERSION]         newest first
POST /v1/snapshots                                   202
POST /v1/snapshots[/VERSION]/verify                  202
POST /v1/audit                                       202
GET  /v1/operations[/ID]             what takes time: each 202 has its Location
POST /v1/pause                                       {reason}
POST /v1/resume
`;

function replicaRoutes(app: FastifyInstance, control: Control): void {
  const rows = async () => (await control.status()).replicas;
  const named = async (name: string) => {
    const all = await rows();
    const found = all.find((replica) => replica.name === name);
    if (found !== undefined) return found;
    const names = all.map((replica) => replica.name).join(", ");
    throw new GatewayError("GW_NOT_FOUND", `There is no replica "${name}", only ${names}.`);
  };
  app.get("/v1/replicas", async () => ({ replicas: await rows() }));
  app.get("/v1/replicas/:name", (request) => named(paramOf(request, "name")));
  for (const action of ["drain", "resume", "quarantine"] as const) {
    app.post(`/v1/replicas/:name/${action}`, async (request) => {
      const { name } = await named(paramOf(request, "name"));
      await control.replica(name, action, textOf(bodyOf(request), "reason", "by an operator"));
      return { replica: await named(name) };
    });
  }
  app.post("/v1/replicas/:name/resolve", async (request) => {
    const { name } = await named(paramOf(request, "name"));
    const { position, applied } = bodyOf(request);
    if (typeof applied !== "boolean") throw bad("applied has to be true (the backend executed it) or false");
    if (position !== "all" && !isPosition(position)) throw bad('position has to be a position or "all"');
    return { resolved: await control.resolve(name, position, applied) };
  });
  app.get("/v1/unknown", async (request) => {
    const { replica } = queryOf(request);
    const rows = await control.unknown(replica === undefined ? null : (await named(replica)).name);
    return { unknown: redactedTargets(rows) };
  });
}

function logRoutes(app: FastifyInstance, control: Control): void {
  app.get("/v1/log", async (request) => {
    const query = queryOf(request);
    const limit = Math.min(numberOf(query, "limit", 100), pageMax);
    if (limit === 0) throw bad("limit has to be at least 1");
    if (query["last"] !== undefined) {
      const rows = await lastRows(control, Math.min(numberOf(query, "last", 0), pageMax));
      return { rows: rows.map(redacted), next: null };
    }
    const rows = await control.log(numberOf(query, "from", 0), limit);
    const last = rows.at(-1);
    return { rows: rows.map(redacted), next: last === undefined || rows.length < limit ? null : last.position + 1 };
  });
  app.get("/v1/log/verify", () => control.logVerify());
  app.get("/v1/log/:position", async (request) => {
    const position = positionParam(request);
    const row = await control.logShow(position);
    if (row === null) throw new GatewayError("GW_NOT_FOUND", `The log has nothing at position ${position}.`);
    return redacted(row);
  });
  app.get("/v1/disagreements", async () => ({ disagreements: (await control.disagreements()).map(redactedAnswers) }));
  app.get("/v1/disagreements/:position", async (request) => {
    const position = positionParam(request);
    const row = (await control.disagreements()).find((one) => one.position === position);
    if (row === undefined) throw new GatewayError("GW_NOT_FOUND", `No disagreement is known at position ${position}.`);
    return redactedAnswers(row);
  });
}

/** Positions are not dense: looks back twice as far each time until there is enough. Ends at the log's first record. */
async function lastRows(control: Control, count: number): Promise<readonly LogRow[]> {
  const { tail, log } = await control.status();
  const first = sequenceOf(log.firstPosition);
  for (let records = 1; ; records *= 2) {
    const from = Math.max(first, sequenceOf(tail) - records + 1);
    const rows: LogRow[] = [];
    let next = positionOf(from, 0);
    for (;;) {
      const page = await control.log(next, pageMax);
      rows.push(...page);
      if (rows.length > count) rows.splice(0, rows.length - count);
      const last = page.at(-1);
      if (page.length < pageMax || last === undefined || last.position >= tail) break;
      next = last.position + 1;
    }
    if (rows.length >= count || from <= first || records > itemsMax) return rows;
  }
}

function streamRoute(app: FastifyInstance, control: Control, closing: AbortSignal): void {
  let streams = 0;
  app.get("/v1/log/stream", async (request, reply) => {
    const resumed = request.headers["last-event-id"];
    const after = typeof resumed === "string" && /^\d{1,16}$/.test(resumed) ? Number(resumed) + 1 : null;
    const query = queryOf(request);
    const from =
      after ?? (query["from"] === undefined ? (await control.status()).tail + 1 : numberOf(query, "from", 0));
    if (streams >= streamsMax) throw new GatewayError("GW_OVERLOADED", `${streamsMax} clients follow the log already.`);
    streams++;
    try {
      await follow(reply, control, from, closing);
    } finally {
      streams--;
    }
  });
}

/** Server-sent events until the client goes or the gateway stops. Writes only as fast as the client reads. */
async function follow(reply: FastifyReply, control: Control, from: number, closing: AbortSignal): Promise<void> {
  const gone = new AbortController();
  const signal = AbortSignal.any([gone.signal, closing]);
  reply.hijack();
  const { raw } = reply;
  raw.on("close", () => gone.abort());
  raw.on("error", () => gone.abort());
  for (const [name, value] of securityHeaders) raw.setHeader(name, value);
  raw.writeHead(200, { "content-type": "text/event-stream; charset=utf-8", connection: "close" });
  raw.write(": from here on\n\n");
  const heartbeat = setInterval(() => raw.write(": still here\n\n"), heartbeatMs);
  try {
    for await (const row of control.logFollow(from, signal)) {
      const isRoom = raw.write(`id: ${row.position}\nevent: ${row.kind}\ndata: ${JSON.stringify(redacted(row))}\n\n`);
      if (!isRoom) await drained(raw, signal);
      if (signal.aborted) break;
    }
  } catch (error) {
    const { code, message } = translated(error);
    raw.write(`event: problem\ndata: ${JSON.stringify({ code, detail: message })}\n\n`);
  } finally {
    clearInterval(heartbeat);
    raw.end();
  }
}

function drained(raw: FastifyReply["raw"], signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      raw.off("drain", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    raw.once("drain", done);
    signal.addEventListener("abort", done, { once: true });
    if (signal.aborted) done();
  });
}

function operatorRoutes(app: FastifyInstance, control: Control): void {
  app.get("/v1/unfinished", async () => ({ unfinished: redactedTargets(await control.unfinished()) }));
  app.get("/v1/parked", async () => ({ parked: redactedTargets(await control.parked()) }));
  app.post("/v1/parked/:position/retry", async (request) => ({
    position: await control.retryParked(positionParam(request)),
  }));
  app.post("/v1/parked/:position/skip", async (request) => {
    const position = positionParam(request);
    await control.skip(position, textOf(bodyOf(request), "reason", "by an operator"));
    return { position };
  });
  app.post("/v1/pause", async (request) => {
    await control.pause(textOf(bodyOf(request), "reason", "by an operator"));
    return { paused: (await control.status()).paused };
  });
  app.post("/v1/resume", async () => {
    await control.resume();
    return { paused: (await control.status()).paused };
  });
}

const secretField =
  /^(authorization|proxy-authorization|cookie|set-cookie|idempotency-key|x-forwarded-client-cert)$|token|secret|passw|credential|session|signature|api-?key|auth-?key|access-?key|csrf|xsrf|jwt/i;
const dots = "[redacted]";

function redacted(row: LogRow): LogRow {
  return {
    ...row,
    target: row.target === null ? null : redactedTarget(row.target),
    headers: row.headers === null ? null : redactedHeaders(row.headers),
  };
}

function redactedAnswers(row: DisagreementRow): DisagreementRow {
  return {
    ...row,
    target: redactedTarget(row.target),
    answers: row.answers.map((answer) => ({ ...answer, headers: redactedHeaders(answer.headers) })),
    differences: row.differences.map((difference) =>
      secretField.test(difference.where) ? { ...difference, left: dots, right: dots } : difference,
    ),
  };
}

function redactedHeaders(headers: readonly string[]): string[] {
  return headers.map((text, i) => (i % 2 === 1 && secretField.test(headers[i - 1] ?? "") ? dots : text));
}

function redactedTargets<T extends { readonly target: string }>(rows: readonly T[]): T[] {
  return rows.map((row) => ({ ...row, target: redactedTarget(row.target) }));
}

function redactedTarget(target: string): string {
  return target.replaceAll(/(?<=[?&])([^=&]*)=([^&]*)/g, (whole, name: string) =>
    secretField.test(name) ? `${name}=${dots}` : whole,
  );
}

function translated(error: unknown): GatewayError {
  if (error instanceof GatewayError) return error;
  const { statusCode, message = "" } = error as { readonly statusCode?: number; readonly message?: string };
  if (statusCode === 413)
    return new GatewayError("GW_BODY_TOO_LARGE", `The body is larger than ${bodyBytesMax} bytes.`);
  if (statusCode !== undefined && statusCode >= 400 && statusCode < 500) {
    return new GatewayError("GW_BAD_REQUEST", message, { status: statusCode });
  }
  return new GatewayError("GW_INTERNAL", "The admin address failed to answer; this is a defect.", { cause: error });
}

function refuse(reply: FastifyReply, error: GatewayError): FastifyReply {
  // "GET": what the admin address does is no request of a client, so nothing is said of its execution.
  const { status, headers, body } = problemOf(error, "GET", []);
  reply.code(status === 0 ? 500 : status);
  for (let i = 0; i + 1 < headers.length; i += 2) reply.header(headers[i] ?? "", headers[i + 1]);
  return reply.send(body);
}

function isPosition(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}
