// `${VAR}` in values a person wrote: expanded after parsing, so that no value of a variable is read as YAML.
import { formatPath } from "./fault.ts";
import type { DocumentPath } from "./fault.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

interface ExpandOptions {
  readonly at?: DocumentPath;
  readonly verbatim?: readonly DocumentPath[];
  readonly onExpanded?: (path: DocumentPath) => void;
  readonly onFault?: (path: DocumentPath, message: string) => void;
}

/** A copy of the tree with `${VAR}`, `${VAR:-x}` and `$$` expanded in every string value. Keys are left alone. */
export function expandVariables(value: unknown, env: Environment, options: ExpandOptions = {}): unknown {
  const verbatim = new Set((options.verbatim ?? []).map(formatPath));
  const walk = (node: unknown, path: DocumentPath): unknown => {
    if (typeof node === "string") {
      if (!node.includes("$")) return node;
      const text = expandText(node, env);
      if (!text.ok) {
        if (options.onFault === undefined) throw new Error(`${formatPath(path)}: ${text.message}`);
        options.onFault(path, text.message);
        return node;
      }
      options.onExpanded?.(path);
      return text.value;
    }
    if (typeof node !== "object" || node === null || verbatim.has(formatPath(path))) return node;
    if (Array.isArray(node)) return node.map((item, i) => walk(item, [...path, i]));
    return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, walk(item, [...path, key])]));
  };
  return walk(value, options.at ?? []);
}

/** One text expanded; without `env` only its syntax is checked. `$` before anything but `{` and `$` is itself. */
export function expandText(
  text: string,
  env: Environment | null,
): { ok: true; value: string } | { ok: false; message: string } {
  let message: string | undefined;
  const value = text.replaceAll(/\$\$|\$\{([^}]*)(\}?)/g, (whole, inner: string | undefined, close: string) => {
    if (inner === undefined) return "$";
    const [, name, fallback] = /^([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?$/s.exec(inner) ?? [];
    if (name === undefined || close === "") {
      message ??= `"${whole}" is not a variable: \${NAME} or \${NAME:-default} ($$ is a plain $)`;
      return whole;
    }
    if (env === null) return whole;
    const set = Object.hasOwn(env, name) ? env[name] : undefined;
    // As in the shell, `:-` stands in for an empty variable too.
    if (fallback !== undefined) return set === undefined || set === "" ? fallback : set;
    if (set === undefined) message ??= `the variable ${name} is not set and has no default (\${${name}:-…})`;
    return set ?? whole;
  });
  return message === undefined ? { ok: true, value } : { ok: false, message };
}
