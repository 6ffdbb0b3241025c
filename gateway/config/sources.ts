// Where values come from: the file, then GATEWAY_… variables, then flags, laid over each other; a fault names its own source.

import { readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { checkDocument, faultAt, FaultsError, formatPath, parseDocument } from "../../rules/document.ts";
import { nearest } from "../../rules/fault.ts";
import { configSchema, secretPaths } from "./schema.ts";
import { findShape, shapeOf } from "./shape.ts";
import { secretsOfStore } from "./storeaddress.ts";
import type { DocumentPath, Fault, ParsedDocument } from "../../rules/document.ts";
import type { ParsedConfig } from "./schema.ts";
import type { Shape } from "./shape.ts";

/** The flags of `gateway run` that stand for keys of the file. */
export interface Flags {
  readonly replica?: readonly string[];
  readonly listen?: string;
  readonly admin?: string;
  readonly data?: string;
  readonly rules?: string;
}

export interface SourcesOptions {
  readonly file: string | null;
  readonly text?: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly flags: Flags;
  readonly cwd: string;
}

interface Overlay {
  readonly path: DocumentPath;
  /** `GATEWAY_LOG__MAX` or `--listen`. */
  readonly label: string;
  readonly value: unknown;
}

export interface Sources {
  /** Absolute; null: there is none. */
  readonly file: string | null;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** The file itself, for whoever reads a part of it (inline rules). Null: there is none, or the value came from elsewhere. */
  documentOf(path: DocumentPath): ParsedDocument | null;
  /** The value at a path, variables not yet expanded. */
  valueAt(path: DocumentPath): unknown;
  /** The typed configuration, and its faults. With faults it is what is left of it, good for finding more; null: nothing is. */
  check(): {
    readonly config: ParsedConfig | null;
    readonly faults: readonly Fault[];
    readonly warnings: readonly Fault[];
  };
  fault(path: DocumentPath, message: string, options?: { suggestion?: string; key?: boolean }): Fault;
  /** A relative path in the file starts at the file, one in a flag or a variable at the working folder. */
  resolve(path: DocumentPath, text: string): string;
}

/** Reads and overlays; throws a FaultsError when the file cannot be read or is no YAML. */
export function openSources(options: SourcesOptions): Sources {
  const { env, cwd } = options;
  const file = options.file === null ? null : resolve(cwd, options.file);
  const document = parse(options, file);
  const root = shapeOf(configSchema);
  const wrong: Fault[] = [];
  const warnings: Fault[] = [];
  const overlays = [...fromEnvironment(env, root, wrong, warnings), ...fromFlags(options.flags)];
  const merged = structuredClone(document.value ?? {});
  for (const overlay of overlays) {
    if (!lay(merged, overlay)) {
      wrong.push(overlaid(overlay.label, overlay.path, "goes into a value that has another form in the file"));
    }
  }

  const overlayOf = (path: string): Overlay | undefined =>
    overlays.findLast(({ path: of }) => {
      const at = formatPath(of);
      return path === at || path.startsWith(`${at}.`) || path.startsWith(`${at}[`);
    });

  const placed = (fault: Fault): Fault => {
    const overlay = overlayOf(fault.path);
    if (overlay === undefined && file !== null) return fault;
    const { source: _, ...rest } = fault;
    return { ...rest, file: overlay?.label ?? "configuration", line: 0, column: 0 };
  };

  return {
    file,
    env,
    documentOf: (path) => (file === null || overlayOf(formatPath(path)) !== undefined ? null : document),
    valueAt: (path) => valueAt(merged, path),
    check() {
      const { config, faults } = typed({ ...document, value: merged }, env);
      return {
        config,
        faults: [...faults.map((fault) => rephrase(placed(fault), merged)), ...wrong],
        warnings,
      };
    },
    fault(path, message, extra = {}) {
      return placed(faultAt(document, path, message, extra));
    },
    resolve(path, text) {
      return resolve(file === null || overlayOf(formatPath(path)) !== undefined ? cwd : dirname(file), text);
    },
  };
}

/** Parses; where that fails, again without what was wrong, so that what depends on other keys is checked as well. */
function typed(
  document: ParsedDocument,
  env: Readonly<Record<string, string | undefined>>,
): { config: ParsedConfig | null; faults: readonly Fault[] } {
  const attempt = (value: unknown): ParsedConfig | readonly Fault[] => {
    try {
      return checkDocument({ ...document, value }, configSchema, { env, verbatim: [["rules"]] });
    } catch (error) {
      if (error instanceof FaultsError) return error.faults;
      throw error;
    }
  };
  const first = attempt(document.value);
  if (!isFaults(first)) return { config: first, faults: [] };
  const rest = structuredClone(document.value);
  let left: readonly Fault[] = first;
  // Where a map cannot be without what was wrong in it, the map goes next. Ends: paths get shorter.
  for (let steps = 0; ; steps++) {
    const paths = left.map(({ path }) => parsePath(path)).map((path) => path.slice(0, path.length - steps));
    if (paths.every((path) => path.length === 0)) return { config: null, faults: first };
    for (const path of paths) remove(rest, path);
    const next = attempt(rest);
    if (!isFaults(next)) return { config: next, faults: first };
    left = next;
  }
}

function isFaults(result: ParsedConfig | readonly Fault[]): result is readonly Fault[] {
  return Array.isArray(result);
}

/** The steps of `replicas[0].env["a b"]`. */
function parsePath(path: string): (string | number)[] {
  return [...path.matchAll(/\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]|([A-Za-z_][\w-]*)/g)].map(
    ([, index, quoted, plain = ""]) => {
      if (index !== undefined) return Number(index);
      return quoted === undefined ? plain : (JSON.parse(quoted) as string);
    },
  );
}

/** Takes a wrong value out: of a list the whole list, of a replica that replica, whose place is kept for the others. */
function remove(root: unknown, path: readonly (string | number)[]): void {
  const index = path.findIndex((step) => typeof step === "number");
  const isReplica = path[0] === "replicas" && index === 1;
  const steps = index === -1 ? path : path.slice(0, isReplica ? 2 : index);
  const holder = valueAt(root, steps.slice(0, -1));
  const last = steps.at(-1);
  if (last === undefined || typeof holder !== "object" || holder === null) return;
  if (Array.isArray(holder)) holder[Number(last)] = { name: `wrong-${last}`, url: `http://wrong-${last}.invalid` };
  else delete (holder as Record<string, unknown>)[last];
}

/** Values that must not appear in a fault, as the file, the environment and the variables in it give them. */
export function secretsIn(options: SourcesOptions): readonly string[] {
  const values: string[] = [];
  const add = (value: unknown): void => {
    if (typeof value === "string" && value.length > 0) values.push(value);
  };
  for (const [name, value] of Object.entries(options.env)) {
    const key = name.toLowerCase();
    if (secretVariable.test(key)) add(value);
  }
  try {
    const { value } = parse(options, options.file === null ? null : resolve(options.cwd, options.file));
    for (const store of matching(value, ["snapshots", "store"])) {
      if (typeof store === "string") for (const part of secretsOfStore(store)) add(part);
    }
    for (const path of secretPaths) {
      for (const found of matching(value, path)) {
        add(found);
        if (typeof found !== "string") continue;
        for (const [, name = ""] of found.matchAll(/\$\{([A-Za-z_]\w*)/g)) add(options.env[name]);
      }
    }
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
  }
  // Very short ones would blank out the message; a token that short is refused anyway.
  return values.filter((value) => value.length >= 4 && !value.startsWith("${"));
}

const secretVariable =
  /^gateway_(admin__token|keys__redis__url|replicas__env__.*|snapshots__(storepassword|encrypt__key)|registry__ethereum__(key|keypassword))$/;

function matching(value: unknown, path: readonly string[]): unknown[] {
  const [step, ...rest] = path;
  if (step === undefined) return [value];
  if (typeof value !== "object" || value === null) return [];
  if (step === "*") return Object.values(value).flatMap((next) => matching(next, rest));
  return Object.hasOwn(value, step) ? matching((value as Record<string, unknown>)[step], rest) : [];
}

function parse({ text }: SourcesOptions, file: string | null): ParsedDocument {
  const name = file === null ? "gateway.yaml" : shown(file);
  if (file === null || text !== undefined) return parseDocument(text ?? "", { file: name });
  try {
    return parseDocument(readFileSync(file, "utf8"), { file: name });
  } catch (error) {
    if (error instanceof FaultsError) throw error;
    throw new FaultsError([{ file: name, line: 0, column: 0, path: "", message: readFault(error) }]);
  }
}

/** Paths are shown as a person would type them. */
export function shown(file: string): string {
  const here = `${process.cwd()}/`;
  return file.startsWith(here) ? file.slice(here.length) : file;
}

export function readFault(error: unknown): string {
  const code = (error as NodeJS.ErrnoException).code;
  if (code === "ENOENT") return "does not exist";
  if (code === "EACCES") return "may not be read by this user";
  if (code === "EISDIR") return "is a folder, not a file";
  return `cannot be read (${code ?? String(error)})`;
}

// Of the CLI, not of the file.
const ownNames = new Set([
  "GATEWAY_ADMIN_URL",
  "GATEWAY_ADMIN_TOKEN_FILE",
  // Of tests: gateway/steps.ts.
  "GATEWAY_STEPS_FILE",
  "GATEWAY_CRASH_AT",
  "GATEWAY_CRASH_PARENT",
]);
// Kubernetes sets these for any service that is called "gateway".
const kubernetes =
  /^GATEWAY_(?:[A-Z0-9_]*_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_\d+_(?:TCP|UDP)(?:_[A-Z]+)?)?)$/;

function fromEnvironment(
  env: Readonly<Record<string, string | undefined>>,
  root: Shape,
  faults: Fault[],
  warnings: Fault[],
): Overlay[] {
  const overlays: Overlay[] = [];
  for (const [name, text] of Object.entries(env).toSorted(([a], [b]) => (a < b ? -1 : 1))) {
    if (text === undefined || !/^gateway_/i.test(name) || ownNames.has(name) || kubernetes.test(name)) continue;
    const steps = name.slice("gateway_".length).split("__");
    const found = findShape(root, steps);
    if ("known" in found) {
      const meant = nearest(steps.at(-1) ?? "", found.known);
      const fault: Fault = {
        ...overlaid(name, [], "names no key of the configuration"),
        ...(meant === undefined ? {} : { suggestion: [...steps.slice(0, -1), meant.toUpperCase()].join("__") }),
      };
      // Without the double underscore it may be anybody's.
      if (steps.length > 1) faults.push({ ...fault, ...suggested(fault) });
      else warnings.push({ ...fault, ...suggested(fault), message: `${fault.message}; ignored` });
      continue;
    }
    const value = valueOf(name, text, found.shapes, found.path, faults);
    if (value !== undefined) overlays.push({ path: found.path, label: name, value });
  }
  return overlays;
}

function suggested({ suggestion }: Fault): { suggestion?: string } {
  return suggestion === undefined ? {} : { suggestion: `GATEWAY_${suggestion}` };
}

/** Texts as they are; numbers, lists and maps as YAML; a list of texts also with commas. */
function valueOf(name: string, text: string, shapes: readonly Shape[], path: DocumentPath, faults: Fault[]): unknown {
  if (shapes.every((shape) => shape.isText)) return text;
  try {
    const { value } = parseDocument(text, { file: name });
    if (typeof value === "string" || typeof value === "number") {
      if (shapes.some((shape) => shape.kind === "list" && shape.item?.isText === true)) {
        if (!shapes.some((shape) => shape.isText)) return text.split(",").map((part) => part.trim());
      }
      if (shapes.some((shape) => shape.isText) && typeof value === "string") return text;
    }
    return value;
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
    if (shapes.some((shape) => shape.isText)) return text;
    for (const fault of error.faults) faults.push(overlaid(name, path, fault.message));
    return undefined;
  }
}

function fromFlags(flags: Flags): Overlay[] {
  const overlays: Overlay[] = [];
  const add = (label: string, path: DocumentPath, value: unknown): void => {
    if (value !== undefined) overlays.push({ path, label, value });
  };
  add("--listen", ["listen"], flags.listen);
  add("--admin", ["admin", "listen"], flags.admin);
  add("--data", ["data"], flags.data);
  add("--rules", ["rules"], flags.rules);
  if (flags.replica !== undefined && flags.replica.length > 0) {
    add(
      "--replica",
      ["replicas"],
      flags.replica.map((url) => ({ name: nameOf(url), url })),
    );
  }
  return overlays;
}

/** From the URL, not from the place in the line: cursors are kept by name, and flags are put in another order. */
export function nameOf(url: string): string {
  if (!URL.canParse(url)) return "unnamed";
  const { hostname, port, protocol } = new URL(url);
  const bare = hostname.replace(/^\[|\]$/g, "").replaceAll(":", "-");
  return `${bare}-${port === "" ? (protocol === "https:" ? 443 : 80) : port}`.replace(/^-+/, "").slice(0, 63);
}

function lay(root: unknown, { path, value }: Overlay): boolean {
  let holder = root;
  for (const [i, step] of path.entries()) {
    if (typeof holder !== "object" || holder === null) return false;
    if (Array.isArray(holder) !== (typeof step === "number")) return false;
    const map = holder as Record<string | number, unknown>;
    if (i === path.length - 1) {
      map[step] = escaped(value);
      return true;
    }
    map[step] ??= typeof path[i + 1] === "number" ? [] : {};
    holder = map[step];
  }
  return false;
}

/** `${}` is expanded in the file only: what comes from the shell was expanded there. */
function escaped(value: unknown): unknown {
  if (typeof value === "string") return value.replaceAll("$", "$$$$");
  if (Array.isArray(value)) return value.map(escaped);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, escaped(item)]));
}

function valueAt(value: unknown, path: DocumentPath): unknown {
  let current = value;
  for (const step of path) {
    if (typeof current !== "object" || current === null || !Object.hasOwn(current, step)) return undefined;
    current = (current as Record<string | number, unknown>)[step];
  }
  return current;
}

function overlaid(label: string, path: DocumentPath, message: string): Fault {
  return { file: label, line: 0, column: 0, path: formatPath(path), message };
}

/** Where a schema's own words are too general. */
function rephrase(fault: Fault, merged: unknown): Fault {
  const message = fault.message.replace(/is not of the right form$/, sizeForm);
  if (fault.path !== "replicas") return { ...fault, message };
  // The one key that nobody can leave out, with what to write.
  const forms = "a list of { name, url }, { count, command } or { count, image, port }";
  if (valueAt(merged, ["replicas"]) === undefined) {
    return { ...fault, message: `is missing: ${forms}; or give --replica URL` };
  }
  return message.endsWith("is of no form that is allowed here") ? { ...fault, message: `expected ${forms}` } : fault;
}

const sizeForm = 'is not a size such as "64KiB", "1MiB", "10GiB" or plain bytes';
