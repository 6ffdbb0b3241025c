// gateway log …: what the log holds, whether it is whole, and what to do with entries that are parked.

import { addGroup } from "./builder.ts";
import {
  CommandError,
  counted,
  formatBytes,
  formatCount,
  formatSeconds,
  formatTime,
  pad,
  printable,
} from "./terminal.ts";
import type { Command } from "commander";
import type { LogRow, Status, UnfinishedRow } from "../status.ts";
import type { Builder } from "./builder.ts";
import type { Client, ClientOptions } from "./client.ts";
import type { Column, Terminal } from "./terminal.ts";

interface ListOptions extends ClientOptions {
  readonly from?: string;
  readonly limit?: string;
}
interface TailOptions extends ClientOptions {
  readonly follow?: boolean;
  readonly lines?: string;
}
interface SkipOptions extends ClientOptions {
  readonly reason?: string;
}
interface Parked {
  readonly position: number;
  readonly reason: string;
  readonly method: string;
  readonly target: string;
  readonly timeMs: number;
}

/** Exit code of a command that found what should not be. */
const findings = 3;

export function addLog(program: Command, builder: Builder): void {
  const group = addGroup(program, "log", "Look into the log");
  const client = (
    name: string,
    summary: string,
    examples: readonly string[],
    act: (client: Client, terminal: Terminal) => Promise<number | void>,
  ): void => {
    const command = builder.addClient(group, name, summary, examples);
    builder.action<ClientOptions>(command, async (terminal, options) =>
      act(await connect(terminal, options), terminal),
    );
  };
  client("info", "Size, place and state of the log", ["log info"], info);
  addList(group, builder);
  addShow(group, builder);
  addTail(group, builder);
  client("verify", "Read the whole log and check its hash chain; exit code 3 on findings", ["log verify"], verify);
  client("unfinished", "List entries whose once-only part may not have been done", ["log unfinished"], unfinished);
  client("parked", "List entries that will not be executed", ["log parked"], parked);
  addRetry(group, builder);
  addSkip(group, builder);
}

async function connect(terminal: Terminal, options: ClientOptions): Promise<Client> {
  const { Client } = await import("./client.ts");
  return Client.of(terminal, options);
}

async function info(client: Client, terminal: Terminal): Promise<void> {
  const { log, tail, guarantee } = await client.get<Status>("/v1/status");
  if (terminal.isJson) {
    terminal.printJson({ ...log, tail, guarantee });
    return;
  }
  const rows: [string, string][] = [
    ["kind", log.kind],
    ["state", log.reachable ? log.state : "away"],
    ["epoch", log.epoch],
    ["first", String(log.firstPosition)],
    ["tail", String(tail)],
    ["entries", formatCount(log.entries)],
    ["size", `${formatBytes(log.bytes)} of ${formatBytes(log.maxBytes)}`],
    ["full in", log.secondsUntilFull === null ? "does not grow" : formatSeconds(log.secondsUntilFull)],
    ["hash", log.hash],
    ["rules", log.rules],
    ["guarantee", guarantee.level],
  ];
  for (const [label, value] of rows) terminal.print(`${terminal.style("dim", label.padEnd(10))} ${value}`);
}

function addList(group: Command, builder: Builder): void {
  const command = builder
    .addClient(group, "ls", "List the last entries, or those from a position on", [
      "log ls",
      "log ls --from 4931584 --limit 50",
    ])
    .option("--from <position>", "the first to list")
    .option("--limit <n>", "how many", "20");
  builder.action<ListOptions>(command, async (terminal, options) => {
    const limit = number("--limit", options.limit ?? "20");
    const query =
      options.from === undefined ? `last=${limit}` : `from=${number("--from", options.from)}&limit=${limit}`;
    const client = await connect(terminal, options);
    const { rows, next } = await client.get<{ rows: readonly LogRow[]; next: number | null }>(`/v1/log?${query}`);
    if (terminal.isJson) {
      terminal.printJson(rows);
      return;
    }
    if (rows.length === 0)
      terminal.print(options.from === undefined ? "the log is empty" : `nothing at ${options.from} or behind`);
    else terminal.table(columns, rows.map(cells));
    if (next !== null) terminal.note(`\nmore: gateway log ls --from ${next}`);
  });
}

const columns: readonly Column[] = [
  { title: "POSITION", isNumber: true },
  { title: "TIME" },
  { title: "FATE" },
  { title: "RULE", isElastic: true },
  { title: "BYTES", isNumber: true },
  { title: "REQUEST", isElastic: true },
];

function cells(row: LogRow): string[] {
  const request = row.method === null ? printable(row.detail) : printable(`${row.method} ${row.target ?? ""}`);
  return [
    String(row.position),
    formatTime(row.timeMs, Date.now()),
    row.fate === "control" ? row.kind : row.fate,
    row.rule ?? "",
    row.bodyBytes === null ? "" : formatCount(row.bodyBytes),
    request,
  ];
}

function addShow(group: Command, builder: Builder): void {
  const command = builder.addClient(group, "show <position>", "Show one entry, headers and body", ["log show 4931584"]);
  builder.action<ClientOptions>(command, async (terminal, options, position = "") => {
    const client = await connect(terminal, options);
    const row = await client.get<LogRow>(`/v1/log/${number("the position", position)}`);
    if (terminal.isJson) terminal.printJson(row);
    else printRow(terminal, row);
  });
}

function printRow(terminal: Terminal, row: LogRow): void {
  const field = (label: string, value: string): void => {
    if (value !== "") terminal.print(`${terminal.style("dim", label.padEnd(10))} ${printable(value)}`);
  };
  field("position", String(row.position));
  field("kind", row.kind);
  field("fate", row.fate);
  field("time", row.timeMs === null ? "" : new Date(row.timeMs).toISOString());
  field("rule", row.rule ?? "");
  field("order", row.method === null ? "" : row.orderKeys.length === 0 ? "total" : row.orderKeys.join("  "));
  field("key", row.method === null ? "" : row.keyed ? "yes" : "none");
  field("producer", row.producer);
  field("detail", row.detail);
  if (row.method === null) return;
  terminal.print("");
  terminal.print(terminal.style("bold", printable(`${row.method} ${row.target ?? ""}`)));
  const headers = row.headers ?? [];
  for (let i = 0; i + 1 < headers.length; i += 2) terminal.print(printable(`${headers[i]}: ${headers[i + 1]}`));
  if (row.bodyBytes === null || row.bodyBytes === 0) return;
  terminal.print("");
  printBody(terminal, row.body === null ? null : Buffer.from(row.body, "base64"), row.bodyBytes);
}

function printBody(terminal: Terminal, body: Buffer | null, size: number): void {
  if (body === null) {
    terminal.print(`(${formatBytes(size)}, kept beside the log)`);
    return;
  }
  const text = body.toString("utf8");
  // oxlint-disable-next-line no-control-regex
  if (text.includes("\ufffd") || /[\u0000-\u0008\u000e-\u001f]/.test(text)) {
    for (let i = 0; i < Math.min(body.length, 256); i += 16) {
      const part = body.subarray(i, i + 16);
      const hex = part.toString("hex").replaceAll(/(..)/g, "$1 ");
      terminal.print(
        `${i.toString(16).padStart(6, "0")}  ${pad(hex, 48)} ${part.toString("latin1").replaceAll(/[^ -~]/g, ".")}`,
      );
    }
  } else for (const line of text.split("\n")) terminal.print(printable(line));
  if (body.length < size) terminal.print(`… ${formatBytes(size - body.length)} more`);
}

function addTail(group: Command, builder: Builder): void {
  const command = builder
    .addClient(group, "tail", "Show the last entries, and with -f those to come", ["log tail", "log tail -f"])
    .option("-f, --follow", "go on until interrupted")
    .option("-n, --lines <n>", "how many of the last", "10");
  builder.action<TailOptions>(command, async (terminal, options) => {
    const lines = number("--lines", options.lines ?? "10");
    const client = await connect(terminal, options);
    const { rows } =
      lines === 0 ? { rows: [] } : await client.get<{ rows: readonly LogRow[] }>(`/v1/log?last=${lines}`);
    for (const row of rows) printLine(terminal, row);
    if (options.follow !== true) return 0;
    const last = rows.at(-1);
    return follow(client, terminal, last === undefined ? null : last.position + 1);
  });
}

/** Until the gateway ends the stream; an interruption ends the process. */
async function follow(client: Client, terminal: Terminal, from: number | null): Promise<number> {
  const query = from === null ? "" : `?from=${from}`;
  for await (const { event, data } of client.events(`/v1/log/stream${query}`)) {
    if (event === "problem") {
      const { code, detail } = data as { readonly code: string; readonly detail: string };
      throw new CommandError(detail, `${code}: see deploy/runbook.md`, { code });
    }
    printLine(terminal, data as LogRow);
  }
  terminal.note("the gateway ended the stream");
  return 1;
}

/** One line an entry: for following, where columns cannot be measured beforehand. */
function printLine(terminal: Terminal, row: LogRow): void {
  if (terminal.isJson) {
    terminal.print(JSON.stringify(row));
    return;
  }
  const [position = "", time = "", fate = "", rule = "", , request = ""] = cells(row);
  terminal.print(`${pad(position, 10, true)}  ${time}  ${pad(fate, 9)}  ${pad(rule, 14)}  ${request}`.trimEnd());
}

async function verify(client: Client, terminal: Terminal): Promise<number> {
  const result = await client.get<{ records: number; hash: string; findings: readonly string[] }>("/v1/log/verify");
  if (terminal.isJson) terminal.printJson(result);
  else if (result.findings.length === 0) {
    terminal.print(`${terminal.style("green", "ok")}: ${counted(result.records, "record")}, hash ${result.hash}`);
  } else {
    for (const finding of result.findings) terminal.print(`${terminal.style("red", "finding:")} ${printable(finding)}`);
    terminal.print(`${counted(result.records, "record")} read, ${counted(result.findings.length, "finding")}`);
  }
  return result.findings.length === 0 ? 0 : findings;
}

async function unfinished(client: Client, terminal: Terminal): Promise<void> {
  const { unfinished: rows } = await client.get<{ unfinished: readonly UnfinishedRow[] }>("/v1/unfinished");
  if (terminal.isJson) {
    terminal.printJson(rows);
    return;
  }
  if (rows.length === 0) {
    terminal.print("every primary has finished what it began");
    return;
  }
  terminal.table(
    [
      { title: "POSITION", isNumber: true },
      { title: "TIME" },
      { title: "PRIMARY" },
      { title: "ONCE-ONLY PART" },
      { title: "RULE", isElastic: true },
      { title: "REQUEST", isElastic: true },
    ],
    rows.map((row) => [
      String(row.position),
      formatTime(row.timeMs, Date.now()),
      row.replica,
      row.what === "unknown" ? "unknown" : "not done",
      row.rule,
      printable(`${row.method} ${row.target}`),
    ]),
  );
}

async function parked(client: Client, terminal: Terminal): Promise<void> {
  const { parked: rows } = await client.get<{ parked: readonly Parked[] }>("/v1/parked");
  if (terminal.isJson) {
    terminal.printJson(rows);
    return;
  }
  if (rows.length === 0) {
    terminal.print("no entry is parked");
    return;
  }
  terminal.table(
    [
      { title: "POSITION", isNumber: true },
      { title: "TIME" },
      { title: "REQUEST", isElastic: true },
      { title: "REASON", isElastic: true },
    ],
    rows.map((row) => [
      String(row.position),
      formatTime(row.timeMs, Date.now()),
      printable(`${row.method} ${row.target}`),
      printable(row.reason),
    ]),
  );
  terminal.note(`\nAppend one again: gateway log retry ${rows[0]?.position ?? ""}`);
}

function addRetry(group: Command, builder: Builder): void {
  const command = builder.addClient(group, "retry <position>", "Append a parked entry once more", [
    "log retry 4931584",
  ]);
  builder.action<ClientOptions>(command, async (terminal, options, position = "") => {
    const at = number("the position", position);
    const client = await connect(terminal, options);
    const answer = await client.post<{ position: number }>(`/v1/parked/${at}/retry`, {});
    if (terminal.isJson) terminal.printJson(answer);
    else terminal.print(`appended again at ${answer.position}`);
  });
}

function addSkip(group: Command, builder: Builder): void {
  const command = builder
    .addClient(group, "skip <position>", "Park an entry: it is executed nowhere from here on", [
      "log skip 4931584 --reason poison",
    ])
    .option("--reason <text>", "shown to whoever asks why");
  builder.action<SkipOptions>(command, async (terminal, options, position = "") => {
    const at = number("the position", position);
    const client = await connect(terminal, options);
    const body = options.reason === undefined ? {} : { reason: options.reason };
    const answer = await client.post<{ position: number }>(`/v1/parked/${at}/skip`, body);
    if (terminal.isJson) terminal.printJson(answer);
    else terminal.print(`${answer.position} is parked`);
  });
}

function number(what: string, text: string): number {
  if (/^\d{1,15}$/.test(text)) return Number(text);
  throw new CommandError(`${what} has to be a whole number, not "${text}".`, "See: gateway log --help", {
    exitCode: 2,
  });
}
