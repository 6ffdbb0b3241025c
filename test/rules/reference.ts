// Matching as the documentation says it: one rule after the other, without an index. Slow, plain, and told apart.
import type { RandomRequest, RandomRule } from "./random.ts";

export function reference(rules: readonly RandomRule[], request: RandomRequest): { rule: string; batch: string } {
  const method = request.line.split(" ")[0]!;
  const isSafe = ["GET", "HEAD"].includes(method);
  const last: RandomRule = isSafe
    ? { name: "default-safe", match: { path: "/*" }, mode: "only-once" }
    : { name: "default-other", match: { path: "/*" }, mode: "replicate" };
  const left = [...rules, last].filter((rule) => headHolds(rule, request));
  const first = (member: unknown): RandomRule => left.find((rule) => bodyHolds(rule, member))!;
  const { body } = request;
  // Unless the first rule left asks for the body, nobody looks at it.
  if (left[0]!.match.body === undefined || !Array.isArray(body) || body.length === 0) {
    return { rule: first(body).name, batch: "none" };
  }
  const chosen = new Set((body as unknown[]).map(first));
  const strictness = ({ mode, safe }: RandomRule): number => {
    if (mode !== "only-once") return mode === "refuse" ? 3 : 2;
    return (safe ?? isSafe) ? 0 : 1;
  };
  const highest = Math.max(...[...chosen].map(strictness));
  const strictest = left.find((rule) => chosen.has(rule) && strictness(rule) === highest)!;
  return { rule: strictest.name, batch: chosen.size === 1 ? "uniform" : "mixed" };
}

function headHolds({ match, mode }: RandomRule, request: RandomRequest): boolean {
  const [method, target] = request.line.split(" ") as [string, string];
  const [path, query = ""] = target.split("?") as [string, string?];
  if (match.method !== undefined && !match.method.includes(method)) return false;
  const pattern = match.path
    .slice(1)
    .split("/")
    .map((part, i, all) => {
      if (part === "*" && i === all.length - 1) return "[^]*";
      return part.startsWith(":") ? "[^/]+" : decodeURIComponent(part);
    });
  if (!new RegExp(`^/${pattern.join("/")}$`).test(decodeURIComponent(path))) return false;
  const host = request.host.toLowerCase().split(":")[0]!;
  if (match.host?.startsWith("*") === true && !host.endsWith(match.host.slice(1))) return false;
  if (match.host?.startsWith("*") === false && host !== match.host) return false;
  // What is there twice has to hold altogether for an only-once rule, and once for a strict one.
  const holds = (found: readonly string[], allowed: readonly string[]): boolean =>
    found.length > 0 && found[mode === "only-once" ? "every" : "some"]((value) => allowed.includes(value));
  const parameters = new URLSearchParams(query);
  const values = (name: string): string[] =>
    request.headers.filter((_, i) => i % 2 === 1 && request.headers[i - 1]!.toLowerCase() === name.toLowerCase());
  return (
    Object.entries(match.header ?? {}).every(([name, allowed]) => holds(values(name), allowed)) &&
    Object.entries(match.query ?? {}).every(([name, allowed]) => holds(parameters.getAll(name), allowed))
  );
}

function bodyHolds({ match }: RandomRule, member: unknown): boolean {
  if (match.body === undefined) return true;
  if (typeof member !== "object" || member === null || Array.isArray(member)) return false;
  return Object.entries(match.body).every(([pointer, allowed]) => {
    let value = member as unknown;
    for (const key of pointer.slice(1).split("/")) {
      value = typeof value === "object" ? (value as Record<string, unknown> | null)?.[key] : undefined;
    }
    return (allowed as unknown[]).includes(value);
  });
}
