// A real container engine for tests: which one, an image with this machine's node, a way to be cut off from it, and everything removed afterwards.
// `.ci/container-engine start` gives a machine one; GATEWAY_TEST_CONTAINERS=required makes its absence a failure.
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { request } from "node:http";
import { connect, createServer } from "node:net";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import type { IncomingMessage } from "node:http";
import type { Socket } from "node:net";
import { DockerEngine } from "../../gateway/drivers/docker.ts";
import { engineLabels } from "../../gateway/drivers/state-volume.ts";
import { tarEnd, tarHead, tarPadding } from "../../recorder/capture/tar.ts";
import { createFolder, removeFolder } from "./folder.ts";

/** What the global setup found; empty: none, and container tests are skipped. */
export const engineAddress = process.env["GATEWAY_TEST_ENGINE"] ?? "";
export const hasEngine = engineAddress !== "";

/** Sets what the tests read, and says in a line what will happen. Throws where containers are required and none can be run. */
export async function findEngine(): Promise<string> {
  const address = process.env["DOCKER_HOST"] || "unix:///var/run/docker.sock";
  process.env["GATEWAY_TEST_ENGINE"] = "";
  try {
    const engine = new DockerEngine(address, 5_000);
    const { name, version } = await engine.ping();
    process.env["GATEWAY_TEST_ENGINE"] = address;
    return `container tests use ${name} ${version} at ${address}`;
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    if (process.env["GATEWAY_TEST_CONTAINERS"] === "required")
      throw new Error(`the container tests must run: ${why}`, { cause: error });
    return `container tests are SKIPPED (.ci/container-engine gives a machine an engine): ${why}`;
  }
}

export const engine: DockerEngine = new DockerEngine(hasEngine ? engineAddress : "unix:///nowhere");

const backendFile = fileURLToPath(new URL("journal-backend.mjs", import.meta.url));
/** Of the image's user, who owns the folder of its state. */
export const imageUser = 1000;

/** Node and the journal backend, which keeps its state in /data; there the image has one file, `seed.txt`. Kept in the engine for the next run. */
export function testImage(): Promise<string> {
  image ??= makeImage();
  return image;
}
let image: Promise<string> | null = null;

async function makeImage(): Promise<string> {
  const digest = createHash("sha256")
    .update(`3 ${process.version} ${process.arch}\n`)
    .update(await readFile(backendFile))
    .digest("hex")
    .slice(0, 12);
  const repository = `localhost/gateway-test-${digest}`;
  const name = `${repository}:1`;
  if ((await engine.imageId(name)) !== null) return name;
  const changes = [
    'CMD ["node", "/app/backend.mjs"]',
    "ENV PATH=/usr/bin",
    "ENV HOST=0.0.0.0",
    `USER ${imageUser}:${imageUser}`,
    "WORKDIR /app",
  ];
  const query = new URLSearchParams({ fromSrc: "-", repo: repository, tag: "1" });
  for (const change of changes) query.append("changes", change);
  const said = await ask("POST", `/images/create?${query.toString()}`, rootFiles());
  const id = /sha256:[0-9a-f]{64}/.exec(said)?.[0];
  if (id === undefined) throw new Error(`the engine made no image: ${said}`);
  await ask("POST", `/images/${id}/tag?repo=${repository}&tag=1`);
  return name;
}

/** A root file system that holds no more than node needs. */
async function* rootFiles(): AsyncGenerator<Buffer> {
  const { stdout } = await promisify(execFile)("ldd", [process.execPath]);
  const libraries = [...stdout.matchAll(/(\/\S+\.so\S*)/g)].map(([, path = ""]) => path);
  const files = new Map([
    ["/usr/bin/node", process.execPath],
    ["/app/backend.mjs", backendFile],
    ...libraries.map((it) => [it, it] as const),
  ]);
  const made = new Set(["/"]);
  for (const [path, source] of files) {
    for (let parent = dirname(path), missing: string[] = []; ; parent = dirname(parent)) {
      if (!made.has(parent)) {
        missing.unshift(parent);
        made.add(parent);
        continue;
      }
      for (const it of missing) yield folder(it, 0o755, 0);
      break;
    }
    const { size } = await stat(source);
    yield tarHead({ kind: "file", path: path.slice(1), target: "", mode: 0o755, uid: 0, gid: 0, sizeBytes: size }, 0);
    for await (const piece of createReadStream(source, { highWaterMark: 1024 * 1024 })) yield piece as Buffer;
    yield tarPadding(size);
  }
  yield folder("/tmp", 0o1777, 0);
  yield folder("/data", 0o750, imageUser);
  const seed = Buffer.from("from the image\n");
  yield tarHead(
    {
      kind: "file",
      path: "data/seed.txt",
      target: "",
      mode: 0o640,
      uid: imageUser,
      gid: imageUser,
      sizeBytes: seed.length,
    },
    0,
  );
  yield seed;
  yield tarPadding(seed.length);
  yield tarEnd;
}

const folder = (path: string, mode: number, owner: number): Buffer =>
  tarHead({ kind: "folder", path: path.slice(1), target: "", mode, uid: owner, gid: owner, sizeBytes: 0 }, 0);

/** What the gateway itself never asks of an engine. */
async function ask(
  method: string,
  path: string,
  body: AsyncIterable<Buffer> | Iterable<string> | null = null,
  contentType = "application/x-tar",
): Promise<string> {
  const unix = /^unix:\/\/(.+)$/.exec(engineAddress)?.[1];
  const where = unix === undefined ? new URL(engineAddress.replace("tcp:", "http:")) : null;
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const call = request({
      method,
      path: `/v1.41${path}`,
      headers: { host: "engine", "content-type": contentType },
      ...(where === null ? { socketPath: unix } : { host: where.hostname, port: where.port }),
    });
    call.once("response", resolve);
    call.once("error", reject);
    void (async () => {
      for await (const piece of body ?? [])
        if (!call.write(piece)) await new Promise((drained) => call.once("drain", drained));
      call.end();
    })().catch(reject);
  });
  let said = "";
  for await (const piece of response) said += String(piece);
  if ((response.statusCode ?? 500) >= 300) throw new Error(`${method} ${path}: ${response.statusCode} ${said}`);
  return said;
}

/** As `docker pause` does: frozen, ports open. */
export async function pause(container: string): Promise<void> {
  await ask("POST", `/containers/${container}/pause`);
}

/** What a container holds becomes an image, with the container's own command and labels; the name leaves the image that had it. */
export async function commit(container: string, repository: string, tag: string): Promise<void> {
  const query = new URLSearchParams({ container, repo: repository, tag });
  await ask("POST", `/commit?${query.toString()}`, ["{}"], "application/json");
}

export async function removeImage(image: string): Promise<void> {
  await ask("DELETE", `/images/${encodeURIComponent(image)}?force=1`);
}

/** Containers and volumes of a service, whoever of ours made them. */
export async function removeService(service: string): Promise<void> {
  const label = `${engineLabels.service}=${service}`;
  for (const { id } of await engine.containers("label", label)) await engine.removeContainer(id);
  for (const volume of await engine.volumes(label)) await engine.removeVolume(volume);
}

export interface CutEngine {
  readonly address: string;
  /** As if the engine were killed: connections are reset, new ones are refused. */
  cut(): void;
  /** The engine is back; its containers have gone on. */
  mend(): Promise<void>;
  /** What is to be unpacked is refused from now on, when some of it was read; null: no longer. */
  refusePuts(message: string | null): void;
  close(): void;
}

/** The engine behind a socket of our own. */
export async function cutEngine(): Promise<CutEngine> {
  const folder = createFolder("engine");
  const path = join(folder, "engine.sock");
  const sockets = new Set<Socket>();
  const unix = /^unix:\/\/(.+)$/.exec(engineAddress)?.[1];
  const where = unix === undefined ? new URL(engineAddress.replace("tcp:", "http:")) : null;
  let refusal: string | null = null;
  const server = createServer((client) => {
    if (refusal !== null) client.once("data", (head: Buffer) => refusePut(client, head, refusal ?? ""));
    const upstream = where === null ? connect(unix ?? "") : connect(Number(where.port), where.hostname);
    for (const [from, to] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      sockets.add(from);
      from.on("error", () => to.destroy());
      from.on("close", () => {
        sockets.delete(from);
        to.destroy();
      });
      from.pipe(to);
    }
  });
  const listen = (): Promise<void> => new Promise((resolve) => void server.listen(path, resolve));
  const cut = (): void => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
  await listen();
  return {
    address: `unix://${path}`,
    cut,
    mend: listen,
    refusePuts: (message) => (refusal = message),
    close: () => {
      cut();
      removeFolder(folder);
    },
  };
}

/** Each call has a connection of its own, and begins with its head. */
function refusePut(client: Socket, head: Buffer, message: string): void {
  if (!head.toString("latin1").startsWith("PUT ")) return;
  client.unpipe();
  let bytes = 0;
  client.on("data", (piece: Buffer) => {
    bytes += piece.length;
    if (bytes < 1_000_000) return;
    const body = JSON.stringify({ message });
    client.end(
      `HTTP/1.1 500 Internal Server Error\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
    );
    client.removeAllListeners("data").resume();
  });
}
