// What is allowed in a rules file and probably not meant. Sound: a warning is never false, some may be missing.
import { isSafe } from "./compile.ts";
import { matchCovers } from "./condition.ts";
import type { Rule } from "./compile.ts";
import type { DocumentPath } from "./fault.ts";

export interface Warning {
  /** Of the rule in its list; the two defaults stand behind the last. */
  readonly index: number;
  /** Within the rule. */
  readonly path: DocumentPath;
  readonly message: string;
}

/** `rules` ends with the two defaults, which cannot be shadowed by mistake. */
export function warningsOf(rules: readonly Rule[]): Warning[] {
  return [
    ...rules.slice(0, -2).flatMap((rule) => shadowed(rule, rules)),
    ...rules.flatMap(unsafeOnce),
    ...ignored(rules),
  ];
}

function shadowed(rule: Rule, rules: readonly Rule[]): Warning[] {
  const earlier = rules.slice(0, rule.index);
  const covering = new Set<Rule>();
  // Each method may be taken by another rule.
  for (const method of rule.match.methods ?? [null]) {
    const first = earlier.find((other) => matchCovers(demand(other), demand(rule), method));
    if (first === undefined) return [];
    covering.add(first);
  }
  const names = [...covering].map((other) => `"${other.name}"`).join(" and ");
  const message = `never decides: everything it matches is matched by ${names} above`;
  return [{ index: rule.index, path: ["match"], message }];
}

function demand(rule: Rule): { match: Rule["match"]; needsYes: boolean } {
  return { match: rule.match, needsYes: rule.mode === "only-once" };
}

function unsafeOnce(rule: Rule): Warning[] {
  if (rule.mode !== "only-once") return [];
  const isUnsafe = rule.match.methods?.some((method) => !isSafe(rule, method)) ?? rule.safe !== true;
  if (!isUnsafe) return [];
  return [{ index: rule.index, path: ["mode"], message: "what this writes stays on one replica" }];
}

function ignored(rules: readonly Rule[]): Warning[] {
  return rules.flatMap((rule) =>
    rule.compare.ignore.flatMap((pointer, i) => {
      const name = pointer.tokens.at(-1);
      const user = rules.find((other) => name !== undefined && other.match.pattern.params.includes(name));
      if (user === undefined) return [];
      const message = `${pointer.text} is ignored, but "${user.name}" finds things by it (:${name}): copies that differ here answer later requests differently`;
      return [{ index: rule.index, path: ["compare", "ignore", i], message }];
    }),
  );
}
