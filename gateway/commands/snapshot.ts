// gateway snapshot …: the states that were captured, where they stand, and whether they can be brought back.

import { addGroup } from "./builder.ts";
import { finish, noWait } from "./operation.ts";
import { CommandError, counted, formatBytes, formatSeconds, printable } from "./terminal.ts";
import type { Command } from "commander";
import type { Operation, SnapshotRow } from "../status.ts";
import type { Builder } from "./builder.ts";
import type { Client, ClientOptions } from "./client.ts";
import type { WaitOptions } from "./operation.ts";
import type { Column, Terminal } from "./terminal.ts";

export function addSnapshot(program: Command, builder: Builder): void {
  const group = addGroup(program, "snapshot", "Take, show and verify snapshots of the state");
  addCreate(group, builder);
  addList(group, builder);
  addShow(group, builder);
  addVerify(group, builder);
}

async function connect(terminal: Terminal, options: ClientOptions): Promise<Client> {
  const { Client } = await import("./client.ts");
  return Client.of(terminal, options);
}

function addCreate(group: Command, builder: Builder): void {
  const command = noWait(
    builder.addClient(group, "create", "Capture the state now, while the service goes on", [
      "snapshot create",
      "snapshot create --no-wait --json",
    ]),
  );
  builder.action<WaitOptions>(command, async (terminal, options) => {
    const client = await connect(terminal, options);
    return finish(terminal, client, await client.post<Operation>("/v1/snapshots", {}), options);
  });
}

const columns: readonly Column[] = [
  { title: "VERSION", isNumber: true },
  { title: "POSITION", isNumber: true },
  { title: "AGE", isNumber: true },
  { title: "SIZE", isNumber: true },
  { title: "NEW", isNumber: true },
  { title: "VERIFIED" },
  { title: "PUBLISHED" },
  { title: "FROM", isElastic: true },
];

function addList(group: Command, builder: Builder): void {
  const command = builder.addClient(group, "ls", "List the snapshots, newest first", ["snapshot ls"]);
  builder.action<ClientOptions>(command, async (terminal, options) => {
    const client = await connect(terminal, options);
    const { snapshots } = await client.get<{ snapshots: readonly SnapshotRow[] }>("/v1/snapshots");
    if (terminal.isJson) {
      terminal.printJson(snapshots);
      return;
    }
    if (snapshots.length === 0) terminal.print("there is no snapshot");
    else
      terminal.table(
        columns,
        snapshots.map((row) => cells(terminal, row)),
      );
  });
}

function cells(terminal: Terminal, row: SnapshotRow): string[] {
  return [
    String(row.version),
    String(row.position),
    formatSeconds(ageSeconds(row)),
    formatBytes(row.treeBytes),
    row.newBytes === null ? "-" : formatBytes(row.newBytes),
    row.isVerified ? terminal.style("green", "yes") : "not yet",
    row.publication === "final" ? terminal.style("green", "final") : row.publication,
    printable(row.replica ?? "-"),
  ];
}

/** Of what is in it: its log time may be long ago when the log is. */
const ageSeconds = ({ timeMs }: SnapshotRow): number => Math.max(0, (Date.now() - timeMs) / 1000);

function addShow(group: Command, builder: Builder): void {
  const command = builder.addClient(group, "show <version>", "Show one snapshot with its hashes", ["snapshot show 12"]);
  builder.action<ClientOptions>(command, async (terminal, options, version = "") => {
    const client = await connect(terminal, options);
    const row = await client.get<SnapshotRow>(`/v1/snapshots/${versionIn(version)}`);
    if (terminal.isJson) terminal.printJson(row);
    else printRow(terminal, row);
  });
}

function printRow(terminal: Terminal, row: SnapshotRow): void {
  const added = row.newBytes === null ? "" : `, ${formatBytes(row.newBytes)} of it new`;
  const fields: readonly (readonly [string, string])[] = [
    ["version", String(row.version)],
    ["position", `${row.position}, after ${counted(row.entries, "entry", "entries")}`],
    ["time", new Date(row.timeMs).toISOString()],
    [
      "state",
      `${formatBytes(row.treeBytes)} in ${counted(row.treeEntries, "file, folder or link", "files, folders and links")}${added}`,
    ],
    ["from", row.replica ?? "another gateway"],
    ["backend", row.backendVersion],
    ["verified", row.isVerified ? "yes: a restore gave its root" : "not yet: gateway snapshot verify"],
    ["published", row.publication],
    ["in", row.transaction ?? ""],
    ["manifest", row.manifest],
    ["root", row.root],
    ["log hash", row.hash],
    ["epoch", row.epoch],
  ];
  for (const [label, value] of fields) {
    if (value !== "") terminal.print(`${terminal.style("dim", label.padEnd(10))} ${printable(value)}`);
  }
}

function addVerify(group: Command, builder: Builder): void {
  const command = noWait(
    builder.addClient(
      group,
      "verify [version]",
      "Restore one into a scratch folder and compare; exit code 3 on findings",
      ["snapshot verify", "snapshot verify 12"],
    ),
  );
  builder.action<WaitOptions>(command, async (terminal, options, version) => {
    const path = version === undefined ? "/v1/snapshots/verify" : `/v1/snapshots/${versionIn(version)}/verify`;
    const client = await connect(terminal, options);
    return finish(terminal, client, await client.post<Operation>(path, {}), options);
  });
}

/** Also of `--version`. */
export function versionIn(text: string): number {
  if (/^\d{1,15}$/.test(text)) return Number(text);
  throw new CommandError(`"${text}" is not the version of a snapshot.`, "List them: gateway snapshot ls", {
    exitCode: 2,
  });
}
