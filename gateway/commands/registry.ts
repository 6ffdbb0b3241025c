// gateway registry …: the contract that vouches for snapshots: deployed, shown, and who may publish there.

import { readFileSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { addGroup } from "./builder.ts";
import { findConfig } from "./configfile.ts";
import { CommandError, formatCount, printable } from "./terminal.ts";
import type { Command } from "commander";
import type { EthereumRegistry, ServiceLine } from "../../recorder/registry/ethereum.ts";
import type { Published, Registry, RegistryStatus } from "../../recorder/registry/registry.ts";
import type { Config, Secret } from "../config.ts";
import type { Builder } from "./builder.ts";
import type { Terminal } from "./terminal.ts";

interface DeployOptions {
  readonly rpc: string;
  readonly keyFile: string;
  readonly keyPasswordFile?: string;
  readonly contract?: string;
  readonly service?: string;
  readonly publisher?: readonly string[];
  readonly quorum?: string;
}
interface ConfigOptions {
  readonly config?: string;
}
interface ShowOptions extends ConfigOptions {
  readonly limit: string;
}
interface PublishersOptions extends ConfigOptions {
  readonly add?: readonly string[];
  readonly remove?: readonly string[];
  readonly quorum?: string;
}

/** Nothing interrupts these commands but the end of the process. */
const forEver = new AbortController().signal;
const secretBytesMax = 64 * 1024;

export function addRegistry(program: Command, builder: Builder): void {
  const group = addGroup(program, "registry", "Deploy and show the contract that vouches for snapshots");
  addDeploy(group, builder);
  addShow(group, builder);
  addPublishers(group, builder);
}

const several = (value: string, former: readonly string[] = []): readonly string[] => [...former, value];

function addDeploy(group: Command, builder: Builder): void {
  const command = builder
    .add(group, "deploy", "Bring the contract onto a chain, once for any number of services", [
      "registry deploy --rpc https://rpc.example.org --key-file ./registry.key",
    ])
    .requiredOption("--rpc <url>", "an endpoint of the chain")
    .requiredOption("--key-file <file>", "private key, or encrypted keystore, of who pays")
    .option("--key-password-file <file>", "a file with the password of a keystore")
    .option("--service <name>", "register it, too: its owner is the key's account")
    .option("--publisher <address>", "who may publish; default: the owner (repeatable)", several)
    .option("--quorum <n>", "how many have to attest the same; default: 1")
    .option("--contract <address>", "register at this contract instead of deploying one")
    .addHelpText(
      "after",
      "\nA service that is not registered is registered by the first publication of its\nowner's key, which may then publish alone: --service is for other publishers.",
    );
  builder.action<DeployOptions>(command, async (terminal, options) => {
    const { Secret } = await import("../config.ts");
    checkDeploy(options);
    const rpc = new Secret(options.rpc);
    const key = await readSecret(terminal, options.keyFile, "--key-file");
    const passwordFile = options.keyPasswordFile;
    const keyPassword =
      passwordFile === undefined ? null : await readSecret(terminal, passwordFile, "--key-password-file");
    const deployed = options.contract === undefined ? await deploy(terminal, rpc, key, keyPassword) : null;
    const contract = deployed?.contract ?? (options.contract as string).toLowerCase();
    const { chainId, line } = await register(contract, rpc, key, keyPassword, options);
    const result = {
      contract,
      transaction: deployed?.transaction ?? null,
      chainId: Number(deployed?.chainId ?? chainId),
      ...(line === null ? {} : { service: options.service, ...shownLine(line) }),
    };
    if (terminal.isJson) terminal.printJson(result);
    else {
      terminal.print(`contract     ${result.contract}`);
      if (result.transaction !== null) terminal.print(`transaction  ${result.transaction}`);
      terminal.print(`chain        ${result.chainId}`);
      if (line !== null) printLine(terminal, options.service ?? "", line);
      terminal.note("");
      terminal.note("Into gateway.yaml, with the quotes:");
      terminal.note(
        `  registry: { ethereum: { rpc: [${JSON.stringify(new URL(options.rpc).origin)}], contract: "${contract}", keyFile: … } }`,
      );
    }
  });
}

function checkDeploy({ rpc, contract, service, publisher, quorum }: DeployOptions): void {
  if (!URL.canParse(rpc) || !["http:", "https:"].includes(new URL(rpc).protocol))
    throw usage("--rpc is no URL such as https://rpc.example.org", "An endpoint of the chain, over HTTP");
  if (service === undefined && (publisher ?? quorum ?? contract) !== undefined)
    throw usage("--publisher, --quorum and --contract mean nothing without --service.", "Say whose: --service NAME");
  if (service !== undefined && !/^[a-z0-9-]{1,63}$/.test(service))
    throw usage(`"${service}" is no name of a service.`, 'As in gateway.yaml: 1 to 63 of "a-z", "0-9" and "-"');
  for (const address of [...(publisher ?? []), ...(contract === undefined ? [] : [contract])]) checkAddress(address);
  if (quorum !== undefined) quorumOf(quorum);
}

async function deploy(
  terminal: Terminal,
  rpc: Secret,
  key: Secret,
  keyPassword: Secret | null,
): Promise<{ readonly contract: string; readonly transaction: string; readonly chainId: string }> {
  const { deployRegistry } = await import("../../recorder/registry/ethereum-deploy.ts");
  terminal.note("deploying: this takes until the next blocks …");
  return deployRegistry({ rpc, key, keyPassword }, forEver);
}

async function register(
  contract: string,
  rpc: Secret,
  key: Secret,
  keyPassword: Secret | null,
  { service, publisher, quorum }: DeployOptions,
): Promise<{ readonly chainId: string | null; readonly line: ServiceLine | null }> {
  if (service === undefined) return { chainId: null, line: null };
  const { openEthereumRegistry } = await import("../../recorder/registry/ethereum.ts");
  const plain = { owner: null, confirmations: 1, publishers: [], maxFeeGwei: 0, folder: null };
  const registry = await openEthereumRegistry({ rpc: [rpc], contract, service, key, keyPassword, ...plain });
  try {
    const { account } = await registry.line();
    await registry.register(publisher ?? [account as string], quorumOf(quorum ?? "1"), forEver);
    return { chainId: registry.chainId, line: await registry.line() };
  } finally {
    await registry.close();
  }
}

function addShow(group: Command, builder: Builder): void {
  const command = builder
    .add(group, "show", "Show what is published of the service, and who may publish", [
      "registry show",
      "registry show --limit 50",
    ])
    .option("-c, --config <file>", "configuration (default: ./gateway.yaml)")
    .option("--limit <n>", "how many versions", "10");
  builder.action<ShowOptions>(command, async (terminal, options) => {
    if (!/^[1-9]\d{0,3}$/.test(options.limit))
      throw usage(`"${options.limit}" is no number of versions.`, "From 1 to 9999");
    const limit = Number(options.limit);
    const config = await configOf(terminal, options);
    await withRegistry(config, async (registry, ethereum) => {
      const latest = await registry.latest();
      const history = latest === null ? [] : await registry.history(Math.max(0, latest.version + 1 - limit), limit);
      const line = ethereum === null ? null : await ethereum.line();
      const status = await registry.status();
      if (terminal.isJson) {
        const { kind, chainId, contract } = registry;
        const { where, trouble, balanceWei } = status;
        const shown = line === null ? {} : shownLine(line);
        terminal.printJson({
          kind,
          where,
          chainId,
          contract,
          service: config.service,
          ...shown,
          balanceWei,
          trouble,
          latest,
          history,
        });
      } else printRegistry(terminal, config.service, { status, line, latest, history });
    });
  });
}

function addPublishers(group: Command, builder: Builder): void {
  const command = builder
    .add(group, "publishers", "Show and change who may publish, and how many have to agree", [
      "registry publishers",
      "registry publishers --add 0x… --quorum 2",
    ])
    .option("-c, --config <file>", "configuration (default: ./gateway.yaml); its key is the owner's")
    .option("--add <address>", "one more (repeatable)", several)
    .option(
      "--remove <address>",
      "one less (repeatable): what it attested no longer counts\nwhere it is not final",
      several,
    )
    .option("--quorum <n>", "how many have to attest the same");
  builder.action<PublishersOptions>(command, async (terminal, options) => {
    const { add = [], remove = [] } = options;
    for (const address of [...add, ...remove]) checkAddress(address);
    const quorum = options.quorum === undefined ? null : quorumOf(options.quorum);
    const config = await configOf(terminal, options);
    await withRegistry(config, async (_registry, ethereum) => {
      if (ethereum === null)
        throw new CommandError(
          "The registry is a file: it has no publishers.",
          "A contract has: see registry.ethereum",
        );
      const before = await ethereum.line();
      if (add.length + remove.length > 0 || quorum !== null)
        await ethereum.changePublishers({ add, remove, quorum: quorum ?? before.quorum }, forEver);
      const line = await ethereum.line();
      if (terminal.isJson) terminal.printJson(shownLine(line));
      else printLine(terminal, config.service, line);
      if (add.length > 0 && !terminal.isJson)
        terminal.note(`The gateways of new publishers name the owner: registry.ethereum.owner: "${line.owner}"`);
    });
  });
}

async function configOf(terminal: Terminal, { config: given }: ConfigOptions): Promise<Config> {
  const file = findConfig(terminal, given);
  if (file === null) throw usage("There is no gateway.yaml here.", "Name the configuration of the service: -c FILE");
  const { loadConfig } = await import("../config.ts");
  return loadConfig({ file, env: terminal.env, cwd: terminal.cwd });
}

/** Beside a running gateway: its notes are left alone. */
async function withRegistry(
  config: Config,
  work: (registry: Registry, ethereum: EthereumRegistry | null) => Promise<void>,
): Promise<void> {
  const { service, name, data } = config;
  if (config.registry === null) {
    const { openFileRegistry } = await import("../../recorder/registry/file.ts");
    await work(openFileRegistry({ folder: join(data, "registry"), service, name }), null);
    return;
  }
  const { openEthereumRegistry } = await import("../../recorder/registry/ethereum.ts");
  const registry = await openEthereumRegistry({ ...config.registry, service, folder: null });
  try {
    await work(registry, registry);
  } finally {
    await registry.close();
  }
}

interface Shown {
  readonly status: RegistryStatus;
  readonly line: ServiceLine | null;
  readonly latest: Published | null;
  readonly history: readonly Published[];
}

function printRegistry(terminal: Terminal, service: string, { status, line, latest, history }: Shown): void {
  terminal.print(`registry     ${status.where}`);
  if (line === null) terminal.print(`service      ${service}`);
  else printLine(terminal, service, line);
  if (line !== null && latest?.version !== line.nextVersion - 1 && line.nextVersion > 0)
    terminal.print(
      `waiting      version ${line.nextVersion - 1} stands and can still be undone, or does not count here`,
    );
  if (status.trouble !== null) terminal.note(`${terminal.styleErr("yellow", "warning:")} ${printable(status.trouble)}`);
  if (latest === null) {
    terminal.print("nothing is published");
    return;
  }
  terminal.print("");
  terminal.table(
    [
      { title: "VERSION", isNumber: true },
      { title: "POSITION", isNumber: true },
      { title: "MANIFEST" },
      { title: "BLOCK", isNumber: true },
      { title: "BY", isElastic: true },
    ],
    history
      .toReversed()
      .map((one) => [
        String(one.version),
        String(one.position),
        one.manifestHash.slice(0, 16),
        one.block === null ? "-" : String(one.block),
        one.publishers.map(short).join(" "),
      ]),
  );
}

function printLine(terminal: Terminal, service: string, line: ServiceLine): void {
  const row = (title: string, text: string): void => terminal.print(`${title.padEnd(13)}${text}`);
  row("service", service);
  if (!line.isRegistered) {
    row("registered", "no: the owner's first publication does it");
    return;
  }
  row("owner", line.owner === line.account ? `${line.owner}, this key` : line.owner);
  if (line.nextOwner !== null) row("next owner", `${line.nextOwner}, once it accepts`);
  const [first = "nobody", ...others] = line.publishers.map((one) => (one === line.account ? `${one}, this key` : one));
  row("publishers", first);
  for (const other of others) row("", other);
  row("quorum", `${line.quorum} of ${line.publishers.length}`);
  if (line.isPaused) row("paused", "yes: nothing is published until the owner resumes it");
  const beginning = line.firstVersion > 0 ? `, the first is version ${line.firstVersion}` : "";
  row("versions", `${formatCount(line.nextVersion - line.firstVersion)}${beginning}`);
}

/** For programs. */
function shownLine({
  id,
  owner,
  nextOwner,
  publishers,
  quorum,
  isRegistered,
  isPaused,
  firstVersion,
  nextVersion,
  account,
}: ServiceLine): object {
  const versions = nextVersion - firstVersion;
  return { id, isRegistered, owner, nextOwner, publishers, quorum, isPaused, versions, firstVersion, account };
}

const short = (publisher: string): string =>
  /^0x[0-9a-f]{40}$/.test(publisher) ? `${publisher.slice(0, 10)}…${publisher.slice(-4)}` : printable(publisher);

async function readSecret(terminal: Terminal, given: string, option: string): Promise<Secret> {
  const { Secret } = await import("../config.ts");
  const file = resolve(terminal.cwd, given);
  try {
    const { mode, size } = statSync(file);
    if (size > secretBytesMax) throw usage(`${file} is larger than 64 KiB.`, `Is it the right file for ${option}?`);
    if ((mode & 0o077) !== 0)
      terminal.note(`${terminal.styleErr("yellow", "warning:")} others can read ${file}: chmod 600 it`);
    return new Secret(readFileSync(file, "utf8").trim());
  } catch (error) {
    if (error instanceof CommandError) throw error;
    throw usage(
      `${file} cannot be read (${(error as NodeJS.ErrnoException).code ?? "unknown error"}).`,
      `Check ${option}.`,
    );
  }
}

function checkAddress(address: string): void {
  if (!/^0x[0-9a-fA-F]{40}$/.test(address)) throw usage(`"${address}" is no address.`, "0x and 40 hex digits");
}

function quorumOf(text: string): number {
  if (!/^[1-9]\d?$/.test(text)) throw usage(`"${text}" is no quorum.`, "A number from 1 to the number of publishers");
  return Number(text);
}

const usage = (message: string, next: string): CommandError => new CommandError(message, next, { exitCode: 2 });
