// Starts the journaling service (shop.mjs) as a process that a test can kill, restart and disturb, and reads its journal.

import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { request } from "undici";
import { createFolder, endWithUs, removeFolder } from "../helpers/folder.ts";
import type { Executed } from "../helpers/ledger.ts";
import { freePort } from "../helpers/servers.ts";
import { waitFor } from "../helpers/wait.ts";

export const shopProgram = fileURLToPath(new URL("shop.mjs", import.meta.url));

export interface Fault {
  /** Pause before and after the execution, ±50 %. */
  readonly beforeMs?: number;
  readonly afterMs?: number;
  readonly kind?: "none" | "hang" | "hang-after" | "reset" | "reset-after" | "garbage" | "noise" | "refuse" | "differ";
  readonly left?: number;
  /** Only requests whose target contains it. */
  readonly only?: string;
}

export interface Shop {
  readonly name: string;
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  readonly folder: string;
  journal(): readonly Executed[];
  fault(fault: Fault): Promise<void>;
  facts(): Promise<{
    readonly served: number;
    readonly inside: number;
    readonly executed: number;
    readonly rss: number;
  }>;
  get(path: string): Promise<unknown>;
  kill9(): Promise<void>;
  pause(): void;
  resume(): void;
  /** The same port and state; the fault is set again. */
  restart(): Promise<void>;
  close(): Promise<void>;
}

export async function startShop(name: string, fault: Fault = {}, at?: number): Promise<Shop> {
  const folder = createFolder(`shop-${name}`);
  const port = at ?? (await freePort());
  const url = `http://127.0.0.1:${port}`;
  let child = await launch(folder, port);
  let current = fault;
  const setFault = (next: Fault): Promise<void> => {
    current = next;
    return faultOf(url, next);
  };
  await setFault(fault);
  const kill9 = async (): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  };
  return {
    name,
    url,
    port,
    folder,
    get pid() {
      return child.pid ?? 0;
    },
    journal: () => journalOf(folder),
    fault: setFault,
    facts: async () => (await get(url, "/facts")) as Awaited<ReturnType<Shop["facts"]>>,
    get: (path) => get(url, path),
    kill9,
    pause: () => void child.kill("SIGSTOP"),
    resume: () => void child.kill("SIGCONT"),
    async restart() {
      await kill9();
      child = await launch(folder, port);
      await setFault(current);
    },
    async close() {
      await kill9();
      removeFolder(folder);
    },
  };
}

export const startShops = (
  names: readonly string[],
  fault: Fault = {},
  ports: readonly number[] = [],
): Promise<Shop[]> => Promise.all(names.map((name, i) => startShop(name, fault, ports[i])));

/** Every execution that a state folder remembers, in order. */
export function journalOf(folder: string): readonly Executed[] {
  const file = join(folder, "journal.jsonl");
  if (!existsSync(file)) return [];
  const rows: Executed[] = [];
  for (const line of readFileSync(file, "utf8").split("\n")) if (line !== "") rows.push(JSON.parse(line) as Executed);
  return rows;
}

export async function faultOf(url: string, fault: Fault): Promise<void> {
  const answer = await request(`${url}/fault`, { method: "POST", body: JSON.stringify(fault) });
  await answer.body.dump();
  if (answer.statusCode !== 200) throw new Error(`/fault: ${answer.statusCode}`);
}

async function get(url: string, path: string): Promise<unknown> {
  const answer = await request(`${url}${path}`);
  return answer.body.json();
}

async function launch(folder: string, port: number): Promise<ChildProcess> {
  const child = spawn(process.execPath, [shopProgram], {
    env: { ...process.env, PORT: String(port), STATE_DIR: folder },
    stdio: ["ignore", "ignore", "inherit"],
  });
  if (child.pid !== undefined) child.once("exit", endWithUs(child.pid));
  await waitFor(
    async () => {
      if (child.exitCode !== null) return true;
      return (await request(`http://127.0.0.1:${port}/health`)).body.dump().then(() => true);
    },
    { what: `the shop on port ${port}` },
  );
  if (child.exitCode !== null) throw new Error(`the shop ended with ${child.exitCode}`);
  return child;
}
