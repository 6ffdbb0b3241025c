// What `gateway recover` and `gateway adopt` have in common: their configuration, the question before anything is replaced, and a run that
// shows how far it is and stops where the next one can go on.

import { findConfig } from "./configfile.ts";
import { Progress } from "./progress.ts";
import { CommandError, counted, formatCount, formatSeconds, printable, wrap } from "./terminal.ts";
import type { Config } from "../config.ts";
import type { Recovery, RecoveryResult, RecoveryRun } from "../recoverplan.ts";
import type { Builder } from "./builder.ts";
import type { Terminal } from "./terminal.ts";

/** Of commands that work without a running gateway. */
export interface RecoveringOptions {
  readonly config?: string;
  readonly data?: string;
  readonly dryRun?: boolean;
  readonly yes?: boolean;
}

const findings = 3;
const interrupted = 130;
const differingShown = 20;

export async function recoveryOf({ parts }: Builder): Promise<Recovery> {
  return parts.recovery ?? (await import("../recovery.ts"));
}

export async function configOf(terminal: Terminal, options: RecoveringOptions): Promise<Config> {
  const file = findConfig(terminal, options.config);
  if (file === null) {
    throw new CommandError("There is no gateway.yaml here.", "Name the configuration of the service: -c FILE", {
      exitCode: 2,
    });
  }
  const { formatConfigFault, loadConfig } = await import("../config.ts");
  const flags = options.data === undefined ? {} : { data: options.data };
  const config = loadConfig({ file, env: terminal.env, cwd: terminal.cwd, flags });
  for (const warning of config.warnings)
    terminal.note(`${terminal.styleErr("yellow", "warning:")} ${formatConfigFault(warning)}`);
  return config;
}

/** Before any work: what nobody can confirm has to be confirmed beforehand. Programs read the plan when it is too late to ask. */
export function checkAttended(terminal: Terminal, { dryRun, yes }: RecoveringOptions): void {
  if (dryRun === true || yes === true || (terminal.isAttended && !terminal.isJson)) return;
  throw new CommandError(
    "Nobody is here to confirm what will be replaced.",
    "Look at the plan with --dry-run, then give --yes",
    { exitCode: 2 },
  );
}

export interface Intent<P extends { readonly refused: string | null; readonly warnings: readonly string[] }> {
  readonly plan: P;
  readonly print: () => void;
  /** Put to the person, without the "type yes". */
  readonly question: string;
  /** What to do where the plan is refused. */
  readonly instead: string;
  readonly run: (run: RecoveryRun) => Promise<RecoveryResult>;
}

/** Plan, question, run, result. The exit code. */
export async function carryOut<P extends { readonly refused: string | null; readonly warnings: readonly string[] }>(
  terminal: Terminal,
  options: RecoveringOptions,
  { plan, print, question, instead, run }: Intent<P>,
): Promise<number> {
  if (!terminal.isJson) {
    print();
    for (const warning of plan.warnings) warn(terminal, warning);
  }
  if (plan.refused !== null) {
    if (terminal.isJson) terminal.printJson({ plan, result: null });
    throw new CommandError(plan.refused, instead, { code: "GW_RECOVERY_REFUSED" });
  }
  if (options.dryRun === true) {
    if (terminal.isJson) terminal.printJson({ plan, result: null });
    else terminal.note("\nnothing was touched (--dry-run)");
    return 0;
  }
  if (options.yes !== true && !(await terminal.confirm(`\n${question} Type yes: `))) {
    terminal.note("nothing was touched");
    return 1;
  }
  const result = await runVisibly(terminal, run);
  if (result === null) return interrupted;
  if (terminal.isJson) terminal.printJson({ plan, result });
  else printResult(terminal, result);
  return result.differing.length > 0 ? findings : 0;
}

/** Null: interrupted, and stopped where the next run can go on. A second signal ends the process where it stands. */
async function runVisibly(
  terminal: Terminal,
  run: (run: RecoveryRun) => Promise<RecoveryResult>,
): Promise<RecoveryResult | null> {
  const stop = new AbortController();
  const progress = new Progress(terminal);
  const onSignal = (): void => {
    if (stop.signal.aborted) process.exit(interrupted);
    terminal.note("\nstopping where it can go on (once more to end at once)");
    stop.abort();
  };
  const signals = ["SIGINT", "SIGTERM"] as const;
  for (const signal of signals) process.on(signal, onSignal);
  try {
    return await run({ onProgress: (told) => progress.tell(told), signal: stop.signal });
  } catch (error) {
    progress.end();
    if (!stop.signal.aborted) throw await explained(error);
    terminal.note("interrupted: the same command goes on where it was");
    return null;
  } finally {
    progress.end();
    for (const signal of signals) process.off(signal, onSignal);
  }
}

/** What does not fit what was recorded is a finding; everything else may go better the next time. */
async function explained(error: unknown): Promise<unknown> {
  const { GatewayError } = await import("../errors.ts");
  if (!(error instanceof GatewayError)) return error;
  const isFinding = ["GW_SNAPSHOT_CORRUPT", "GW_REPLAY_DIFFERS", "GW_LOG_CORRUPT"].includes(error.code);
  const next = isFinding
    ? "nothing live was touched; see deploy/runbook.md, and --dry-run for what else there is"
    : "the same command goes on where it was; see deploy/runbook.md";
  return new CommandError(error.message, `${error.code}: ${next}`, { code: error.code, exitCode: isFinding ? 3 : 1 });
}

function printResult(terminal: Terminal, result: RecoveryResult): void {
  const { position, tookMs, verified, unverified, differing, missing, replicas } = result;
  terminal.print("");
  const isSound = differing.length === 0;
  const done = isSound ? terminal.style("green", "done") : terminal.style("red", "done, with findings");
  terminal.print(`${done}: at position ${position}, after ${formatSeconds(tookMs / 1000)}`);
  if (verified + unverified > 0) {
    const rest = unverified === 0 ? "" : `, ${formatCount(unverified)} had no answer to compare with`;
    terminal.print(`${counted(verified, "entry", "entries")} answered as at first${rest}`);
  }
  for (const one of differing.slice(0, differingShown))
    terminal.print(`${terminal.style("red", "finding:")} ${printable(one)}`);
  if (differing.length > differingShown) terminal.print(`… and ${formatCount(differing.length - differingShown)} more`);
  if (missing !== null) warn(terminal, missing);
  terminal.print("");
  terminal.table(
    [{ title: "NAME" }, { title: "STATE", isElastic: true }],
    replicas.map(({ name, state }) => [name, printable(state)]),
  );
}

export function warn(terminal: Terminal, text: string): void {
  const [head = "", ...rest] = wrap(printable(text), terminal.columns - 9);
  terminal.print(`${terminal.style("yellow", "warning:")} ${head}`);
  for (const line of rest) terminal.print(`         ${line}`);
}

/** A label and a text that may take several lines. */
export function printField(terminal: Terminal, label: string, text: string): void {
  const [head = "", ...rest] = wrap(printable(text), terminal.columns - 13);
  terminal.print(`  ${terminal.style("dim", label.padEnd(10))} ${head}`);
  for (const line of rest) terminal.print(`${" ".repeat(13)}${line}`);
}
