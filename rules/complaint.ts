// What zod found wrong, in words for the person who wrote the value, with what was probably meant.
import { nearest } from "./fault.ts";
import type { z } from "zod";

export interface Complaint {
  readonly text: string;
  readonly meant?: Readonly<Record<string, string>>;
}

/** What the error map knows and the finished issue has lost: which keys the schema has, which value was given. */
export function complain(issue: z.core.$ZodRawIssue): Complaint {
  const input = issue.input;
  switch (issue.code) {
    case "invalid_type":
      return { text: input === undefined ? "is missing" : `expected ${kindName(issue.expected)}, got ${show(input)}` };
    case "invalid_value": {
      const values = issue.values.map(String);
      if (input === undefined) return { text: `is missing (${values.join(", ")})` };
      const text =
        values.length === 1
          ? `${show(input)} is not ${values[0]}`
          : `${show(input)} is not one of ${values.join(", ")}`;
      const meant = typeof input === "string" ? nearest(input, values) : undefined;
      return meant === undefined ? { text } : { text, meant: { "": meant } };
    }
    case "unrecognized_keys": {
      const def = (issue.inst as z.ZodType | undefined)?._zod.def as { shape?: Record<string, unknown> } | undefined;
      const known = Object.keys(def?.shape ?? {});
      const text = known.length === 0 ? "" : `: one of ${known.join(", ")}`;
      const meant = issue.keys.flatMap((key) => {
        const near = nearest(key, known);
        return near === undefined ? [] : [[key, near]];
      });
      return { text, meant: Object.fromEntries(meant) as Record<string, string> };
    }
    case "too_small":
      return { text: range(issue.origin, issue.minimum, issue.inclusive === false ? "more than" : "at least", input) };
    case "too_big":
      return { text: range(issue.origin, issue.maximum, issue.inclusive === false ? "less than" : "at most", input) };
    case "invalid_format":
      return {
        text: `${show(input)} is not ${issue.format === "regex" ? "of the right form" : `a valid ${issue.format}`}`,
      };
    case "not_multiple_of":
      return { text: `${show(input)} is not a multiple of ${issue.divisor}` };
    case "invalid_union":
      if (input === undefined) return { text: "is missing" };
      return { text: `${show(input)} is of no form that is allowed here` };
    case "invalid_key":
      return { text: "is not a valid key" };
    default:
      return { text: issue.message ?? "is not valid" };
  }
}

/** A schema's own error text comes as it is; ours went through zod as JSON. */
export function complaintOf(message: string): Complaint {
  return message.startsWith('{"text":') ? (JSON.parse(message) as Complaint) : { text: message };
}

function range(origin: string, limit: number | bigint, words: string, input: unknown): string {
  if (origin === "string") return `has to be ${words} ${limit} characters long`;
  if (origin === "array" || origin === "set") return `has to have ${words} ${limit} ${limit === 1 ? "item" : "items"}`;
  return `${show(input)} is out of range: ${words} ${limit}`;
}

function kindName(expected: string): string {
  const names: Record<string, string> = {
    object: "a map",
    record: "a map",
    array: "a list",
    string: "a text",
    int: "a whole number",
  };
  return names[expected] ?? `a ${expected}`;
}

function show(value: unknown): string {
  if (value === undefined) return "nothing";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object" && value !== null) return "a map";
  const text = JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 79)}…` : text;
}
