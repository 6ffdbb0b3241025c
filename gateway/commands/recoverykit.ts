// gateway recovery-kit: what to keep elsewhere for the worst day: with it, the store and the log an empty machine is enough.

import { resolve } from "node:path";
import { findConfig } from "./configfile.ts";
import { recoveryOf } from "./recovering.ts";
import { CommandError } from "./terminal.ts";
import type { Command } from "commander";
import type { Config } from "../config.ts";
import type { RegistryFacts } from "../recoverplan.ts";
import type { Builder } from "./builder.ts";
import type { Terminal } from "./terminal.ts";

interface KitOptions {
  readonly config?: string;
  readonly out?: string;
}

interface Kit {
  readonly service: string;
  readonly gateway: string;
  readonly madeAt: string;
  readonly program: string;
  readonly registry: RegistryFacts & { readonly contract: string | null; readonly publishers: readonly string[] };
  readonly store: string | null;
  readonly isEncrypted: boolean;
  readonly log: string;
  readonly files: readonly { readonly key: string; readonly file: string }[];
  readonly variables: readonly string[];
  /** Keys whose values stand in the texts and were taken out of them here. */
  readonly masked: readonly string[];
  readonly texts: readonly { readonly file: string; readonly text: string }[];
}

export function addRecoveryKit(program: Command, builder: Builder): void {
  const command = builder
    .add(program, "recovery-kit", "Print what to keep elsewhere for a recovery", [
      "recovery-kit",
      "recovery-kit --out /mnt/usb/shop.recovery-kit",
    ])
    .option("-c, --config <file>", "configuration (default: ./gateway.yaml)")
    .option("--out <file>", "write it there, for its owner's eyes only (0600)");
  builder.action<KitOptions>(command, async (terminal, options) => {
    const kit = await make(terminal, options, builder);
    const text = terminal.isJson ? JSON.stringify(kit, null, 2) : lines(kit).join("\n");
    if (options.out === undefined) terminal.print(text);
    else {
      const file = resolve(terminal.cwd, options.out);
      await write(file, `${text}\n`);
      if (terminal.isJson) terminal.printJson({ file });
      else terminal.print(`written to ${file}`);
    }
    // Without the newest publication the kit lets an older state pass for the newest.
    if (kit.registry.trouble === null) return 0;
    throw new CommandError(
      `The kit lacks the newest publication: ${kit.registry.trouble}`,
      "Make it again when the registry can be reached",
    );
  });
}

async function make(terminal: Terminal, { config: given }: KitOptions, builder: Builder): Promise<Kit> {
  const file = findConfig(terminal, given);
  if (file === null) {
    throw new CommandError("There is no gateway.yaml here.", "Name the configuration of the service: -c FILE", {
      exitCode: 2,
    });
  }
  const { readFileSync } = await import("node:fs");
  const { loadConfig } = await import("../config.ts");
  const { needsOf, withoutLiterals } = await import("../config/needs.ts");
  const { describeStore } = await import("../config/snapshots.ts");
  const { programVersion } = await import("../config/version.ts");
  const { env, cwd } = terminal;
  const config = loadConfig({ file, env, cwd });
  const { registryFacts } = await recoveryOf(builder);
  const originals = [file, ...(config.rulesFile === null ? [] : [config.rulesFile])].map((path) => ({
    file: path,
    text: readFileSync(path, "utf8"),
  }));
  const texts = originals.map((original) => ({ file: original.file, ...withoutLiterals(original.text) }));
  const needs = needsOf(
    { file, env, cwd, flags: {} },
    originals.map(({ text }) => text),
  );
  return {
    service: config.service,
    gateway: config.name,
    madeAt: new Date().toISOString(),
    program: `br2k-gateway ${programVersion()}`,
    registry: {
      ...(await registryFacts(config)),
      contract: config.registry?.contract ?? null,
      publishers: config.registry?.publishers ?? [],
    },
    store: config.snapshots === null ? null : describeStore(config.snapshots.store),
    isEncrypted: (config.snapshots?.encryptionKey ?? null) !== null,
    log: logOf(config),
    ...needs,
    masked: texts.flatMap(({ masked }) => masked),
    texts: texts.map(({ file, text }) => ({ file, text })),
  };
}

function logOf({ log, data }: Config): string {
  return log.nats === null ? `embedded, in ${data}` : `NATS at ${log.nats.servers.join(", ")}`;
}

const field = (label: string, text: string): string => `${label.padEnd(12)} ${text}`;
const listed = (items: readonly string[]): string[] => (items.length === 0 ? ["  none"] : items.map((it) => `  ${it}`));

function lines(kit: Kit): string[] {
  const { registry } = kit;
  const newest = registry.newest;
  const published =
    registry.trouble !== null
      ? `could not be read: ${registry.trouble}`
      : newest === null
        ? "nothing yet"
        : `version ${newest.version} at position ${newest.position}`;
  const isHere = kit.log.startsWith("embedded") || kit.store === null || kit.store.startsWith("/");
  return [
    `Recovery kit of ${kit.service}`,
    `made ${kit.madeAt} by gateway ${kit.gateway}, ${kit.program}`,
    "",
    "Keep it elsewhere, with the files and variables that it names. On the worst",
    "day, on an empty machine: install the program, put these texts and files in",
    "their places, and run",
    "",
    "  gateway recover --dry-run",
    "",
    field("registry", registry.contract === null ? "a file, in data" : `contract ${registry.contract}`),
    ...(registry.contract === null ? [] : [field("chain", registry.chainId ?? "not known")]),
    ...(registry.publishers.length === 0 ? [] : [field("publishers", registry.publishers.join(" "))]),
    field("published", published),
    ...(newest === null ? [] : [field("manifest", newest.manifestHash)]),
    field("store", kit.store ?? "none: nothing is captured"),
    field("encrypted", kit.isEncrypted ? "yes: without its key the store is worth nothing" : "no"),
    field("log", kit.log),
    ...(isHere ? ["", "Log or snapshots are on this machine: what is lost with it cannot be recovered."] : []),
    "",
    "Files that are needed, which are not in this kit:",
    ...listed(kit.files.map(({ key, file }) => `${key}: ${file}`)),
    "",
    "Variables whose values are needed:",
    ...listed(kit.variables),
    ...(kit.masked.length === 0
      ? []
      : ["", "Secrets that were taken out of the texts below and have to be put back:", ...listed(kit.masked)]),
    ...kit.texts.flatMap(({ file, text }) => ["", `===== ${file} =====`, text.trimEnd()]),
  ];
}

/** Whole or not at all, and never readable by others in between. */
async function write(file: string, text: string): Promise<void> {
  const { open, rename, rm } = await import("node:fs/promises");
  const fresh = `${file}.${process.pid}.new`;
  try {
    await rm(fresh, { force: true });
    const handle = await open(fresh, "wx", 0o600);
    try {
      await handle.writeFile(text);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(fresh, file);
  } catch (error) {
    await rm(fresh, { force: true });
    const { code } = error as NodeJS.ErrnoException;
    throw new CommandError(
      `${file} cannot be written (${code ?? "unknown error"}).`,
      "Choose another place: --out FILE",
    );
  }
}
