// One gateway a data folder: whoever holds the lock has proven that the former holders are dead.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, renameSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { describe, expect, it } from "vitest";
import { lockData } from "../../gateway/lock.ts";
import { endWithUs, temporaryFolder } from "../helpers/folder.ts";
import { waitFor } from "../helpers/wait.ts";

const locked = { code: "GW_DATA_LOCKED" };

describe("the lock of a data folder", () => {
  it("is held by one, and free again when that one lets go", async () => {
    const folder = temporaryFolder("data");
    const first = await lockData(folder);
    await expect(lockData(folder)).rejects.toMatchObject(locked);
    await first.release();
    const second = await lockData(folder);
    expect(second.boot).not.toBe(first.boot);
    expect([...second.formerBoots]).toEqual([first.boot]);
    await second.release();
  });

  it("is the folder's, whatever it is called: a link to it or a new name does not help", async () => {
    const folder = join(temporaryFolder("data"), "data");
    mkdirSync(folder);
    symlinkSync(folder, `${folder}-link`);
    const lock = await lockData(folder);
    await expect(lockData(`${folder}-link`)).rejects.toMatchObject(locked);
    renameSync(folder, `${folder}-moved`);
    await expect(lockData(`${folder}-moved`)).rejects.toMatchObject(locked);
    mkdirSync(folder);
    const other = await lockData(folder);
    await other.release();
    await lock.release();
  });

  it("is refused while another process has it, and freed by a kill -9 of that process", async () => {
    const folder = temporaryFolder("data");
    const boots: string[] = [];
    for (let life = 0; life < 2; life++) {
      const { child, boot } = await holder(folder);
      boots.push(boot);
      await expect(lockData(folder)).rejects.toMatchObject(locked);
      child.kill("SIGKILL");
      await once(child, "exit");
    }
    const lock = await waitFor(() => lockData(folder), { what: "the lock of a dead process" });
    expect([...lock.formerBoots]).toEqual(boots);
    expect(lock.formerBoots.has(lock.boot)).toBe(false);
    await lock.release();
  });

  it("a refused one leaves no trace: the holder is no former holder", async () => {
    const folder = temporaryFolder("data");
    const lock = await lockData(folder);
    const before = readFileSync(join(folder, "boots"), "utf8");
    await expect(lockData(folder)).rejects.toMatchObject(locked);
    expect(readFileSync(join(folder, "boots"), "utf8")).toBe(before);
    await lock.release();
  });

  it("its id stands in the folder before anybody is told of it, readable by the owner only", async () => {
    const folder = temporaryFolder("data");
    const lock = await lockData(folder);
    expect(lock.boot).toMatch(/^[0-9a-f]{32}$/);
    expect(readFileSync(join(folder, "boots"), "utf8")).toBe(lock.boot);
    expect(statSync(join(folder, "boots")).mode & 0o777).toBe(0o600);
    await lock.release();
  });

  it("the last 256 holders are known, and lines that are no id are nobody", async () => {
    const folder = temporaryFolder("data");
    const former = Array.from({ length: 300 }, (_, at) => at.toString(16).padStart(32, "0"));
    writeFileSync(join(folder, "boots"), ["garbage", ...former, ""].join("\n"));
    const first = await lockData(folder);
    expect([...first.formerBoots]).toEqual(former);
    await first.release();
    const second = await lockData(folder);
    expect([...second.formerBoots]).toEqual([...former.slice(-255), first.boot]);
    await second.release();
  });

  it("a folder that does not exist cannot be locked", async () => {
    await expect(lockData(join(temporaryFolder("data"), "missing"))).rejects.toMatchObject({
      code: "ENOENT",
    });
  });
});

/** A process of its own that holds the lock until it is killed. */
async function holder(folder: string) {
  const code = `
    import { lockData } from ${JSON.stringify(new URL("../../gateway/lock.ts", import.meta.url).href)};
    const lock = await lockData(${JSON.stringify(folder)});
    console.log(lock.boot);
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", code], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const gone = endWithUs(child.pid ?? 0);
  child.once("exit", gone);
  for await (const boot of createInterface(child.stdout)) return { child, boot };
  throw new Error("the holder ended before it had the lock");
}
