// oxlint-disable unicorn/consistent-function-scoping -- a helper stands where it is used
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspect } from "node:util";
import { afterAll, describe, expect, test } from "vitest";
import { FaultsError } from "../../rules/document.ts";
import { formatConfigFault, loadConfig } from "../../gateway/config.ts";
import type { Config, ConfigSources } from "../../gateway/config.ts";

const folder = mkdtempSync(join(tmpdir(), "config-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const write = (name: string, content: string | Buffer): string => {
  writeFileSync(join(folder, name), content, { mode: 0o600 });
  return `./${name}`;
};

const processes = "replicas: { count: 3, command: [x], state: ./state }\n";
const urls =
  "replicas:\n  - { name: a, url: 'http://127.0.0.1:4001' }\n  - { name: b, url: 'http://127.0.0.1:4002' }\n";
const contract = "0x5fbdb2315678afecb367f032d93f642f64180aa3";

function load(text: string, env: ConfigSources["env"] = {}): Config {
  return loadConfig({ file: join(folder, "gateway.yaml"), text, env, cwd: folder });
}

/** First lines of all faults, the folder taken out. */
function faults(text: string, env: ConfigSources["env"] = {}): string[] {
  try {
    load(text, env);
    return [];
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
    return error.faults.map((fault) => (formatConfigFault(fault).split("\n")[0] ?? "").replaceAll(`${folder}/`, ""));
  }
}

const warnings = (text: string, env: ConfigSources["env"] = {}): string[] =>
  load(text, env).warnings.map((fault) => (formatConfigFault(fault).split("\n")[0] ?? "").replaceAll(`${folder}/`, ""));

describe("snapshots", () => {
  test("of processes with a state folder have every default", () => {
    const { snapshots, log } = load(`${processes}snapshots: {}\n`);
    expect(snapshots).toEqual({
      every: { entries: 50_000, bytes: 2 ** 30, timeMs: 3_600_000, atLeastMs: 600_000 },
      keep: 10,
      capture: { kind: "directory", exclude: [] },
      quiesce: { kind: "stop" },
      store: { kind: "folder", folder: join(folder, "data/snapshots") },
      encryptionKey: null,
      drillMs: null,
    });
    expect(log.truncate).toBe("snapshot");
  });

  test("by commands and by requests are of a service that runs, unless told otherwise", () => {
    const of = (capture: string): unknown => load(`${urls}snapshots: { capture: ${capture} }\n`).snapshots;
    expect(of("{ dump: [pg_dump, '{name}'], restore: [psql] }")).toMatchObject({
      capture: { kind: "command", dump: ["pg_dump", "{name}"], restore: ["psql"] },
      quiesce: { kind: "none" },
    });
    expect(of("{ export: GET /dump, import: PUT /dump?all }")).toMatchObject({
      capture: {
        kind: "http",
        export: { method: "GET", target: "/dump" },
        import: { method: "PUT", target: "/dump?all" },
      },
      quiesce: { kind: "none" },
    });
  });

  test.each([
    ["{ dump: [x] }", "restore: is missing: the command that reads back what dump wrote"],
    ["{ restore: [x] }", "dump: is missing: the command that writes what restore reads back"],
    ["{ export: GET /x }", "import: is missing: the request that takes back what export gave"],
    ["{ import: PUT /x }", "export: is missing: the request that gives what import takes back"],
    ["{ dump: [x], restore: [x], export: GET /x }", "export: stands beside dump: state is captured in one way"],
    ["{ directory: true, dump: [x], restore: [x] }", "directory: stands beside dump: state is captured in one way"],
    ["{ dump: [x], restore: [x], exclude: [a] }", "exclude: stands beside dump: state is captured in one way"],
    ["{ directory: false }", "directory: false is not true"],
    ["{ exclude: ['../x'] }", 'exclude[0]: "../x" is not a pattern of paths inside the state, such as cache/**'],
    ["{ exclude: ['/x'] }", 'exclude[0]: "/x" is not a pattern of paths inside the state, such as cache/**'],
    ["{ dumb: [x] }", 'dumb: is not known here (did you mean "dump"?)'],
  ])("captured by %s are a fault", (capture, expected) => {
    const found = faults(`${processes}snapshots: { capture: ${capture} }\n`);
    expect(found.map((line) => line.replace(/^gateway\.yaml:2:\d+: snapshots\.capture\./, ""))).toContain(expected);
  });

  test("of copies without a state folder, or that cannot be stopped, say what to write", () => {
    expect(faults(`${urls}snapshots: {}\n`)).toEqual([
      "gateway.yaml:4:12: snapshots.capture: directory captures state folders, and these have no state: a, b. Or { dump, restore }, or { export, import }",
      "gateway.yaml:4:12: snapshots.quiesce: stop takes stop and start, which these do not have: a, b. Or write none, if the state may be read while it runs",
    ]);
    const one = (more: string): string => `replicas: [{ name: a, url: 'http://h:1', state: /srv/a${more} }]\n`;
    expect(faults(`${one("")}snapshots: {}\n`)).toHaveLength(1);
    expect(faults(`${one("")}snapshots: { quiesce: none }\n`)).toEqual([]);
    expect(faults(`${one("")}snapshots: { quiesce: POST /hold }\n`)).toEqual([]);
    expect(faults(`${one(", stop: [x], start: [x]")}snapshots: {}\n`)).toEqual([]);
    expect(faults("replicas: { count: 3, command: [x] }\nsnapshots: {}\n")).toEqual([
      "gateway.yaml:2:12: snapshots.capture: directory captures state folders, and these have no state: r1, r2, r3. Or { dump, restore }, or { export, import }",
    ]);
    expect(faults(`${processes}snapshots: { capture: { export: GET /x, import: PUT /x }, quiesce: stop }\n`)).toEqual([
      "gateway.yaml:2:68: snapshots.quiesce: stop leaves nobody who answers export: none, or POST /path",
    ]);
  });

  test.each([
    [
      "{ quiesce: stpo }",
      'snapshots.quiesce: "stpo" is neither stop nor none nor a request such as "POST /quiesce" (did you mean "stop"?)',
    ],
    ["{ keep: 0 }", "snapshots.keep: 0 is out of range: at least 1"],
    ["{ every: { entries: 0 } }", "snapshots.every.entries: 0 is out of range: at least 1"],
    ["{ every: { entries: lots } }", 'snapshots.every.entries: "lots" is neither a number of entries nor off'],
    ["{ every: { bytes: lots } }", 'snapshots.every.bytes: "lots" is neither a size nor off'],
    ["{ every: { time: 0s } }", "snapshots.every.time: has to be more than nothing"],
    ["{ drill: 0s }", "snapshots.drill: has to be more than nothing"],
    ["{ every: { entrys: 1 } }", 'snapshots.every.entrys: is not known here (did you mean "entries"?)'],
  ])("%s is a fault at its place", (snapshots, expected) => {
    expect(
      faults(`${processes}snapshots: ${snapshots}\n`).map((line) => line.replace(/^gateway\.yaml:2:\d+: /, "")),
    ).toEqual([expected]);
  });
});

describe("the store", () => {
  const store = (text: string, env: ConfigSources["env"] = {}): unknown =>
    load(`${processes}snapshots: { store: "${text}" }\nlog: { nats: { servers: ["h:4222"] } }\n`, env).snapshots?.store;
  const aws = { AWS_ACCESS_KEY_ID: "AKIA", AWS_SECRET_ACCESS_KEY: "canary-secret" };

  test("is a folder beside the file, a bucket, a database or an object store of NATS", () => {
    expect(store("./kept")).toEqual({ kind: "folder", folder: join(folder, "kept") });
    expect(store("nats://shop_snapshots")).toEqual({ kind: "nats", bucket: "shop_snapshots" });
    expect(store("mysql://re%40corder@[::1]:3307/kept")).toEqual({
      kind: "mysql",
      host: "::1",
      port: 3307,
      user: "re@corder",
      database: "kept",
      password: null,
    });
    expect(store("s3://bucket/a/b/?endpoint=http://127.0.0.1:9000/&region=eu-1", aws)).toMatchObject({
      kind: "s3",
      bucket: "bucket",
      prefix: "a/b",
      endpoint: "http://127.0.0.1:9000",
      region: "eu-1",
    });
  });

  test("in S3 takes endpoint, region and credentials from the environment, as every program does", () => {
    const of = (env: ConfigSources["env"]): unknown => store("s3://bucket", { ...aws, ...env });
    expect(of({ AWS_REGION: "eu-central-1" })).toMatchObject({
      prefix: "",
      endpoint: "https://s3.eu-central-1.amazonaws.com",
      region: "eu-central-1",
    });
    expect(of({ AWS_ENDPOINT_URL: "https://s3.example.org/" })).toMatchObject({
      endpoint: "https://s3.example.org",
      region: "us-east-1",
    });
    const { snapshots } = load(`${processes}snapshots: { store: "s3://bucket?region=x" }\n`, aws);
    expect(snapshots?.store.kind === "s3" && snapshots.store.secretAccessKey.reveal()).toBe("canary-secret");
    expect(inspect(snapshots, { depth: 9 }) + JSON.stringify(snapshots)).not.toContain("canary");
  });

  test.each([
    ["s3://bucket", {}, "needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"],
    [
      "s3://bucket",
      aws,
      "names no region: add ?region=… (with &endpoint=… where it is not Amazon's), or set AWS_REGION",
    ],
    [
      "s3://bucket",
      { ...aws, AWS_ENDPOINT_URL: "nonsense" },
      "AWS_ENDPOINT_URL is not a URL such as https://s3.example.org",
    ],
    ["s3://bucket", { ...aws, AWS_REGION: "a b" }, "AWS_REGION is not one such as eu-central-1"],
    ["s3://b", {}, "is not s3://BUCKET/PREFIX: a bucket has 3 to 63 of a-z, 0-9, . and -"],
    ["s3://bucket/a/../b", {}, "is not s3://BUCKET/PREFIX: a prefix has segments of letters, digits and -_.*'()!"],
    ["s3://bucket?endpiont=x", {}, "may have ?endpoint=…&region=… behind it, and nothing else"],
    ["s3://bucket?endpoint=ftp://x", {}, "its endpoint is not a URL such as https://s3.example.org"],
    ["s3://k:s@bucket", {}, "has credentials in it: they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"],
    ["mysql://u:p@h/db", {}, "has a password in it: it belongs into storePasswordFile"],
    ["mysql://u@h", {}, "is not mysql://USER@HOST:PORT/DB"],
    ["mysql://h/db", {}, "is not mysql://USER@HOST:PORT/DB"],
    ["mysql://u@h/db?ssl=1", {}, "is not mysql://USER@HOST:PORT/DB, and nothing behind it"],
    [
      "nats://a/b",
      {},
      "is not nats://BUCKET: a bucket has 1 to 63 of letters, digits, _ and -; its servers are those of log.nats",
    ],
    [
      "ftp://h/x",
      {},
      "is not known as a place for snapshots: a folder, s3://BUCKET/PREFIX, mysql://USER@HOST/DB or nats://BUCKET",
    ],
  ])("%s with %j is a fault", (text, env, expected) => {
    expect(faults(`${processes}snapshots: { store: "${text}" }\n`, env)).toContain(
      `gateway.yaml:2:21: snapshots.store: ${expected}`,
    );
  });

  test("may not be where it would capture itself or hold what is not its own", () => {
    const of = (text: string): string[] => faults(`${processes}snapshots: { store: ${text} }\n`);
    expect(of("./state/r2/kept")).toEqual([
      "gateway.yaml:2:21: snapshots.store: state/r2/kept is inside the state of replica r2",
    ]);
    expect(of("./state")[0]).toContain("state holds the state of replica r1");
    expect(of(".").at(-1)).toContain("holds the gateway's own data folder");
    expect(of("./state-kept")).toEqual([]);
    expect(of("nats://x")).toEqual([
      "gateway.yaml:2:21: snapshots.store: nats:// uses the servers of log.nats: there are none",
    ]);
  });

  test("has a password in a file or a variable, and of mysql:// alone", () => {
    const of = (more: string, env = {}): Config =>
      load(`${processes}snapshots: { store: "mysql://u@h/db", ${more} }\n`, env);
    const password = (config: Config): unknown =>
      config.snapshots?.store.kind === "mysql" && config.snapshots.store.password?.reveal();
    expect(password(of(`storePasswordFile: ${write("db.password", "pass word\n")}`))).toBe("pass word");
    expect(password(of("storePassword: '${P}'", { P: "x: [y" }))).toBe("x: [y");
    expect(faults(`${processes}snapshots: { storePassword: abc }\n`)).toEqual([
      "gateway.yaml:2:29: snapshots.storePassword: means nothing without a store in mysql://",
    ]);
  });

  test("that others run is better encrypted, and that is said", () => {
    const of = (more: string): string[] => warnings(`${processes}snapshots: { store: "mysql://u@h/db"${more} }\n`);
    expect(of("")).toEqual([
      "gateway.yaml:2:21: snapshots.store: gets the state as it is: snapshots.encrypt keeps it from who runs the store",
    ]);
    expect(of(`, encrypt: { key: "${"0f".repeat(32)}" }`)).toEqual([]);
  });
});

describe("the key of snapshots", () => {
  const bytes = randomBytes(32);
  const key = (encrypt: string, env: ConfigSources["env"] = {}): unknown =>
    load(`${processes}snapshots: { encrypt: ${encrypt} }\n`, env).snapshots?.encryptionKey?.reveal();

  test("is 32 bytes, in whatever form they are kept", () => {
    const hex = bytes.toString("hex");
    expect(key(`{ key: "${hex}" }`)).toBe(hex);
    expect(key("{ key: '${K}' }", { K: bytes.toString("base64") })).toBe(hex);
    for (const [name, content] of [
      ["raw", bytes],
      ["hex", `${hex.toUpperCase()}\n`],
      ["base64", `${bytes.toString("base64")}\n`],
      ["url", bytes.toString("base64url")],
    ] as const) {
      expect([name, key(`{ keyFile: ${write(`snapshot.${name}`, content)} }`)]).toEqual([name, hex]);
    }
  });

  test.each([
    ["a pass phrase", "correct horse battery staple xyz"],
    ["half a key in hex", "0f".repeat(16)],
    ["31 bytes", randomBytes(31)],
    ["64 characters that are no hex", "zz".repeat(32)],
  ])("is not %s", (_name, content) => {
    expect(faults(`${processes}snapshots: { encrypt: { keyFile: ${write("wrong.key", content)} } }\n`)).toEqual([
      "gateway.yaml:2:34: snapshots.encrypt.keyFile: does not hold 32 bytes (raw, as 64 hex digits, or as 44 characters of base64): make one with: openssl rand -hex 32",
    ]);
  });

  test("has to be given where encryption is asked for", () => {
    expect(faults(`${processes}snapshots: { encrypt: {} }\n`)).toEqual([
      "gateway.yaml:2:23: snapshots.encrypt: needs keyFile, or key",
    ]);
    expect(faults(`${processes}snapshots: { encrypt: { keyFile: ./nope } }\n`)).toEqual([
      "gateway.yaml:2:34: snapshots.encrypt.keyFile: nope does not exist",
    ]);
  });
});

describe("truncation, audits and rebuilds", () => {
  test("keep what snapshots need, and promise nothing without them", () => {
    expect(faults(`${processes}log: { truncate: snapshot }\n`)).toEqual([
      "gateway.yaml:2:18: log.truncate: snapshot keeps what is behind the oldest snapshot: configure snapshots, or write applied",
    ]);
    expect(warnings(`${processes}log: { truncate: applied }\nsnapshots: {}\n`)).toEqual([
      "gateway.yaml:2:18: log.truncate: applied forgets entries that no snapshot holds: what is recovered ends with the snapshot",
    ]);
    expect(load(`${processes}log: { truncate: never }\nsnapshots: {}\n`).log.truncate).toBe("never");
  });

  test("need snapshots, and a way to stop a copy whose folder is replaced", () => {
    const rebuild = "rebuild needs something to rebuild from: configure snapshots";
    expect(faults(`${processes}agreement: { onMinority: rebuild }\n`)).toEqual([
      `gateway.yaml:2:26: agreement.onMinority: ${rebuild}`,
    ]);
    expect(faults("replicas: { count: 3, command: [x], state: s, onReturn: rebuild }\n")).toEqual([
      `gateway.yaml:1:57: replicas.onReturn: ${rebuild}`,
    ]);
    const one = (more: string): string =>
      `replicas: [{ name: a, url: 'http://h:1', state: /srv/a, onReturn: rebuild${more} }]\nsnapshots: { quiesce: none }\n`;
    expect(faults(one(""))).toEqual([
      "gateway.yaml:1:67: replicas[0].onReturn: rebuild replaces the state of a copy that is stopped: give a stop and start",
    ]);
    expect(faults(one(", stop: [x], start: [x]"))).toEqual([]);
    expect(load(`${processes}snapshots: {}\nagreement: { onMinority: rebuild }\n`).agreement.onMinority).toBe(
      "rebuild",
    );
  });

  test("compare what there is to compare", () => {
    const dump = "snapshots: { capture: { dump: [x], restore: [x] } }\n";
    expect(load(`${urls}${dump}audit: { compare: dump }\n`).audit).toEqual({ everyMs: null, compare: "root" });
    expect(faults(`${processes}snapshots: {}\naudit: { compare: dump }\n`)).toEqual([
      "gateway.yaml:3:19: audit.compare: dump compares what snapshots.capture.dump writes, and there is none",
    ]);
    expect(faults(`${processes}audit: { compare: root }\n`)).toEqual([
      "gateway.yaml:2:19: audit.compare: root needs snapshots: they say how the state is read",
    ]);
    expect(faults(`${urls}audit: { compare: witness, every: 0s }\n`)).toEqual([
      "gateway.yaml:4:19: audit.compare: witness compares answers, and these have no witness: a, b",
      "gateway.yaml:4:35: audit.every: has to be more than nothing",
    ]);
    expect(warnings(`${processes}audit: { every: 6h }\n`)).toEqual([
      "gateway.yaml:2:17: audit.every: compares nothing without snapshots or witness",
    ]);
    expect(warnings(`${processes}audit: { every: 6h, compare: off }\n`)).toHaveLength(1);
    expect(load(`${processes}snapshots: {}\naudit: { every: 6h }\n`).audit).toEqual({
      everyMs: 21_600_000,
      compare: "auto",
    });
  });
});

describe("the registry", () => {
  const keystore = JSON.stringify({ version: 3, crypto: { cipher: "aes-128-ctr" } });
  const ethereum = (more: string, env: ConfigSources["env"] = {}): Config["registry"] =>
    load(
      `${processes}snapshots: {}\nregistry: { ethereum: { rpc: ["http://h:8545"], contract: "${contract}"${more} } }\n`,
      env,
    ).registry;
  const wrong = (more: string): string[] =>
    faults(`${processes}snapshots: {}\nregistry: { ethereum: { ${more} } }\n`).map((line) =>
      line.replace(/^gateway\.yaml:3:\d+: registry\.ethereum\./, ""),
    );

  test("is a file unless a chain is named; what is not written has its default", () => {
    expect(load(`${processes}snapshots: {}\nregistry: {}\n`).registry).toBeNull();
    expect(ethereum("")).toMatchObject({
      contract,
      owner: null,
      key: null,
      keyPassword: null,
      confirmations: 2,
      publishers: [],
      publishEveryMs: 0,
      maxFeeGwei: 0,
    });
  });

  test("publishes with a private key or a keystore and its password", () => {
    const hex = "AB".repeat(32);
    expect(ethereum(`, keyFile: ${write("registry.key", `${hex}\n`)}`)?.key?.reveal()).toBe(`0x${hex.toLowerCase()}`);
    expect(ethereum(", key: '${K}'", { K: `0x${hex}` })?.key?.reveal()).toBe(`0x${hex.toLowerCase()}`);
    const files = `keyFile: ${write("keystore.json", keystore)}, keyPasswordFile: ${write("keystore.password", "sesame\n")}`;
    const config = ethereum(`, ${files}`);
    expect(config?.key?.reveal()).toBe(keystore);
    expect(config?.keyPassword?.reveal()).toBe("sesame");
  });

  test.each([
    [`contract: "${contract}"`, "rpc: expected a list of one or two URLs"],
    ['rpc: ["http://h"]', "contract: is missing"],
    [
      'rpc: ["http://h", "http://h"], contract: "0x5fbdb2315678afecb367f032d93f642f64180aa3"',
      "rpc: names one endpoint twice: the second is there to contradict the first",
    ],
    ['rpc: ["ws://h"]', "rpc[0]: is not a URL such as http://127.0.0.1:8545"],
    ['rpc: ["http://a", "http://b", "http://c"]', "rpc: expected a list of one or two URLs"],
    ['contract: "0x5fbd"', 'contract: "0x5fbd" is not an address: 0x and 40 hex digits'],
    [`contract: ${contract}`, 'contract: is read as a number: write it in quotes, "0x…"'],
    [
      'contract: "0x5FbDB2315678afecb367f032d93F642f64180aa4"',
      'contract: "0x5FbDB2315678afecb367f032d93F642f64180aa4" has a wrong checksum (EIP-55): a digit is wrong, or the case of a letter',
    ],
    [
      `publishers: ["${contract}", "${contract.toUpperCase().replace("X", "x")}"], rpc: ["http://h"], contract: "${contract}"`,
      `publishers: names ${contract} twice`,
    ],
    ["confirmations: 0", "confirmations: 0 is out of range: at least 1"],
    ["publisher: []", 'publisher: is not known here (did you mean "publishers"?)'],
    [
      `key: hello, rpc: ["http://h"], contract: "${contract}"`,
      "key: is neither a private key (0x and 64 hex digits) nor an encrypted keystore (JSON)",
    ],
    [
      `key: '${keystore}', rpc: ["http://h"], contract: "${contract}"`,
      "keyPasswordFile: is missing: the key is an encrypted keystore",
    ],
    [
      `key: '${"ab".repeat(32)}', keyPassword: secret, rpc: ["http://h"], contract: "${contract}"`,
      "keyPassword: means nothing without an encrypted keystore in keyFile",
    ],
  ])("of %s is a fault", (text, expected) => {
    expect(wrong(text)).toContain(expected);
  });

  test("that cannot publish, or has nothing to publish, is probably not meant", () => {
    const text = `registry: { ethereum: { rpc: ["http://h"], contract: "${contract}" } }\n`;
    expect(warnings(processes + text).map((line) => line.replace(/^\S+ /, ""))).toEqual([
      "registry: publishes nothing without snapshots",
      "registry.ethereum: has no keyFile: it is read, and nothing is published from here",
    ]);
  });
});

describe("replicas in containers", () => {
  test("are of one image, with a volume each", () => {
    const { replicas, snapshots } = load(
      "replicas: { count: 2, image: 'localhost/shop:1', port: 3000, state: /data, env: { LOG: info }, ready: GET /health }\nsnapshots: {}\n",
    );
    expect(replicas).toHaveLength(2);
    expect(replicas[1]).toEqual({
      kind: "container",
      name: "r2",
      image: "localhost/shop:1",
      port: 3000,
      state: "/data",
      command: null,
      env: { LOG: "info" },
      ready: { method: "GET", target: "/health" },
      engine: "unix:///var/run/docker.sock",
      witness: [],
      onReturn: "verify",
      version: "",
    });
    expect(snapshots?.quiesce).toEqual({ kind: "stop" });
  });

  test("find their engine where every client of Docker does", () => {
    const of = (env: ConfigSources["env"]): unknown => {
      const [first] = load("replicas: { count: 2, image: shop, port: 1 }\n", env).replicas;
      return first?.kind === "container" && first.engine;
    };
    expect(of({ DOCKER_HOST: "unix:///run/podman.sock" })).toBe("unix:///run/podman.sock");
    expect(of({ DOCKER_HOST: "tcp://127.0.0.1:2375/" })).toBe("tcp://127.0.0.1:2375");
    const wrong = (env: ConfigSources["env"]): string[] =>
      faults("replicas: { count: 2, image: shop, port: 1 }\n", env);
    expect(wrong({ DOCKER_HOST: "ssh://root@h" })).toEqual([
      "gateway.yaml:1:30: replicas.image: DOCKER_HOST, where the container engine is, is neither unix:///PATH nor tcp://HOST:PORT",
    ]);
    expect(wrong({ DOCKER_HOST: "tcp://h:2376", DOCKER_TLS_VERIFY: "1" })).toEqual([
      "gateway.yaml:1:30: replicas.image: DOCKER_HOST, where the container engine is, with TLS is not built yet",
    ]);
  });

  test.each([
    ["{ count: 2 }", "replicas.command: is missing: what starts a process (or image, for containers)"],
    ["{ count: 2, comand: [x] }", 'replicas.comand: is not known here (did you mean "command"?)'],
    ["{ count: 2, image: shop }", "replicas.port: is missing: the port that it listens on inside the container"],
    [
      "{ count: 2, command: [x], port: 3000 }",
      "replicas.port: means nothing without image: a process is told its port as {port}",
    ],
    ["{ count: 2, image: shop, port: 1, cwd: x }", "replicas.cwd: means nothing with image: it is of processes"],
    ["{ count: 2, image: shop, port: 1, seed: x }", "replicas.seed: means nothing with image: it is of processes"],
    [
      "{ count: 2, image: shop, port: 1, state: ./data }",
      'replicas.state: "./data" is not a path inside the container such as /data',
    ],
    [
      "{ count: 2, image: shop, port: 1, state: / }",
      'replicas.state: "/" is not a path inside the container such as /data',
    ],
    [
      "{ count: 2, image: --privileged, port: 1 }",
      'replicas.image: "--privileged" is not the name of an image such as localhost/shop:1',
    ],
    ["{ count: 2, image: shop, port: 0 }", "replicas.port: 0 is out of range: at least 1"],
  ])("%s is a fault at its place", (replicas, expected) => {
    expect(faults(`replicas: ${replicas}\n`).map((line) => line.replace(/^gateway\.yaml:1:\d+: /, ""))).toContain(
      expected,
    );
  });
});
