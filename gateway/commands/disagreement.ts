// gateway disagreement …: entries that the copies answered differently, side by side.

import { addGroup } from "./builder.ts";
import { cut, formatTime, pad, printable } from "./terminal.ts";
import type { Command } from "commander";
import type { DisagreementRow } from "../status.ts";
import type { Builder } from "./builder.ts";
import type { ClientOptions } from "./client.ts";
import type { Terminal } from "./terminal.ts";

type Answer = DisagreementRow["answers"][number];

/** Exit code of a command that found what should not be. */
const findings = 3;

export function addDisagreement(program: Command, builder: Builder): void {
  const group = addGroup(program, "disagreement", "Show entries that copies answered differently");
  const list = builder.addClient(group, "ls", "List disagreements; exit code 3 when there are any", [
    "disagreement ls",
  ]);
  builder.action<ClientOptions>(list, async (terminal, options) => {
    const { Client } = await import("./client.ts");
    const client = await Client.of(terminal, options);
    const { disagreements } = await client.get<{ disagreements: readonly DisagreementRow[] }>("/v1/disagreements");
    if (terminal.isJson) terminal.printJson(disagreements);
    else printList(terminal, disagreements);
    return disagreements.length === 0 ? 0 : findings;
  });
  const show = builder.addClient(group, "show <position>", "Show the answers to one entry side by side", [
    "disagreement show 4931584",
  ]);
  builder.action<ClientOptions>(show, async (terminal, options, position = "") => {
    const { Client } = await import("./client.ts");
    const client = await Client.of(terminal, options);
    const row = await client.get<DisagreementRow>(`/v1/disagreements/${encodeURIComponent(position)}`);
    if (terminal.isJson) terminal.printJson(row);
    else printOne(terminal, row);
    return findings;
  });
}

function printList(terminal: Terminal, rows: readonly DisagreementRow[]): void {
  if (rows.length === 0) {
    terminal.print("no disagreement is known");
    return;
  }
  const now = Date.now();
  terminal.table(
    [
      { title: "POSITION", isNumber: true },
      { title: "TIME" },
      { title: "RULE", isElastic: true },
      { title: "MINORITY" },
      { title: "DECIDES" },
      { title: "REQUEST", isElastic: true },
    ],
    rows.map((row) => [
      String(row.position),
      formatTime(row.timeMs, now),
      row.rule,
      row.minority.length === 0 ? "none" : row.minority.join(","),
      row.decisive ? "yes" : "no",
      printable(`${row.method} ${row.target}`),
    ]),
  );
  terminal.note("");
  terminal.note(`Side by side: gateway disagreement show ${rows[0]?.position ?? ""}`);
}

function printOne(terminal: Terminal, row: DisagreementRow): void {
  const request = printable(`${row.method} ${row.target}`);
  terminal.print(`${terminal.style("bold", request)}  at ${row.position}, rule ${row.rule}`);
  const decides = row.decisive ? "" : " (reported only: the rule does not compare this)";
  terminal.print(
    row.minority.length === 0 ? `no majority${decides}` : `in the minority: ${row.minority.join(", ")}${decides}`,
  );
  const groups = grouped(row.answers);
  const [first, ...others] = groups;
  for (const other of others) if (first !== undefined) printPair(terminal, first, other);
  if (row.differences.length === 0) return;
  terminal.print("");
  terminal.table(
    [{ title: "WHERE" }, { title: "ONE", isElastic: true }, { title: "OTHER", isElastic: true }],
    row.differences.map(({ where, left, right }) => [printable(where), printable(left), printable(right)]),
  );
}

interface Group {
  readonly replicas: readonly string[];
  readonly answer: Answer;
}

/** Equal answers together, the most frequent first. */
function grouped(answers: readonly Answer[]): Group[] {
  const byDigest = new Map<string, Answer[]>();
  for (const answer of answers) byDigest.set(answer.digest, [...(byDigest.get(answer.digest) ?? []), answer]);
  return [...byDigest.values()]
    .toSorted((a, b) => b.length - a.length)
    .flatMap((group) =>
      group[0] === undefined ? [] : [{ replicas: group.map(({ replica }) => replica), answer: group[0] }],
    );
}

function printPair(terminal: Terminal, left: Group, right: Group): void {
  const half = Math.floor((Math.max(60, Math.min(terminal.columns, 160)) - 3) / 2);
  const [a, b] = [linesOf(left.answer, half), linesOf(right.answer, half)];
  const line = (one: string, mark: string, other: string): void =>
    terminal.print(`${pad(cut(one, half), half)} ${mark} ${cut(other, half)}`.trimEnd());
  terminal.print("");
  line(left.replicas.join(", "), "|", right.replicas.join(", "));
  terminal.print(`${"-".repeat(half + 1)}+${"-".repeat(half + 1)}`);
  // Line by line: answers to one request that differ have nearly always the same shape.
  for (let i = 0; i < Math.max(a.length, b.length); i++) {
    const [one = "", other = ""] = [a[i], b[i]];
    const isEqual = one === other;
    const mark = isEqual ? "|" : terminal.style("red", "!");
    line(one, mark, other);
  }
}

function linesOf({ status, headers, body }: Answer, columns: number): string[] {
  const fields = headers.flatMap((name, i) => (i % 2 === 0 ? [`${name}: ${headers[i + 1] ?? ""}`] : []));
  const text = [`HTTP ${status}`, ...fields, "", ...pretty(body).split("\n")];
  return text.flatMap((line) => chunks(printable(line), columns));
}

function pretty(body: string): string {
  try {
    return JSON.stringify(JSON.parse(body), null, 2);
  } catch {
    return body;
  }
}

function chunks(line: string, columns: number): string[] {
  const parts: string[] = [];
  const chars = Array.from(line);
  for (let i = 0; i < Math.max(1, chars.length); i += columns) parts.push(chars.slice(i, i + columns).join(""));
  return parts;
}
