// One service in a folder of its own, for one kill: a gateway with three copies that it manages, a store, clients. It knows what must hold afterwards.

import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as passed } from "node:timers/promises";
import { Client } from "undici";
import type { LogRow, Operation, Status } from "../../gateway/status.ts";
import { Clients, fateOf } from "../helpers/clients.ts";
import type { Attempt, Call, Sent } from "../helpers/clients.ts";
import { createFolder, removeFolder } from "../helpers/folder.ts";
import { Gateway, rowsOf } from "../helpers/gateway.ts";
import { checkLedger, logAndJournalsAgree } from "../helpers/ledger.ts";
import { waitFor } from "../helpers/wait.ts";
import { journalOf, shopProgram } from "../system/shop.ts";

/** One after the other, so that equal executions are equal files; half of it can be asked for after a crash, the rest cannot. */
const rules = [
  {
    name: "asked",
    match: "POST /t/:k/add",
    mode: "replicate",
    probe: { request: "GET /probe?id={query.id}", applied: { body: { "/applied": true } } },
  },
  { name: "not-asked", match: "POST /n/:k/add", mode: "replicate" },
];

const workload = (client: number, n: number): Call => ({
  method: "POST",
  path: `/${(client + n) % 3 === 0 ? "n" : "t"}/k${n % 7}/add`,
  orderKeys: [],
  isKeyed: n % 2 === 0,
  isRepeatable: false,
  body: { by: 1 },
});

/** More than any life here lasts. */
const livesMs = 120_000;
const soonMs = 500;
/** Whatever waits looks at least so often. */
const workEndsMs = 2_000;

/** The gateway was killed at the step that it was to be killed at. */
export class Killed extends Error {}

/** Where the steps of all processes of a life are written down, and at which of them it ends. */
export const stepsTo = (file: string, crashAt: string | null): Readonly<Record<string, string>> => ({
  GATEWAY_STEPS_FILE: file,
  ...(crashAt === null ? {} : { GATEWAY_CRASH_AT: crashAt, GATEWAY_CRASH_PARENT: "1" }),
});

export class Place {
  readonly folder: string;
  readonly gateway: Gateway;
  readonly clients: Clients;
  /** Of before this place was copied from another. */
  readonly #earlier: readonly Sent[];
  #isOver = false;
  #sending: "not yet" | "now" | "no more" = "not yet";

  private constructor(folder: string, gateway: Gateway, earlier: readonly Sent[]) {
    this.folder = folder;
    this.gateway = gateway;
    this.#earlier = earlier;
    this.clients = new Clients({ front: gateway.front, count: 3, workload, repeatEvery: 5, thinkMs: 40 });
  }

  /** `image`: a folder to begin with a copy of, and what clients sent before. */
  static async prepare(
    config: Readonly<Record<string, unknown>> = {},
    image: { readonly folder: string; readonly sent: readonly Sent[] } | null = null,
  ): Promise<Place> {
    const folder = createFolder("place");
    if (image !== null) cpSync(image.folder, folder, { recursive: true });
    const seed = join(folder, "seed");
    mkdirSync(join(seed, "more"), { recursive: true });
    writeFileSync(join(seed, "more", "read.me"), "more than one file\n");
    const gateway = await Gateway.prepare({
      config: {
        rules,
        data: join(folder, "data"),
        health: { request: "GET /health", every: "200ms", fall: 2, rise: 1 },
        logs: { level: "info", format: "json" },
        agreement: { rebuildsPerHour: 1000 },
        replicas: {
          count: 3,
          command: [process.execPath, shopProgram],
          state: join(folder, "state"),
          seed,
          ready: "GET /health",
          env: { SHOP_ROLE: "none" },
        },
        snapshots: { store: join(folder, "store"), every: { entries: 1_000_000 }, keep: 2 },
        ...config,
      },
      // What is found in the environment of every process that was started here, however it was.
      env: { CRASH_PLACE: folder },
    });
    return new Place(folder, gateway, image?.sent ?? []);
  }

  get sent(): readonly Sent[] {
    return [...this.#earlier, ...this.clients.history];
  }

  get stepsFile(): string {
    return join(this.folder, "steps");
  }

  /** What was passed so far: name and count. */
  steps(): ReadonlyMap<string, number> {
    return stepsIn(this.stepsFile);
  }

  /** A life of the gateway: until it is ready, or with `until: "none"` without a look. */
  async start(options: Parameters<Gateway["start"]>[0] = {}): Promise<void> {
    this.#isOver = false;
    await this.gateway.start(options);
  }

  /** Runs it, unless the gateway ends before: then rejects, with `Killed` where it was killed. */
  async alive(work: () => Promise<void>): Promise<void> {
    const { gateway } = this;
    const working = work();
    const ended = gateway.exited(livesMs);
    try {
      await Promise.race([working, ended]);
    } catch (error) {
      // What fails because nobody answers any more fails a moment before the end is seen.
      if (!(await isWithin(ended, soonMs))) throw error;
    }
    if (gateway.isRunning) return;
    this.#isOver = true;
    // Or it would go on in the next life.
    await isWithin(working, workEndsMs);
    const { code, signal, stderr } = await ended;
    if (signal === "SIGKILL") throw new Killed("the gateway was killed");
    throw new Error(`the gateway ended with ${code ?? signal}\n${stderr.slice(-2000)}`);
  }

  /** Nothing is waited for beyond the life in which it was begun. */
  async wait(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
    await waitFor(() => this.#isOver || condition(), { timeoutMs: 60_000, what });
    if (this.#isOver) throw new Killed(what);
  }

  /** Clients send, unless they have ended for good. */
  send(): void {
    if (this.#sending !== "not yet") return;
    this.#sending = "now";
    this.clients.start();
  }

  /** What was begun is brought to its end, over a restart as well. */
  async sendNoMore(): Promise<void> {
    this.#sending = "no more";
    await this.clients.stop();
  }

  /** So many more requests are acknowledged, where clients send. */
  acknowledged(count: number): Promise<void> {
    if (this.#sending !== "now") return Promise.resolve();
    const wanted = this.clients.acknowledged + count;
    return this.wait(`${wanted} acknowledged requests`, () => this.clients.acknowledged >= wanted);
  }

  async operate(path: string, body: unknown = {}): Promise<Operation> {
    let begun = await this.gateway.api("POST", path, body);
    // What the gateway does by itself comes first: version 0, a rebuild of a copy that nobody can vouch for.
    await this.wait(`${path} to begin`, async () => {
      if (begun.status === 409) begun = await this.gateway.api("POST", path, body);
      return begun.status !== 409;
    });
    if (begun.status !== 202) throw new Error(`${path}: ${begun.status} ${begun.text}`);
    let operation = begun.json as Operation;
    await this.wait(`${path} to end`, async () => {
      operation = (await this.gateway.api("GET", `/v1/operations/${operation.id}`)).json as Operation;
      return operation.state !== "running";
    });
    if (operation.state !== "done") throw new Error(`${path}: ${JSON.stringify(operation)}`);
    return operation;
  }

  async caughtUp(): Promise<Status> {
    return this.gateway.until("all copies are live and without lag", 60_000, ({ replicas }) =>
      replicas.every((it) => it.state === "live" && it.lag === 0),
    );
  }

  /** The clients have stopped. Everything that must hold of a service that goes on; ends it. Sentences, one a fault. */
  async faults(): Promise<string[]> {
    const { gateway } = this;
    const names = (await this.caughtUp()).replicas.map(({ name }) => name);
    const journals = this.#journals(names);
    await this.#retry(new Set([...journals.values()].flatMap((rows) => rows.map(({ id }) => id))));
    await this.caughtUp();
    const faults = await this.#ofLog(names);
    const unknown = await gateway.unknown();
    if (unknown.length > 0) faults.push(`still unknown: ${JSON.stringify(unknown)}`);
    const verified = (await gateway.api("GET", "/v1/log/verify")).json as { findings: readonly string[] };
    faults.push(...verified.findings.map((it) => `log verify: ${it}`));
    await this.operate("/v1/snapshots");
    faults.push(...(await this.operate("/v1/snapshots/verify")).findings.map((it) => `snapshot verify: ${it}`));
    const code = await gateway.stop();
    if (code !== 0) faults.push(`stopped, it ended with ${code}`);
    const [first = "", ...rest] = names;
    for (const name of rest)
      if (this.stateOf(name) !== this.stateOf(first)) faults.push(`the state of ${name} is not that of ${first}`);
    faults.push(...checkLedger({ sent: this.#judged(), journals: this.#journals(names) }, 3));
    faults.push(...leftovers(this.folder).map((path) => `left over: ${path}`));
    faults.push(...this.#processes().map(({ pid, command }) => `process ${pid} was left behind: ${command}`));
    return faults;
  }

  /** Names and contents of everything in the state folder of a copy. */
  stateOf(name: string): string {
    const folder = join(this.folder, "state", name);
    return filesIn(folder)
      .toSorted()
      .map((path) => `${path}\n${readFileSync(join(folder, path), "utf8")}`)
      .join("\n");
  }

  /** Whatever came of it: nothing of it runs any more, and the folder is gone. */
  async close(): Promise<void> {
    await this.gateway.close();
    for (const { pid } of this.#processes()) kill(pid);
    await this.sendNoMore();
    removeFolder(this.folder);
  }

  #journals(names: readonly string[]): Parameters<typeof checkLedger>[0]["journals"] {
    return new Map(names.map((name) => [name, journalOf(join(this.folder, "state", name))]));
  }

  /** Requests that a recovery without the log could not bring back are judged where they are found only. */
  #judged(): readonly Sent[] {
    return this.sent.filter((one) => !this.lost.has(one.id));
  }

  /** Acknowledged, and known to be gone with the log. */
  lost: ReadonlySet<string> = new Set();

  /** The newest and the oldest acknowledged keyed requests once more: the checks of the ledger look at what comes back. */
  async #retry(executed: ReadonlySet<string>): Promise<void> {
    const keyed = this.sent.filter((it) => it.key !== null && fateOf(it) === "executed" && executed.has(it.id));
    const chosen = new Set([...keyed.slice(0, 8), ...keyed.slice(-8)]);
    const client = new Client(this.gateway.front);
    try {
      for (const one of chosen) one.attempts.push(await retried(client, this.gateway.front, one));
    } finally {
      await client.close();
    }
  }

  /** What the log still holds stands in every journal, and the other way round. */
  async #ofLog(names: readonly string[]): Promise<string[]> {
    const held = new Set<number>();
    // Where the log begins is what is read first: it may be truncated at any moment, and the status tells of it a little later.
    let first = Number.POSITIVE_INFINITY;
    let from = 0;
    // Ends at the first empty page.
    for (;;) {
      const rows = rowsOf((await this.gateway.api("GET", `/v1/log?from=${from}&limit=1000`)).json) as LogRow[];
      const last = rows.at(-1);
      if (last === undefined) break;
      first = Math.min(first, rows[0]?.position ?? first);
      for (const row of rows) if (row.kind === "entry" && row.fate === "applied") held.add(row.position);
      from = last.position + 1;
    }
    const journals = new Map(
      [...this.#journals(names)].map(([name, rows]) => [name, rows.filter((it) => it.position >= first)]),
    );
    return logAndJournalsAgree({ sent: [], journals, log: held }).slice(0, 5);
  }

  #processes(): readonly { readonly pid: number; readonly command: string }[] {
    return readdirSync("/proc").flatMap((name) => {
      if (!/^\d+$/.test(name)) return [];
      try {
        if (!readFileSync(`/proc/${name}/environ`, "latin1").includes(this.folder)) return [];
        return [{ pid: Number(name), command: readFileSync(`/proc/${name}/cmdline`, "latin1").replaceAll("\0", " ") }];
      } catch {
        return []; // it has ended meanwhile, or is another's
      }
    });
  }
}

/** How often each step was passed. */
export function stepsIn(file: string): ReadonlyMap<string, number> {
  const counts = new Map<string, number>();
  for (const name of readFileSync(file, "utf8").split("\n"))
    if (name !== "") counts.set(name, (counts.get(name) ?? 0) + 1);
  return counts;
}

/** What only somebody who was cut off leaves. The former state of a copy, `.before`, is kept by design. */
export function leftovers(folder: string): readonly string[] {
  return filesIn(folder, true).filter((path) =>
    path.split("/").some((name) => /\.(new|part)$|\.restoring-|\.seeding-|^\.put-|^(scratch|drill)/.test(name)),
  );
}

function filesIn(folder: string, withFolders = false): readonly string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true, encoding: "utf8" })
    .filter((it) => withFolders || it.isFile())
    .map((it) => join(it.parentPath, it.name).slice(folder.length + 1));
}

async function retried(client: Client, front: string, { call, id, key }: Sent): Promise<Attempt> {
  const sentAtMs = performance.now();
  const answer = await client.request({
    method: call.method,
    path: `${call.path}?id=${id}`,
    headers: { "idempotency-key": key ?? "", "content-type": "application/json" },
    body: JSON.stringify(call.body),
  });
  const { statusCode, headers, body } = answer;
  const bytes = Buffer.from(await body.arrayBuffer());
  const one = (name: string): string | null => {
    const value = headers[name];
    return typeof value === "string" ? value : null;
  };
  const [position, epoch] = one("replication-position")?.split("@") ?? [];
  const contentType = one("content-type");
  const isProblem = contentType?.startsWith("application/problem+json") === true;
  return {
    front,
    sentAtMs,
    endedAtMs: performance.now(),
    status: statusCode,
    outcome: one("replication-outcome") as Attempt["outcome"],
    position: position === undefined ? null : Number(position),
    epoch: epoch ?? null,
    isReplayed: one("idempotency-replayed") === "true",
    code: isProblem ? ((JSON.parse(bytes.toString()) as { code?: string }).code ?? null) : null,
    contentType,
    body: bytes,
    error: null,
  };
}

/** False: not yet, or it rejected. */
const isWithin = (work: Promise<unknown>, ms: number): Promise<boolean> =>
  Promise.race([
    work.then(
      () => true,
      () => false,
    ),
    passed(ms, false),
  ]);

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended by itself.
  }
}
