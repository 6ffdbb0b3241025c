// The rules that a configuration names: a file beside it, a list in it, or the defaults.

import { readFileSync } from "node:fs";
import { expandText, faultAt, FaultsError, parseDocument } from "../../rules/document.ts";
import { defaultRules, parseRules, rulesFromNode } from "../../rules/rule.ts";
import { readFault, shown } from "./sources.ts";
import type { Fault, ParsedDocument } from "../../rules/document.ts";
import type { ParsedRules, RuleSet } from "../../rules/rule.ts";
import type { Sources } from "./sources.ts";

export interface RulesRead {
  /** The defaults when there are faults. */
  readonly rules: RuleSet;
  readonly file: string | null;
  readonly faults: readonly Fault[];
  readonly warnings: readonly Fault[];
}

/** Also when the rest of the configuration has faults: a person wants to see all of them at once. */
export function readRules(sources: Sources): RulesRead {
  const none = { rules: defaultRules(), file: null, faults: [], warnings: [] };
  const value = sources.valueAt(["rules"]);
  if (value === undefined) return none;
  if (Array.isArray(value)) {
    const document = sources.documentOf(["rules"]);
    if (document === null) {
      return { ...none, faults: [sources.fault(["rules"], "a variable names a file of rules, it does not hold them")] };
    }
    return attempt(null, () => [document, rulesFromNode(document, ["rules"], { env: sources.env })]);
  }
  // Anything else is a fault of the schema.
  if (typeof value !== "string" || value === "") return none;
  const path = expandText(value, sources.env);
  if (!path.ok) return none;
  const file = sources.resolve(["rules"], path.value);
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    return { ...none, file, faults: [sources.fault(["rules"], `${shown(file)} ${readFault(error)}`)] };
  }
  return attempt(file, () => {
    const options = { file: shown(file), env: sources.env };
    const parsed = parseRules(text, options);
    return [parseDocument(text, options), parsed];
  });
}

function attempt(file: string | null, read: () => [ParsedDocument, ParsedRules]): RulesRead {
  try {
    const [document, { rules, warnings }] = read();
    return { rules, file, faults: [], warnings: [...warnings, ...notBuilt(document, rules)] };
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
    return { rules: defaultRules(), file, faults: error.faults, warnings: [] };
  }
}

/** `before` and `undo` are read but not yet acted on; without them an unknown outcome is held, which is safe. */
function notBuilt(document: ParsedDocument, { rules }: RuleSet): Fault[] {
  const message = "is not built yet: where nothing else settles an unknown outcome, the replica is held";
  return rules
    .filter((rule) => rule.before !== null)
    .map((rule) => faultAt(document, ["rules", rule.index, "before"], message));
}
