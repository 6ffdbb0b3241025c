// Needs dist/recorder/worker.js (npm run build): the children are the compiled ones.
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  readdirSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, onTestFinished, test } from "vitest";
import { isRunning, readStat } from "../../gateway/launch/proc.ts";
import { Workshop, workerNice } from "../../recorder/workshop.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import { waitFor } from "../helpers/wait.ts";
import type { PlaceOptions } from "../../recorder/capture/place.ts";
import type { Archived, CaptureJob, DrillJob, JobProgress, RestoreJob } from "../../recorder/jobs.ts";

const never = new AbortController().signal;
const ignore = (): void => {};

test("what was captured is restored and drilled, and equal folders have equal roots", async () => {
  const it = setUp();
  fill(it.live, 200);
  const captured = await it.capture();
  expect(captured).toMatchObject({ treeEntries: 203, skipped: [] });
  expect(captured.newBytes).toBeGreaterThan(0);
  await it.restore(captured, "copy");
  expect(contentsOf(join(it.folder, "copy"))).toEqual(contentsOf(it.live));
  expect(await it.root("copy")).toBe(captured.root);
  await it.drill(captured);
  // Nothing else is left anywhere.
  expect(readdirSync(it.folder).sort()).toEqual(["copy", "live", "memory", "store"]);

  writeFileSync(join(it.live, "d0", "0"), "changed");
  const second = await it.capture();
  expect(second.root).not.toBe(captured.root);
  expect(second.newBytes).toBeLessThan(captured.newBytes / 10);
});

test("the work is done by another process, of low priority, and costs this one little", async () => {
  const it = setUp();
  fill(it.live, 20, 4 * 1024 * 1024);
  const before = process.cpuUsage();
  let isOver = false;
  const captured = it.capture().finally(() => (isOver = true));
  const pid = await waitFor(() => workers()[0], { what: "the child" });
  const nices = new Set<number>();
  let childTicks = 0;
  await waitFor(
    () => {
      // What it does last at its start.
      if (readOrEmpty(`/proc/${pid}/oom_score_adj`).trim() === "500") for (const nice of nicesOf(pid)) nices.add(nice);
      childTicks = Math.max(childTicks, ticksOf(pid));
      return isOver;
    },
    { what: "the capture", timeoutMs: 30_000 },
  );
  expect((await captured).treeBytes).toBe(20 * 4 * 1024 * 1024);
  expect([...nices]).toEqual([workerNice]);
  const { system, user } = process.cpuUsage(before);
  expect((system + user) / 1e6).toBeLessThan(childTicks / 100 / 2);
});

test("progress is told at most five times a second, and of a restore with its total", async () => {
  const it = setUp();
  fill(it.live, 600);
  const told: { progress: JobProgress; atMs: number }[] = [];
  const note = (progress: JobProgress): number => told.push({ progress, atMs: performance.now() });
  const captured = await it.capture({}, never, note);
  const ofCapture = told.splice(0);
  expect(ofCapture[0]?.progress.total).toBe(null);
  await it.restore(captured, "copy", {}, never, note);
  expect(told.length).toBeGreaterThan(0);
  for (const { progress } of told) {
    expect(progress.total).toEqual({ entries: captured.treeEntries, bytes: captured.treeBytes });
    expect(progress.entries).toBeLessThanOrEqual(captured.treeEntries);
  }
  for (const series of [ofCapture, told]) {
    const spanMs = (series.at(-1)?.atMs ?? 0) - (series[0]?.atMs ?? 0);
    // Messages may be late, and so nearer to each other than they were sent.
    expect(series.length).toBeLessThanOrEqual(spanMs / 200 + 2);
  }
});

test("the key and the store's password are neither in the child's arguments nor in its environment, the gateway's settings too", async () => {
  const it = setUp({ ...process.env, GATEWAY_ADMIN__TOKEN: "hunter2", OTHER: "kept" });
  const hold = commandPlace(it.folder, ["sh", "-c", "echo x; while [ ! -e go ]; do sleep 0.01; done"]);
  const captured = it.capture({ place: hold });
  const pid = await workerAtWork(it.folder);
  const [args, environment] = [readOrEmpty(`/proc/${pid}/cmdline`), readOrEmpty(`/proc/${pid}/environ`)];
  writeFileSync(join(it.folder, "go"), "");
  await captured;
  expect(args).toContain("worker.js");
  expect(environment).toContain("OTHER=kept");
  expect(environment).toContain("UV_THREADPOOL_SIZE=4");
  for (const secret of [it.access.key, "hunter2", "GATEWAY_"]) expect(args + environment).not.toContain(secret);
});

test("coded errors come back with code and message, others with the job's own code", async () => {
  const it = setUp();
  await expect(it.capture()).rejects.toMatchObject({
    code: "GW_SNAPSHOT_FAILED",
    message: expect.stringContaining(it.live),
  });
  await expect(
    it.capture({ place: commandPlace(it.folder, ["sh", "-c", "echo broken >&2; exit 7"]) }),
  ).rejects.toMatchObject({ code: "GW_SNAPSHOT_FAILED", message: expect.stringMatching(/code 7.*broken/s) });
  fill(it.live, 10);
  const captured = await it.capture();
  await expect(it.restore(captured, "copy", { key: "cd".repeat(32) })).rejects.toMatchObject({
    code: "GW_RECOVERY_REFUSED",
  });
  await expect(it.restore({ ...captured, root: "0".repeat(64) }, "copy")).rejects.toMatchObject({
    code: "GW_SNAPSHOT_CORRUPT",
  });
  // The target is no folder.
  writeFileSync(join(it.folder, "file"), "");
  await expect(it.restore(captured, "file")).rejects.toMatchObject({ code: "GW_RESTORE_FAILED" });
  await expect(it.restore(captured, "file/below")).rejects.toMatchObject({ code: "GW_RESTORE_FAILED" });
});

test("a drill of a snapshot that was tampered with fails, and leaves no scratch folder", async () => {
  const it = setUp();
  fill(it.live, 50);
  const captured = await it.capture();
  tamper(join(it.folder, "store"));
  await expect(it.drill(captured)).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
  expect(existsSync(join(it.folder, "scratch"))).toBe(false);
});

test("a drill notices what is otherwise on the disk than it was recorded", async () => {
  const it = setUp();
  fill(it.live, 1);
  const captured = await it.capture();
  // Each step is written into a pipe, which holds the child up until it is read here.
  const steps = join(it.folder, "steps");
  await once(spawn("mkfifo", [steps]), "exit");
  let isOver = false;
  const drilled = it
    .with({ GATEWAY_STEPS_FILE: steps }, (workshop) => workshop.drill(it.drillJob(captured), never, ignore))
    .finally(() => (isOver = true));
  drilled.catch(ignore);
  await waitFor(() => nextStep(steps) === "folder.rename", { what: "the restored folder" });
  const restored = join(it.folder, "scratch", "state");
  await waitFor(() => existsSync(restored), { what: "the folder to be in its place" });
  writeFileSync(join(restored, "d0", "0"), "rotten");
  await waitFor(() => nextStep(steps) === null && isOver, { what: "the drill" });
  await expect(drilled).rejects.toMatchObject({
    code: "GW_SNAPSHOT_CORRUPT",
    message: expect.stringContaining(`recorded is ${captured.root}`),
  });
});

test("a restore command is not started for a snapshot with a damaged chunk", async () => {
  const it = setUp();
  writeFileSync(join(it.folder, "db"), randomBytes(8 * 1024 * 1024));
  const place = commandPlace(it.folder, ["cat", "db"], ["sh", "-c", "touch begun; cat > restored"]);
  const captured = await it.capture({ place });
  tamper(join(it.folder, "store"));
  await expect(it.restore(captured, "", { place })).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
  expect(existsSync(join(it.folder, "begun"))).toBe(false);
});

test("a child that is killed fails its job and nothing else; the next one at the place cleans up", async () => {
  const it = setUp();
  fill(it.live, 600);
  const killed = it.capture({}, never, killWorkers);
  await expect(killed).rejects.toMatchObject({
    code: "GW_SNAPSHOT_FAILED",
    message: expect.stringContaining("was killed by SIGKILL"),
  });
  const captured = await it.capture();

  fill(join(it.folder, "copy"), 5);
  const former = contentsOf(join(it.folder, "copy"));
  await expect(it.restore(captured, "copy", {}, never, killWorkers)).rejects.toMatchObject({
    code: "GW_RESTORE_FAILED",
    message: expect.stringContaining("was killed by SIGKILL"),
  });
  expect(contentsOf(join(it.folder, "copy"))).toEqual(former);
  await it.restore(captured, "copy");
  expect(contentsOf(join(it.folder, "copy"))).toEqual(contentsOf(it.live));
  expect(contentsOf(join(it.folder, "copy.before"))).toEqual(former);

  await expect(it.drill(captured, never, killWorkers)).rejects.toMatchObject({ code: "GW_RESTORE_FAILED" });
  await it.drill(captured);
  expect(readdirSync(it.folder).sort()).toEqual(["copy", "copy.before", "live", "memory", "store"]);
});

test("an abort ends the child, which cleans up first, and rejects with the reason", async () => {
  const it = setUp();
  fill(it.live, 600);
  const captured = await it.capture();
  fill(join(it.folder, "copy"), 5);
  const former = contentsOf(join(it.folder, "copy"));
  const given = new AbortController();
  await expect(it.restore(captured, "copy", {}, given.signal, () => given.abort(new Error("not now")))).rejects.toThrow(
    "not now",
  );
  expect(workers()).toEqual([]);
  expect(contentsOf(join(it.folder, "copy"))).toEqual(former);
  expect(readdirSync(it.folder).sort()).toEqual(["copy", "live", "memory", "store"]);
  await expect(it.restore(captured, "copy", {}, given.signal)).rejects.toThrow("not now");
});

test("a child that does not end when it is told to is killed", async () => {
  const it = setUp();
  fill(it.live, 600);
  const given = new AbortController();
  const stopped = it.capture({}, given.signal, () => {
    for (const pid of workers()) process.kill(pid, "SIGSTOP");
    given.abort(new Error("not now"));
  });
  await expect(stopped).rejects.toThrow("not now");
  expect(workers()).toEqual([]);
});

test("a SIGTERM that is not the gateway's is told as one", async () => {
  const it = setUp();
  fill(it.live, 600);
  const captured = it.capture({}, never, () => {
    for (const pid of workers()) process.kill(pid, "SIGTERM");
  });
  await expect(captured).rejects.toMatchObject({
    code: "GW_SNAPSHOT_FAILED",
    message: expect.stringContaining("SIGTERM"),
  });
});

test("two jobs run at a time, 64 wait in order, more are refused; a close ends them all", async () => {
  const it = setUp();
  // Each adds its name to a file and waits to be let go.
  const held = (name: string): Promise<Archived> =>
    it.capture({
      memory: null,
      place: commandPlace(it.folder, [
        "sh",
        "-c",
        `echo ${name} >> begun; while [ ! -e go-${name} ]; do sleep 0.01; done; echo x`,
      ]),
    });
  const begun = (): string[] => readOrEmpty(join(it.folder, "begun")).split("\n").filter(Boolean);
  const first = held("a");
  const second = held("b");
  await waitFor(() => begun().length === 2, { what: "two to run" });
  const third = held("c");
  const given = new AbortController();
  const given4 = it.capture({ memory: null }, given.signal);
  const others = Array.from({ length: 62 }, (_, n) => held(`w${n}`));
  const ends = [second, third, ...others].map((job) =>
    job.then(
      () => "done",
      (error: { code?: string }) => error.code,
    ),
  );
  await expect(held("x")).rejects.toMatchObject({
    code: "GW_SNAPSHOT_FAILED",
    message: expect.stringContaining("64 captures and restores are waiting already"),
  });
  given.abort(new Error("not now"));
  await expect(given4).rejects.toThrow("not now");
  expect(workers().length).toBe(2);
  writeFileSync(join(it.folder, "go-a"), "");
  await first;
  await waitFor(() => begun().length === 3, { what: "the third to run" });
  expect(begun()[2]).toBe("c");
  expect(workers().length).toBe(2);
  await it.workshop.close();
  expect(new Set(await Promise.all(ends))).toEqual(new Set(["GW_STOPPING"]));
  expect(workers()).toEqual([]);
  await expect(held("y")).rejects.toMatchObject({ code: "GW_STOPPING" });
  await it.workshop.close();
});

test("when the gateway is killed its children end, with the commands they run, even one that was stopped meanwhile", async () => {
  const it = setUp();
  fill(it.live, 600);
  const captured = await it.capture();
  fill(join(it.folder, "copy"), 5);
  const former = contentsOf(join(it.folder, "copy"));
  const dump = commandPlace(it.folder, ["sh", "-c", "echo $$ > pid; while :; do echo x; sleep 0.01; done"]);
  const gateway = startGateway(it, [it.captureJob({ place: dump, memory: null }), it.restoreJob(captured, "copy")]);
  await once(gateway.stdout, "data");
  const children = workers(gateway.pid);
  // One of them is in the middle of a restore: it goes on when its gateway has long been dead.
  for (const pid of children) process.kill(pid, "SIGSTOP");
  const command = numberIn(join(it.folder, "pid"));
  expect(children.length).toBe(2);
  gateway.kill("SIGKILL");
  await waitFor(() => !isRunning(readStat(gateway.pid ?? 0)), { what: "the gateway to be gone" });
  for (const pid of children) process.kill(pid, "SIGCONT");
  await waitFor(() => ![...children, command].some((pid) => isRunning(readStat(pid))), { what: "all to be gone" });
  expect(contentsOf(join(it.folder, "copy"))).toEqual(former);
  await it.restore(captured, "copy");
  expect(contentsOf(join(it.folder, "copy"))).toEqual(contentsOf(it.live));
});

test("killed at any durable step of a capture or a restore, the former state or the new one is there, and the next try succeeds", async () => {
  const it = setUp();
  fill(it.live, 1);
  const captured = await it.capture();
  const copy = join(it.folder, "copy");
  const fresh = contentsOf(it.live);
  mkdirSync(copy);
  writeFileSync(join(copy, "former"), "state");
  const former = contentsOf(copy);

  const restore = (environment: Record<string, string>): Promise<void> =>
    it.with(environment, (workshop) => workshop.restore(it.restoreJob(captured, "copy"), never, ignore));
  const capture = (environment: Record<string, string>, n: number): Promise<Archived> => {
    writeFileSync(join(it.live, "d0", "new"), `contents ${n}`);
    return it.with(environment, (workshop) => workshop.capture(it.captureJob({}), never, ignore));
  };
  let kills = 0;
  for (const way of ["restore", "capture"] as const) {
    const act = (environment: Record<string, string>, n: number): Promise<unknown> =>
      way === "restore" ? restore(environment) : capture(environment, n);
    const steps = join(it.folder, `steps-${way}`);
    await act({ GATEWAY_STEPS_FILE: steps }, 0);
    const names = readOrEmpty(steps).split("\n").filter(Boolean);
    const counts = new Map<string, number>();
    for (const [n, name] of names.entries()) {
      const nth = (counts.get(name) ?? 0) + 1;
      counts.set(name, nth);
      await expect(act({ GATEWAY_CRASH_AT: `${name}#${nth}` }, n), `${way}: ${name}#${nth}`).rejects.toMatchObject({
        message: expect.stringContaining("was killed by SIGKILL"),
      });
      kills += 1;
      if (way === "restore") {
        const now = existsSync(copy) ? contentsOf(copy) : contentsOf(`${copy}.before`);
        expect([former, fresh], `${name}#${nth}`).toContainEqual(now);
      }
    }
    await act({}, names.length);
  }
  expect(kills).toBeGreaterThanOrEqual(9);
  expect(contentsOf(copy)).toEqual(fresh);
  await it.drill(await it.capture());
});

test("a child that was too busy to notice that its gateway is gone takes no further durable step", async () => {
  const it = setUp();
  fill(it.live, 40);
  const captured = await it.capture();
  const steps = join(it.folder, "steps");
  await once(spawn("mkfifo", [steps]), "exit");
  const gateway = startGateway(it, [null, it.restoreJob(captured, "copy")], { GATEWAY_STEPS_FILE: steps });
  // Eight files are synced side by side: behind the step at which the child is held now, others are ready to be taken at once.
  await waitFor(() => nextStep(steps), { what: "the first step", timeoutMs: 20_000 });
  const [child = 0] = workers(gateway.pid);
  gateway.kill("SIGKILL");
  await once(gateway, "exit");
  let more = 0;
  await waitFor(
    () => {
      more += nextStep(steps)?.split("\n").length ?? 0;
      return !isRunning(readStat(child));
    },
    { what: "the child to end" },
  );
  expect(more).toBeLessThanOrEqual(1);
});

test("a test can make the gateway die at a step of its child", async () => {
  const it = setUp();
  fill(it.live, 1);
  const captured = await it.capture();
  const gateway = startGateway(it, [null, it.restoreJob(captured, "copy")], {
    GATEWAY_CRASH_AT: "folder.rename#1",
    GATEWAY_CRASH_PARENT: "1",
  });
  expect(await once(gateway, "exit")).toEqual([null, "SIGKILL"]);
  expect(existsSync(join(it.folder, "copy"))).toBe(false);
});

// ---- set-up --------------------------------------------------------------------------------------------------------

function setUp(environment: Record<string, string | undefined> = process.env) {
  const folder = temporaryFolder("workshop");
  const live = join(folder, "live");
  const workshop = new Workshop({ environment });
  onTestFinished(() => workshop.close());
  const access = {
    store: { kind: "folder", folder: join(folder, "store") },
    prefix: "gw-test",
    key: "ab".repeat(32),
  } as const;
  const placeOf = (name: string): PlaceOptions => ({ kind: "folder", folder: join(folder, name), exclude: [] });
  const captureJob = (changes: Partial<CaptureJob>): CaptureJob => ({
    kind: "capture",
    ...access,
    place: placeOf("live"),
    memory: join(folder, "memory"),
    ...changes,
  });
  const restoreJob = (recorded: Archived, name: string, changes: Partial<RestoreJob> = {}): RestoreJob => {
    const { listing, root, treeBytes, treeEntries } = recorded;
    return {
      kind: "restore",
      ...access,
      recorded: { root, listing, treeEntries, treeBytes },
      place: placeOf(name),
      ...changes,
    };
  };
  const drillJob = ({ listing, root, treeBytes, treeEntries }: Archived): DrillJob => ({
    kind: "drill",
    ...access,
    recorded: { root, listing, treeEntries, treeBytes },
    folder: join(folder, "scratch"),
  });
  return {
    folder,
    live,
    access,
    workshop,
    captureJob,
    restoreJob,
    capture: (
      changes: Partial<CaptureJob> = {},
      signal = never,
      onProgress: (progress: JobProgress) => void = ignore,
    ) => workshop.capture(captureJob(changes), signal, onProgress),
    restore: (
      recorded: Archived,
      name: string,
      changes: Partial<RestoreJob> = {},
      signal = never,
      onProgress: (progress: JobProgress) => void = ignore,
    ) => workshop.restore(restoreJob(recorded, name, changes), signal, onProgress),
    root: (name: string) => workshop.root({ kind: "root", place: placeOf(name), memory: null }, never, ignore),
    drillJob,
    drill: (recorded: Archived, signal = never, onProgress: (progress: JobProgress) => void = ignore) =>
      workshop.drill(drillJob(recorded), signal, onProgress),
    /** Another workshop, whose children have these variables too. */
    with: async <T>(more: Record<string, string>, act: (workshop: Workshop) => Promise<T>): Promise<T> => {
      const other = new Workshop({ environment: { ...environment, ...more } });
      try {
        return await act(other);
      } finally {
        await other.close();
      }
    },
  };
}

/** A process with a workshop of its own; it tells when the second job is at work. */
function startGateway(
  { folder }: { readonly folder: string },
  jobs: readonly [CaptureJob | null, RestoreJob],
  environment: Record<string, string> = {},
) {
  const file = join(folder, "gateway.mts");
  writeFileSync(
    file,
    `import { existsSync } from "node:fs";
     import { setTimeout as sleep } from "node:timers/promises";
     import { Workshop } from ${JSON.stringify(fileURLToPath(new URL("../../recorder/workshop.ts", import.meta.url)))};
     const workshop = new Workshop({ environment: process.env });
     const never = new AbortController().signal;
     const [dump, restore] = ${JSON.stringify(jobs)};
     if (dump !== null) workshop.capture(dump, never, () => {});
     while (dump !== null && !existsSync(${JSON.stringify(join(folder, "pid"))})) await sleep(5);
     workshop.restore(restore, never, () => console.log("restoring"));`,
  );
  const gateway = spawn(process.execPath, ["--import", import.meta.resolve("tsx"), file], {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, ...environment },
  });
  onTestFinished(() => void gateway.kill("SIGKILL"));
  return gateway;
}

function fill(folder: string, files: number, fileBytes = 500): void {
  for (let n = 0; n < files; n += 1) {
    const inner = join(folder, `d${n % 3}`);
    mkdirSync(inner, { recursive: true });
    writeFileSync(join(inner, String(n)), randomBytes(fileBytes));
  }
}

function contentsOf(folder: string): Record<string, string> {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = files.map((entry) => join(entry.parentPath, entry.name)).sort();
  return Object.fromEntries(paths.map((path) => [path.slice(folder.length), readFileSync(path, "latin1")]));
}

const commandPlace = (cwd: string, dump: readonly string[], restore: readonly string[] = ["false"]): PlaceOptions => ({
  kind: "command",
  dump,
  restore,
  cwd,
  env: {},
  timeoutMs: 60_000,
});

/** One bit in the middle of every pack. */
function tamper(store: string): void {
  const packs = readdirSync(store, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  for (const entry of packs) {
    const path = join(entry.parentPath, entry.name);
    const bytes = readFileSync(path);
    if (bytes.length < 1_000) continue;
    const at = Math.floor(bytes.length / 3);
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    writeFileSync(path, bytes);
  }
}

function workers(parent = process.pid): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      const stat = readOrEmpty(`/proc/${pid}/stat`);
      const [state, ppid] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      return (
        Number(ppid) === parent && state !== "Z" && readOrEmpty(`/proc/${pid}/cmdline`).includes("recorder/worker.js")
      );
    });
}

function killWorkers(): void {
  for (const pid of workers()) process.kill(pid, "SIGKILL");
}

/** The only child, once it runs a command in this folder. */
async function workerAtWork(folder: string): Promise<number> {
  return waitFor(() => workers().find(hasChildren), { what: `a child to run a command in ${folder}` });
}

const hasChildren = (pid: number): boolean => readOrEmpty(`/proc/${pid}/task/${pid}/children`).trim() !== "";

/** Processor time that it has used, in hundredths of a second. */
function ticksOf(pid: number): number {
  const stat = readOrEmpty(`/proc/${pid}/stat`);
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return Number(fields[11] ?? 0) + Number(fields[12] ?? 0);
}

/** Lets a child that waits to write into the pipe go on, up to its next step; it may write that too. Null: none waits. */
function nextStep(pipe: string): string | null {
  const fd = openSync(pipe, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    // Ends with a line, or when nobody has it open to write.
    for (;;) {
      const piece = Buffer.alloc(256);
      try {
        const length = readSync(fd, piece);
        return length === 0 ? null : piece.toString("utf8", 0, length).trim();
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      }
    }
  } finally {
    closeSync(fd);
  }
}

/** Of each thread of a process. */
function nicesOf(pid: number): number[] {
  const tasks = existsSync(`/proc/${pid}/task`) ? readdirSync(`/proc/${pid}/task`) : [];
  return tasks.flatMap((task) => {
    const stat = readOrEmpty(`/proc/${pid}/task/${task}/stat`);
    return stat === "" ? [] : [Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[16])];
  });
}

const numberIn = (file: string): number => Number(readOrEmpty(file));

function readOrEmpty(file: string): string {
  try {
    return readFileSync(file, "latin1");
  } catch {
    return "";
  }
}
