// One kill: until the step was really met, and with its time.

import type { Point } from "./points.ts";
import type { Scenario } from "./scenarios.ts";

export interface Result {
  readonly scenario: string;
  readonly point: Point;
  readonly tookMs: number;
  readonly faults: readonly string[];
}

const triesMax = 3;

/** What runs side by side passes its steps more or less often: an occurrence that does not come this time is looked for earlier. */
export async function runPoint(scenario: Scenario, point: Point): Promise<Result> {
  const begunMs = performance.now();
  let { occurrence } = point;
  for (let tries = 1; ; tries += 1) {
    const at = { step: point.step, occurrence };
    const faults = await scenario.run(at).catch((error: unknown) => [String(error)]);
    const isLast = tries === triesMax;
    if (faults !== null || isLast)
      return {
        scenario: scenario.name,
        point: at,
        tookMs: performance.now() - begunMs,
        faults: faults ?? [`${at.step} was not passed ${occurrence} times in ${triesMax} runs`],
      };
    occurrence = Math.max(1, Math.floor(occurrence * 0.8));
  }
}

/** All of them, so many at a time; tells each result when it is there. */
export async function runAll(
  scenario: Scenario,
  points: readonly Point[],
  atOnce: number,
  tell: (result: Result) => void,
): Promise<readonly Result[]> {
  const left = [...points];
  const results: Result[] = [];
  const work = async (): Promise<void> => {
    // Ends when no point is left.
    for (let point = left.shift(); point !== undefined; point = left.shift()) {
      const result = await runPoint(scenario, point);
      results.push(result);
      tell(result);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, work));
  return results;
}
