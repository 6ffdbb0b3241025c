// gateway replica …: the copies of the service, and what a person can decide about them.

import { resolve } from "node:path";
import { addGroup } from "./builder.ts";
import { finish, noWait } from "./operation.ts";
import { versionIn } from "./snapshot.ts";
import { printReplicas } from "./status.ts";
import { CommandError, counted, formatTime, printable, wrap } from "./terminal.ts";
import type { Command } from "commander";
import type { Operation, ReplicaStatus, RosterChanges, UnknownRow } from "../status.ts";
import type { Builder } from "./builder.ts";
import type { Client, ClientOptions } from "./client.ts";
import type { WaitOptions } from "./operation.ts";
import type { Terminal } from "./terminal.ts";

interface ReasonOptions extends ClientOptions {
  readonly reason?: string;
}

interface ResolveOptions extends ClientOptions {
  readonly all?: boolean;
  readonly applied?: boolean;
  readonly notApplied?: boolean;
}

interface AddOptions extends WaitOptions {
  readonly name?: string;
  readonly state?: string;
  readonly stop?: readonly string[];
  readonly start?: readonly string[];
  readonly witness?: readonly string[];
}

interface RebuildOptions extends WaitOptions {
  readonly version?: string;
}

export function addReplica(program: Command, builder: Builder): void {
  const group = addGroup(program, "replica", "Show and manage the copies of the service");
  addList(group, builder);
  addUnknown(group, builder);
  addResolve(group, builder);
  addAdd(group, builder);
  addRemove(group, builder);
  addSync(group, builder);
  addRebuild(group, builder);
  const actions = [
    ["drain", "Take a replica out of service once it has nothing in flight"],
    ["resume", "Bring a drained or quarantined replica back"],
    ["quarantine", "Take a replica out of reads, answers and agreement at once"],
  ] as const;
  for (const [action, summary] of actions) {
    const command = builder
      .addClient(group, `${action} <name>`, summary, [`replica ${action} b`])
      .option("--reason <text>", "shown to whoever asks why");
    builder.action<ReasonOptions>(command, async (terminal, options, name = "") => {
      const client = await connect(terminal, options);
      const body = options.reason === undefined ? {} : { reason: options.reason };
      const answer = await client.post<{ replica: ReplicaStatus }>(`${at(name)}/${action}`, body);
      if (terminal.isJson) terminal.printJson(answer);
      else terminal.print(`${answer.replica.name} is ${answer.replica.state}`);
    });
  }
}

async function connect(terminal: Terminal, options: ClientOptions): Promise<Client> {
  const { Client } = await import("./client.ts");
  return Client.of(terminal, options);
}

const at = (name: string): string => `/v1/replicas/${encodeURIComponent(name)}`;

function addList(group: Command, builder: Builder): void {
  const command = builder.addClient(group, "ls", "List the replicas", ["replica ls", "replica ls --json"]);
  builder.action<ClientOptions>(command, async (terminal, options) => {
    const client = await connect(terminal, options);
    const { replicas } = await client.get<{ replicas: readonly ReplicaStatus[] }>("/v1/replicas");
    if (terminal.isJson) terminal.printJson(replicas);
    else printReplicas(terminal, replicas);
  });
}

function addUnknown(group: Command, builder: Builder): void {
  const command = builder.addClient(group, "unknown [name]", "List entries whose outcome a person has to settle", [
    "replica unknown",
    "replica unknown b",
  ]);
  builder.action<ClientOptions>(command, async (terminal, options, name) => {
    const client = await connect(terminal, options);
    const query = name === undefined ? "" : `?replica=${encodeURIComponent(name)}`;
    const { unknown } = await client.get<{ unknown: readonly UnknownRow[] }>(`/v1/unknown${query}`);
    if (terminal.isJson) terminal.printJson(unknown);
    else printUnknown(terminal, unknown);
  });
}

function printUnknown(terminal: Terminal, rows: readonly UnknownRow[]): void {
  if (rows.length === 0) {
    terminal.print("no entry has an unknown outcome");
    return;
  }
  const now = Date.now();
  terminal.table(
    [
      { title: "REPLICA" },
      { title: "POSITION", isNumber: true },
      { title: "TIME" },
      { title: "RULE", isElastic: true },
      { title: "REQUEST", isElastic: true },
    ],
    rows.map((row) => [
      row.replica,
      String(row.position),
      formatTime(row.timeMs, now),
      row.rule,
      printable(`${row.method} ${row.target}`),
    ]),
  );
  // Nearly always one reason for all entries of a replica.
  for (const text of new Set(rows.map((row) => `${row.replica}: ${printable(row.reason)}`))) {
    for (const line of wrap(text, terminal.columns - 2)) terminal.print(`  ${line}`);
  }
  const { replica, position } = rows[0] as UnknownRow;
  terminal.note("");
  terminal.note("Look at what the backend did, then tell the gateway:");
  terminal.note(`  gateway log show ${position}`);
  terminal.note(`  gateway replica resolve ${replica} ${position} --applied    (or --not-applied)`);
}

function addResolve(group: Command, builder: Builder): void {
  const command = builder
    .addClient(group, "resolve <name> [position]", "Say what became of entries with an unknown outcome", [
      "replica resolve b 4931584 --applied",
      "replica resolve b --all --not-applied",
    ])
    .option("--all", "all of this replica instead of one position")
    .option("--applied", "the backend executed it")
    .option("--not-applied", "the backend did not: it is sent again");
  builder.action<ResolveOptions>(command, async (terminal, options, name = "", position) => {
    const { all, applied, notApplied } = options;
    if ((applied === true) === (notApplied === true)) throw usage("Say one of --applied and --not-applied.", name);
    if ((position === undefined) !== (all === true)) throw usage("Give a position, or --all.", name);
    if (position !== undefined && !/^\d{1,16}$/.test(position)) throw usage(`"${position}" is not a position.`, name);
    const client = await connect(terminal, options);
    const body = { position: position === undefined ? "all" : Number(position), applied: applied === true };
    const answer = await client.post<{ resolved: number }>(`${at(name)}/resolve`, body);
    if (terminal.isJson) terminal.printJson(answer);
    else
      terminal.print(
        `${name}: ${counted(answer.resolved, "entry", "entries")} settled as ${applied === true ? "applied" : "not applied"}`,
      );
  });
}

function usage(message: string, name: string): CommandError {
  return new CommandError(message, `Such as: gateway replica resolve ${name} 4931584 --applied`, { exitCode: 2 });
}

function addAdd(group: Command, builder: Builder): void {
  const command = noWait(
    builder
      .addClient(group, "add [url]", "Add a copy: it is rebuilt from a snapshot and the log, then live", [
        "replica add",
        "replica add http://127.0.0.1:4004 --name d --witness 'GET /accounts'",
        "replica add http://127.0.0.1:4004 --state /srv/d \\\n      --stop systemctl stop d --start systemctl start d",
      ])
      .option("--name <name>", "its name (default: host and port)")
      .option("--state <dir>", "its state folder, where the gateway can reach it")
      .option("--stop <command...>", "what ends it; in quotes where an argument begins with -")
      .option("--start <command...>", "what starts it")
      .option("--witness <request>", "a read that equal copies answer equally; again for each", collect),
  );
  command.addHelpText("after", "\nWithout a URL it is one more of those that the gateway starts itself.");
  builder.action<AddOptions>(command, async (terminal, options, url) => {
    const body = url === undefined ? managed(options) : await byUrl(url, options, terminal.cwd);
    const client = await connect(terminal, options);
    return finish(terminal, client, await client.post<Operation>("/v1/replicas", body), options);
  });
}

function managed(options: AddOptions): object {
  const given = (["name", "state", "stop", "start", "witness"] as const).find((key) => options[key] !== undefined);
  if (given === undefined) return {};
  throw new CommandError(`--${given} is of a copy that runs already.`, "Give its URL: gateway replica add URL", {
    exitCode: 2,
  });
}

async function byUrl(url: string, { name, state, stop, start, witness }: AddOptions, cwd: string): Promise<object> {
  const { nameOf } = await import("../config/sources.ts");
  return {
    name: name ?? nameOf(url),
    url,
    ...(state === undefined ? {} : { state: resolve(cwd, state) }),
    ...(stop === undefined ? {} : { stop: wordsOf(stop) }),
    ...(start === undefined ? {} : { start: wordsOf(start) }),
    ...(witness === undefined ? {} : { witness }),
  };
}

/** `--stop systemctl stop d`, or `--stop 'systemctl --user stop d'`: no shell reads it. */
function wordsOf(given: readonly string[]): readonly string[] {
  return given.length === 1 ? (given[0] ?? "").trim().split(/\s+/) : given;
}

function collect(value: string, before: readonly string[] | undefined): string[] {
  return [...(before ?? []), value];
}

function addRemove(group: Command, builder: Builder): void {
  const command = noWait(
    builder.addClient(group, "remove <name>", "Take a copy out for good; its state stays where it is", [
      "replica remove d",
    ]),
  );
  builder.action<WaitOptions>(command, async (terminal, options, name = "") => {
    const client = await connect(terminal, options);
    return finish(terminal, client, await client.delete<Operation>(at(name)), options);
  });
}

function addSync(group: Command, builder: Builder): void {
  const command = builder.addClient(group, "sync", "Make the roster what this gateway's file says, as it was started", [
    "replica sync",
  ]);
  command.addHelpText(
    "after",
    "\nGiven up are what was added and removed at run time, and URLs that this file\ndoes not name. Copies that other gateways start stay.",
  );
  builder.action<ClientOptions>(command, async (terminal, options) => {
    const client = await connect(terminal, options);
    const changes = await client.post<RosterChanges>("/v1/replicas/sync", {});
    if (terminal.isJson) return terminal.printJson(changes);
    const told = (["added", "changed", "removed"] as const).filter((what) => changes[what].length > 0);
    for (const what of told) terminal.print(`${what}: ${changes[what].join(", ")}`);
    if (told.length === 0) terminal.print("the roster is as this gateway's file says already");
  });
}

function addRebuild(group: Command, builder: Builder): void {
  const command = noWait(
    builder
      .addClient(group, "rebuild <name>", "Replace a copy's state by a snapshot and the log after it", [
        "replica rebuild b",
        "replica rebuild b --version 12",
      ])
      .option("--version <n>", "of the snapshot (default: the newest that is sound)"),
  );
  builder.action<RebuildOptions>(command, async (terminal, options, name = "") => {
    const body = options.version === undefined ? {} : { version: versionIn(options.version) };
    const client = await connect(terminal, options);
    return finish(terminal, client, await client.post<Operation>(`${at(name)}/rebuild`, body), options);
  });
}
