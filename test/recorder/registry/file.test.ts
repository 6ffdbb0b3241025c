import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { describe, expect, it, onTestFinished } from "vitest";
import { openFileRegistry } from "../../../recorder/registry/file.ts";
import { endWithUs, temporaryFolder } from "../../helpers/folder.ts";
import { registryContract } from "./registry.contract.ts";
import { publication } from "./samples.ts";
import type { Registry } from "../../../recorder/registry/registry.ts";

const service = "shop";
const name = "gw-1";
const signal = new AbortController().signal;
const pathIn = (folder: string): string => join(folder, "registry.log");

async function withVersions(folder: string, count: number): Promise<Registry> {
  const registry = openFileRegistry({ folder, service, name });
  for (let version = 0; version < count; version += 1) await registry.publish(publication(service, version), signal);
  return registry;
}

describe("the registry as a file", () => {
  registryContract(async () => {
    const folder = temporaryFolder("registry");
    return {
      service,
      open: async () => openFileRegistry({ folder, service, name }),
      settle: () => Promise.resolve(),
    };
  });

  it("names the gateway as the publisher, and nobody else may read the file", async () => {
    const folder = temporaryFolder("registry");
    const registry = await withVersions(folder, 1);
    expect(await registry.latest()).toMatchObject({ publishers: [name], quorum: 1, transaction: null, block: null });
    expect(statSync(pathIn(folder)).mode & 0o777).toBe(0o600);
  });

  it("finds every changed line by its number, whatever was changed in it, also while it is open", async () => {
    const folder = temporaryFolder("registry");
    const registry = await withVersions(folder, 4);
    const whole = readFileSync(pathIn(folder), "utf8");
    const lines = whole.split("\n").slice(0, -1);
    const [first = "", second = "", third = "", fourth = ""] = lines;
    const changes: readonly (readonly [number, string[]])[] = [
      [2, [first, second.replace('"position":8192', '"position":8193'), third, fourth]],
      [2, [first, second.replace("s3:", "S3:"), third, fourth]],
      [2, [first, second.replace("{", '{"note":1,'), third, fourth]],
      [2, [first, third, fourth]],
      [2, [first, first, second, third, fourth]],
      [1, [second, third, fourth]],
      [3, [first, second, fourth, third]],
      [3, [first, second, third.slice(0, -10), fourth]],
      [4, [first, second, third, fourth.replace(/"line":"../, '"line":"00')]],
      [4, [first, second, third, ""]],
    ];
    for (const [line, changed] of changes) {
      writeFileSync(pathIn(folder), `${changed.join("\n")}\n`);
      const corrupt = { code: "GW_SNAPSHOT_CORRUPT", message: expect.stringContaining(`line ${line} `) as unknown };
      await expect(registry.latest()).rejects.toMatchObject(corrupt);
      await expect(registry.publish(publication(service, 4), signal)).rejects.toMatchObject(corrupt);
      expect(await registry.status()).toMatchObject({
        isReachable: false,
        trouble: expect.stringContaining("line") as unknown,
      });
      expect(readFileSync(pathIn(folder), "utf8")).toBe(`${changed.join("\n")}\n`);
    }
    writeFileSync(pathIn(folder), whole);
    expect(await registry.latest()).toMatchObject({ version: 3 });
    expect((await registry.status()).errors).toBe(2 * changes.length);
  });

  it("refuses a whole line that was computed anew but breaks the law", async () => {
    const folder = temporaryFolder("registry");
    const other = temporaryFolder("registry");
    await withVersions(folder, 1);
    const foreign = openFileRegistry({ folder: other, service: "other", name });
    await foreign.publish(publication("other", 0), signal);
    writeFileSync(pathIn(folder), readFileSync(pathIn(other)));
    const registry = openFileRegistry({ folder, service, name });
    await expect(registry.latest()).rejects.toMatchObject({ code: "GW_SNAPSHOT_CORRUPT" });
  });

  it("takes the part of a line that a crash left behind for nothing, and the next publication cuts it off", async () => {
    const folder = temporaryFolder("registry");
    await withVersions(folder, 2);
    const whole = readFileSync(pathIn(folder), "utf8");
    const last = whole.split("\n")[1] ?? "";
    for (const torn of ["{", last.slice(0, -1), last]) {
      writeFileSync(pathIn(folder), whole + torn);
      const registry = openFileRegistry({ folder, service, name });
      expect(await registry.latest()).toMatchObject({ version: 1 });
      // Who only reads changes nothing: another process may be writing.
      expect(readFileSync(pathIn(folder), "utf8")).toBe(whole + torn);
    }
    const registry = openFileRegistry({ folder, service, name });
    await registry.publish(publication(service, 2), signal);
    expect(readFileSync(pathIn(folder), "utf8").startsWith(whole)).toBe(true);
    expect(await openFileRegistry({ folder, service, name }).history(0, 9)).toHaveLength(3);
  });

  it("shows what another process has published meanwhile", async () => {
    const folder = temporaryFolder("registry");
    const writer = await withVersions(folder, 1);
    const reader = openFileRegistry({ folder, service, name: "another" });
    expect(await reader.latest()).toMatchObject({ version: 0 });
    await writer.publish(publication(service, 1), signal);
    expect(await reader.latest()).toMatchObject({ version: 1, publishers: [name] });
  });

  it("keeps what it resolved through a kill -9, and never a part of a line after it", async () => {
    const folder = temporaryFolder("registry");
    const script = fileURLToPath(new URL("publish-for-ever.ts", import.meta.url));
    for (let life = 0; life < 2; life += 1) {
      const child = spawn(process.execPath, ["--import", "tsx", script, folder], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      const gone = endWithUs(child.pid ?? 0);
      let newest = -1;
      let lines = 0;
      for await (const line of createInterface(child.stdout)) {
        newest = Number(line);
        if ((lines += 1) === 40) child.kill("SIGKILL");
      }
      if (child.signalCode === null) await once(child, "exit");
      gone();
      expect(child.signalCode).toBe("SIGKILL");
      const latest = await openFileRegistry({ folder, service, name }).latest();
      expect([newest, newest + 1]).toContain(latest?.version);
    }
  });

  it("publishes nothing on a full disk, and goes on when there is room", async () => {
    const folder = temporaryFolder("tmpfs");
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]);
    onTestFinished(() => void execFileSync("umount", ["-l", folder]));
    const registry = await withVersions(folder, 2);
    const full = join(folder, "full");
    writeFileSync(full, "");
    // Ends when the disk is full: tmpfs counts whole pages, and the line may still fit into the registry's last one.
    for (let isFull = false; !isFull;) {
      try {
        appendFileSync(full, Buffer.alloc(4096));
      } catch {
        isFull = true;
      }
    }
    let version = 1;
    const failures: unknown[] = [];
    for (; version < 40 && failures.length === 0;) {
      version += 1;
      await registry.publish(publication(service, version), signal).catch((error: unknown) => failures.push(error));
    }
    expect(failures[0]).toMatchObject({
      code: "GW_REGISTRY_UNAVAILABLE",
      message: expect.stringContaining("ENOSPC") as unknown,
    });
    expect(await registry.latest()).toMatchObject({ version: version - 1 });
    writeFileSync(full, "");
    await registry.publish(publication(service, version), signal);
    expect(await openFileRegistry({ folder, service, name }).latest()).toMatchObject({ version });
  });
});
