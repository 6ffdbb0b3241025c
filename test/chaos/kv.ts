// Starts the key-value service (kv.mjs) as a process that can be killed, stopped, emptied and set back, and reads what it executed from its disk.

import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { request } from "undici";
import { createFolder, endWithUs, removeFolder } from "../helpers/folder.ts";
import type { Executed } from "../helpers/ledger.ts";
import { freePort } from "../helpers/servers.ts";
import { waitFor } from "../helpers/wait.ts";

const program = fileURLToPath(new URL("kv.mjs", import.meta.url));

export type KvFaultKind =
  | "none"
  | "slow"
  | "hang"
  | "hang-after"
  | "reset"
  | "reset-after"
  | "garbage"
  | "noise"
  | "half"
  | "differ";

export interface KvFault {
  readonly kind: KvFaultKind;
  readonly ms?: number;
  readonly writesOnly?: boolean;
}

export interface KvRow extends Executed {
  readonly verb: string;
  readonly k: string;
}

export interface Kv {
  readonly name: string;
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  readonly folder: string;
  /** What made its present state, in order. */
  journal(): readonly KvRow[];
  /** What made states that were replaced by an import since, oldest first. */
  pastJournals(): readonly (readonly KvRow[])[];
  fault(fault: KvFault): Promise<void>;
  /** A hash of the state. */
  root(): Promise<string>;
  get(path: string): Promise<{ readonly status: number; readonly text: string }>;
  kill9(): Promise<void>;
  /** SIGTERM. */
  stop(): Promise<void>;
  pause(): void;
  resume(): void;
  /** The same port; whatever fault was set is gone. One that runs is killed first. */
  start(): Promise<void>;
  /** While it is down: nothing is left of its state. */
  empty(): void;
  /** While it is down: only the first part of its journal is left, as after a restore of an older copy. Returns how many rows are gone. */
  setBack(share: number): number;
  close(): Promise<void>;
}

export async function startKv(name: string): Promise<Kv> {
  const folder = createFolder(`kv-${name}`);
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const journal = join(folder, "journal.jsonl");
  let child = await launch(folder, port);
  const end = async (signal: NodeJS.Signals): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill(signal);
    await ended;
  };
  const kill9 = (): Promise<void> => end("SIGKILL");
  const get = async (path: string): Promise<{ readonly status: number; readonly text: string }> => {
    const answer = await request(`${url}${path}`);
    return { status: answer.statusCode, text: await answer.body.text() };
  };
  // Beside those that an import replaced, under a name of its own: a state that was taken away was never judged by anybody.
  const setAside = (): void => {
    const count = readdirSync(folder).filter((file) => file.startsWith("lost-")).length;
    if (existsSync(journal)) renameSync(journal, join(folder, `lost-${count}.jsonl`));
  };
  return {
    name,
    url,
    port,
    folder,
    get pid() {
      return child.pid ?? 0;
    },
    journal: () => rowsOf(journal),
    pastJournals: () =>
      readdirSync(folder)
        .filter((file) => file.startsWith("past-"))
        .sort((a, b) => Number(a.slice(5, -6)) - Number(b.slice(5, -6)))
        .map((file) => rowsOf(join(folder, file))),
    async fault(fault) {
      const answer = await request(`${url}/fault`, {
        method: "POST",
        body: JSON.stringify({ ms: 0, writesOnly: false, ...fault }),
      });
      await answer.body.dump();
      if (answer.statusCode !== 200) throw new Error(`/fault: ${answer.statusCode}`);
    },
    root: async () => (JSON.parse((await get("/root")).text) as { root: string }).root,
    get,
    kill9,
    stop: () => end("SIGTERM"),
    pause: () => void child.kill("SIGSTOP"),
    resume: () => void child.kill("SIGCONT"),
    async start() {
      await kill9();
      child = await launch(folder, port);
    },
    empty: setAside,
    setBack(share) {
      const lines = existsSync(journal) ? readFileSync(journal, "utf8").split("\n").slice(0, -1) : [];
      const kept = lines.slice(0, Math.floor(lines.length * share));
      setAside();
      writeFileSync(journal, kept.map((line) => `${line}\n`).join(""));
      return lines.length - kept.length;
    },
    async close() {
      await kill9();
      removeFolder(folder);
    },
  };
}

function rowsOf(file: string): readonly KvRow[] {
  if (!existsSync(file)) return [];
  const rows: KvRow[] = [];
  for (const line of readFileSync(file, "utf8").split("\n")) if (line !== "") rows.push(JSON.parse(line) as KvRow);
  return rows;
}

async function launch(folder: string, port: number): Promise<ChildProcess> {
  const child = spawn(process.execPath, [program], {
    env: { ...process.env, PORT: String(port), STATE_DIR: folder },
    stdio: ["ignore", "ignore", "inherit"],
  });
  if (child.pid !== undefined) child.once("exit", endWithUs(child.pid));
  await waitFor(
    async () => {
      if (child.exitCode !== null) return true;
      return (await request(`http://127.0.0.1:${port}/health`)).body.dump().then(() => true);
    },
    { what: `the key-value service on port ${port}` },
  );
  if (child.exitCode !== null) throw new Error(`the key-value service ended with ${child.exitCode}`);
  return child;
}
