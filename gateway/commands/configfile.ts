// Which configuration a command reads: the one that is named, else ./gateway.yaml, else none.

import { existsSync } from "node:fs";
import { resolve } from "node:path";
import type { Terminal } from "./terminal.ts";

export function findConfig({ cwd }: Terminal, given: string | undefined): string | null {
  if (given !== undefined) return resolve(cwd, given);
  const here = resolve(cwd, "gateway.yaml");
  return existsSync(here) ? here : null;
}
