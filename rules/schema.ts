// What a rules file may say: names, defaults, ranges and help text, in this one place. What it means is in compile.ts.
import { z } from "zod";
import { nearestMethod } from "./pattern.ts";
import { durationMs } from "./units.ts";

const token = /^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$/;
const status = z.int().min(200).max(599);
const list = <T extends z.ZodType>(item: T) => z.union([item.transform((one) => [one]), z.array(item).min(1)]);

export const modes = ["replicate", "only-once", "refuse"] as const;
const mode = z.enum(modes);

const method = z.string().superRefine((text, context) => {
  if (token.test(text) && text === text.toUpperCase()) return;
  const suggestion = nearestMethod(text);
  context.addIssue({ code: "custom", message: `"${text}" is not a method in upper case`, params: { suggestion } });
});
const headerName = z
  .string()
  .regex(token, { error: (issue) => `"${String(issue.input)}" is not the name of a header` });
const text = z.union([z.string(), z.number().transform(String), z.boolean().transform(String)], {
  error: "expected a text or a list of texts",
});
const scalar = z.union([z.string(), z.number(), z.boolean(), z.null()], {
  error: "expected a text, a number, true, false or null",
});
const texts = list(text).describe("One of these values");
const scalars = list(scalar).describe("One of these values");

const matchObject = z.strictObject({
  method: list(method).optional().describe("One or several methods; absent: any. HEAD is not implied by GET"),
  path: z.string().default("/*").describe("`:id` is one segment, `*` at the end everything below"),
  host: z
    .string()
    .regex(/^(\*\.)?(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])$/, {
      error: "expected a host without port, or *.example.org",
    })
    .transform((host) => host.toLowerCase())
    .optional()
    .describe("Host without port, any case; `*.example.org` is every host below"),
  header: z.record(headerName, texts).optional().describe("Headers and their values"),
  query: z.record(z.string(), texts).optional().describe("Query parameters and their values"),
  body: z.record(z.string(), scalars).optional().describe("JSON pointers into the body and their values"),
});

const match = z
  .union([z.string(), matchObject])
  .describe("`POST /orders`, `* /debug/*`, or the parts of it: method, path, host, header, query, body");

export const ruleSchema = z.strictObject({
  name: z
    .string()
    .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/, {
      error: "expected 1 to 63 letters, digits, dots, dashes or underscores",
    })
    .optional()
    .describe("What metrics and messages call it. Default: rule-N, counted from 1"),
  match,
  mode: mode.describe(
    "replicate: on every copy, in one order. only-once: by one copy. refuse: by the gateway, with a status",
  ),
  safe: z
    .boolean()
    .optional()
    .describe("Says that the request changes nothing, or that a GET does. Default: by method"),
  respond: z.enum(["first", "majority", "all"]).default("first").describe("Whose answer the client gets, and when"),
  key: z
    .strictObject({
      required: z.boolean().default(false).describe("Answer 400 where there is none"),
      from: z.string().default("{header.idempotency-key}").describe("Where the key stands"),
    })
    .prefault({})
    .describe("The key that makes retries safe"),
  retry: z
    .enum(["auto", "safe", "never"])
    .default("auto")
    .describe("Whether a request whose outcome is unknown may be sent again. auto: by method"),
  unknown: z
    .enum(["hold", "assume-applied"])
    .default("hold")
    .describe("What to do where nothing else settles an unknown outcome"),
  probe: z
    .strictObject({
      request: z.string().describe("`GET /orders?ref={body.ref}`"),
      applied: z
        .strictObject({
          status: list(status).optional().describe("Statuses that mean: it was applied. Default: any 2xx"),
          body: z
            .record(z.string(), scalars)
            .optional()
            .describe("JSON pointers into the answer and the values that mean so"),
        })
        .describe("The answer that means: it was applied"),
    })
    .optional()
    .describe("How to ask a copy whether it has applied a request"),
  outcome: z
    .strictObject({
      notStarted: z.array(status).default([]).describe("Statuses that mean: not done"),
      unknown: z.array(status).default([]).describe("Statuses that mean: who knows"),
    })
    .prefault({})
    .describe("Answers that are none. Default: any answer is an answer"),
  compare: z
    .strictObject({
      status: z.boolean().default(true).describe("The status decides"),
      headers: z.array(headerName).default([]).describe("Headers that decide"),
      body: z.enum(["bytes", "json", "off"]).default("off").describe("Whether and how the body decides"),
      ignore: z.array(z.string()).default([]).describe("JSON pointers that do not count; `*` is any one key or index"),
    })
    .prefault({})
    .describe("Which differences between copies decide; bodies are always compared and reported"),
  replay: z
    .strictObject({
      set: z
        .record(headerName, z.string())
        .default({})
        .describe("Headers used when an entry is replayed later; ${VAR} is expanded when it is sent"),
    })
    .prefault({})
    .describe("What is different when an entry is replayed later"),
  timeout: durationMs.optional().describe("Until the first byte of the answer. Default: timeouts.firstByte"),
  order: z
    .array(z.string())
    .min(1)
    .optional()
    .describe("Templates of keys; requests that share none run side by side. Absent: total order"),
  before: z
    .string()
    .optional()
    .describe(
      "`GET /orders/:id`: read on each copy before the request is applied, so that undo can put it back; order must keep apart what touches it. Not read for requests that may be sent again. At most limits.inline",
    ),
  undo: z
    .string()
    .optional()
    .describe(
      "`PUT /orders/:id` with what before was answered, where the outcome is unknown; DELETE of it where before was answered 404 or 410. Then the request is sent again",
    ),
  consistency: z
    .enum(["linearizable", "session", "any"])
    .default("linearizable")
    .describe("What a read may miss. session: nothing this client has seen"),
  websocket: z.boolean().default(false).describe("Allow upgrades"),
  affinity: z
    .string()
    .regex(/^(?:(?:cookie|header):[A-Za-z0-9!#$%&'*+\-.^_`|~]+|client)$/, {
      error: (issue) => `"${String(issue.input)}" is not cookie:NAME, header:NAME or client`,
    })
    .optional()
    .describe("What keeps a client on one copy: `cookie:NAME`, `header:NAME` or `client`"),
  status: z.int().min(400).max(599).default(403).describe("What a refused request is answered"),
});

export const rulesFileSchema = z.strictObject({
  version: z.literal(1).describe("Of this format"),
  defaults: z
    .strictObject({
      safe: mode.default("only-once").describe("GET, HEAD, OPTIONS, TRACE and QUERY that no rule matches"),
      other: mode.default("replicate").describe("Everything else that no rule matches"),
    })
    .prefault({})
    .describe("What happens where no rule matches"),
  rules: z.array(ruleSchema).max(10_000).default([]).describe("The first match wins, from top to bottom"),
});

/** Inline in gateway.yaml: the list alone. */
export const rulesListSchema = rulesFileSchema.shape.rules;

export type Mode = (typeof modes)[number];
export type RulesFile = z.output<typeof rulesFileSchema>;
export type RuleText = RulesFile["rules"][number];
export type MatchText = z.output<typeof matchObject>;
export type RuleOption = Exclude<keyof RuleText, "name" | "match" | "mode">;

const everyReplicate = ["safe", "respond", "key", "retry", "unknown", "probe", "outcome", "compare", "replay"] as const;
const ofReplicate = [...everyReplicate, "timeout", "order", "before", "undo"] as const;
const ofOnlyOnce = [
  "safe",
  "key",
  "retry",
  "outcome",
  "timeout",
  "order",
  "consistency",
  "websocket",
  "affinity",
] as const;

/** The options that mean something in a mode. */
export const optionsOf: Readonly<Record<Mode, readonly RuleOption[]>> = {
  replicate: ofReplicate,
  "only-once": ofOnlyOnce,
  refuse: ["status"],
};
