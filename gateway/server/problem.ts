// Answers that the gateway makes itself: application/problem+json (RFC 9457), and what it says of an unsafe request's outcome.

import { STATUS_CODES } from "node:http";
import { codes } from "../errors.ts";
import { fieldOf } from "./fields.ts";
import type { RawHeaders } from "../entry.ts";
import type { GatewayError, Outcome } from "../errors.ts";

const safeMethods: ReadonlySet<string> = new Set(["GET", "HEAD", "OPTIONS", "TRACE", "QUERY"]);

/** By method alone (RFC 9110 9.2.1, RFC 10008). What a rule says of it is the flow's. */
export const isSafeMethod = (method: string): boolean => safeMethods.has(method);

export interface Problem {
  readonly status: number;
  readonly headers: string[];
  readonly body: string;
  readonly outcome: Outcome | null;
}

/** `method` is empty when the request could not be read. */
export function problemOf(error: GatewayError, method: string, extra: RawHeaders): Problem {
  const document: Record<string, unknown> = {
    type: `urn:br2k:error:${error.code}`,
    title: codes[error.code].title,
    status: error.status,
    detail: error.message,
    code: error.code,
  };
  if (error.position !== undefined) document["position"] = error.position;
  const body = JSON.stringify(document);
  const headers = [
    "Content-Type",
    "application/problem+json",
    "Content-Length",
    String(Buffer.byteLength(body)),
    // 404, 410 and 501 may be cached without being asked to.
    "Cache-Control",
    "no-store",
  ];
  if (retryAfterStatuses.has(error.status) || error.retryAfterS !== undefined) {
    headers.push("Retry-After", String(error.retryAfterS ?? 1));
  }
  const told = fieldOf(extra, "replication-outcome") as Outcome | null;
  const outcome = told ?? outcomeOf(error, method);
  if (told === null && outcome !== null) headers.push("Replication-Outcome", outcome);
  for (let i = 0; i < extra.length; i++) headers.push(extra[i]!);
  return { status: error.status, headers, body, outcome };
}

const retryAfterStatuses: ReadonlySet<number> = new Set([409, 429, 503]);

/** Null for safe methods of which nothing was said. Of an unsafe one the code says it: safe to repeat means not executed. */
function outcomeOf(error: GatewayError, method: string): Outcome | null {
  if (error.outcome !== undefined) return error.outcome;
  if (isSafeMethod(method)) return null;
  return codes[error.code].retrySafe ? "not-executed" : "unknown";
}

/** For connections that have no response object: the whole answer, after which the connection closes. */
export function problemBytes(error: GatewayError, wallMs: number): string {
  const { status, headers, body } = problemOf(error, "", []);
  let text = `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ""}\r\nDate: ${new Date(wallMs).toUTCString()}\r\nConnection: close\r\n`;
  for (let i = 0; i + 1 < headers.length; i += 2) text += `${headers[i]}: ${headers[i + 1]}\r\n`;
  return `${text}\r\n${body}`;
}
