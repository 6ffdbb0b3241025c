// gateway explain: what would become of a request, and why: the rule that decides, and each one before it that did not match.

import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { findConfig } from "./configfile.ts";
import { CommandError, printable } from "./terminal.ts";
import type { Command } from "commander";
import type { Rule, RuleSet } from "../../rules/rule.ts";
import type { RequestHead, Verdict } from "../../rules/match.ts";
import type { CanonicalTarget } from "../../rules/target.ts";
import type { TemplateContext } from "../../rules/template.ts";
import type { Builder } from "./builder.ts";
import type { Terminal } from "./terminal.ts";

interface ExplainOptions {
  readonly config?: string;
  readonly rules?: string;
  readonly header?: string[];
  readonly body?: string;
}

/** The result, for people and programs alike. */
export interface Explanation {
  readonly method: string;
  /** As it would be matched and forwarded; null: refused with 400. */
  readonly target: string | null;
  readonly refused: string | null;
  readonly rule: string | null;
  readonly mode: string | null;
  readonly safe: boolean | null;
  readonly does: readonly string[];
  readonly orderKeys: readonly string[];
  readonly key: string | null;
  /** Rules above the one that decides, and why they did not. */
  readonly tried: readonly { readonly rule: string; readonly why: string }[];
}

export function addExplain(program: Command, builder: Builder): void {
  const command = builder
    .add(program, "explain <method> <target>", "Say which rule decides a request, and why", [
      "explain POST /orders",
      "explain GET '/orders/7?full=1' -H 'Authorization: Bearer x'",
      'explain POST / --body request.json    # "-" reads stdin',
    ])
    .option("-c, --config <file>", "configuration (default: ./gateway.yaml; without one: the default rules)")
    .option("--rules <file>", "a rules file instead of a configuration")
    .option(
      "-H, --header <line>",
      "a header, as 'Name: value'; again for each",
      (line: string, before: string[] | undefined) => [...(before ?? []), line],
    )
    .option("--body <file>", "the body");
  builder.action<ExplainOptions>(command, async (terminal, options, method = "", target = "") => {
    const { rules, encodedSlash, inlineBytes } = await readRules(terminal, options);
    const headers = headersOf(options.header ?? []);
    const body = options.body === undefined ? null : readBody(terminal, options.body);
    const explanation = await explain({
      rules,
      encodedSlash,
      method,
      target,
      headers,
      body: withinLimit(body, inlineBytes),
    });
    if (terminal.isJson) terminal.printJson(explanation);
    else print(terminal, explanation, body !== null && body.length > inlineBytes);
    return 0;
  });
}

interface Given {
  readonly rules: RuleSet;
  readonly encodedSlash: "refuse" | "keep";
  readonly method: string;
  readonly target: string;
  readonly headers: readonly string[];
  readonly body: Buffer | null;
}

async function readRules(
  { env, cwd }: Terminal,
  options: ExplainOptions,
): Promise<{ readonly rules: RuleSet; readonly encodedSlash: "refuse" | "keep"; readonly inlineBytes: number }> {
  const defaults = { encodedSlash: "refuse" as const, inlineBytes: 256 * 1024 };
  if (options.rules !== undefined) {
    const { parseRules } = await import("../../rules/rule.ts");
    return { ...defaults, rules: parseRules(readText(cwd, options.rules), { file: options.rules }).rules };
  }
  const file = findConfig({ cwd } as Terminal, options.config);
  if (file === null) {
    const { defaultRules } = await import("../../rules/rule.ts");
    return { ...defaults, rules: defaultRules() };
  }
  const { loadConfig } = await import("../config.ts");
  const { rules, paths, limits } = loadConfig({ file, env, cwd });
  return { rules, encodedSlash: paths.encodedSlash, inlineBytes: limits.inlineBytes };
}

export async function explain({ rules, encodedSlash, method, target, headers, body }: Given): Promise<Explanation> {
  const { canonicalTarget } = await import("../../rules/target.ts");
  const nothing = { method, rule: null, mode: null, safe: null, does: [], orderKeys: [], key: null, tried: [] };
  if (!/^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$/.test(method)) {
    return { ...nothing, target: null, refused: `"${method}" is not a method` };
  }
  // As Node gives it: one char a byte.
  const canonical = canonicalTarget(Buffer.from(target, "utf8").toString("latin1"), { encodedSlash });
  if (!canonical.ok) return { ...nothing, target: null, refused: canonical.reason };
  const { Matcher, isSafe } = await import("../../rules/match.ts");
  const { headerValues } = await import("../../rules/template.ts");
  const { readBody: readJsonBody } = await import("../../rules/json.ts");
  const head: RequestHead = { method, target: canonical, host: headerValues(headers, "host")[0] ?? "", headers };
  const matched = new Matcher(rules.rules).match(head);
  const verdict = matched.kind === "verdict" ? matched : matched.decide(body);
  const query = new URLSearchParams(canonical.query ?? "");
  const context: TemplateContext = {
    params: verdict.params,
    query: () => query,
    headers,
    body: () => readJsonBody(body, headers),
  };
  const { orderKeys } = await import("../../rules/order.ts");
  const { rule } = verdict;
  const tried = await Promise.all(
    rules.rules
      .slice(0, rule.index)
      .map(async (other) => ({ rule: other.name, why: await whyNot(other, head, canonical, body) })),
  );
  return {
    method,
    target: canonical.target,
    refused: null,
    rule: rule.name,
    mode: rule.mode,
    safe: isSafe(rule, method),
    does: await describe(rule, method, verdict),
    orderKeys: rule.mode === "replicate" || rule.order !== null ? orderKeys(verdict, context) : [],
    key: await describeKey(verdict, context),
    tried,
  };
}

/** The first of its conditions that does not hold. */
async function whyNot(rule: Rule, head: RequestHead, target: CanonicalTarget, body: Buffer | null): Promise<string> {
  const { bodyTruth, headTruth, hostName } = await import("../../rules/condition.ts");
  const { readJson } = await import("../../rules/json.ts");
  const { match } = rule;
  const path = whyNotPath(rule, target);
  if (path !== null) return path;
  if (match.methods !== null && !match.methods.includes(head.method)) {
    return `${head.method} is not ${match.methods.join(" or ")}`;
  }
  const host = hostName(head.host);
  const query = new URLSearchParams(target.query ?? "");
  const asked = { host, headers: head.headers, query: () => query };
  const bare = { ...match, host: null, headers: [], query: [], body: [] };
  const needed = rule.mode === "only-once" ? ["no", "maybe"] : ["no"];
  if (match.host !== null && headTruth({ ...bare, host: match.host }, asked) === "no") {
    return host === ""
      ? `no Host was given (-H 'Host: …'), it wants ${match.host}`
      : `host ${host} is not ${match.host}`;
  }
  for (const one of match.headers) {
    const truth = headTruth({ ...bare, headers: [one] }, asked);
    if (needed.includes(truth)) return `header ${one.name} is not ${one.values.join(" or ")}${unclear(truth)}`;
  }
  for (const one of match.query) {
    const truth = headTruth({ ...bare, query: [one] }, asked);
    if (needed.includes(truth)) return `query ${one.name} is not ${one.values.join(" or ")}${unclear(truth)}`;
  }
  if (match.body.length === 0) return "it does not match";
  const json = readJson(body, head.headers);
  if (json === null)
    return body === null
      ? "it asks for the body, and none was given (--body FILE)"
      : "the body is not JSON that can be read";
  if (Array.isArray(json.value)) return "not the strictest rule among those of the body's members";
  for (const one of match.body) {
    const truth = bodyTruth({ ...bare, body: [one] }, json.value, json.isAmbiguous);
    const wanted = one.values.map((value) => JSON.stringify(value)).join(" or ");
    if (needed.includes(truth)) return `body ${one.pointer.text} is not ${wanted}${unclear(truth)}`;
  }
  return "it does not match";
}

function unclear(truth: string): string {
  return truth === "maybe" ? " for certain: it is there more than once" : "";
}

function whyNotPath({ match: { pattern } }: Rule, { segments }: CanonicalTarget): string | null {
  for (const [i, segment] of pattern.segments.entries()) {
    const given = segments[i];
    if (given === undefined) return `${pattern.text} is longer than the path`;
    if ("literal" in segment && segment.literal !== given)
      return `${pattern.text}: "${given}" is not "${segment.literal}"`;
    if ("param" in segment && given === "") return `${pattern.text}: :${segment.param} is empty`;
  }
  const more = segments.length - pattern.segments.length;
  if (pattern.hasRest) return more < 1 ? `${pattern.text} is everything below, not this itself` : null;
  return more > 0 ? `${pattern.text} is shorter than the path` : null;
}

async function describe(rule: Rule, method: string, verdict: Verdict): Promise<string[]> {
  const { isRepeatable, isSafe } = await import("../../rules/match.ts");
  const batch =
    verdict.batch === "mixed" ? ["its body is a batch under several rules: the strictest decides for all"] : [];
  if (rule.mode === "refuse") return [...batch, `answered by the gateway with ${rule.status}`];
  const isRead = isSafe(rule, method);
  if (rule.mode === "only-once" && isRead)
    return [...batch, `streamed to one replica, ${consistencies[rule.consistency]}`];
  const again = isRepeatable(rule, method)
    ? "sent again"
    : rule.probe !== null
      ? "asked for by the probe"
      : rule.undo !== null
        ? "put back by undo where its owner is still there, and sent again"
        : "not sent again, but held for a person";
  const unknown =
    rule.unknown === "assume-applied" && rule.probe === null && rule.undo === null && !isRepeatable(rule, method)
      ? "taken as applied"
      : again;
  if (rule.mode === "only-once") {
    return [...batch, "executed by exactly one replica, at the tail of the log", `with an unknown outcome: ${unknown}`];
  }
  return [
    ...batch,
    "appended to the log, executed on every replica in one order",
    `answered by ${responders[rule.respond]}`,
    `with an unknown outcome: ${unknown}`,
  ];
}

const consistencies = {
  linearizable: "which has applied everything acknowledged before (linearizable)",
  session: "which has applied everything this client has seen (session)",
  any: "whichever it is (any)",
} as const;
const responders = {
  first: "the first good answer",
  majority: "the majority's answer",
  all: "one answer, when all replicas have given theirs",
} as const;

async function describeKey(verdict: Verdict, context: TemplateContext): Promise<string | null> {
  const { idempotencyKey } = await import("../../rules/key.ts");
  const { rule } = verdict;
  const key = idempotencyKey(verdict, context);
  switch (key.kind) {
    case "key":
      return `a retry with this key gets the first answer (key from ${rule.key.from.text})`;
    case "missing":
      return `400: the rule requires a key (${rule.key.from.text})`;
    case "malformed":
      return `400: the key is malformed: ${key.reason}`;
    case "none":
      return rule.mode === "refuse" ? null : "none given: a retry is a new request";
    default:
      return key satisfies never;
  }
}

const shownMax = 12;

function print(terminal: Terminal, explanation: Explanation, isBodyTooLarge: boolean): void {
  const { method, target, refused, rule, mode, safe, does, orderKeys, key, tried } = explanation;
  if (target === null) {
    terminal.print(`${terminal.style("red", "400")} ${printable(method)}: ${printable(refused ?? "")}`);
    return;
  }
  const row = (label: string, text: string): void =>
    terminal.print(`${terminal.style("dim", label.padEnd(9))} ${printable(text)}`);
  row("request", `${method} ${target}`);
  terminal.print(`${terminal.style("dim", "rule".padEnd(9))} ${terminal.style("bold", rule ?? "")}`);
  row("mode", `${mode}${safe === true && mode !== "refuse" ? ", safe" : ""}`);
  for (const [i, line] of does.entries()) row(i === 0 ? "does" : "", line);
  if (mode === "replicate") {
    row("order", orderKeys.length === 0 ? "total: waits for all before it, all after it wait" : orderKeys.join("  "));
  }
  if (key !== null && safe !== true) row("key", key);
  if (isBodyTooLarge) row("body", "larger than limits.inline: rules cannot look into it");
  if (tried.length === 0) return;
  terminal.print("");
  terminal.print(terminal.style("dim", `tried before, from the top:`));
  const width = Math.min(24, Math.max(...tried.map((one) => one.rule.length)));
  const shown = tried.length > shownMax ? tried.slice(-shownMax) : tried;
  if (shown.length < tried.length) terminal.print(`  … ${tried.length - shown.length} more (all with --json)`);
  for (const one of shown) terminal.print(`  ${one.rule.padEnd(width)}  ${printable(one.why)}`);
}

function headersOf(lines: readonly string[]): string[] {
  return lines.flatMap((line) => {
    const [, name, value = ""] = /^([A-Za-z0-9!#$%&'*+\-.^_`|~]+):\s*(.*)$/.exec(line) ?? [];
    if (name === undefined) {
      throw new CommandError(`"${line}" is not a header.`, "Write it as -H 'Name: value'", { exitCode: 2 });
    }
    return [name, Buffer.from(value.trimEnd(), "utf8").toString("latin1")];
  });
}

function withinLimit(body: Buffer | null, limit: number): Buffer | null {
  return body === null || body.length > limit ? null : body;
}

function readBody({ cwd }: Terminal, file: string): Buffer {
  try {
    return file === "-" ? readFileSync(0) : readFileSync(resolve(cwd, file));
  } catch (error) {
    throw unreadable(file, error);
  }
}

function readText(cwd: string, file: string): string {
  try {
    return readFileSync(resolve(cwd, file), "utf8");
  } catch (error) {
    throw unreadable(file, error);
  }
}

function unreadable(file: string, error: unknown): CommandError {
  const code = (error as NodeJS.ErrnoException).code ?? String(error);
  return new CommandError(`${file} cannot be read (${code}).`, "Check the name.", { exitCode: 2 });
}
