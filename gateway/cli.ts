#!/usr/bin/env node
// The `gateway` command: hands its arguments to the program and its exit code to the shell.

import { setFlagsFromString } from "node:v8";
import { runProgram } from "./commands/program.ts";
import { setStepHook, stepHook } from "./steps.ts";

// Requests wait together for their fsync, so most of what they are made of lives through a scavenge. V8 takes that for long life and
// allocates more of the kind among the old, for good: there each of them dies late, and keeps what it points to alive (measured: 40 %
// of what was allocated outlived a scavenge at 32 connections after a time with 256, without this guess 6 %).
setFlagsFromString("--no-allocation-site-pretenuring");

// Only where a test asks for it: it stops the process at one of its durable steps.
setStepHook(stepHook(process.env));

// A reader that went away (`| head`) ends a command quietly; a gateway goes on without it.
const isServing = ["run", "demo"].includes(process.argv[2] ?? "");
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE" && !isServing) process.exit(0);
});
process.stderr.on("error", () => undefined);

process.exitCode = await runProgram(process.argv.slice(2), {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  env: process.env,
  cwd: process.cwd(),
  isTerminal: process.stdout.isTTY,
  columns: process.stdout.columns ?? 80,
  isErrTerminal: process.stderr.isTTY,
  ask: process.stdin.isTTY ? ask : null,
});

async function ask(question: string): Promise<string> {
  const { createInterface } = await import("node:readline");
  const reader = createInterface({ input: process.stdin, output: process.stderr });
  return new Promise((resolve) => {
    reader.question(question, (answer) => {
      resolve(answer);
      reader.close();
    });
    reader.once("close", () => resolve(""));
    reader.once("SIGINT", () => process.exit(130));
  });
}
