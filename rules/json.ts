// A JSON body as rules may read it: null where it cannot be read, and told apart where parsers would disagree.
import { headerValues } from "./template.ts";

export interface JsonBody {
  readonly value: unknown;
  /** Some object has a key twice: which one counts is the parser's choice. */
  readonly isAmbiguous: boolean;
}

/** Null: no body, encoded, in another charset, or no JSON. The declared type does not matter: many servers ignore it. */
export function readJson(body: Buffer | null, headers: readonly string[]): JsonBody | null {
  if (body === null || body.length === 0 || !isPlain(headers)) return null;
  let value: unknown;
  try {
    // Buffer's own decoder keeps a byte order mark, which some servers skip and JSON.parse refuses.
    value = JSON.parse(body.toString("utf8").replace(/^\uFEFF/, ""));
  } catch {
    return null;
  }
  return { value, isAmbiguous: countColons(body) !== countMembers(value) };
}

/** What templates read: undefined for an ambiguous body, so that nothing is ordered by a value the backend may not see. */
export function readBody(body: Buffer | null, headers: readonly string[]): unknown {
  const json = readJson(body, headers);
  return json === null || json.isAmbiguous ? undefined : json.value;
}

function isPlain(headers: readonly string[]): boolean {
  const encoded = headerValues(headers, "content-encoding").some((value) => value.toLowerCase() !== "identity");
  const charset = /;\s*charset\s*=\s*"?([^";\s]*)/i.exec(headerValues(headers, "content-type").join(";"))?.[1];
  return !encoded && (charset === undefined || /^(utf-?8|us-ascii)$/i.test(charset));
}

/** Outside strings: one for each member as written. */
function countColons(json: Buffer): number {
  let colons = 0;
  let isString = false;
  for (let i = 0; i < json.length; i++) {
    const byte = json[i];
    if (isString) {
      if (byte === 0x5c) i++;
      else if (byte === 0x22) isString = false;
    } else if (byte === 0x22) isString = true;
    else if (byte === 0x3a) colons++;
  }
  return colons;
}

/** One for each member that the parser kept. Without recursion: a body may nest 100,000 levels. */
function countMembers(value: unknown): number {
  let members = 0;
  const open: unknown[] = [value];
  while (open.length > 0) {
    const node = open.pop();
    if (typeof node !== "object" || node === null) continue;
    const items: unknown[] = Array.isArray(node) ? (node as unknown[]) : Object.values(node);
    if (!Array.isArray(node)) members += items.length;
    for (const item of items) if (typeof item === "object") open.push(item);
  }
  return members;
}
