// Rules and a request become a verdict: the first rule that matches, at a cost that does not grow with their number.
import { isSafe } from "./compile.ts";
import { bodyTruth, headTruth, hostName } from "./condition.ts";
import { readJson } from "./json.ts";
import type { Rule } from "./compile.ts";
import type { Truth } from "./condition.ts";
import type { CanonicalTarget } from "./target.ts";

export { isRepeatable, isSafe } from "./compile.ts";

export interface RequestHead {
  readonly method: string;
  readonly target: Pick<CanonicalTarget, "segments" | "query">;
  /** The Host header, with or without port. */
  readonly host: string;
  /** Raw name, value, name, value. */
  readonly headers: readonly string[];
}

export interface Verdict {
  readonly kind: "verdict";
  readonly rule: Rule;
  /** Decoded segments by the names of the rule's pattern. */
  readonly params: Readonly<Record<string, string>>;
  /** Of an array body whose members were judged one by one: `mixed` when by several rules, of which `rule` is the strictest. */
  readonly batch: "none" | "uniform" | "mixed";
}

// One rule where it stands in the index.
interface Candidate {
  readonly rule: Rule;
  readonly index: number;
  /** Segment numbers of the pattern's parameters. */
  readonly params: readonly (readonly [name: string, segment: number])[];
  readonly hasHeadConditions: boolean;
  readonly needsBody: boolean;
  /** Made beforehand where there are no parameters. */
  readonly verdict: Verdict | null;
}

interface Slot {
  readonly named: Map<string, Candidate[]>;
  /** For methods that no rule here names. */
  readonly others: Candidate[];
}

interface Node {
  /** The earliest rule at or below: no need to look when a better one is known. */
  first: number;
  readonly literals: Map<string, Node>;
  param: Node | null;
  end: Slot | null;
  rest: Slot | null;
}

export class Matcher {
  readonly #anyHost = newNode();
  readonly #byHost = new Map<string, Node>();

  /** The last two rules have to match everything, as those of a RuleSet do. */
  constructor(rules: readonly Rule[]) {
    for (const rule of rules) this.#add(rule);
  }

  match(head: RequestHead): Verdict | NeedsBody {
    const search = new Search(head);
    if (this.#byHost.size > 0) {
      const node = this.#byHost.get(search.host);
      if (node !== undefined) search.visit(node, 0);
    }
    search.visit(this.#anyHost, 0);
    return search.result();
  }

  #add(rule: Rule): void {
    const { host, pattern } = rule.match;
    let node = this.#anyHost;
    if (host !== null && !host.startsWith("*.")) {
      node = this.#byHost.get(host) ?? newNode();
      this.#byHost.set(host, node);
    }
    node.first = Math.min(node.first, rule.index);
    for (const segment of pattern.segments) {
      let next: Node;
      if ("param" in segment) next = node.param ??= newNode();
      else {
        next = node.literals.get(segment.literal) ?? newNode();
        node.literals.set(segment.literal, next);
      }
      next.first = Math.min(next.first, rule.index);
      node = next;
    }
    if (pattern.hasRest) addTo((node.rest ??= newSlot()), rule);
    else addTo((node.end ??= newSlot()), rule);
  }
}

/** The verdict depends on the body, which has to be read first. */
export class NeedsBody {
  readonly kind = "needs-body";
  readonly #head: RequestHead;
  // In rule order. The fallback comes after all of them and needs no body.
  readonly #pending: readonly Candidate[];
  readonly #fallback: Candidate;

  constructor(head: RequestHead, pending: readonly Candidate[], fallback: Candidate) {
    this.#head = head;
    this.#pending = pending.toSorted((a, b) => a.index - b.index);
    this.#fallback = fallback;
  }

  /** Null: it could not be read, or is over the limit; then no condition on it holds. */
  decide(body: Buffer | null): Verdict {
    const json = readJson(body, this.#head.headers);
    if (json === null) return this.#verdict(this.#fallback);
    const { value, isAmbiguous } = json;
    if (!Array.isArray(value) || value.length === 0) return this.#verdict(this.#choose(value, isAmbiguous));
    const chosen = new Set<Candidate>();
    for (const member of value as unknown[]) chosen.add(this.#choose(member, isAmbiguous));
    const method = this.#head.method;
    const [strictest] = [...chosen].sort(
      (a, b) => strictness(b.rule, method) - strictness(a.rule, method) || a.index - b.index,
    );
    return this.#verdict(strictest!, chosen.size === 1 ? "uniform" : "mixed");
  }

  #choose(member: unknown, isAmbiguous: boolean): Candidate {
    const accepts = (c: Candidate): boolean => suffices(bodyTruth(c.rule.match, member, isAmbiguous), c.rule);
    return this.#pending.find(accepts) ?? this.#fallback;
  }

  #verdict(candidate: Candidate, batch: Verdict["batch"] = "none"): Verdict {
    const verdict = verdictOf(candidate, this.#head);
    return batch === "none" ? verdict : Object.freeze({ ...verdict, batch });
  }
}

/** One walk through the index. Keeps the earliest rule found, and the earlier ones that wait for the body. */
class Search {
  readonly #head: RequestHead;
  #best: Candidate | null = null;
  #bestIndex = Infinity;
  #pending: Candidate[] | null = null;
  #host: string | undefined;
  #query: URLSearchParams | undefined;

  constructor(head: RequestHead) {
    this.#head = head;
  }

  get host(): string {
    return (this.#host ??= hostName(this.#head.host));
  }

  get headers(): readonly string[] {
    return this.#head.headers;
  }

  readonly query = (): URLSearchParams => (this.#query ??= new URLSearchParams(this.#head.target.query ?? ""));

  /** Ends with the segments; visits at most the nodes of the index. */
  visit(node: Node, depth: number): void {
    if (node.first > this.#bestIndex) return;
    const segments = this.#head.target.segments;
    if (depth === segments.length) {
      if (node.end !== null) this.#try(node.end);
      return;
    }
    const segment = segments[depth]!;
    const literal = node.literals.get(segment);
    if (literal !== undefined) this.visit(literal, depth + 1);
    if (node.param !== null && segment !== "") this.visit(node.param, depth + 1);
    if (node.rest !== null) this.#try(node.rest);
  }

  #try(slot: Slot): void {
    const candidates = slot.named.get(this.#head.method) ?? slot.others;
    for (const candidate of candidates) {
      if (candidate.index > this.#bestIndex) return;
      if (candidate.hasHeadConditions && !suffices(headTruth(candidate.rule.match, this), candidate.rule)) continue;
      if (candidate.needsBody) {
        (this.#pending ??= []).push(candidate);
        continue;
      }
      this.#best = candidate;
      this.#bestIndex = candidate.index;
      return;
    }
  }

  result(): Verdict | NeedsBody {
    const best = this.#best;
    if (best === null) throw new Error("no rule matches: a rule set ends with rules that match everything");
    const pending = this.#pending?.filter((candidate) => candidate.index < best.index) ?? [];
    return pending.length === 0 ? verdictOf(best, this.#head) : new NeedsBody(this.#head, pending, best);
  }
}

function suffices(truth: Truth, rule: Rule): boolean {
  return truth === "yes" || (truth === "maybe" && rule.mode !== "only-once");
}

/** refuse > replicate > only-once unsafe > only-once safe */
function strictness(rule: Rule, method: string): number {
  if (rule.mode === "refuse") return 3;
  if (rule.mode === "replicate") return 2;
  return isSafe(rule, method) ? 0 : 1;
}

const noParams: Readonly<Record<string, string>> = Object.freeze({});

function verdictOf(candidate: Candidate, head: RequestHead): Verdict {
  if (candidate.verdict !== null) return candidate.verdict;
  const params: Record<string, string> = {};
  for (const [name, segment] of candidate.params) params[name] = head.target.segments[segment]!;
  return Object.freeze({ kind: "verdict", rule: candidate.rule, params: Object.freeze(params), batch: "none" });
}

function newNode(): Node {
  return { first: Infinity, literals: new Map(), param: null, end: null, rest: null };
}

function newSlot(): Slot {
  return { named: new Map(), others: [] };
}

/** Rules come in order, so each list is in order. A rule without methods goes into all of them. */
function addTo(slot: Slot, rule: Rule): void {
  const { match, index } = rule;
  const params = match.pattern.segments.flatMap((s, i) => ("param" in s ? [[s.param, i] as const] : []));
  const candidate: Candidate = {
    rule,
    index,
    params,
    hasHeadConditions: match.host?.startsWith("*.") === true || match.headers.length + match.query.length > 0,
    needsBody: match.body.length > 0,
    verdict: params.length > 0 ? null : Object.freeze({ kind: "verdict", rule, params: noParams, batch: "none" }),
  };
  for (const method of match.methods ?? []) {
    if (!slot.named.has(method)) slot.named.set(method, [...slot.others]);
    slot.named.get(method)!.push(candidate);
  }
  if (match.methods !== null) return;
  slot.others.push(candidate);
  for (const list of slot.named.values()) list.push(candidate);
}
