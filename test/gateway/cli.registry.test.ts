import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Wallet } from "ethers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openEthereumRegistry } from "../../recorder/registry/ethereum.ts";
import { openFileRegistry } from "../../recorder/registry/file.ts";
import { Secret } from "../../gateway/config/secret.ts";
import { developmentKeys, startAnvil } from "../helpers/anvil.ts";
import { temporaryFolder } from "../helpers/folder.ts";
import { publication } from "../recorder/registry/samples.ts";
import { cli } from "./cli.fake.ts";
import type { Anvil } from "../helpers/anvil.ts";

const signal = new AbortController().signal;
const [first, second, third] = developmentKeys;
const addressOf = (key: string): string => new Wallet(key).address.toLowerCase();
const [owner, other, stranger] = [addressOf(first), addressOf(second), addressOf(third)];

describe("gateway registry", () => {
  let anvil: Anvil;
  let folder: string;
  let contract: string;
  const write = (name: string, text: string, mode = 0o600): string => {
    writeFileSync(join(folder, name), text, { mode });
    return join(folder, name);
  };
  /** A configuration with the key of who runs the command. */
  const configOf = (key: string, more = ""): string =>
    write(
      `${addressOf(key)}.yaml`,
      `service: shop
data: ${folder}
replicas: [{ name: a, url: "http://127.0.0.1:4001" }, { name: b, url: "http://127.0.0.1:4002" }]
snapshots: { capture: { export: GET /dump, import: PUT /dump } }
registry:
  ethereum: { rpc: ["${anvil.url}"], contract: "${contract}", keyFile: ${write(addressOf(key), key)}, confirmations: 1${more} }
`,
    );

  beforeAll(async () => {
    anvil = await startAnvil();
    folder = temporaryFolder("cli");
  });
  afterAll(() => anvil?.close());

  it("deploys the contract, and says what goes into the configuration", async () => {
    const keyFile = write("deploy.key", `${first}\n`);
    const told = await cli(["registry", "deploy", "--rpc", anvil.url, "--key-file", keyFile]);
    expect([told.exitCode, told.err]).toEqual([0, expect.stringContaining("gateway.yaml")]);
    expect(told.out).toMatch(/^contract     0x[0-9a-f]{40}\ntransaction  0x[0-9a-f]{64}\nchain        31337\n$/);
    const json = await cli(["registry", "deploy", "--rpc", anvil.url, "--key-file", keyFile, "--json"]);
    const deployed = JSON.parse(json.out) as { contract: string };
    expect(deployed).toEqual({
      contract: expect.stringMatching(/^0x[0-9a-f]{40}$/) as unknown,
      transaction: expect.stringMatching(/^0x[0-9a-f]{64}$/) as unknown,
      chainId: 31337,
    });
    contract = deployed.contract;
    expect(await anvil.call("eth_getCode", [contract, "latest"])).not.toBe("0x");
    for (const text of [told.out, told.err, json.out, json.err]) expect(text).not.toContain(first.slice(2));
  });

  it("shows an empty line, and then what was published with the same key and nothing else", async () => {
    const config = configOf(first);
    expect((await cli(["registry", "show", "-c", config])).out).toBe(
      `registry     ${contract} on chain 31337
service      shop
registered   no: the owner's first publication does it
nothing is published
`,
    );
    const registry = await openEthereumRegistry({
      rpc: [new Secret(anvil.url)],
      contract,
      service: "shop",
      owner: null,
      key: new Secret(first),
      keyPassword: null,
      confirmations: 1,
      publishers: [],
      maxFeeGwei: 0,
      folder: null,
      times: { pollMs: 15 },
    });
    for (const version of [0, 1, 2]) await registry.publish(publication("shop", version), signal);
    await registry.close();
    const shown = await cli(["registry", "show", "-c", config, "--limit", "2"]);
    expect([shown.exitCode, shown.err]).toEqual([0, ""]);
    expect(shown.out).toContain(`owner        ${owner}, this key\n`);
    expect(shown.out).toContain("quorum       1 of 1\nversions     3\n");
    const rows = shown.out
      .split("\n\n")[1]
      ?.split("\n")
      .map((row) => row.trim().split(/\s+/));
    expect(rows?.map(([version]) => version)).toEqual(["VERSION", "2", "1", ""]);
    expect(rows?.[1]?.slice(1, 3)).toEqual(["12288", publication("shop", 2).manifestHash.slice(0, 16)]);
    const json = JSON.parse((await cli(["registry", "show", "-c", config, "--json"])).out) as { history: unknown[] };
    expect(json).toMatchObject({
      kind: "ethereum",
      chainId: "31337",
      contract,
      service: "shop",
      owner,
      latest: { version: 2 },
    });
    expect(json.history).toHaveLength(3);
  });

  it("adds and removes publishers with the owner's key, and nobody else does", async () => {
    const asOwner = configOf(first);
    const added = await cli(["registry", "publishers", "-c", asOwner, "--add", other, "--quorum", "2"]);
    expect(added.exitCode).toBe(0);
    expect(added.out).toContain(`publishers   ${owner}, this key\n             ${other}\nquorum       2 of 2\n`);
    expect(added.err).toContain(`registry.ethereum.owner: "${owner}"`);
    const asOther = configOf(second, `, owner: "${owner}"`);
    const refused = await cli(["registry", "publishers", "-c", asOther, "--add", stranger]);
    expect([refused.exitCode, refused.err]).toEqual([1, expect.stringContaining(`only its owner ${owner}`)]);
    const removed = await cli(["registry", "publishers", "-c", asOwner, "--remove", other, "--quorum", "1", "--json"]);
    expect(JSON.parse(removed.out)).toMatchObject({ publishers: [owner], quorum: 1, isRegistered: true });
    const impossible = await cli(["registry", "publishers", "-c", asOwner, "--quorum", "2"]);
    expect([impossible.exitCode, impossible.err]).toEqual([1, expect.stringContaining("quorum")]);
  });

  it("registers a service for other publishers, at a contract that is there", async () => {
    const keyFile = write("cold.key", second);
    const deploy = ["registry", "deploy", "--rpc", anvil.url, "--key-file", keyFile, "--contract", contract];
    const publishers = ["--service", "other", "--publisher", owner, "--publisher", stranger, "--quorum", "2"];
    const told = await cli([...deploy, ...publishers, "--json"]);
    expect(JSON.parse(told.out)).toMatchObject({
      contract,
      transaction: null,
      chainId: 31337,
      service: "other",
      owner: other,
      publishers: [owner, stranger],
      quorum: 2,
    });
    const again = await cli([...deploy, ...publishers]);
    expect([again.exitCode, again.err]).toEqual([1, expect.stringContaining("registered already")]);
  });

  it("shows a registry in a file, which has no publishers", async () => {
    const data = temporaryFolder("data");
    const config = write(
      "file.yaml",
      `service: shop
data: ${data}
replicas: [{ name: a, url: "http://127.0.0.1:4001" }, { name: b, url: "http://127.0.0.1:4002" }]
`,
    );
    expect((await cli(["registry", "show", "-c", config])).out).toContain("nothing is published\n");
    const at = join(data, "registry");
    mkdirSync(at);
    await openFileRegistry({ folder: at, service: "shop", name: "gw-1" }).publish(publication("shop", 0), signal);
    const shown = await cli(["registry", "show", "-c", config]);
    expect(shown.out).toContain(join(at, "registry.log"));
    expect(shown.out).toMatch(/\n +0 +4096 +[0-9a-f]{16} +- +gw-1\n/);
    const publishers = await cli(["registry", "publishers", "-c", config]);
    expect([publishers.exitCode, publishers.err]).toEqual([1, expect.stringContaining("The registry is a file")]);
  });

  it("refuses what cannot be meant with exit code 2, and shows no secret", async () => {
    const keyFile = write("open.key", first, 0o644);
    const deploy = ["registry", "deploy", "--rpc", anvil.url, "--key-file", keyFile];
    const faults: readonly string[][] = [
      ["registry", "deploy", "--rpc", anvil.url],
      ["registry", "deploy", "--rpc", "ws://127.0.0.1:8545", "--key-file", keyFile],
      ["registry", "deploy", "--rpc", anvil.url, "--key-file", join(folder, "none")],
      ["registry", "deploy", "--rpc", anvil.url, "--key-file", write("bad.key", "canary-key")],
      [...deploy, "--quorum", "2"],
      [...deploy, "--service", "Shop"],
      [...deploy, "--service", "shop", "--publisher", "0x12"],
      [...deploy, "--service", "shop", "--quorum", "0"],
      ["registry", "show", "-c", configOf(first), "--limit", "0"],
      ["registry", "publishers", "-c", configOf(first), "--add", "me"],
      ["registry", "show", "-c", join(folder, "none.yaml")],
    ];
    for (const args of faults) {
      const { exitCode, err, out } = await cli(args);
      expect(exitCode, `${args.join(" ")}\n${err}`).toBe(2);
      expect(err + out).not.toMatch(/canary-key|ac0974bec39a17e3/);
    }
    const away = await cli([
      "registry",
      "deploy",
      "--rpc",
      "http://127.0.0.1:9/v3/canary-in-url",
      "--key-file",
      keyFile,
    ]);
    expect([away.exitCode, away.err]).toEqual([1, expect.stringContaining("GW_REGISTRY_UNAVAILABLE")]);
    expect(away.err).toContain("chmod 600");
    expect(away.err).not.toContain("canary");
  });
});
