// npm run bench:snapshot: what a capture and a restore cost, beside `cp -r` of the same tree on the same disk.
// A tree of files (half of them text, half noise) is captured into a folder store, 1 % of the files are written anew, it is captured again, restored
// and compared; then cp and restore alternate, each followed by `sync -f`. Prints a table of medians.
//
//   npm run bench:snapshot -- [--mib 1024] [--files 10000] [--rounds 3] [--folder DIR] [--key]

import { execFileSync } from "node:child_process";
import { randomBytes, randomFillSync, randomInt } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { archive, restore, rootOf } from "../../recorder/archive.ts";
import type { Archived } from "../../recorder/archive.ts";
import { FolderPlace } from "../../recorder/capture/folder.ts";
import { openPacks, openPacksToWrite } from "../../recorder/packs.ts";
import { snapshotKey } from "../../recorder/seal.ts";
import { openStampCache } from "../../recorder/stamps.ts";
import { openFolderStore } from "../../recorder/stores/folder.ts";
import { median } from "./figures.ts";

const { values: flags } = parseArgs({
  options: {
    mib: { type: "string", default: "1024" },
    files: { type: "string", default: "10000" },
    rounds: { type: "string", default: "3" },
    folder: { type: "string", default: tmpdir() },
    key: { type: "boolean", default: false },
  },
});
const bytes = Number(flags.mib) * 1024 * 1024;
const files = Number(flags.files);
const rounds = Number(flags.rounds);
const key = flags.key ? snapshotKey(randomBytes(32)) : null;
const { signal } = new AbortController();

const root = mkdtempSync(join(flags.folder, "br2k-bench-"));
process.once("exit", () => rmSync(root, { recursive: true, force: true }));
process.once("SIGINT", () => process.exit(130));
const at = (name: string): string => join(root, name);

const firsts: (Archived & { ms: number })[] = [];
const seconds: (Archived & { ms: number })[] = [];
const roots: number[] = [];
const copies: number[] = [];
const restores: number[] = [];
let peakMiB = 0;

say(`${files} files, ${flags.mib} MiB, in ${root}; ${cpus().length} cores, load ${loadavg()[0]?.toFixed(1)}`);
for (let n = 0; n < files; n += 1) writeOne(n);
sync();
for (let round = 1; round <= rounds; round += 1) {
  const first = await capture();
  firsts.push(first);
  // Text and noise in turn.
  for (let n = 0; n < files; n += 99) writeOne(n);
  const second = await capture();
  seconds.push(second);
  const timed = await time(() => rootOf(new FolderPlace(at("state"), []), { signal, cache: null }));
  roots.push(timed.ms);
  if (timed.result !== second.root) throw new Error("the root of the folder is not what was captured");
  // Whoever goes second finds a warmer machine: in turns.
  for (const kind of round % 2 === 0 ? ["cp", "restore"] : ["restore", "cp"]) {
    if (kind === "cp") copies.push((await time(copy)).ms);
    else restores.push((await time(() => bringBack(second))).ms);
  }
  const restored = await rootOf(new FolderPlace(at("restored"), []), { signal, cache: null });
  if (restored !== second.root) throw new Error("what was restored is not what was captured");
  for (const name of ["store", "copy", "restored", "stamps"]) rmSync(at(name), { recursive: true, force: true });
  sync();
  say(`round ${round}: load ${loadavg()[0]?.toFixed(1)}`);
}
print();

async function capture(): Promise<Archived & { ms: number }> {
  const { ms, result } = await time(async () => {
    const store = await openFolderStore({ kind: "folder", folder: at("store") });
    const packs = await openPacksToWrite(store, { key, signal });
    const cache = await openStampCache(at("stamps"));
    const archived = await archive(new FolderPlace(at("state"), []), packs, { signal, cache });
    await packs.flush();
    await packs.close();
    await store.close();
    return archived;
  });
  return { ...result, ms };
}

async function bringBack(archived: Archived): Promise<void> {
  const store = await openFolderStore({ kind: "folder", folder: at("store") });
  const packs = await openPacks(store, { key, signal });
  await restore(archived, packs, new FolderPlace(at("restored"), []), { signal });
  sync();
  await packs.close();
  await store.close();
}

async function copy(): Promise<void> {
  execFileSync("cp", ["-r", at("state"), at("copy")]);
  sync();
}

async function time<T>(work: () => Promise<T>): Promise<{ ms: number; result: T }> {
  const watch = setInterval(() => (peakMiB = Math.max(peakMiB, process.memoryUsage().rss / 2 ** 20)), 20);
  const began = performance.now();
  const result = await work();
  clearInterval(watch);
  return { ms: performance.now() - began, result };
}

function writeOne(n: number): void {
  const folder = at(`state/${n % 97}/${n % 7}`);
  mkdirSync(folder, { recursive: true });
  const length = randomInt(Math.round((2 * bytes) / files)) + 1;
  writeFileSync(join(folder, `file ${n}.dat`), n % 2 === 0 ? text(length) : randomFillSync(Buffer.alloc(length)));
}

/** As a service's own files are: five times smaller when compressed. */
function text(length: number): Buffer {
  let lines = "";
  let id = randomInt(1_000_000_000);
  while (lines.length < length) {
    id += 7;
    const amount = Math.floor(Math.random() * 100_000);
    lines += `{"id":${id},"customer":"c-${id % 9973}","amount":${amount},"state":"${amount % 3 === 0 ? "open" : "paid"}"}\n`;
  }
  return Buffer.from(lines.slice(0, length));
}

function sync(): void {
  execFileSync("sync", ["-f", root]);
}

function print(): void {
  const firstMs = of(firsts, ({ ms }) => ms);
  const secondMs = of(seconds, ({ ms }) => ms);
  const firstBytes = of(firsts, ({ newBytes }) => newBytes);
  const secondBytes = of(seconds, ({ newBytes }) => newBytes);
  const rows = [
    ["", "ms", "min … max", "rate", "new in the store", "aim"],
    ["first capture", firstMs.toFixed(0), range(firsts.map(({ ms }) => ms)), rate(firstMs), mib(firstBytes), ""],
    ["second capture", secondMs.toFixed(0), range(seconds.map(({ ms }) => ms)), "", mib(secondBytes), ""],
    ["  of the first", share(secondMs, firstMs), "", "", share(secondBytes, firstBytes), "<= 15 %, <= 5 %"],
    ["root alone", of(roots, Number).toFixed(0), range(roots), rate(of(roots, Number)), "", ""],
    ["cp -r, sync -f", of(copies, Number).toFixed(0), range(copies), rate(of(copies, Number)), "", ""],
    ["restore, sync -f", of(restores, Number).toFixed(0), range(restores), rate(of(restores, Number)), "", ""],
    [
      "  rate of cp's",
      median(copies.map((ms, i) => ms / (restores[i] ?? Number.NaN))).toFixed(2),
      "",
      "",
      "",
      ">= 0.5",
    ],
    ["peak memory", `${peakMiB.toFixed(0)} MiB`, "", "", "", ""],
  ];
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  for (const row of rows)
    process.stdout.write(
      `${row
        .map((cell, i) => cell.padEnd(widths[i]!))
        .join("  ")
        .trimEnd()}\n`,
    );
}

function of<T>(rows: readonly T[], pick: (row: T) => number): number {
  return median(rows.map(pick));
}

function share(part: number, whole: number): string {
  return `${((100 * part) / whole).toFixed(1)} %`;
}

function rate(ms: number): string {
  return `${(bytes / 2 ** 20 / (ms / 1000)).toFixed(0)} MiB/s`;
}

function mib(n: number): string {
  return `${(n / 2 ** 20).toFixed(1)} MiB`;
}

function range(all: readonly number[]): string {
  return `${Math.min(...all).toFixed(0)} … ${Math.max(...all).toFixed(0)}`;
}

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}
