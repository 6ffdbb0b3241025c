// Medians over rounds, ratios to a yardstick, and the table a person reads.

export interface Sample {
  readonly perSecond: number;
  readonly p50Us: number;
  readonly p99Us: number;
  /** CPU of the measured process (all its threads) per answered request; null where it is not one process. */
  readonly cpuUsPerRequest: number | null;
}

export interface Row extends Sample {
  readonly system: string;
  readonly connections: number;
  readonly rounds: number;
  /** Smallest and largest throughput of the rounds: how far to trust the median. */
  readonly spread: readonly [number, number];
  /** Median of the rounds' own ratios: both sides of each were measured next to each other. */
  readonly ratio: number | null;
  readonly ratioTo: string | null;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

export function rowOf(
  system: string,
  connections: number,
  samples: readonly Sample[],
  yardstick: { readonly name: string; readonly samples: readonly Sample[] } | null,
): Row {
  const rates = samples.map((s) => s.perSecond);
  const cpu = samples.flatMap((s) => (s.cpuUsPerRequest === null ? [] : [s.cpuUsPerRequest]));
  const ratios =
    yardstick === null ? [] : rates.map((rate, i) => rate / (yardstick.samples[i]?.perSecond ?? Number.NaN));
  return {
    system,
    connections,
    rounds: samples.length,
    perSecond: median(rates),
    spread: [Math.min(...rates), Math.max(...rates)],
    p50Us: median(samples.map((s) => s.p50Us)),
    p99Us: median(samples.map((s) => s.p99Us)),
    cpuUsPerRequest: cpu.length === 0 ? null : median(cpu),
    ratio: ratios.length === 0 ? null : median(ratios),
    ratioTo: yardstick?.name ?? null,
  };
}

export function table(rows: readonly Row[]): string {
  const lines = [
    ["system", "conns", "req/s", "(min … max)", "p50 ms", "p99 ms", "cpu µs/req", "ratio", "to"],
    ...rows.map((row) => [
      row.system,
      String(row.connections),
      row.perSecond.toFixed(0),
      `(${row.spread[0].toFixed(0)} … ${row.spread[1].toFixed(0)})`,
      (row.p50Us / 1000).toFixed(2),
      (row.p99Us / 1000).toFixed(2),
      row.cpuUsPerRequest === null ? "" : row.cpuUsPerRequest.toFixed(0),
      row.ratio === null ? "" : row.ratio.toFixed(2),
      row.ratioTo ?? "",
    ]),
  ];
  const widths = lines[0]?.map((_, column) => Math.max(...lines.map((line) => (line[column] ?? "").length))) ?? [];
  const isText = new Set([0, 8]);
  return lines
    .map((line) =>
      line
        .map((cell, i) => (isText.has(i) ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0)))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
