// Putting back what an entry of unknown outcome may have changed: what is kept of `before`, and how often the undo is sent until it is certain.

import type { Undo } from "../rules/undo.ts";
import { isPutBack } from "../rules/undo.ts";
import type { Execution } from "./backend/backend.ts";
import { doConflict } from "./scheduler.ts";
import type { Plan, Unsettled } from "./settlement.ts";

/** Kept of one replica's entries in flight, at most: what is beyond it is sent without an undo. */
export const savedBytesMax = 16 * 1024 * 1024;
const refusalsMax = 5;

/** Everything but the credentials, which are the entry's own. */
export function encodeUndo({ method, target, headers, body }: Undo): Buffer {
  const head = Buffer.from(JSON.stringify({ method, target, headers }), "utf8");
  const bytes = Buffer.allocUnsafe(4 + head.length + body.length);
  bytes.writeUInt32BE(head.length, 0);
  head.copy(bytes, 4);
  body.copy(bytes, 4 + head.length);
  return bytes;
}

export function decodeUndo(bytes: Buffer): Undo {
  const bodyAt = 4 + bytes.readUInt32BE(0);
  const head = JSON.parse(bytes.toString("utf8", 4, bodyAt)) as Omit<Undo, "body">;
  return { ...head, body: bytes.subarray(bodyAt) };
}

/**
 * True: it is put back. False: the backend refuses it. `pause` is asked before it is sent again: `unknown` when the last one may still run, and then
 * has to outwait it. It ends this by rejecting.
 */
export async function putBack(
  undo: Undo,
  send: (undo: Undo) => Promise<Execution>,
  pause: (why: "refused" | "away" | "unknown", attempt: number) => Promise<void>,
): Promise<boolean> {
  let refusals = 0;
  for (let attempt = 0; ; attempt++) {
    const execution = await send(undo);
    const status =
      execution.kind === "done"
        ? execution.answer.status
        : execution.kind === "broken" && execution.isTooLarge
          ? execution.status
          : null;
    if (status !== null) {
      if (isPutBack(undo, status)) return true;
      const isForNow = status >= 500 || status === 429;
      if (!isForNow || ++refusals >= refusalsMax) return false;
      await pause("refused", attempt);
    } else await pause(execution.kind === "not-started" ? "away" : "unknown", attempt);
  }
}

/** Newest first. What cannot be put back is held, and with it everything before it that it conflicts with. */
export async function carryOutUndos<U extends Unsettled>(
  range: readonly U[],
  plans: ReadonlyMap<number, Plan>,
  putBackOne: (it: U) => Promise<boolean>,
): Promise<ReadonlyMap<number, Plan>> {
  const carriedOut = new Map(plans);
  const failed: U[] = [];
  for (const it of [...range].reverse()) {
    if (plans.get(it.position)?.do !== "undo") continue;
    const isInTheWay = failed.some((later) => doConflict(later.entry.orderKeys, it.entry.orderKeys));
    if (!isInTheWay && (await putBackOne(it))) continue;
    failed.push(it);
    carriedOut.set(it.position, { do: "hold" });
  }
  return carriedOut;
}
