// Texts with values of a request in them, `account:{path.id}`: parsed once with every fault named, rendered or null.
import { nearest } from "./fault.ts";
import { parsePointer, readPointer } from "./pointer.ts";
import { canonicalTarget } from "./target.ts";
import type { Parsed } from "./pointer.ts";

export type Part =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "path" | "query" | "header" | "name"; readonly name: string }
  | { readonly kind: "body"; readonly tokens: readonly string[] };

export interface Template {
  readonly text: string;
  readonly parts: readonly Part[];
  readonly needsBody: boolean;
}

/** `GET /orders/:id?ref={body.ref}`: a request of ours, made from values of the client's. */
export interface RequestTemplate {
  readonly text: string;
  readonly method: string;
  readonly target: Template;
}

/** What values are read from. Functions, because a query is parsed and a body decoded only where a template asks. */
export interface TemplateContext {
  readonly params: Readonly<Record<string, string>>;
  readonly query: () => { getAll: (name: string) => readonly string[] };
  /** Raw name, value, name, value. */
  readonly headers: readonly string[];
  /** The decoded JSON body; undefined when there is none. */
  readonly body: () => unknown;
  /** Values of bare names: `{name}`. */
  readonly names?: Readonly<Record<string, string>>;
}

export interface TemplateOptions {
  /** Parameters that the path pattern has; absent: any. */
  readonly params?: readonly string[];
  /** Bare names that are filled in. */
  readonly names?: readonly string[];
}

const sources = ["path", "query", "header", "body"] as const;
const token = /^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$/;

/** `{{` and `}}` are plain braces. */
export function parseTemplate(text: string, options: TemplateOptions = {}): Parsed<Template> {
  const parts: Part[] = [];
  let plain = "";
  for (const [piece, inner] of text.matchAll(/\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+/g)) {
    if (inner === undefined) {
      if (piece === "{" || piece === "}") return { ok: false, message: `"${text}" has a "${piece}" without its pair` };
      plain += piece === "{{" || piece === "}}" ? piece[0]! : piece;
      continue;
    }
    const part = parsePart(inner, options);
    if (!part.ok) return part;
    if (plain !== "") parts.push({ kind: "text", text: plain });
    plain = "";
    parts.push(part.value);
  }
  if (plain !== "") parts.push({ kind: "text", text: plain });
  const needsBody = parts.some((part) => part.kind === "body");
  return { ok: true, value: { text, parts, needsBody } };
}

function parsePart(inner: string, { params, names = [] }: TemplateOptions): Parsed<Part> {
  const dot = inner.indexOf(".");
  const source = dot === -1 ? inner : inner.slice(0, dot);
  const name = dot === -1 ? "" : inner.slice(dot + 1);
  const bad = (message: string, suggestion?: string): Parsed<Part> => ({
    ok: false,
    message: `{${inner}} ${message}`,
    ...(suggestion === undefined ? {} : { suggestion }),
  });
  if (dot === -1 && names.includes(inner)) return { ok: true, value: { kind: "name", name: inner } };
  if (name === "") {
    const near = nearest(inner, names);
    const known = [...names.map((n) => `{${n}}`), "{path.x}", "{query.x}", "{header.x}", "{body.x}"];
    return bad(`is not one of ${known.join(", ")}`, near === undefined ? undefined : `{${near}}`);
  }
  switch (source) {
    case "path": {
      if (params === undefined || params.includes(name)) return { ok: true, value: { kind: "path", name } };
      const near = nearest(name, params);
      const has = params.length === 0 ? "has no parameters" : `has ${params.map((p) => `:${p}`).join(", ")}`;
      return bad(`names no parameter of the path, which ${has}`, near === undefined ? undefined : `{path.${near}}`);
    }
    case "query":
      return { ok: true, value: { kind: "query", name } };
    case "header":
      if (!token.test(name)) return bad("is not the name of a header");
      return { ok: true, value: { kind: "header", name: name.toLowerCase() } };
    case "body": {
      if (!name.startsWith("/")) return { ok: true, value: { kind: "body", tokens: name.split(".") } };
      const pointer = parsePointer(name);
      return pointer.ok ? { ok: true, value: { kind: "body", tokens: pointer.value.tokens } } : pointer;
    }
    default: {
      const near = nearest(source, sources);
      const known = sources.map((s) => `{${s}.x}`).join(", ");
      return bad(`is not one of ${known}`, near === undefined ? undefined : `{${near}.${name}}`);
    }
  }
}

/** Null when a value is missing, there more than once, or not scalar. `encode` is applied to values, not to the text. */
export function render(
  template: Template,
  context: TemplateContext,
  encode: (value: string) => string = String,
): string | null {
  let text = "";
  for (const part of template.parts) {
    if (part.kind === "text") {
      text += part.text;
      continue;
    }
    const value = valueOf(part, context);
    if (value === null) return null;
    text += encode(value);
  }
  return text;
}

function valueOf(part: Exclude<Part, { kind: "text" }>, context: TemplateContext): string | null {
  switch (part.kind) {
    case "path":
      return own(context.params, part.name);
    case "name":
      return own(context.names ?? {}, part.name);
    case "query":
      return only(context.query().getAll(part.name));
    case "header":
      return only(headerValues(context.headers, part.name));
    case "body":
      return scalarText(readPointer(context.body(), part.tokens));
    default:
      return part satisfies never;
  }
}

/** The values of all lines with this lower-case name. */
export function headerValues(headers: readonly string[], name: string): string[] {
  const values: string[] = [];
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const candidate = headers[i]!;
    if (candidate.length === name.length && candidate.toLowerCase() === name) values.push(headers[i + 1]!);
  }
  return values;
}

/** A JSON scalar as text. Integers that a double cannot hold are none: two of them might become one. */
export function scalarText(value: unknown): string | null {
  if (typeof value === "string") return value;
  if (typeof value === "boolean") return String(value);
  if (typeof value !== "number" || !Number.isFinite(value)) return null;
  return Number.isInteger(value) && !Number.isSafeInteger(value) ? null : String(value);
}

export function parseRequestTemplate(text: string, options: TemplateOptions = {}): Parsed<RequestTemplate> {
  const [, method, target] = /^([A-Za-z0-9!#$%&'*+\-.^_`|~]+) (\/\S*)$/.exec(text) ?? [];
  if (method === undefined || target === undefined) {
    return { ok: false, message: `"${text}" is not a request such as "GET /orders/:id"` };
  }
  if (method !== method.toUpperCase()) {
    return {
      ok: false,
      message: `"${method}" is not a method`,
      suggestion: text.replace(method, method.toUpperCase()),
    };
  }
  const path = target.split("?", 1)[0]!;
  // ":id" is short for {path.id}, as in patterns.
  const long = path.replaceAll(/(?<=\/):([A-Za-z_]\w*)(?=\/|$)/g, "{path.$1}") + target.slice(path.length);
  const parsed = parseTemplate(long, options);
  if (!parsed.ok) return parsed;
  const sample = parsed.value.parts.map((part) => (part.kind === "text" ? part.text : "x")).join("");
  const checked = canonicalTarget(sample, { encodedSlash: "keep" });
  if (!checked.ok) return { ok: false, message: `"${target}" cannot be requested: ${checked.reason}` };
  return { ok: true, value: { text, method, target: parsed.value } };
}

/** Null when a value is missing or would make another request of it (`..`, a control character, nothing in the path). */
export function renderTarget(request: RequestTemplate, context: TemplateContext): string | null {
  const target = render(request.target, context, encodeValue);
  if (target === null) return null;
  const canonical = canonicalTarget(target, { encodedSlash: "keep" });
  return canonical.ok ? canonical.target : null;
}

function encodeValue(value: string): string {
  return encodeURIComponent(wellFormed(value));
}

/** A lone surrogate cannot be encoded; U+FFFD is what every UTF-8 encoder makes of it. */
function wellFormed(text: string): string {
  return text.replaceAll(/\p{Surrogate}/gu, "\ufffd");
}

function own(record: Readonly<Record<string, string>>, name: string): string | null {
  return Object.hasOwn(record, name) ? record[name]! : null;
}

function only(values: readonly string[]): string | null {
  return values.length === 1 ? values[0]! : null;
}
