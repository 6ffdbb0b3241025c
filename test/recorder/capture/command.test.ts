import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { isRunning, readStat } from "../../../gateway/launch/proc.ts";
import { createCommandPlace } from "../../../recorder/capture/command.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import { startPostgres } from "../../helpers/postgres.ts";
import { waitFor } from "../../helpers/wait.ts";
import { contentOf, never, restoreTo, stateOf } from "./single.ts";
import type { CommandPlaceOptions } from "../../../recorder/capture/command.ts";
import type { PostgresServer } from "../../helpers/postgres.ts";

const commandFile = fileURLToPath(new URL("../../../recorder/capture/command.ts", import.meta.url));

describe("dump", () => {
  test("what the command writes is the one file, byte for byte, and equal every time", async () => {
    const folder = temporaryFolder();
    const state = randomBytes(20 * 1024 * 1024);
    writeFileSync(join(folder, "db"), state);
    const place = createPlace({ dump: ["cat", "db"], cwd: folder });
    const [first, second] = [await stateOf(place), await stateOf(place)];
    expect(first.entry).toEqual({ kind: "file", path: "state", mode: 0o600, sizeBytes: 0, stamp: null });
    expect(first.bytes.equals(state)).toBe(true);
    expect(second.entry).toEqual(first.entry);
    expect(second.bytes.equals(first.bytes)).toBe(true);
    expect(place.skipped).toEqual([]);
    expect(place.isSequential).toBe(true);
  });

  test("arguments are a list: no shell reads them", async () => {
    const place = createPlace({ dump: ["printf", "%s|", "$HOME", "a b", ";exit 1", "'"] });
    expect((await stateOf(place)).bytes.toString()).toBe("$HOME|a b|;exit 1|'|");
  });

  test("a state of no bytes is a state", async () => {
    expect((await stateOf(createPlace({ dump: ["true"] }))).bytes.length).toBe(0);
  });

  test("a command that fails at its end has dumped nothing, and its last words and code are told", async () => {
    const place = createPlace({ dump: ["sh", "-c", "echo half; echo connection lost >&2; exit 3"] });
    await expect(stateOf(place)).rejects.toMatchObject({
      code: "GW_SNAPSHOT_FAILED",
      message: expect.stringMatching(/dump command sh … exited with code 3: nothing was captured.*\nconnection lost$/s),
    });
  });

  test("a command that is killed has dumped nothing", async () => {
    const place = createPlace({ dump: ["sh", "-c", "echo half; kill -9 $$"] });
    await expect(stateOf(place)).rejects.toMatchObject({
      code: "GW_SNAPSHOT_FAILED",
      message: expect.stringContaining("was killed by SIGKILL"),
    });
  });

  test("a command that only complains has failed, whatever its code says", async () => {
    const place = createPlace({ dump: ["sh", "-c", "echo 'no such database' >&2"] });
    await expect(stateOf(place)).rejects.toMatchObject({
      code: "GW_SNAPSHOT_FAILED",
      message: expect.stringMatching(/wrote nothing to its output.*no such database/s),
    });
    const warned = createPlace({ dump: ["sh", "-c", "echo 'a warning' >&2; echo state"] });
    expect((await stateOf(warned)).bytes.toString()).toBe("state\n");
  });

  test("a program that is not there is named", async () => {
    await expect(stateOf(createPlace({ dump: ["no-such-program", "--x"] }))).rejects.toMatchObject({
      code: "GW_SNAPSHOT_FAILED",
      message: expect.stringMatching(/no-such-program … could not be started in .*ENOENT/),
    });
    await expect(stateOf(createPlace({ dump: [] }))).rejects.toMatchObject({ code: "GW_SNAPSHOT_FAILED" });
  });

  test("a command that does not end in time is killed with all that it started", async () => {
    const folder = temporaryFolder();
    const place = createPlace({
      dump: ["sh", "-c", "sleep 600 & echo $! > child; echo half; sleep 600"],
      cwd: folder,
      timeoutMs: 300,
    });
    await expect(stateOf(place)).rejects.toMatchObject({
      code: "GW_SNAPSHOT_FAILED",
      message: expect.stringContaining("did not end within 300 ms"),
    });
    await waitFor(() => !isRunning(readStat(pidIn(join(folder, "child")))), { what: "the grandchild to be gone" });
  });

  test("a process that left the group and keeps the output open does not hold the capture for ever", async () => {
    const folder = temporaryFolder();
    const place = createPlace({
      dump: ["sh", "-c", "setsid sleep 600 & echo $! > child; echo state"],
      cwd: folder,
      timeoutMs: 300,
    });
    onTestFinished(() => void process.kill(pidIn(join(folder, "child")), "SIGKILL"));
    await expect(stateOf(place)).rejects.toMatchObject({
      message: expect.stringContaining("did not end within 300 ms"),
    });
  });

  test("an aborted capture kills the command and rejects with the reason", async () => {
    const folder = temporaryFolder();
    const place = createPlace({ dump: ["sh", "-c", "echo $$ > pid; exec sleep 600"], cwd: folder });
    const given = new AbortController();
    const captured = stateOf(place, given.signal);
    await waitFor(() => pidIn(join(folder, "pid")) > 0, { what: "the command to run" });
    given.abort(new Error("not now"));
    await expect(captured).rejects.toThrow("not now");
    expect(isRunning(readStat(pidIn(join(folder, "pid"))))).toBe(false);
    await expect(stateOf(place, given.signal)).rejects.toThrow("not now");
  });

  test("a reader that stops early stops the command, and a slow one slows it", async () => {
    const folder = temporaryFolder();
    const program = [
      `const { writeFileSync, writeSync } = require("node:fs");`,
      `writeFileSync("pid", String(process.pid));`,
      `for (let n = 1; ; n += 1) { writeSync(1, Buffer.alloc(65536)); writeFileSync("written", String(n)); }`,
    ].join("\n");
    const place = createPlace({ dump: [process.execPath, "-e", program], cwd: folder });
    const written = (): number => pidIn(join(folder, "written"));
    for await (const { content } of place.read(never)) {
      for await (const piece of content?.() ?? []) {
        expect(piece.length).toBeGreaterThan(0);
        await settled(written);
        // A pipe and a stream's buffer: not what it could write meanwhile.
        expect(written()).toBeLessThan(20);
        break;
      }
    }
    await waitFor(() => !isRunning(readStat(pidIn(join(folder, "pid")))), { what: "the command to be gone" });
  });

  test("words are kept to the last, without passwords and control characters, however many there are", async () => {
    const place = createPlace({
      dump: [
        "sh",
        "-c",
        `head -c 5000000 /dev/zero | tr '\\0' x >&2; echo >&2
         echo "cannot reach postgres://shop:hunter2@db/shop as $PGPASSWORD $(printf '\\033[31m')" >&2; exit 1`,
      ],
      env: { PGPASSWORD: "correct horse" },
    });
    const error = await stateOf(place).catch((error: Error) => error);
    expect((error as Error).message).toContain("cannot reach postgres://shop:***@db/shop as *** [31m");
    expect((error as Error).message.length).toBeLessThan(2_500);
  });

  test("the gateway's own settings are not passed on, the rest and the place's own variables are", async () => {
    process.env["GATEWAY_SECRET"] = "x";
    onTestFinished(() => void delete process.env["GATEWAY_SECRET"]);
    const place = createPlace({ dump: ["env"], env: { PGHOST: "db" } });
    const lines = (await stateOf(place)).bytes.toString().split("\n");
    expect(lines).toContain("PGHOST=db");
    expect(lines).toContain(`PATH=${process.env["PATH"]}`);
    expect(lines.filter((line) => line.startsWith("GATEWAY_"))).toEqual([]);
  });
});

describe("restore", () => {
  test("the command gets the whole state as its input, no faster than it reads", async () => {
    const folder = temporaryFolder();
    const state = randomBytes(20 * 1024 * 1024);
    let given = 0;
    const place = createPlace({ restore: ["sh", "-c", "cat go - > db"], cwd: folder });
    const { status } = await makeFifo(join(folder, "go"));
    expect(status).toBe(0);
    const restored = restoreTo(
      place,
      contentOf(state, 64 * 1024, (sizeBytes) => (given += sizeBytes)),
    );
    // The command opens the fifo first, and waits there until it is written to.
    await settled(() => given);
    expect(given).toBeLessThan(1024 * 1024);
    writeFileSync(join(folder, "go"), "");
    await restored;
    expect(readFileSync(join(folder, "db")).equals(state)).toBe(true);
  });

  test("a command that fails leaves an unknown state, and says so", async () => {
    const place = createPlace({ restore: ["sh", "-c", "cat > /dev/null; echo 'ERROR: no space' >&2; exit 3"] });
    await expect(restoreTo(place, contentOf(Buffer.from("state")))).rejects.toMatchObject({
      code: "GW_RESTORE_FAILED",
      message: expect.stringMatching(/exited with code 3: the state that it writes is unknown now.*ERROR: no space/s),
    });
  });

  test("its words on the ordinary output are told as well", async () => {
    const place = createPlace({ restore: ["sh", "-c", "cat > /dev/null; echo 'on stdout'; exit 1"] });
    await expect(restoreTo(place, contentOf(Buffer.from("state")))).rejects.toThrow("on stdout");
  });

  test("a command that ends well without reading all of it has failed", async () => {
    const place = createPlace({ restore: ["true"] });
    await expect(restoreTo(place, contentOf(Buffer.alloc(4 * 1024 * 1024)))).rejects.toMatchObject({
      code: "GW_RESTORE_FAILED",
      message: expect.stringContaining("ended before it had read all of it"),
    });
  });

  test("a command that stops reading is killed when its time is over", async () => {
    const place = createPlace({ restore: ["sleep", "600"], timeoutMs: 300 });
    await expect(restoreTo(place, contentOf(Buffer.alloc(4 * 1024 * 1024)))).rejects.toMatchObject({
      code: "GW_RESTORE_FAILED",
      message: expect.stringContaining("did not end within 300 ms"),
    });
  });

  test("when the rest of the state cannot be had, the command dies before it sees an end of its input", async () => {
    const folder = temporaryFolder();
    // All of it built in: nothing lies between the end of the input and the commit.
    const script = "read -r _; : > begun; while read -r _; do :; done; : > committed";
    const place = createPlace({ restore: ["sh", "-c", script], cwd: folder });
    const broken = async function* (): AsyncGenerator<Buffer> {
      yield Buffer.from("a\nb\n");
      await waitFor(() => existsSync(join(folder, "begun")), { what: "the command to have begun" });
      rmSync(join(folder, "begun"));
      throw new Error("chunk 2 is damaged");
    };
    // Often, for it would be a race.
    for (let round = 0; round < 20; round += 1) {
      await expect(restoreTo(place, broken())).rejects.toThrow("chunk 2 is damaged");
      expect(existsSync(join(folder, "committed"))).toBe(false);
    }
  });

  test("an abort ends the command before it sees an end of its input", async () => {
    const folder = temporaryFolder();
    const place = createPlace({
      restore: ["sh", "-c", "echo $$ > pid; cat > /dev/null; touch committed"],
      cwd: folder,
    });
    const replacement = await place.replace(never);
    const put = replacement.put(
      { kind: "file", path: "state", mode: 0o600, sizeBytes: 0, stamp: null },
      (async function* () {
        yield Buffer.from("ab");
        await waitFor(() => pidIn(join(folder, "pid")) > 0, { what: "the command to run" });
        void replacement.abort();
        yield Buffer.from("cd");
      })(),
    );
    await expect(put).rejects.toMatchObject({
      code: "GW_RESTORE_FAILED",
      message: expect.stringContaining("given up"),
    });
    expect(isRunning(readStat(pidIn(join(folder, "pid"))))).toBe(false);
    expect(existsSync(join(folder, "committed"))).toBe(false);
    await expect(replacement.commit()).rejects.toMatchObject({ message: expect.stringContaining("unknown") });
  });

  test.each([
    { kind: "file", path: "db/state", mode: 0o600, sizeBytes: 1, stamp: null },
    { kind: "folder", path: "state", mode: 0o700 },
    { kind: "link", path: "state", target: "x" },
  ] as const)("a tree with the $kind $path is refused, and nothing was begun", async (entry) => {
    const folder = temporaryFolder();
    const place = createPlace({ restore: ["touch", "begun"], cwd: folder });
    const replacement = await place.replace(never);
    await expect(
      replacement.put(entry, entry.kind === "file" ? contentOf(Buffer.from("x")) : null),
    ).rejects.toMatchObject({
      code: "GW_RESTORE_FAILED",
      message: expect.stringContaining(JSON.stringify(entry.path)),
    });
    await expect(replacement.commit()).rejects.toMatchObject({
      code: "GW_RESTORE_FAILED",
      message: expect.stringContaining("nothing was restored"),
    });
    expect(existsSync(join(folder, "begun"))).toBe(false);
  });

  test("when the process that feeds it is killed with -9, the command dies too and takes nothing for the end", async () => {
    const folder = temporaryFolder();
    const program = join(folder, "feeder.mts");
    writeFileSync(
      program,
      `import { createCommandPlace } from ${JSON.stringify(commandFile)};
       import { setTimeout as sleep } from "node:timers/promises";
       const place = createCommandPlace({ kind: "command", dump: [], cwd: ${JSON.stringify(folder)}, env: {}, timeoutMs: 60_000,
         restore: ["sh", "-c", "echo $$ > pid; cat > /dev/null; sleep 1; touch committed"] });
       const replacement = await place.replace(new AbortController().signal);
       await replacement.put({ kind: "file", path: "state", mode: 384, sizeBytes: 0, stamp: null }, (async function* () {
         for (;;) { yield Buffer.from("x"); await sleep(5); }
       })());`,
    );
    const feeder = spawn(process.execPath, ["--import", import.meta.resolve("tsx"), program], { stdio: "inherit" });
    onTestFinished(() => void feeder.kill("SIGKILL"));
    const pid = await waitFor(() => pidIn(join(folder, "pid")), { what: "the command to run" });
    feeder.kill("SIGKILL");
    await waitFor(() => !isRunning(readStat(pid)), { what: "the command to be gone", timeoutMs: 900 });
    expect(existsSync(join(folder, "committed"))).toBe(false);
  });
});

describe("PostgreSQL", () => {
  let servers: readonly PostgresServer[] = [];
  beforeAll(async () => {
    // The first time ever it may have to be unpacked.
    servers = [await startPostgres(), await startPostgres()];
  }, 300_000);
  afterAll(async () => {
    await Promise.all(servers.map((server) => server.close()));
  });

  /** As an operator would write it down. */
  const placeOf = (server: PostgresServer): ReturnType<typeof createCommandPlace> =>
    createPlace({
      // With another key in each dump, which is what newer releases write unless told, equal databases would have unequal roots.
      dump: [server.program("pg_dump"), "--clean", "--if-exists", "--create", ...restrictKey, "shop"],
      restore: [server.program("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname=template1"],
      env: server.env,
    });
  let restrictKey: readonly string[] = [];

  test("a database that was dumped and restored into another server's is equal, and what that one held before is gone", async () => {
    const [a, b] = servers as readonly [PostgresServer, PostgresServer];
    restrictKey = (await helpOf(a, "pg_dump")).includes("--restrict-key") ? ["--restrict-key=shop"] : [];
    await a.query("create database shop");
    await b.query("create database shop");
    await inShop(a, [
      "create table orders (id bigserial primary key, note text, price numeric(12,2), at timestamptz, raw bytea)",
      `insert into orders (note, price, at, raw)
         select 'Bestellung ä ' || n || E'\\n\\t\\\\.', n / 3.0, timestamptz '2026-01-01' + n * interval '1 second', decode(md5(n::text), 'hex')
         from generate_series(1, 50000) n`,
      "create index on orders (price)",
      "create view dear as select * from orders where price > 10000",
    ]);
    await inShop(b, ["create table leftover (x int)", "insert into leftover values (1)"]);

    const { bytes } = await stateOf(placeOf(a));
    expect(bytes.length).toBeGreaterThan(2_000_000);
    await restoreTo(placeOf(b), contentOf(bytes));

    const digest =
      "select count(*), md5(string_agg(orders::text, ',' order by id)), (select count(*) from dear) from orders";
    const inA = await inShop(a, [digest]);
    expect(inA).toMatch(/^50000\|[0-9a-f]{32}\|/);
    expect(await inShop(b, [digest])).toBe(inA);
    expect(await inShop(b, ["select to_regclass('leftover') is null"])).toBe("t\n");
    // The sequence goes on where it was, so the next insert on both gives the same row.
    for (const server of [a, b]) await inShop(server, ["insert into orders (note) values ('next')"]);
    expect(await inShop(b, ["select max(id) from orders"])).toBe(await inShop(a, ["select max(id) from orders"]));
    // Equal state, equal file.
    expect((await stateOf(placeOf(b))).bytes.equals((await stateOf(placeOf(a))).bytes)).toBe(true);
  });

  test("a database that is not there is a failed capture, in pg_dump's words", async () => {
    const [a] = servers as readonly [PostgresServer];
    const place = createPlace({ dump: [a.program("pg_dump"), "nowhere"], env: a.env });
    await expect(stateOf(place)).rejects.toMatchObject({
      code: "GW_SNAPSHOT_FAILED",
      message: expect.stringMatching(/exited with code 1.*database "nowhere" does not exist/s),
    });
  });

  test("SQL that fails in the middle fails the restore", async () => {
    const [, b] = servers as readonly [PostgresServer, PostgresServer];
    const sql =
      "create database half;\n\\connect half\ncreate table t (x int);\nselect nonsense;\ncreate table u (x int);\n";
    await expect(restoreTo(placeOf(b), contentOf(Buffer.from(sql)))).rejects.toMatchObject({
      code: "GW_RESTORE_FAILED",
      message: expect.stringMatching(/exited with code 3.*column "nonsense" does not exist/s),
    });
  });
});

function createPlace(options: Partial<CommandPlaceOptions>): ReturnType<typeof createCommandPlace> {
  return createCommandPlace({
    kind: "command",
    dump: ["false"],
    restore: ["false"],
    cwd: process.cwd(),
    env: {},
    timeoutMs: 30_000,
    ...options,
  });
}

/** A number that a command writes into a file; 0: not yet. */
function pidIn(file: string): number {
  return existsSync(file) ? Number(readFileSync(file, "utf8")) : 0;
}

/** Waits until a count no longer moves. */
async function settled(count: () => number): Promise<void> {
  let last = -1;
  let same = 0;
  await waitFor(
    () => {
      const now = count();
      same = now === last ? same + 1 : 0;
      last = now;
      return same >= 5;
    },
    { what: "a count to settle" },
  );
}

async function makeFifo(path: string): Promise<{ status: number | null }> {
  const child = spawn("mkfifo", [path]);
  return new Promise((resolve) => child.once("exit", (status) => resolve({ status })));
}

const inShop = (server: PostgresServer, statements: readonly string[]): Promise<string> =>
  output(server, [
    "-X",
    "-q",
    "-A",
    "-t",
    "-v",
    "ON_ERROR_STOP=1",
    "-d",
    "shop",
    ...statements.flatMap((sql) => ["-c", sql]),
  ]);

const helpOf = (server: PostgresServer, program: string): Promise<string> => output(server, ["--help"], program);

async function output(server: PostgresServer, args: readonly string[], program = "psql"): Promise<string> {
  const place = createPlace({ dump: [server.program(program), ...args], env: server.env });
  return (await stateOf(place)).bytes.toString();
}
