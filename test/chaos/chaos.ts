// `npm run chaos -- --seed N --time SECONDS [--faults a,b,…] [--log embedded|nats|nats-r3] [--gateways N] …`, and
//   --rate N        operations a second          --clients N            --quiet               no timeline
//   --cli FILE      another build's command      --evidence FOLDER      what a person needs, after a violation
//   --plan          prints the schedule only     --converge SECONDS     for mending itself at the end (120)
//   --demand        fails below 20,000 operations or 30 faults, or when a kind of fault that applies did not happen
// Exit code 0: every promise held. 1: one did not, or the run failed; the seed that repeats it is printed. 2: usage.

import { parseArgs } from "node:util";
import { run } from "./run.ts";
import type { Report } from "./run.ts";
import { digestOf, namesFor, planSchedule, serialise } from "./schedule.ts";
import type { ScheduleOptions } from "./schedule.ts";
import { shapeOf } from "./service.ts";
import type { LogKind } from "./service.ts";

const say = (line: string): void => void process.stdout.write(`${line}\n`);

interface Asked extends ScheduleOptions {
  readonly cli: string | undefined;
  readonly evidence: string | undefined;
  readonly isPlanOnly: boolean;
  readonly isQuiet: boolean;
  readonly convergenceMs: number;
  readonly isDemanding: boolean;
}

const logs: readonly string[] = ["embedded", "nats", "nats-r3"] satisfies LogKind[];

function parse(args: readonly string[]): Asked {
  const { values } = parseArgs({
    args: [...args],
    options: {
      seed: { type: "string", default: String(Math.floor(Math.random() * 1e9)) },
      time: { type: "string", default: "60" },
      faults: { type: "string" },
      log: { type: "string", default: "embedded" },
      gateways: { type: "string", default: "1" },
      rate: { type: "string", default: "400" },
      clients: { type: "string", default: "12" },
      cli: { type: "string" },
      evidence: { type: "string" },
      plan: { type: "boolean", default: false },
      quiet: { type: "boolean", default: false },
      converge: { type: "string", default: "120" },
      demand: { type: "boolean", default: false },
    },
  });
  const whole = (name: "seed" | "gateways" | "rate" | "clients" | "converge", least: number): number => {
    const number = Number(values[name]);
    if (!Number.isSafeInteger(number) || number < least)
      throw new Error(`--${name} has to be a whole number from ${least} on`);
    return number;
  };
  const seconds = Number(values.time.replace(/s$/, ""));
  if (!(seconds >= 8)) throw new Error("--time has to be a number of seconds, at least 8");
  if (!logs.includes(values.log)) throw new Error(`--log has to be one of ${logs.join(", ")}`);
  const gateways = whole("gateways", 1);
  if (values.log === "embedded" && gateways > 1) throw new Error("several gateways need a log in NATS");
  const shape = shapeOf(values.log as LogKind, gateways);
  const only = values.faults === undefined ? null : values.faults.split(",").filter((name) => name !== "");
  namesFor(shape, only);
  return {
    seed: whole("seed", 0),
    timeMs: seconds * 1000,
    shape,
    clients: whole("clients", 1),
    rate: whole("rate", 1),
    only,
    cli: values.cli,
    evidence: values.evidence,
    isPlanOnly: values.plan,
    isQuiet: values.quiet,
    convergenceMs: whole("converge", 1) * 1000,
    isDemanding: values.demand,
  };
}

async function main(): Promise<number> {
  let asked: Asked;
  try {
    asked = parse(process.argv.slice(2));
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    return 2;
  }
  const schedule = planSchedule(asked);
  if (asked.isPlanOnly) {
    process.stdout.write(serialise(schedule));
    return 0;
  }
  const { log, gateways } = asked.shape;
  say(
    `seed ${asked.seed}, ${log}, ${gateways.length} gateway(s), ${schedule.faults.length} faults planned, schedule ${digestOf(schedule)}`,
  );
  try {
    const report = await run({
      schedule,
      convergenceMs: asked.convergenceMs,
      ...(asked.cli === undefined ? {} : { cli: asked.cli }),
      ...(asked.evidence === undefined ? {} : { evidence: asked.evidence }),
      tell: asked.isQuiet ? () => {} : say,
    });
    print(report, asked);
    const lacking = asked.isDemanding ? missing(report, asked) : [];
    for (const lack of lacking) say(`TOO LITTLE ${lack}`);
    return report.violations.length === 0 && lacking.length === 0 ? 0 : 1;
  } catch (error) {
    say(`the run failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
    say(`repeat it with --seed ${asked.seed}`);
    return 1;
  }
}

const operationsLeast = 20_000;
const faultsLeast = 30;

/** What the run lacks of what is demanded. */
function missing({ acknowledged, reads, faults, faultCounts }: Report, { shape, only }: Asked): string[] {
  const operations = acknowledged + reads;
  return [
    ...(operations < operationsLeast
      ? [`${operations} operations were answered, ${operationsLeast} are demanded`]
      : []),
    ...(faults < faultsLeast ? [`${faults} faults happened, ${faultsLeast} are demanded`] : []),
    ...namesFor(shape, only)
      .filter((name) => !faultCounts.has(name))
      .map((name) => `${name} never happened`),
  ];
}

function print(report: Report, { seed, shape }: Asked): void {
  const { operations, acknowledged, reads, ranMs, judgedMs, violations } = report;
  say(`faults: ${[...report.faultCounts].map(([name, count]) => `${name} ${count}`).join(", ")}`);
  for (const violation of violations.slice(0, 40)) say(`VIOLATION ${violation}`);
  if (violations.length > 40) say(`and ${violations.length - 40} more`);
  const perMinute = Math.round((acknowledged + reads) / (ranMs / 60_000));
  say(
    `${shape.log}, seed ${seed}: ${operations} operations (${acknowledged} writes and ${reads} reads answered, ${perMinute} a minute), ` +
      `${report.faults} faults, lost ${report.lost}, doubled ${report.doubled}, out of order ${report.outOfOrder}, ` +
      `violations ${violations.length}; ran ${(ranMs / 1000).toFixed(1)} s, judged in ${(judgedMs / 1000).toFixed(1)} s`,
  );
  if (violations.length > 0) say(`repeat it with --seed ${seed}`);
}

process.exit(await main());
