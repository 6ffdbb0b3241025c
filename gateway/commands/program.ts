// The command line as a tree: names, options, help with examples first. What a command does is loaded when it is called.

import { Command, CommanderError } from "commander";
import { addAdopt } from "./adopt.ts";
import { addAudit } from "./audit.ts";
import { createBuilder } from "./builder.ts";
import { addCheck } from "./check.ts";
import { addDemo } from "./demo.ts";
import { addDisagreement } from "./disagreement.ts";
import { addExplain } from "./explain.ts";
import { addHealthcheck } from "./healthcheck.ts";
import { addLog } from "./log.ts";
import { addPause } from "./pause.ts";
import { addRecover } from "./recover.ts";
import { addRecoveryKit } from "./recoverykit.ts";
import { addRegistry } from "./registry.ts";
import { addReplica } from "./replica.ts";
import { addRun } from "./run.ts";
import { addSchema } from "./schema.ts";
import { addSnapshot } from "./snapshot.ts";
import { addStatus } from "./status.ts";
import { addVersion } from "./version.ts";
import { CommandError, Terminal } from "./terminal.ts";
import type { ProgramParts } from "./builder.ts";
import type { Surroundings } from "./terminal.ts";

/** 0 ok, 1 failed, 2 usage or invalid configuration, 3 findings, 130 interrupted. */
export async function runProgram(
  args: readonly string[],
  around: Surroundings,
  parts: ProgramParts = {},
): Promise<number> {
  const outcome = { exitCode: 0 };
  const program = createProgram(around, parts, outcome);
  const isJson = args.includes("--json");
  // What everybody tries first.
  const isVersion = args.length === 1 && (args[0] === "--version" || args[0] === "-V");
  try {
    await program.parseAsync(isVersion ? ["version"] : [...args], { from: "user" });
    return outcome.exitCode;
  } catch (error) {
    return fail(error, new Terminal(around, isJson));
  }
}

function createProgram(around: Surroundings, parts: ProgramParts, outcome: { exitCode: number }): Command {
  const program = new Command("gateway");
  program
    .description("Puts one ordered, durable log in front of identical copies of an unmodified HTTP service.")
    .exitOverride()
    // `recover --version 12` is of a snapshot.
    .enablePositionalOptions()
    .configureOutput({
      writeOut: around.out,
      writeErr: around.err,
      getOutHelpWidth: () => 80,
      getErrHelpWidth: () => 80,
    })
    .configureHelp({ subcommandTerm: termOf })
    .option("-V, --version", "print the version")
    .helpCommand("help [command]", "help for a command");
  program.addHelpText(
    "before",
    `Examples:
  $ gateway demo
  $ gateway run --replica http://127.0.0.1:4001 --replica http://127.0.0.1:4002
  $ gateway check -c gateway.yaml
  $ gateway explain POST /orders
  $ gateway status
`,
  );
  const builder = createBuilder(around, parts, outcome);
  for (const add of [
    addRun,
    addDemo,
    addCheck,
    addExplain,
    addStatus,
    addReplica,
    addDisagreement,
    addLog,
    addPause,
    addSnapshot,
    addAudit,
    addRecover,
    addRecoveryKit,
    addRegistry,
    addAdopt,
    addSchema,
    addHealthcheck,
    addVersion,
  ]) {
    add(program, builder);
  }
  program.addHelpText(
    "after",
    "\nExit codes: 0 ok, 1 failed, 2 usage or invalid configuration, 3 findings,\n130 interrupted",
  );
  return program;
}

function termOf(command: Command): string {
  const args = command.registeredArguments.map((argument) =>
    argument.required ? `<${argument.name()}>` : `[${argument.name()}]`,
  );
  return [command.name(), ...args].join(" ");
}

async function fail(error: unknown, terminal: Terminal): Promise<number> {
  if (error instanceof CommanderError) {
    const isFine = error.code === "commander.helpDisplayed" || error.code === "commander.version";
    return isFine ? 0 : 2;
  }
  if (error instanceof CommandError) {
    const { message, next, code, exitCode } = error;
    if (terminal.isJson) terminal.note(JSON.stringify({ error: message, code, next }));
    else terminal.note(`${terminal.styleErr("red", "error:")} ${message}${next === "" ? "" : `\n${next}`}`);
    return exitCode;
  }
  const { failureOf } = await import("./failure.ts");
  return failureOf(error, terminal);
}
