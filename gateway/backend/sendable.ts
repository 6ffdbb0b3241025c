// What this gateway can send to a backend at all. An entry that no replica can be sent would stop every one of them, so the front asks
// before the append. The limits are undici's (lib/core/request.js) and are pinned by a test against it.

import type { RawHeaders } from "../entry.ts";

/** Null: can be sent. Else what stands in the way, for a problem document. `headers` are those that are sent: hop-by-hop is gone. */
export function whyUnsendable(
  method: string,
  target: string,
  headers: RawHeaders,
  trailers: RawHeaders,
): string | null {
  if (!token.test(method)) return "the method is not a token";
  if (method === "CONNECT") return "CONNECT cannot be forwarded";
  if (!target.startsWith("/")) return "only targets that are paths can be forwarded";
  if (badTarget.test(target)) return "the target holds a character that cannot be sent";
  if (trailers.length > 0) return "request trailers cannot be forwarded";
  let hosts = 0;
  let lengths = 0;
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const name = headers[i]!;
    const value = headers[i + 1]!;
    if (!token.test(name)) return "a header field's name is not a token";
    if (badValue.test(value)) return `the header field ${name} holds a character that cannot be sent`;
    const lower = name.toLowerCase();
    if (lower === "host") hosts += 1;
    else if (lower === "content-length") {
      lengths += 1;
      if (!/^[0-9]+$/.test(value)) return "Content-Length is not a number";
    } else if (unsendable.has(lower)) return `the header field ${name} cannot be forwarded`;
  }
  if (hosts > 1) return "there are several Host fields";
  return lengths > 1 ? "there are several Content-Length fields" : null;
}

const token = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const badTarget = /[^\u0021-\u00ff]/;
const badValue = /[^\t\u0020-\u007e\u0080-\u00ff]/;
const unsendable: ReadonlySet<string> = new Set(["expect", "keep-alive", "transfer-encoding", "upgrade"]);
