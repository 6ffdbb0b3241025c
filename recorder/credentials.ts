// Old entries carry old credentials: finds, before anything is touched, a rule whose entries a backend would refuse when they are replayed.

import type { Rule } from "../rules/rule.ts";
import { headerValues } from "../rules/template.ts";
import type { Entry } from "../gateway/entry.ts";
import type { Log } from "../gateway/log/log.ts";
import type { Policies } from "../gateway/policies.ts";
import { decodeRecord } from "../gateway/record.ts";

export interface Stale {
  readonly rule: string;
  readonly position: number;
  readonly expiredMs: number;
}

/**
 * The first entry from a record on whose bearer token says that it has expired (a JWT's `exp`, RFC 7519 section 4.1.4), under a rule that gives no newer
 * one (`replay: { set: { authorization: … } }`). Null: none says so. Tokens that do not tell are found out by their answers.
 */
export async function findStale(
  log: Log,
  policies: Policies,
  from: number,
  to: number,
  nowMs: number,
  signal: AbortSignal,
): Promise<Stale | null> {
  if (from > to) return null;
  for await (const record of log.read(from, signal)) {
    const { header, items } = decodeRecord(record.bytes, record.sequence);
    for (const [index, item] of items.entries()) {
      if (item.kind !== "entry") continue;
      const expiredMs = expiryOf(item);
      if (expiredMs === null || expiredMs > nowMs) continue;
      const rule = policies.rule(header.rules, item.rule);
      if (!setsAuthorization(rule, item, policies))
        return { rule: rule.name, position: record.sequence * 4096 + index, expiredMs };
    }
    if (record.sequence >= to) return null;
  }
  return null;
}

/** Header fields of an entry by which a backend may know who sends it, and of which a replay gives no newer ones. */
export function oldCredentials(entry: Entry, rule: Rule, policies: Policies): readonly string[] {
  const set = new Set(Object.keys(policies.replaySet(rule, entry)).map((name) => name.toLowerCase()));
  return ["authorization", "cookie"].filter((name) => !set.has(name) && headerValues(entry.headers, name).length > 0);
}

const setsAuthorization = (rule: Rule, entry: Entry, policies: Policies): boolean =>
  Object.keys(policies.replaySet(rule, entry)).some((name) => name.toLowerCase() === "authorization");

function expiryOf(entry: Entry): number | null {
  const [token] = headerValues(entry.headers, "authorization");
  const [, payload] = /^Bearer [\w-]+\.([\w-]+)\.[\w-]+$/i.exec(token ?? "") ?? [];
  if (payload === undefined) return null;
  try {
    const { exp } = JSON.parse(Buffer.from(payload, "base64url").toString("utf8")) as { exp?: unknown };
    return typeof exp === "number" ? exp * 1000 : null;
  } catch {
    return null;
  }
}
