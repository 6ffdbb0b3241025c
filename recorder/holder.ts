// Which process holds something in a place that others see too, in words from which a process of the same machine can tell that it has ended.
//
// Machine boot, PID namespace, PID and start time together name one process for ever; another boot or namespace says nothing of it.

import { readFileSync, readlinkSync } from "node:fs";

interface Holder {
  readonly boot: string;
  readonly namespace: string;
  readonly pid: number;
  /** Ticks since boot. */
  readonly started: string;
}

/** One line; empty where the system does not tell (it is not Linux): then nobody can tell that this process has ended. */
export function thisHolder(): string {
  const machine = thisMachine();
  const started = machine === null ? null : startOf(process.pid);
  return machine === null || started === null ? "" : JSON.stringify({ ...machine, pid: process.pid, started });
}

/** True only where it is certain. */
export function isHolderGone(text: string): boolean {
  const machine = thisMachine();
  let holder: Partial<Holder> | null;
  try {
    holder = JSON.parse(text) as Partial<Holder> | null;
  } catch {
    return false;
  }
  if (machine === null || holder === null || typeof holder.pid !== "number" || typeof holder.started !== "string")
    return false;
  if (holder.boot !== machine.boot || holder.namespace !== machine.namespace) return false;
  return startOf(holder.pid) !== holder.started;
}

function thisMachine(): Pick<Holder, "boot" | "namespace"> | null {
  try {
    return {
      boot: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
      namespace: readlinkSync("/proc/self/ns/pid"),
    };
  } catch {
    return null;
  }
}

/** Null: there is no such process, or it has ended and waits to be reaped. */
function startOf(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // Behind the name, which may hold spaces and brackets: state is the third field, start time the 22nd.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" || fields[0] === "X" ? null : (fields[19] ?? null);
  } catch {
    return null;
  }
}
