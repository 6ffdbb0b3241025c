// Disks that a test may fill, slow down or cut off from power: an ext4 file system in an image file, mounted through a loop device.
//
// A power cut keeps what the image holds while whoever writes is stopped: what was synced, and what the kernel wrote back by itself.
// `commit=600` keeps the kernel from writing its journal within a test, so that nothing survives by luck.

import { execFileSync, spawnSync } from "node:child_process";
import { rmSync, statfsSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createFolder, removeFolder } from "./folder.ts";

/** What the global setup found; false: tests of disks are skipped. */
export const hasDisks = process.env["GATEWAY_TEST_DISKS"] === "yes";
/** Delays and errors of system calls can be injected. */
export const hasStrace = spawnSync("strace", ["-o", "/dev/null", "true"]).status === 0;

/** Tries to mount one, sets what the tests read, and says in a line what will happen. Throws where disks are required and cannot be mounted. */
export function findDisks(): string {
  const isRequired = process.env["GATEWAY_TEST_DISKS"] === "required";
  process.env["GATEWAY_TEST_DISKS"] = "no";
  try {
    newDisk(16).close();
  } catch (error) {
    const why = (error instanceof Error ? error.message : String(error)).trim().split("\n").at(-1) ?? "";
    if (isRequired) throw new Error(`the tests of disks must run: ${why}`, { cause: error });
    return `tests of power cuts and full disks are SKIPPED (they mount loop devices, as root): ${why}`;
  }
  process.env["GATEWAY_TEST_DISKS"] = "yes";
  return "power cuts and full disks are tested on loop-mounted ext4";
}

export interface Disk {
  readonly folder: string;
  /**
   * `stop` stops everything that writes, `end` kills it; afterwards `folder` shows what a machine finds that lost its power
   * in between.
   */
  losePower(stop: () => Promise<void> | void, end: () => Promise<void>): Promise<void>;
  /** Leaves no room. Returns what makes room again. */
  fill(): () => void;
  /** May be called twice. */
  close(): void;
}

export function newDisk(mebibytes: number): Disk {
  const home = createFolder("disk");
  const folder = join(home, "mounted");
  let image = join(home, "image-1");
  let serial = 1;
  let isMounted = false;
  const mount = (): void => {
    run("mount", "-o", "loop,noatime,commit=600", image, folder);
    isMounted = true;
  };
  const close = (): void => {
    if (isMounted) run("umount", "-l", folder);
    isMounted = false;
    removeFolder(home);
  };
  try {
    run("mkdir", folder);
    writeFileSync(image, "");
    truncateSync(image, mebibytes << 20);
    run("mkfs.ext4", "-q", "-F", "-m", "0", image);
    mount();
  } catch (error) {
    close();
    throw error;
  }
  return {
    folder,
    async losePower(stop, end) {
      await stop();
      const left = join(home, `image-${(serial += 1)}`);
      copyAtRest(image, left);
      await end();
      run("umount", folder);
      isMounted = false;
      rmSync(image);
      image = left;
      mount();
    },
    fill() {
      const filler = join(folder, `filler-${(serial += 1)}`);
      // The last bytes may be gone already: somebody else writes, too.
      spawnSync("dd", ["if=/dev/zero", `of=${filler}`, "bs=64K"], { stdio: "ignore" });
      spawnSync("dd", ["if=/dev/zero", `of=${filler}`, "bs=1K", "oflag=append", "conv=notrunc"], { stdio: "ignore" });
      if (statfsSync(folder).bavail * statfsSync(folder).bsize > 1 << 20) throw new Error(`${folder} is not full`);
      return () => rmSync(filler);
    },
    close,
  };
}

/** The kernel may still write while it is copied: what is kept was the same before and after. */
function copyAtRest(image: string, copy: string): void {
  for (let attempt = 1; attempt <= 20; attempt += 1) {
    run("cp", "--sparse=always", image, copy);
    if (spawnSync("cmp", ["-s", image, copy]).status === 0) return;
  }
  throw new Error(`${image} does not come to rest`);
}

function run(program: string, ...args: readonly string[]): void {
  execFileSync(program, args, { stdio: ["ignore", "ignore", "pipe"] });
}
