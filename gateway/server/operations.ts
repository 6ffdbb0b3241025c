// What the admin address is asked to do and takes time: snapshots, audits, new and rebuilt replicas. Each answers 202 with an operation
// that goes on, and with the place (Location) where it can be asked for.

import { reaches } from "../config/address.ts";
import { GatewayError } from "../errors.ts";
import { bad, bodyOf, numberOf, paramOf, queryOf } from "./asked.ts";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { Address } from "../config/address.ts";
import type { Control, NewReplica, Operation } from "../status.ts";

export interface OperationParts {
  readonly control: Control;
  /** A body of `POST /v1/replicas` read and found harmless; null: one more of those that the gateway starts. */
  readonly readReplica: (body: unknown) => Promise<NewReplica | null>;
}

export function operationRoutes(app: FastifyInstance, parts: OperationParts): void {
  snapshotRoutes(app, parts.control);
  replicaRoutes(app, parts);
  const { control } = parts;
  app.post("/v1/audit", async (request, reply) => {
    only(bodyOf(request), []);
    return accepted(reply, await control.audit());
  });
  app.get("/v1/operations", () => ({ operations: control.operations() }));
  app.get("/v1/operations/:id", (request) => {
    const id = paramOf(request, "id");
    const found = control.operation(id);
    if (found === null) throw new GatewayError("GW_NOT_FOUND", `There is no operation "${id}" (any more).`);
    return found;
  });
}

function accepted(reply: FastifyReply, operation: Operation): FastifyReply {
  return reply
    .code(202)
    .header("location", `/v1/operations/${encodeURIComponent(operation.id)}`)
    .send(operation);
}

function snapshotRoutes(app: FastifyInstance, control: Control): void {
  app.get("/v1/snapshots", async (request) => {
    const query = queryOf(request);
    const rows = await control.snapshots();
    if (query["version"] === undefined) return { snapshots: rows };
    const version = numberOf(query, "version", 0);
    return { snapshots: rows.filter((row) => row.version === version) };
  });
  app.get("/v1/snapshots/:version", async (request) => {
    const version = versionParam(request);
    const rows = await control.snapshots();
    const found = rows.find((row) => row.version === version);
    if (found !== undefined) return found;
    const kept = rows.length === 0 ? "none is kept" : `kept are ${rows.map((row) => row.version).join(", ")}`;
    throw new GatewayError("GW_SNAPSHOT_MISSING", `There is no snapshot of version ${version}: ${kept}.`);
  });
  app.post("/v1/snapshots", async (request, reply) => {
    only(bodyOf(request), []);
    return accepted(reply, await control.snapshotCreate());
  });
  app.post("/v1/snapshots/verify", async (request, reply) => {
    only(bodyOf(request), []);
    return accepted(reply, await control.snapshotVerify(null));
  });
  app.post("/v1/snapshots/:version/verify", async (request, reply) => {
    only(bodyOf(request), []);
    return accepted(reply, await control.snapshotVerify(versionParam(request)));
  });
}

function replicaRoutes(app: FastifyInstance, { control, readReplica }: OperationParts): void {
  app.post("/v1/replicas", async (request, reply) => {
    const replica = await readReplica(bodyOf(request));
    if (replica !== null) await checkTwins(replica, control);
    return accepted(reply, await control.replicaAdd(replica));
  });
  app.post("/v1/replicas/sync", async (request) => {
    only(bodyOf(request), []);
    return control.replicaSync();
  });
  app.delete("/v1/replicas/:name", async (request, reply) => {
    only(bodyOf(request), []);
    return accepted(reply, await control.replicaRemove(await knownName(request, control)));
  });
  app.post("/v1/replicas/:name/rebuild", async (request, reply) => {
    const name = await knownName(request, control);
    const body = only(bodyOf(request), ["version"]);
    const version = body["version"] ?? null;
    if (version !== null && !(Number.isSafeInteger(version) && (version as number) >= 0)) {
      throw bad("version has to be the version of a snapshot");
    }
    return accepted(reply, await control.replicaRebuild(name, version as number | null));
  });
}

const conflict = (message: string): GatewayError => new GatewayError("GW_CONFLICT", message);

async function checkTwins({ name, url }: NewReplica, control: Control): Promise<void> {
  const { replicas } = await control.status();
  if (replicas.some((replica) => replica.name === name)) throw conflict(`There is a replica "${name}" already.`);
  const at = addressOf(url);
  const twin = replicas.find((replica) => replica.url !== null && reaches(at, addressOf(replica.url)));
  if (twin !== undefined) {
    throw conflict(`${url} is replica ${twin.name} already: the same copy twice would execute everything twice.`);
  }
}

function addressOf(url: string): Address {
  const { hostname, port } = new URL(url);
  return { host: hostname.replace(/^\[|\]$/g, ""), port: port === "" ? 80 : Number(port) };
}

async function knownName(request: FastifyRequest, control: Control): Promise<string> {
  const name = paramOf(request, "name");
  const names = (await control.status()).replicas.map((replica) => replica.name);
  if (names.includes(name)) return name;
  throw new GatewayError("GW_NOT_FOUND", `There is no replica "${name}", only ${names.join(", ")}.`);
}

function versionParam(request: FastifyRequest): number {
  const text = paramOf(request, "version");
  if (/^\d{1,15}$/.test(text)) return Number(text);
  throw new GatewayError("GW_NOT_FOUND", `"${text}" is not the version of a snapshot.`);
}

/** A misspelt key must not be taken for its absence: it may have said which version. */
function only(body: Readonly<Record<string, unknown>>, keys: readonly string[]): Readonly<Record<string, unknown>> {
  const wrong = Object.keys(body).find((key) => !keys.includes(key));
  if (wrong === undefined) return body;
  const allowed = keys.length === 0 ? "the body has to be empty" : `only ${keys.join(", ")}`;
  throw bad(`${JSON.stringify(wrong)} is not known here: ${allowed}`);
}
