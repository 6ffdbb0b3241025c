// What a test leaves behind: temporary folders and child processes, both gone when this process is, however it ends.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Socket } from "node:net";
import type { Writable } from "node:stream";

// Only inside a vitest worker: benches and the global setup use this file too, and there vitest refuses to be imported.
const vitest = process.env["VITEST_WORKER_ID"] === undefined ? undefined : await import("vitest");

/** A new empty folder, removed when the running test ends; outside a test, when this process ends. */
export function temporaryFolder(name = "folder"): string {
  const path = createFolder(name);
  try {
    vitest?.onTestFinished(() => removeFolder(path));
  } catch {
    // Not inside a test (a hook, or the top of a file): the process's end is the end of the folder.
  }
  return path;
}

/** A new empty folder that its owner removes; whatever is forgotten goes when this process ends. */
export function createFolder(name = "folder"): string {
  return mkdtempSync(join(leftovers().root, `${name}-`));
}

export function removeFolder(path: string): void {
  rmSync(path, { recursive: true, force: true, maxRetries: 3 });
}

/** The child is killed when this process ends, even by kill -9. Returns what to call once the child has ended. */
export function endWithUs(pid: number): () => void {
  const { children, tell } = leftovers();
  children.add(pid);
  tell(`pid ${pid}`);
  return () => {
    children.delete(pid);
    tell(`gone ${pid}`);
  };
}

interface Leftovers {
  readonly root: string;
  readonly children: Set<number>;
  readonly tell: (line: string) => void;
}

let opened: Leftovers | undefined;

function leftovers(): Leftovers {
  opened ??= openLeftovers();
  return opened;
}

// An exit handler does not run after kill -9 or a default SIGTERM, and vitest ends stuck workers that way. So a shell
// holds the other end of a pipe: when the pipe closes, for whatever reason, it kills and removes what is left.
const broom = `
trap '' INT TERM HUP
pids=' '
while read -r verb pid; do
  case $verb in
    pid) pids="$pids$pid " ;;
    gone) case $pids in *" $pid "*) pids="\${pids%% $pid *} \${pids#* $pid }" ;; esac ;;
  esac
done
for pid in $pids; do kill -9 "$pid" 2>/dev/null; done
rm -rf "$1"
`;

function openLeftovers(): Leftovers {
  const root = mkdtempSync(join(tmpdir(), "br2k-test-"));
  const children = new Set<number>();
  const sweeper = spawn("/bin/sh", ["-c", broom, "sh", root], { detached: true, stdio: ["pipe", "ignore", "ignore"] });
  const pipe: Writable = sweeper.stdin;
  pipe.on("error", () => {}); // the sweeper is gone: the exit handler below is what remains
  sweeper.on("error", () => {});
  sweeper.unref();
  (pipe as Socket).unref();
  process.on("exit", () => {
    for (const pid of children) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It has ended by itself.
      }
    }
    removeFolder(root);
  });
  return { root, children, tell: (line) => void pipe.write(`${line}\n`) };
}
