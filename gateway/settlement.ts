// What is done about entries of which it is not known whether a replica executed them. Pure decision; asking is passed in.
//
// First how far the range got: answers that were published, then probes, newest first; a later one found done settles every earlier one
// it conflicts with, because conflicting entries are sent one after the other. Then, for the rest: repeatable ones are sent again where nothing that
// conflicts with them can have run after them; what was saved before them is put back, newest first, and they are sent again; the rule may say that they
// count as applied; what remains is held for a person.

import { isRepeatable } from "../rules/rule.ts";
import type { Rule } from "../rules/rule.ts";
import type { Entry } from "./entry.ts";
import type { Fact } from "./events.ts";
import { doConflict } from "./scheduler.ts";

export interface Unsettled {
  readonly position: number;
  readonly entry: Entry;
  readonly rule: Rule;
}

export type Plan =
  /** It took effect. */
  | { readonly do: "done"; readonly by: Extract<Fact, { type: "settled" }>["by"] }
  /** It certainly did not. */
  | { readonly do: "send" }
  | { readonly do: "send-again" }
  /** What was saved before it is put back first: from then on it certainly did not take effect. */
  | { readonly do: "undo" }
  | { readonly do: "hold" };

export interface Evidence {
  /** Positions whose answers of this replica were published. */
  readonly answered: ReadonlySet<number>;
  /** Null: the rule has no probe, or the replica could not be asked. */
  readonly probe: (unsettled: Unsettled) => Promise<boolean | null>;
  /** True: exactly these were sent and not noted as done. False: any of a range may have been sent, in order. */
  readonly isExact: boolean;
  /** Positions before which the state was saved by the notes that are exact. */
  readonly saved: ReadonlySet<number>;
  /** Entries above the watermark that are noted as done. */
  readonly done: readonly { readonly position: number; readonly orderKeys: readonly string[] }[];
}

/** `range` in log order. */
export async function settle(range: readonly Unsettled[], evidence: Evidence): Promise<ReadonlyMap<number, Plan>> {
  const plans = new Map<number, Plan>();
  // An answer may be known to the scheduler before its done mark is written (a keyed one waits for its candidate): that the next entry of its key
  // was sent at all proves it done.
  if (evidence.isExact) {
    const sent = [...range.map((it) => ({ position: it.position, orderKeys: it.entry.orderKeys })), ...evidence.done];
    for (const it of range)
      if (sent.some((later) => later.position > it.position && doConflict(it.entry.orderKeys, later.orderKeys)))
        plans.set(it.position, { do: "done", by: "later-entry" });
  }
  const settleEarlier = (at: number): void => {
    const later = range[at] as Unsettled;
    for (const earlier of range.slice(0, at))
      if (!plans.has(earlier.position) && doConflict(earlier.entry.orderKeys, later.entry.orderKeys))
        plans.set(earlier.position, { do: "done", by: "later-entry" });
  };
  // What did not run was not answered, so nothing that conflicts with it was sent after it; nor what conflicts with that.
  const settleLater = (at: number): void => {
    const earlier = range[at] as Unsettled;
    for (const [index, later] of range.entries()) {
      if (index <= at || plans.has(later.position)) continue;
      if (!doConflict(earlier.entry.orderKeys, later.entry.orderKeys)) continue;
      plans.set(later.position, { do: "send" });
      settleLater(index);
    }
  };
  for (let at = range.length - 1; at >= 0; at--) {
    const it = range[at] as Unsettled;
    const known = plans.get(it.position);
    // What a later entry proves done proves the same of what came before it.
    if (known?.do === "done" && !evidence.isExact) settleEarlier(at);
    if (known !== undefined) continue;
    if (evidence.answered.has(it.position)) {
      plans.set(it.position, { do: "done", by: "digest" });
      settleEarlier(at);
      continue;
    }
    const isApplied = await evidence.probe(it);
    if (isApplied === null) continue;
    plans.set(it.position, isApplied ? { do: "done", by: "probe" } : { do: "send" });
    if (isApplied) settleEarlier(at);
    else settleLater(at);
  }
  // Newest first: an entry is only repeated when everything after it that may have run is repeated as well.
  for (const it of [...range].reverse())
    if (!plans.has(it.position)) plans.set(it.position, planFor(it, range, plans, evidence));
  return plans;
}

function planFor(
  it: Unsettled,
  range: readonly Unsettled[],
  plans: ReadonlyMap<number, Plan>,
  evidence: Evidence,
): Plan {
  const { isExact, saved } = evidence;
  if (isRepeatable(it.rule, it.entry.method) && mayRepeat(it, range, plans, isExact)) return { do: "send-again" };
  if (isExact && saved.has(it.position) && mayUndo(it, range, plans, evidence)) return { do: "undo" };
  if (it.rule.unknown === "assume-applied") return { do: "done", by: "assumption" };
  return { do: "hold" };
}

/** What was saved before it is void once anything that conflicts with it ran after it, and that was not put back. */
function mayUndo(
  it: Unsettled,
  range: readonly Unsettled[],
  plans: ReadonlyMap<number, Plan>,
  { done }: Evidence,
): boolean {
  const isBehind = (position: number, orderKeys: readonly string[]): boolean =>
    position > it.position && doConflict(it.entry.orderKeys, orderKeys);
  if (done.some((later) => isBehind(later.position, later.orderKeys))) return false;
  return range.every((later) => {
    if (!isBehind(later.position, later.entry.orderKeys)) return true;
    const plan = plans.get(later.position)?.do;
    return plan === "undo" || plan === "send";
  });
}

/**
 * With exact notes nothing in flight conflicts with anything else in flight. Without, everything in the range may have run up to some point: then a run
 * is only repeated as a whole, when every member it conflicts with is repeatable and unconditional.
 */
function mayRepeat(
  it: Unsettled,
  range: readonly Unsettled[],
  plans: ReadonlyMap<number, Plan>,
  isExact: boolean,
): boolean {
  if (isExact) return true;
  return range.every((other) => {
    if (!doConflict(it.entry.orderKeys, other.entry.orderKeys)) return true;
    const plan = plans.get(other.position)?.do;
    if (other.position < it.position && plan === "done") return true;
    if (other.position > it.position && plan === "send") return true;
    if (other.position > it.position && plan !== "send-again") return false;
    return isRepeatable(other.rule, other.entry.method) && !isConditional(other.entry);
  });
}

const isConditional = (entry: Entry): boolean =>
  entry.headers.some((name, index) => index % 2 === 0 && name.toLowerCase().startsWith("if-"));
