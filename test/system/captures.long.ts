// States that are not a folder of ours: dumps of a database, exports of a running service, folders of services that somebody else runs. Captured, compared,
// adopted and brought back through the whole gateway.

import { execFile } from "node:child_process";
import { existsSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { request } from "undici";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import type { SnapshotRow, Status } from "../../gateway/status.ts";
import { Clients } from "../helpers/clients.ts";
import type { Call } from "../helpers/clients.ts";
import { createFolder, removeFolder, temporaryFolder } from "../helpers/folder.ts";
import { startGateway } from "../helpers/gateway.ts";
import type { Gateway, GatewayOptions } from "../helpers/gateway.ts";
import { startPostgres } from "../helpers/postgres.ts";
import type { PostgresServer } from "../helpers/postgres.ts";
import { freePort } from "../helpers/servers.ts";
import { waitFor } from "../helpers/wait.ts";
import { runCli } from "./recorded.ts";
import type { Ran } from "./recorded.ts";
import { ask, caughtUp } from "./system.ts";

const notesProgram = fileURLToPath(new URL("notes.mjs", import.meta.url));
const rowsProgram = fileURLToPath(new URL("rows.mjs", import.meta.url));
const run = promisify(execFile);

/** One copy of the notes, that an operator starts and stops with scripts. */
interface Copy {
  readonly name: string;
  readonly url: string;
  /** Its file is in here, and nothing else. */
  readonly state: string;
  readonly stop: string;
  readonly start: string;
  pid(): number;
  begin(): Promise<void>;
  kill9(): void;
  get(path: string): Promise<string>;
  post(path: string): Promise<number>;
}

interface CopyOptions {
  /** False: in memory alone. */
  readonly isKept?: boolean;
  readonly env?: Readonly<Record<string, string>>;
}

async function createCopy(name: string, { isKept = true, env = {} }: CopyOptions = {}): Promise<Copy> {
  const folder = createFolder(`copy-${name}`);
  const state = join(folder, "state");
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const note = join(folder, "pid");
  const [start, stop] = [join(folder, "start.sh"), join(folder, "stop.sh")];
  const variables = Object.entries({ PORT: String(port), LIVES_WITH: String(process.pid), ...env });
  const command = [
    ...variables.map(([key, value]) => `${key}='${value}'`),
    process.execPath,
    notesProgram,
    ...(isKept ? [join(state, "notes.json")] : []),
  ].join(" ");
  writeFileSync(start, `#!/bin/sh\n${command} >'${folder}/log' 2>&1 </dev/null &\necho $! >'${note}'\n`, {
    mode: 0o700,
  });
  writeFileSync(stop, `#!/bin/sh\nkill "$(cat '${note}')"\n`, { mode: 0o700 });
  const pid = (): number => (existsSync(note) ? Number(readFileSync(note, "utf8")) : 0);
  const kill9 = (): void => {
    try {
      process.kill(pid(), "SIGKILL");
    } catch {
      // It has ended by itself.
    }
  };
  onTestFinished(() => {
    if (pid() > 0) kill9();
    removeFolder(folder);
  });
  const asked = async (method: "GET" | "POST", path: string): Promise<{ status: number; text: string }> => {
    const answer = await request(`${url}${path}`, { method });
    return { status: answer.statusCode, text: await answer.body.text() };
  };
  const get = async (path: string): Promise<string> => (await asked("GET", path)).text;
  return {
    name,
    url,
    state,
    stop,
    start,
    pid,
    kill9,
    get,
    post: async (path) => (await asked("POST", path)).status,
    begin: async () => {
      await run(start);
      await waitFor(() => get("/health"), { what: `copy ${name}` });
    },
  };
}

async function createCopies(names: readonly string[], options: CopyOptions = {}): Promise<Copy[]> {
  const copies = await Promise.all(names.map((name) => createCopy(name, options)));
  await Promise.all(copies.map((it) => it.begin()));
  return copies;
}

/** The form that rebuilds take. */
const stoppable = ({ name, url, state, stop, start }: Copy): object => ({
  name,
  url,
  state,
  stop: [stop],
  start: [start],
});

async function open(
  config: Readonly<Record<string, unknown>>,
  options: Partial<GatewayOptions> = {},
): Promise<Gateway> {
  const gateway = await startGateway({ ...options, config });
  onTestFinished(() => gateway.close());
  await gateway.until("version 0 is taken", 30_000, ({ snapshots: it }) => it?.last !== null && it?.last !== undefined);
  await caughtUp(gateway);
  return gateway;
}

const store = (): object => ({ store: join(temporaryFolder("store"), "s"), every: { entries: 1_000_000 } });

const note = (client: number, n: number): Call => ({
  method: "POST",
  path: "/notes",
  orderKeys: [],
  isKeyed: false,
  isRepeatable: false,
  body: { text: `${client} said ${n}` },
});

function load(gateway: Gateway, workload = note): Clients {
  const clients = new Clients({ front: gateway.front, count: 3, workload, thinkMs: 40 });
  clients.start();
  return clients;
}

const cli = (gateway: Gateway, ...args: readonly string[]): Promise<Ran> => runCli([...args, "-c", gateway.file]);
const said = ({ code, stdout, stderr }: Ran): string => `${code}: ${stdout}${stderr}`;

async function write(gateway: Gateway, text: string, headers: Readonly<Record<string, string>> = {}): Promise<void> {
  const answer = await ask(gateway.front, "POST", "/notes", { body: { text }, headers });
  expect(answer.status, answer.text).toBe(201);
}

const newest = async (gateway: Gateway): Promise<SnapshotRow> =>
  ((await gateway.api("GET", "/v1/snapshots")).json as { snapshots: SnapshotRow[] }).snapshots[0] as SnapshotRow;

const stateOf = (status: Status, name: string): string =>
  status.replicas.find((it) => it.name === name)?.state ?? "nobody";

/** All have everything that was acknowledged; what they have. */
async function expectEqual(gateway: Gateway, copies: readonly Copy[], clients: Clients): Promise<void> {
  await clients.stop();
  await caughtUp(gateway);
  const dumps = await Promise.all(copies.map((it) => it.get("/dump")));
  expect(new Set(dumps).size).toBe(1);
  expect((JSON.parse(dumps[0] as string) as unknown[]).length).toBeGreaterThanOrEqual(clients.acknowledged);
}

describe("a state in PostgreSQL, by its dump", () => {
  let server: PostgresServer;
  beforeAll(async () => {
    // The first time ever it may have to be unpacked.
    server = await startPostgres();
  }, 300_000);
  afterAll(() => server.close());

  test("is captured under load, compared, and brought back into a copy's own database by psql", async () => {
    const names = ["r1", "r2", "r3"];
    for (const name of names) await server.query(`create database ${name}`);
    const psql = server.program("psql");
    const help = await run(server.program("pg_dump"), ["--help"], { env: { ...process.env, ...server.env } });
    // A key of chance in each dump would make equal databases unequal; older releases write none.
    const restrictKey = help.stdout.includes("--restrict-key") ? ["--restrict-key=rows"] : [];
    const restore = `${server.program("dropdb")} --if-exists "$1" && ${server.program("createdb")} "$1" && exec ${psql} -X -q -v ON_ERROR_STOP=1 -d "$1"`;
    const dump = (name: string): string[] => [server.program("pg_dump"), ...restrictKey, name];
    const gateway = await open(
      {
        replicas: { count: 3, command: [process.execPath, rowsProgram, "{name}"], ready: "GET /health" },
        snapshots: { ...store(), capture: { dump: dump("{name}"), restore: ["sh", "-c", restore, "sh", "{name}"] } },
      },
      { env: { ...server.env, PSQL: psql } },
    );
    const clients = load(gateway, (client, n) => ({ ...note(client, n), path: "/rows", body: { text: `it's ${n}` } }));
    await clients.busy({ acknowledged: 15, inFlight: 1 });
    const created = await cli(gateway, "snapshot", "create");
    expect(created.code, said(created)).toBe(0);
    await clients.busy({ acknowledged: 10, inFlight: 1 });
    const inR2 = (sql: string): Promise<unknown> =>
      run(psql, ["-X", "-q", "-d", "r2", "-c", sql], { env: { ...process.env, ...server.env } });
    await inR2("update rows set text = 'forged' where id = 3; create table leftover (x int)");
    const audited = await cli(gateway, "audit");
    expect(audited.code, said(audited)).toBe(3);
    expect(said(audited)).toContain("state of r2 differs from that of r1, r3");
    const rebuilt = await cli(gateway, "replica", "rebuild", "r2");
    expect(rebuilt.code, said(rebuilt)).toBe(0);
    expect(said(rebuilt)).toContain("snapshot 1");
    const again = await cli(gateway, "audit");
    expect(again.code, said(again)).toBe(0);
    await clients.stop();
    await caughtUp(gateway);
    const dumps = names.map(async (name) => {
      const [program = "", ...args] = dump(name);
      return (await run(program, args, { env: { ...process.env, ...server.env } })).stdout;
    });
    const [first = "", ...others] = await Promise.all(dumps);
    expect(first).toContain("it''s".replace("''", "'"));
    expect(first).not.toMatch(/forged|leftover/);
    expect(others).toEqual([first, first]);
    const unequal = clients.history.filter((sent) => sent.attempts.some((it) => it.status !== 201));
    expect(unequal).toEqual([]);
  }, 90_000);
});

describe("a state that the service itself exports and imports", () => {
  const capture = { export: "GET /dump", import: "PUT /dump" };

  test("is given to a copy that came back empty and to a new one, under load, and what came after it is replayed", async () => {
    const copies = await createCopies(["a", "b", "c", "d"], { isKept: false });
    const [, b, , d] = copies as [Copy, Copy, Copy, Copy];
    const gateway = await open({
      replicas: copies.slice(0, 3).map(({ name, url }) => ({ name, url })),
      snapshots: { ...store(), capture },
    });
    const clients = load(gateway);
    await clients.busy({ acknowledged: 30, inFlight: 1 });
    const created = await cli(gateway, "snapshot", "create");
    expect(created.code, said(created)).toBe(0);
    await clients.busy({ acknowledged: 30, inFlight: 1 });
    b.kill9();
    await gateway.until("b has left", 10_000, (status) => status.live === 2);
    await b.begin();
    expect(await b.get("/dump")).toBe("[]\n");
    await gateway.until("all live", 30_000, (status) => status.live === 3);
    const added = await cli(gateway, "replica", "add", d.url, "--name", "d");
    expect(added.code, said(added)).toBe(0);
    await clients.busy({ acknowledged: 20, inFlight: 1 });
    await expectEqual(gateway, copies, clients);
  }, 60_000);

  test("leaves a copy out of service when it was not taken, until it was given once more", async () => {
    const copies = await createCopies(["a", "b", "c"], { isKept: false });
    const b = copies[1] as Copy;
    const gateway = await open({
      replicas: copies.map(({ name, url }) => ({ name, url })),
      snapshots: { ...store(), capture },
    });
    const clients = load(gateway);
    await clients.busy({ acknowledged: 10, inFlight: 1 });
    await b.post("/clumsy");
    const failed = await cli(gateway, "replica", "rebuild", "b");
    expect([failed.code, said(failed)]).toEqual([1, expect.stringContaining("PUT ")]);
    expect(said(failed)).toContain("GW_RESTORE_FAILED");
    // Nobody has to ask again.
    await gateway.until("all live", 30_000, (status) => status.live === 3);
    expect(
      clients.history.filter((sent) => sent.attempts.some((it) => it.status !== null && it.status !== 201)),
    ).toEqual([]);
    await expectEqual(gateway, copies, clients);
  }, 60_000);

  test("is given to a process that keeps nothing, which goes on with it and not with another, empty one", async () => {
    const gateway = await open({
      replicas: { count: 3, command: [process.execPath, notesProgram], ready: "GET /health" },
      snapshots: { ...store(), capture },
    });
    for (let n = 0; n < 5; n++) await write(gateway, `before ${n}`);
    const created = await cli(gateway, "snapshot", "create");
    expect(created.code, said(created)).toBe(0);
    for (let n = 0; n < 5; n++) await write(gateway, `after ${n}`);
    const rebuilt = await cli(gateway, "replica", "rebuild", "r2");
    expect(rebuilt.code, said(rebuilt)).toBe(0);
    const { replicas } = await caughtUp(gateway);
    const dumps = await Promise.all(replicas.map(async ({ url }) => (await request(`${url ?? ""}/dump`)).body.text()));
    expect(dumps).toEqual([dumps[0], dumps[0], dumps[0]]);
    expect((JSON.parse(dumps[1] as string) as unknown[]).length).toBe(10);
    // All of them forget everything with the end of the gateway: they come back by what is recorded.
    expect(await gateway.stop()).toBe(0);
    await gateway.start({ until: "live" });
    const after = await caughtUp(gateway, 30_000);
    const again = await Promise.all(
      after.replicas.map(async ({ url }) => (await request(`${url ?? ""}/dump`)).body.text()),
    );
    expect(again).toEqual(dumps);
    expect(await gateway.stop()).toBe(0);
    const recovered = await cli(gateway, "recover", "--yes");
    expect(recovered.code, said(recovered)).toBe(0);
    expect(said(recovered)).toMatch(/10 .*replayed|entries answered as at first/);
  }, 60_000);
});

describe("before a copy is captured", () => {
  test("it is asked to come to rest, at the position, as before an audit; a copy that refuses is left alone and goes on", async () => {
    const copies = await createCopies(["a", "b", "c"], { env: { WRITES_AT_REST: "1" } });
    const gateway = await open({
      replicas: copies.map(({ name, url, state }) => ({ name, url, state })),
      snapshots: { ...store(), quiesce: "POST /quiesce" },
    });
    const clients = load(gateway);
    await clients.busy({ acknowledged: 40, inFlight: 1 });
    const pids = copies.map((it) => it.pid());
    const quiesced = (): Promise<readonly string[]> => Promise.all(copies.map((it) => it.get("/quiesced")));
    const created = await cli(gateway, "snapshot", "create");
    expect(created.code, said(created)).toBe(0);
    const { replica, entries } = await newest(gateway);
    // Version 0 and version 1, both of the last copy, which is never the primary.
    expect(replica).toBe("c");
    expect(entries).toBeGreaterThanOrEqual(40);
    expect(await quiesced()).toEqual(["[]", "[]", JSON.stringify([0, entries])]);
    const audited = await cli(gateway, "audit");
    expect(audited.code, said(audited)).toBe(0);
    const atAudit = (await quiesced()).map((text) => (JSON.parse(text) as number[]).length);
    expect(atAudit).toEqual([2, 1, 3]);

    await (copies[2] as Copy).post("/unwilling");
    const refused = await cli(gateway, "snapshot", "create");
    expect([refused.code, said(refused)]).toEqual([
      1,
      expect.stringContaining("c did not agree to be captured: POST /quiesce → 409"),
    ]);
    const notCompared = await cli(gateway, "audit");
    expect([notCompared.code, said(notCompared)]).toEqual([1, expect.stringContaining("c did not agree to be read")]);
    await gateway.until("all live", 10_000, (status) => status.live === 3);
    expect((await newest(gateway)).version).toBe(1);
    expect(copies.map((it) => it.pid())).toEqual(pids);
    await expectEqual(gateway, copies, clients);
  }, 60_000);

  test("nothing is asked of it where that was written out: it is read while it runs", async () => {
    const copies = await createCopies(["a", "b", "c"]);
    const gateway = await open({
      replicas: copies.map(stoppable),
      snapshots: { ...store(), quiesce: "none" },
    });
    const pids = copies.map((it) => it.pid());
    for (let n = 0; n < 5; n++) await write(gateway, `note ${n}`);
    const created = await cli(gateway, "snapshot", "create");
    expect(created.code, said(created)).toBe(0);
    expect(copies.map((it) => it.pid())).toEqual(pids);
    expect(await Promise.all(copies.map((it) => it.get("/quiesced")))).toEqual(["[]", "[]", "[]"]);
    const verified = await cli(gateway, "snapshot", "verify");
    expect(verified.code, said(verified)).toBe(0);
  }, 60_000);
});

describe("a copy that came back", () => {
  test("is not started with nothing where its folder is gone: it is rebuilt", async () => {
    const state = join(temporaryFolder("kept"), "state");
    const command = [process.execPath, notesProgram, "{state}/notes.json"];
    const gateway = await open({
      replicas: { count: 3, command, state, ready: "GET /health" },
      snapshots: store(),
    });
    for (let n = 0; n < 5; n++) await write(gateway, `note ${n}`);
    expect(await gateway.stop()).toBe(0);
    rmSync(join(state, "r2"), { recursive: true });
    await gateway.start();
    await caughtUp(gateway);
    expect(gateway.output()).toContain(`its state is lost: its folder ${join(state, "r2")} is gone`);
    const [first, ...others] = ["r1", "r2", "r3"].map((name) => readFileSync(join(state, name, "notes.json"), "utf8"));
    expect(others).toEqual([first, first]);
  }, 60_000);

  test("is held where its folder could only be replaced under its feet, and goes on as it is when a person says so", async () => {
    const copies = await createCopies(["a", "b", "c"]);
    const gateway = await open({
      replicas: copies.map(({ name, url, state }) => ({ name, url, state })),
      snapshots: { ...store(), quiesce: "none" },
    });
    for (let n = 0; n < 5; n++) await write(gateway, `note ${n}`);
    await caughtUp(gateway);
    const b = copies[1] as Copy;
    b.kill9();
    await write(gateway, "without b");
    await gateway.until("b has left", 10_000, (status) => stateOf(status, "b") !== "live");
    await b.begin();
    await gateway.until("b is held", 10_000, (status) => stateOf(status, "b") === "held");
    const refused = await cli(gateway, "replica", "rebuild", "b");
    expect([refused.code, said(refused)]).toEqual([1, expect.stringMatching(/GW_RECOVERY_REFUSED/)]);
    expect(said(refused)).toContain("stop and start");
    expect(existsSync(`${b.state}.before`)).toBe(false);
    const resumed = await cli(gateway, "replica", "resume", "b");
    expect(resumed.code, said(resumed)).toBe(0);
    await write(gateway, "with b");
    await caughtUp(gateway);
    expect(copies.map(readNotes)).toEqual(copies.map(() => readNotes(b)));
  }, 60_000);
});

describe("one service that exists", () => {
  test("becomes three in memory as well, when the start has said that their witnesses differ", async () => {
    const copies = await createCopies(["a", "b", "c"], { isKept: false });
    const [a] = copies as [Copy];
    await request(`${a.url}/notes`, { method: "POST", body: '{"text":"one"}' }).then((it) => it.body.dump());
    const config = {
      replicas: copies.map(({ name, url }) => ({ name, url, witness: ["GET /notes"] })),
      snapshots: { ...store(), capture: { export: "GET /dump", import: "PUT /dump" } },
    };
    const gateway = await startGateway({ config, until: "none" });
    onTestFinished(() => gateway.close());
    const ended = await gateway.exited(20_000);
    expect([ended.code, ended.stderr]).toEqual([1, expect.stringContaining("GW_REPLICAS_DIFFER_AT_START")]);
    const adopted = await cli(gateway, "adopt", "--from", "a", "--yes");
    expect(adopted.code, said(adopted)).toBe(0);
    expect(await Promise.all(copies.map((it) => it.get("/notes")))).toEqual(
      copies.map(() => expect.stringContaining("one")),
    );
    await gateway.start({ until: "ready" });
    await write(gateway, "two");
    await caughtUp(gateway);
  }, 60_000);

  test("becomes three, of which none differs at the start, and only before the first entry", async () => {
    const copies = await createCopies(["a", "b", "c"]);
    const [a, b] = copies as [Copy, Copy, Copy];
    for (const text of ["one", "two"])
      await request(`${a.url}/notes`, { method: "POST", body: JSON.stringify({ text }) }).then((it) => it.body.dump());
    await request(`${b.url}/notes`, { method: "POST", body: '{"text":"mine"}' }).then((it) => it.body.dump());
    const config = { replicas: copies.map(stoppable), snapshots: store() };
    const gateway = await startGateway({ config, until: "none" });
    onTestFinished(() => gateway.close());
    const ended = await gateway.exited(20_000);
    expect([ended.code, ended.stderr]).toEqual([1, expect.stringContaining("GW_REPLICAS_DIFFER_AT_START")]);

    const dry = await cli(gateway, "adopt", "--from", "a", "--dry-run");
    expect(dry.code, said(dry)).toBe(0);
    expect(filesOf(b)).not.toEqual(filesOf(a));
    const adopted = await cli(gateway, "adopt", "--from", "a", "--yes");
    expect(adopted.code, said(adopted)).toBe(0);
    expect(copies.map(filesOf)).toEqual([filesOf(a), filesOf(a), filesOf(a)]);
    // They run again, with what was given to them.
    expect(await Promise.all(copies.map((it) => it.get("/notes")))).toEqual(copies.map(() => readNotes(a)));

    await gateway.start({ until: "ready" });
    await caughtUp(gateway);
    await write(gateway, "three");
    await caughtUp(gateway);
    expect(copies.map(filesOf)).toEqual([filesOf(a), filesOf(a), filesOf(a)]);
    expect((JSON.parse(readNotes(a)) as unknown[]).length).toBe(3);
    expect(await gateway.stop()).toBe(0);
    const late = await cli(gateway, "adopt", "--from", "a", "--yes");
    expect([late.code, said(late)]).toEqual([1, expect.stringContaining("has entries in its log already")]);
  }, 60_000);
});

const readNotes = (copy: Copy): string => readFileSync(join(copy.state, "notes.json"), "utf8");
const filesOf = (copy: Copy): readonly string[] => [...readdirSync(copy.state), readNotes(copy)];

describe("one more copy that somebody else runs", () => {
  test("joins under load with the state of the others, and stays over a restart of the gateway", async () => {
    const copies = await createCopies(["a", "b", "c", "d"]);
    const d = copies[3] as Copy;
    const tokenFile = join(temporaryFolder("token"), "admin.token");
    writeFileSync(tokenFile, "a-token", { mode: 0o600 });
    const gateway = await open({
      admin: { tokenFile },
      replicas: copies.slice(0, 3).map(stoppable),
      snapshots: store(),
    });
    const clients = load(gateway);
    await clients.busy({ acknowledged: 40, inFlight: 1 });
    const way = ["--state", d.state, "--stop", d.stop, "--start", d.start];
    const added = await cli(gateway, "replica", "add", d.url, "--name", "d", ...way);
    expect(added.code, said(added)).toBe(0);
    await clients.busy({ acknowledged: 20, inFlight: 1 });
    await gateway.restart();
    await clients.busy({ acknowledged: 10, inFlight: 1 });
    await expectEqual(gateway, copies, clients);
    expect(copies.map(filesOf)).toEqual(copies.map(() => filesOf(d)));
  }, 60_000);
});

describe("a recovery that is refused", () => {
  test("because of old tokens leaves the copies as they were: the gateway starts with them as before", async () => {
    const copies = await createCopies(["a", "b", "c"]);
    const gateway = await open({ replicas: copies.map(stoppable), snapshots: store() });
    const payload = Buffer.from(JSON.stringify({ exp: Math.floor(Date.now() / 1000) - 5 })).toString("base64url");
    await write(gateway, "one", { authorization: `Bearer eyJhbGciOiJub25lIn0.${payload}.x` });
    await caughtUp(gateway);
    expect(await gateway.stop()).toBe(0);
    const pids = copies.map((it) => it.pid());
    const refused = await cli(gateway, "recover", "--yes");
    expect([refused.code, said(refused)]).toEqual([1, expect.stringContaining("rule default-other")]);
    await gateway.start();
    await caughtUp(gateway);
    expect(copies.map((it) => it.pid())).toEqual(pids);
  }, 60_000);

  test("by the first copy, whose backend takes no old tokens, leaves the others as they were", async () => {
    const copies = await createCopies(["a", "b"], { env: { TOKEN_MAX_AGE_MS: "2000" } });
    const b = copies[1] as Copy;
    const gateway = await open({ replicas: copies.map(stoppable), snapshots: store() });
    await write(gateway, "one", { authorization: `Token ${Date.now()}` });
    await caughtUp(gateway);
    const at = Date.now();
    expect(await gateway.stop()).toBe(0);
    const pid = b.pid();
    const before = copies.map(filesOf);
    await waitFor(() => Date.now() - at > 2000, { what: "the token to be too old" });
    const found = await cli(gateway, "recover", "--yes");
    expect([found.code, said(found)]).toEqual([1, expect.stringContaining("rule default-other")]);
    expect(said(found)).toContain("GW_RECOVERY_REFUSED");
    expect(copies.map(filesOf)).toEqual(before);
    await gateway.start();
    // Its folder was put back, and its cursor with it.
    await gateway.until("both are live", 10_000, (status) => status.live === 2);
    expect(b.pid()).toBe(pid);
    expect(JSON.parse(readNotes(b))).toEqual([{ id: 1, text: "one" }]);
  }, 60_000);
});

const token = (): Record<string, string> => ({ authorization: `Token ${Date.now()}` });

describe("a service that takes no old tokens", () => {
  const env = { TOKEN_MAX_AGE_MS: "2000" };

  async function startWithTokens(rules: readonly object[]): Promise<{ gateway: Gateway; copies: Copy[] }> {
    const copies = await createCopies(["a", "b", "c"], { env });
    const gateway = await open(
      { replicas: copies.map(stoppable), snapshots: store(), rules },
      { env: { REPLAY_TOKEN: "s3rvice" } },
    );
    for (let n = 0; n < 5; n++) await write(gateway, `note ${n}`, token());
    await caughtUp(gateway);
    const at = Date.now();
    await waitFor(() => Date.now() - at > 2000, { what: "the tokens to be too old" });
    return { gateway, copies };
  }

  const post = { name: "post-note", match: "POST /notes", mode: "replicate" };
  const mended = { ...post, replay: { set: { authorization: "Service ${REPLAY_TOKEN}" } } };

  test("is rebuilt with the ones that the rule gives for replays", async () => {
    const { gateway, copies } = await startWithTokens([mended]);
    const rebuilt = await cli(gateway, "replica", "rebuild", "b");
    expect(rebuilt.code, said(rebuilt)).toBe(0);
    expect(said(rebuilt)).toContain("5 replayed answers equal");
    await caughtUp(gateway);
    expect(copies.map(readNotes)).toEqual(copies.map(() => readNotes(copies[0] as Copy)));
  }, 60_000);

  test("is not rebuilt without them: it is said of which rule, the copy has its former state again, and the mended rule helps", async () => {
    const { gateway, copies } = await startWithTokens([post]);
    const pids = copies.map((it) => it.pid());
    const before = copies.map(filesOf);
    const stopped = await cli(gateway, "replica", "rebuild", "b");
    expect([stopped.code, said(stopped)]).toEqual([1, expect.stringContaining("GW_RECOVERY_REFUSED")]);
    expect(said(stopped)).toContain("(rule post-note)");
    expect(said(stopped)).toContain("replay: { set: { authorization: … } }");
    expect(copies.map(filesOf)).toEqual(before);
    expect(existsSync(`${copies[1]?.state}.before`)).toBe(false);
    // It was live: it is again, and goes on from where it stood.
    await caughtUp(gateway);
    expect(stateOf(await gateway.status(), "b")).toBe("live");
    expect([copies[0]?.pid(), copies[2]?.pid()]).toEqual([pids[0], pids[2]]);
    await write(gateway, "goes on", token());
    await caughtUp(gateway);
    expect(copies.map(readNotes)).toEqual(copies.map(() => readNotes(copies[0] as Copy)));
    expect(JSON.parse(readNotes(copies[1] as Copy))).toHaveLength(6);

    await gateway.stop();
    await gateway.configure({ rules: [mended] });
    await gateway.start();
    await gateway.until(
      "the store is open",
      10_000,
      ({ snapshots: it }) => it?.last !== null && it?.last !== undefined,
    );
    const rebuilt = await cli(gateway, "replica", "rebuild", "b");
    expect(rebuilt.code, said(rebuilt)).toBe(0);
    await caughtUp(gateway);
    expect(copies.map(readNotes)).toEqual(copies.map(() => readNotes(copies[0] as Copy)));
  }, 60_000);

  test("stays held with its state where it was held, says why it was not rebuilt, and is not tried again and again", async () => {
    const copies = await createCopies(["a", "b", "c"], { env });
    const gateway = await open({
      replicas: copies.map((it) => ({ ...stoppable(it), ...(it.name === "b" ? { onReturn: "rebuild" } : {}) })),
      snapshots: store(),
      rules: [post],
    });
    const b = copies[1] as Copy;
    for (let n = 0; n < 5; n++) await write(gateway, `note ${n}`, token());
    await caughtUp(gateway);
    const at = Date.now();
    const before = filesOf(b);
    await waitFor(() => Date.now() - at > 2000, { what: "the tokens to be too old" });
    // Its gateway starts it again.
    b.kill9();
    await gateway.until("b is held, and not rebuilt", 20_000, ({ replicas }) => {
      const { state, reason } = replicas.find((it) => it.name === "b") ?? {};
      return state === "held" && reason?.includes("; not rebuilt: ") === true;
    });
    const { reason } = (await gateway.status()).replicas.find((it) => it.name === "b") ?? {};
    expect(reason).toContain("onReturn says that it is rebuilt then");
    expect(reason).toContain("(rule post-note)");
    expect(reason).toContain("replay: { set: { authorization: … } }");
    expect(filesOf(b)).toEqual(before);
    const heldAt = Date.now();
    await waitFor(() => Date.now() - heldAt > 6000, {
      what: "the time after which rebuilds that failed are tried again",
    });
    expect(gateway.output().split("rebuild of b: begun")).toHaveLength(2);
    expect(stateOf(await gateway.status(), "b")).toBe("held");
    const resumed = await cli(gateway, "replica", "resume", "b");
    expect(resumed.code, said(resumed)).toBe(0);
    await caughtUp(gateway);
    await write(gateway, "with b", token());
    await caughtUp(gateway);
    expect(copies.map(readNotes)).toEqual(copies.map(() => readNotes(copies[0] as Copy)));
    expect(JSON.parse(readNotes(b))).toHaveLength(6);
  }, 60_000);
});
