import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, onTestFinished, test } from "vitest";
import { engineLabels, newNote, readNote, volumeName, writeNote } from "../../../gateway/drivers/state-volume.ts";
import { endContainers } from "../../../gateway/launch/container-end.ts";
import { createContainerLaunch, waitHeld } from "../../../gateway/launch/container.ts";
import { markOf } from "../../../gateway/launch/orphans.ts";
import { machineBootId } from "../../../gateway/launch/proc.ts";
import { cutEngine, engine, engineAddress, hasEngine, pause, removeService, testImage } from "../../helpers/engine.ts";
import { endWithUs, temporaryFolder } from "../../helpers/folder.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { AddressInfo } from "node:net";
import type { ContainerLaunch, ContainerLaunchOptions } from "../../../gateway/launch/container.ts";

const service = `launch-${randomBytes(4).toString("hex")}`;
afterAll(() => (hasEngine ? removeService(service) : undefined), 60_000);

test("a port whose helper accepts and closes at once is not ready until the service behind it is", async () => {
  let isServing = false;
  let refused = 0;
  const helper = createServer((socket) => {
    if (isServing) return;
    socket.destroy();
    refused += 1;
  }).listen(0, "127.0.0.1");
  onTestFinished(() => void helper.close());
  await waitFor(() => helper.listening, { what: "the helper" });
  const { port } = helper.address() as AddressInfo;
  const ready = waitHeld(`http://127.0.0.1:${port}`, soon()).then(() => "ready");
  await waitFor(() => refused >= 3, { what: "three attempts" });
  isServing = true;
  expect(await ready).toBe("ready");
  isServing = false;
  await expect(waitHeld(`http://127.0.0.1:${port}`, AbortSignal.abort(new Error("enough")))).rejects.toThrow("enough");
});

test("an engine that is away rejects the start, with its address, and later ones can succeed", async () => {
  const { launch } = create({ engine: "unix:///nowhere/engine.sock", image: "any" });
  const attempt = launch.start(soon());
  await expect(launch.start(soon())).rejects.toThrow("runs already");
  await expect(attempt).rejects.toMatchObject({ code: "GW_ENGINE_UNAVAILABLE" });
  await expect(launch.start(AbortSignal.abort(new Error("too late")))).rejects.toThrow("too late");
  await expect(launch.imageDigest()).rejects.toMatchObject({ code: "GW_ENGINE_UNAVAILABLE" });
  await launch.stop(100);
  await Promise.all([launch.close(), launch.close()]);
  await expect(launch.start(soon())).rejects.toThrow("was closed");
});

describe.skipIf(!hasEngine)("a backend in a container", { timeout: 60_000 }, () => {
  test("is started with its port, state and name filled in, and with nothing of the gateway's environment", async () => {
    process.env["GATEWAY_SECRET"] = "x";
    onTestFinished(() => void delete process.env["GATEWAY_SECRET"]);
    const { launch, folder } = await createReal({
      command: ["node", "-e", reporter, "--", "--p={port}", "{state}", "{name}", "{other}"],
      env: { LOG: "{name}!", PORT: "1" },
    });
    const { url } = await launch.start(soon());
    const { argv, env } = (await (await fetch(url)).json()) as { argv: string[]; env: Record<string, string> };
    expect(argv).toEqual(["--p=3000", "/data", "r1", "{other}"]);
    expect(env).toMatchObject({ PORT: "3000", STATE_DIR: "/data", LOG: "r1!" });
    expect(Object.keys(env).filter((name) => name.startsWith("GATEWAY_"))).toEqual([]);
    expect([launch.isManaged, launch.state]).toEqual([true, null]);

    const [container] = await ours(folder);
    expect(container?.name).toMatch(new RegExp(`^${service}-r1-[0-9a-f]{12}$`));
    expect(container?.labels).toMatchObject({ [engineLabels.service]: service, [engineLabels.replica]: "r1" });
    expect(await launch.imageDigest()).toBe(await engine.imageId(await testImage()));
    // Published on the loopback address alone.
    const address =
      Object.values(networkInterfaces())
        .flat()
        .find((it) => it?.family === "IPv4" && !it.internal)?.address ?? "127.0.0.2";
    await expect(
      fetch(`http://${address}:${new URL(url).port}`, { signal: AbortSignal.timeout(2_000) }),
    ).rejects.toThrow();
  });

  test("keeps its state over lives and nothing else; each life is another incarnation, at another address", async () => {
    const { launch, note } = await createReal({ ready: { method: "GET", path: "/health" } });
    const first = await launch.start(soon());
    const [bootId, container, ...startedAt] = first.id.split(":");
    expect([bootId, container]).toEqual([machineBootId(), expect.stringMatching(/^container-[0-9a-f]{64}$/)]);
    expect(Date.parse(startedAt.join(":"))).toBeGreaterThan(Date.now() - 60_000);
    await fetch(`${first.url}/r/a`, { method: "PUT", body: "1" });
    await launch.stop(5_000);
    await launch.stop(5_000);
    expect(await engine.container((container ?? "").slice("container-".length))).toBeNull();
    const second = await launch.start(soon());
    expect(second.id).not.toBe(first.id);
    expect(second.url).not.toBe(first.url);
    expect(await (await fetch(`${second.url}/r/a`)).json()).toMatchObject({ value: 1 });
    expect(await readNote(note)).toMatchObject({ service, replica: "r1", generation: 1, isFilled: true });
  });

  test("that ends before it is ready rejects the start at once, with what it said, and is not heard", async () => {
    const { launch, folder } = await createReal({
      command: ["node", "-e", `console.error("no database"); process.exit(3)`],
    });
    const exits: string[] = [];
    launch.onExit((reason) => exits.push(reason));
    await expect(launch.start(soon())).rejects.toThrow("replica r1 exited with code 3\nno database");
    expect([exits, await ours(folder)]).toEqual([[], []]);
  });

  test("that is still starting is ended when its start is given up", async () => {
    const { launch, folder, lines } = await createReal({
      command: ["node", "-e", `console.log("up"); setInterval(() => {}, 1000)`],
    });
    const abort = new AbortController();
    const start = launch.start(abort.signal);
    start.catch(() => {});
    await waitFor(() => lines.includes("up"), { what: "its first line", timeoutMs: 20_000 });
    abort.abort(new Error("changed our mind"));
    await expect(start).rejects.toThrow("changed our mind");
    expect(await ours(folder)).toEqual([]);
  });

  test("that crashes is heard once, that is stopped is not; the crashed one stays to be looked at until the next start", async () => {
    const { launch, folder } = await createReal({ command: ["node", "-e", reporter] });
    const exits: string[] = [];
    launch.onExit((reason) => exits.push(reason));
    const { url } = await launch.start(soon());
    await fetch(`${url}/exit`, { method: "POST" }).catch(() => {});
    await waitFor(() => exits.length > 0, { what: "the crash" });
    const [crashed] = await ours(folder);
    expect(crashed?.isAlive).toBe(false);
    const { id } = await launch.start(soon());
    const [next, ...others] = await ours(folder);
    expect([id.includes(next?.id ?? "-"), others]).toEqual([true, []]);
    await engine.killContainer(next?.id ?? "", "SIGKILL");
    await waitFor(() => exits.length > 1, { what: "the kill" });
    await launch.start(soon());
    await launch.stop(2_000);
    expect(exits).toEqual(["exited with code 9", "was killed by SIGKILL"]);
  });

  test("that somebody else removes, or starts again, has ended: what runs now is no life of ours, and is ended by the next start", async () => {
    const { launch, folder } = await createReal({ command: ["node", "-e", reporter] });
    const exits: string[] = [];
    launch.onExit((reason) => exits.push(reason));
    const { url } = await launch.start(soon());
    const [first] = await ours(folder);
    await engine.killContainer(first?.id ?? "", "SIGKILL");
    await engine.startContainer(first?.id ?? "");
    await waitFor(() => exits.length > 0, { what: "the end of the first life" });
    const { id } = await launch.start(soon());
    const alive = await ours(folder);
    expect(alive.map((it) => id.includes(it.id))).toEqual([true]);
    await expect(fetch(url)).rejects.toThrow();
    await engine.removeContainer(alive[0]?.id ?? "");
    await waitFor(() => exits.length > 1, { what: "the end of the second" });
    await launch.stop(1_000);
    expect(exits[0]).toMatch(/^was (killed by SIGKILL|started again by somebody else)$/);
    expect(exits[1]).toMatch(/^was (removed|killed by SIGKILL)$/);
  });

  test("is asked to end, and made to: one that flushes, one that does not listen, one that is frozen", async () => {
    const flushing = await createReal({
      command: ["node", "-e", `${stubborn}; process.on("SIGTERM", () => { console.log("flushed"); process.exit() })`],
      name: "flushing",
    });
    const deaf = await createReal({ command: ["node", "-e", stubborn], name: "deaf" });
    await Promise.all([flushing.launch.start(soon()), deaf.launch.start(soon())]);
    await Promise.all([flushing.launch.stop(10_000), deaf.launch.stop(300)]);
    expect(flushing.lines).toContain("flushed");
    expect([...(await ours(flushing.folder)), ...(await ours(deaf.folder))]).toEqual([]);
    await flushing.launch.start(soon());
    const [frozen] = await ours(flushing.folder);
    await pause(frozen?.id ?? "");
    await flushing.launch.stop(10_000);
    expect(flushing.lines.filter((line) => line === "flushed").length).toBe(2);
    expect(await ours(flushing.folder)).toEqual([]);
  });

  test("is heard line by line, both streams apart", async () => {
    const { launch, lines, streams } = await createReal({
      command: [
        "node",
        "-e",
        `${reporter}; process.stdout.write("a\\r\\nb"); process.stderr.write("\u00e9\\n"); setTimeout(() => console.log("c"), 50)`,
      ],
    });
    await launch.start(soon());
    await waitFor(() => lines.length === 3, { what: "three lines" });
    expect(lines.toSorted()).toEqual(["a", "bc", "\u00e9"]);
    expect(streams.filter((it) => it === "stderr").length).toBe(1);
  });

  test("lives on while its engine is away and back; what it says then, and a death in between, is heard afterwards", async () => {
    const cut = await cutEngine();
    onTestFinished(() => cut.close());
    const { launch, lines, folder } = await createReal({ command: ["node", "-e", reporter], engine: cut.address });
    const exits: string[] = [];
    launch.onExit((reason) => exits.push(reason));
    const { url } = await launch.start(soon());
    cut.cut();
    expect((await fetch(`${url}/say?one`)).status).toBe(200);
    await expect(launch.imageDigest()).resolves.toMatch(/^sha256:/);
    await cut.mend();
    expect((await fetch(`${url}/say?two`)).status).toBe(200);
    await waitFor(() => lines.includes("two"), { what: "its output" });
    expect(exits).toEqual([]);
    cut.cut();
    await engine.killContainer((await ours(folder))[0]?.id ?? "", "SIGKILL");
    expect(exits).toEqual([]);
    await cut.mend();
    await waitFor(() => exits.length > 0, { what: "its end" });
    expect(exits).toEqual(["was killed by SIGKILL"]);
    // What somebody began in its place is no life of ours.
    const { id } = await launch.start(soon());
    cut.cut();
    const [container] = (await ours(folder)).filter((it) => id.includes(it.id));
    await engine.killContainer(container?.id ?? "", "SIGKILL");
    await engine.startContainer(container?.id ?? "");
    await cut.mend();
    await waitFor(() => exits.length > 1, { what: "the end of its life" });
    expect(exits[1]).toBe("was started again by somebody else");
    await launch.stop(2_000);
    expect(await ours(folder)).toEqual([]);
  });

  test("is stopped also when the engine comes back only then", async () => {
    const cut = await cutEngine();
    onTestFinished(() => cut.close());
    const { launch, folder } = await createReal({ command: ["node", "-e", reporter], engine: cut.address });
    await launch.start(soon());
    cut.cut();
    const stop = launch.stop(100);
    expect((await ours(folder)).map(({ isAlive }) => isAlive)).toEqual([true]);
    await cut.mend();
    await stop;
    expect(await ours(folder)).toEqual([]);
  });

  test("that a killed gateway left behind is ended by the next start, before anything else, and nobody else's is", async () => {
    const { folder, options, launch } = await createReal({ command: ["node", "-e", reporter] });
    const stranger = await createReal({ command: ["node", "-e", reporter] });
    await stranger.launch.start(soon());
    const file = join(folder, "gateway.mts");
    const module = fileURLToPath(new URL("../../../gateway/launch/container.ts", import.meta.url));
    writeFileSync(
      file,
      `import { createContainerLaunch } from ${JSON.stringify(module)};
       const options = JSON.parse(process.argv[2]);
       await createContainerLaunch({ ...options, onOutput: () => {} }).start(AbortSignal.timeout(20_000));
       console.log("ready");`,
    );
    const { onOutput: _, ...json } = options;
    const child = spawn(process.execPath, ["--import", import.meta.resolve("tsx"), file, JSON.stringify(json)], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    onTestFinished(endWithUs(child.pid ?? 0));
    let said = "";
    child.stdout.on("data", (chunk: Buffer) => (said += chunk.toString()));
    await waitFor(() => said.includes("ready"), { what: "the gateway", timeoutMs: 25_000 });
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGKILL");
    await ended;
    const [orphan] = await ours(folder);
    expect(orphan?.isAlive).toBe(true);

    // Its replica may be none of the configuration any more: the gateway ends all of its data folder.
    const { recordsFolder, note } = options;
    const volumesFolder = join(note, "..");
    expect(await endContainers(engine, { recordsFolder, volumesFolder, graceMs: 500 })).toEqual([
      { name: "r1", container: orphan?.id },
    ]);
    expect(await endContainers(engine, { recordsFolder, volumesFolder })).toEqual([]);
    expect((await ours(stranger.folder)).map(({ isAlive }) => isAlive)).toEqual([true]);

    // And a start ends what is left of its own replica.
    const { launch: left } = await createReal({}, { folder, options });
    await left.start(soon());
    await launch.start(soon());
    expect((await ours(folder)).map(({ isAlive }) => isAlive)).toEqual([true]);
  });

  test("has the image's files in its first state alone: a state that was emptied stays empty", async () => {
    const { launch } = await createReal({ command: ["node", "-e", reporter] });
    const { url } = await launch.start(soon());
    expect(await (await fetch(`${url}/files`)).json()).toEqual(["seed.txt"]);
    await fetch(`${url}/empty`, { method: "POST" });
    await launch.stop(2_000);
    expect(await (await fetch(`${(await launch.start(soon())).url}/files`)).json()).toEqual([]);
  });

  test("gets a new volume in the place of one that was made half, and refuses to lose one that it had", async () => {
    const { launch, note } = await createReal({ command: ["node", "-e", reporter] });
    const half = newNote(service, "r1");
    await writeNote(note, half);
    await engine.createVolume(volumeName(half), { [engineLabels.service]: service });
    const { url } = await launch.start(soon());
    expect(await (await fetch(`${url}/files`)).json()).toEqual(["seed.txt"]);
    expect(await readNote(note)).toEqual({ ...half, isFilled: true });
    await launch.stop(2_000);
    await engine.removeVolume(volumeName(half));
    await expect(launch.start(soon())).rejects.toMatchObject({
      code: "GW_CONFLICT",
      message: expect.stringMatching(
        /^the volume launch-\S+ is gone, and with it the state of replica r1: rebuild/,
      ) as string,
    });
    writeFileSync(note, readFileSync(note, "utf8").slice(0, 20));
    await expect(launch.start(soon())).rejects.toThrow(`${note} does not say which volume`);
  });

  test("is not started on a volume that a container of somebody else uses, nor without its image", async () => {
    const { launch, note, options } = await createReal({ command: ["node", "-e", reporter] });
    await launch.start(soon());
    // As after a copy of the data folder: the same note, other marks.
    const copy = await createReal({ command: ["node", "-e", reporter], note });
    await expect(copy.launch.start(soon())).rejects.toThrow(
      /^the volume \S+ of replica r1 is in use by container \S+-r1-\S+, which is not this gateway/,
    );
    const missing = create({ ...options, image: "localhost/not-there:1" });
    await expect(missing.launch.start(soon())).rejects.toMatchObject({
      code: "GW_ENGINE_REFUSED",
      message: expect.stringContaining("run `docker pull localhost/not-there:1`") as string,
    });
  });

  test("may keep no state at all", async () => {
    const { launch, folder } = await createReal({ command: ["node", "-e", reporter], state: null });
    const { url } = await launch.start(soon());
    expect(((await (await fetch(url)).json()) as { env: Record<string, string> }).env["STATE_DIR"]).toBeUndefined();
    const { id } = (await ours(folder))[0] ?? { id: "" };
    expect(await engine.containers("volume", `${service}-r1`).then((all) => all.some((it) => it.id === id))).toBe(
      false,
    );
  });
});

/** Answers what it was started with, lists and empties its state, says what it is told, and ends with code 9. */
const stubborn = `
  const fs = require("node:fs");
  require("node:http").createServer((q, r) => {
    if (q.url === "/exit") process.exit(9);
    if (q.url.startsWith("/say")) console.log(q.url.split("?")[1]);
    if (q.url === "/empty") for (const name of fs.readdirSync("/data")) fs.rmSync("/data/" + name, { recursive: true });
    if (q.url === "/files") return r.end(JSON.stringify(fs.readdirSync("/data")));
    r.end(JSON.stringify({ argv: process.argv.slice(1), env: process.env }));
  }).listen(3000)`;
/** The same, and ends when it is asked to: the first process of a container does not by itself. */
const reporter = `${stubborn}; process.on("SIGTERM", () => process.exit(0))`;

const soon = (): AbortSignal => AbortSignal.timeout(50_000);

interface Created {
  readonly launch: ContainerLaunch;
  readonly folder: string;
  readonly note: string;
  readonly options: ContainerLaunchOptions;
  readonly lines: string[];
  readonly streams: string[];
}

function create(
  options: Partial<ContainerLaunchOptions> & { readonly image: string },
  folder = temporaryFolder("launch"),
): Created {
  const lines: string[] = [];
  const streams: string[] = [];
  const note = join(folder, "volumes/r1.volume.json");
  const all: ContainerLaunchOptions = {
    engine: engineAddress,
    service,
    name: "r1",
    port: 3000,
    state: "/data",
    command: null,
    env: {},
    ready: null,
    recordsFolder: join(folder, "records"),
    note,
    onOutput: (line, stream) => {
      lines.push(line);
      streams.push(stream);
    },
    ...options,
  };
  const launch = createContainerLaunch(all);
  onTestFinished(() => launch.close());
  return { launch, folder, note, options: all, lines, streams };
}

async function createReal(
  options: Partial<ContainerLaunchOptions>,
  like: Pick<Created, "folder" | "options"> | null = null,
): Promise<Created> {
  return create({ image: await testImage(), ...like?.options, ...options }, like?.folder);
}

/** The containers of the gateway whose data is in a folder. */
async function ours(folder: string): ReturnType<typeof engine.containers> {
  const mark = await markOf(join(folder, "records"), "");
  const all = await engine.containers("label", `${engineLabels.service}=${service}`);
  return all.filter(({ labels }) => labels[engineLabels.mark]?.startsWith(mark) === true);
}
