// A process of the bench: started with tsx, spoken to over IPC, its CPU read from /proc. Promises that it ends with its starter.

import { fork } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export interface BenchChild {
  readonly pid: number;
  /** What the child said when it was ready. */
  readonly ready: Readonly<Record<string, unknown>>;
  /** Sends one command and resolves with the child's answer to it; phases it reports before go to `onPhase`. One at a time. */
  ask(command: object, onPhase?: (phase: string) => void): Promise<Readonly<Record<string, unknown>>>;
  close(): Promise<void>;
}

export async function startChild(file: string, args: readonly string[] = []): Promise<BenchChild> {
  const child = fork(fileURLToPath(new URL(file, import.meta.url)), [...args], {
    execArgv: ["--import", "tsx"],
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  const ready = await result(child, file);
  return {
    pid: child.pid ?? 0,
    ready,
    ask(command, onPhase) {
      const answer = result(child, file, onPhase);
      child.send(command);
      return answer;
    },
    close() {
      if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
      return new Promise((resolve) => {
        child.once("exit", () => resolve());
        child.kill("SIGKILL");
      });
    },
  };
}

function result(
  child: ChildProcess,
  file: string,
  onPhase: (phase: string) => void = () => {},
): Promise<Readonly<Record<string, unknown>>> {
  return new Promise((resolve, reject) => {
    const settle = (): void => {
      child.off("message", onMessage);
      child.off("exit", onExit);
    };
    const onMessage = (message: unknown): void => {
      const facts = message as Readonly<Record<string, unknown>>;
      if (typeof facts["phase"] === "string" && facts["phase"] !== "result") {
        onPhase(facts["phase"]);
        return;
      }
      settle();
      resolve(facts);
    };
    const onExit = (code: number | null): void => {
      settle();
      reject(new Error(`${file} ended with ${code} before it answered`));
    };
    child.on("message", onMessage);
    child.once("exit", onExit);
  });
}

/** CPU milliseconds (user and system, all threads) that the processes have used so far. */
export function cpuMs(pids: readonly number[]): number {
  let ticks = 0;
  for (const pid of pids) {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    // The second field may hold spaces and brackets: count from behind its end.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    ticks += Number(fields[11]) + Number(fields[12]);
  }
  // USER_HZ is 100 on every Linux that Node runs on.
  return ticks * 10;
}
