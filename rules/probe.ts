// Asking a copy whether it has applied a request: the question a rule's `probe` makes of it, and what the answer says.
import { readPointer } from "./pointer.ts";
import { render, renderTarget, scalarText } from "./template.ts";
import type { Answer } from "./compare.ts";
import type { Probe, Rule } from "./compile.ts";
import type { TemplateContext } from "./template.ts";

/** Null: the rule has no probe, or the request lacks a value that the question needs. Nothing can be asked then. */
export function probeRequest(
  rule: Pick<Rule, "probe">,
  request: TemplateContext,
): { method: string; target: string } | null {
  if (rule.probe === null) return null;
  const target = renderTarget(rule.probe.request, request);
  return target === null ? null : { method: rule.probe.request.method, target };
}

/** True if this answer means that the request was applied. Conditions are joined by and; values of one by or. */
export function isApplied(probe: Probe, request: TemplateContext, answer: Pick<Answer, "status" | "body">): boolean {
  const { status, body } = answer;
  if (probe.status === null ? status < 200 || status > 299 : !probe.status.includes(status)) return false;
  if (probe.body.length === 0) return true;
  let json: unknown;
  try {
    json = JSON.parse(body.toString("utf8"));
  } catch {
    return false;
  }
  return probe.body.every(({ pointer, values }) => {
    const found = readPointer(json, pointer.tokens);
    return values.some((value) => {
      if (typeof value !== "object" || value === null) return value === found;
      const wanted = render(value, request);
      return wanted !== null && scalarText(found) === wanted;
    });
  });
}
