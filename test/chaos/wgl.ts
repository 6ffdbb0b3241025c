// Is a history of one key linearizable? The search of Wing and Gong, with Lowe's memory of what was tried: it looks for an order of the
// operations in which each took effect between its call and its answer and answered as the key alone would have. It knows nothing of the log.

import { createModel, describeOperation, kindOf } from "./operation.ts";
import type { Operation, State } from "./operation.ts";

export interface Verdict {
  /** unknown: the time was over; whoever asks has to take it for a failure. */
  readonly verdict: "linearizable" | "broken" | "unknown";
  /** For people, where it is not linearizable. */
  readonly detail: string;
}

export interface SearchOptions {
  readonly budgetMs?: number;
  readonly now?: () => number;
}

const defaultBudgetMs = 60_000;

/** Keys are independent: a history is linearizable when that of each key is. Session and `any` reads promise less and are left out. */
export function checkEachKey(operations: readonly Operation[], options: SearchOptions = {}): string[] {
  const faults: string[] = [];
  for (const [key, own] of byKey(operations)) {
    const { verdict, detail } = checkKey(own, options);
    if (verdict !== "linearizable") faults.push(`${key}: ${verdict}: ${detail}`);
  }
  return faults;
}

export function byKey(operations: readonly Operation[]): ReadonlyMap<string, readonly Operation[]> {
  const keys = new Map<string, Operation[]>();
  for (const operation of operations) {
    if (operation.verb === "get" && operation.level !== "linearizable") continue;
    const own = keys.get(operation.key);
    if (own) own.push(operation);
    else keys.set(operation.key, [operation]);
  }
  return keys;
}

/** Operations of one key. One that took effect and was never answered may have done so at any time after its call. */
export function checkKey(operations: readonly Operation[], options: SearchOptions = {}): Verdict {
  const first = operations[0];
  if (first === undefined) return { verdict: "linearizable", detail: "" };
  return new Search(operations, options).run(first.key);
}

/** A call or an answer, in a list from which operations are taken out when they have found their place. */
interface Node {
  readonly operation: number;
  /** Of calls: the answer. Of answers: null. */
  readonly answer: Node | null;
  previous: Node | null;
  next: Node | null;
}

const stepsBetweenLooks = 1024;

class Search {
  readonly #operations: readonly Operation[];
  readonly #budgetMs: number;
  readonly #now: () => number;
  readonly #head: Node;
  /** Which operations have their place, a bit each. */
  readonly #placed: Uint16Array;
  /** What was tried: with these placed, in this state, the rest finds none. */
  readonly #tried = new Set<string>();
  /** The furthest that any order got, for the message. */
  #most = -1;
  #stuckAt: Operation | null = null;
  #mostState: State = null;

  constructor(operations: readonly Operation[], options: SearchOptions) {
    this.#operations = operations;
    this.#budgetMs = options.budgetMs ?? defaultBudgetMs;
    this.#now = options.now ?? (() => performance.now());
    this.#placed = new Uint16Array(Math.ceil(operations.length / 16));
    this.#head = listOf(operations);
  }

  run(key: string): Verdict {
    const model = createModel(kindOf(key));
    const endAt = this.#now() + this.#budgetMs;
    const trail: { readonly call: Node; readonly state: State }[] = [];
    let state = model.initial;
    let node = this.#head.next;
    // Ends when all have their place, when every order was tried, or with the time.
    for (let steps = 1; this.#head.next !== null; steps += 1) {
      if (steps % stepsBetweenLooks === 0 && this.#now() > endAt)
        return {
          verdict: "unknown",
          detail: `not decided within ${this.#budgetMs} ms, ${this.#tried.size} orders tried`,
        };
      if (node !== null && node.answer !== null) {
        const operation = this.#operations[node.operation] as Operation;
        const after = model.step(state, operation);
        if (after !== undefined && this.#place(node.operation, after)) {
          trail.push({ call: node, state });
          state = after;
          takeOut(node);
          node = this.#head.next;
        } else node = node.next;
        continue;
      }
      // An answer of an operation that has no place yet: something before it must have been placed wrongly.
      if (trail.length > this.#most) {
        this.#most = trail.length;
        this.#stuckAt = node === null ? null : (this.#operations[node.operation] ?? null);
        this.#mostState = state;
      }
      const last = trail.pop();
      if (last === undefined) return { verdict: "broken", detail: this.#explain(model.show(this.#mostState)) };
      state = last.state;
      this.#placed[last.call.operation >> 4]! &= ~(1 << (last.call.operation & 15));
      putBack(last.call);
      node = last.call.next;
    }
    return { verdict: "linearizable", detail: "" };
  }

  /** False: it was tried before. */
  #place(operation: number, after: State): boolean {
    this.#placed[operation >> 4]! |= 1 << (operation & 15);
    const name = `${String.fromCharCode(...this.#placed)}${typeof after}${after}`;
    if (!this.#tried.has(name)) {
      this.#tried.add(name);
      return true;
    }
    this.#placed[operation >> 4]! &= ~(1 << (operation & 15));
    return false;
  }

  #explain(state: unknown): string {
    const stuck = this.#stuckAt;
    if (stuck === null) return "no order explains it";
    const around = this.#operations
      .filter((it) => it.invokedAt < stuck.respondedAt && it.respondedAt > stuck.invokedAt && it !== stuck)
      .map(describeOperation);
    const shown = JSON.stringify(state).slice(-200);
    return (
      `no order explains ${describeOperation(stuck)}; the best one explains ${this.#most} of ${this.#operations.length} ` +
      `and has ${shown} then; at the same time: ${around.slice(0, 20).join("; ") || "nothing"}`
    );
  }
}

/** In time's order; at one moment calls come first, so that both count as being there at once. */
function listOf(operations: readonly Operation[]): Node {
  const nodes: { readonly at: number; readonly isAnswer: boolean; readonly node: Node }[] = [];
  for (const [operation, { invokedAt, respondedAt }] of operations.entries()) {
    const answer: Node = { operation, answer: null, previous: null, next: null };
    nodes.push({ at: invokedAt, isAnswer: false, node: { operation, answer, previous: null, next: null } });
    nodes.push({ at: respondedAt, isAnswer: true, node: answer });
  }
  nodes.sort((a, b) => (a.at === b.at ? Number(a.isAnswer) - Number(b.isAnswer) : a.at < b.at ? -1 : 1));
  const head: Node = { operation: -1, answer: null, previous: null, next: null };
  let last = head;
  for (const { node } of nodes) {
    node.previous = last;
    last.next = node;
    last = node;
  }
  return head;
}

function takeOut(call: Node): void {
  for (const node of [call, call.answer as Node]) {
    (node.previous as Node).next = node.next;
    if (node.next !== null) node.next.previous = node.previous;
  }
}

/** In the opposite order, so that both find their neighbours as they left them. */
function putBack(call: Node): void {
  for (const node of [call.answer as Node, call]) {
    (node.previous as Node).next = node;
    if (node.next !== null) node.next.previous = node;
  }
}
