// What the README says, as far as a program can check it: its examples are sound, its commands exist, its links lead somewhere.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parse } from "yaml";
import { describe, expect, test } from "vitest";
import { loadConfig } from "../gateway/config.ts";
import { FaultsError } from "../rules/document.ts";
import { parseRules } from "../rules/rule.ts";
import { cli, fakeControl } from "./gateway/cli.fake.ts";
import { temporaryFolder } from "./helpers/folder.ts";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const documents = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/runbook.md"];
const read = (path: string): string => readFileSync(join(root, path), "utf8");
const readme = read("README.md");

interface Fence {
  readonly language: string;
  readonly text: string;
  /** Of its first line, in the file. */
  readonly line: number;
}

function fencesOf(text: string): Fence[] {
  return [...text.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)].map(({ 1: language = "", 2: body = "", index }) => ({
    language,
    text: body,
    line: text.slice(0, index).split("\n").length + 1,
  }));
}

/** Code in a line and in fences of the shell, without comments. */
function codeOf(text: string): string[] {
  const fences = fencesOf(text).filter(({ language }) => language === "sh");
  const outside = text.replaceAll(/^```[\s\S]*?^```$/gm, "");
  const spans = [...outside.matchAll(/`([^`]+)`/g)].map(([, code = ""]) => code.replaceAll(/\s+/g, " "));
  return [...fences.flatMap((fence) => fence.text.split("\n")), ...spans]
    .map((line) => line.replace(/(^|\s)#.*$/, "").trim())
    .filter((line) => line !== "");
}

/** The faults, as a person would read them. */
function faultsOf(check: () => unknown): string[] {
  try {
    check();
    return [];
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
    return error.faults.map((fault) => `${fault.line}:${fault.column} ${fault.path}: ${fault.message}`);
  }
}

const examples = fencesOf(readme)
  .filter(({ language }) => language === "yaml")
  .map((fence) => ({ ...fence, isConfig: Object.hasOwn(parse(fence.text) as object, "replicas") }));
const configs = examples.filter(({ isConfig }) => isConfig);
const rulesFiles = examples.filter(({ isConfig }) => !isConfig);

describe("the README's two commands", () => {
  test("are there, word for word", () => {
    const commands = fencesOf(readme).map(({ text }) => text.trim());
    expect(commands).toContain("npm ci && npm start");
    expect(commands).toContain("npm ci && npm test");
  });

  test("have their scripts, and so has every other npm run", () => {
    const { scripts } = JSON.parse(read("package.json")) as { readonly scripts: Record<string, string> };
    const named = documents.flatMap((path) =>
      codeOf(read(path)).flatMap((code) =>
        [...code.matchAll(/\bnpm (?:run )?([a-z:]+)/g)].map(([, name = ""]) => name),
      ),
    );
    expect(named).toContain("start");
    for (const name of new Set(named)) if (name !== "ci") expect(scripts, name).toHaveProperty([name]);
  });
});

describe("the README's examples", () => {
  test("are of both kinds", () => {
    expect(configs.length).toBeGreaterThanOrEqual(3);
    expect(rulesFiles.length).toBeGreaterThanOrEqual(1);
  });

  test.each(configs)("the configuration at line $line has no fault and no warning", ({ text }) => {
    const cwd = temporaryFolder("readme");
    // What it names is there, as it would be beside it.
    writeFileSync(join(cwd, "rules.yaml"), "version: 1\nrules: []\n");
    mkdirSync(join(cwd, "service"), { recursive: true });
    for (const name of ["snapshot.key", "registry.key"])
      writeFileSync(join(cwd, name), `${"5a".repeat(32)}\n`, { mode: 0o600 });
    const env = { AWS_ACCESS_KEY_ID: "id", AWS_SECRET_ACCESS_KEY: "secret" };
    const file = join(cwd, "gateway.yaml");
    writeFileSync(file, text);
    expect(faultsOf(() => loadConfig({ file, env, cwd }))).toEqual([]);
    expect(loadConfig({ file, env, cwd }).warnings.map(({ message }) => message)).toEqual([]);
  });

  test.each(rulesFiles)("the rules at line $line have no fault, and no rule that never decides", ({ text }) => {
    expect(faultsOf(() => parseRules(text, { file: "rules.yaml" }))).toEqual([]);
    const warned = parseRules(text, { file: "rules.yaml" }).warnings.map(({ message }) => message);
    expect(warned.filter((message) => message.includes("never decides"))).toEqual([]);
  });

  test("the Ethereum node's reads go to one copy and its writes to all, also in a batch", async () => {
    const cwd = temporaryFolder("readme");
    const rules = join(cwd, "node.yaml");
    writeFileSync(rules, rulesFiles.find(({ text }) => text.includes("eth_call"))?.text ?? "");
    const ruleOf = async (body: unknown): Promise<string> => {
      const file = join(cwd, "body.json");
      writeFileSync(file, JSON.stringify(body));
      const args = ["explain", "POST", "/", "-H", "Host: node.example.org", "--rules", rules, "--body", file, "--json"];
      const { out, err } = await cli(args);
      expect(err).toBe("");
      return (JSON.parse(out) as { readonly rule: string }).rule;
    };
    const call = { jsonrpc: "2.0", id: 1, method: "eth_call", params: [] };
    const send = { jsonrpc: "2.0", id: 2, method: "eth_sendRawTransaction", params: [] };
    expect(await ruleOf(call)).toBe("rpc-read");
    expect(await ruleOf([call, call])).toBe("rpc-read");
    expect(await ruleOf(send)).toBe("rpc-write");
    expect(await ruleOf([call, send])).toBe("rpc-write");
    expect(await ruleOf({ ...call, method: "eth_sign" })).toBe("rpc-sign");
  });

  test("the three lines to try are those that the demo prints", async () => {
    const cwd = temporaryFolder("readme");
    let isStarted = false;
    const timer = setInterval(() => {
      if (isStarted) process.emit("SIGTERM");
    }, 20);
    const start = async () => {
      isStarted = true;
      return {
        front: "http://127.0.0.1:8080",
        admin: "http://127.0.0.1:9070",
        control: fakeControl(),
        renew: async () => undefined,
        stop: async () => undefined,
      };
    };
    const args = ["demo", "--listen", "127.0.0.1:8080", "--admin", "127.0.0.1:9070"];
    const { exitCode, out } = await cli(args, { cwd, env: {}, parts: { start } }).finally(() => clearInterval(timer));
    expect(exitCode).toBe(0);
    const printed = out.split("\n").flatMap((line) => (/^\s*curl /.test(line) ? [line.trim()] : []));
    expect(printed).toHaveLength(3);
    expect(fencesOf(readme).map(({ text }) => text.trim())).toContain(printed.join("\n"));
  });
});

describe.each(documents)("%s", (path) => {
  const text = read(path);

  test("names only commands and options that the program has", async () => {
    const wrong: string[] = [];
    for (const code of codeOf(text)) {
      const [, words = ""] = /^(?:gateway|node dist\/gateway\/cli\.js) ([a-z].*)$/.exec(code) ?? [];
      if (words === "") continue;
      const given = words.split(" ");
      const { usage, help } = await helpOf(given);
      if (usage === null) wrong.push(code);
      for (const option of given.filter((word) => /^--?[a-zA-Z]/.test(word)))
        if (!new RegExp(`(^|[\\s,])${option}\\b`).test(help)) wrong.push(`${code}: ${option}`);
    }
    expect(wrong).toEqual([]);
  });

  test("links to files that exist", () => {
    const targets = [...text.matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)].map(([, target = ""]) => target);
    const missing = targets.filter((target) => !existsSync(join(root, dirname(path), target)));
    expect(missing).toEqual([]);
  });
});

/** The help of the deepest command that the words name; null where the first, or the second of a group, is none. */
async function helpOf(words: readonly string[]): Promise<{ readonly usage: string | null; readonly help: string }> {
  const [first = "", second = ""] = words;
  const help = await helpAt(first);
  if (help === null) return { usage: null, help: "" };
  const isGroup = help.includes("\nCommands:\n");
  if (!isGroup || second === "" || second.startsWith("-")) return { usage: first, help };
  const own = await helpAt(first, second);
  return own === null ? { usage: null, help: "" } : { usage: `${first} ${second}`, help: own };
}

async function helpAt(...path: string[]): Promise<string | null> {
  const { exitCode, out } = await cli([...path, "--help"]);
  return exitCode === 0 && out.includes(`Usage: gateway ${path.join(" ")}`) ? out : null;
}
