import { spawn } from "node:child_process";
import { cpSync, existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, onTestFinished, test } from "vitest";
import { endOrphans, forgetProcess, markOf, markVariable, recordProcess } from "../../../gateway/launch/orphans.ts";
import { isRunning, machineBootId, readStat } from "../../../gateway/launch/proc.ts";
import { endWithUs, temporaryFolder } from "../../helpers/folder.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { ProcessIdentity } from "../../../gateway/launch/proc.ts";

test("a gateway that was killed leaves a backend, and its next start ends it and its children, wherever they went", async () => {
  const folder = temporaryFolder("orphans");
  const launchFile = fileURLToPath(new URL("../../../gateway/launch/process.ts", import.meta.url));
  const backend = `
    const child = require("node:child_process").spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)"], { detached: true });
    console.log(process.pid + " " + child.pid);
    require("node:http").createServer().listen(process.env.PORT);`;
  const gateway = `
    import { createProcessLaunch } from ${JSON.stringify(launchFile)};
    const launch = createProcessLaunch({ name: "r1", command: [process.execPath, "-e", ${JSON.stringify(backend)}], cwd: ".", env: {}, ready: null,
      stateFolder: ${JSON.stringify(join(folder, "state"))}, recordsFolder: ${JSON.stringify(join(folder, "records"))}, onOutput: (line) => console.log(line) });
    await launch.start(AbortSignal.timeout(10_000));
    console.log("ready");`;
  const file = join(folder, "gateway.mts");
  writeFileSync(file, gateway);
  const child = spawn(process.execPath, ["--import", import.meta.resolve("tsx"), file], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  onTestFinished(endWithUs(child.pid ?? 0));
  let output = "";
  child.stdout.on("data", (chunk: Buffer) => (output += chunk.toString()));
  await waitFor(() => /^ready$/m.test(output) && /^\d+ \d+$/m.test(output), { what: "the backend", timeoutMs: 20_000 });
  const pids = /^(\d+) (\d+)$/m.exec(output)?.slice(1).map(Number) ?? [];
  const ended = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGKILL");
  await ended;
  expect(pids.map((pid) => isRunning(readStat(pid)))).toEqual([true, true]);

  const orphans = await endOrphans(join(folder, "records"), { graceMs: 1_000 });
  expect(new Map(orphans.map(({ name, pid }) => [pid, name]))).toEqual(new Map(pids.map((pid) => [pid, "r1"])));
  expect(pids.map((pid) => isRunning(readStat(pid)))).toEqual([false, false]);
  expect(await endOrphans(join(folder, "records"))).toEqual([]);
});

test("a child that was never recorded is found by its mark", async () => {
  const folder = temporaryFolder("orphans");
  const pid = sleeper({ [markVariable]: await markOf(folder, "r2") });
  expect(await endOrphans(folder)).toEqual([{ name: "r2", pid, foundBy: "mark" }]);
  expect(isRunning(readStat(pid))).toBe(false);
});

test("a child that lost its mark is found by its record", async () => {
  const folder = temporaryFolder("orphans");
  const pid = sleeper({});
  await recordProcess(folder, "r1", identityOf(pid));
  expect(await endOrphans(folder)).toEqual([{ name: "r1", pid, foundBy: "record" }]);
  expect(isRunning(readStat(pid))).toBe(false);
  expect(records(folder)).toEqual([]);
});

test.each<[string, (identity: ProcessIdentity) => ProcessIdentity]>([
  ["start time", (identity) => ({ ...identity, startTime: String(Number(identity.startTime) - 1) })],
  ["machine boot", (identity) => ({ ...identity, bootId: "00000000-0000-0000-0000-000000000000" })],
])("a stranger that got the pid of a dead child has another %s, and lives", async (_what, change) => {
  const folder = temporaryFolder("orphans");
  const pid = sleeper({});
  await recordProcess(folder, "r1", change(identityOf(pid)));
  expect(await endOrphans(folder)).toEqual([]);
  expect(isRunning(readStat(pid))).toBe(true);
  expect(records(folder)).toEqual([]);
});

test("the children of another gateway live: another folder, or a copy of the folder", async () => {
  const [folder, other] = [temporaryFolder("orphans"), temporaryFolder("orphans")];
  const pid = sleeper({ [markVariable]: await markOf(folder, "r1") });
  await recordProcess(folder, "r1", identityOf(pid));
  cpSync(folder, join(other, "copy"), { recursive: true });
  expect(await endOrphans(other)).toEqual([]);
  expect(await endOrphans(join(other, "copy"))).toEqual([]);
  expect(isRunning(readStat(pid))).toBe(true);
  expect(existsSync(join(folder, "r1.process"))).toBe(true);
  expect((await endOrphans(folder)).length).toBe(1);
});

test("one replica's can be ended without the others'", async () => {
  const folder = temporaryFolder("orphans");
  const [a, ab] = [
    sleeper({ [markVariable]: await markOf(folder, "a") }),
    sleeper({ [markVariable]: await markOf(folder, "ab") }),
  ];
  await recordProcess(folder, "ab", identityOf(ab));
  expect(await endOrphans(folder, { name: "a" })).toEqual([{ name: "a", pid: a, foundBy: "mark" }]);
  expect(isRunning(readStat(ab))).toBe(true);
});

test("one replica is ended while records of others come and go", async () => {
  const folder = temporaryFolder("orphans");
  const others = Array.from({ length: 20 }, (_, i) => `other-${i}`);
  const comingAndGoing = others.map(async (name) => {
    for (let i = 0; i < 100; i += 1) {
      await recordProcess(folder, name, identityOf(process.pid));
      await forgetProcess(folder, name);
    }
  });
  for (let i = 0; i < 50; i += 1) expect(await endOrphans(folder, { name: "r1", graceMs: 0 })).toEqual([]);
  await Promise.all(comingAndGoing);
});

test("an orphan is asked first and killed after the grace", async () => {
  const folder = temporaryFolder("orphans");
  const file = join(folder, "asked");
  const stubborn = sleeper(
    { [markVariable]: await markOf(folder, "r1") },
    `const fs = require("fs"); process.on("SIGTERM", () => fs.appendFileSync("${file}", "asked ")); fs.writeFileSync("${file}", "");`,
  );
  await waitFor(() => existsSync(file), { what: "its handler" });
  const startedMs = performance.now();
  await endOrphans(folder, { graceMs: 300 });
  expect(performance.now() - startedMs).toBeGreaterThan(290);
  expect(isRunning(readStat(stubborn))).toBe(false);
  expect(readFileSync(file, "utf8")).toBe("asked ");
});

test("a torn or foreign record is dropped, and pids that cannot be a child's are never signalled", async () => {
  const folder = temporaryFolder("orphans");
  await markOf(folder, "r1");
  writeFileSync(join(folder, "torn.process"), '{"pid": 1');
  writeFileSync(
    join(folder, "one.process"),
    JSON.stringify({ ...identityOf(process.pid), pid: 1, name: "one", folder: "x" }),
  );
  expect(await endOrphans(folder)).toEqual([]);
  expect(records(folder)).toEqual([]);
});

const records = (folder: string): string[] => readdirSync(folder).filter((file) => file.endsWith(".process"));

function sleeper(env: Record<string, string>, script = ""): number {
  const child = spawn(process.execPath, ["-e", `${script} setInterval(() => {}, 1000)`], {
    detached: true,
    stdio: "ignore",
    env,
  });
  const pid = child.pid ?? 0;
  const forget = endWithUs(pid);
  onTestFinished(() => {
    child.kill("SIGKILL");
    forget();
  });
  return pid;
}

function identityOf(pid: number): ProcessIdentity {
  return { pid, bootId: machineBootId() ?? "", startTime: readStat(pid)?.startTime ?? "" };
}
