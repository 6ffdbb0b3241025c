// Commands as they stand in the configuration: a list of arguments, no shell, `{name}` and the like filled in.

import { spawn } from "node:child_process";
import { OutputLines } from "./output.ts";

export type Command = readonly string[];

/** Fills `{port}`, `{state}`, `{name}`, `{url}`; other braces are left as they are. */
export function fillCommand(command: Command, values: Readonly<Record<string, string>>): string[] {
  return command.map((part) => part.replace(/\{(\w+)\}/g, (braces, name: string) => values[name] ?? braces));
}

/** The gateway's own settings and secrets are nobody else's. */
export function inheritedEnvironment(environment: NodeJS.ProcessEnv = process.env): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(environment).filter(([name]) => !name.startsWith("GATEWAY_")));
}

/** Runs a command to its end; rejects when it fails, with what it said last. On abort its whole group is killed. */
export function runCommand(command: Command, signal: AbortSignal): Promise<void> {
  const [program = "", ...args] = command;
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const child = spawn(program, args, {
      detached: true,
      stdio: ["ignore", "pipe", "pipe"],
      env: inheritedEnvironment(),
    });
    const said: string[] = [];
    const hear = (line: string): void => {
      said.push(line);
      if (said.length > 5) said.shift();
    };
    const kill = (): void => {
      if (child.pid === undefined) return;
      try {
        process.kill(-child.pid, "SIGKILL");
      } catch {
        // It has ended by itself.
      }
    };
    const lines = [new OutputLines(child.stdout, hear), new OutputLines(child.stderr, hear)];
    signal.addEventListener("abort", kill);
    const settle = (problem: string | null, cause?: unknown): void => {
      signal.removeEventListener("abort", kill);
      for (const stream of lines) stream.flush();
      if (problem === null) resolve();
      else reject(new Error([`${command.join(" ")}: ${problem}`, ...said].join("\n"), { cause }));
    };
    child.once("error", (error) => settle(error.message, error));
    child.once("exit", (code, by) => {
      if (signal.aborted) settle("it was killed, because it did not end in time", signal.reason);
      else settle(code === 0 ? null : `it ended with ${code === null ? `signal ${by}` : `code ${code}`}`);
    });
  });
}
