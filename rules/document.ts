// YAML with places: a text becomes a typed value, or every fault in it with line and column. Safe on hostile text.
import {
  isAlias,
  isCollection,
  isMap,
  isPair,
  isScalar,
  isSeq,
  Lexer,
  LineCounter,
  parseDocument as parseYaml,
} from "yaml";
import { complain, complaintOf } from "./complaint.ts";
import { FaultsError, formatPath } from "./fault.ts";
import { expandVariables } from "./variables.ts";
import type { Document, Node, Pair } from "yaml";
import type { z } from "zod";
import type { DocumentPath, Fault } from "./fault.ts";
import type { Environment } from "./variables.ts";

// One door for those who read a file of ours.
export { FaultsError, formatFault, formatPath } from "./fault.ts";
export { durationMs, sizeBytes } from "./units.ts";
export { expandText, expandVariables } from "./variables.ts";
export type { DocumentPath, Fault } from "./fault.ts";

export interface ParsedDocument {
  readonly file: string;
  readonly text: string;
  readonly yaml: Document.Parsed;
  readonly lines: LineCounter;
  /** The whole document as plain data, before `${}` expansion. */
  readonly value: unknown;
}

export interface CheckOptions {
  /** Expand `${VAR}` inside string values from here. Absent: values stay as written. */
  readonly env?: Environment;
  /** Check only the node at this path. Faults still name the whole path. */
  readonly at?: DocumentPath;
  /** Lists and maps at these paths keep their `${}` as written: whoever reads them expands later. */
  readonly verbatim?: readonly DocumentPath[];
}

const textBytesMax = 1024 * 1024;
const depthMax = 64;
// Deeper indentation than this is nesting beyond depthMax or an attack on the parser's stack.
const indentMax = 512;
const aliasesMax = 100;
const faultsMax = 100;

/** Parses, or throws a FaultsError with every syntax fault. */
export function parseDocument(text: string, { file }: { file: string }): ParsedDocument {
  const lines = new LineCounter();
  const at = (offset: number, message: string): Fault => faultAtOffset({ file, text, lines }, offset, "", message);
  if (Buffer.byteLength(text) > textBytesMax) throw new FaultsError([at(0, "is larger than 1 MiB")]);
  const deep = offsetTooDeep(text);
  if (deep !== undefined) {
    // What the parser would have noted; the first line begins at 0.
    lines.addNewLine(0);
    for (let i = text.indexOf("\n"); i !== -1; i = text.indexOf("\n", i + 1)) lines.addNewLine(i + 1);
    throw new FaultsError([at(deep, `is nested more than ${depthMax} levels deep`)]);
  }
  // uniqueKeys compares each key with all before it (12 s for 60,000 keys, measured): `inspect` does it in one pass.
  const yaml = parseYaml(text, { lineCounter: lines, prettyErrors: false, uniqueKeys: false, strict: true });
  const document = { file, text, yaml, lines, value: undefined };
  const faults = [...yaml.errors, ...yaml.warnings].map((e) => at(e.pos[0], e.message));
  const { explicit, version } = yaml.directives.yaml;
  if (explicit === true && version !== "1.2") faults.push(at(0, `YAML ${version} is not read here, only 1.2`));
  if (faults.length === 0) inspect(document, yaml.contents, [], faults);
  if (faults.length > 0) throw new FaultsError(faults.slice(0, faultsMax));
  try {
    const value: unknown = yaml.toJS({ maxAliasCount: aliasesMax });
    if (isDeeperThan(value, depthMax)) throw new Error(`is nested more than ${depthMax} levels deep`);
    return { ...document, value };
  } catch (error) {
    throw new FaultsError([at(0, error instanceof Error ? error.message : String(error))]);
  }
}

/**
 * The value under a schema, or a FaultsError with every fault. A plain `${N}` that stands where a number or boolean is
 * expected is read as one.
 */
export function checkDocument<S extends z.ZodType>(
  document: ParsedDocument,
  schema: S,
  options: CheckOptions = {},
): z.output<S> {
  const at = options.at ?? [];
  const faults: Fault[] = [];
  const expanded = new Set<string>();
  const unset = new Set<string>();
  let value = valueAt(document.value, at);
  if (options.env !== undefined) {
    value = expandVariables(value, options.env, {
      at,
      verbatim: options.verbatim ?? [],
      onExpanded: (path) => expanded.add(formatPath(path)),
      onFault: (path, message) => {
        faults.push(faultAt(document, path, message));
        unset.add(formatPath(path));
      },
    });
  }
  let result = run(schema, value);
  if (!result.success && expanded.size > 0 && retype(value, at, result.error.issues, expanded))
    result = run(schema, value);
  if (!result.success) {
    for (const fault of faultsOf(document, at, result.error.issues)) if (!unset.has(fault.path)) faults.push(fault);
  }
  if (faults.length > 0) throw new FaultsError(inOrder(faults).slice(0, faultsMax));
  return result.data as z.output<S>;
}

/** Faults from top to bottom, each once. */
export function inOrder(faults: readonly Fault[]): Fault[] {
  const seen = new Set<string>();
  return faults
    .toSorted((a, b) => a.line - b.line || a.column - b.column)
    .filter((fault) => {
      const id = `${fault.line}:${fault.column}:${fault.path}:${fault.message}`;
      return !seen.has(id) && seen.add(id);
    });
}

/** A fault at the value of this path; with `key` at the key itself; at the nearest ancestor of what does not exist. */
export function faultAt(
  document: ParsedDocument,
  path: DocumentPath,
  message: string,
  options: { suggestion?: string | undefined; key?: boolean } = {},
): Fault {
  const offset = offsetOf(document, path, options.key ?? false);
  return faultAtOffset(document, offset, formatPath(path), message, options.suggestion);
}

/** The offset where nesting gets too deep, found by the lexer alone: the parser itself dies on such text (measured). */
function offsetTooDeep(text: string): number | undefined {
  let offset = 0;
  let flow = 0;
  let lineStart = true;
  let indicators = 0;
  for (const token of new Lexer().lex(text)) {
    // Marks the lexer adds: byte order, start of document, start of a scalar, end of flow.
    if (token === "\u0002" || token === "\u0018" || token === "\u001f") continue;
    if (token === "[" || token === "{") flow++;
    else if ((token === "]" || token === "}") && flow > 0) flow--;
    else if (token.includes("\n")) [lineStart, indicators] = [true, 0];
    else if (flow === 0 && (token === "-" || token === "?" || token === ":")) indicators++;
    if (flow > depthMax || indicators > depthMax) return offset;
    if (lineStart && !token.includes("\n")) {
      if (/^ +$/.test(token) && token.length > indentMax) return offset;
      lineStart = false;
    }
    offset += token.length;
  }
  return undefined;
}

/** What YAML allows and a configuration has no use for: duplicate keys, keys that are no text, `__proto__`. */
function inspect(document: ParsedDocument, node: unknown, path: DocumentPath, faults: Fault[]): void {
  if (path.length > depthMax) {
    faults.push(
      faultAtOffset(document, startOf(node as Node), formatPath(path), `is nested more than ${depthMax} levels deep`),
    );
    return;
  }
  if (isSeq(node)) node.items.forEach((item, i) => inspect(document, item, [...path, i], faults));
  if (!isMap(node)) return;
  const seen = new Map<string, Node>();
  for (const { key, value } of node.items as Pair<Node, Node>[]) {
    const bad = (message: string): number =>
      faults.push(faultAtOffset(document, startOf(key ?? node), formatPath(path), message));
    if (!isScalar(key)) {
      bad("a key is a plain text here");
      continue;
    }
    const name = String(key.value);
    const first = seen.get(name);
    if (first !== undefined) bad(`the key "${name}" is there twice, first in line ${lineOf(document, startOf(first))}`);
    // Own properties of that name are dropped or worse by most code that copies objects.
    if (name === "__proto__") bad(`"__proto__" cannot be a key`);
    seen.set(name, key);
    inspect(document, value, [...path, name], faults);
  }
}

/** Depth first and stops at the first branch that is too deep, so aliases to an ancestor end it as well. */
function isDeeperThan(value: unknown, levels: number): boolean {
  if (typeof value !== "object" || value === null) return false;
  if (levels === 0) return true;
  return Object.values(value).some((item) => isDeeperThan(item, levels - 1));
}

function valueAt(value: unknown, path: DocumentPath): unknown {
  let current = value;
  for (const step of path) {
    if (typeof current !== "object" || current === null || !Object.hasOwn(current, step)) return undefined;
    current = (current as Record<string | number, unknown>)[step];
  }
  return current;
}

/** Turns texts that came from variables into the numbers or booleans the schema asks for. True if one was. */
function retype(root: unknown, at: DocumentPath, issues: readonly z.core.$ZodIssue[], expanded: Set<string>): boolean {
  let hasChanged = false;
  for (const issue of issues) {
    if (issue.code !== "invalid_type" || issue.path.length === 0) continue;
    const path = issue.path as (string | number)[];
    if (!expanded.has(formatPath([...at, ...path]))) continue;
    const holder = valueAt(root, path.slice(0, -1)) as Record<string | number, unknown>;
    const text = holder[path.at(-1)!];
    if (typeof text !== "string") continue;
    if (["number", "int"].includes(issue.expected) && /^-?\d{1,15}(\.\d+)?$/.test(text))
      holder[path.at(-1)!] = Number(text);
    else if (issue.expected === "boolean" && /^(true|false)$/.test(text)) holder[path.at(-1)!] = text === "true";
    else continue;
    hasChanged = true;
  }
  return hasChanged;
}

function run<S extends z.ZodType>(schema: S, value: unknown): z.ZodSafeParseResult<z.output<S>> {
  return schema.safeParse(value, { error: (issue) => JSON.stringify(complain(issue)) });
}

function faultsOf(document: ParsedDocument, at: DocumentPath, issues: readonly z.core.$ZodIssue[]): Fault[] {
  return issues.flatMap((issue) => {
    const path = [...at, ...(issue.path as (string | number)[])];
    const { text, meant } = complaintOf(issue.message);
    if (issue.code === "unrecognized_keys") {
      return issue.keys.map((key) => {
        const suggestion = meant === undefined ? undefined : lookUp(meant, key);
        const known = suggestion === undefined ? text : "";
        return faultAt(document, [...path, key], `is not known here${known}`, { key: true, suggestion });
      });
    }
    if (issue.code === "invalid_key") {
      const inner = issue.issues[0];
      return [faultAt(document, path, inner === undefined ? text : complaintOf(inner.message).text, { key: true })];
    }
    // A union's own text wins; without one the branch that got furthest says what is wrong.
    if (issue.code === "invalid_union" && message(issue) === undefined) {
      const branch = nearestBranch(issue.errors);
      if (branch !== undefined) return faultsOf(document, path, branch);
    }
    const own: unknown = issue.code === "custom" ? issue.params?.["suggestion"] : undefined;
    return [faultAt(document, path, text, { suggestion: typeof own === "string" ? own : meant?.[""] })];
  });
}

function lookUp(meant: Readonly<Record<string, string>>, key: string): string | undefined {
  return Object.hasOwn(meant, key) ? meant[key] : undefined;
}

function message(issue: z.core.$ZodIssueInvalidUnion): string | undefined {
  return issue.message.startsWith('{"text":') ? undefined : issue.message;
}

function nearestBranch(errors: readonly z.core.$ZodIssue[][]): readonly z.core.$ZodIssue[] | undefined {
  // A branch that complains of the kind of the value itself was not meant.
  const meant = errors.filter((issues) => !issues.some((i) => i.path.length === 0 && i.code === "invalid_type"));
  return meant.length === 1 ? meant[0] : undefined;
}

function faultAtOffset(
  { file, text, lines }: Pick<ParsedDocument, "file" | "text" | "lines">,
  offset: number,
  path: string,
  message: string,
  suggestion?: string,
): Fault {
  const { line, col } = offset > 0 ? lines.linePos(Math.min(offset, text.length)) : { line: 1, col: 1 };
  const start = offset > 0 ? text.lastIndexOf("\n", offset - 1) + 1 : 0;
  const end = text.indexOf("\n", offset);
  const source = text.slice(start, end === -1 ? undefined : end).replace(/\r$/, "");
  return { file, line, column: col, path, message, source, ...(suggestion === undefined ? {} : { suggestion }) };
}

function lineOf({ lines }: ParsedDocument, offset: number): number {
  return lines.linePos(offset).line;
}

function offsetOf(document: ParsedDocument, path: DocumentPath, wantsKey: boolean): number {
  let node: unknown = document.yaml.contents;
  let offset = startOf(node as Node | null);
  for (const [i, step] of path.entries()) {
    if (isAlias(node)) node = node.resolve(document.yaml);
    let next: unknown;
    if (isMap(node)) {
      const pair = node.items.find(
        (item) => isPair(item) && isScalar(item.key) && String(item.key.value) === String(step),
      );
      if (pair === undefined) return offset;
      // The value of `key:` with nothing behind it stands, for a reader, at its key.
      if ((wantsKey && i === path.length - 1) || isEmpty(pair.value)) return startOf(pair.key as Node);
      next = pair.value;
    } else if (isCollection(node)) {
      next = node.items[Number(step)];
    }
    if (next === undefined || next === null) return offset;
    node = next;
    offset = startOf(node as Node);
  }
  return offset;
}

function isEmpty(node: unknown): boolean {
  return isScalar(node) && node.value === null && (node.source === "" || node.source === undefined);
}

function startOf(node: Node | null | undefined): number {
  return node?.range?.[0] ?? 0;
}
