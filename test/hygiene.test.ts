// What keeps the tree readable: imports point inwards, no cycles, every code documented, every file says what it is for.

import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, posix } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { codes } from "../gateway/errors.ts";

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/**
 * The layers, from the inside out. A file belongs to the first line that its path matches and may import what that line lists,
 * and other files of its own layer where the layer is in its own list.
 */
const layers: readonly {
  readonly layer: string;
  readonly files: RegExp | "PORT";
  readonly imports: readonly string[];
  /** Packages and node: modules that must not appear. */
  readonly not?: RegExp;
}[] = [
  // Pure decisions: no I/O, no drivers.
  {
    layer: "rules",
    files: /^rules\//,
    imports: ["rules"],
    not: /^(node:(?!crypto$|util$|net$)|fastify|undici|prom-client|pino|lmdb|ioredis|@nats-io)/,
  },
  // What every layer speaks of.
  {
    layer: "leaf",
    files:
      /^(gateway\/((answer|entry|errors|events|exchange|status|clock|deadlines|record|saved|steps)|config\/(secret|address)|state\/keyrows)|recorder\/(manifest|jobs|tree|flight|stamps|contract\/artifact))\.ts$/,
    imports: ["rules", "leaf", "port"],
    not: /^(fastify|undici|prom-client|pino|lmdb|ioredis|@nats-io)/,
  },
  // An interface and its law: the file's first line says PORT.
  {
    layer: "port",
    files: "PORT",
    imports: ["rules", "leaf", "port"],
    not: /^(fastify|undici|prom-client|pino|lmdb|ioredis|@nats-io)/,
  },
  // One connection or environment of a technology, shared by its adapters.
  { layer: "driver", files: /^gateway\/drivers\//, imports: ["leaf", "driver"], not: /^(fastify|prom-client|pino)/ },
  // Edges: sockets, fastify, prom-client, log lines.
  { layer: "edge", files: /^gateway\/server\//, imports: ["rules", "leaf", "port", "edge"] },
  // The only places where everything meets: of the gateway, and of the process that captures and restores.
  {
    layer: "root",
    files:
      /^(gateway\/((config|gateway|firststart|foundation|turnback|copies|roster|adoption|recording|recovery|recoverplan|cli)\.ts$|config\/|commands\/)|recorder\/worker\.ts$)/,
    imports: ["rules", "leaf", "port", "driver", "adapter", "flow", "edge", "root", "demo", "recorder"],
  },
  // The bundled service of `gateway demo`: a backend like any other, knows nothing of us.
  { layer: "demo", files: /^gateway\/demo\//, imports: ["demo"] },
  // The flow itself, with the fold of the log: facts go to events, time comes from a clock, options come as arguments.
  {
    layer: "flow",
    files: /^gateway\/(\w+|state\/(state|marks))\.ts$/,
    imports: ["rules", "leaf", "port", "flow"],
    not: /^(node:(http2?|https|child_process)$|fastify|undici|prom-client|pino|lmdb|ioredis|@nats-io)/,
  },
  // One technology each, beside their port. Never one of another port (checked below); `open.ts` chooses among its siblings.
  {
    layer: "adapter",
    files: /^(gateway|recorder)\/\w+\//,
    imports: ["rules", "leaf", "port", "driver", "adapter"],
    not: /^(fastify|prom-client|pino)/,
  },
  // What remembers: a flow of its own, beside the gateway's, which knows nothing of it.
  {
    layer: "recorder",
    files: /^recorder\/\w+\.ts$/,
    imports: ["rules", "leaf", "port", "flow", "recorder"],
    not: /^(node:(http2?|https)$|fastify|undici|prom-client|pino|lmdb|ioredis|@nats-io|mysql2|s3mini|ethers)/,
  },
];

const isOurs = (specifier: string): boolean => specifier.startsWith(".");

interface Source {
  readonly path: string;
  readonly text: string;
  /** Of ours, as paths from the root. */
  readonly imports: readonly string[];
  readonly packages: readonly string[];
}

const sources = ["gateway", "recorder", "rules"].flatMap(readSources);
const byPath = new Map(sources.map((source) => [source.path, source]));

function readSources(folder: string): Source[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts"))
    .map((name) => posix.join(folder, name))
    .sort()
    .map((path) => {
      const text = readFileSync(join(root, path), "utf8");
      // Static, type-only and dynamic imports, and re-exports.
      const specifiers = [...text.matchAll(/(?:\bfrom|\bimport\(|^import)\s*"([^"]+)"/gm)].map(([, name = ""]) => name);
      return {
        path,
        text,
        imports: specifiers.filter(isOurs).map((name) => posix.join(posix.dirname(path), name)),
        packages: specifiers.filter((name) => !isOurs(name)),
      };
    });
}

const layerOf = (path: string): (typeof layers)[number] | undefined =>
  layers.find(({ files }) =>
    files === "PORT" ? byPath.get(path)?.text.startsWith("// PORT: ") === true : files.test(path),
  );

describe("hygiene", () => {
  test("there is something to look at", () => {
    expect(sources.length).toBeGreaterThan(20);
    expect(sources.flatMap(({ imports }) => imports).length).toBeGreaterThan(50);
  });

  test("imports point inwards", () => {
    const wrong = sources.flatMap(({ path, imports }) => {
      const layer = layerOf(path);
      if (layer === undefined) return [`${path} belongs to no layer`];
      return imports.flatMap((target) => {
        const inner = layerOf(target);
        if (inner === undefined || !layer.imports.includes(inner.layer)) {
          return [`${path} (${layer.layer}) imports ${target} (${inner?.layer ?? "no layer"})`];
        }
        const isForeign = inner.layer === "adapter" && layer.layer === "adapter" && dirname(path) !== dirname(target);
        return isForeign ? [`${path} imports ${target}, an adapter of another port`] : [];
      });
    });
    expect(wrong).toEqual([]);
  });

  test("every import leads to a file", () => {
    const missing = sources.flatMap(({ path, imports }) =>
      imports.filter((target) => !byPath.has(target)).map((target) => `${path}: ${target}`),
    );
    expect(missing).toEqual([]);
  });

  test("inner layers use no technology", () => {
    const wrong = sources.flatMap(({ path, packages }) => {
      const not = layerOf(path)?.not;
      return not === undefined ? [] : packages.filter((name) => not.test(name)).map((name) => `${path}: ${name}`);
    });
    expect(wrong).toEqual([]);
  });

  test("flow, recorder, leaves, ports and rules know neither the environment nor the console", () => {
    const inner = new Set(["rules", "leaf", "port", "flow", "recorder"]);
    const wrong = sources
      .filter(
        ({ path, text }) =>
          inner.has(layerOf(path)?.layer ?? "") && /\bprocess\.(env|exit|on|std\w+)\b|\bconsole\.\w/.test(code(text)),
      )
      .map(({ path }) => path);
    expect(wrong).toEqual([]);
  });

  test("nothing imports in a circle", () => {
    const done = new Set<string>();
    const circles: string[] = [];
    // Depth first; ends because each file is entered once.
    const visit = (path: string, trail: readonly string[]): void => {
      const at = trail.indexOf(path);
      if (at !== -1) circles.push([...trail.slice(at), path].join(" → "));
      if (at !== -1 || done.has(path)) return;
      for (const next of byPath.get(path)?.imports ?? []) visit(next, [...trail, path]);
      done.add(path);
    };
    for (const { path } of sources) visit(path, []);
    expect(circles).toEqual([]);
  });

  test("files are named after what is in them", () => {
    const vague = sources.filter(({ path }) => /(^|\/)(index|utils?|helpers?|types|common|misc)\.ts$/.test(path));
    expect(vague.map(({ path }) => path)).toEqual([]);
  });

  test("the first line of each file says what it is for", () => {
    const silent = sources.filter(({ text }) => !/^(#!.*\n)?\/\/ \S.{20,}/.test(text));
    expect(silent.map(({ path }) => path)).toEqual([]);
  });

  test("nothing is left to do in a comment", () => {
    const marker = new RegExp(`\\b(${["TO", "FIX"].join("DO|")}ME|XXX)\\b`);
    const open = sources.filter(({ text }) => marker.test(text));
    expect(open.map(({ path }) => path)).toEqual([]);
  });

  test("the runbook explains every code, and no other", () => {
    const runbook = readFileSync(join(root, "deploy/runbook.md"), "utf8");
    const explained = [...runbook.matchAll(/^### (GW_[A-Z_]+)$/gm)].map(([, code = ""]) => code);
    expect(explained.toSorted()).toEqual(Object.keys(codes).toSorted());
    for (const code of explained) {
      const entry = runbook.slice(runbook.indexOf(`### ${code}\n`)).split("\n### ", 2)[0] ?? "";
      for (const part of ["**Means.**", "**Do.**", "**Do not.**"]) expect(entry, `${code}: ${part}`).toContain(part);
    }
  });
});

/** Without comments: those may speak of anything. */
function code(text: string): string {
  return text.replaceAll(/\/\*[\s\S]*?\*\//g, "").replaceAll(/(^|\s)\/\/.*$/gm, "");
}
