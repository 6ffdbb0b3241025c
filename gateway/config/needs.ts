// What a configuration needs besides itself: files of secrets, variables, and secrets that stand in it. Names and places, never contents.

import { isMap, isScalar, isSeq } from "yaml";
import { expandText, parseDocument } from "../../rules/document.ts";
import { secretPaths } from "./schema.ts";
import { openSources } from "./sources.ts";
import type { Environment } from "../../rules/variables.ts";
import type { Sources, SourcesOptions } from "./sources.ts";

export interface Needs {
  /** Files that keys such as `tokenFile` name. */
  readonly files: readonly { readonly key: string; readonly file: string }[];
  /** Variables whose values come from the environment. */
  readonly variables: readonly string[];
}

const fileKeys: readonly (readonly string[])[] = [
  ["admin", "tokenFile"],
  ["tls", "certFile"],
  ["tls", "keyFile"],
  ["tls", "clientCaFile"],
  ["upstream", "caFile"],
  ["upstream", "certFile"],
  ["upstream", "keyFile"],
  ["keys", "redis", "urlFile"],
  ["keys", "redis", "tls", "caFile"],
  ["keys", "redis", "tls", "certFile"],
  ["keys", "redis", "tls", "keyFile"],
  ["log", "nats", "credentialsFile"],
  ["log", "nats", "passwordFile"],
  ["log", "nats", "tokenFile"],
  ["log", "nats", "tls", "caFile"],
  ["log", "nats", "tls", "certFile"],
  ["log", "nats", "tls", "keyFile"],
  ["snapshots", "storePasswordFile"],
  ["snapshots", "encrypt", "keyFile"],
  ["registry", "ethereum", "keyFile"],
  ["registry", "ethereum", "keyPasswordFile"],
];

/** `texts`: of the configuration and of its rules. */
export function needsOf(options: SourcesOptions, texts: readonly string[]): Needs {
  const sources = openSources(options);
  const files = fileKeys.flatMap((path) => {
    const file = fileAt(sources, path, options.env);
    return file === null ? [] : [{ key: path.join("."), file }];
  });
  const named = texts.flatMap((text) =>
    [...text.matchAll(/(?<!\$)(?:\$\$)*\$\{([A-Za-z_]\w*)/g)].map(([, name = ""]) => name),
  );
  const laid = Object.keys(options.env).filter((name) => /^gateway_\w+__/i.test(name));
  const store = sources.valueAt(["snapshots", "store"]);
  const aws = typeof store === "string" && /^s3:/i.test(store) ? ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] : [];
  return { files, variables: [...new Set([...named, ...laid, ...aws])].toSorted() };
}

function fileAt(sources: Sources, path: readonly string[], env: Environment): string | null {
  const value = sources.valueAt(path);
  if (typeof value !== "string") return null;
  const expanded = expandText(value, env);
  return sources.resolve(path, expanded.ok ? expanded.value : value);
}

/** Headers that replays are sent with may hold tokens. */
const replayPaths: readonly (readonly string[])[] = [["rules", "*", "replay", "set", "*"]];
const dots = "•••";
const looksSecret = /token|secret|passw|credential|key|auth/i;

/** A text of ours without the secrets that stand in it, each of which is named. What comes from a variable stays: it is no secret. */
export function withoutLiterals(text: string): { readonly text: string; readonly masked: readonly string[] } {
  const { yaml } = parseDocument(text, { file: "" });
  const cuts: { readonly start: number; readonly end: number; readonly path: string }[] = [];
  const visit = (node: unknown, rest: readonly string[], path: readonly string[]): void => {
    const [step, ...further] = rest;
    if (step === undefined) {
      if (!isScalar(node) || !node.range) return;
      if (!isHarmless(node.value, path)) cuts.push({ start: node.range[0], end: node.range[1], path: path.join(".") });
    } else if (isMap(node)) {
      for (const { key, value } of node.items) {
        const name = isScalar(key) ? String(key.value) : "";
        if (step === "*" || step === name) visit(value, further, [...path, name]);
      }
    } else if (isSeq(node) && step === "*") {
      for (const [i, item] of node.items.entries()) visit(item, further, [...path, String(i)]);
    }
  };
  for (const path of [...secretPaths, ...replayPaths]) visit(yaml.contents, path, []);
  let clean = text;
  for (const { start, end } of cuts.toSorted((a, b) => b.start - a.start)) {
    clean = `${clean.slice(0, start)}"${dots}"${clean.slice(end)}`;
  }
  return { text: clean, masked: cuts.map(({ path }) => path) };
}

function isHarmless(value: unknown, path: readonly string[]): boolean {
  // A program's environment holds all kinds of things: its names say which are secret.
  if (path[0] === "replicas" && !looksSecret.test(path.at(-1) ?? "")) return true;
  if (typeof value !== "string") return false;
  if (/^(?:[A-Za-z]+ )?\$\{[A-Za-z_]\w*\}$/.test(value)) return true;
  if (!URL.canParse(value)) return false;
  const { protocol, username, password, pathname, search, hash } = new URL(value);
  // A host alone, or the number of a database: providers put their keys into the path.
  const isBare = `${username}${password}${search}${hash}` === "" && /^\/?\d*$/.test(pathname);
  return isBare && /^(https?|rediss?):$/.test(protocol);
}
