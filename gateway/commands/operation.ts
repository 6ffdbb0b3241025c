// What a running gateway was asked to do and takes time: waits for it, shows how far it is, and says what came of it.

import { Option } from "commander";
import { Progress } from "./progress.ts";
import { CommandError, printable } from "./terminal.ts";
import type { Command } from "commander";
import type { Operation } from "../status.ts";
import type { Client, ClientOptions } from "./client.ts";
import type { Terminal } from "./terminal.ts";

export interface WaitOptions extends ClientOptions {
  readonly wait?: boolean;
}

/** Exit code of a command that found what should not be. */
const findings = 3;
/** Short ones are seen at once, long ones asked about less often. */
const pollMinMs = 100;
const pollMaxMs = 1000;

export const noWait = (command: Command): Command =>
  command.addOption(new Option("--no-wait", "say its id and leave it to go on"));

/** The exit code: 0 done, 1 failed, 3 findings. */
export async function finish(
  terminal: Terminal,
  client: Client,
  begun: Operation,
  options: WaitOptions,
): Promise<number> {
  if (options.wait === false) {
    if (terminal.isJson) terminal.printJson(begun);
    else terminal.print(`under way as operation ${begun.id}: GET ${client.url}/v1/operations/${begun.id}`);
    return 0;
  }
  const ended = await waitFor(terminal, client, begun);
  if (terminal.isJson) terminal.printJson(ended);
  else tell(terminal, ended);
  if (ended.findings.length > 0) return findings;
  if (ended.error === null) return ended.state === "done" ? 0 : 1;
  if (terminal.isJson) return 1;
  throw new CommandError(ended.error.detail, `${ended.error.code}: see deploy/runbook.md`, { code: ended.error.code });
}

/** Ends when the operation does, or when the gateway can no longer be asked. */
async function waitFor(terminal: Terminal, client: Client, begun: Operation): Promise<Operation> {
  const progress = new Progress(terminal);
  try {
    for (let now = begun, pauseMs = pollMinMs; ; pauseMs = Math.min(pollMaxMs, pauseMs * 1.5)) {
      if (now.state !== "running") return now;
      if (now.step !== "") {
        const { done, total, unit } = now.progress ?? { done: 0, total: 0, unit: "entries" };
        progress.tell({ step: now.step, replica: null, done, total, unit });
      }
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
      now = await client.get<Operation>(`/v1/operations/${encodeURIComponent(begun.id)}`);
    }
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    const facts = { exitCode: error.exitCode, ...(error.code === null ? {} : { code: error.code }) };
    throw new CommandError(`Operation ${begun.id} was lost sight of. ${error.message}`, error.next, facts);
  } finally {
    progress.end();
  }
}

function tell(terminal: Terminal, { result, findings: found }: Operation): void {
  for (const finding of found) terminal.print(`${terminal.style("red", "finding:")} ${printable(finding)}`);
  if (result !== null && result !== "") terminal.print(printable(result));
}
