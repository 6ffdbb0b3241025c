// Random rules and requests out of few words, so that they meet often.
import * as fc from "fast-check";

const segment = fc.constantFrom("a", "b", ":x", ":y", "a%20b", "");
const path = fc
  .tuple(
    fc.oneof({ weight: 2, arbitrary: fc.array(segment, { maxLength: 2 }) }, fc.array(segment, { maxLength: 4 })),
    fc.constantFrom("", "/*", "/"),
  )
  .map(([segments, end]) => `/${segments.join("/")}${segments.length === 0 && end !== "" ? end.slice(1) : end}`)
  .filter((text) => {
    const names = text.split("/").filter((s) => s.startsWith(":"));
    return new Set(names).size === names.length;
  });
const method = fc.constantFrom("GET", "HEAD", "POST", "PUT", "FOO");
const values = fc.uniqueArray(fc.constantFrom("1", "2", "3"), { minLength: 1, maxLength: 2 });
const scalars = fc.uniqueArray(fc.constantFrom<string | number | null>("1", 1, "x", null), {
  minLength: 1,
  maxLength: 2,
});
const host = fc.constantFrom("x.org", "a.x.org", "b.a.x.org", "y.org");
const optional = { requiredKeys: ["path"] as ["path"] };

const conditions = {
  method: fc.uniqueArray(method, { minLength: 1, maxLength: 3 }),
  host: fc.oneof(host, fc.constantFrom("*.x.org", "*.a.x.org")),
  header: fc.dictionary(fc.constantFrom("x-a", "X-B"), values, { minKeys: 1, maxKeys: 2, noNullPrototype: true }),
  query: fc.dictionary(fc.constantFrom("q", "r"), values, { minKeys: 1, maxKeys: 2, noNullPrototype: true }),
  body: fc.dictionary(fc.constantFrom("/m", "/p/0", "/o/k"), scalars, {
    minKeys: 1,
    maxKeys: 2,
    noNullPrototype: true,
  }),
};
// Half of them with a path and one condition at most, else few requests would meet a rule.
const one = fc
  .constantFrom(...(Object.keys(conditions) as (keyof typeof conditions)[]))
  .chain((key) => fc.record({ path, [key]: conditions[key] }, optional));
const match: fc.Arbitrary<RandomMatch> = fc.oneof(fc.record({ path, ...conditions }, optional), one);

export interface RandomMatch {
  readonly path: string;
  readonly method?: readonly string[];
  readonly host?: string;
  readonly header?: Readonly<Record<string, string[]>>;
  readonly query?: Readonly<Record<string, string[]>>;
  readonly body?: Readonly<Record<string, (string | number | null)[]>>;
}

export interface RandomRule {
  readonly name: string;
  readonly match: RandomMatch;
  readonly mode: "replicate" | "only-once" | "refuse";
  readonly safe?: boolean;
}

export const rules: fc.Arbitrary<RandomRule[]> = fc
  .array(
    fc.record(
      { match, mode: fc.constantFrom("replicate", "only-once", "refuse"), safe: fc.boolean() },
      { requiredKeys: ["match", "mode"] },
    ),
    { maxLength: 12 },
  )
  .map((list) =>
    list.map(({ safe, ...rule }, i) => ({
      ...rule,
      name: `r${i}`,
      ...(safe === undefined || rule.mode === "refuse" ? {} : { safe }),
    })),
  );

const options = fc.record(
  {
    respond: fc.constantFrom("first", "majority", "all"),
    retry: fc.constantFrom("auto", "safe", "never"),
    timeout: fc.constantFrom("5s", "1500ms", "1h", "7d"),
    order: fc.constantFrom(["all"], ["{query.q}", "{body.a.b}"], ["k:{header.x-a}"]),
    key: fc.constantFrom({}, { required: true }, { from: "{body.key}" }),
    outcome: fc.constantFrom({}, { notStarted: [503] }),
    compare: fc.constantFrom(
      { body: "bytes" },
      { body: "json", ignore: ["/a/*/b"] },
      { headers: ["Location", "etag"] },
    ),
    replay: fc.constant({ set: { authorization: "${A:-b}" } }),
    probe: fc.constant({ request: "GET /a?b={body.a}", applied: { status: 200, body: { "/a": ["{body.a}", 1] } } }),
  },
  { requiredKeys: [] },
);

/** Whole files, as JSON, which is YAML. */
export const rulesText: fc.Arbitrary<string> = fc
  .tuple(rules, fc.array(options, { minLength: 12, maxLength: 12 }), fc.constantFrom("only-once", "replicate"))
  .map(([list, more, safe]) => {
    const full = list.map((rule, i) => (rule.mode === "replicate" ? { ...more[i], ...rule } : rule));
    return JSON.stringify({ version: 1, defaults: { safe }, rules: full });
  });

const pathPart = fc.constantFrom("a", "b", "c", "a%20b", "%61", "");
const bodyMember = fc.oneof(
  fc.constantFrom<unknown>(1, null, "x", []),
  fc.record(
    {
      m: fc.constantFrom<unknown>("1", 1, "x", null, {}),
      p: fc.constantFrom<unknown>(["1"], [1], [], "x", [null]),
      o: fc.constantFrom<unknown>({ k: "x" }, { k: 1 }, {}),
    },
    { requiredKeys: [] },
  ),
);

export interface RandomRequest {
  readonly line: string;
  readonly host: string;
  readonly headers: string[];
  readonly body: unknown;
}

export const request: fc.Arbitrary<RandomRequest> = fc.record({
  line: fc
    .tuple(
      method,
      fc.array(pathPart, { minLength: 1, maxLength: 5 }),
      fc.array(fc.constantFrom("q=1", "q=2", "r=1", "r=4", "s"), { maxLength: 3 }),
    )
    .map(([m, parts, query]) => `${m} /${parts.join("/")}${query.length > 0 ? `?${query.join("&")}` : ""}`),
  host: fc.tuple(host, fc.constantFrom("", ":80")).map(([name, port]) => name.toUpperCase() + port),
  headers: fc
    .array(fc.tuple(fc.constantFrom("X-A", "x-a", "x-b", "z"), fc.constantFrom("1", "2", "4")), { maxLength: 4 })
    .map((pairs) => pairs.flat()),
  body: fc.oneof(bodyMember, fc.array(bodyMember, { maxLength: 3 }), fc.constant(undefined)),
});
