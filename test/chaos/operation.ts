// What clients do to one key, what they saw of it, and how a key behaves when nothing goes wrong: the reference that histories are held against.

export type Verb = "get" | "put" | "cas" | "delete" | "append" | "incr";
export type Level = "linearizable" | "session" | "any";

/** A register (null: absent), a list that is appended to (absent: empty), a counter (absent: 0). */
export type KeyKind = "register" | "list" | "counter";
export type Value = string | null | readonly string[] | number;

/** What an answer told of the key. */
export type Result =
  | { readonly verb: "get"; readonly value: Value }
  | { readonly verb: "put" | "delete" }
  /** `actual`: what stood there instead. */
  | { readonly verb: "cas"; readonly isSwapped: boolean; readonly actual: string | null }
  | { readonly verb: "append"; readonly length: number }
  | { readonly verb: "incr"; readonly total: number };

/** One operation that has taken effect, or that answered. Those that did neither are no part of a history. */
export interface Operation {
  readonly id: string;
  readonly client: number;
  readonly key: string;
  readonly verb: Verb;
  /** Of reads. */
  readonly level: Level;
  /** What is written; of counters: what is added, in decimal. */
  readonly value: string;
  /** Of `cas`. */
  readonly expected: string | null;
  readonly invokedAt: number;
  /** Infinity: nobody was told that it took effect, but it did. */
  readonly respondedAt: number;
  /** Null: it took effect, and what it would have answered is not known. */
  readonly result: Result | null;
  /** Of writes: where the log has it. */
  readonly position: number | null;
  /** Of session reads: what the client had seen when it asked. */
  readonly seen: number;
}

/** The first letter of a key says what it is; counters of total order (`t`) conflict with everything. */
export function kindOf(key: string): KeyKind {
  const kind = ({ r: "register", l: "list", c: "counter", t: "counter" } as const)[key.charAt(0)];
  if (kind === undefined) throw new Error(`${key} is the key of nothing`);
  return kind;
}

/** The sequential behaviour of one key. States are primitives, so that they can be compared and kept in sets. */
export interface Model {
  readonly initial: State;
  /** The state after the operation; undefined: in this state it would have answered otherwise. */
  step(state: State, operation: Operation): State | undefined;
  /** As a read shows it. */
  show(state: State): Value;
}

export type State = string | number | null;

export function createModel(kind: KeyKind): Model {
  switch (kind) {
    case "register":
      return { initial: null, step: stepRegister, show: (state) => state };
    case "counter":
      return { initial: 0, step: stepCounter, show: (state) => state };
    case "list":
      return new Lists();
    default:
      return kind satisfies never;
  }
}

function stepRegister(state: State, { verb, value, expected, result }: Operation): State | undefined {
  switch (verb) {
    case "get":
      return result?.verb !== "get" || result.value === state ? state : undefined;
    case "put":
      return value;
    case "delete":
      return null;
    case "cas": {
      const isSwapped = expected === state;
      if (result?.verb === "cas") {
        if (result.isSwapped !== isSwapped) return undefined;
        if (!isSwapped && result.actual !== state) return undefined;
      }
      return isSwapped ? value : state;
    }
    default:
      throw new Error(`a register does not ${verb}`);
  }
}

function stepCounter(state: State, { verb, value, result }: Operation): State | undefined {
  if (verb === "get") return result?.verb !== "get" || result.value === state ? state : undefined;
  if (verb !== "incr") throw new Error(`a counter does not ${verb}`);
  const total = Number(state) + Number(value);
  return result?.verb === "incr" && result.total !== total ? undefined : total;
}

/** Each list that came about is a number: appending and comparing cost the same at any length. */
class Lists implements Model {
  readonly initial = 0;
  readonly #parents: number[] = [0];
  readonly #values: string[] = [""];
  readonly #lengths: number[] = [0];
  readonly #children = new Map<string, number>();
  /** What reads saw, as numbers. */
  readonly #seen = new Map<Result, number>();

  step(state: State, operation: Operation): State | undefined {
    const { verb, value, result } = operation;
    const list = Number(state);
    if (verb === "get") return result?.verb !== "get" || this.#numberOf(result) === list ? list : undefined;
    if (verb !== "append") throw new Error(`a list does not ${verb}`);
    const longer = this.#append(list, value);
    return result?.verb === "append" && result.length !== this.#lengths[longer] ? undefined : longer;
  }

  show(state: State): readonly string[] {
    const values: string[] = [];
    for (let list = Number(state); list !== 0; list = this.#parents[list] ?? 0) values.push(this.#values[list] ?? "");
    return values.reverse();
  }

  #append(list: number, value: string): number {
    const name = `${list} ${value}`;
    const known = this.#children.get(name);
    if (known !== undefined) return known;
    const longer = this.#parents.length;
    this.#parents.push(list);
    this.#values.push(value);
    this.#lengths.push((this.#lengths[list] ?? 0) + 1);
    this.#children.set(name, longer);
    return longer;
  }

  #numberOf(result: Extract<Result, { verb: "get" }>): number {
    const known = this.#seen.get(result);
    if (known !== undefined) return known;
    let list = 0;
    for (const value of Array.isArray(result.value) ? (result.value as readonly string[]) : [])
      list = this.#append(list, value);
    this.#seen.set(result, list);
    return list;
  }
}

/** For people. */
export function describeOperation(operation: Operation): string {
  const { id, key, verb, value, expected, result, invokedAt, respondedAt } = operation;
  const what =
    verb === "cas" ? `cas ${expected} → ${value}` : verb === "get" || verb === "delete" ? verb : `${verb} ${value}`;
  const saw = result === null ? "answer unknown" : JSON.stringify({ ...result, verb: undefined });
  const ended = respondedAt === Infinity ? "never answered" : respondedAt.toFixed(1);
  return `${id}: ${key} ${what} = ${saw} [${invokedAt.toFixed(1)}, ${ended}]`;
}
