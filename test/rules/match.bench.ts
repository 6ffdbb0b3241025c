// What a match costs, in nanoseconds, with 1 rule and with 1,000; used by test/bench/match.ts and by a test.
import { Matcher } from "../../rules/match.ts";
import { parseRules } from "../../rules/rule.ts";
import { head } from "./request.ts";
import type { RequestHead } from "../../rules/match.ts";

export interface MatchBench {
  readonly nsOf1: number;
  readonly nsOf1000: number;
}

export function benchMatch(rounds = 200_000): MatchBench {
  const one = prepare(1);
  const thousand = prepare(1000);
  // Both paths compiled before either is timed.
  measure(one, rounds / 10);
  measure(thousand, rounds / 10);
  return { nsOf1: measure(one, rounds), nsOf1000: measure(thousand, rounds) };
}

interface Prepared {
  readonly matcher: Matcher;
  readonly heads: readonly RequestHead[];
}

function prepare(count: number): Prepared {
  const rules = Array.from({ length: count }, (_, i) => ({
    match: `${["GET", "POST", "PUT", "*"][i % 4]!} /v1/resource${i}/:id${i % 3 === 0 ? "/*" : ""}`,
    mode: "replicate",
  }));
  const text = JSON.stringify({ version: 1, rules });
  const matcher = new Matcher(parseRules(text, { file: "bench" }).rules.rules);
  // Hits all over the list, and a miss; the same kinds of request for both.
  const heads = Array.from({ length: 64 }, (_, i) => {
    const n = (i * 37) % count;
    return head(
      `${["GET", "POST", "PUT", "GET"][n % 4]!} /v1/resource${i % 8 === 0 ? "-none" : n}/42${n % 3 === 0 ? "/x" : ""}`,
    );
  });
  return { matcher, heads };
}

function measure({ matcher, heads }: Prepared, rounds: number): number {
  const start = process.hrtime.bigint();
  for (let i = 0; i < rounds; i++) matcher.match(heads[i % heads.length]!);
  return Number(process.hrtime.bigint() - start) / rounds;
}
