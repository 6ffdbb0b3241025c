// A rule as the program uses it: texts parsed, defaults in place, frozen; and every reason why a rule makes no sense.
import { hostName } from "./condition.ts";
import { parsePattern } from "./pattern.ts";
import { parsePointer } from "./pointer.ts";
import { optionsOf } from "./schema.ts";
import { parseRequestTemplate, parseTemplate } from "./template.ts";
import type { RuleMatch } from "./condition.ts";
import type { DocumentPath } from "./fault.ts";
import type { Parsed, Pointer, Scalar } from "./pointer.ts";
import type { MatchText, Mode, RuleOption, RuleText } from "./schema.ts";
import type { RequestTemplate, Template } from "./template.ts";

export interface Rule {
  readonly name: string;
  /** Place in the list, from 0; the first match wins. */
  readonly index: number;
  readonly match: RuleMatch;
  readonly mode: Mode;
  /** Null: by method. */
  readonly safe: boolean | null;
  readonly respond: RuleText["respond"];
  readonly key: { readonly required: boolean; readonly from: Template };
  readonly retry: RuleText["retry"];
  readonly unknown: RuleText["unknown"];
  readonly probe: Probe | null;
  readonly outcome: { readonly notStarted: readonly number[]; readonly unknown: readonly number[] };
  readonly compare: Compare;
  /** Lower-case names; `${VAR}` as written, see expandReplaySet. */
  readonly replay: { readonly set: Readonly<Record<string, string>> };
  /** Null: the configured timeouts.firstByte. */
  readonly timeoutMs: number | null;
  /** Null: total order. */
  readonly order: readonly Template[] | null;
  readonly before: RequestTemplate | null;
  readonly undo: RequestTemplate | null;
  readonly consistency: RuleText["consistency"];
  readonly websocket: boolean;
  readonly affinity: Affinity | null;
  /** What a refused request is answered. */
  readonly status: number;
}

export interface Probe {
  readonly request: RequestTemplate;
  /** Null: any 2xx. */
  readonly status: readonly number[] | null;
  readonly body: readonly { readonly pointer: Pointer; readonly values: readonly (Template | Scalar)[] }[];
}

export interface Compare {
  readonly status: boolean;
  /** Lower case. */
  readonly headers: readonly string[];
  readonly body: "bytes" | "json" | "off";
  readonly ignore: readonly Pointer[];
}

export type Affinity = { readonly kind: "cookie" | "header"; readonly name: string } | { readonly kind: "client" };

/** The form that is logged: a rule of a rules file with its defaults filled in and its variables as written. */
export type CanonicalRule = Partial<RuleText> & {
  readonly name: string;
  readonly match: MatchText;
  readonly mode: Mode;
};

/** Path within the rule. */
export type Report = (
  path: DocumentPath,
  message: string,
  options?: { suggestion?: string | undefined; key?: boolean },
) => void;

const safeMethods = new Set(["GET", "HEAD", "OPTIONS", "TRACE", "QUERY"]);
// Idempotent by RFC 9110 9.2.2, though not safe.
const repeatableMethods = new Set(["PUT", "DELETE"]);

/** The request changes nothing. */
export function isSafe(rule: Pick<Rule, "safe">, method: string): boolean {
  return rule.safe ?? safeMethods.has(method);
}

/** The request may be sent again when its outcome is unknown. */
export function isRepeatable(rule: Pick<Rule, "safe" | "retry">, method: string): boolean {
  if (rule.retry !== "auto") return rule.retry === "safe";
  return isSafe(rule, method) || repeatableMethods.has(method);
}

/** Headers that are per connection or per answer: never compared, never set. */
export const hopByHop: ReadonlySet<string> = new Set([
  "connection",
  "keep-alive",
  "proxy-authenticate",
  "proxy-authorization",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
]);

export function isHeaderValue(text: string): boolean {
  return !/[^\t\u0020-\u007e\u0080-\u00ff]/.test(text);
}

/** `POST /orders` → its parts. Null after a report. */
export function parseMatch(match: RuleText["match"], report: Report): MatchText | null {
  if (typeof match !== "string") {
    const methods = match.method?.includes("*") === true ? undefined : match.method;
    const { method: _, ...rest } = match;
    return methods === undefined ? rest : { ...rest, method: [...new Set(methods)].sort() };
  }
  const [, method, path] = /^(\S+) +(\S.*)$/.exec(match.trim()) ?? [];
  if (method === undefined || path === undefined) {
    const suggestion = match.startsWith("/") ? `* ${match}` : undefined;
    report([], `"${match}" is not a match such as "POST /orders" or "* /debug/*"`, { suggestion });
    return null;
  }
  if (method !== method.toUpperCase() || !/^[A-Z0-9!#$%&'*+\-.^_`|~]+$/.test(method)) {
    report([], `"${method}" is not a method in upper case`, { suggestion: `${method.toUpperCase()} ${path}` });
    return null;
  }
  return method === "*" ? { path } : { method: [method], path };
}

/** What the rule says once its defaults are filled in; options that mean nothing in its mode are reported. */
export function canonicalRule(
  rule: RuleText,
  given: readonly string[],
  index: number,
  report: Report,
): CanonicalRule | null {
  const match = parseMatch(rule.match, (path, ...rest) => report(["match", ...path], ...rest));
  const { mode } = rule;
  const allowed = optionsOf[mode];
  for (const option of given) {
    if (option === "name" || option === "match" || option === "mode" || allowed.includes(option as RuleOption))
      continue;
    const others = (Object.keys(optionsOf) as Mode[]).filter((m) => optionsOf[m].includes(option as RuleOption));
    if (others.length > 0)
      report([option], `means nothing with mode ${mode}, only with ${others.join(" and ")}`, { key: true });
  }
  if (given.includes("before") && !given.includes("undo"))
    report(["before"], "means nothing without undo", { key: true });
  if (given.includes("undo") && !given.includes("before"))
    report(["undo"], "has nothing to put back without before", { key: true });
  if (match === null) return null;
  const kept = Object.fromEntries(
    allowed.flatMap((o) => (rule[o] === undefined ? [] : [[o, rule[o]]])),
  ) as Partial<RuleText>;
  if (mode === "only-once" && !mayBeSafe(rule, match)) {
    if (given.includes("consistency")) {
      const hint = "is for reads; this rule has none (safe: true says that a request changes nothing)";
      report(["consistency"], hint, { key: true });
    }
    delete kept.consistency;
  }
  return { ...kept, name: rule.name ?? `rule-${index + 1}`, match, mode };
}

function mayBeSafe(rule: RuleText, match: MatchText): boolean {
  return rule.safe ?? (match.method === undefined || match.method.some((method) => safeMethods.has(method)));
}

/** The frozen rule, or null after at least one report. */
export function compileRule(rule: CanonicalRule, index: number, report: Report): Rule | null {
  let isSound = true;
  const bad: Report = (...fault) => {
    isSound = false;
    report(...fault);
  };
  const take = <T>(path: DocumentPath, parsed: Parsed<T>, key = false): T | null => {
    if (parsed.ok) return parsed.value;
    bad(path, parsed.message, { suggestion: parsed.suggestion, key });
    return null;
  };
  const pattern = take(["match", "path"], parsePattern(rule.match.path));
  // With a broken pattern every parameter would be reported as unknown.
  const known = pattern === null ? {} : { params: pattern.params };
  const template = (path: DocumentPath, text: string): Template | null => take(path, parseTemplate(text, known));
  const request = (path: DocumentPath, text: string | undefined): RequestTemplate | null =>
    text === undefined ? null : take(path, parseRequestTemplate(text, known));
  const pointer = (path: DocumentPath, text: string): Pointer | null =>
    take(path, parsePointer(text), path.at(-1) === text);

  const match = pattern === null ? null : matchOf(rule.match, pattern, pointer);
  const from = template(["key", "from"], rule.key?.from ?? "{header.idempotency-key}");
  if (from !== null && from.parts.every((part) => part.kind === "text"))
    bad(["key", "from"], "is the same for all requests");
  const order = rule.order?.map((text, i) => template(["order", i], text)) ?? null;
  const before = request(["before"], rule.before);
  const undo = request(["undo"], rule.undo);
  // HEAD and OPTIONS are safe, and answer nothing that could be put back.
  if (before !== null && before.method !== "GET") bad(["before"], `has to be a GET, not ${before.method}`);
  if (undo !== null && !repeatableMethods.has(undo.method))
    bad(["undo"], `has to be PUT or DELETE, which may be sent twice, not ${undo.method}`);
  const probe = probeOf(rule, request, template, pointer, bad);
  checkOutcome(rule, bad);
  checkSession(rule, bad);
  const compare = compareOf(rule, pointer, bad);
  const set = replaySetOf(rule, bad);
  if (rule.timeout === 0) bad(["timeout"], "has to be more than nothing");

  if (!isSound || match === null || from === null) return null;
  return deepFreeze({
    name: rule.name,
    index,
    match,
    mode: rule.mode,
    safe: rule.safe ?? null,
    respond: rule.respond ?? "first",
    key: { required: rule.key?.required ?? false, from },
    retry: rule.retry ?? "auto",
    unknown: rule.unknown ?? "hold",
    probe,
    outcome: { notStarted: rule.outcome?.notStarted ?? [], unknown: rule.outcome?.unknown ?? [] },
    compare,
    replay: { set },
    timeoutMs: rule.timeout ?? null,
    order: order as Template[] | null,
    before,
    undo,
    consistency: rule.consistency ?? "linearizable",
    websocket: rule.websocket ?? false,
    affinity: affinityOf(rule.affinity),
    status: rule.status ?? 403,
  } satisfies Rule);
}

type PointerAt = (path: DocumentPath, text: string) => Pointer | null;

function matchOf(text: MatchText, pattern: RuleMatch["pattern"], pointer: PointerAt): RuleMatch {
  return {
    methods: text.method ?? null,
    pattern,
    host: text.host === undefined ? null : hostName(text.host),
    headers: entriesOf(text.header).map(([name, values]) => ({ name: name.toLowerCase(), values })),
    query: entriesOf(text.query).map(([name, values]) => ({ name, values })),
    body: entriesOf(text.body).flatMap(([key, values]) => {
      const parsed = pointer(["match", "body", key], key);
      return parsed === null ? [] : [{ pointer: parsed, values }];
    }),
  };
}

function probeOf(
  rule: CanonicalRule,
  request: (path: DocumentPath, text: string) => RequestTemplate | null,
  template: (path: DocumentPath, text: string) => Template | null,
  pointer: PointerAt,
  bad: Report,
): Probe | null {
  if (rule.probe === undefined) return null;
  const asked = request(["probe", "request"], rule.probe.request);
  if (asked !== null && !safeMethods.has(asked.method))
    bad(["probe", "request"], `${asked.method} might change something`);
  const { status, body } = rule.probe.applied;
  if (status === undefined && body === undefined) {
    bad(["probe", "applied"], "needs a status or a body, else every answer would mean: applied");
  }
  const conditions = entriesOf(body).flatMap(([key, values]) => {
    const path = ["probe", "applied", "body", key];
    const parsed = pointer(path, key);
    const wanted = values.map((value) => (typeof value === "string" ? template(path, value) : value));
    return parsed === null ? [] : [{ pointer: parsed, values: wanted }];
  });
  return asked === null ? null : { request: asked, status: status ?? null, body: conditions };
}

function compareOf(rule: CanonicalRule, pointer: PointerAt, bad: Report): Compare {
  const { status = true, headers = [], body = "off", ignore = [] } = rule.compare ?? {};
  for (const [i, header] of headers.entries()) {
    const name = header.toLowerCase();
    if (name === "date" || hopByHop.has(name)) bad(["compare", "headers", i], `"${header}" is never compared`);
  }
  if (ignore.length > 0 && body !== "json") bad(["compare", "ignore"], "means nothing without body: json");
  if (!status && headers.length === 0 && body === "off") bad(["compare"], "leaves nothing that could decide");
  const pointers = ignore.flatMap((text, i) => pointer(["compare", "ignore", i], text) ?? []);
  return { status, headers: [...new Set(headers.map((name) => name.toLowerCase()))].sort(), body, ignore: pointers };
}

function checkOutcome(rule: CanonicalRule, bad: Report): void {
  const notStarted = rule.outcome?.notStarted ?? [];
  rule.outcome?.unknown.forEach((status, i) => {
    if (notStarted.includes(status)) bad(["outcome", "unknown", i], `${status} is under notStarted already`);
  });
}

function checkSession(rule: CanonicalRule, bad: Report): void {
  const { method } = rule.match;
  if (rule.websocket === true && method !== undefined && !method.includes("GET")) {
    bad(["websocket"], "an upgrade is a GET, which this rule does not match", { key: true });
  }
}

// Set by the gateway itself, or part of how a message is framed.
const reserved = new Set(["content-length", "host", "idempotency-key", "via", "expect"]);

function replaySetOf(rule: CanonicalRule, bad: Report): Record<string, string> {
  const set: Record<string, string> = {};
  for (const [header, value] of entriesOf(rule.replay?.set)) {
    const name = header.toLowerCase();
    const path = ["replay", "set", header];
    if (reserved.has(name) || hopByHop.has(name) || name.startsWith("replication-"))
      bad(path, "is the gateway's own header", { key: true });
    if (!isHeaderValue(value)) bad(path, "contains a character that a header cannot carry");
    if (Object.hasOwn(set, name)) bad(path, "is there twice, in another case", { key: true });
    set[name] = value;
  }
  return set;
}

function affinityOf(text: string | undefined): Affinity | null {
  if (text === undefined) return null;
  const [kind, name] = text.split(":", 2);
  if (name === undefined) return { kind: "client" };
  return kind === "cookie" ? { kind, name } : { kind: "header", name: name.toLowerCase() };
}

/** Sorted, as in the canonical text: what is restored from it is the same in every detail. */
function entriesOf<T>(record: Readonly<Record<string, T>> | undefined): [string, T][] {
  return Object.entries(record ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    Object.values(value).forEach(deepFreeze);
  }
  return value;
}
