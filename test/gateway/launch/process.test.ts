import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { foreignListener, takePort } from "../../../gateway/launch/port.ts";
import { isRunning, machineBootId, readStat } from "../../../gateway/launch/proc.ts";
import { createProcessLaunch } from "../../../gateway/launch/process.ts";
import { markOf, markVariable } from "../../../gateway/launch/orphans.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import { journalBackendFile } from "../../helpers/journal-backend.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { AddressInfo } from "node:net";
import type { Launch } from "../../../gateway/launch/launch.ts";
import type { ProcessLaunchOptions } from "../../../gateway/launch/process.ts";

test("a backend is started with its port, state folder and name, in the command and in the environment", async () => {
  process.env["GATEWAY_SECRET"] = "x";
  const { launch, folder } = create({
    command: node(
      `${serve} report({ argv: process.argv.slice(1), env: process.env, cwd: process.cwd() })`,
      "--p={port}",
      "{state}",
      "{name}",
      "{other}",
    ),
    env: { LOG: "info", PORT: "1" },
  });
  const { url } = await launch.start(soon());
  delete process.env["GATEWAY_SECRET"];
  const { argv, env, cwd } = JSON.parse(await (await fetch(url)).text()) as {
    argv: string[];
    env: Record<string, string>;
    cwd: string;
  };
  const port = new URL(url).port;
  expect(argv).toEqual([`--p=${port}`, join(folder, "state/r1"), "r1", "{other}"]);
  expect([env["PORT"], env["STATE_DIR"], env["LOG"], env["PATH"]]).toEqual([
    port,
    join(folder, "state/r1"),
    "info",
    process.env["PATH"],
  ]);
  expect(Object.keys(env).filter((name) => name.startsWith("GATEWAY_"))).toEqual([markVariable]);
  expect(env[markVariable]).toBe(await markOf(join(folder, "records"), "r1"));
  expect(cwd).toBe(folder);
  expect([launch.isManaged, launch.state, existsSync(join(folder, "state/r1"))]).toEqual([
    true,
    join(folder, "state/r1"),
    true,
  ]);
});

test("an incarnation is the machine's boot, the pid and its start time; a second life is another, on another port", async () => {
  const { launch } = create({
    command: [process.execPath, journalBackendFile],
    ready: { method: "GET", path: "/health" },
  });
  const first = await launch.start(soon());
  const [bootId, pid, startTime] = first.id.split(":");
  expect(bootId).toBe(machineBootId());
  expect(readStat(Number(pid))?.startTime).toBe(startTime);
  await expect(launch.start(soon())).rejects.toThrow("runs already");
  await launch.stop(5_000);
  expect(readStat(Number(pid))).toBeNull();
  const second = await launch.start(soon());
  expect(second.id).not.toBe(first.id);
  expect(second.url).not.toBe(first.url);
});

test("readiness is an answer below 400, or without a request an accepting port", async () => {
  const { launch, lines } = create({
    command: node(
      `let n = 0; ${listen}((q, r) => { console.log(q.url); r.statusCode = ++n < 3 ? 503 : 204; r.end() })`,
    ),
    ready: { method: "GET", path: "/health?deep" },
  });
  await launch.start(soon());
  await waitFor(() => lines.length >= 3, { what: "three lines" });
  expect(lines).toEqual(["/health?deep", "/health?deep", "/health?deep"]);
});

test("a backend that ends before it is ready rejects the start at once, with what it said", async () => {
  const { launch } = create({
    command: node(`console.error("no database"); process.exit(3)`),
    ready: { method: "GET", path: "/" },
  });
  const exits: string[] = [];
  launch.onExit((reason) => exits.push(reason));
  await expect(launch.start(soon())).rejects.toThrow("replica r1 exited with code 3\nno database");
  await expect(create({ command: ["/nowhere/at-all"] }).launch.start(soon())).rejects.toThrow(
    "could not be started: spawn /nowhere/at-all ENOENT",
  );
  expect(exits).toEqual([]);
});

test("an aborted start rejects with the signal's reason and leaves no process", async () => {
  const { launch, lines } = create({ command: node(`console.log(process.pid); setInterval(() => {}, 1000)`) });
  const abort = new AbortController();
  const start = launch.start(abort.signal);
  await waitFor(() => lines.length > 0, { what: "the pid" });
  abort.abort(new Error("changed our mind"));
  await expect(start).rejects.toThrow("changed our mind");
  expect(readStat(Number(lines[0]))).toBeNull();
  await expect(launch.start(AbortSignal.abort(new Error("too late")))).rejects.toThrow("too late");
});

test("an end that was not asked for is heard once, one that was is not", async () => {
  const { launch } = create({ command: [process.execPath, journalBackendFile] });
  const exits: string[] = [];
  launch.onExit((reason) => exits.push(reason));
  const { id } = await launch.start(soon());
  process.kill(Number(id.split(":")[1]), "SIGKILL");
  await waitFor(() => exits.length > 0, { what: "the exit" });
  await launch.start(soon());
  await launch.stop(5_000);
  await launch.stop(5_000);
  expect(exits).toEqual(["was killed by SIGKILL"]);
});

test("stop asks first: a backend that ends on SIGTERM ends in its own way", async () => {
  const { launch, lines } = create({
    command: node(`${serve} process.on("SIGTERM", () => { console.log("flushed"); process.exit() })`),
  });
  await launch.start(soon());
  await launch.stop(10_000);
  await waitFor(() => lines.includes("flushed"), { what: "its last line" });
});

test("stop resolves when all of it is gone: one that ignores SIGTERM, its children, and those that left its group", async () => {
  const { launch, lines } = create({
    command: node(`
      process.on("SIGTERM", () => {});
      const { spawn } = require("node:child_process");
      const stubborn = 'process.on("SIGTERM", () => {}); console.log(process.pid); setInterval(() => {}, 1000)';
      for (const detached of [false, true]) spawn(process.execPath, ["-e", stubborn], { detached, stdio: "inherit" });
      console.log(process.pid);
      ${serve}`),
  });
  await launch.start(soon());
  await waitFor(() => lines.length === 3, { what: "three pids" });
  await launch.stop(200);
  expect(lines.map((pid) => isRunning(readStat(Number(pid))))).toEqual([false, false, false]);
});

test("children do not outlive a backend that died by itself into its next life", async () => {
  const { launch, lines } = create({
    command: node(`
      const child = require("node:child_process").spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)"], { detached: true, stdio: "ignore" });
      console.log(child.pid);
      ${serve}`),
  });
  const { id } = await launch.start(soon());
  await waitFor(() => lines.length === 1, { what: "the child's pid" });
  process.kill(Number(id.split(":")[1]), "SIGKILL");
  await waitFor(() => readStat(Number(id.split(":")[1])) === null, { what: "the end" });
  await waitFor(() => launch.start(soon()).then(() => true), { what: "the next life" });
  expect(isRunning(readStat(Number(lines[0])))).toBe(false);
});

test("close ends the backend, also one that is starting, and may be called twice", async () => {
  const { launch, lines } = create({ command: node(`console.log(process.pid); setInterval(() => {}, 1000)`) });
  const start = launch.start(soon());
  start.catch(() => {});
  await waitFor(() => lines.length > 0, { what: "the pid" });
  await Promise.all([launch.close(), launch.close()]);
  await expect(start).rejects.toThrow("was closed");
  expect(readStat(Number(lines[0]))).toBeNull();
  await expect(launch.start(soon())).rejects.toThrow("was closed");
});

test("a seed becomes the state of a new replica, whole, and never touches one that has state", async () => {
  const folder = temporaryFolder("seed");
  mkdirSync(join(folder, "seed/deep"), { recursive: true });
  writeFileSync(join(folder, "seed/deep/a"), "seeded");
  mkdirSync(join(folder, "state/.r1.seeding-1/deep"), { recursive: true }); // an earlier start died half-way
  const { launch } = create({
    command: node(serve),
    seed: join(folder, "seed"),
    stateFolder: join(folder, "state/r1"),
  });
  await launch.start(soon());
  await launch.stop(5_000);
  expect(readdirSync(join(folder, "state"))).toEqual(["r1"]);
  expect(readFileSync(join(folder, "state/r1/deep/a"), "utf8")).toBe("seeded");
  writeFileSync(join(folder, "state/r1/deep/a"), "changed");
  await launch.start(soon());
  expect(readFileSync(join(folder, "state/r1/deep/a"), "utf8")).toBe("changed");
});

test("a missing seed fails the start and leaves no state folder", async () => {
  const { launch, folder } = create({ command: node(serve), seed: "/nowhere/seed" });
  await expect(launch.start(soon())).rejects.toThrow("ENOENT");
  expect(readdirSync(join(folder, "state"))).toEqual([]);
});

test("output comes line by line from both streams", async () => {
  const { launch, lines, streams } = create({
    command: node(
      `${serve} process.stdout.write("a\\r\\nb"); process.stderr.write("\\u00e9\\n"); setTimeout(() => console.log("c"), 50)`,
    ),
  });
  await launch.start(soon());
  await waitFor(() => lines.length === 3, { what: "three lines" });
  expect(lines.toSorted()).toEqual(["a", "bc", "é"]);
  expect(streams.filter((stream) => stream === "stderr").length).toBe(1);
});

test("ports come from the range, are not given twice, and run out", async () => {
  const busy = createServer().listen(0, "127.0.0.1");
  onTestFinished(() => void busy.close());
  await waitFor(() => busy.listening, { what: "a listener" });
  const { port } = busy.address() as AddressInfo;
  await expect(takePort("127.0.0.1", { from: port, to: port })).rejects.toThrow(
    `no port from ${port} to ${port} is free`,
  );
  const taken = await Promise.all(Array.from({ length: 20 }, () => takePort("127.0.0.1", null)));
  expect(new Set(taken).size).toBe(20);
});

test("a port that another replica listens on is noticed", async () => {
  const { launch, folder } = create({ command: node(serve) });
  const port = Number(new URL((await launch.start(soon())).url).port);
  const mark = await markOf(join(folder, "records"), "r1");
  expect(foreignListener(port, markVariable, "another/r2")).toBe(mark);
  expect(foreignListener(port, markVariable, mark)).toBeNull();
});

const listen = `const listen = (f) => require("node:http").createServer(f).listen(process.env.PORT, "127.0.0.1"); listen`;
const serve = `let said = ""; const report = (value) => { said = JSON.stringify(value) }; require("node:http").createServer((q, r) => r.end(said)).listen(process.env.PORT, "127.0.0.1");`;
const node = (script: string, ...args: string[]): string[] => [process.execPath, "-e", script, "--", ...args];
const soon = (): AbortSignal => AbortSignal.timeout(15_000);

function create(options: Partial<ProcessLaunchOptions> & { command: readonly string[] }): {
  launch: Launch;
  folder: string;
  lines: string[];
  streams: string[];
} {
  const folder = temporaryFolder("launch");
  const lines: string[] = [];
  const streams: string[] = [];
  const launch = createProcessLaunch({
    name: "r1",
    cwd: folder,
    env: {},
    stateFolder: join(folder, "state/r1"),
    ready: null,
    recordsFolder: join(folder, "records"),
    onOutput: (line, stream) => {
      lines.push(line);
      streams.push(stream);
    },
    ...options,
  });
  onTestFinished(() => launch.close());
  return { launch, folder, lines, streams };
}
