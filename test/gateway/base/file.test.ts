// The base in a file: the contract, the format that is read for ever, and what disks can suffer.
import { execFileSync, spawnSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, onTestFinished, test } from "vitest";
import { openFileBases } from "../../../gateway/base/file.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import { sampleState } from "../state/samples.ts";
import { basesContract, expected, whole } from "./base.contract.ts";

const hasStrace = spawnSync("strace", ["-o", "/dev/null", "true"]).status === 0;

basesContract("file", async () => {
  const folder = temporaryFolder("base");
  const file = join(folder, "base");
  return {
    open: () => openFileBases({ folder }),
    childArguments: ["file", folder],
    damage: async (change) => writeFileSync(file, change(readFileSync(file))),
    close: () => Promise.resolve(),
  };
});

describe("the base in a file", () => {
  test("is written as it always was", async () => {
    const folder = temporaryFolder("base");
    const bases = await openFileBases({ folder });
    await bases.save(sampleState(3, 2));
    const json = JSON.stringify({ head: sampleState(3, 2).head, skips: sampleState(3, 2).skips });
    const bytes = readFileSync(join(folder, "base"));
    expect(bytes.subarray(0, 4).toString("latin1")).toBe("GWB\x01");
    expect(bytes.readUInt32BE(4)).toBe(json.length);
    expect(bytes.toString("utf8", 8, 8 + json.length)).toBe(json);
    expect(bytes.length).toBe(8 + json.length + 2 * 49 + 32);
    expect(bytes.toString("hex", bytes.length - 32)).toBe(goldenHash);
    await bases.close();
  });

  test("leaves nothing beside it, after a save that failed and after one that was killed", async () => {
    const folder = temporaryFolder("base");
    writeFileSync(join(folder, "base.new"), "of a save that was killed");
    const bases = await openFileBases({ folder });
    await bases.save(sampleState(3, 2));
    await expect(bases.save({ ...sampleState(4, 2), keys: broken() })).rejects.toThrow("broken");
    expect(readdirSync(folder)).toEqual(["base"]);
    await bases.close();
  });

  test("finds the disk full with GW_DISK_FULL; the former one stays, and there is room for a smaller one", async () => {
    const folder = memoryFileSystem("1m");
    const bases = await openFileBases({ folder });
    await bases.save(sampleState(3, 5000));
    await expect(bases.save(sampleState(14, 30_000))).rejects.toMatchObject({ code: "GW_DISK_FULL" });
    expect(await whole(bases)).toEqual(expected(3, 5000));
    await bases.save(sampleState(15, 6000));
    expect(await whole(bases)).toEqual(expected(15, 6000));
    await bases.close();
  });

  test("that changes on the disk after it was verified is found out at the end of its rows", async () => {
    const folder = temporaryFolder("base");
    const bases = await openFileBases({ folder });
    await bases.save(sampleState(3, 100));
    const base = await bases.load();
    const bytes = readFileSync(join(folder, "base"));
    const timeOfLastRow = bytes.length - 32 - 9;
    bytes[timeOfLastRow + 7] = (bytes[timeOfLastRow + 7] ?? 0) ^ 1;
    writeFileSync(join(folder, "base"), bytes);
    const read = async (): Promise<number> => {
      let count = 0;
      for await (const _ of base?.keys ?? []) count++;
      return count;
    };
    await expect(read()).rejects.toMatchObject({ code: "GW_LOG_CORRUPT" });
    await bases.close();
  });

  test("is saved by one at a time", async () => {
    const bases = await openFileBases({ folder: temporaryFolder("base") });
    const saving = bases.save(sampleState(3, 5000));
    await expect(bases.save(sampleState(4, 2))).rejects.toMatchObject({ code: "GW_CONFLICT" });
    await saving;
    expect(await whole(bases)).toEqual(expected(3, 5000));
    await bases.close();
  });

  test.skipIf(!hasStrace)("has its file and its folder on the disk before it counts", async () => {
    const folder = temporaryFolder("base");
    const trace = join(temporaryFolder("trace"), "trace");
    const script = fileURLToPath(new URL("saver.ts", import.meta.url));
    const strace = ["-f", "-y", "-o", trace, "-e", "trace=fsync,rename,renameat,renameat2"];
    const child = [process.execPath, "--import", "tsx", script, "1", "7", "100", "file", folder];
    const { status } = spawnSync("strace", [...strace, ...child], { stdio: ["ignore", "ignore", "inherit"] });
    expect(status).toBe(0);
    const steps = readFileSync(trace, "utf8")
      .split("\n")
      .filter((line) => line.includes(folder) && !line.includes("resumed>"))
      .map((line) => `${/fsync|rename/.exec(line)?.[0]} ${/base\.new/.exec(line)?.[0] ?? "folder"}`);
    expect(steps).toEqual(["fsync base.new", "rename base.new", "fsync folder"]);
  });
});

const goldenHash = "89bae426f7377319e32c5ec666b8ecd7a7667f6b9579194ac01734a44aa36d61";

const broken = (): AsyncIterable<never> => ({
  [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(new Error("broken")) }),
});

function memoryFileSystem(size: string): string {
  const folder = temporaryFolder("tmpfs");
  execFileSync("mount", ["-t", "tmpfs", "-o", `size=${size}`, "tmpfs", folder]);
  onTestFinished(() => void execFileSync("umount", ["-l", folder]));
  return folder;
}
