// Rules files: what they say, every fault with its place, and the canonical text that the log keeps.
import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { FaultsError, formatFault, parseDocument } from "../../rules/document.ts";
import {
  defaultRules,
  expandReplaySet,
  isRepeatable,
  isSafe,
  parseRules,
  rulesFileSchema,
  rulesFromCanonicalText,
  rulesFromNode,
} from "../../rules/rule.ts";
import { rulesText } from "./random.ts";
import type { Fault } from "../../rules/document.ts";

const file = "rules.yaml";

function parse(rules: string, env?: Record<string, string>): ReturnType<typeof parseRules> {
  return parseRules(`version: 1\nrules:\n${rules}`, env === undefined ? { file } : { file, env });
}

function faults(rules: string, env?: Record<string, string>): string[] {
  try {
    parse(rules, env);
  } catch (error) {
    if (error instanceof FaultsError) return error.faults.map(short);
    throw error;
  }
  return [];
}

/** `3:5 rules[0].x: message (did you mean "y"?)`, lines counted from the first rule. */
function short(fault: Fault): string {
  return formatFault({ ...fault, line: fault.line - 2 })
    .split("\n")[0]!
    .replace(`${file}:`, "");
}

// The example of interface.md, as it stands there.
const example = `
version: 1
defaults: { safe: only-once, other: replicate }
rules:
  - name: create-order
    match: POST /orders
    mode: replicate
    safe: false
    respond: first
    key: { required: false, from: "{header.idempotency-key}" }
    retry: auto
    unknown: hold
    probe: { request: "GET /orders?ref={body.ref}", applied: { body: { /0/ref: "{body.ref}" } } }
    outcome: { notStarted: [429, 503], unknown: [502, 504] }
    compare: { status: true, headers: [location], body: json, ignore: [/createdAt] }
    replay: { set: { authorization: "Bearer \${REPLAY_TOKEN}" } }
    timeout: 10s
  - name: update-order
    match: PUT /orders/:id
    mode: replicate
    order: ["order:{path.id}"]
    before: GET /orders/:id
    undo: PUT /orders/:id
  - { name: charge, match: POST /charges, mode: only-once, key: { required: true } }
  - { name: list, match: GET /orders/*, mode: only-once, consistency: session }
  - { name: live, match: GET /live, mode: only-once, websocket: true, affinity: "cookie:sid" }
  - { name: rpc-read, match: { method: POST, path: /, body: { /method: [eth_call, eth_getBalance] } }, mode: only-once, safe: true }
  - { name: debug, match: "* /debug/*", mode: refuse, status: 404 }
`;

describe("a rules file", () => {
  it("as in the documentation is read with all it says", () => {
    const { rules, warnings } = parseRules(example, { file, env: { REPLAY_TOKEN: "x" } });
    expect(warnings.map((w) => w.message)).toEqual(["what this writes stays on one replica"]);
    const [create, update, charge, list, live, rpc, debug, safe, other] = rules.rules;
    expect(rules.rules).toHaveLength(9);
    expect(create).toMatchObject({
      name: "create-order",
      mode: "replicate",
      safe: false,
      outcome: { notStarted: [429, 503], unknown: [502, 504] },
      compare: { status: true, headers: ["location"], body: "json", ignore: [{ text: "/createdAt" }] },
      replay: { set: { authorization: "Bearer ${REPLAY_TOKEN}" } },
      timeoutMs: 10_000,
      order: null,
      probe: { request: { method: "GET" }, status: null, body: [{ pointer: { text: "/0/ref" } }] },
    });
    expect(update).toMatchObject({
      order: [{ text: "order:{path.id}" }],
      before: { method: "GET" },
      undo: { method: "PUT" },
    });
    expect(charge).toMatchObject({ mode: "only-once", key: { required: true } });
    expect(list).toMatchObject({ consistency: "session" });
    expect(live).toMatchObject({ websocket: true, affinity: { kind: "cookie", name: "sid" } });
    expect(rpc).toMatchObject({
      safe: true,
      match: { methods: ["POST"], body: [{ values: ["eth_call", "eth_getBalance"] }] },
    });
    expect(debug).toMatchObject({ mode: "refuse", status: 404, match: { methods: null } });
    expect([safe!.name, safe!.mode, other!.name, other!.mode]).toEqual([
      "default-safe",
      "only-once",
      "default-other",
      "replicate",
    ]);
  });

  it("is frozen through and through", () => {
    const visit = (value: unknown): void => {
      if (typeof value !== "object" || value === null) return;
      expect(Object.isFrozen(value)).toBe(true);
      Object.values(value).forEach(visit);
    };
    visit(parseRules(example, { file }).rules);
  });

  it("need not exist: safe methods go to one copy, everything else is replicated", () => {
    const { rules } = defaultRules();
    expect(rules.map((rule) => [rule.name, rule.mode])).toEqual([
      ["default-safe", "only-once"],
      ["default-other", "replicate"],
    ]);
    expect(defaultRules().digest).toBe(parseRules("version: 1", { file }).rules.digest);
  });

  it("gives rules without a name one by their place", () => {
    const { rules } = parse("  - { match: GET /a, mode: only-once }\n  - { match: GET /b, mode: only-once }\n");
    expect(rules.rules.map((rule) => rule.name)).toEqual(["rule-1", "rule-2", "default-safe", "default-other"]);
  });

  it("may stand inline in another document, with places of that document", () => {
    const text =
      "service: shop\nrules:\n  - { match: POST /a, mode: replicate }\n  - { match: POST /b, mode: replicat }\n";
    const document = parseDocument(text, { file: "gateway.yaml" });
    expect(() => rulesFromNode(document, ["rules"])).toThrow(
      /gateway\.yaml:4:29: rules\[1\]\.mode: .*did you mean "replicate"/,
    );
    const good = parseDocument(text.replace("replicat ", "replicate "), { file: "gateway.yaml" });
    expect(rulesFromNode(good, ["rules"]).rules.rules).toHaveLength(4);
  });

  it("has a JSON schema with help for every option", () => {
    const schema = z.toJSONSchema(rulesFileSchema, { target: "draft-7", io: "input" });
    const rule = (schema.properties!["rules"] as { items: { properties: Record<string, { description?: string }> } })
      .items;
    for (const [name, option] of Object.entries(rule.properties)) expect(option.description, name).toBeTruthy();
    expect(schema).not.toHaveProperty("$ref");
  });
});

describe("faults", () => {
  it.each([
    [
      "{ match: POST /a, mode: replicte }",
      '1:29: rules[0].mode: "replicte" is not one of replicate, only-once, refuse (did you mean "replicate"?)',
    ],
    ["{ match: POST /a }", "1:5: rules[0].mode: is missing (replicate, only-once, refuse)"],
    ["{ mode: replicate }", "1:5: rules[0].match: is missing"],
    [
      "{ match: post /a, mode: replicate }",
      '1:14: rules[0].match: "post" is not a method in upper case (did you mean "POST /a"?)',
    ],
    [
      "{ match: /a, mode: replicate }",
      '1:14: rules[0].match: "/a" is not a match such as "POST /orders" or "* /debug/*" (did you mean "* /a"?)',
    ],
    [
      "{ match: { method: PSOT, pth: /a }, mode: replicate }",
      '1:30: rules[0].match.pth: is not known here (did you mean "path"?)',
    ],
    [
      "{ match: { method: [GET, pots] }, mode: replicate }",
      '1:30: rules[0].match.method[1]: "pots" is not a method in upper case (did you mean "POST"?)',
    ],
    [
      "{ match: POST orders, mode: replicate }",
      '1:14: rules[0].match.path: "orders" does not begin with "/" (did you mean "/orders"?)',
    ],
    [
      "{ match: GET /a*, mode: only-once }",
      '1:14: rules[0].match.path: "/a*": "*" is the whole last segment or is written %2A',
    ],
    [
      "{ match: 'GET /{id}', mode: only-once }",
      '1:14: rules[0].match.path: "/{id}": "{id}" is not how a parameter is written (did you mean "/:id"?)',
    ],
    ["{ match: GET /:a/:a, mode: only-once }", '1:14: rules[0].match.path: "/:a/:a": ":a" is there twice'],
    [
      "{ match: GET /:a.json, mode: only-once }",
      '1:14: rules[0].match.path: "/:a.json": ":a.json" is not a parameter; ":name" is a whole segment',
    ],
    [
      "{ match: GET /a/../b, mode: only-once }",
      '1:14: rules[0].match.path: "/a/../b" can never match: the path contains a dot segment',
    ],
    [
      "{ match: GET /a?b=c, mode: only-once }",
      '1:14: rules[0].match.path: "/a?b=c": a path pattern has no "?"; conditions on the query go under query:',
    ],
    [
      "{ match: { body: { method: x } }, mode: replicate }",
      '1:24: rules[0].match.body.method: "method" is not a JSON pointer: it begins with "/" (did you mean "/method"?)',
    ],
    [
      "{ match: { host: 'a:80' }, mode: replicate }",
      "1:22: rules[0].match.host: expected a host without port, or *.example.org",
    ],
    [
      "{ match: POST /a/:id, mode: replicate, order: ['a:{path.idd}'] }",
      '1:52: rules[0].order[0]: {path.idd} names no parameter of the path, which has :id (did you mean "{path.id}"?)',
    ],
    [
      "{ match: POST /a, mode: replicate, order: ['{bdy.x}'] }",
      '1:48: rules[0].order[0]: {bdy.x} is not one of {path.x}, {query.x}, {header.x}, {body.x} (did you mean "{body.x}"?)',
    ],
    ["{ match: POST /a, mode: replicate, order: [] }", "1:47: rules[0].order: has to have at least 1 item"],
    [
      "{ match: POST /a, mode: refuse, order: [a] }",
      "1:37: rules[0].order: means nothing with mode refuse, only with replicate and only-once",
    ],
    [
      "{ match: POST /a, mode: replicate, websocket: true }",
      "1:40: rules[0].websocket: means nothing with mode replicate, only with only-once",
    ],
    [
      "{ match: POST /a, mode: replicate, status: 404 }",
      "1:40: rules[0].status: means nothing with mode replicate, only with refuse",
    ],
    [
      "{ match: POST /a, mode: only-once, respond: all }",
      "1:40: rules[0].respond: means nothing with mode only-once, only with replicate",
    ],
    [
      "{ match: POST /a, mode: only-once, consistency: any }",
      "1:40: rules[0].consistency: is for reads; this rule has none (safe: true says that a request changes nothing)",
    ],
    [
      "{ match: POST /a, mode: only-once, websocket: true }",
      "1:40: rules[0].websocket: an upgrade is a GET, which this rule does not match",
    ],
    [
      "{ match: GET /a, mode: only-once, affinity: 'cooky:a' }",
      '1:49: rules[0].affinity: "cooky:a" is not cookie:NAME, header:NAME or client',
    ],
    ["{ match: GET /a, mode: refuse, status: 200 }", "1:44: rules[0].status: 200 is out of range: at least 400"],
    [
      "{ match: POST /a, mode: replicate, compare: { ignore: [/a] } }",
      "1:59: rules[0].compare.ignore: means nothing without body: json",
    ],
    [
      "{ match: POST /a, mode: replicate, compare: { body: json, ignore: [a] } }",
      '1:72: rules[0].compare.ignore[0]: "a" is not a JSON pointer: it begins with "/" (did you mean "/a"?)',
    ],
    [
      "{ match: POST /a, mode: replicate, compare: { status: false } }",
      "1:49: rules[0].compare: leaves nothing that could decide",
    ],
    [
      "{ match: POST /a, mode: replicate, compare: { headers: [Date] } }",
      '1:61: rules[0].compare.headers[0]: "Date" is never compared',
    ],
    ["{ match: POST /a, mode: replicate, before: GET /a }", "1:40: rules[0].before: means nothing without undo"],
    [
      "{ match: POST /a, mode: replicate, undo: PUT /a }",
      "1:40: rules[0].undo: has nothing to put back without before",
    ],
    [
      "{ match: POST /a, mode: replicate, before: PUT /a, undo: PUT /a }",
      "1:48: rules[0].before: has to be a GET, not PUT",
    ],
    [
      "{ match: POST /a, mode: replicate, before: HEAD /a, undo: PUT /a }",
      "1:48: rules[0].before: has to be a GET, not HEAD",
    ],
    [
      "{ match: POST /a, mode: replicate, before: GET /a, undo: POST /a/undo }",
      "1:62: rules[0].undo: has to be PUT or DELETE, which may be sent twice, not POST",
    ],
    [
      "{ match: POST /a, mode: replicate, undo: PUT /a/:id, before: GET /a }",
      "1:46: rules[0].undo: {path.id} names no parameter of the path, which has no parameters",
    ],
    [
      "{ match: POST /a, mode: replicate, probe: { request: POST /a, applied: { status: 200 } } }",
      "1:58: rules[0].probe.request: POST might change something",
    ],
    [
      "{ match: POST /a, mode: replicate, probe: { request: GET /a, applied: {} } }",
      "1:75: rules[0].probe.applied: needs a status or a body, else every answer would mean: applied",
    ],
    [
      "{ match: POST /a, mode: replicate, outcome: { notStarted: [503], unknown: [502, 503] } }",
      "1:85: rules[0].outcome.unknown[1]: 503 is under notStarted already",
    ],
    [
      "{ match: POST /a, mode: replicate, key: { from: fixed } }",
      "1:53: rules[0].key.from: is the same for all requests",
    ],
    [
      "{ match: POST /a, mode: replicate, timeout: 10 }",
      '1:49: rules[0].timeout: expected a duration such as "250ms", "5s", "10m", "1h" or "7d", got 10',
    ],
    ["{ match: POST /a, mode: replicate, timeout: 0s }", "1:49: rules[0].timeout: has to be more than nothing"],
    [
      "{ match: POST /a, mode: replicate, replay: { set: { Host: x } } }",
      "1:57: rules[0].replay.set.Host: is the gateway's own header",
    ],
    [
      "{ match: 'POST /${A}', mode: replicate }",
      "1:14: rules[0].match: holds a variable; in rules only replay.set may",
    ],
    [
      "{ name: default-safe, match: POST /a, mode: replicate }",
      '1:13: rules[0].name: "default-safe" is the name of a rule that is always there',
    ],
    [
      "{ name: a b, match: POST /a, mode: replicate }",
      "1:13: rules[0].name: expected 1 to 63 letters, digits, dots, dashes or underscores",
    ],
  ])("%s", (rule, fault) => {
    expect(faults(`  - ${rule}\n`, {})).toEqual([fault]);
  });

  it("come all at once, also those of meaning in a rule that has others", () => {
    const text = [
      "  - { name: x, match: POST /a/:id, mode: replicate, order: ['{path.di}'], timeout: 5, statsu: 1 }",
      "  - { name: x, match: POST /b, mode: replicate, websocket: true }",
      "  - { name: y, match: { methd: GET }, mode: refuse, order: [a] }",
    ];
    expect(faults(`${text.join("\n")}\n`).map((fault) => fault.split(": ")[1])).toEqual([
      "rules[0].order[0]",
      "rules[0].timeout",
      "rules[0].statsu",
      "rules[1].name",
      "rules[1].websocket",
      "rules[2].match.methd",
      "rules[2].order",
    ]);
  });

  it("of the file itself are told as well", () => {
    expect(() => parseRules("rules: []", { file })).toThrow(/rules\.yaml:1:1: version: is missing/);
    expect(() => parseRules("version: 2", { file })).toThrow(/rules\.yaml:1:10: version: 2 is not 1/);
    expect(() => parseRules("version: 1\ndefaults: { safe: once }", { file })).toThrow(/defaults\.safe/);
    expect(() => parseRules("", { file })).toThrow(FaultsError);
    expect(() => parseRules("version: 1\nrules: { a: 1 }", { file })).toThrow(/rules: expected a list, got a map/);
  });
});

const warnings = (rules: string): string[] => parse(rules).warnings.map(short);

const conditional = (above: string): string =>
  `  - { match: { path: /a, query: { a: 1 } }, mode: ${above} }\n  - { match: { path: /a, query: { a: 1 } }, mode: refuse }\n`;
const once = (match: string, more = ""): number => warnings(`  - { match: ${match}, mode: only-once${more} }\n`).length;
const ignoring = (name: string): string => `
  - { match: POST /a, mode: replicate, compare: { body: json, ignore: [/created, /item/id] } }
  - { name: get, match: GET /a/:${name}, mode: only-once }\n`;

describe("warnings", () => {
  it.each([
    ["POST /a", "POST /a"],
    ["'* /a'", "POST /a"],
    ["POST /a/*", "POST /a/:id"],
    ["POST /a/*", "POST /a/b/*"],
    ["POST /a/*", "POST /a/"],
    ["POST /:x", "POST /a"],
    ["{ path: /a }", "{ path: /a, method: [PUT, POST], host: x, query: { a: 1 } }"],
    ["{ path: /a, host: '*.x.org' }", "{ path: /a, host: a.x.org }"],
    ["{ path: /a, query: { a: [1, 2] } }", "{ path: /a, query: { a: 2, b: 3 } }"],
    ["{ path: /a, body: { /m: [x, y] } }", "{ path: /a, body: { /m: y } }"],
    ["POST /a%62", "POST /ab"],
  ])("%s above shadows %s", (above, below) => {
    const rules = `  - { name: above, match: ${above}, mode: replicate }\n  - { match: ${below}, mode: replicate }\n`;
    expect(warnings(rules)).toEqual([
      '2:14: rules[1].match: never decides: everything it matches is matched by "above" above',
    ]);
  });

  it.each([
    ["POST /a", "PUT /a"],
    ["POST /a", "'* /a'"],
    ["GET /a", "HEAD /a"],
    ["POST /a/*", "POST /a"],
    ["POST /a/:x", "POST /a/*"],
    ["POST /:x", "POST /"],
    ["POST /A", "POST /a"],
    ["{ path: /a, host: x }", "{ path: /a }"],
    ["{ path: /a, host: '*.x.org' }", "{ path: /a, host: x.org }"],
    ["{ path: /a, query: { a: 1 } }", "{ path: /a, query: { b: 1 } }"],
    ["{ path: /a, body: { /m: [x] } }", "{ path: /a, body: { /m: [x, y] } }"],
    ["{ path: /a, body: { /m: '1' } }", "{ path: /a, body: { /m: 1 } }"],
  ])("%s above does not shadow %s", (above, below) => {
    expect(warnings(`  - { match: ${above}, mode: replicate }\n  - { match: ${below}, mode: replicate }\n`)).toEqual(
      [],
    );
  });

  it("several rules may shadow one together, method by method", () => {
    const rules = `
  - { match: POST /a, mode: replicate }
  - { match: PUT /*, mode: replicate }
  - { match: { method: [POST, PUT], path: /a }, mode: replicate }\n`;
    expect(warnings(rules.slice(1))[0]).toContain('"rule-1" and "rule-2"');
  });

  it("an only-once rule with conditions does not shadow a stricter one: it leaves it what is ambiguous", () => {
    expect(warnings(conditional("only-once, safe: true"))).toEqual([]);
    expect(warnings(conditional("replicate"))).toHaveLength(1);
  });

  it("unsafe only-once rules are told, safe ones are not", () => {
    expect([once("POST /a"), once("'* /a'"), once("GET /a", ", safe: false"), once("{ method: [GET, PUT] }")]).toEqual([
      1, 1, 1, 1,
    ]);
    expect([once("GET /a"), once("POST /a", ", safe: true"), once("{ method: [GET, HEAD] }")]).toEqual([0, 0, 0]);
    const { warnings: told } = parseRules("version: 1\ndefaults: { other: only-once }", { file });
    expect(told.map((w) => [w.path, w.line, w.column])).toEqual([["defaults.other", 2, 20]]);
  });

  it("ignoring a value by which another rule finds things is told", () => {
    expect(warnings(ignoring("id").slice(1))[0]).toMatch(
      /^1:82: rules\[0\]\.compare\.ignore\[1\]: \/item\/id is ignored, but "get"/,
    );
    expect(warnings(ignoring("other").slice(1))).toEqual([]);
  });
});

describe("replayed headers", () => {
  const rule =
    "  - { match: POST /a, mode: replicate, replay: { set: { Authorization: 'Bearer ${T}', x: '$$1 ${U:-u}' } } }\n";

  it("are kept as written and expanded by whoever sends", () => {
    const [first] = parse(rule).rules.rules;
    expect(first!.replay.set).toEqual({ authorization: "Bearer ${T}", x: "$$1 ${U:-u}" });
    expect(expandReplaySet(first!, { T: "t" })).toEqual({ authorization: "Bearer t", x: "$1 u" });
    expect(() => expandReplaySet(first!, {})).toThrow(/T is not set/);
    expect(() => expandReplaySet(first!, { T: "a\r\nx: y" })).toThrow(/cannot carry/);
  });

  it("whose variable is not set are a fault, where the environment is known", () => {
    expect(faults(rule)).toEqual([]);
    expect(faults(rule, {})).toEqual([
      "1:72: rules[0].replay.set.Authorization: the variable T is not set and has no default (${T:-…})",
    ]);
    expect(faults(rule, { T: "a\nb" })).toHaveLength(1);
    expect(faults(rule.replace("${T}", "${T"))).toHaveLength(1);
  });

  it("never bring a variable's value into the canonical text", () => {
    const { rules } = parse(rule, { T: "secret" });
    expect(rules.canonicalText).not.toContain("secret");
    expect(rules.digest).toBe(parse(rule).rules.digest);
  });
});

describe("the canonical text", () => {
  it("is this one, for ever: logs refer to it by its digest", () => {
    const { rules } = parse(`
  - { match: POST /a/:id, mode: replicate, order: ["a:{path.id}"], timeout: 90s, compare: { body: json, ignore: [/t] } }
  - { name: reads, match: { method: [HEAD, GET], header: { X-A: 1 }, query: { b: [x, y] } }, mode: only-once }
  - { match: "* /debug/*", mode: refuse }\n`);
    expect(rules.canonicalText).toBe(
      '{"defaults":{"other":"replicate","safe":"only-once"},"rules":[' +
        '{"compare":{"body":"json","headers":[],"ignore":["/t"],"status":true},"key":{"from":"{header.idempotency-key}","required":false},' +
        '"match":{"method":["POST"],"path":"/a/:id"},"mode":"replicate","name":"rule-1","order":["a:{path.id}"],' +
        '"outcome":{"notStarted":[],"unknown":[]},"replay":{"set":{}},"respond":"first","retry":"auto","timeout":"90s","unknown":"hold"},' +
        '{"consistency":"linearizable","key":{"from":"{header.idempotency-key}","required":false},' +
        '"match":{"header":{"X-A":["1"]},"method":["GET","HEAD"],"path":"/*","query":{"b":["x","y"]}},"mode":"only-once","name":"reads",' +
        '"outcome":{"notStarted":[],"unknown":[]},"retry":"auto","websocket":false},' +
        '{"match":{"path":"/debug/*"},"mode":"refuse","name":"rule-3","status":403}],"version":1}',
    );
    expect(rules.digest).toBe("9973fbdb0ce5c731686f6c92308c70e2e8b8bce884726f18fde955f2d698f2cb");
  });

  it("does not depend on how the file is written", () => {
    const a = parse("  - { match: POST /a, mode: replicate, timeout: 60s }\n");
    const b = parse(
      "  - mode: replicate   # comment\n    timeout: 1m\n    name: rule-1\n    respond: first\n    match: { path: /a, method: [POST, POST] }\n",
    );
    expect(b.rules.canonicalText).toBe(a.rules.canonicalText);
  });

  it("restores the same rules, in another process and as a file", () => {
    fc.assert(
      fc.property(rulesText, (text) => {
        const { rules } = parseRules(text, { file });
        const restored = rulesFromCanonicalText(rules.canonicalText);
        expect(restored).toEqual(rules);
        expect(parseRules(rules.canonicalText, { file }).rules).toEqual(rules);
      }),
      { numRuns: 300 },
    );
  });

  it("keeps its digest when a later version would write it differently", () => {
    const text = '{"version":1,"rules":[{"name":"a","mode":"refuse","match":{"path":"/a"}}]}';
    const restored = rulesFromCanonicalText(text);
    expect(restored.canonicalText).toBe(text);
    expect(restored.digest).not.toBe(parseRules(text, { file }).rules.digest);
    expect(restored.rules.map((rule) => rule.name)).toEqual(["a", "default-safe", "default-other"]);
    expect(() => rulesFromCanonicalText('{"version":1,"rules":[{"mode":"refuse"}]}')).toThrow();
  });
});

const retried = (
  safe: boolean | null,
  retry: "auto" | "safe" | "never" = "auto",
): { safe: boolean | null; retry: typeof retry } => ({
  safe,
  retry,
});
const safeBy = (safe: boolean | null): string[] =>
  ["GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "POST", "PUT", "get", "FOO"].filter((m) => isSafe(retried(safe), m));

describe("safe and repeatable", () => {
  it("safe is what the rule says, else what the method says", () => {
    expect(safeBy(null)).toEqual(["GET", "HEAD", "OPTIONS", "TRACE", "QUERY"]);
    expect(safeBy(true)).toHaveLength(9);
    expect(safeBy(false)).toEqual([]);
  });

  it("repeatable are PUT, DELETE and what is safe, unless the rule says otherwise", () => {
    const by = (r: ReturnType<typeof retried>): string[] =>
      ["GET", "PUT", "DELETE", "POST", "PATCH"].filter((m) => isRepeatable(r, m));
    expect(by(retried(null))).toEqual(["GET", "PUT", "DELETE"]);
    expect(by(retried(false))).toEqual(["PUT", "DELETE"]);
    expect(by(retried(null, "safe"))).toHaveLength(5);
    expect(by(retried(true, "never"))).toEqual([]);
  });
});
