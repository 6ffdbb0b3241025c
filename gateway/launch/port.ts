// A free port for a backend that is about to be started.

import { createServer } from "node:net";
import { holdsSocket, listeningInodes, processesWithVariable } from "./proc.ts";
import type { AddressInfo } from "node:net";

export interface PortRange {
  readonly from: number;
  readonly to: number;
}

/** Given out by this process and not yet given back: two starts at once must not meet on one. */
const taken = new Set<number>();

/** Free at this moment; another process may still be faster, then the backend says so and exits. Give it back with `releasePort`. */
export async function takePort(host: string, range: PortRange | null): Promise<number> {
  const count = range === null ? 100 : range.to - range.from + 1;
  const offset = Math.floor(Math.random() * count);
  // Ends after each port of the range was tried.
  for (let i = 0; i < count; i++) {
    const wanted = range === null ? 0 : range.from + ((offset + i) % count);
    if (taken.has(wanted)) continue;
    const port = await bindOnce(host, wanted);
    if (port === null || taken.has(port)) continue;
    taken.add(port);
    return port;
  }
  throw new Error(range === null ? "no free port was found" : `no port from ${range.from} to ${range.to} is free`);
}

export function releasePort(port: number): void {
  taken.delete(port);
}

/**
 * The mark of another replica whose process listens on this port, if there is one: it would answer in place of the one just started. Strangers
 * that listen are not looked for: a command may start its service in a container, where a helper of another user listens for it.
 */
export function foreignListener(port: number, variable: string, ownMark: string): string | null {
  const inodes = listeningInodes(port);
  if (inodes.size === 0) return null;
  const others = processesWithVariable(variable, "").filter(({ value }) => value !== ownMark);
  return others.find(({ pid }) => holdsSocket(pid, inodes))?.value ?? null;
}

function bindOnce(host: string, port: number): Promise<number | null> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(null));
    server.listen(port, host, () => {
      const bound = (server.address() as AddressInfo).port;
      server.close(() => resolve(bound));
    });
  });
}
