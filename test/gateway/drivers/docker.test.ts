import { createServer } from "node:http";
import { join } from "node:path";
import { afterAll, describe, expect, onTestFinished, test } from "vitest";
import { demultiplex } from "../../../gateway/drivers/docker-logs.ts";
import { DockerEngine } from "../../../gateway/drivers/docker.ts";
import { engineLabels } from "../../../gateway/drivers/state-volume.ts";
import { engine, hasEngine, removeService, testImage } from "../../helpers/engine.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { RequestListener } from "node:http";

const service = `driver-${process.pid}`;
const labels = { [engineLabels.service]: service };
afterAll(() => (hasEngine ? removeService(service) : undefined));

describe("a container engine", () => {
  test("that is no engine of this machine is refused before anything is asked of it", () => {
    for (const address of [
      "tcp://10.0.0.1:2375",
      "ssh://host",
      "unix://relative",
      "/var/run/docker.sock",
      "tcp://localhost",
    ]) {
      expect(() => new DockerEngine(address), address).toThrow(`the container engine ${address} is neither`);
    }
  });

  test("that is away is told apart from one that refuses, and the cause is kept", async () => {
    await expect(new DockerEngine("unix:///nowhere/engine.sock").ping()).rejects.toMatchObject({
      code: "GW_ENGINE_UNAVAILABLE",
      message:
        "the container engine at unix:///nowhere/engine.sock cannot be used: connect ENOENT /nowhere/engine.sock",
      cause: { code: "ENOENT" },
    });
    const { at } = await fake(
      (_, response) => void response.writeHead(500).end('{"message":"no space left on device"}'),
    );
    await expect(at.createVolume("v", {})).rejects.toMatchObject({
      code: "GW_ENGINE_REFUSED",
      message: `the container engine at ${at.address} refuses: POST /volumes/create: no space left on device`,
    });
  });

  test("that does not answer is given up, and so is a wish that its asker gave up", async () => {
    const { at } = await fake(() => {}, 200);
    await expect(at.imageId("a")).rejects.toMatchObject({ code: "GW_ENGINE_UNAVAILABLE" });
    await expect(at.imageId("a", AbortSignal.abort(new Error("changed our mind")))).rejects.toThrow("changed our mind");
    const abort = new AbortController();
    const wait = at.waitContainer("a", abort.signal);
    setTimeout(() => abort.abort(new Error("enough waited")), 50);
    await expect(wait).rejects.toThrow("enough waited");
  });

  test("is spoken to in the pinned version, or in its oldest where that is newer, and asked anew when another has taken its place", async () => {
    let oldest = "1.24";
    const { at, asked, drop } = await fake(
      (_, response) => void response.end("{}"),
      5_000,
      () => oldest,
    );
    await at.hasVolume("v");
    oldest = "1.44";
    await at.hasVolume("v");
    await drop();
    await expect(at.hasVolume("v")).rejects.toMatchObject({ code: "GW_ENGINE_UNAVAILABLE" });
    await at.hasVolume("v");
    expect(asked).toEqual(["/version", "/v1.41/volumes/v", "/v1.41/volumes/v", "/version", "/v1.44/volumes/v"]);
  });

  test("that answers what no engine answers is taken for away, however much it says", async () => {
    const { at } = await fake((_, response) => void response.end("<html>"));
    await expect(at.hasVolume("v")).rejects.toThrow("what answers GET /volumes/v is no container engine");
    const endless = await fake((_, response) => {
      const say = (): void => {
        while (!response.destroyed && response.write("x".repeat(1024 * 1024)));
      };
      response.on("drain", say);
      say();
    });
    await expect(endless.at.hasVolume("v")).rejects.toThrow("it answered more than 16777216 bytes");
  });

  test("that ends in the middle of an answer has not answered", async () => {
    const { at } = await fake((_, response) => {
      response.writeHead(200, { "content-length": 100 }).write("half");
      setTimeout(() => response.destroy(), 20);
    });
    const archive = await at.archive("c", "/data", AbortSignal.timeout(5_000));
    await expect(collect(archive ?? [])).rejects.toMatchObject({ code: "GW_ENGINE_UNAVAILABLE" });
  });

  test("gets what fails while it is given as an archive, as it failed", async () => {
    const { at } = await fake((request, response) => void request.resume().on("end", () => response.end()));
    await expect(at.putArchive("c", "/", broken(), AbortSignal.timeout(5_000))).rejects.toThrow("the store is away");
  });

  test("tells no name of an archive apart by its encoding", async () => {
    const { at, asked } = await fake((_, response) => void response.end());
    await at.archive("c", "/data/\u00ff\u00fe%&+ ü", AbortSignal.timeout(5_000));
    expect(asked.at(-1)).toBe("/v1.41/containers/c/archive?path=/data/%FF%FE%25%26%2B%20%FC");
  });
});

describe("output of a container", () => {
  test("is put together wherever the stream is cut", async () => {
    const whole = Buffer.concat([frame(1, "out\n"), frame(2, "err\n"), frame(1, ""), frame(1, "é".repeat(300))]);
    for (const size of [1, 2, 7, 8, 9, 50, whole.length]) {
      const said = { stdout: "", stderr: "" };
      const cut = async function* (): AsyncGenerator<Buffer> {
        for (let at = 0; at < whole.length; at += size) yield whole.subarray(at, at + size);
      };
      for await (const { stream, bytes } of demultiplex(cut())) said[stream] += bytes.toString("latin1");
      expect(Buffer.from(said.stdout, "latin1").toString()).toBe(`out\n${"é".repeat(300)}`);
      expect(said.stderr).toBe("err\n");
    }
  });
});

describe.skipIf(!hasEngine)("a real engine", () => {
  test("says who it is, and knows images by a digest", async () => {
    const { name, version } = await engine.ping();
    expect([name, version]).toEqual([expect.stringMatching(/^\w/), expect.stringMatching(/^\d+\./)]);
    expect(await engine.imageId(await testImage())).toMatch(/^sha256:[0-9a-f]{64}$/);
    expect(await engine.imageId("localhost/not-there:1")).toBeNull();
    const spec = { image: "localhost/not-there:1", labels, command: null, env: {}, port: null, mount: null };
    await expect(engine.createContainer(`${service}-none`, spec)).rejects.toMatchObject({
      code: "GW_ENGINE_REFUSED",
      message: expect.stringContaining("run `docker pull localhost/not-there:1`") as string,
    });
  });

  test("keeps volumes by name and label, and takes those that are gone for removed", async () => {
    const name = `${service}-v`;
    await engine.createVolume(name, labels);
    await engine.createVolume(name, labels);
    expect(await engine.hasVolume(name)).toBe(true);
    expect(await engine.volumes(`${engineLabels.service}=${service}`)).toEqual([name]);
    await engine.removeVolume(name);
    await engine.removeVolume(name);
    expect([await engine.hasVolume(name), await engine.volumes(`${engineLabels.service}=${service}`)]).toEqual([
      false,
      [],
    ]);
  });

  test("runs a container whose life can be followed from its creation to its removal", async () => {
    const script = `console.log("a"); console.error("b"); process.on("SIGTERM", () => process.exit(7)); setInterval(() => {}, 1000)`;
    const spec = {
      image: await testImage(),
      labels,
      command: ["node", "-e", script],
      env: {},
      port: 3000,
      mount: null,
    };
    const id = await engine.createContainer(`${service}-c`, spec);
    expect(await engine.container(id)).toMatchObject({ isAlive: false, status: "created" });
    await engine.startContainer(id);
    const running = await engine.container(id);
    expect(running).toMatchObject({ id, isAlive: true, isPaused: false, imageId: await engine.imageId(spec.image) });
    expect(running?.published.get(3000)).toBeGreaterThan(0);
    expect(await engine.containers("label", `${engineLabels.service}=${service}`)).toEqual([
      { id, name: `${service}-c`, isAlive: true, labels: expect.objectContaining(labels) as object },
    ]);
    const said = { stdout: "", stderr: "" };
    const logs = (async () => {
      for await (const { stream, bytes } of engine.logs(id, 0, AbortSignal.timeout(20_000)))
        said[stream] += bytes.toString();
    })();
    await waitFor(() => said.stdout === "a\n" && said.stderr === "b\n", { what: "its output" });
    await engine.killContainer(id, "SIGTERM");
    await engine.waitContainer(id, AbortSignal.timeout(20_000));
    await logs;
    expect(await engine.container(id)).toMatchObject({ isAlive: false, exitCode: 7 });
    await expect(engine.killContainer(id, "SIGTERM")).rejects.toMatchObject({ code: "GW_ENGINE_REFUSED" });
    await engine.removeContainer(id);
    await engine.removeContainer(id);
    await engine.waitContainer(id, AbortSignal.timeout(20_000));
    expect(await engine.container(id)).toBeNull();
  });
});

async function* broken(): AsyncGenerator<Buffer> {
  yield Buffer.from("a");
  throw new Error("the store is away");
}

function frame(stream: number, said: string): Buffer {
  const head = Buffer.alloc(8);
  head[0] = stream;
  head.writeUInt32BE(Buffer.byteLength(said), 4);
  return Buffer.concat([head, Buffer.from(said)]);
}

async function collect(source: AsyncIterable<Buffer> | Iterable<Buffer>): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of source) pieces.push(piece);
  return Buffer.concat(pieces);
}

/** An engine that answers what the test wants; `drop` resets the next connection. */
async function fake(
  answer: RequestListener,
  timeoutMs = 5_000,
  oldest: () => string = () => "1.24",
): Promise<{ at: DockerEngine; asked: string[]; drop: () => Promise<void> }> {
  const path = join(temporaryFolder("engine"), "engine.sock");
  const asked: string[] = [];
  let isDropping = false;
  const server = createServer((request, response) => {
    if (isDropping) {
      isDropping = false;
      request.socket.destroy();
      return;
    }
    asked.push(request.url ?? "");
    if (request.url === "/version") response.end(JSON.stringify({ Version: "1", MinAPIVersion: oldest() }));
    else answer(request, response);
  });
  await new Promise<void>((resolve) => void server.listen(path, resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const at = new DockerEngine(`unix://${path}`, timeoutMs);
  return { at, asked, drop: async () => void (isDropping = true) };
}
