// A rules file becomes a frozen list of rules, or every fault in it with line and column.
import { createHash } from "node:crypto";
import { canonicalRule, compileRule, isHeaderValue } from "./compile.ts";
import { checkDocument, faultAt, inOrder, parseDocument } from "./document.ts";
import { FaultsError } from "./fault.ts";
import { rulesFileSchema, rulesListSchema, ruleSchema } from "./schema.ts";
import { formatDuration } from "./units.ts";
import { expandText } from "./variables.ts";
import { warningsOf } from "./warnings.ts";
import type { z } from "zod";
import type { CanonicalRule, Report, Rule } from "./compile.ts";
import type { ParsedDocument } from "./document.ts";
import type { DocumentPath, Fault } from "./fault.ts";
import type { RulesFile, RuleText } from "./schema.ts";
import type { Environment } from "./variables.ts";

export { isRepeatable, isSafe } from "./compile.ts";
export { rulesFileSchema, rulesListSchema } from "./schema.ts";
export type { Affinity, Compare, Probe, Rule } from "./compile.ts";
export type { Mode } from "./schema.ts";

export interface RuleSet {
  /** In order; the last two are `default-safe` and `default-other`, so some rule always matches. */
  readonly rules: readonly Rule[];
  /** A rules file as JSON: keys sorted, defaults filled in, `${VAR}` as written. The log keeps it. */
  readonly canonicalText: string;
  /** SHA-256 of canonicalText, hex. */
  readonly digest: string;
}

export interface ParsedRules {
  readonly rules: RuleSet;
  readonly warnings: readonly Fault[];
}

/** With `env`, variables that are not set are faults; they are expanded only by whoever sends (expandReplaySet). */
export function parseRules(text: string, options: { file: string; env?: Environment }): ParsedRules {
  const document = parseDocument(text, options);
  const at = ["rules"];
  const { value, faults } = attempt(document, rulesFileSchema, []);
  return build(document, at, value?.defaults ?? null, faults, options.env);
}

/** The list itself, inline at `at` of another document. */
export function rulesFromNode(
  document: ParsedDocument,
  at: DocumentPath,
  options: { env?: Environment } = {},
): ParsedRules {
  const { faults } = attempt(document, rulesListSchema, at);
  return build(document, at, noDefaults, faults, options.env);
}

/** Without a file: safe methods only-once, everything else replicate. */
export function defaultRules(): RuleSet {
  return ruleSet({ version: 1, defaults: noDefaults, rules: [] }, throwing);
}

/** What canonicalText says, with the same digest. Throws on a text that no version of this program has written. */
export function rulesFromCanonicalText(text: string): RuleSet {
  const file = rulesFileSchema.parse(JSON.parse(text));
  const rules = file.rules.map((rule, i) => canonicalRule(rule, [], i, throwing)!);
  // The text stays as it is: a later version may fill in more defaults, and the digest has to remain.
  return { ...ruleSet({ ...file, rules }, throwing), canonicalText: text, digest: sha256(text) };
}

/** The headers of `replay.set` with their variables expanded. Throws where one is not set. */
export function expandReplaySet(rule: Rule, env: Environment): Record<string, string> {
  const entries = Object.entries(rule.replay.set).map(([name, text]) => {
    const value = expandText(text, env);
    if (!value.ok) throw new Error(`rule "${rule.name}": replay.set.${name}: ${value.message}`);
    // Not shown: it may be a secret.
    if (!isHeaderValue(value.value)) throw new Error(`rule "${rule.name}": replay.set.${name}: ${unfit}`);
    return [name, value.value];
  });
  return Object.fromEntries(entries) as Record<string, string>;
}

const unfit = "the variable's value contains a character that a header cannot carry";

interface CanonicalFile {
  readonly version: 1;
  readonly defaults: RulesFile["defaults"];
  readonly rules: readonly CanonicalRule[];
}

const noDefaults: RulesFile["defaults"] = { safe: "only-once", other: "replicate" };
const reservedNames = ["default-safe", "default-other"];

function attempt<S extends z.ZodType>(
  document: ParsedDocument,
  schema: S,
  at: DocumentPath,
): { value: z.output<S> | null; faults: Fault[] } {
  try {
    return { value: checkDocument(document, schema, { at }), faults: [] };
  } catch (error) {
    if (error instanceof FaultsError) return { value: null, faults: [...error.faults] };
    throw error;
  }
}

/** `faults` are those of the schema; rules without any are looked at further, so that all faults come at once. */
function build(
  document: ParsedDocument,
  at: DocumentPath,
  defaults: RulesFile["defaults"] | null,
  faults: Fault[],
  env: Environment | undefined,
): ParsedRules {
  const reportAt =
    (path: DocumentPath): Report =>
    (within, message, options) =>
      faults.push(faultAt(document, [...path, ...within], message, options));
  const canonical: CanonicalRule[] = [];
  const names = new Map<string, number>();
  const list = at.reduce<unknown>((node, step) => (node as Record<string, unknown> | null)?.[step], document.value);
  for (const [i, raw] of (Array.isArray(list) ? (list as unknown[]) : []).entries()) {
    const report = reportAt([...at, i]);
    checkVariables(raw, env ?? null, report);
    const sound = soundPart(raw);
    if (sound === null) continue;
    const rule = canonicalRule(sound.text, Object.keys(raw as object), i, report);
    if (rule === null) continue;
    const first = names.get(rule.name);
    if (reservedNames.includes(rule.name))
      report(["name"], `"${rule.name}" is the name of a rule that is always there`);
    else if (first !== undefined) report(["name"], `"${rule.name}" is the name of ${at.at(-1)}[${first}] already`);
    names.set(rule.name, i);
    if (sound.hasMatch && compileRule(rule, i, report) !== null) canonical.push(rule);
  }
  if (faults.length > 0 || defaults === null) throw new FaultsError(inOrder(faults));
  const rules = ruleSet({ version: 1, defaults, rules: canonical }, throwing);
  const warnings = warningsOf(rules.rules).map(({ index, path, message }) => {
    const name = reservedNames[index - canonical.length];
    const place = name === undefined ? [...at, index, ...path] : ["defaults", name.slice("default-".length)];
    return faultAt(document, place, message);
  });
  return { rules, warnings: inOrder(warnings) };
}

/**
 * The rule without the options that the schema has refused already, so that the rest is checked in the same run; without
 * its match at most its options can be.
 */
function soundPart(raw: unknown): { text: RuleText; hasMatch: boolean } | null {
  const parsed = ruleSchema.safeParse(raw);
  if (parsed.success) return { text: parsed.data, hasMatch: true };
  if (typeof raw !== "object" || raw === null) return null;
  const faulty = new Set(
    parsed.error.issues.flatMap((i) => (i.code === "unrecognized_keys" && i.path.length === 0 ? i.keys : i.path[0])),
  );
  const rest = Object.fromEntries(Object.entries(raw).filter(([option]) => !faulty.has(option)));
  const hasMatch = !faulty.has("match");
  const text = ruleSchema.safeParse(hasMatch ? rest : { ...rest, match: "* /*" }).data;
  return text === undefined ? null : { text, hasMatch };
}

/**
 * Variables may differ between gateways that share a log, and rules may not: only what is sent, never what decides,
 * can hold one.
 */
function checkVariables(raw: unknown, env: Environment | null, report: Report, path: DocumentPath = []): void {
  if (typeof raw === "string") {
    if (path[0] === "replay" && path[1] === "set") {
      const expanded = expandText(raw, env);
      if (!expanded.ok) report(path, expanded.message);
      else if (!isHeaderValue(expanded.value) && isHeaderValue(raw)) report(path, unfit);
    } else if (raw.includes("${")) report(path, "holds a variable; in rules only replay.set may");
  } else if (typeof raw === "object" && raw !== null) {
    for (const [key, value] of Object.entries(raw)) {
      checkVariables(value, env, report, [...path, Array.isArray(raw) ? Number(key) : key]);
    }
  }
}

function ruleSet(file: CanonicalFile, report: Report): RuleSet {
  const { safe, other } = file.defaults;
  const always: CanonicalRule[] = [
    { name: "default-safe", match: { method: ["GET", "HEAD", "OPTIONS", "QUERY", "TRACE"], path: "/*" }, mode: safe },
    { name: "default-other", match: { path: "/*" }, mode: other },
  ];
  const rules = [...file.rules, ...always].map((rule, i) => compileRule(rule, i, report)!);
  const canonicalText = canonicalJson({ ...file, rules: file.rules.map(textOf) });
  return Object.freeze({ rules: Object.freeze(rules), canonicalText, digest: sha256(canonicalText) });
}

function textOf({ timeout, ...rest }: CanonicalRule): object {
  return timeout === undefined ? rest : { ...rest, timeout: formatDuration(timeout) };
}

function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_, node: unknown) => {
    if (typeof node !== "object" || node === null || Array.isArray(node)) return node;
    return Object.fromEntries(Object.entries(node).sort(([a], [b]) => (a < b ? -1 : 1)));
  });
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

function throwing(path: DocumentPath, message: string): never {
  throw new Error(`${path.join(".")}: ${message}`);
}
