// Starts the real gateway (dist/gateway/cli.js) on free ports in a folder of its own, and gives everything back afterwards.
// Waits by condition: /readyz, /livez, or the process's exit. Nothing that was started outlives `close`.

import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as passed } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Agent, request } from "undici";
import { stringify } from "yaml";
import type { Status, UnknownRow } from "../../gateway/status.ts";
import { createFolder, endWithUs, removeFolder } from "./folder.ts";
import { freePort } from "./servers.ts";

export interface GatewayOptions {
  /** gateway.yaml as an object; `service`, `name`, `listen`, `admin` and `data` are filled in where absent. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly env?: Readonly<Record<string, string>>;
  /** Behind `run -c FILE`. */
  readonly flags?: readonly string[];
  /** ready (default): /readyz is 200. live: /livez is 200, it may be unready. none: only started. */
  readonly until?: "ready" | "live" | "none";
  /** How long `until` may take. */
  readonly withinMs?: number;
  /** What is started instead of `node dist/gateway/cli.js`: fakes that prove the harness. */
  readonly command?: readonly string[];
  /** Hears everything it prints, in pieces. */
  readonly onOutput?: (text: string) => void;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface ApiAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly text: string;
  // oxlint-disable-next-line typescript/no-explicit-any -- answers are looked into by tests, field by field
  readonly json: any;
}

/** What `npm run build` makes. */
export const builtCli = fileURLToPath(new URL("../../dist/gateway/cli.js", import.meta.url));
export const isBuilt = (): boolean => existsSync(builtCli);

export async function startGateway(options: GatewayOptions): Promise<Gateway> {
  const gateway = await Gateway.prepare(options);
  try {
    await gateway.start();
  } catch (error) {
    await gateway.close();
    throw error;
  }
  return gateway;
}

/** Starts a gateway that is expected to end by itself (wrong configuration, second on one folder) and resolves with its exit. */
export async function runToExit(options: GatewayOptions): Promise<Exit> {
  const gateway = await Gateway.prepare({ ...options, until: "none" });
  try {
    await gateway.start();
    return await gateway.exited(options.withinMs ?? 20_000);
  } finally {
    await gateway.close();
  }
}

export class Gateway {
  readonly front: string;
  readonly admin: string;
  /** Holds gateway.yaml, and the data folder unless the configuration names one. */
  readonly folder: string;
  readonly file: string;
  readonly data: string;
  readonly #options: GatewayOptions;
  #config: Readonly<Record<string, unknown>> = {};
  readonly #agent = new Agent({ connections: 4, headersTimeout: 20_000, bodyTimeout: 20_000 });
  #life: Life | null = null;
  #earlier = "";
  readonly #orphans = new Map<number, string>();

  private constructor(options: GatewayOptions, folder: string, front: string, admin: string, data: string) {
    this.#options = options;
    this.folder = folder;
    this.file = join(folder, "gateway.yaml");
    this.front = front;
    this.admin = admin;
    this.data = data;
  }

  static async prepare(options: GatewayOptions): Promise<Gateway> {
    const folder = createFolder("gateway");
    const given = options.config;
    const listen = (given["listen"] as string | undefined) ?? `127.0.0.1:${await freePort()}`;
    const adminGiven = (given["admin"] ?? {}) as Readonly<Record<string, unknown>>;
    const adminListen = (adminGiven["listen"] as string | undefined) ?? `127.0.0.1:${await freePort()}`;
    const data = (given["data"] as string | undefined) ?? join(folder, "data");
    const gateway = new Gateway(options, folder, `http://${listen}`, `http://${adminListen}`, data);
    await gateway.configure({
      version: 1,
      service: "shop",
      name: "gw-1",
      ...given,
      listen,
      admin: { ...adminGiven, listen: adminListen },
      data,
    });
    return gateway;
  }

  /** Changes top-level sections of gateway.yaml; the next start reads them. */
  async configure(sections: Readonly<Record<string, unknown>>): Promise<void> {
    this.#config = { ...this.#config, ...sections };
    await writeFile(this.file, stringify(this.#config));
  }

  get pid(): number {
    return this.#life?.child.pid ?? 0;
  }

  get isRunning(): boolean {
    return this.#life !== null && this.#life.exit === null;
  }

  /** Everything that all lives of this gateway wrote, the newest 4 MiB. */
  output(): string {
    const life = this.#life;
    return this.#earlier + (life === null ? "" : life.stdout + life.stderr);
  }

  /** `options` overrides what the gateway was prepared with, for this life. */
  async start(options: Pick<GatewayOptions, "env" | "until" | "withinMs" | "flags"> = {}): Promise<void> {
    if (this.isRunning) throw new Error("the gateway runs already");
    this.#retire();
    const [program = process.execPath, ...rest] = this.#options.command ?? [process.execPath, builtCli];
    const child = spawn(program, [...rest, "run", "-c", this.file, ...(options.flags ?? this.#options.flags ?? [])], {
      cwd: this.folder,
      env: { ...process.env, NO_COLOR: "1", ...this.#options.env, ...options.env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.#life = new Life(child, this.#options.onOutput);
    if (child.pid !== undefined) child.once("exit", endWithUs(child.pid));
    const until = options.until ?? this.#options.until ?? "ready";
    if (until !== "none")
      await this.waitFor(until === "ready" ? "/readyz" : "/livez", this.#options.withinMs ?? 30_000);
  }

  /** Resolves when GET `path` of the admin address gives 200; rejects when the process ends or the time is over. */
  async waitFor(path: string, withinMs: number): Promise<void> {
    const end = performance.now() + withinMs;
    let last = "no answer";
    // Ends with the condition, with the process or with the time.
    for (;;) {
      const exit = this.#life?.exit;
      if (exit)
        throw new Error(`the gateway ended with ${exit.code ?? exit.signal} before ${path} was 200\n${this.#tail()}`);
      try {
        const answer = await this.api("GET", path);
        if (answer.status === 200) return;
        last = `${answer.status} ${answer.text}`;
      } catch (error) {
        last = String(error);
      }
      if (performance.now() > end)
        throw new Error(`${path} was not 200 within ${withinMs} ms (${last})\n${this.#tail()}`);
      await passed(20);
    }
  }

  /** With the token, where the configuration names an absolute `admin.tokenFile`. */
  async api(method: "GET" | "POST" | "DELETE", path: string, body?: unknown): Promise<ApiAnswer> {
    const { tokenFile } = (this.#config["admin"] ?? {}) as { readonly tokenFile?: string };
    const answer = await request(`${this.admin}${path}`, {
      method,
      dispatcher: this.#agent,
      headers: {
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(tokenFile === undefined ? {} : { authorization: `Bearer ${readFileSync(tokenFile, "utf8").trim()}` }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await answer.body.text();
    let json: unknown = null;
    try {
      json = JSON.parse(text);
    } catch {
      // Metrics and plain answers are not JSON; `text` has them.
    }
    return { status: answer.statusCode, headers: answer.headers, text, json };
  }

  async status(): Promise<Status> {
    const answer = await this.api("GET", "/v1/status");
    if (answer.status !== 200) throw new Error(`/v1/status: ${answer.status} ${answer.text}`);
    return answer.json as Status;
  }

  async unknown(): Promise<readonly UnknownRow[]> {
    const answer = await this.api("GET", "/v1/unknown");
    if (answer.status !== 200) throw new Error(`/v1/unknown: ${answer.status} ${answer.text}`);
    return rowsOf(answer.json) as UnknownRow[];
  }

  /** Polls the status until `isTrue`; rejects with the last status when the time is over. */
  async until(what: string, withinMs: number, isTrue: (status: Status) => boolean): Promise<Status> {
    const end = performance.now() + withinMs;
    let last: unknown = null;
    // Ends with the condition or with the time.
    for (;;) {
      try {
        const status = await this.status();
        if (isTrue(status)) return status;
        last = status.replicas.map((r) => ({
          name: r.name,
          state: r.state,
          reason: r.reason,
          applied: r.applied,
          lag: r.lag,
        }));
      } catch (error) {
        last = String(error);
      }
      if (performance.now() > end) {
        throw new Error(`not within ${withinMs} ms: ${what}\n${JSON.stringify(last, null, 1)}\n${this.#tail()}`);
      }
      await passed(25);
    }
  }

  /** Sum of all samples of a metric whose labels contain all of `labels`. */
  async metric(name: string, labels: Readonly<Record<string, string>> = {}): Promise<number> {
    const { text } = await this.api("GET", "/metrics");
    let sum = 0;
    for (const line of text.split("\n")) {
      if (!line.startsWith(name) || !/^[\s{]/.test(line.slice(name.length))) continue;
      if (Object.entries(labels).every(([key, value]) => line.includes(`${key}="${value}"`))) {
        sum += Number(line.slice(line.lastIndexOf(" ") + 1));
      }
    }
    return sum;
  }

  /** SIGKILL, and the exit awaited. Managed backends are left behind, as a real kill leaves them. */
  async kill9(): Promise<void> {
    this.#noteOrphans();
    this.#life?.child.kill("SIGKILL");
    await this.exited(10_000);
  }

  /** SIGTERM; resolves with the exit code. */
  async stop(withinMs = 30_000): Promise<number | null> {
    this.#life?.child.kill("SIGTERM");
    return (await this.exited(withinMs)).code;
  }

  /** SIGSTOP. */
  pause(): void {
    this.#life?.child.kill("SIGSTOP");
  }

  /** SIGCONT. */
  resume(): void {
    this.#life?.child.kill("SIGCONT");
  }

  /** The same configuration and data once more; a running one is stopped before. */
  async restart(): Promise<void> {
    if (this.isRunning) await this.stop();
    await this.start();
  }

  exited(withinMs: number): Promise<Exit> {
    const life = this.#life;
    if (life === null) return Promise.reject(new Error("the gateway was never started"));
    return Promise.race([
      life.whenExited,
      passed(withinMs, undefined, { ref: false }).then(() => {
        throw new Error(`the gateway did not end within ${withinMs} ms\n${this.#tail()}`);
      }),
    ]);
  }

  /** Pids of the processes this gateway's last life left behind and that still run. */
  orphans(): readonly number[] {
    return [...this.#orphans].filter(([pid, born]) => startTime(pid) === born).map(([pid]) => pid);
  }

  async close(): Promise<void> {
    if (this.isRunning) await this.kill9();
    for (const pid of this.orphans()) process.kill(pid, "SIGKILL");
    await this.#agent.close();
    removeFolder(this.folder);
  }

  #noteOrphans(): void {
    for (const pid of descendants(this.pid)) {
      const born = startTime(pid);
      if (born !== null) this.#orphans.set(pid, born);
    }
  }

  #retire(): void {
    if (this.#life !== null) this.#earlier = (this.#earlier + this.#life.stdout + this.#life.stderr).slice(-outputMax);
    this.#life = null;
  }

  #tail(): string {
    return this.output().slice(-3000);
  }
}

/** Lists come as an array or as an object with one array in it. */
export function rowsOf(json: unknown): unknown[] {
  if (Array.isArray(json)) return json;
  if (typeof json === "object" && json !== null) {
    const list = Object.values(json).find(Array.isArray);
    if (list) return list as unknown[];
  }
  return [];
}

const outputMax = 4 << 20;

/** One process. */
class Life {
  readonly child: ChildProcess;
  readonly whenExited: Promise<Exit>;
  stdout = "";
  stderr = "";
  exit: Exit | null = null;

  constructor(child: ChildProcess, onOutput: (text: string) => void = () => {}) {
    this.child = child;
    child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      onOutput(text);
      this.stdout = (this.stdout + text).slice(-outputMax);
    });
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      onOutput(text);
      this.stderr = (this.stderr + text).slice(-outputMax);
    });
    this.whenExited = new Promise((resolve) => {
      let isDone = false;
      const done = (code: number | null, signal: NodeJS.Signals | null): void => {
        if (isDone) return;
        isDone = true;
        this.exit = { code, signal, stdout: this.stdout, stderr: this.stderr };
        resolve(this.exit);
      };
      child.once("error", (error) => {
        this.stderr += String(error);
        done(null, null);
      });
      // `close` waits for the pipes, which left-behind backends may hold: `exit` is the truth, one turn later for the rest of the output.
      child.once("exit", (code, signal) => setTimeout(() => done(code, signal), 20));
    });
  }
}

/** Field 22 of /proc/PID/stat: tells a process from a later one with its pid. Null: gone, or a zombie. */
function startTime(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" ? null : (fields[19] ?? null);
  } catch {
    return null;
  }
}

function descendants(pid: number): number[] {
  if (pid === 0) return [];
  let children: number[] = [];
  try {
    const text = readFileSync(`/proc/${pid}/task/${pid}/children`, "latin1").trim();
    children = text === "" ? [] : text.split(" ").map(Number);
  } catch {
    return [];
  }
  return children.flatMap((child) => [child, ...descendants(child)]);
}
