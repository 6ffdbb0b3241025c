// gateway run: the gateway itself, from a file, from flags, or from both.

import { CommandError } from "./terminal.ts";
import { findConfig } from "./configfile.ts";
import type { Command } from "commander";
import type { Builder } from "./builder.ts";
import type { Terminal } from "./terminal.ts";

export interface RunOptions {
  readonly config?: string;
  readonly replica?: string[];
  readonly listen?: string;
  readonly admin?: string;
  readonly data?: string;
  readonly rules?: string;
  readonly newLog?: boolean;
  readonly json?: boolean;
}

export function addRun(program: Command, builder: Builder): void {
  const command = builder
    .add(program, "run", "Run the gateway", [
      "run",
      "run -c /etc/gateway/gateway.yaml",
      "run --replica http://127.0.0.1:4001 --replica http://127.0.0.1:4002",
    ])
    .option("-c, --config <file>", "configuration (default: ./gateway.yaml, where there is one)")
    .option("--replica <url>", "a running copy of the service; again for each", collect)
    .option("--listen <address>", "the front (default: 127.0.0.1:8080)")
    .option("--admin <address>", "health, metrics and API (default: 127.0.0.1:9070)")
    .option("--data <dir>", "where everything embedded lives (default: ./data)")
    .option("--rules <file>", "rules (default: safe methods only-once, all else replicate)")
    .option("--new-log", "begin a new log although an older one is known: what only that held is gone");
  builder.action<RunOptions>(command, (terminal, options) => run(terminal, options, builder));
}

async function run(terminal: Terminal, options: RunOptions, { parts }: Builder): Promise<number> {
  const { loadConfig } = await import("../config.ts");
  const { env, cwd } = terminal;
  const { replica, listen, admin, data, rules } = options;
  const file = findConfig(terminal, options.config);
  const flags = { replica, listen, admin, data, rules };
  if (file === null && replica === undefined && !Object.keys(env).some((name) => /^gateway_replicas/i.test(name))) {
    throw new CommandError(
      "There is no gateway.yaml here, and no replica is given.",
      "Give -c FILE, or --replica URL for each copy; or try: gateway demo",
      { exitCode: 2 },
    );
  }
  const given = Object.fromEntries(Object.entries(flags).filter(([, value]) => value !== undefined));
  const config = loadConfig({ file, env, flags: given, cwd });
  const { serve } = await import("./serve.ts");
  return serve(terminal, { config, isNewLog: options.newLog === true, start: parts.start });
}

function collect(value: string, before: readonly string[] | undefined): string[] {
  return [...(before ?? []), value];
}
