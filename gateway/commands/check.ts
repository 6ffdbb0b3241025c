// gateway check: every fault of configuration and rules at once, with its place; or what the defaults are.

import { findConfig } from "./configfile.ts";
import { CommandError, counted } from "./terminal.ts";
import type { Command } from "commander";
import type { Builder } from "./builder.ts";
import type { Terminal } from "./terminal.ts";

interface CheckOptions {
  readonly config?: string;
  readonly printDefaults?: boolean;
}

export function addCheck(program: Command, builder: Builder): void {
  const command = builder
    .add(program, "check", "Check configuration and rules", [
      "check",
      "check -c gateway.yaml",
      "check --print-defaults",
    ])
    .alias("validate")
    .option("-c, --config <file>", "configuration (default: ./gateway.yaml)")
    .option("--print-defaults", "print every key with its default instead");
  builder.action<CheckOptions>(command, check);
}

async function check(terminal: Terminal, options: CheckOptions): Promise<number> {
  if (options.printDefaults === true) {
    const { defaultValues, printDefaults } = await import("../config/defaults.ts");
    if (terminal.isJson) terminal.printJson(defaultValues());
    else terminal.print(printDefaults().trimEnd());
    return 0;
  }
  const file = findConfig(terminal, options.config);
  if (file === null) {
    throw new CommandError("There is no gateway.yaml here.", "Name one: gateway check -c FILE", { exitCode: 2 });
  }
  const { formatConfigFault, loadConfig } = await import("../config.ts");
  const { FaultsError } = await import("../../rules/document.ts");
  try {
    const config = loadConfig({ file, env: terminal.env, cwd: terminal.cwd });
    const { rules, replicas, warnings } = config;
    if (terminal.isJson) terminal.printJson({ ok: true, faults: [], warnings });
    else {
      for (const warning of warnings)
        terminal.print(`${terminal.style("yellow", "warning:")} ${formatConfigFault(warning)}`);
      // Two rules are always there, for what no other matches.
      const count = rules.rules.length - 2;
      const about = `${counted(replicas.length, "replica")}, ${count === 1 ? "1 rule" : `${count} rules`}`;
      const doubts =
        warnings.length === 0 ? "" : `, ${warnings.length === 1 ? "1 warning" : `${warnings.length} warnings`}`;
      terminal.print(`${terminal.style("green", "ok")}: ${about}${doubts}`);
    }
    return 0;
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
    const { faults } = error;
    if (terminal.isJson) terminal.printJson({ ok: false, faults, warnings: [] });
    else {
      for (const fault of faults) terminal.print(formatConfigFault(fault));
      terminal.note(
        `${terminal.styleErr("red", "error:")} ${faults.length === 1 ? "1 fault" : `${faults.length} faults`}`,
      );
    }
    return 2;
  }
}
