// One run: starts the service, lets clients and faults loose on it as the schedule says, waits until it has mended itself, and judges.

import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as passed } from "node:timers/promises";
import type { LogRow } from "../../gateway/status.ts";
import { rowsOf } from "../helpers/gateway.ts";
import { Client } from "./client.ts";
import type { Lived } from "./client.ts";
import { faults, gapMsMax } from "./faults.ts";
import { historyOf, logEntriesOf } from "./history.ts";
import { checkLedgers } from "./ledgers.ts";
import { checkPositions } from "./positions.ts";
import type { PlannedFault, Schedule } from "./schedule.ts";
import { Service } from "./service.ts";
import { checkEachKey } from "./wgl.ts";

export interface RunOptions {
  readonly schedule: Schedule;
  readonly cli?: string;
  /** A line of the timeline. */
  readonly tell: (line: string) => void;
  /** How long it may take to mend itself once everything is healed. */
  readonly convergenceMs: number;
  /** A folder for what a person needs to find out why: gateways' output, the log, journals, what clients lived. Written after a violation. */
  readonly evidence?: string;
}

export interface Report {
  readonly operations: number;
  readonly acknowledged: number;
  readonly reads: number;
  readonly faults: number;
  /** By kind. */
  readonly faultCounts: ReadonlyMap<string, number>;
  readonly lost: number;
  readonly doubled: number;
  readonly outOfOrder: number;
  /** Everything that must not be, one sentence each. */
  readonly violations: readonly string[];
  readonly ranMs: number;
  readonly judgedMs: number;
}

/** As it happened, against the clock of the run. */
interface Happened {
  readonly planned: PlannedFault;
  readonly beganAt: number;
  readonly healedAt: number;
}

const firstSuccessMsMax = 30_000;
const othersWaitMs = 30_000;
const rssBytesMax = 1_500 << 20;
const descriptorsMax = 1_500;

export async function run(options: RunOptions): Promise<Report> {
  const service = await Service.start({
    shape: options.schedule.shape,
    ...(options.cli === undefined ? {} : { cli: options.cli }),
  });
  try {
    const running = new Run(options, service);
    const report = await running.run();
    if (report.violations.length > 0 && options.evidence !== undefined) running.keep(options.evidence);
    return report;
  } finally {
    await service.close();
  }
}

class Run {
  readonly #schedule: Schedule;
  readonly #service: Service;
  readonly #tellLine: (line: string) => void;
  readonly #convergenceMs: number;
  readonly #lived: Lived[] = [];
  readonly #happened: Happened[] = [];
  readonly #violations: string[] = [];
  #log: readonly LogRow[] = [];
  /** By component: the faults that touch it, one after the other. */
  readonly #turns = new Map<string, Promise<void>>();
  #startedAt = 0;
  #isOver = false;

  constructor({ schedule, tell, convergenceMs }: RunOptions, service: Service) {
    this.#schedule = schedule;
    this.#convergenceMs = convergenceMs;
    this.#service = service;
    this.#tellLine = tell;
  }

  async run(): Promise<Report> {
    const { clients, faults: planned, timeMs, shape } = this.#schedule;
    this.#startedAt = performance.now();
    const fronts = shape.gateways.map((name) => this.#service.gateway(name).front);
    const watch = setInterval(() => void this.#service.lookAfterGateways(), 250);
    const running = clients.map((plan) =>
      new Client({
        plan,
        fronts,
        startedAt: this.#startedAt,
        isOver: () => this.#isOver,
        onLived: (lived) => this.#lived.push(lived),
      }).run(),
    );
    await Promise.all(planned.map((one) => this.#happen(one)));
    const leftMs = this.#startedAt + timeMs - performance.now();
    // The last part heals, however late the last fault ended.
    await passed(Math.max(leftMs, 3_000));
    this.#isOver = true;
    await Promise.all(running);
    const ranMs = performance.now() - this.#startedAt;
    this.#tell("clients have ended");
    await this.#converge();
    clearInterval(watch);
    const judgedFrom = performance.now();
    const counts = await this.#judge().catch((error: unknown) => {
      this.#violate(`it could not be judged: ${error instanceof Error ? error.stack : String(error)}`);
      return { lost: 0, doubled: 0, outOfOrder: 0, acknowledged: 0, reads: 0 };
    });
    const faultCounts = new Map<string, number>();
    for (const { planned: one } of this.#happened) faultCounts.set(one.name, (faultCounts.get(one.name) ?? 0) + 1);
    return {
      ...counts,
      operations: this.#lived.length,
      faults: this.#happened.length,
      faultCounts,
      violations: this.#violations,
      ranMs,
      judgedMs: performance.now() - judgedFrom,
    };
  }

  keep(folder: string): void {
    mkdirSync(folder, { recursive: true });
    const write = (name: string, rows: readonly unknown[]): void =>
      writeFileSync(join(folder, name), rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
    write("violations.jsonl", this.#violations);
    write("faults.jsonl", this.#happened);
    write("log.jsonl", this.#log);
    write(
      "lived.jsonl",
      this.#lived.map((it) => ({
        ...it,
        sent: { ...it.sent, attempts: it.sent.attempts.map((one) => ({ ...one, body: one.body?.toString() ?? null })) },
      })),
    );
    for (const [name, output] of this.#service.outputs) writeFileSync(join(folder, `${name}.log`), output.text());
    for (const [name, backend] of this.#service.backends)
      cpSync(backend.folder, join(folder, name), { recursive: true });
  }

  async #happen(planned: PlannedFault): Promise<void> {
    const { name, target, forMs, dice, atMs } = planned;
    const fault = faults[name];
    if (fault === undefined) throw new Error(`no fault is called ${name}`);
    const earlyMs = this.#startedAt + atMs - performance.now();
    if (earlyMs > 0) await passed(earlyMs);
    const release = await this.#takeTurn(fault.touches?.(this.#schedule.shape, target) ?? [target]);
    try {
      if (fault.needsOthers === true && !(await this.#othersAreLive(target))) {
        this.#tell(`${name} ${target}: left out, the others were not live within ${othersWaitMs} ms`);
        return;
      }
      const beganAt = performance.now();
      this.#tell(`${name} ${target} for ${forMs} ms`);
      await fault.begin(this.#service, target, dice);
      await passed(forMs);
      await fault.end(this.#service, target);
      this.#happened.push({ planned, beganAt, healedAt: performance.now() });
      this.#tell(`${name} ${target} ended`);
    } catch (error) {
      this.#violate(`${name} ${target}: ${String(error).slice(0, 2_000)}`);
      // What it left behind would be taken for what comes next.
      await fault.end(this.#service, target).catch(() => {});
    } finally {
      release();
    }
  }

  /** Resolves when nothing else touches any of these; call what it gives when done. */
  async #takeTurn(components: readonly string[]): Promise<() => void> {
    let release!: () => void;
    const done = new Promise<void>((resolve) => {
      release = resolve;
    });
    const before = components.map((component) => this.#turns.get(component) ?? Promise.resolve());
    for (const component of components) this.#turns.set(component, done);
    await Promise.all(before);
    return release;
  }

  async #othersAreLive(target: string): Promise<boolean> {
    const until = performance.now() + othersWaitMs;
    // Ends when they are, or with the time.
    while (performance.now() < until) {
      const status = await this.#service.status().catch(() => null);
      if (status?.replicas.every((replica) => replica.name === target || replica.state === "live") === true)
        return true;
      await passed(50);
    }
    return false;
  }

  /** All copies live and without anything to do, as every gateway sees it. */
  async #converge(): Promise<void> {
    const from = performance.now();
    for (const name of this.#schedule.shape.gateways)
      await this.#service
        .gateway(name)
        .until("every copy live and without lag", this.#convergenceMs, (status) =>
          status.replicas.every((replica) => replica.state === "live" && replica.lag === 0),
        )
        .catch((error: unknown) => this.#violate(`${name}: ${String(error).slice(0, 1_500)}`));
    this.#tell(`converged after ${Math.round(performance.now() - from)} ms`);
  }

  async #judge(): Promise<Pick<Report, "lost" | "doubled" | "outOfOrder" | "acknowledged" | "reads">> {
    const { shape } = this.#schedule;
    this.#log = await this.#readLog();
    const entries = logEntriesOf(this.#log);
    const status = await this.#service.status();
    const live = shape.backends.filter((name) => status.replicas.some((it) => it.name === name && it.state === "live"));
    const roots = new Map<string, string>();
    for (const name of live) roots.set(name, await this.#service.backend(name).root());
    const tally = checkLedgers({
      sent: this.#lived.map(({ sent }) => sent),
      entries,
      journals: new Map(live.map((name) => [name, this.#service.backend(name).journal()])),
      pastJournals: shape.backends.flatMap((name) =>
        this.#service
          .backend(name)
          .pastJournals()
          .map((rows) => [name, rows] as const),
      ),
      roots,
    });
    const history = historyOf(this.#lived, entries);
    this.#violations.push(
      ...tally.lost,
      ...tally.doubled,
      ...tally.outOfOrder,
      ...tally.others,
      ...checkPositions(history),
      ...checkEachKey(history),
      ...this.#checkGaps(),
      ...(await this.#checkLog()),
      ...this.#checkOutput(),
      ...this.#checkResources(),
      ...this.#service.endedByThemselves(),
    );
    const told = history.filter((it) => it.respondedAt !== Infinity);
    return {
      lost: tally.lost.length,
      doubled: tally.doubled.length,
      outOfOrder: tally.outOfOrder.length,
      acknowledged: told.filter((it) => it.verb !== "get").length,
      reads: told.filter((it) => it.verb === "get").length,
    };
  }

  async #readLog(): Promise<LogRow[]> {
    const gateway = this.#service.gateway(this.#schedule.shape.gateways[0] as string);
    const rows: LogRow[] = [];
    // Ends at the first empty page.
    for (let from = 0; ;) {
      const answer = await gateway.api("GET", `/v1/log?from=${from}&limit=1000`);
      if (answer.status !== 200) throw new Error(`/v1/log: ${answer.status} ${answer.text}`);
      const page = rowsOf(answer.json) as LogRow[];
      const last = page.at(-1);
      if (last === undefined) return rows;
      rows.push(...page);
      from = last.position + 1;
    }
  }

  /** The log is what every gateway and every cursor says it is. */
  async #checkLog(): Promise<string[]> {
    const found: string[] = [];
    const hashes = new Set<string>();
    for (const name of this.#schedule.shape.gateways) {
      const { status, json, text } = await this.#service.gateway(name).api("GET", "/v1/log/verify");
      if (status !== 200) found.push(`${name}: /v1/log/verify: ${status} ${text}`);
      for (const finding of (json as { findings?: string[] } | null)?.findings ?? [])
        found.push(`${name}: log verify: ${finding}`);
      hashes.add(String((json as { hash?: string } | null)?.hash));
      const unknown = await this.#service.gateway(name).unknown();
      if (unknown.length > 0) found.push(`${name}: still unknown: ${JSON.stringify(unknown.slice(0, 5))}`);
    }
    if (hashes.size > 1) found.push(`gateways disagree about the log's hash: ${[...hashes].join(", ")}`);
    return found;
  }

  /** Clients were served again in time after every fault, and during those that must not stop them. */
  #checkGaps(): string[] {
    const acknowledged = this.#lived
      .filter((it) => it.respondedAt !== Infinity && it.planned.verb !== "get")
      .sort((a, b) => a.respondedAt - b.respondedAt);
    const all = acknowledged.map((it) => it.respondedAt);
    const unkeyed = acknowledged.filter((it) => !it.planned.isKeyed).map((it) => it.respondedAt);
    const found: string[] = [];
    for (const { planned, beganAt, healedAt } of this.#happened) {
      const { name, target } = planned;
      const at = Math.round(beganAt - this.#startedAt);
      const next = all.find((time) => time >= healedAt);
      if (next === undefined ? performance.now() - healedAt > firstSuccessMsMax : next - healedAt > firstSuccessMsMax)
        found.push(
          `nothing was acknowledged within ${firstSuccessMsMax} ms after ${name} ${target} (at ${at} ms) ended`,
        );
      const expects = faults[name]?.expects ?? "may-stop";
      const isAlone = this.#happened.every(
        (it) => it.planned === planned || it.healedAt < beganAt - 2_000 || it.beganAt > healedAt,
      );
      if (expects === "may-stop" || !isAlone) continue;
      const gapMs = longestGap(expects === "all-go-on" ? all : unkeyed, beganAt, healedAt);
      if (gapMs > gapMsMax)
        found.push(`nothing was acknowledged for ${Math.round(gapMs)} ms during ${name} ${target} (at ${at} ms)`);
    }
    return found;
  }

  #checkOutput(): string[] {
    return [...this.#service.outputs].flatMap(([name, output]) => output.faults().map((fault) => `${name}: ${fault}`));
  }

  #checkResources(): string[] {
    const found: string[] = [];
    for (const [name, gateway] of this.#service.gateways) {
      if (process.platform !== "linux" || !gateway.isRunning) continue;
      const rss = Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${gateway.pid}/status`, "latin1"))?.[1]) * 1024;
      const descriptors = readdirSync(`/proc/${gateway.pid}/fd`).length;
      if (rss > rssBytesMax) found.push(`${name} uses ${rss >> 20} MiB`);
      if (descriptors > descriptorsMax) found.push(`${name} has ${descriptors} descriptors open`);
    }
    return found;
  }

  #violate(what: string): void {
    this.#tell(`VIOLATION ${what.split("\n", 1)[0]}`);
    this.#violations.push(what);
  }

  #tell(line: string): void {
    this.#tellLine(`${((performance.now() - this.#startedAt) / 1000).toFixed(3).padStart(8)} s  ${line}`);
  }
}

/** Of `times`, which are sorted: the longest stretch without any that begins within [from, to]. */
function longestGap(times: readonly number[], from: number, to: number): number {
  let last = from;
  let longest = 0;
  for (const time of times) {
    if (time < from) continue;
    longest = Math.max(longest, time - last);
    last = time;
    if (time > to) break;
  }
  return longest;
}
