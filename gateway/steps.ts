// Exists so that a test can stop the process at each durable step: the code calls `step` before each fsync, rename, put, send and write.
// Without a hook, which only roots set, a step does nothing: the gateway sets one when a test's environment asks for it, the workshop's child
// always, to stop there when its gateway is gone.

import { appendFileSync, readFileSync } from "node:fs";

export type StepHook = (name: string) => void;

let hook: StepHook | null = null;

/** What comes next is durable. Names are `<what>.<deed>`: `folder.rename`, `store.put`, `chain.send`. */
export function step(name: string): void {
  hook?.(name);
}

export function setStepHook(next: StepHook | null): void {
  hook = next;
}

/**
 * What the environment asks for; null: nothing. `GATEWAY_STEPS_FILE=PATH`: each name becomes a line there, before the step.
 * `GATEWAY_CRASH_AT=NAME#N`: `die` is called before this process's N-th step (from 1) of that name; it must not return. `NAME@N`: before the
 * N-th of all processes that write the same GATEWAY_STEPS_FILE.
 */
export function stepHook(environment: Readonly<Record<string, string | undefined>>, die = killSelf): StepHook | null {
  const file = environment["GATEWAY_STEPS_FILE"];
  const [, crashName, of, nth] = /^(.+)([#@])([1-9]\d*)$/.exec(environment["GATEWAY_CRASH_AT"] ?? "") ?? [];
  if (file === undefined && crashName === undefined) return null;
  let own = 0;
  return (name) => {
    if (file !== undefined) appendFileSync(file, `${name}\n`);
    if (name !== crashName) return;
    own += 1;
    // Two that write at once may each see both lines: then both are late, and one is enough.
    if (of === "@" && file !== undefined ? linesIn(file, name) >= Number(nth) : own === Number(nth)) die();
  };
}

const linesIn = (file: string, name: string): number =>
  readFileSync(file, "utf8")
    .split("\n")
    .filter((line) => line === name).length;

/** Nothing runs after it: no handler, no flush, as in a crash. */
function killSelf(): void {
  process.kill(process.pid, "SIGKILL");
}
