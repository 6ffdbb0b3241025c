// What is done to a copy before its state is read: it is ended where it can be, it is asked to come to rest, or (`none`, written out) nothing.

import type { Visited } from "../gateway/applier.ts";

export type Quiesce =
  | { readonly kind: "stop" | "none" }
  | { readonly kind: "request"; readonly method: string; readonly target: string };

/** Asks, where there is something to ask. Null: it agreed; else what was asked and answered. */
export async function askToRest(visited: Visited, quiesce: Quiesce): Promise<string | null> {
  if (quiesce.kind !== "request") return null;
  const { method, target } = quiesce;
  const answer = await visited.ask(method, target);
  if (answer !== null && answer.status >= 200 && answer.status <= 299) return null;
  return `${method} ${target} → ${answer?.status ?? "no answer"}`;
}
