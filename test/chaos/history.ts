// What the clients lived and what the log has, put together: the history that is judged. Outcomes that no client knows are looked up in the log.

import type { LogRow } from "../../gateway/status.ts";
import { fateOf } from "../helpers/clients.ts";
import type { Lived } from "./client.ts";
import type { Operation } from "./operation.ts";

/** An entry of the log, by what its client calls it. */
export interface LogEntry {
  readonly id: string;
  readonly position: number;
  readonly fate: LogRow["fate"];
}

/** What took effect, or was read. Everything else has left no trace, which the ledgers see to. */
export function historyOf(lived: readonly Lived[], log: readonly LogEntry[]): Operation[] {
  const applied = new Map<string, number>();
  for (const { id, position, fate } of log) if (fate === "applied" && !applied.has(id)) applied.set(id, position);
  const history: Operation[] = [];
  for (const one of lived) {
    const { planned, expected, seen, invokedAt, sent } = one;
    const isRead = planned.verb === "get";
    if (isRead && one.result === null) continue;
    const isTold = isRead || fateOf(sent) === "executed";
    const position = isRead ? null : (applied.get(planned.id) ?? null);
    if (!isTold && position === null) continue;
    history.push({
      id: planned.id,
      client: planned.client,
      key: planned.key,
      verb: planned.verb,
      level: planned.level,
      value: planned.value,
      expected,
      invokedAt,
      respondedAt: isTold ? one.respondedAt : Infinity,
      result: isTold ? one.result : null,
      position,
      seen,
    });
  }
  return history;
}

export function logEntriesOf(rows: readonly LogRow[]): LogEntry[] {
  return rows
    .filter((row) => row.kind === "entry")
    .map(({ target, position, fate }) => ({
      id: new URL(target ?? "", "http://x").searchParams.get("id") ?? "",
      position,
      fate,
    }));
}
