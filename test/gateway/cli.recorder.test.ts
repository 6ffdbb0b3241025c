// oxlint-disable unicorn/consistent-function-scoping -- a helper stands where it is used
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { Progress } from "../../gateway/commands/progress.ts";
import { Terminal } from "../../gateway/commands/terminal.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { cli, openFakeAdmin, operation, snapshotRow, status } from "./cli.fake.ts";
import type { AdoptionPlan, Recovery, RecoveryPlan, RecoveryResult } from "../../gateway/recoverplan.ts";
import type { CliResult, FakeAdmin } from "./cli.fake.ts";

const folder = mkdtempSync(join(tmpdir(), "cli-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const write = (name: string, text: string): string => {
  writeFileSync(join(folder, name), text, { mode: 0o600 });
  return join(folder, name);
};

const narrow = (text: string): void => {
  for (const line of text.split("\n")) expect(line.length, line).toBeLessThanOrEqual(80);
};

// oxlint-disable-next-line no-control-regex
const plain = (text: string): string => text.replaceAll(/\u001b\[[0-9;]*[mK]/g, "");

describe("snapshots of a running gateway", () => {
  let gateway: FakeAdmin;
  beforeAll(async () => {
    gateway = await openFakeAdmin();
  });
  afterAll(() => gateway.admin.close());
  const ask = (...args: string[]): Promise<CliResult> => cli([...args, "--admin", gateway.url]);

  test("are listed in 80 columns, newest first", async () => {
    const { exitCode, out, err } = await ask("snapshot", "ls");
    expect([exitCode, err]).toEqual([0, ""]);
    narrow(out);
    expect(out).toBe(`VERSION  POSITION    AGE     SIZE      NEW  VERIFIED  PUBLISHED  FROM
     12   4049152  3 min  1.2 GiB  3.2 MiB  yes       final      c
     11   4045056  3 min  1.2 GiB        -  not yet   waiting    c
`);
    expect(JSON.parse((await ask("snapshot", "ls", "--json")).out)).toMatchObject([{ version: 12 }, { version: 11 }]);
    const { url, admin } = await openFakeAdmin({ over: { snapshots: async () => [] } });
    expect((await cli(["snapshot", "ls", "--admin", url])).out).toBe("there is no snapshot\n");
    await admin.close();
  });

  test("are shown with every hash, in 80 columns", async () => {
    const { out } = await ask("snapshot", "show", "12");
    narrow(out);
    expect(out).toContain(`position   4049152, after 12,000 entries\n`);
    expect(out).toContain(`state      1.2 GiB in 10,000 files, folders and links, 3.2 MiB of it new\n`);
    expect(out).toContain(`manifest   ${"1a".repeat(32)}\n`);
    expect(out).toContain(`verified   yes: a restore gave its root\n`);
    expect(await ask("snapshot", "show", "7")).toEqual({
      exitCode: 1,
      out: "",
      err: "error: There is no snapshot of version 7: kept are 12, 11.\nGW_SNAPSHOT_MISSING: see deploy/runbook.md\n",
    });
  });

  test("are taken and verified while one waits, and what came of it is one sentence", async () => {
    const created = await ask("snapshot", "create");
    expect([created.exitCode, created.out]).toEqual([0, "snapshot of 13 is done\n"]);
    expect(created.err).toContain("snapshot 13, 25 %, 1 B of 4 B\n");
    expect((await ask("snapshot", "verify")).out).toBe("verify of 12 is done\n");
    expect((await ask("snapshot", "verify", "11")).exitCode).toBe(0);
    expect(gateway.control.calls.splice(0)).toEqual(["snapshot", "verify null", "verify 11"]);
  });

  test("go on without one who waits, under an id that is printed", async () => {
    const { out, err } = await ask("snapshot", "create", "--no-wait");
    expect([out, err]).toEqual([
      `under way as operation op-snapshot: GET ${gateway.url}/v1/operations/op-snapshot\n`,
      "",
    ]);
    const json = await ask("snapshot", "create", "--no-wait", "--json");
    expect(JSON.parse(json.out)).toMatchObject({ id: "op-snapshot", state: "running" });
    gateway.control.calls.splice(0);
  });

  test("that are taken with --json give one document on stdout, and progress as JSON on stderr", async () => {
    const { exitCode, out, err } = await ask("snapshot", "create", "--json");
    expect(exitCode).toBe(0);
    expect(JSON.parse(out)).toMatchObject({ kind: "snapshot", state: "done" });
    expect(JSON.parse(err.split("\n")[0] ?? "")).toEqual({
      progress: { step: "snapshot 13", replica: null, done: 1, total: 4, unit: "bytes" },
    });
    gateway.control.calls.splice(0);
  });

  test("that are not sound are findings, exit code 3; what failed otherwise is exit code 1", async () => {
    const ending = async (facts: object, ...args: string[]): Promise<CliResult> => {
      const begun = operation("verify", "12");
      const { url, admin } = await openFakeAdmin({
        over: { snapshotVerify: async () => begun, operation: () => ({ ...begun, state: "failed", ...facts }) },
      });
      const result = await cli(["snapshot", "verify", ...args, "--admin", url]);
      await admin.close();
      return result;
    };
    const evil = "chunk \u001b[2J is another";
    expect(await ending({ findings: [evil], result: "version 12 is not sound" })).toEqual({
      exitCode: 3,
      out: "finding: chunk \ufffd[2J is another\nversion 12 is not sound\n",
      err: "",
    });
    const error = { code: "GW_STORE_UNAVAILABLE", detail: "the store /srv/snapshots cannot be reached: EIO" };
    expect(await ending({ error })).toEqual({
      exitCode: 1,
      out: "",
      err: "error: the store /srv/snapshots cannot be reached: EIO\nGW_STORE_UNAVAILABLE: see deploy/runbook.md\n",
    });
    const json = await ending({ error }, "--json");
    expect([json.exitCode, JSON.parse(json.out)]).toMatchObject([1, { state: "failed", error }]);
  });

  test("whose gateway is gone while one waits are said to go on, perhaps", async () => {
    const fake = await openFakeAdmin({ over: { operation: () => null } });
    const { exitCode, err } = await cli(["snapshot", "create", "--admin", fake.url]);
    await fake.admin.close();
    expect(exitCode).toBe(1);
    expect(err).toBe(
      'error: Operation op-snapshot was lost sight of. There is no operation "op-snapshot" (any more).\nGW_NOT_FOUND: see deploy/runbook.md\n',
    );
  });

  test("stand in the status with what is wrong with them and with the registry", async () => {
    const { url, admin } = await openFakeAdmin({
      over: {
        status: async () => ({
          ...status,
          unfinished: 0,
          snapshots: {
            store: "s3://bucket/shop",
            kept: 0,
            last: null,
            lastSuccessMs: null,
            isRecorder: true,
            trouble: "ENOSPC",
            bytes: 0,
          },
          registry: {
            kind: "ethereum",
            where: "0x5fbdb2315678afecb367f032d93f642f64180aa3",
            reachable: false,
            trouble: "connection refused",
            balanceWei: null,
            errors: 9,
            publishedPosition: null,
            pendingSeconds: 0,
          },
        }),
      },
    });
    const { out } = await cli(["status", "--admin", url]);
    await admin.close();
    narrow(out);
    expect(out).toContain(`snapshots  none yet; 0 kept, 0 B in s3://bucket/shop. THE LAST ONE FAILED:
           ENOSPC
registry   ethereum 0x5fbdb2315678afecb367f032d93f642f64180aa3, AWAY, nothing
           published, connection refused
`);
    expect(out).not.toContain("once-only");
  });

  test("compare all copies on demand", async () => {
    expect((await ask("audit")).out).toBe("audit of  is done\n");
    const begun = operation("audit", "");
    const { url, admin } = await openFakeAdmin({
      over: {
        audit: async () => begun,
        operation: () => ({ ...begun, state: "failed", findings: ["b has another root than a and c"], result: "" }),
      },
    });
    expect(await cli(["audit", "--admin", url])).toEqual({
      exitCode: 3,
      out: "finding: b has another root than a and c\n",
      err: "",
    });
    await admin.close();
    gateway.control.calls.splice(0);
  });

  test("entries whose once-only part may be undone are listed without secrets", async () => {
    const { out } = await ask("log", "unfinished");
    expect(out).toMatch(
      /^POSITION {2}TIME .*PRIMARY {2}ONCE-ONLY PART {2}RULE .*\n 4931570 .* a {8}unknown .*redacted\]\n$/,
    );
    expect(out).not.toContain("canary");
  });
});

describe("copies of a running gateway", () => {
  let gateway: FakeAdmin;
  beforeAll(async () => {
    gateway = await openFakeAdmin();
  });
  afterAll(() => gateway.admin.close());
  const ask = (...args: string[]): Promise<CliResult> => cli([...args, "--admin", gateway.url], { cwd: folder });

  test("are added by URL, with all that is needed to rebuild them", async () => {
    const words = "replica add http://127.0.0.1:4004 --name d --state d/state --stop systemctl stop d --start".split(
      " ",
    );
    const witness = ["--witness", "GET /accounts", "--witness", "GET /orders"];
    const { exitCode, out } = await ask(...words, "systemctl --user start d", ...witness);
    expect([exitCode, out]).toEqual([0, "add of d is done\n"]);
    expect(JSON.parse(gateway.control.calls.splice(0)[0]?.slice(4) ?? "")).toEqual({
      name: "d",
      url: "http://127.0.0.1:4004",
      state: join(folder, "d/state"),
      stop: ["systemctl", "stop", "d"],
      start: ["systemctl", "--user", "start", "d"],
      witness: ["GET /accounts", "GET /orders"],
    });
  });

  test("have a name of their address where none is given, and are ours where no URL is", async () => {
    await ask("replica", "add", "http://127.0.0.1:4004", "--no-wait");
    await ask("replica", "add", "--no-wait");
    expect(gateway.control.calls.splice(0)).toEqual([
      expect.stringContaining('"name":"127.0.0.1-4004"') as string,
      "add null",
    ]);
    const wrong = await ask("replica", "add", "--name", "d");
    expect([wrong.exitCode, wrong.err]).toEqual([
      2,
      "error: --name is of a copy that runs already.\nGive its URL: gateway replica add URL\n",
    ]);
    expect((await ask("replica", "add", "http://169.254.169.254")).err).toContain("is no address of a backend");
  });

  test("are removed and rebuilt, from a version where one is named", async () => {
    expect((await ask("replica", "remove", "b")).out).toBe("remove of b is done\n");
    expect((await ask("replica", "rebuild", "b")).out).toBe("rebuild of b is done\n");
    expect((await ask("replica", "rebuild", "b", "--version", "11")).exitCode).toBe(0);
    expect(gateway.control.calls.splice(0)).toEqual(["remove b", "rebuild b null", "rebuild b 11"]);
    expect((await ask("replica", "rebuild", "b", "--version", "new")).exitCode).toBe(2);
    expect((await ask("replica", "remove", "zzz")).err).toContain("GW_NOT_FOUND");
    expect((await ask("replica", "sync")).out).toBe("added: c\nremoved: d, e\n");
    expect(JSON.parse((await ask("replica", "sync", "--json")).out)).toEqual({
      added: ["c"],
      changed: [],
      removed: ["d", "e"],
    });
  });
});

const plan: RecoveryPlan = {
  request: { replica: null, version: null, to: null, isOtherImageAllowed: false },
  service: "shop",
  epoch: "00112233aabbccdd",
  source: "registry",
  version: 12,
  position: 4_049_152,
  manifestHash: "1a".repeat(32),
  anchoredTo:
    "the state up to position 4049152 is anchored in contract 0x5fbd…0aa3 on chain 31337, attested by 2 of 2; for what is behind it the log's own hash chain vouches",
  log: { isPresent: true, first: 4096, tail: 4_931_588, upTo: null, entriesToReplay: 1204 },
  replicas: [
    { name: "a", action: "restore", bytes: 1_288_490_189, why: "its state folder is empty" },
    { name: "b", action: "keep", bytes: 0, why: "not asked for" },
  ],
  warnings: [
    "the key store is empty: answers to retries from before are not known any more, only that they were given",
  ],
  refused: null,
  candidates: [
    { version: 12, position: 4_049_152, isUsable: true, why: "" },
    { version: 11, position: 4_045_056, isUsable: true, why: "not verified yet" },
  ],
};

const result: RecoveryResult = {
  replicas: [{ name: "a", state: "restored, ready to join" }],
  position: 4_931_588,
  verified: 1200,
  unverified: 4,
  differing: [],
  missing: null,
  tookMs: 61_000,
};

const adoption: AdoptionPlan = {
  service: "shop",
  from: "a",
  source: "/srv/a/state",
  replicas: [
    { name: "a", action: "keep", why: "its state is adopted" },
    { name: "b", action: "replace", why: "" },
  ],
  warnings: [],
  refused: null,
};

function fakeRecovery(over: Partial<Recovery> = {}): { readonly recovery: Recovery; readonly calls: string[] } {
  const calls: string[] = [];
  const recovery: Recovery = {
    planRecovery: async (_config, request) => {
      calls.push(`plan ${JSON.stringify(request)}`);
      return plan;
    },
    runRecovery: async (_config, { version }, { onProgress }) => {
      calls.push(`run ${version}`);
      onProgress({ step: "restoring", replica: "a", done: 1024, total: 2048, unit: "bytes" });
      onProgress({ step: "replaying the log on a", replica: "a", done: 7, total: 1204, unit: "entries" });
      return result;
    },
    planAdoption: async (_config, { from }) => {
      calls.push(`adopt ${from}`);
      return adoption;
    },
    runAdoption: async () => {
      calls.push("run adoption");
      return { ...result, verified: 0, unverified: 0 };
    },
    registryFacts: async () => ({
      chainId: "31337",
      newest: { version: 12, position: 4_049_152, manifestHash: "1a".repeat(32) },
      trouble: null,
    }),
    ...over,
  };
  return { recovery, calls };
}

const config = write(
  "gateway.yaml",
  "service: shop\nreplicas: { count: 3, command: [x], state: ./state }\nsnapshots: {}\n",
);

async function recover(
  args: readonly string[],
  { over = {}, typed, isTerminal = false }: { over?: Partial<Recovery>; typed?: string; isTerminal?: boolean } = {},
): Promise<CliResult & { readonly calls: readonly string[] }> {
  const { recovery, calls } = fakeRecovery(over);
  const around = { cwd: folder, parts: { recovery }, isTerminal, ...(typed === undefined ? {} : { typed }) };
  return { ...(await cli(args, around)), calls };
}

describe("recover", () => {
  test("prints the plan in 80 columns, asks, runs it and says what came of it", async () => {
    const { exitCode, out, err, calls } = await recover(["recover"], { typed: "yes" });
    expect(exitCode).toBe(0);
    narrow(out);
    expect(out).toBe(`recovery of shop
  snapshot   version 12 at position 4049152, as the registry names it
  manifest   ${"1a".repeat(32)}
  anchored   the state up to position 4049152 is anchored in contract
             0x5fbd…0aa3 on chain 31337, attested by 2 of 2; for what is behind
             it the log's own hash chain vouches
  log        4096 to 4931588, 1,204 entries to replay
  epoch      00112233aabbccdd

NAME  ACTION      SIZE
a     restore  1.2 GiB
b     keep           -
  a: its state folder is empty
  b: not asked for

VERSION  POSITION  USABLE
     12   4049152  yes
     11   4045056  yes
  11: not verified yet

warning: the key store is empty: answers to retries from before are not known
         any more, only that they were given

done: at position 4931588, after 61 s
1,200 entries answered as at first, 4 had no answer to compare with

NAME  STATE
a     restored, ready to join
`);
    expect(err).toContain("The state of a is replaced by this. Type yes: ");
    expect(err).toContain("a: restoring, 50 %, 1.0 KiB of 2.0 KiB\nreplaying the log on a, 0 %, 7 of 1,204\n");
    expect(calls).toEqual(['plan {"replica":null,"version":null,"to":null,"isOtherImageAllowed":false}', "run 12"]);
  });

  test("hands on what was asked for", async () => {
    const args = ["recover", "-c", config, "--replica", "b", "--version", "11", "--allow-image", "--dry-run"];
    const request = async (...more: string[]): Promise<unknown> =>
      JSON.parse((await recover([...args, ...more])).calls[0]?.slice(5) ?? "null");
    expect(await request("--to", "4931584")).toEqual({
      replica: "b",
      version: 11,
      to: { position: 4_931_584 },
      isOtherImageAllowed: true,
    });
    expect(await request("--to", "2026-11-20T12:00:00+01:00")).toMatchObject({
      to: { timeMs: Date.UTC(2026, 10, 20, 11, 0, 0) },
    });
  });

  test("touches nothing with --dry-run, without a yes, or where nobody can be asked", async () => {
    const dry = await recover(["recover", "--dry-run"]);
    expect([dry.exitCode, dry.calls.length, dry.err]).toEqual([0, 1, "\nnothing was touched (--dry-run)\n"]);
    for (const typed of ["", "y", "no", "yes!"]) {
      const no = await recover(["recover"], { typed });
      expect([typed, no.exitCode, no.calls.length]).toEqual([typed, 1, 1]);
      expect(no.err).toContain("nothing was touched\n");
    }
    const alone = await recover(["recover"]);
    expect(alone).toMatchObject({ exitCode: 2, out: "", calls: [] });
    expect(alone.err).toContain("Look at the plan with --dry-run, then give --yes");
    const program = await recover(["recover", "--json"], { typed: "yes" });
    expect([program.exitCode, program.calls]).toEqual([2, []]);
    expect((await recover(["recover", "--yes"])).calls).toHaveLength(2);
  });

  test("is one JSON document for programs", async () => {
    const dry = await recover(["recover", "--dry-run", "--json"]);
    expect(JSON.parse(dry.out)).toEqual({ plan, result: null });
    const done = await recover(["recover", "--yes", "--json"]);
    expect(JSON.parse(done.out)).toEqual({ plan, result });
    for (const line of done.err.trim().split("\n")) JSON.parse(line);
  });

  test("that is refused says why and which other snapshot can be taken, exit code 1", async () => {
    const refused = { ...plan, refused: "manifest 1a1a… in the store has another hash than the registry's" };
    const over = { planRecovery: async () => refused };
    const { exitCode, err, calls } = await recover(["recover", "--yes"], { over });
    expect([exitCode, calls]).toEqual([1, []]);
    expect(err).toBe(
      "error: manifest 1a1a… in the store has another hash than the registry's\nNothing was touched; try: gateway recover --version 11. See GW_RECOVERY_REFUSED in deploy/runbook.md\n",
    );
    const json = await recover(["recover", "--dry-run", "--json"], { over });
    expect([json.exitCode, JSON.parse(json.out)]).toMatchObject([1, { plan: { refused: refused.refused } }]);
  });

  test("without a log says what is lost, before and after", async () => {
    const lost = "entries behind position 4049152 are lost; a new epoch begins above 4931588";
    const { out, exitCode } = await recover(["recover", "--yes"], {
      over: {
        planRecovery: async () => ({
          ...plan,
          source: "store",
          log: { isPresent: false, first: null, tail: null, upTo: null, entriesToReplay: 0 },
          warnings: [lost],
        }),
        runRecovery: async () => ({ ...result, verified: 0, unverified: 0, missing: lost }),
      },
    });
    expect(exitCode).toBe(0);
    narrow(out);
    expect(out).toContain("version 12 at position 4049152, as the store has it\n");
    expect(out).toContain("log        is not there: what it held behind the snapshot is lost\n");
    expect(out.match(/warning: entries behind position 4049152 are lost/g)).toHaveLength(2);
  });

  test("whose replay differs is exit code 3, with what differs", async () => {
    const differing = Array.from({ length: 25 }, (_, i) => `entry ${i}: status 500 instead of 201`);
    const { exitCode, out } = await recover(["recover", "--yes"], {
      over: { runRecovery: async () => ({ ...result, differing }) },
    });
    expect(exitCode).toBe(3);
    expect(out).toContain("done, with findings: at position 4931588");
    expect(out).toContain("finding: entry 19: status 500 instead of 201\n… and 5 more\n");
  });

  test.each([
    ["GW_SNAPSHOT_CORRUPT", 3, "nothing live was touched"],
    ["GW_REPLAY_DIFFERS", 3, "nothing live was touched"],
    ["GW_STORE_UNAVAILABLE", 1, "the same command goes on where it was"],
  ] as const)("that fails with %s is exit code %i and says what to do", async (code, exitCode, next) => {
    const over = { runRecovery: () => Promise.reject(new GatewayError(code, "chunk 3 is another")) };
    const answer = await recover(["recover", "--yes"], { over });
    expect(answer.exitCode).toBe(exitCode);
    expect(answer.err).toContain(`error: chunk 3 is another\n${code}: ${next}`);
    expect(answer.err).not.toMatch(/\n\s+at /);
  });

  test("that is interrupted stops where it can go on, exit code 130", async () => {
    const before = process.listenerCount("SIGINT");
    const over: Partial<Recovery> = {
      runRecovery: (_config, _plan, { signal }) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener("abort", () => reject(new Error("aborted")));
          process.emit("SIGINT");
        }),
    };
    const { exitCode, out, err } = await recover(["recover", "--yes"], { over });
    expect(exitCode).toBe(130);
    expect(err).toContain("stopping where it can go on");
    expect(err).toContain("interrupted: the same command goes on where it was\n");
    expect(out).not.toContain("done");
    expect(process.listenerCount("SIGINT")).toBe(before);
  });

  test.each([
    [["recover", "--version", "new", "--dry-run"], '"new" is not the version of a snapshot'],
    [["recover", "--to", "yesterday", "--dry-run"], '"yesterday" is neither a position nor a time'],
    // Which moment that is depends on where one sits.
    [["recover", "--to", "2026-11-20T12:00:00", "--dry-run"], "is neither a position nor a time"],
    [["recover", "--to", "2026-13-20T12:00:00Z", "--dry-run"], "is neither a position nor a time"],
    [["recover", "--replica", "zzz", "--dry-run"], 'There is no replica "zzz", only a, b.'],
    [["recover", "-c", "/nonexistent/x.yaml", "--dry-run"], "does not exist"],
    [["recover", "extra"], "too many arguments"],
    [["adopt"], "required option '--from <name>' not specified"],
    [["adopt", "--from", "zzz", "--yes"], 'There is no replica "zzz", only a, b.'],
  ])("%j is a usage error", async (args, hint) => {
    const { exitCode, out, err, calls } = await recover(args);
    expect([exitCode, out]).toEqual([2, ""]);
    expect(err).toContain(hint);
    expect(calls.filter((call) => call.startsWith("run"))).toEqual([]);
  });

  test("without a configuration says so", async () => {
    const { recovery } = fakeRecovery();
    for (const args of [["recover", "--dry-run"], ["recovery-kit"], ["adopt", "--from", "a", "--dry-run"]]) {
      const { exitCode, err } = await cli(args, { parts: { recovery } });
      expect([args, exitCode]).toEqual([args, 2]);
      expect(err).toContain("There is no gateway.yaml here.");
    }
  });
});

describe("adopt", () => {
  test("prints whose state goes where, asks and runs", async () => {
    const { exitCode, out, err, calls } = await recover(["adopt", "--from", "a"], { typed: "yes" });
    expect(exitCode).toBe(0);
    narrow(out);
    expect(out).toContain(`copies of a for shop
  state      /srv/a/state

NAME  ACTION
a     keep
b     replace
  a: its state is adopted
`);
    expect(err).toContain("The state of b is replaced by that of a. Type yes: ");
    expect(calls).toEqual(["adopt a", "run adoption"]);
  });

  test("touches nothing where it is refused", async () => {
    const over = { planAdoption: async () => ({ ...adoption, refused: "the log has 7 entries already" }) };
    const { exitCode, err, calls } = await recover(["adopt", "--from", "a", "--yes"], { over });
    expect([exitCode, calls]).toEqual([1, []]);
    expect(err).toContain("error: the log has 7 entries already\nNothing was touched.");
  });
});

describe("progress", () => {
  test("on a terminal is a bar with rate and time left that fits, one line a step", async () => {
    let told = 0;
    const over: Partial<Recovery> = {
      runRecovery: async (_config, _plan, { onProgress }) => {
        const begin = performance.now();
        while (performance.now() - begin < 1600) {
          told++;
          onProgress({
            step: "restoring",
            replica: "a",
            done: told * 1024 ** 2,
            total: 4096 * 1024 ** 2,
            unit: "bytes",
          });
          await new Promise((resolve) => setTimeout(resolve, 20));
        }
        onProgress({ step: "replaying", replica: "a", done: 1204, total: 1204, unit: "entries" });
        return result;
      },
    };
    const { err } = await recover(["recover", "--yes"], { over, isTerminal: true });
    const drawn = plain(err).split(/[\r\n]/);
    for (const line of drawn) expect(line.length, line).toBeLessThan(80);
    const bar = /^a: restoring {2}\[[#-]{8,}\] {4}\d %  \d+\.\d MiB of 4\.0 GiB {2}\d+\.\d MiB\/s {2}\d+ (s|min) left$/;
    expect(drawn.filter((line) => bar.test(line)).length, drawn.join("\n")).toBeGreaterThan(0);
    expect(drawn.some((line) => /^a: restoring {2}\d+\.\d MiB in \d\.?\d? s$/.test(line))).toBe(true);
    expect(drawn.some((line) => /^a: replaying {2}1,204 entries in \d/.test(line))).toBe(true);
    expect(told).toBeGreaterThan(10);
  });

  test("elsewhere is a line when a step begins and one every ten seconds, of which the rate is of the last ones", () => {
    vi.useFakeTimers();
    try {
      const { progress, err } = progressOn({ isErrTerminal: false, columns: 80 });
      const mib = 1024 ** 2;
      for (let second = 0; second <= 40; second++) {
        // 10 MiB/s at first, then 1.
        const done = Math.min(second, 20) * 10 * mib + Math.max(0, second - 20) * mib;
        progress.tell({ step: "restoring", replica: "a", done, total: 1024 * mib, unit: "bytes" });
        vi.advanceTimersByTime(1000);
      }
      // Nothing new is told: the line still comes.
      vi.advanceTimersByTime(10_000);
      progress.end();
      progress.end();
      vi.advanceTimersByTime(60_000);
      expect(err.join("").split("\n").filter(Boolean)).toEqual([
        "a: restoring, 0 %, 0 B of 1.0 GiB",
        "a: restoring, 8 %, 90.0 MiB of 1.0 GiB, 9.0 MiB/s, 104 s left",
        "a: restoring, 18 %, 190 MiB of 1.0 GiB, 9.4 MiB/s, 89 s left",
        "a: restoring, 20 %, 209 MiB of 1.0 GiB, 4.6 MiB/s, 3 min left",
        "a: restoring, 21 %, 219 MiB of 1.0 GiB, 964 KiB/s, 14 min left",
        "a: restoring, 21 %, 220 MiB of 1.0 GiB, 630 KiB/s, 22 min left",
      ]);
    } finally {
      vi.useRealTimers();
    }
  });

  test("on a narrow terminal loses what is least needed, never the line", () => {
    for (const columns of [120, 80, 60, 40, 24, 10]) {
      const { progress, err } = progressOn({ isErrTerminal: true, columns });
      progress.tell({ step: "restoring", replica: "a", done: 512, total: 1024, unit: "bytes" });
      progress.tell({ step: "preparing", replica: null, done: 0, total: 0, unit: "entries" });
      progress.end();
      const drawn = plain(err.join(""))
        .split(/[\r\n]/)
        .filter(Boolean);
      for (const line of drawn) expect([columns, line.length < columns]).toEqual([columns, true]);
      if (columns >= 40) expect(drawn[0]).toContain("50 %");
      expect(drawn.at(-1)).toMatch(/^prep/);
    }
  });

  function progressOn(around: { readonly isErrTerminal: boolean; readonly columns: number }) {
    const err: string[] = [];
    const terminal = new Terminal(
      {
        out: () => undefined,
        err: (text) => void err.push(text),
        env: {},
        cwd: "/",
        isTerminal: around.isErrTerminal,
        ask: null,
        ...around,
      },
      false,
    );
    return { progress: new Progress(terminal), err };
  }
});

describe("recovery-kit", () => {
  const canary = "canary-secret-value";
  const text = `service: shop
admin: { token: ${canary} }   # kept for the comment
keys: { redis: { url: "redis://:${canary}@127.0.0.1:6379" } }
log: { nats: { servers: ["nats://127.0.0.1:4222"], credentialsFile: ./gw.creds } }
rules: ./kit.rules.yaml
replicas: { count: 3, command: [x], state: ./state, env: { LOG: info, API_TOKEN: ${canary}, OTHER_TOKEN: "\${OTHER}" } }
snapshots:
  store: s3://bucket/shop?endpoint=http://127.0.0.1:9000
  encrypt: { keyFile: ./snapshot.key }
registry:
  ethereum:
    rpc: ["http://127.0.0.1:8545", "https://rpc.example/${canary}"]
    contract: "0x5fbdb2315678afecb367f032d93f642f64180aa3"
    key: "\${REGISTRY_KEY}"
`;
  const env = {
    REGISTRY_KEY: `0x${"5e".repeat(32)}`,
    OTHER: "other-secret-value",
    AWS_ACCESS_KEY_ID: "AKIA",
    AWS_SECRET_ACCESS_KEY: "aws-secret-value",
    GATEWAY_ADMIN__METRICS: "open",
  };
  const secrets = [canary, "5e".repeat(32), "other-secret-value", "aws-secret-value", "0f".repeat(32)];
  let file: string;
  beforeAll(() => {
    write("gw.creds", "x");
    write("snapshot.key", "0f".repeat(32));
    write(
      "kit.rules.yaml",
      `version: 1\nrules:\n  - name: create\n    match: POST /orders\n    mode: replicate\n    replay: { set: { authorization: "Bearer \${REPLAY_TOKEN}", x-old: ${canary} } }\n`,
    );
    file = write("kit.yaml", text);
  });
  const kit = (args: readonly string[] = [], over: Partial<Recovery> = {}): Promise<CliResult> =>
    cli(["recovery-kit", "-c", file, ...args], {
      cwd: folder,
      env: { ...env, REPLAY_TOKEN: "t" },
      parts: { recovery: fakeRecovery(over).recovery },
    });

  test("names what is needed on an empty machine, and holds no secret", async () => {
    const { exitCode, out, err } = await kit();
    expect([exitCode, err]).toEqual([0, ""]);
    for (const secret of secrets) expect(out).not.toContain(secret);
    for (const line of [
      "registry     contract 0x5fbdb2315678afecb367f032d93f642f64180aa3",
      "chain        31337",
      "published    version 12 at position 4049152",
      `manifest     ${"1a".repeat(32)}`,
      "store        s3://bucket/shop at http://127.0.0.1:9000, region us-east-1",
      "encrypted    yes: without its key the store is worth nothing",
      "log          NATS at nats://127.0.0.1:4222",
      `  log.nats.credentialsFile: ${folder}/gw.creds`,
      `  snapshots.encrypt.keyFile: ${folder}/snapshot.key`,
      ...["AWS_SECRET_ACCESS_KEY", "GATEWAY_ADMIN__METRICS", "OTHER", "REGISTRY_KEY", "REPLAY_TOKEN"].map(
        (it) => `  ${it}`,
      ),
      ...[
        "admin.token",
        "keys.redis.url",
        "replicas.env.API_TOKEN",
        "registry.ethereum.rpc.1",
        "rules.0.replay.set.x-old",
      ].map((it) => `  ${it}`),
    ])
      expect(out.split("\n"), line).toContain(line);
    expect(out).not.toContain("registry.ethereum.rpc.0");
  });

  test("holds the texts as they are, comments and variables included, without what is secret in them", async () => {
    const { out } = await kit();
    const [, config = ""] = out.split(`===== ${file} =====\n`);
    expect(config).toContain('admin: { token: "•••" }   # kept for the comment\n');
    expect(config).toContain('env: { LOG: info, API_TOKEN: "•••", OTHER_TOKEN: "${OTHER}" } }\n');
    expect(config).toContain('rpc: ["http://127.0.0.1:8545", "•••"]\n');
    expect(config).toContain('key: "${REGISTRY_KEY}"\n');
    expect(config).toContain('replay: { set: { authorization: "Bearer ${REPLAY_TOKEN}", x-old: "•••" } }\n');
  });

  test("is written for its owner alone, whole, over an older one", async () => {
    const to = join(folder, "shop.kit");
    writeFileSync(to, "old", { mode: 0o644 });
    const { exitCode, out } = await kit(["--out", "shop.kit"]);
    expect([exitCode, out]).toEqual([0, `written to ${to}\n`]);
    expect((statSync(to).mode & 0o777).toString(8)).toBe("600");
    expect(readFileSync(to, "utf8")).toContain("Recovery kit of shop\n");
    expect(readdirSync(folder).filter((name) => name.endsWith(".new"))).toEqual([]);
    const wrong = await kit(["--out", "/nonexistent/x"]);
    expect([wrong.exitCode, wrong.err]).toEqual([
      1,
      "error: /nonexistent/x cannot be written (ENOENT).\nChoose another place: --out FILE\n",
    ]);
  });

  test("is JSON for programs", async () => {
    const { out } = await kit(["--json"]);
    for (const secret of secrets) expect(out).not.toContain(secret);
    expect(JSON.parse(out)).toMatchObject({
      service: "shop",
      registry: { chainId: "31337", contract: "0x5fbdb2315678afecb367f032d93f642f64180aa3", newest: { version: 12 } },
      isEncrypted: true,
      files: expect.arrayContaining([
        { key: "snapshots.encrypt.keyFile", file: join(folder, "snapshot.key") },
      ]) as unknown,
    });
  });

  test("without the newest publication is printed all the same, and is exit code 1", async () => {
    const registryFacts = async () => ({ chainId: null, newest: null, trouble: "connection refused" });
    const { exitCode, out, err } = await kit([], { registryFacts });
    expect(exitCode).toBe(1);
    expect(out).toContain("published    could not be read: connection refused\n");
    expect(err).toContain("The kit lacks the newest publication: connection refused");
  });

  test("of a machine that holds everything itself says what that means", async () => {
    const { recovery } = fakeRecovery({ registryFacts: async () => ({ chainId: null, newest: null, trouble: null }) });
    const { out } = await cli(["recovery-kit", "-c", config], { cwd: folder, parts: { recovery } });
    expect(out).toContain("registry     a file, in data\n");
    expect(out).toContain("Log or snapshots are on this machine: what is lost with it cannot be recovered.");
    expect(out).toContain("Files that are needed, which are not in this kit:\n  none\n");
  });
});

test("what a store or a gateway tells cannot steer the terminal", async () => {
  const evil = "\u001b]0;owned\u0007\u001b[2J";
  const { url, admin } = await openFakeAdmin({
    over: { snapshots: async () => [snapshotRow(1, { replica: evil, backendVersion: evil, transaction: evil })] },
  });
  const over: Partial<Recovery> = {
    planRecovery: async () => ({
      ...plan,
      anchoredTo: evil,
      warnings: [evil],
      replicas: plan.replicas.map((one) => ({ ...one, why: evil })),
      candidates: plan.candidates.map((one) => ({ ...one, why: evil })),
    }),
    runRecovery: async (_config, _plan, { onProgress }) => {
      onProgress({ step: evil, replica: null, done: 0, total: 0, unit: "bytes" });
      return { ...result, differing: [evil], missing: evil, replicas: [{ name: "a", state: evil }] };
    },
  };
  const results = [
    await cli(["snapshot", "ls", "--admin", url]),
    await cli(["snapshot", "show", "1", "--admin", url]),
    await recover(["recover", "--yes"], { over }),
  ];
  await admin.close();
  // oxlint-disable-next-line no-control-regex
  for (const { out, err } of results) expect(/[\u001b\u0007]/.test(out + err)).toBe(false);
});
