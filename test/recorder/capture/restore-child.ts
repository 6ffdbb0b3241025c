// A restore in a process of its own, so that it can be killed at each durable step, or be somebody who is not root.

import { FolderPlace } from "../../../recorder/capture/folder.ts";
import type { TreeEntry } from "../../../recorder/capture/place.ts";
import { setStepHook, stepHook } from "../../../gateway/steps.ts";

const [what, folder = ""] = process.argv.slice(2);
const { signal } = new AbortController();
setStepHook(stepHook(process.env));

const file = (path: string, mode: number): TreeEntry => ({ kind: "file", path, mode, sizeBytes: 0, stamp: null });
const dir = (path: string, mode: number): TreeEntry => ({ kind: "folder", path, mode });

async function* content(text: string): AsyncGenerator<Buffer> {
  yield Buffer.from(text);
}

const trees: Readonly<Record<string, readonly (readonly [TreeEntry, string | null])[]>> = {
  restore: [
    [file("file", 0o644), "next"],
    [dir("folder", 0o755), null],
    [{ kind: "link", path: "folder/link", target: "../file" }, null],
    [file("folder/unreadable", 0o200), "x"],
  ],
  locked: [
    [dir("no entry", 0o600), null],
    [dir("shut", 0o000), null],
    [file("shut/in", 0o400), "in"],
    [dir("shut/deep", 0o500), null],
    [file("shut/deep/in", 0o000), "in"],
    [file("unreadable", 0o200), "x"],
  ],
};

async function restore(isCommitted: boolean): Promise<void> {
  const replacement = await new FolderPlace(folder, []).replace(signal);
  for (const [entry, text] of trees[what ?? ""] ?? [])
    await replacement.put(entry, text === null ? null : content(text));
  if (isCommitted) await replacement.commit();
  else await replacement.abort();
}

async function run(): Promise<void> {
  if (what === "put-back") await new FolderPlace(folder, []).putBack(signal);
  else if (what === "locked") for (const isCommitted of [true, true, false, true]) await restore(isCommitted);
  else await restore(true);
  process.stdout.write("done\n");
}

await run();
