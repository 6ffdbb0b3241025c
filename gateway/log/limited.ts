// A log as it was when a record was its last: what comes behind is neither seen nor added to. For a replay that ends at a point in time.

import { GatewayError } from "../errors.ts";
import type { Log } from "./log.ts";

export function limitedLog(log: Log, last: number): Log {
  return {
    kind: log.kind,
    epoch: log.epoch,
    recordBytesMax: log.recordBytesMax,
    isTailExact: log.isTailExact,
    append: () =>
      Promise.resolve({
        kind: "refused",
        error: new GatewayError("GW_CONFLICT", `the log is read up to record ${last} and not written`),
      }),
    async *read(from, signal) {
      if (from <= last)
        for await (const record of log.read(from, signal)) {
          yield record;
          if (record.sequence >= last) break;
        }
      // As at a tail: whoever follows waits.
      if (!signal.aborted)
        await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    },
    tail: async () => Math.min(last, await log.tail()),
    info: async () => {
      const info = await log.info();
      return { ...info, last: Math.min(last, info.last) };
    },
    guarantee: () => log.guarantee(),
    truncate: (first) => log.truncate(first),
    isReachable: () => log.isReachable(),
    onReachable: (listener) => log.onReachable(listener),
    close: () => log.close(),
  };
}
