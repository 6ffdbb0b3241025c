// Where a kill can meet the gateway: every step that a scenario passes, at its first, middle and last occurrence.

import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export interface Point {
  readonly step: string;
  /** From 1, over all processes of the life. */
  readonly occurrence: number;
}

/** Of GATEWAY_CRASH_AT. */
export const crashAt = ({ step, occurrence }: Point): string => `${step}@${occurrence}`;

export function pointsOf(steps: ReadonlyMap<string, number>): readonly Point[] {
  return [...steps].flatMap(([step, count]) =>
    [...new Set([1, Math.ceil(count / 2), count])].map((occurrence) => ({ step, occurrence })),
  );
}

/** In the middle of what the scenario does. */
export function onePerStep(points: readonly Point[]): readonly Point[] {
  const byStep = new Map<string, Point[]>();
  for (const point of points) byStep.set(point.step, [...(byStep.get(point.step) ?? []), point]);
  return [...byStep.values()].flatMap((some) => some.slice(Math.floor(some.length / 2)).slice(0, 1));
}

/** Every step that stands in the code, so that one which no scenario passes is seen. */
export function knownSteps(): readonly string[] {
  const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
  const names = ["gateway", "recorder"].flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".ts"))
      .flatMap((name) => [...readFileSync(join(root, folder, name), "utf8").matchAll(/\bstep\("([a-z]+\.[a-z]+)"\)/g)])
      .map(([, name = ""]) => name),
  );
  return [...new Set(names)].toSorted();
}
