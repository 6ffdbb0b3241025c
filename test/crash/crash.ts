// kill -9 at every step of capture, publish, truncate, restore and replay: generates the points, prints each with what came of it. Exit code 1 when anything
// that must hold did not. `npm run test:crash -- --scenario embedded --step cursor.save --at-once 2`

import { parseArgs } from "node:util";
import { knownSteps, onePerStep } from "./points.ts";
import { runAll } from "./run.ts";
import { embedded, onChain, toPosition, withLog, withoutLog } from "./scenarios.ts";
import type { Result } from "./run.ts";

const { values } = parseArgs({
  options: {
    scenario: { type: "string", multiple: true },
    step: { type: "string", multiple: true },
    /** One a step instead of its first, middle and last occurrence. */
    quick: { type: "boolean", default: false },
    "at-once": { type: "string", default: "2" },
  },
});
const scenarios = { embedded, recover: withLog, "log-lost": withoutLog, to: toPosition, chain: onChain };
const chosen = Object.entries(scenarios).filter(([name]) => values.scenario?.includes(name) ?? true);
const pointsMin = 25;

const tell = ({ scenario, point, tookMs, faults }: Result): void => {
  const what = `${scenario.padEnd(18)}${`${point.step}@${point.occurrence}`.padEnd(24)}`;
  process.stdout.write(`${what}${faults.length === 0 ? "ok" : "FAILED"}  ${(tookMs / 1000).toFixed(1)} s\n`);
  for (const fault of faults) process.stdout.write(`    ${fault.replaceAll("\n", "\n    ")}\n`);
};

const begunMs = performance.now();
const results: Result[] = [];
for (const [, open] of chosen) {
  const scenario = await open();
  try {
    const all = (await scenario.points()).filter(({ step }) => values.step?.includes(step) ?? true);
    const points = values.quick ? onePerStep(all) : all;
    results.push(...(await runAll(scenario, points, Number(values["at-once"]), tell)));
  } finally {
    await scenario.close();
  }
}
const failed = results.filter(({ faults }) => faults.length > 0);
const met = new Set(results.map(({ point }) => point.step));
const unmet = knownSteps().filter((step) => !met.has(step));
process.stdout.write(
  `\n${results.length} points at ${met.size} steps in ${Math.round((performance.now() - begunMs) / 1000)} s: ${failed.length} failed\n`,
);
if (unmet.length > 0) process.stdout.write(`no scenario of this run passes: ${unmet.join(", ")}\n`);
const isAll = values.scenario === undefined && values.step === undefined && !values.quick;
process.exitCode = failed.length > 0 || (isAll && results.length < pointsMin) ? 1 : 0;
