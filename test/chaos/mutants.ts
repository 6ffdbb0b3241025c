// `npm run chaos:mutants [-- NAME…]`: plants one bug after the other in a copy of dist/ and demands that a short chaos, aimed at it, finds each.
// Exit code 1: one was not found, or could not be planted.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { mutations } from "./mutations.ts";
import type { Mutation } from "./mutations.ts";
import { plant } from "./plant.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));
const say = (line: string): void => void process.stdout.write(`${line}\n`);
/** Chance decides when what happens: another seed has another chance. */
const seeds = [1, 2, 3, 4, 5];

async function main(names: readonly string[]): Promise<number> {
  const unknown = names.filter((name) => !mutations.some((it) => it.name === name));
  if (unknown.length > 0) {
    say(`no such mutation: ${unknown.join(", ")}; there are ${mutations.map((it) => it.name).join(", ")}`);
    return 2;
  }
  const chosen = mutations.filter((it) => names.length === 0 || names.includes(it.name));
  let missed = 0;
  for (const mutation of chosen) {
    const cli = plantIn(mutation);
    const found = await find(mutation, cli);
    if (found === null) missed += 1;
    say(found === null ? `NOT FOUND ${mutation.name}: ${mutation.breaks}` : `found ${mutation.name} (${found})`);
  }
  say(`${chosen.length - missed} of ${chosen.length} planted bugs were found`);
  return missed === 0 ? 0 : 1;
}

/** A copy of the program with one line changed; the path of its command. */
function plantIn(mutation: Mutation): string {
  // Below the root, so that packages are found as they are from dist/.
  const folder = join(root, ".cache", "mutants", mutation.name);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  cpSync(join(root, "dist"), join(folder, "dist"), { recursive: true });
  cpSync(join(root, "package.json"), join(folder, "package.json"));
  const file = join(folder, "dist", mutation.file);
  writeFileSync(file, plant(readFileSync(file, "utf8"), mutation));
  return join(folder, "dist", "gateway", "cli.js");
}

/** Which seed found it, and how; null: none did. */
async function find({ aim }: Mutation, cli: string): Promise<string | null> {
  for (const seed of seeds) {
    const { code, output } = await chaos([
      "--seed",
      String(seed),
      "--log",
      aim.log,
      "--gateways",
      String(aim.gateways),
      "--time",
      String(aim.seconds),
      "--faults",
      aim.faults.join(","),
      "--cli",
      cli,
      "--quiet",
      "--converge",
      "20",
    ]);
    const violation = output.split("\n").find((line) => line.startsWith("VIOLATION "));
    if (code === 1 && violation !== undefined) return `seed ${seed}: ${violation.slice(10, 200)}`;
    if (code !== 0) say(output.slice(-2_000));
  }
  return null;
}

async function chaos(args: readonly string[]): Promise<{ readonly code: number; readonly output: string }> {
  const program = join(dirname(fileURLToPath(import.meta.url)), "chaos.ts");
  const child = spawn(process.execPath, ["--import", "tsx", program, ...args], {
    cwd: root,
    stdio: ["ignore", "pipe", "inherit"],
  });
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (output += text));
  const [code] = (await once(child, "close")) as [number | null];
  return { code: code ?? 1, output };
}

process.exit(await main(process.argv.slice(2)));
