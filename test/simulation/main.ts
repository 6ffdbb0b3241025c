// `npm run simulate -- --seed N --seeds COUNT [--gateways n]`: runs seeds one after the other; the first that fails is run again, with its trace printed.

import { parseArgs } from "node:util";
import { simulate } from "./simulate.ts";

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    seeds: { type: "string", default: "1000" },
    gateways: { type: "string" },
    /** Goes on after a failure, and tells seeds only. */
    all: { type: "boolean", default: false },
    trace: { type: "boolean", default: false },
  },
});

const whole = (text: string, name: string): number => {
  const number = Number(text);
  if (!Number.isInteger(number) || number < 0) throw new Error(`--${name} is a whole number, not ${text}`);
  return number;
};
const from = whole(values.seed, "seed");
const count = whole(values.seeds, "seeds");
const gateways = values.gateways === undefined ? null : whole(values.gateways, "gateways");

const began = performance.now();
const cpuBegan = process.cpuUsage();
const faults = new Map<string, number>();
let events = 0;
let operations = 0;
let failed = 0;
let done = 0;
for (let seed = from; seed < from + count; seed++) {
  const verdict = await simulate(seed, { gateways, keepsTrace: values.trace });
  done++;
  events += verdict.events;
  operations += verdict.operations;
  for (const [kind, times] of verdict.faults) faults.set(kind, (faults.get(kind) ?? 0) + times);
  if (values.trace) for (const line of verdict.trace) process.stdout.write(`${line}\n`);
  if (verdict.failures.length === 0) continue;
  failed++;
  process.stderr.write(`seed ${seed} fails:\n  ${verdict.failures.join("\n  ")}\n`);
  if (values.all || values.trace) continue;
  const again = await simulate(seed, { gateways, keepsTrace: true });
  for (const line of again.trace) process.stdout.write(`${line}\n`);
  break;
}
const seconds = (performance.now() - began) / 1000;
const { user, system } = process.cpuUsage(cpuBegan);
const perMinute = Math.round((done * 60) / seconds);
const perCpuMinute = Math.round((done * 60) / ((user + system) / 1e6));
process.stderr.write(
  `${done} seeds, ${failed} failed; ${operations} operations, ${events} events, ${[...faults].map(([kind, times]) => `${times} ${kind}`).join(", ")}; ` +
    `${perMinute} seeds a minute (${perCpuMinute} a minute of processor time)\n`,
);
if (failed > 0) {
  process.stderr.write(
    `again: npm run simulate -- --seed N --seeds 1${gateways === null ? "" : ` --gateways ${gateways}`}\n`,
  );
  process.exitCode = 1;
}
