// Durations and sizes as people write them, and as the program counts them: milliseconds and bytes.
import { z } from "zod";

const durationUnits: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const sizeUnits: Readonly<Record<string, number>> = {
  "": 1,
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
};
const durationPattern = /^(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h|d)$|^0$/;
const sizePattern = /^(\d{1,16}(?:\.\d{1,6})?)(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?$/;
const durationText = 'a duration such as "250ms", "5s", "10m", "1h" or "7d"';
const sizeText = 'a size such as "64KiB", "1MiB", "10GiB" or plain bytes';

/** "250ms", "5s", "10m", "1h", "7d" or "0" → milliseconds. */
export const durationMs = z
  .string({ error: (issue) => `expected ${durationText}, got ${JSON.stringify(issue.input)}` })
  .regex(durationPattern, { error: (issue) => `${JSON.stringify(issue.input)} is not ${durationText}` })
  .transform((text) => {
    const [, number = "0", unit = "ms"] = durationPattern.exec(text) ?? [];
    return Math.round(Number(number) * durationUnits[unit]!);
  });

/** "64KiB", "1MiB", "10GiB", "1.5MB", "4096" or 4096 → bytes. */
export const sizeBytes = z
  .union([z.string().regex(sizePattern), z.int().min(0)], {
    error: (issue) => `${JSON.stringify(issue.input)} is not ${sizeText}`,
  })
  .transform((size, context) => {
    if (typeof size === "number") return size;
    const [, number = "0", unit = ""] = sizePattern.exec(size) ?? [];
    const bytes = Math.round(Number(number) * sizeUnits[unit]!);
    if (Number.isSafeInteger(bytes)) return bytes;
    context.addIssue({ code: "custom", message: `${JSON.stringify(size)} is beyond what can be counted` });
    return z.NEVER;
  });

/** The shortest text that `durationMs` reads as the same number. */
export function formatDuration(ms: number): string {
  for (const unit of ["d", "h", "m", "s"] as const) {
    const factor = durationUnits[unit]!;
    if (ms !== 0 && ms % factor === 0) return `${ms / factor}${unit}`;
  }
  return `${ms}ms`;
}
