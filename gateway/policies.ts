// Rules by the digest that a record names: an entry is treated everywhere under the rules it was appended under.

import { readBody } from "../rules/json.ts";
import { Matcher } from "../rules/match.ts";
import type { Rule, RuleSet } from "../rules/rule.ts";
import { expandReplaySet, rulesFromCanonicalText } from "../rules/rule.ts";
import { canonicalTarget } from "../rules/target.ts";
import type { TemplateContext } from "../rules/template.ts";
import { headerValues } from "../rules/template.ts";
import type { Entry } from "./entry.ts";
import { GatewayError } from "./errors.ts";
import type { Policy } from "./state/state.ts";
import { policyDigest, policyText } from "./state/state.ts";

export class Policies {
  /** Digest and text of what new entries are appended under. */
  readonly digest: string;
  readonly text: string;
  readonly own: RuleSet;
  readonly policy: Policy;
  readonly #sets = new Map<string, RuleSet>();
  readonly #lookUp: (digest: string) => Policy | null;
  readonly #env: Readonly<Record<string, string | undefined>>;
  readonly #replaySets = new WeakMap<Rule, Readonly<Record<string, string>>>();
  #matcher: Matcher | null = null;

  constructor(
    own: RuleSet,
    keys: { readonly retentionMs: number; readonly window: number },
    env: Readonly<Record<string, string | undefined>>,
    lookUp: (digest: string) => Policy | null,
  ) {
    this.own = own;
    this.policy = { rules: own.canonicalText, ...keys };
    this.text = policyText(this.policy);
    this.digest = policyDigest(this.text);
    this.#sets.set(this.digest, own);
    this.#env = env;
    this.#lookUp = lookUp;
  }

  rule(digest: string, index: number): Rule {
    const rule = this.#rules(digest).rules[index];
    if (rule === undefined)
      throw new GatewayError("GW_LOG_CORRUPT", `the rules ${digest.slice(0, 16)} have no rule ${index}`);
    return rule;
  }

  /**
   * Header fields an old entry is replayed with, variables expanded here and now. What would decide on it today says which: credentials grow old after
   * the entry was appended, and a rule that is mended then has to help. Where that gives none it is the rule the entry was appended under.
   */
  replaySet(rule: Rule, entry: Entry): Readonly<Record<string, string>> {
    if (this.own.rules[rule.index] === rule) return this.#expanded(rule);
    const decidingNow = this.#decidingNow(entry);
    const set = decidingNow === null ? none : this.#expanded(decidingNow);
    if (Object.keys(set).length > 0) return set;
    try {
      return this.#expanded(rule);
    } catch {
      // Its variables went with it: the backend says whether it takes what the client sent.
      return none;
    }
  }

  #decidingNow({ method, target, headers, body }: Entry): Rule | null {
    const canonical = canonicalTarget(target, { encodedSlash: "keep" });
    if (!canonical.ok) return null;
    this.#matcher ??= new Matcher(this.own.rules);
    const [host = ""] = headerValues(headers, "host");
    const found = this.#matcher.match({ method, target: canonical, host, headers });
    const verdict = found.kind === "verdict" ? found : found.decide(Buffer.isBuffer(body) ? body : null);
    return verdict.rule;
  }

  #expanded(rule: Rule): Readonly<Record<string, string>> {
    const known = this.#replaySets.get(rule);
    if (known !== undefined) return known;
    const set = expandReplaySet(rule, this.#env);
    this.#replaySets.set(rule, set);
    return set;
  }

  #rules(digest: string): RuleSet {
    const known = this.#sets.get(digest);
    if (known !== undefined) return known;
    const policy = this.#lookUp(digest);
    if (policy === null)
      throw new GatewayError("GW_LOG_CORRUPT", `the log has no text for the rules ${digest.slice(0, 16)}`);
    const set = rulesFromCanonicalText(policy.rules);
    this.#sets.set(digest, set);
    return set;
  }
}

const none: Readonly<Record<string, string>> = {};

/** What templates of a rule read from a logged entry. */
export function contextOf(rule: Rule, entry: Entry): TemplateContext {
  const [path, search] = split(entry.target);
  const segments = path.slice(1).split("/");
  const params: Record<string, string> = {};
  rule.match.pattern.segments.forEach((segment, at) => {
    if ("param" in segment) params[segment.param] = decode(segments[at] ?? "");
  });
  let read: { readonly value: unknown } | null = null;
  return {
    params,
    query: () => new URLSearchParams(search ?? ""),
    headers: entry.headers,
    body: () =>
      (read ??= { value: Buffer.isBuffer(entry.body) ? readBody(entry.body, entry.headers) : undefined }).value,
  };
}

function split(target: string): [string, string | null] {
  const at = target.indexOf("?");
  return at < 0 ? [target, null] : [target.slice(0, at), target.slice(at + 1)];
}

function decode(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}
