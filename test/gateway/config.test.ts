// oxlint-disable unicorn/consistent-function-scoping -- a helper stands where it is used
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspect } from "node:util";
import { afterAll, describe, expect, test } from "vitest";
import { FaultsError } from "../../rules/document.ts";
import { formatConfigFault, loadConfig, Secret } from "../../gateway/config.ts";
import { configJsonSchema, printDefaults } from "../../gateway/config/defaults.ts";
import { Authority } from "../helpers/certificates.ts";
import type { Config, ConfigSources } from "../../gateway/config.ts";

const folder = mkdtempSync(join(tmpdir(), "config-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const file = join(folder, "gateway.yaml");
const two = "replicas:\n  - { name: a, url: 'http://127.0.0.1:4001' }\n  - { name: b, url: 'http://127.0.0.1:4002' }\n";

function load(text: string, sources: Partial<ConfigSources> = {}): Config {
  return loadConfig({ file, text, env: {}, cwd: folder, ...sources });
}

/** Every fault as a person reads it, the folder taken out. */
function faults(text: string, sources: Partial<ConfigSources> = {}): string {
  try {
    load(text, sources);
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
    return error.faults.map(formatConfigFault).join("\n").replaceAll(`${folder}/`, "");
  }
  return "";
}

describe("a configuration", () => {
  test("of replicas alone has every default", () => {
    const config = load(two);
    expect(config).toMatchObject({
      file,
      service: "service",
      listen: { host: "127.0.0.1", port: 8080 },
      admin: { listen: { host: "127.0.0.1", port: 9070 }, token: null, metrics: "token" },
      data: join(folder, "data"),
      rulesFile: null,
      rulesMismatch: "warn",
      trustedProxies: [],
      paths: { encodedSlash: "refuse" },
      limits: {
        bodyBytes: 64 * 2 ** 20,
        inlineBytes: 256 * 1024,
        answerBytes: 8 * 2 ** 20,
        inFlight: 1024,
        queueWaitMs: 5000,
      },
      timeouts: { connectMs: 2000, firstByteMs: 30_000, idleMs: 60_000, shutdownDelayMs: 0, shutdownMs: 25_000 },
      logs: { level: "info", format: "auto" },
      log: {
        nats: null,
        minGuarantee: "process-crash",
        maxBytes: 10 * 2 ** 30,
        truncate: "applied",
        truncateUnpublishedMs: 86_400_000,
      },
      keys: { redis: null, retentionMs: 3_600_000, window: 20_000_000, onRunning: "conflict", maxAnswerBytes: 2 ** 20 },
      health: { request: null, everyMs: 2000, fall: 3, rise: 2 },
      agreement: { onMinority: "quarantine", onTie: "alarm", minLive: 2, maxLag: 10_000, rebuildsPerHour: 1 },
      snapshots: null,
      audit: { everyMs: null, compare: "auto" },
      registry: null,
      leaseMs: 15_000,
      poison: { kills: 2 },
      roles: ["front", "applier", "recorder"],
    });
    expect(config.name).toMatch(/^[A-Za-z0-9]/);
    expect(config.keys.caller.text).toBe("{header.authorization}");
    expect(config.rules.rules.map(({ name }) => name)).toEqual(["default-safe", "default-other"]);
    expect(config.replicas[0]).toEqual({
      kind: "url",
      name: "a",
      url: "http://127.0.0.1:4001",
      state: null,
      stop: null,
      start: null,
      owners: [],
      witness: [],
      onReturn: "verify",
      version: "",
    });
  });

  test("is frozen all the way down", () => {
    const config = load(two);
    const open: string[] = [];
    const walk = (value: unknown, path: string): void => {
      if (typeof value !== "object" || value === null) return;
      if (!Object.isFrozen(value)) open.push(path);
      for (const [key, item] of Object.entries(value)) walk(item, `${path}.${key}`);
    };
    walk(config, "config");
    expect(open).toEqual([]);
  });

  test("may describe processes: one replica each, r1 r2 r3, each with a state of its own", () => {
    const config = load(
      "replicas:\n  count: 3\n  command: [node, server.js, '{port}']\n  state: ./state\n  seed: ./seed\n  env: { LOG: info }\n  ready: GET /health\n  witness: [GET /accounts]\n",
    );
    expect(config.replicas.map(({ name }) => name)).toEqual(["r1", "r2", "r3"]);
    expect(config.replicas[1]).toEqual({
      kind: "process",
      name: "r2",
      command: ["node", "server.js", "{port}"],
      cwd: folder,
      state: join(folder, "state/r2"),
      seed: join(folder, "seed"),
      env: { LOG: "info" },
      ready: { method: "GET", target: "/health" },
      witness: [{ method: "GET", target: "/accounts" }],
      onReturn: "verify",
      version: "",
    });
  });

  test("may have everything that is built", () => {
    writeFileSync(join(folder, "ca.pem"), new Authority("ca").cert);
    writeFileSync(join(folder, "redis.url"), "redis://:hunter22@127.0.0.1:6379/1\n", { mode: 0o600 });
    const config = load(`
version: 1
service: shop
name: gw-1
listen: "[::]:80"
admin: { listen: "localhost:0", token: sesame-open-up, metrics: open }
trustedProxies: [10.0.0.0/8, "::1"]
paths: { encodedSlash: keep }
log:
  nats:
    servers: ["nats://127.0.0.1:4222", "b.example:4222"]
    replicas: 3
    monitor: ["http://127.0.0.1:8222"]
    credentialsFile: ./gw.creds
    tls: { caFile: ./ca.pem }
  minGuarantee: power-loss
  truncate: never
  truncateUnpublished: 2d
keys: { redis: { urlFile: ./redis.url }, onRunning: wait, caller: "{header.x-user}" }
replicas:
  - { name: b, url: "http://[::1]:4002", state: /srv/b, stop: [systemctl, stop, b], start: [systemctl, start, b], onReturn: trust, version: "2.1" }
health: { request: GET /health, every: 500ms }
agreement: { minLive: 1, onTie: halt, onMinority: rebuild, rebuildsPerHour: 3 }
snapshots:
  every: { entries: 5000, bytes: off, time: 10m, atLeast: 1m }
  keep: 3
  capture: { directory: true, exclude: ["cache/**"] }
  quiesce: POST /quiesce
  store: mysql://recorder@db.example/snapshots
  storePasswordFile: ./redis.url
  encrypt: { key: "${"0f".repeat(32)}" }
  drill: 7d
audit: { every: 6h, compare: root }
registry:
  ethereum:
    rpc: ["http://127.0.0.1:8545", "https://rpc.example.org/v3/key"]
    contract: "0x5FbDB2315678afecb367f032d93F642f64180aa3"
    key: "${"ab".repeat(32)}"
    owner: "0xF39FD6E51AAD88F6F4CE6AB8827279CFFFB92266"
    confirmations: 5
    publishers: ["0x70997970C51812dc3A010C7d01b50e0d17dc79C8"]
    publishEvery: 1h
    maxFeeGwei: 0.5
rules:
  - { name: list, match: GET /orders, mode: only-once, consistency: any }
`);
    expect(config.listen).toEqual({ host: "::", port: 80 });
    expect(config.log.nats).toEqual({
      servers: ["nats://127.0.0.1:4222", "b.example:4222"],
      replicas: 3,
      monitor: ["http://127.0.0.1:8222"],
      credentialsFile: join(folder, "gw.creds"),
      auth: null,
      tls: { caFile: join(folder, "ca.pem") },
    });
    expect(config.keys.redis?.url.reveal()).toBe("redis://:hunter22@127.0.0.1:6379/1");
    expect(config.admin.token?.reveal()).toBe("sesame-open-up");
    expect(config.agreement).toMatchObject({ minLive: 1, onMinority: "rebuild", rebuildsPerHour: 3 });
    expect(config.log).toMatchObject({ truncate: "never", truncateUnpublishedMs: 172_800_000 });
    expect(config.snapshots).toMatchObject({
      every: { entries: 5000, bytes: null, timeMs: 600_000, atLeastMs: 60_000 },
      keep: 3,
      capture: { kind: "directory", exclude: ["cache/**"] },
      quiesce: { kind: "request", method: "POST", target: "/quiesce" },
      store: { kind: "mysql", host: "db.example", port: 3306, user: "recorder", database: "snapshots" },
      drillMs: 604_800_000,
    });
    expect(config.snapshots?.encryptionKey?.reveal()).toBe("0f".repeat(32));
    expect(config.audit).toEqual({ everyMs: 21_600_000, compare: "root" });
    expect(config.registry).toMatchObject({
      contract: "0x5fbdb2315678afecb367f032d93f642f64180aa3",
      owner: "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266",
      keyPassword: null,
      confirmations: 5,
      publishers: ["0x70997970c51812dc3a010c7d01b50e0d17dc79c8"],
      publishEveryMs: 3_600_000,
      maxFeeGwei: 0.5,
    });
    expect(config.registry?.rpc.map((url) => url.reveal())).toEqual([
      "http://127.0.0.1:8545",
      "https://rpc.example.org/v3/key",
    ]);
    expect(config.registry?.key?.reveal()).toBe(`0x${"ab".repeat(32)}`);
    expect(config.rules.rules[0]?.name).toBe("list");
  });

  test("majority is of the configured replicas", () => {
    const of = (count: number): number => load(`replicas: { count: ${count}, command: [x] }`).agreement.minLive;
    expect([1, 2, 3, 4, 5].map(of)).toEqual([1, 2, 2, 3, 3]);
  });

  test("names every file from its own place", () => {
    writeFileSync(join(folder, "some.rules.yaml"), "version: 1\nrules: []\n");
    const config = load(`${two}rules: ./some.rules.yaml\ndata: ./here\n`, {
      cwd: "/elsewhere",
      env: { GATEWAY_DATA: "there" },
    });
    expect(config.rulesFile).toBe(join(folder, "some.rules.yaml"));
    expect(config.data).toBe("/elsewhere/there");
    expect(load(two, { cwd: "/elsewhere", flags: { data: "flag" } }).data).toBe("/elsewhere/flag");
  });
});

describe("faults", () => {
  test("come all at once, of configuration, variables and rules, each with its place and what was probably meant", () => {
    const text = `version: 1
service: Shop
lisen: :80
admin: { listen: "0.0.0.0:9070", metrics: opn }
limits: { inFlight: many, queueWait: soon }
replicas:
  - { name: a, url: "http://127.0.0.1:8080/x" }
  - { name: b, url: "ftp://127.0.0.1:4002", onReturn: rebuild }
  - { name: a, url: "http://127.0.0.1:4003" }
  - { name: d, url: "http://127.0.0.1:4003" }
rules: ./faulty.yaml
`;
    writeFileSync(join(folder, "faulty.yaml"), "version: 1\nrules:\n  - { match: POST /orders, mode: replicte }\n");
    const env = { GATEWAY_LOG__MAX: "lots", GATEWAY_LOG__MINGUARANTE: "x" };
    expect(faults(text, { env })).toBe(`gateway.yaml:2:10: service: "Shop" has to be 1 to 63 of "a-z", "0-9" and "-"
 2 | service: Shop
   |          ^
gateway.yaml:3:1: lisen: is not known here (did you mean "listen"?)
 3 | lisen: :80
   | ^
gateway.yaml:4:18: admin.listen: 0.0.0.0:9070 can be reached from other machines: that takes admin.tokenFile
 4 | admin: { listen: "0.0.0.0:9070", metrics: opn }
   |                  ^
gateway.yaml:4:43: admin.metrics: "opn" is not one of token, open (did you mean "open"?)
 4 | admin: { listen: "0.0.0.0:9070", metrics: opn }
   |                                           ^
gateway.yaml:5:21: limits.inFlight: expected a number, got "many"
 5 | limits: { inFlight: many, queueWait: soon }
   |                     ^
gateway.yaml:5:38: limits.queueWait: "soon" is not a duration such as "250ms", "5s", "10m", "1h" or "7d"
 5 | limits: { inFlight: many, queueWait: soon }
   |                                      ^
gateway.yaml:7:21: replicas[0].url: "http://127.0.0.1:8080/x" has a path: the paths are the clients' own, only scheme, host and port stand here
 7 |   - { name: a, url: "http://127.0.0.1:8080/x" }
   |                     ^
gateway.yaml:8:21: replicas[1].url: "ftp://127.0.0.1:4002" is not a URL such as http://127.0.0.1:4001
 8 |   - { name: b, url: "ftp://127.0.0.1:4002", onReturn: rebuild }
   |                     ^
gateway.yaml:10:21: replicas[3].url: http://127.0.0.1:4003 is replica a already: the same copy twice would execute everything twice (GW_REPLICAS_SHARE_STATE)
 10 |   - { name: d, url: "http://127.0.0.1:4003" }
    |                     ^
GATEWAY_LOG__MAX: log.max: "lots" is not a size such as "64KiB", "1MiB", "10GiB" or plain bytes
GATEWAY_LOG__MINGUARANTE: names no key of the configuration (did you mean "GATEWAY_LOG__MINGUARANTEE"?)
faulty.yaml:3:34: rules[0].mode: "replicte" is not one of replicate, only-once, refuse (did you mean "replicate"?)
 3 |   - { match: POST /orders, mode: replicte }
   |                                  ^`);
  });

  test("of meaning: loops, twins, and promises that cannot be kept", () => {
    const text = `listen: ":8080"
admin: { listen: "127.0.0.1:8080" }
log: { nats: { servers: ["a:4222"] }, minGuarantee: power-loss, max: 9KiB }
limits: { inline: 2MiB, body: 1MiB }
agreement: { minLive: 9 }
lease: 0s
replicas:
  - { name: a, url: "http://localhost:8080" }
  - { name: a, url: "http://127.0.0.1:4002", state: ./s }
  - { name: c, url: "http://localhost:4002", state: ./s/c, stop: [stop] }
`;
    const found = faults(text)
      .split("\n")
      .filter((line) => line.startsWith("gateway.yaml"));
    expect(found).toEqual([
      "gateway.yaml:2:18: admin.listen: is the address of the front ([::]:8080): it needs one of its own".replace(
        "[::]",
        formatOfAll(),
      ),
      "gateway.yaml:3:53: log.minGuarantee: power-loss can only be found out at the servers' monitoring addresses: give log.nats.monitor",
      "gateway.yaml:3:70: log.max: is less than 1MiB, which leaves no room for control records",
      "gateway.yaml:4:19: limits.inline: is larger than limits.body",
      "gateway.yaml:4:19: limits.inline: is larger than 512KiB: a record has to hold it",
      "gateway.yaml:5:23: agreement.minLive: 9 live replicas can never be reached: there are 3",
      "gateway.yaml:6:8: lease: is less than 1s: the owner could not renew it in time",
      "gateway.yaml:8:21: replicas[0].url: http://localhost:8080 is this gateway's own front: requests would run in a circle",
      "gateway.yaml:8:21: replicas[0].url: http://localhost:8080 is this gateway's own admin address: requests would run in a circle",
      'gateway.yaml:9:13: replicas[1].name: "a" is the name of replicas[0] already',
      "gateway.yaml:10:21: replicas[2].url: http://localhost:4002 is replica a already: the same copy twice would execute everything twice (GW_REPLICAS_SHARE_STATE)",
      "gateway.yaml:10:53: replicas[2].state: s/c is part of the state of replica a",
      "gateway.yaml:10:66: replicas[2].stop: means nothing without start",
    ]);
  });

  function formatOfAll(): string {
    const { host } = load(`${two}listen: ":8080"\n`).listen;
    return host === "::" ? "[::]" : host;
  }

  test("no key of a later issue is silently ignored", () => {
    const later = ["egress: {}"];
    for (const line of later) expect(faults(`${two}${line}\n`), line).toMatch(/^gateway\.yaml:4:\d+: .*not built yet/);
  });

  test("roles are a choice of those that there are, and with the embedded log all of them", () => {
    const shared = `${two}log: { nats: { servers: ["127.0.0.1:4222"] } }\n`;
    expect(load(`${shared}roles: [recorder, front, recorder]\n`).roles).toEqual(["front", "recorder"]);
    expect(faults(`${shared}roles: []\n`)).toMatch(/: roles: /);
    expect(faults(`${shared}roles: [appliers]\n`)).toContain('did you mean "applier"');
    expect(faults(`${two}roles: [front]\n`)).toContain(
      "roles: nobody else could be applier and recorder, as the log is embedded: remove this key, or share it with log.nats",
    );
    const managed = 'replicas: { count: 1, command: [x] }\nlog: { nats: { servers: ["127.0.0.1:4222"] } }\n';
    expect(faults(`${managed}roles: [front]\n`)).toContain(
      "roles: without applier nobody would start the replicas of this file",
    );
  });

  test("without the role of a front, listen is no address of this gateway", () => {
    const shared = 'log: { nats: { servers: ["127.0.0.1:4222"] } }\nlisten: 127.0.0.1:4001\n';
    expect(faults(`${two}${shared}`)).toContain("is this gateway's own front");
    expect(load(`${two}${shared}roles: [applier]\n`).roles).toEqual(["applier"]);
  });

  test("owners are names of gateways, and with the embedded log this gateway is among them", () => {
    const owned = (owners: string): string =>
      `name: gw-1\nreplicas:\n  - { name: a, url: "http://a:1", owners: ${owners} }\n`;
    const nats = 'log: { nats: { servers: ["127.0.0.1:4222"] } }\n';
    expect(load(`${owned("[gw-3, gw-2, gw-3]")}${nats}`).replicas[0]).toMatchObject({ owners: ["gw-2", "gw-3"] });
    expect(load(owned("[gw-2, gw-1]")).replicas[0]).toMatchObject({ owners: ["gw-1", "gw-2"] });
    expect(faults(owned("[gw-2]"))).toContain(
      "replicas[0].owners: nobody could feed a, as the log is embedded and this gateway is gw-1: remove this key",
    );
    expect(faults(`${owned('["no name"]')}${nats}`)).toContain("replicas[0].owners[0]");
  });

  test("names of replicas that a gateway starts begin with what it says, so that several gateways have different ones", () => {
    const config = load("replicas: { count: 2, command: [x], name: gw1-r, state: ./state }\n");
    expect(config.replicas.map(({ name, state }) => [name, state])).toEqual([
      ["gw1-r1", join(folder, "state/gw1-r1")],
      ["gw1-r2", join(folder, "state/gw1-r2")],
    ]);
    expect(faults("replicas: { count: 2, command: [x], name: 'a b' }\n")).toContain("replicas.name");
  });

  test.each([
    [
      "",
      "gateway.yaml:1:1: replicas: is missing: a list of { name, url }, { count, command } or { count, image, port }; or give --replica URL",
    ],
    ["replicas: []", "gateway.yaml:1:11: replicas: has to have at least 1 item"],
    [
      "replicas: 5",
      "gateway.yaml:1:11: replicas: expected a list of { name, url }, { count, command } or { count, image, port }",
    ],
    ["replicas: { count: 0, command: [x] }", "gateway.yaml:1:20: replicas.count: 0 is out of range: at least 1"],
    ["- a", "gateway.yaml:1:1: expected a map, got a list"],
    ["a: [", "gateway.yaml:1:5: Flow sequence in block collection must be sufficiently indented and end with a ]"],
    [`${two}version: 2`, "gateway.yaml:4:10: version: 2 is not 1"],
    [`${two}log:`, "gateway.yaml:4:1: log: expected a map, got null"],
    [
      `${two}listen: /run/gw.sock`,
      'gateway.yaml:4:9: listen: "/run/gw.sock" is not host:port (Unix sockets and URLs cannot be listened on)',
    ],
    [`${two}listen: "1.2.3:80"`, 'gateway.yaml:4:9: listen: "1.2.3" is not an IPv4 address'],
    [`${two}listen: ":99999"`, "gateway.yaml:4:9: listen: 99999 is not a port: at most 65535"],
    [
      `${two}trustedProxies: [10.0.0.0/99]`,
      'gateway.yaml:4:18: trustedProxies[0]: "10.0.0.0/99" is not an address or a network such as 10.0.0.0/8',
    ],
    [
      `${two}keys: { caller: "{heder.x}" }`,
      'gateway.yaml:4:17: keys.caller: {heder.x} is not one of {path.x}, {query.x}, {header.x}, {body.x} (did you mean "{header.x}"?)',
    ],
    [
      `${two}health: { request: /health }`,
      'gateway.yaml:4:20: health.request: "/health" is not a request such as "GET /health"',
    ],
    [`${two}name: "\${NOPE}"`, "gateway.yaml:4:7: name: the variable NOPE is not set and has no default (${NOPE:-…})"],
    [`${two}rules: ./nope.yaml`, "gateway.yaml:4:8: rules: nope.yaml does not exist"],
    [`${two}admin: { tokenFile: ./nope }`, "gateway.yaml:4:21: admin.tokenFile: nope does not exist"],
    [
      `${two}keys: { redis: { url: "http://x" } }`,
      "gateway.yaml:4:23: keys.redis.url: is not a Redis URL such as redis://127.0.0.1:6379",
    ],
    [
      `${two}log: { nats: { servers: ["nats://u:p@h:1"] } }`,
      "gateway.yaml:4:26: log.nats.servers[0]: has credentials in it: they belong into credentialsFile, passwordFile (with user) or tokenFile",
    ],
    [`${two}log: { nats: { servers: [h], replicas: 2 } }`, "gateway.yaml:4:40: log.nats.replicas: expected 1, 3 or 5"],
  ])("%j", (text, expected) => {
    expect(faults(text).split("\n")[0]).toBe(expected);
  });

  test("of a file that cannot be read names it", () => {
    const loading = (name: string) => () => loadConfig({ file: join(folder, name), env: {}, cwd: folder });
    expect(loading("nope.yaml")).toThrow(/nope\.yaml.*does not exist/);
    expect(loading(".")).toThrow(/is a folder, not a file/);
  });
});

describe("precedence", () => {
  test("defaults, then the file, then the environment, then flags", () => {
    const text = `${two}listen: 127.0.0.1:1111\n`;
    expect(load(two).listen.port).toBe(8080);
    expect(load(text).listen.port).toBe(1111);
    expect(load(text, { env: { GATEWAY_LISTEN: "127.0.0.1:2222" } }).listen.port).toBe(2222);
    expect(
      load(text, { env: { GATEWAY_LISTEN: "127.0.0.1:2222" }, flags: { listen: "127.0.0.1:3333" } }).listen.port,
    ).toBe(3333);
  });

  test("a variable's name is of any case, __ nests, and its value has the type of its key", () => {
    const config = load(two, {
      env: {
        GATEWAY_LOG__MINGUARANTEE: "power-loss",
        gateway_limits__inFlight: "12",
        GATEWAY_LIMITS__BODY: "1048576",
        GATEWAY_KEYS__RETENTION: "2h",
        GATEWAY_TRUSTEDPROXIES: "10.0.0.0/8, ::1",
        GATEWAY_AGREEMENT__MINLIVE: "1",
        GATEWAY_ADMIN__TOKEN: "0123",
        GATEWAY_NAME: "007",
        GATEWAY_HEALTH: "{ every: 9s }",
        GATEWAY_REPLICAS__1__URL: "http://127.0.0.1:5005",
      },
    });
    expect(config.log.minGuarantee).toBe("power-loss");
    expect(config.limits.inFlight).toBe(12);
    expect(config.limits.bodyBytes).toBe(1_048_576);
    expect(config.keys.retentionMs).toBe(7_200_000);
    expect(config.trustedProxies).toEqual(["10.0.0.0/8", "::1"]);
    expect(config.agreement.minLive).toBe(1);
    expect(config.admin.token?.reveal()).toBe("0123");
    expect(config.name).toBe("007");
    expect(config.health.everyMs).toBe(9000);
    expect(config.replicas.map((replica) => replica.kind === "url" && replica.url)).toEqual([
      "http://127.0.0.1:4001",
      "http://127.0.0.1:5005",
    ]);
  });

  test("the environment alone may describe everything", () => {
    const config = loadConfig({
      file: null,
      cwd: folder,
      env: {
        GATEWAY_REPLICAS__COUNT: "3",
        GATEWAY_REPLICAS__COMMAND: "[node, server.js]",
        GATEWAY_REPLICAS__ENV__Secret: "$x",
      },
    });
    expect(config.replicas).toHaveLength(3);
    expect(config.replicas[0]).toMatchObject({ command: ["node", "server.js"], env: { Secret: "$x" }, cwd: folder });
  });

  test("what Kubernetes sets for a service called gateway is nobody's mistake; a stray name is warned of", () => {
    const kubernetes = {
      GATEWAY_SERVICE_HOST: "10.0.0.1",
      GATEWAY_SERVICE_PORT: "80",
      GATEWAY_SERVICE_PORT_HTTP: "80",
      GATEWAY_PORT: "tcp://10.0.0.1:80",
      GATEWAY_PORT_80_TCP: "tcp://10.0.0.1:80",
      GATEWAY_PORT_80_TCP_PROTO: "tcp",
    };
    expect(load(two, { env: kubernetes }).warnings.filter(({ file }) => file.startsWith("GATEWAY"))).toEqual([]);
    const { warnings } = load(two, { env: { GATEWAY_LISTN: ":1" } });
    expect(warnings.map(formatConfigFault)).toContain(
      'GATEWAY_LISTN: names no key of the configuration; ignored (did you mean "GATEWAY_LISTEN"?)',
    );
    expect(load(two, { env: { GATEWAY_ADMIN_URL: "x", GATEWAY_ADMIN_TOKEN_FILE: "y" } }).warnings).toHaveLength(1);
  });

  test("flags alone are enough; names come from URLs, so that their order does not matter", () => {
    const names = (...replica: string[]): string[] =>
      loadConfig({ file: null, env: {}, cwd: folder, flags: { replica } }).replicas.map(({ name }) => name);
    expect(names("http://127.0.0.1:4001", "http://shop.example", "http://[::1]:4003")).toEqual([
      "127.0.0.1-4001",
      "shop.example-80",
      "1-4003",
    ]);
    expect(names("http://shop.example", "http://127.0.0.1:4001").toSorted()).toEqual([
      "127.0.0.1-4001",
      "shop.example-80",
    ]);
  });

  test("faults of flags name the flag", () => {
    const flags = { replica: ["http://127.0.0.1:1/x", "nonsense"], listen: "x" };
    try {
      loadConfig({ file: null, env: {}, flags, cwd: folder });
      expect.unreachable();
    } catch (error) {
      expect((error as FaultsError).faults.map(formatConfigFault)).toEqual([
        '--listen: listen: "x" is not host:port, such as 127.0.0.1:8080, :8080 or [::]:8080',
        '--replica: replicas[0].url: "http://127.0.0.1:1/x" has a path: the paths are the clients\' own, only scheme, host and port stand here',
        '--replica: replicas[1].url: "nonsense" is not a URL such as http://127.0.0.1:4001',
      ]);
    }
  });
});

describe("variables", () => {
  test("are expanded after parsing, inside values", () => {
    const config = load(
      `${two}name: "\${HOST}-\${ZONE:-z}"\nlimits: { inFlight: "\${N}" }\nadmin: { token: "a$$b-\${T}-c" }\n`,
      {
        env: { HOST: "h", N: "7", T: "x: [y" },
      },
    );
    expect([config.name, config.limits.inFlight, config.admin.token?.reveal()]).toEqual(["h-z", 7, "a$b-x: [y-c"]);
  });

  test("of the environment and flags are the shell's business", () => {
    const config = load(two, { env: { GATEWAY_ADMIN__TOKEN: "pa$$wo${rd}" }, flags: { data: "/d/${x}" } });
    expect([config.admin.token?.reveal(), config.data]).toEqual(["pa$$wo${rd}", "/d/${x}"]);
  });
});

describe("secrets", () => {
  const canary = "canary-secret-value";
  const canaryKey = "0123456789abcdef".repeat(4);

  test("never print themselves", () => {
    const secret = new Secret(canary);
    expect(
      [
        String(secret),
        JSON.stringify({ secret }),
        inspect({ secret }),
        inspect(secret, { showHidden: true, depth: 9 }),
      ].join(),
    ).not.toContain(canary);
    expect(JSON.stringify(Object.entries(secret))).not.toContain(canary);
  });

  test("are in no dump of the configuration", () => {
    const config = load(`${two}admin: { token: ${canary} }\nkeys: { redis: { url: "redis://:${canary}@h:1" } }\n`);
    expect(inspect(config, { depth: 20 }) + JSON.stringify(config)).not.toContain(canary);
  });

  test.each([
    `admin: { token: ${canary}, listen: nonsense }`,
    `admin: { listen: x, token: "${canary}", metrics: y }`,
    `admin: { token: [${canary}] }`,
    `admin: { token: "${canary}`,
    `admin: { token: "\${T}", listen: "\${T}" }`,
    `keys: { redis: { url: "http://:${canary}@h:1" } }`,
    `keys: { redis: { url: "redis://:${canary}@h:1", urll: x } }`,
    `log: { nats: { servers: ["nats://user:${canary}@h:1"] } }`,
    `replicas: { count: 0, command: [x], env: { PASSWORD: ${canary} } }`,
    `replicas: [{ name: x, url: "http://user:${canary}@h:1" }]`,
    `snapshots: { store: "mysql://user:${canary}@h/db" }`,
    `snapshots: { store: "s3://key:${canary}@bucket/x" }`,
    `snapshots: { store: "s3://bucket/x?secret=${canary}" }`,
    `snapshots: { store: "mysql://user:${canary}/x@h/db", kep: 1 }`,
    `snapshots: { storePassword: ${canary}, storePasswordFile: ./nope }`,
    `snapshots: { storePassword: ${canary}`,
    `snapshots: { encrypt: { key: ${canary} } }`,
    `registry: { ethereum: { rpc: ["ftp://h/${canary}"], contract: x } }`,
    `registry: { ethereum: { rpc: "https://h/${canary}", contract: x } }`,
    `registry: { ethereum: { rpc: ["https://h/${canary}", "https://h/${canary}"], contract: x } }`,
    `registry: { ethereum: { rpc: [], contract: x, key: ${canary} } }`,
    `registry: { ethereum: { rpc: [], contract: x, kye: "0x${canaryKey}" } }`,
    `registry: { ethereum: { rpc: [], contract: x, key: ${canaryKey} } }`,
    `registry: { ethereum: { rpc: [], contract: x, keyPassword: ${canary}, keyPasswordFile: x } }`,
  ])("stay out of faults: %s", (line) => {
    // Known from the file alone, or from the variable that it names.
    const text = faults(line, { env: line.includes("${T}") ? { T: canary } : {} });
    expect(text).not.toBe("");
    expect(text).not.toContain(canary);
    expect(text).not.toContain(canaryKey);
  });

  test.each([
    ["GATEWAY_REGISTRY__ETHEREUM__RPC", `ftp://h/${canary}, http://h`],
    ["GATEWAY_REGISTRY__ETHEREUM__RPC__0", `ftp://h/${canary}`],
    ["GATEWAY_REGISTRY__ETHEREUM__KEY", canary],
    ["GATEWAY_SNAPSHOTS__STORE", `mysql://u:${canary}@h/db`],
    ["GATEWAY_SNAPSHOTS__ENCRYPT__KEY", canary],
  ])("stay out of faults when they come from %s", (name, value) => {
    const parts = `snapshots: { capture: { dump: [x], restore: [x] } }\nregistry: { ethereum: { rpc: ["http://h"], contract: "0x${"0a".repeat(20)}" } }\n`;
    const text = faults(two + parts, { env: { [name]: value } });
    expect(text).toContain(name);
    expect(text).not.toContain(canary);
  });

  test("come from files, whose mode is looked at", () => {
    const at = join(folder, "admin.token");
    writeFileSync(at, `${canary}\n`, { mode: 0o600 });
    const text = `${two}admin: { tokenFile: ./admin.token }\n`;
    const careful = load(text);
    expect(careful.admin.token?.reveal()).toBe(canary);
    expect(careful.warnings.map(formatConfigFault).join()).not.toContain("admin.token");
    rmSync(at);
    writeFileSync(at, canary, { mode: 0o644 });
    expect(load(text).warnings.map(formatConfigFault).join()).toContain(
      "can be read by others (mode 0644): chmod 600 it",
    );
    writeFileSync(at, "  \n");
    expect(faults(text)).toContain("admin.token is empty");
    expect(faults(`${two}admin: { tokenFile: ./admin.token, token: ${canary} }\n`)).toContain(
      "stands beside token: one of the two",
    );
  });
});

describe("the printed defaults", () => {
  test("are a configuration that means the same as none", () => {
    const text = printDefaults();
    const bare = load(two);
    const written = load(`${text}${two}`);
    expect({ ...written, warnings: [] }).toEqual({ ...bare, warnings: [] });
  });

  test("name every key that may be written, and fit on a screen", () => {
    const text = printDefaults();
    for (const key of [
      "tokenFile",
      "urlFile",
      "credentialsFile",
      "witness",
      "seed",
      "maxLag",
      "encodedSlash",
      "keyFile",
      "clientCaFile",
      "passwordFile",
      "tokenFile",
      "storePasswordFile",
    ])
      expect(text).toContain(`${key}:`);
    for (const line of text.split("\n")) expect(line.length, line).toBeLessThanOrEqual(82);
  });

  test("the schema for editors is draft-07 and knows every key", () => {
    const schema = configJsonSchema() as {
      $schema: string;
      properties: Record<string, { default?: unknown }>;
      required?: string[];
    };
    expect(schema.$schema).toBe("http://json-schema.org/draft-07/schema#");
    expect(schema.properties["listen"]?.default).toBe("127.0.0.1:8080");
    expect(schema.required).toEqual(["replicas"]);
    expect(Object.keys(schema.properties)).toContain("trustedProxies");
  });
});
