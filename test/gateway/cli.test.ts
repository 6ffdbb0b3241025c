// oxlint-disable unicorn/consistent-function-scoping -- a helper stands where it is used
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { Secret } from "../../gateway/config.ts";
import { cli, fakeControl, openFakeAdmin, status } from "./cli.fake.ts";
import type { FakeAdmin } from "./cli.fake.ts";
import type { StartGateway } from "../../gateway/commands/serve.ts";

const folder = mkdtempSync(join(tmpdir(), "cli-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const write = (name: string, text: string): string => {
  writeFileSync(join(folder, name), text, { mode: 0o600 });
  return join(folder, name);
};

const narrow = (text: string): void => {
  for (const line of text.split("\n")) expect(line.length, line).toBeLessThanOrEqual(80);
};

describe("usage", () => {
  test("help begins with examples, fits 80 columns, and is no error", async () => {
    for (const command of [
      "",
      "run",
      "demo",
      "check",
      "explain",
      "status",
      "replica",
      "replica resolve",
      "log",
      "log tail",
      "disagreement",
      "pause",
      "snapshot",
      "snapshot create",
      "snapshot ls",
      "snapshot show",
      "snapshot verify",
      "replica add",
      "replica remove",
      "replica sync",
      "replica rebuild",
      "audit",
      "registry",
      "registry show",
      "recover",
      "recovery-kit",
      "adopt",
      "schema",
      "healthcheck",
    ]) {
      const { exitCode, out, err } = await cli([...command.split(" ").filter(Boolean), "--help"]);
      expect([command, exitCode, err]).toEqual([command, 0, ""]);
      expect(out).toContain("Usage: gateway");
      if (!["replica", "log", "disagreement", "snapshot", "registry"].includes(command))
        expect(out).toMatch(/^Examples:\n {2}\$ gateway /);
      narrow(out);
    }
  });

  test.each([
    [["replcia", "ls"], "(Did you mean replica?)"],
    [["statsu"], "(Did you mean status?)"],
    [["run", "--replcia", "x"], "(Did you mean --replica?)"],
    [["status", "extra"], "too many arguments"],
    [["explain", "GET"], "missing required argument 'target'"],
    [["schema", "nonsense"], "Allowed choices are config, rules"],
    [[], "Usage: gateway"],
    [["log"], "Usage: gateway log"],
    [["log", "ls", "--limit", "x"], "has to be a whole number"],
    [["replica", "resolve", "b"], "--applied and --not-applied"],
    [["replica", "resolve", "b", "--applied"], "Give a position, or --all"],
    [["replica", "resolve", "b", "7", "--all", "--applied"], "Give a position, or --all"],
    [["explain", "GET", "/", "-H", "nonsense"], "is not a header"],
    [["explain", "GET", "/", "--body", "/nonexistent/x"], "cannot be read (ENOENT)"],
    [["run"], "no replica is given"],
    [["check"], "There is no gateway.yaml here"],
    [["status", "--admin", "ftp://x"], "is not the address"],
    [["status", "--token-file", "/nonexistent/x"], "cannot be read (ENOENT)"],
  ])("%j is a usage error: exit code 2, a hint on stderr, nothing on stdout", async (args, hint) => {
    const { exitCode, out, err } = await cli(args);
    expect([exitCode, out]).toEqual([2, ""]);
    expect(err).toContain(hint);
  });

  test("version tells what runs", async () => {
    for (const version of ["version", "--version", "-V"]) {
      expect((await cli([version])).out).toMatch(/^br2k-gateway \d+\.\d+\.\d+ \(node v/);
    }
    expect(JSON.parse((await cli(["version", "--json"])).out)).toMatchObject({ version: expect.any(String) as string });
  });

  test("colour appears on a terminal only, unless told otherwise", async () => {
    const file = write("ok.yaml", "replicas: { count: 3, command: [x] }\n");
    const coloured = async (isTerminal: boolean, env: Record<string, string>): Promise<boolean> =>
      (await cli(["check", "-c", file], { isTerminal, env })).out.includes("\u001b[");
    expect(await coloured(true, {})).toBe(true);
    expect(await coloured(false, {})).toBe(false);
    expect(await coloured(true, { NO_COLOR: "1" })).toBe(false);
    expect(await coloured(false, { FORCE_COLOR: "1" })).toBe(true);
  });
});

describe("check", () => {
  test("a sound configuration is ok, with its warnings", async () => {
    const file = write(
      "sound.yaml",
      "replicas: { count: 2, command: [x] }\nrules:\n  - { match: POST /a, mode: only-once }\n",
    );
    const { exitCode, out, err } = await cli(["check", "-c", file], { cwd: folder });
    expect([exitCode, err]).toEqual([0, ""]);
    expect(out).toContain(":3:29: rules[0].mode: what this writes stays on one replica");
    expect(out).toContain("of two copies that disagree neither has a majority");
    expect(out).toMatch(/ok: 2 replicas, 1 rule, 2 warnings\n$/);
  });

  test("every fault is listed with its place, exit code 2", async () => {
    const file = write(
      "faulty.yaml",
      "lisen: x\nreplicas: { count: none, command: [x] }\nrules:\n  - { match: POST /a, mode: x }\n",
    );
    const { exitCode, out, err } = await cli(["check", "-c", file]);
    expect(exitCode).toBe(2);
    expect(
      out
        .split("\n")
        .filter((line) => line.includes("faulty.yaml:"))
        .map((line) => /faulty\.yaml:\d+:\d+: [^ ]+/.exec(line)?.[0]),
    ).toEqual(["faulty.yaml:1:1: lisen:", "faulty.yaml:2:20: replicas.count:", "faulty.yaml:4:29: rules[0].mode:"]);
    expect(err).toBe("error: 3 faults\n");
    const json = await cli(["validate", "-c", file, "--json"]);
    expect(json.exitCode).toBe(2);
    expect(JSON.parse(json.out)).toMatchObject({
      ok: false,
      faults: [{ line: 1, column: 1, path: "lisen" }, { line: 2 }, { line: 4 }],
    });
  });

  test("--print-defaults needs no configuration", async () => {
    expect((await cli(["check", "--print-defaults"])).out).toContain("listen: 127.0.0.1:8080");
    expect(JSON.parse((await cli(["check", "--print-defaults", "--json"])).out)).toMatchObject({
      limits: { body: "64MiB" },
    });
  });

  test("schema prints draft-07 of either file", async () => {
    for (const of of ["config", "rules"]) {
      expect(JSON.parse((await cli(["schema", of])).out)).toMatchObject({
        $schema: "http://json-schema.org/draft-07/schema#",
        type: "object",
      });
    }
  });
});

describe("explain", () => {
  const rules = (): string =>
    write(
      "explain.rules.yaml",
      `version: 1
rules:
  - { name: create, match: POST /orders, mode: replicate, key: { required: true } }
  - { name: update, match: PUT /orders/:id, mode: replicate, order: ["order:{path.id}"] }
  - { name: beta, match: { method: GET, path: /orders/*, header: { x-beta: "1" } }, mode: only-once, consistency: any }
  - { name: list, match: GET /orders/*, mode: only-once, consistency: session }
  - { name: rpc-read, match: { method: POST, path: /, body: { /method: [eth_call] } }, mode: only-once, safe: true }
  - { name: debug, match: "* /debug/*", mode: refuse, status: 404 }
`,
    );
  const explain = (...args: string[]) => cli(["explain", ...args, "--rules", rules()]);

  test("says which rule decides, what it does, and why those before it did not", async () => {
    const { exitCode, out } = await explain("PUT", "/orders/7?x=%41");
    expect(exitCode).toBe(0);
    expect(out).toBe(`request   PUT /orders/7?x=%41
rule      update
mode      replicate
does      appended to the log, executed on every replica in one order
          answered by the first good answer
          with an unknown outcome: sent again
order     order:7
key       none given: a retry is a new request

tried before, from the top:
  create  /orders is shorter than the path
`);
  });

  test("names the condition that failed: path, method, header, query, body", async () => {
    const json = async (...args: string[]): Promise<Record<string, string>> => {
      const { out } = await explain(...args, "--json");
      const { tried } = JSON.parse(out) as { tried: { rule: string; why: string }[] };
      return Object.fromEntries(tried.map(({ rule, why }) => [rule, why]));
    };
    expect(await json("GET", "/orders/7")).toEqual({
      create: "/orders is shorter than the path",
      update: "GET is not PUT",
      beta: "header x-beta is not 1",
    });
    expect((await json("PATCH", "/orders/7"))["default-safe"]).toBe(
      "PATCH is not GET or HEAD or OPTIONS or QUERY or TRACE",
    );
    expect((await json("GET", "/orders"))["list"]).toBe("/orders/* is everything below, not this itself");
    const body = write("body.json", '{"method":"eth_send"}');
    expect((await json("POST", "/", "--body", body))["rpc-read"]).toBe('body /method is not "eth_call"');
    expect((await json("POST", "/"))["rpc-read"]).toBe("it asks for the body, and none was given (--body FILE)");
    expect((await json("POST", "/", "--body", write("bad.json", "{")))["rpc-read"]).toBe(
      "the body is not JSON that can be read",
    );
  });

  test("a body, headers and a required key are looked at", async () => {
    const read = await explain("POST", "/", "--body", write("call.json", '{"method":"eth_call"}'));
    expect(read.out).toContain("rule      rpc-read\nmode      only-once, safe\n");
    expect((await explain("GET", "/orders/7", "-H", "X-Beta: 1")).out).toContain("rule      beta");
    expect((await explain("POST", "/orders")).out).toContain("400: the rule requires a key");
    expect((await explain("POST", "/orders", "-H", "Idempotency-Key: k1")).out).toContain(
      "a retry with this key gets the first answer",
    );
    expect((await explain("GET", "/debug/x")).out).toContain("answered by the gateway with 404");
  });

  test("a target without a canonical form is a 400 and says why", async () => {
    const { exitCode, out } = await explain("GET", "/a/%2e%2e/b");
    expect([exitCode, out]).toEqual([0, "400 GET: the path contains a dot segment\n"]);
    expect(JSON.parse((await explain("GET", "/a\\b", "--json")).out)).toMatchObject({
      target: null,
      rule: null,
      refused: expect.stringContaining("backslash") as string,
    });
    expect((await explain("G T", "/")).out).toContain("is not a method");
  });

  test("without any configuration the default rules decide", async () => {
    expect((await cli(["explain", "POST", "/x"])).out).toContain("rule      default-other\nmode      replicate");
  });
});

describe("a running gateway", () => {
  let gateway: FakeAdmin;
  const token = write("admin.token", "sesame-open-up\n");
  beforeAll(async () => {
    gateway = await openFakeAdmin({ token: new Secret("sesame-open-up") });
  });
  afterAll(() => gateway.admin.close());
  const ask = (...args: string[]) => cli([...args, "--admin", gateway.url, "--token-file", token]);

  test("status shows it on one screen", async () => {
    const { exitCode, out, err } = await ask("status");
    expect([exitCode, err]).toEqual([0, ""]);
    narrow(out);
    expect(out).toBe(`shop on gw-1, running
version    0.1.0
guarantee  power-loss. Each record is synced before it is acknowledged.
log        embedded, 1,204 entries, 3.2 MiB of 10.0 GiB
tail       4931588 (epoch 00112233aabbccdd)
keys       embedded, 204 of 20,000,000
snapshots  version 12 at 4049152, 3 min old, verified; 2 kept, 2.0 GiB in
           /srv/snapshots
registry   ethereum 0x5fbdb2315678afecb367f032d93f642f64180aa3, published up to
           4045056, one waits since 2 min, 0.0512 ether left
parked     1 entry: gateway log parked
once-only  1 entry maybe not done: gateway log unfinished
differ     1 disagreement: gateway disagreement ls

2 of 3 replicas live
NAME  STATE  APPLIED  LAG  SENT  UNKNOWN  VERSION  URL
a     live   4931588    0     0        0  -        http://127.0.0.1:4001
b     held   4931588    4     0        1  -        http://127.0.0.1:4002
c     live   4931588    0     0        0  -        http://127.0.0.1:4003
  b: the outcome of 1 entry is unknown
  b: gateway replica unknown b
`);
    expect(JSON.parse((await ask("status", "--json")).out)).toEqual(JSON.parse(JSON.stringify(status)));
  });

  test("its address and token come from flags, from variables, or from its configuration", async () => {
    const env = { GATEWAY_ADMIN_URL: gateway.url, GATEWAY_ADMIN_TOKEN_FILE: token };
    expect((await cli(["status"], { env })).exitCode).toBe(0);
    const { host } = new URL(gateway.url);
    // Faults elsewhere in the file, and variables that are not set here, do not matter.
    const file = write(
      "gateway.yaml",
      `admin: { listen: "${host}", tokenFile: ./admin.token }\nname: \${NOT_SET}\nreplicas: []\n`,
    );
    expect((await cli(["status", "-c", file])).exitCode).toBe(0);
    expect((await cli(["status"], { cwd: folder })).exitCode).toBe(0);
    rmSync(file);
  });

  test("without its token it says what to give", async () => {
    const { exitCode, out, err } = await cli(["status", "--admin", gateway.url]);
    expect([exitCode, out]).toEqual([1, ""]);
    expect(err).toBe(
      `error: The gateway at ${gateway.url} wants its admin token.\nGive it: --token-file FILE, or GATEWAY_ADMIN_TOKEN_FILE\n`,
    );
  });

  test("one that is not there is said plainly, without a stack", async () => {
    const { exitCode, out, err } = await cli(["status", "--admin", "127.0.0.1:1"]);
    expect([exitCode, out]).toEqual([1, ""]);
    expect(err).toBe(
      "error: No gateway answers at http://127.0.0.1:1: connection refused.\nStart one with: gateway run. Or say where it is: --admin URL, or -c FILE\n",
    );
    const json = await cli(["status", "--admin", "127.0.0.1:1", "--json"]);
    expect(JSON.parse(json.err)).toMatchObject({ error: expect.stringContaining("connection refused") as string });
  });

  test("something else at that address is noticed", async () => {
    const other = createServer((_request, response) => response.end("<html>hello</html>"));
    await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
    const { port } = other.address() as { port: number };
    const { exitCode, err } = await cli(["status", "--admin", `127.0.0.1:${port}`]);
    other.close();
    expect(exitCode).toBe(1);
    expect(err).toContain("not from a gateway's admin address");
  });

  test("replicas are listed, ordered about and resolved", async () => {
    expect((await ask("replica", "ls")).out).toContain("b     held ");
    expect((await ask("replica", "drain", "a", "--reason", "new disk")).out).toBe("a is live\n");
    const unknown = await ask("replica", "unknown", "b");
    narrow(unknown.out);
    expect(unknown.out).toMatch(
      /^REPLICA {2}POSITION {2}TIME .*\nb {9}4931584 .*POST \/orders\n {2}b: the connection closed before the answer\n$/,
    );
    expect(unknown.err).toContain("gateway replica resolve b 4931584 --applied");
    expect((await ask("replica", "resolve", "b", "4931584", "--applied")).out).toBe("b: 1 entry settled as applied\n");
    expect((await ask("replica", "resolve", "b", "--all", "--not-applied")).exitCode).toBe(0);
    expect(gateway.control.calls.splice(0)).toEqual([
      "a drain new disk",
      "resolve b 4931584 true",
      "resolve b all false",
    ]);
    const wrong = await ask("replica", "drain", "zzz");
    expect(wrong).toEqual({
      exitCode: 1,
      out: "",
      err: 'error: There is no replica "zzz", only a, b, c.\nGW_NOT_FOUND: see deploy/runbook.md\n',
    });
  });

  test("the log is listed, shown, followed and verified", async () => {
    const list = await ask("log", "ls");
    expect(list.out).toMatch(/^POSITION {2}TIME .*FATE {5}RULE .*REQUEST\n/);
    expect(list.out).toContain("POST /orders?token=[redacted]");
    expect((await ask("log", "ls", "--from", "9999999")).out).toBe("nothing at 9999999 or behind\n");
    const show = await ask("log", "show", "4931584");
    expect(show.out).toContain("POST /orders?token=[redacted]\nAuthorization: [redacted]\n");
    expect(show.out).toContain('{"item":"tea"}');
    expect((await ask("log", "show", "7")).exitCode).toBe(1);
    expect((await ask("log", "tail", "--lines", "2")).out.split("\n")).toHaveLength(3);
    expect((await ask("log", "info")).out).toContain("entries    1,204");
    expect((await ask("log", "verify")).out).toMatch(/^ok: 1,204 records, hash abab/);
    expect((await ask("log", "parked")).out).toContain("killed 2 copies");
    expect((await ask("log", "retry", "4931500")).out).toBe("appended again at 4940000\n");
    expect((await ask("log", "retry", "7")).err).toContain("GW_CONFLICT");
    expect((await ask("log", "skip", "8", "--reason", "poison")).exitCode).toBe(0);
    expect(gateway.control.calls.splice(0)).toEqual(["retry 4931500", "retry 7", "skip 8 poison"]);
    for (const args of [
      ["log", "ls"],
      ["log", "show", "4931584"],
      ["log", "tail"],
    ]) {
      const { out } = await ask(...args, "--json");
      expect(out).not.toContain("canary");
      for (const line of out.trim().split("\n")) JSON.parse(line);
    }
  });

  test("log tail -f goes on with what comes, each row once", async () => {
    const running = openFakeAdmin({
      over: {
        ...((control) => ({ logFollow: (from: number) => until(control.log(from, 100)) }))(fakeControl()),
        log: async (from, limit) =>
          (await fakeControl().log(0, 100))
            .slice(0, 2)
            .filter((row) => row.position >= from)
            .slice(0, limit),
      },
    });
    const { url, admin } = await running;
    const { out, err, exitCode } = await cli(["log", "tail", "-f", "--json", "--admin", url]);
    await admin.close();
    expect(
      out
        .trim()
        .split("\n")
        .map((line) => (JSON.parse(line) as { position: number }).position),
    ).toEqual([4_931_584, 4_931_585, 4_931_588]);
    expect([err, exitCode]).toEqual(["the gateway ended the stream\n", 1]);
  });

  async function* until<T>(rows: Promise<readonly T[]>): AsyncGenerator<T> {
    yield* await rows;
  }

  test("findings are exit code 3: a hash that does not fit, copies that disagree", async () => {
    const { url, admin } = await openFakeAdmin({
      over: { logVerify: async () => ({ records: 3, hash: "ab", findings: ["record 2 has another hash"] }) },
    });
    const verify = await cli(["log", "verify", "--admin", url]);
    await admin.close();
    expect([verify.exitCode, verify.out]).toEqual([
      3,
      "finding: record 2 has another hash\n3 records read, 1 finding\n",
    ]);
    expect((await ask("disagreement", "ls")).exitCode).toBe(3);
  });

  test("a disagreement is shown side by side in 80 columns", async () => {
    const { exitCode, out } = await ask("disagreement", "show", "4931584");
    expect(exitCode).toBe(3);
    narrow(out);
    expect(out).not.toContain("canary");
    expect(out).toBe(`POST /orders  at 4931584, rule create-order
in the minority: c

a, b                                   | c
---------------------------------------+---------------------------------------
HTTP 201                               | HTTP 201
Content-Type: application/json         | Content-Type: application/json
Set-Cookie: [redacted]                 | Set-Cookie: [redacted]
                                       |
{                                      | {
  "id": 7,                             |   "id": 7,
  "total": 12                          !   "total": 13
}                                      | }

WHERE   ONE  OTHER
/total  12   13
`);
  });

  test("pause, resume and healthcheck", async () => {
    expect((await ask("pause", "--reason", "backup")).exitCode).toBe(0);
    expect((await ask("resume")).out).toBe("resumed\n");
    expect(gateway.control.calls.splice(0)).toEqual(["pause backup", "resume"]);
    expect((await ask("healthcheck")).out).toMatch(/^ready: \{"ready":true/);
    const { url, admin } = await openFakeAdmin({
      over: { readiness: () => ({ reads: [], writes: ["the log is full"] }) },
    });
    expect((await cli(["healthcheck", "--admin", url])).exitCode).toBe(0);
    const writes = await cli(["healthcheck", "--for", "writes", "--admin", url]);
    expect([writes.exitCode, writes.out]).toEqual([
      1,
      'not ready: {"ready":false,"reads":[],"writes":["the log is full"]}\n',
    ]);
    expect((await cli(["healthcheck", "--live", "--admin", url])).exitCode).toBe(0);
    await admin.close();
    expect((await cli(["healthcheck", "--admin", url])).exitCode).toBe(1);
  });

  test("what a gateway tells cannot steer the terminal", async () => {
    const evil = "\u001b]0;owned\u0007\u001b[2J";
    const { url, admin } = await openFakeAdmin({
      over: {
        status: async () => ({
          ...status,
          paused: evil,
          replicas: status.replicas.map((one) => ({ ...one, reason: evil, version: evil })),
        }),
        log: async () => (await fakeControl().log(0, 9)).map((row) => ({ ...row, target: `/${evil}`, detail: evil })),
        logShow: async () =>
          ({
            ...(await fakeControl().log(0, 1))[0],
            target: evil,
            headers: [evil, evil],
            body: Buffer.from(evil).toString("base64"),
          }) as never,
      },
    });
    for (const args of [["status"], ["log", "ls"], ["log", "show", "4931584"], ["log", "tail"]]) {
      const { out } = await cli([...args, "--admin", url]);
      // oxlint-disable-next-line no-control-regex
      expect([args, /[\u001b\u0007]/.test(out)]).toEqual([args, false]);
    }
    await admin.close();
  });
});

describe("run", () => {
  const running: StartGateway = async (config, { isNewLog }) => {
    started.push(`${config.replicas.length} ${isNewLog}`);
    return {
      front: "http://127.0.0.1:8080",
      admin: "http://127.0.0.1:9070",
      control: fakeControl(),
      renew: async () => undefined,
      stop: async () => void started.push("stopped"),
    };
  };
  const started: string[] = [];
  afterEach(() => void started.splice(0));
  const env = { GATEWAY_LOGS__LEVEL: "silent" };

  /** Runs until its addresses are printed, then sends the signal. */
  async function run(args: readonly string[], signal: NodeJS.Signals = "SIGTERM", start = running) {
    const before = process.listenerCount(signal);
    const timer = setInterval(() => {
      if (process.listenerCount(signal) > before && started.length > 0) process.emit(signal);
    }, 20);
    const result = await cli(args, { cwd: folder, env, parts: { start } }).finally(() => clearInterval(timer));
    expect(process.listenerCount(signal)).toBe(before);
    return result;
  }

  const flags = ["run", "--replica", "http://127.0.0.1:4001", "--replica", "http://127.0.0.1:4002"];

  test("works with flags alone, prints addresses, guarantee and what limits writes, and stops on SIGTERM", async () => {
    const { exitCode, out, err } = await run(flags);
    expect(exitCode).toBe(0);
    expect(started).toEqual(["2 false", "stopped"]);
    narrow(out);
    expect(out).toContain("  front      http://127.0.0.1:8080\n  admin      http://127.0.0.1:9070\n");
    expect(out).toContain("  guarantee  power-loss. Each record is synced");
    expect(out).toContain("  writes     one at a time on each copy (no order: in the rule): all else\n");
    expect(err).toContain("stopping: finishing what is in flight");
  });

  test("says where snapshots go, and that a crash takes a rebuild rather than a person", async () => {
    const file = write(
      "rebuilt.yaml",
      "replicas: { count: 3, command: [x], state: ./state }\nsnapshots: { keep: 4 }\n",
    );
    const { out } = await run(["run", "-c", file]);
    expect(out.replaceAll(/\n {13}/g, " ")).toContain(
      `snapshots  in ${folder}/data/snapshots, the newest 4 are kept\n`,
    );
    expect(out).toContain("a crash in the middle takes a rebuild of that copy: all else\n");
    expect((await run(flags)).out).toContain("a crash in the middle leaves that copy held for a person: all else\n");
  });

  test("SIGINT stops it as well, --new-log and --json arrive", async () => {
    const { exitCode, out } = await run([...flags, "--new-log", "--json"], "SIGINT");
    expect([exitCode, started]).toEqual([0, ["2 true", "stopped"]]);
    expect(JSON.parse(out)).toMatchObject({
      front: "http://127.0.0.1:8080",
      guarantee: { level: "power-loss" },
      limits: expect.any(Array) as string[],
    });
  });

  test("an invalid configuration is exit code 2 with every fault on stderr, and nothing is started", async () => {
    const { exitCode, out, err } = await cli(["run", "--replica", "nonsense", "--listen", "x"], {
      cwd: folder,
      env,
      parts: { start: running },
    });
    expect([exitCode, out, started]).toEqual([2, "", []]);
    expect(err).toContain("--listen: listen:");
    expect(err).toContain("--replica: replicas[0].url:");
    expect(err).toContain("error: the configuration is invalid: 2 faults");
  });

  test.each([
    [
      Object.assign(new Error("listen EADDRINUSE"), { code: "EADDRINUSE", address: "127.0.0.1", port: 8080 }),
      "Another program listens on 127.0.0.1:8080 already.\nChoose another address",
    ],
    [Object.assign(new Error("x"), { code: "EACCES", address: "0.0.0.0", port: 80 }), "may not listen on port 80"],
    [new TypeError("cannot read x of undefined"), "cannot read x of undefined\nThis may be a defect"],
  ])("a start that fails is exit code 1, says what to do, and shows no stack: %s", async (error, message) => {
    const { exitCode, err } = await cli(flags, { cwd: folder, env, parts: { start: () => Promise.reject(error) } });
    expect(exitCode).toBe(1);
    expect(err).toContain(`error: `);
    expect(err).toContain(message);
    expect(err).not.toMatch(/\n\s+at /);
  });

  test("a coded error gives its code and the mend", async () => {
    const { GatewayError } = await import("../../gateway/errors.ts");
    const start: StartGateway = () =>
      Promise.reject(new GatewayError("GW_DATA_LOCKED", "The folder /x is used by process 7."));
    const { exitCode, err } = await cli(flags, { cwd: folder, env, parts: { start } });
    expect(exitCode).toBe(1);
    expect(err).toContain("error: The folder /x is used by process 7.\nGW_DATA_LOCKED: Stop the other gateway");
  });
});

describe("the command itself", () => {
  const program = (args: readonly string[]): Promise<{ code: number | null; out: string; err: string }> =>
    new Promise((resolve) => {
      const child = spawn(process.execPath, ["--import", "tsx", "gateway/cli.ts", ...args], {
        env: { PATH: process.env["PATH"] },
      });
      let out = "";
      let err = "";
      child.stdout.on("data", (chunk: Buffer) => void (out += chunk.toString()));
      child.stderr.on("data", (chunk: Buffer) => void (err += chunk.toString()));
      child.on("close", (code) => resolve({ code, out, err }));
    });

  test("hands exit codes to the shell and keeps results and the rest apart", async () => {
    const [version, usage, refused] = await Promise.all([
      program(["version"]),
      program(["nonsense"]),
      program(["status", "--admin", "127.0.0.1:1"]),
    ]);
    expect([version.code, version.err]).toEqual([0, ""]);
    expect([usage.code, usage.out]).toEqual([2, ""]);
    expect([refused.code, refused.out]).toEqual([1, ""]);
    expect(refused.err).not.toMatch(/\n\s+at /);
  });

  test("a second signal ends it at once, whatever the stop is waiting for", async () => {
    const script = write(
      "hangs.mts",
      `import { runProgram } from "${process.cwd()}/gateway/commands/program.ts";
import { fakeControl } from "${process.cwd()}/test/gateway/cli.fake.ts";
const start = async () => (setInterval(() => 0, 1000), { front: "http://f", admin: "http://a", control: fakeControl(), stop: () => new Promise(() => 0) });
const around = { out: (t) => process.stdout.write(t), err: (t) => process.stderr.write(t), env: { GATEWAY_LOGS__LEVEL: "silent" }, cwd: "/", isTerminal: false, columns: 80, isErrTerminal: false, ask: null };
process.exitCode = await runProgram(["run", "--replica", "http://127.0.0.1:1", "--replica", "http://127.0.0.1:2"], around, { start });
`,
    );
    for (const [signal, code] of [
      ["SIGINT", 130],
      ["SIGTERM", 143],
    ] as const) {
      const child = spawn(process.execPath, ["--import", "tsx", script], { stdio: ["ignore", "pipe", "pipe"] });
      child.stdout.on("data", (chunk: Buffer) => chunk.includes("admin") && child.kill(signal));
      // Again and again: what comes right behind the first is taken for the same press of a key.
      let again: NodeJS.Timeout | undefined;
      child.stderr.on("data", (chunk: Buffer) => {
        if (chunk.includes("stopping")) again ??= setInterval(() => child.kill(signal), 50);
      });
      expect(await new Promise((resolve) => child.on("close", resolve))).toBe(code);
      clearInterval(again);
    }
  });

  test("a signal that is sent twice at once, as npm does, stops it in order", async () => {
    const script = write(
      "stops.mts",
      `import { runProgram } from "${process.cwd()}/gateway/commands/program.ts";
import { fakeControl } from "${process.cwd()}/test/gateway/cli.fake.ts";
const timer = setInterval(() => 0, 1000);
const stop = () => new Promise((done) => setTimeout(done, 100, clearInterval(timer)));
const start = async () => ({ front: "http://f", admin: "http://a", control: fakeControl(), stop });
const around = { out: (t) => process.stdout.write(t), err: (t) => process.stderr.write(t), env: { GATEWAY_LOGS__LEVEL: "silent" }, cwd: "/", isTerminal: false, columns: 80, isErrTerminal: false, ask: null };
process.exitCode = await runProgram(["run", "--replica", "http://127.0.0.1:1", "--replica", "http://127.0.0.1:2"], around, { start });
`,
    );
    const child = spawn(process.execPath, ["--import", "tsx", script], { stdio: ["ignore", "pipe", "pipe"] });
    child.stdout.on("data", (chunk: Buffer) => chunk.includes("admin") && child.kill("SIGINT"));
    child.stderr.on("data", (chunk: Buffer) => chunk.includes("stopping") && child.kill("SIGINT"));
    expect(await new Promise((resolve) => child.on("close", resolve))).toBe(0);
  });

  test("loads nothing heavy before it knows what to do", async () => {
    // Linked statically from cli.ts, these would be paid for by every command.
    const { readFileSync, readdirSync } = await import("node:fs");
    const files = ["gateway/cli.ts", ...readdirSync("gateway/commands").map((name) => `gateway/commands/${name}`)];
    const early = new Map(
      files.map((file) => [
        file,
        [...readFileSync(file, "utf8").matchAll(/^import (?!type).*? from "([^"]+)"/gms)].map(([, name = ""]) => name),
      ]),
    );
    const reached = new Set<string>(["gateway/cli.ts"]);
    const packages = new Set<string>();
    for (const file of reached) {
      for (const name of early.get(file) ?? []) {
        if (name.startsWith("./"))
          reached.add(name.replace("./commands/", "gateway/commands/").replace("./", "gateway/commands/"));
        else packages.add(name);
      }
    }
    expect([...packages].filter((name) => !name.startsWith("node:"))).toEqual(["commander"]);
    expect(reached.size).toBeGreaterThan(10);
  });
});
