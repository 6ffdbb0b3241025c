// Putting back what an entry changed: the question a rule's `before` asks ahead of it, and the request that `undo` makes of the answer.
import { headerValues, renderTarget } from "./template.ts";
import type { Answer } from "./compare.ts";
import type { Rule } from "./compile.ts";
import type { TemplateContext } from "./template.ts";

/** Sending it twice does what sending it once does: it is a PUT or a DELETE. */
export interface Undo {
  readonly method: "PUT" | "DELETE";
  readonly target: string;
  /** Name, value, name, value: what says how to read the body. */
  readonly headers: readonly string[];
  readonly body: Buffer;
}

/** Null: the rule has no `before`, or the request lacks a value that one of its two targets needs. */
export function beforeRequest(
  rule: Pick<Rule, "before" | "undo">,
  request: TemplateContext,
): { method: string; target: string } | null {
  if (rule.before === null || rule.undo === null || renderTarget(rule.undo, request) === null) return null;
  const target = renderTarget(rule.before, request);
  return target === null ? null : { method: rule.before.method, target };
}

/**
 * What puts back what `before` was answered. What was there is put there again; what was not there (404, 410) is deleted, at the target of `undo`.
 * Null: this answer cannot be put back: it says something else, is a part only, or it was there and `undo` can only delete.
 */
export function undoRequest(
  rule: Pick<Rule, "undo">,
  request: TemplateContext,
  answer: Pick<Answer, "status" | "headers" | "body">,
): Undo | null {
  const target = rule.undo === null ? null : renderTarget(rule.undo, request);
  if (target === null) return null;
  if (answer.status === 404 || answer.status === 410)
    return { method: "DELETE", target, headers: [], body: Buffer.alloc(0) };
  if (answer.status < 200 || answer.status > 299 || answer.status === 206 || rule.undo?.method !== "PUT") return null;
  const headers = ["Content-Type", "Content-Encoding", "Content-Language"].flatMap((name) =>
    headerValues(answer.headers, name.toLowerCase()).flatMap((value) => [name, value]),
  );
  return { method: "PUT", target, headers, body: answer.body };
}

/** Whether the answer to an `undo` says that all is as it was. */
export const isPutBack = (undo: Undo, status: number): boolean =>
  (status >= 200 && status <= 299) || (undo.method === "DELETE" && (status === 404 || status === 410));
