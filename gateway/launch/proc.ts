// What the kernel says of a process. Linux only: elsewhere everything is null, and then nothing is ever killed on suspicion.

import { readFileSync, readdirSync, readlinkSync } from "node:fs";

/** One life of one process: its pid alone may have become somebody else's. */
export interface ProcessIdentity {
  readonly bootId: string;
  readonly pid: number;
  /** Clock ticks after boot at which it started: field 22 of /proc/PID/stat. */
  readonly startTime: string;
}

export interface ProcessStat {
  readonly pid: number;
  readonly state: string;
  readonly group: number;
  readonly startTime: string;
}

/** Of this machine since it was switched on. Null: unknown here. */
export function machineBootId(proc = "/proc"): string | null {
  return read(`${proc}/sys/kernel/random/boot_id`)?.trim() ?? null;
}

export function readStat(pid: number, proc = "/proc"): ProcessStat | null {
  const stat = read(`${proc}/${pid}/stat`);
  if (stat === null) return null;
  // The second field is the program's name in parentheses, and may hold spaces and parentheses itself.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const [state, group, startTime] = [fields[0], fields[2], fields[19]];
  if (state === undefined || group === undefined || startTime === undefined) return null;
  return { pid, state, group: Number(group), startTime };
}

/** A zombie has ended: it only waits for its parent to look. */
export const isRunning = (stat: ProcessStat | null): stat is ProcessStat =>
  stat !== null && stat.state !== "Z" && stat.state !== "X";

/**
 * All running processes whose environment, as it was when they were started, holds `NAME=value` with the value beginning so. Other users'
 * cannot be read. A child between fork and exec still shows its parent's environment.
 */
export function processesWithVariable(name: string, prefix: string, proc = "/proc"): { pid: number; value: string }[] {
  const wanted = `${name}=${prefix}`;
  return pids(proc).flatMap((pid) => {
    if (pid === process.pid) return [];
    const found = read(`${proc}/${pid}/environ`)
      ?.split("\0")
      .find((variable) => variable.startsWith(wanted));
    if (found === undefined || !isRunning(readStat(pid, proc))) return [];
    return [{ pid, value: found.slice(name.length + 1) }];
  });
}

/** Inodes of the sockets that listen on a TCP port of this machine. */
export function listeningInodes(port: number, proc = "/proc"): Set<string> {
  const inodes = new Set<string>();
  const hex = port.toString(16).toUpperCase().padStart(4, "0");
  for (const file of ["tcp", "tcp6"]) {
    for (const line of read(`${proc}/net/${file}`)?.split("\n") ?? []) {
      const [, local, , state, , , , , , inode] = line.trim().split(/\s+/);
      if (local?.endsWith(`:${hex}`) === true && state === "0A" && inode !== undefined) inodes.add(inode);
    }
  }
  return inodes;
}

/** Whether a process holds one of these sockets open. False also when it cannot be known. */
export function holdsSocket(pid: number, inodes: ReadonlySet<string>, proc = "/proc"): boolean {
  return list(`${proc}/${pid}/fd`).some((fd) => {
    try {
      const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`${proc}/${pid}/fd/${fd}`))?.[1];
      return inode !== undefined && inodes.has(inode);
    } catch {
      return false;
    }
  });
}

/** False: it is gone, or was never ours to signal. A negative pid is a group. */
export function signal(pid: number, name: NodeJS.Signals | 0): boolean {
  try {
    process.kill(pid, name);
    return true;
  } catch {
    return false;
  }
}

const pids = (proc: string): number[] =>
  list(proc)
    .filter((entry) => /^[0-9]+$/.test(entry))
    .map(Number);

function list(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

function read(path: string): string | null {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return null;
  }
}
