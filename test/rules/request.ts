// Requests for the tests of rules, short to write.
import { canonicalTarget } from "../../rules/target.ts";
import type { RequestHead } from "../../rules/match.ts";
import type { CanonicalTarget } from "../../rules/target.ts";
import type { TemplateContext } from "../../rules/template.ts";

export function head(
  line: string,
  options: { host?: string; headers?: string[] } = {},
): RequestHead & { target: CanonicalTarget } {
  const [method = "GET", raw = "/"] = line.split(" ");
  const target = canonicalTarget(raw, { encodedSlash: "keep" });
  if (!target.ok) throw new Error(`${raw}: ${target.reason}`);
  return { method, target, host: options.host ?? "shop.test", headers: options.headers ?? [] };
}

export function context(parts: {
  params?: Record<string, string>;
  query?: string;
  headers?: string[];
  body?: unknown;
}): TemplateContext {
  const query = new URLSearchParams(parts.query ?? "");
  return { params: parts.params ?? {}, query: () => query, headers: parts.headers ?? [], body: () => parts.body };
}

/** Processor time of the cheapest of three runs: other processes on the machine do not count. */
export function cpuMs(act: () => unknown): number {
  const runs = [1, 2, 3].map(() => {
    const start = process.cpuUsage();
    act();
    const { user, system } = process.cpuUsage(start);
    return (user + system) / 1000;
  });
  return Math.min(...runs);
}
