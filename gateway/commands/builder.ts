// How commands are added to the tree: one way to say summary, examples, --json and where the gateway is.

import { Option } from "commander";
import { Terminal } from "./terminal.ts";
import type { Command } from "commander";
import type { Recovery } from "../recoverplan.ts";
import type { StartGateway } from "./serve.ts";
import type { Surroundings } from "./terminal.ts";

/** What tests replace. */
export interface ProgramParts {
  readonly start?: StartGateway;
  readonly recovery?: Recovery;
}

/** How an action is written: it gets the terminal and its options, and gives back the exit code where that is not 0. */
export type Action<O> = (terminal: Terminal, options: O, ...args: string[]) => Promise<number | void>;

/** What each command gets to build itself with. */
export interface Builder {
  readonly parts: ProgramParts;
  /** A command whose help begins with these examples. */
  add(to: Command, nameAndArgs: string, summary: string, examples: readonly string[]): Command;
  /** The same, for one that talks to a running gateway. */
  addClient(to: Command, nameAndArgs: string, summary: string, examples: readonly string[]): Command;
  /** What it does; with --json. */
  action<O>(command: Command, action: Action<O>): void;
}

export function createBuilder(around: Surroundings, parts: ProgramParts, outcome: { exitCode: number }): Builder {
  const builder: Builder = {
    parts,
    add(to, nameAndArgs, summary, examples) {
      const command = to.command(nameAndArgs).summary(summary).description(`${summary}.`);
      if (examples.length > 0) {
        command.addHelpText("before", `Examples:\n${examples.map((one) => `  $ gateway ${one}\n`).join("")}`);
      }
      return command;
    },
    addClient(to, nameAndArgs, summary, examples) {
      return builder
        .add(to, nameAndArgs, summary, examples)
        .addOption(new Option("-c, --config <file>", "the gateway's configuration, for its admin address and token"))
        .addOption(new Option("--admin <url>", "the admin address itself (GATEWAY_ADMIN_URL)"))
        .addOption(new Option("--token-file <file>", "a file with the admin token (GATEWAY_ADMIN_TOKEN_FILE)"));
    },
    action(command, action) {
      // Here, so that it stands behind the command's own options.
      command.option("--json", "print the result as JSON");
      command.action(async (...given: unknown[]) => {
        const options = command.optsWithGlobals<{ json?: boolean }>();
        const args = given.slice(0, -2) as string[];
        const code = await action(new Terminal(around, options.json === true), options as never, ...args);
        if (typeof code === "number") outcome.exitCode = code;
      });
    },
  };
  return builder;
}

/** A group such as `gateway replica …`: without a subcommand it shows what there is. */
export function addGroup(program: Command, name: string, summary: string): Command {
  return program.command(name).summary(summary).description(`${summary}.`);
}
