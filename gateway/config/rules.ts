// The rules that a configuration names: a file beside it, a list in it, or the defaults.

import { readFileSync } from "node:fs";
import { expandText, FaultsError } from "../../rules/document.ts";
import { defaultRules, parseRules, rulesFromNode } from "../../rules/rule.ts";
import { readFault, shown } from "./sources.ts";
import type { Fault } from "../../rules/document.ts";
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
    return attempt(null, () => rulesFromNode(document, ["rules"], { env: sources.env }));
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
  return attempt(file, () => parseRules(text, { file: shown(file), env: sources.env }));
}

function attempt(file: string | null, read: () => ParsedRules): RulesRead {
  try {
    return { file, faults: [], ...read() };
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
    return { rules: defaultRules(), file, faults: error.faults, warnings: [] };
  }
}
