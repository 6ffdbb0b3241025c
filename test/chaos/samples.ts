// Histories for the checkers' tests, in a notation that fits on a line: `who key verb value = answer @ from-to #position`.

import { Random } from "./random.ts";
import { createModel, kindOf } from "./operation.ts";
import type { Operation, Result, State, Value, Verb } from "./operation.ts";

const form =
  /^(\w+) (\w+) (\w+)(?: (\S+))?(?: = (.+?))? @ ([\d.]+)-([\d.]+|never)(?: #(\d+))?(?: (session|any)(?: (\d+))?)?$/;

/**
 * `a r1 put x @ 1-2 #1` · `b r1 get = x @ 2-3` · `b r1 get = nothing @ 2-3` · `c r1 cas x>y = yes @ 3-4 #2` · `c r1 cas x>y = z @ 3-4 #2` (z stood there)
 * `a l1 append x = 1 @ 1-2 #1` · `b l1 get = x,y @ 1-2` · `a c1 incr 2 = 2 @ 1-2 #1` · without an answer: it is not known · `@ 1-never`
 */
export function operationsOf(text: string): Operation[] {
  return text
    .trim()
    .split("\n")
    .map((line, n) => {
      const match = form.exec(line.trim());
      if (match === null) throw new Error(`not an operation: ${line}`);
      const [
        ,
        who = "",
        key = "",
        verb = "",
        value = "",
        answer,
        from,
        to,
        position,
        level = "linearizable",
        seen = "0",
      ] = match;
      const [expected, written] = verb === "cas" ? value.split(">") : [null, value];
      return {
        id: `${who}${n}`,
        client: 0,
        key,
        verb: verb as Verb,
        level: level as Operation["level"],
        value: written ?? "",
        expected: expected === "nothing" ? null : (expected ?? null),
        invokedAt: Number(from),
        respondedAt: to === "never" ? Infinity : Number(to),
        result: resultOf(verb as Verb, key, answer, to === "never"),
        position: position === undefined ? null : Number(position),
        seen: Number(seen),
      };
    });
}

function resultOf(verb: Verb, key: string, answer: string | undefined, isUnanswered: boolean): Result | null {
  if (isUnanswered) return null;
  if (verb === "put" || verb === "delete") return { verb };
  if (answer === undefined) return null;
  switch (verb) {
    case "get":
      return { verb, value: valueOf(key, answer) };
    case "cas":
      return { verb, isSwapped: answer === "yes", actual: answer === "yes" || answer === "nothing" ? null : answer };
    case "append":
      return { verb, length: Number(answer) };
    case "incr":
      return { verb, total: Number(answer) };
    default:
      return verb satisfies never;
  }
}

function valueOf(key: string, text: string): Value {
  if (kindOf(key) === "counter") return Number(text);
  if (kindOf(key) === "list") return text === "nothing" ? [] : text.split(",");
  return text === "nothing" ? null : text;
}

/**
 * A history that is true by the way it is made: each operation takes effect at one moment between its call and its answer.
 * Positions are those moments' order. Some writes are never answered.
 */
export function trueHistory(seed: string, key: string, count: number, clients = 5): Operation[] {
  const random = new Random(seed);
  const planned: { operation: Operation; effectAt: number }[] = [];
  const freeAt = Array.from({ length: clients }, () => 0);
  for (let n = 0; n < count; n += 1) {
    const client = random.below(clients);
    const invokedAt = (freeAt[client] as number) + random.next() * 3;
    const effectAt = invokedAt + 0.01 + random.next() * 5;
    const respondedAt = effectAt + 0.01 + random.next() * 5;
    freeAt[client] = respondedAt + 0.01;
    const verb = random.pick<Verb>(verbs[kindOf(key)]);
    const isUnanswered = verb !== "get" && random.chance(0.05);
    planned.push({
      effectAt,
      operation: {
        id: `${client}-${n}`,
        client,
        key,
        verb,
        level: "linearizable",
        value: verb === "incr" ? String(random.between(1, 3)) : `v${n}`,
        expected: null,
        invokedAt,
        respondedAt: isUnanswered ? Infinity : respondedAt,
        result: null,
        position: null,
        seen: 0,
      },
    });
  }
  planned.sort((a, b) => a.effectAt - b.effectAt);
  const model = createModel(kindOf(key));
  let state = model.initial;
  return planned.map(({ operation }, position) => {
    const current = model.show(state);
    const expected = operation.verb === "cas" && random.chance(0.6) && typeof current === "string" ? current : null;
    const asked: Operation = { ...operation, expected };
    state = model.step(state, asked) as State;
    const result = operation.respondedAt === Infinity ? null : answerOf(asked, current, model.show(state));
    return { ...asked, result, position: operation.verb === "get" ? null : position + 1 };
  });
}

const verbs = {
  register: ["get", "get", "put", "cas", "delete"],
  list: ["get", "append"],
  counter: ["get", "incr"],
} as const;

function answerOf({ verb, expected }: Operation, before: Value, after: Value): Result {
  switch (verb) {
    case "get":
      return { verb, value: before };
    case "put":
    case "delete":
      return { verb };
    case "cas": {
      const isSwapped = before === expected;
      return { verb, isSwapped, actual: isSwapped ? null : (before as string | null) };
    }
    case "append":
      return { verb, length: (after as readonly string[]).length };
    case "incr":
      return { verb, total: after as number };
    default:
      return verb satisfies never;
  }
}
