import { existsSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { createStaticLaunch } from "../../../gateway/launch/static.ts";
import { temporaryFolder } from "../../helpers/folder.ts";
import { startJournalBackend } from "../../helpers/journal-backend.ts";
import { waitFor } from "../../helpers/wait.ts";
import type { JournalBackend } from "../../helpers/journal-backend.ts";

test("a backend that runs already is found when it is ready, and each start gives another incarnation", async () => {
  const backend = await start();
  await backend.fault({ kind: "unhealthy", times: 2 });
  const launch = createStaticLaunch({ url: backend.url, name: "a", ready: { method: "GET", path: "/health" } });
  const [first, second] = [await launch.start(soon()), await launch.start(soon())];
  expect([first.url, first.id === second.id, launch.isManaged, launch.state]).toEqual([
    backend.url,
    false,
    false,
    null,
  ]);
  await expect(launch.stop(1_000)).rejects.toThrow("replica a has no `stop` command");
});

test("one that is not there is waited for until the signal aborts", async () => {
  const backend = await start();
  await backend.stop();
  const launch = createStaticLaunch({ url: backend.url, name: "a", ready: null });
  await expect(launch.start(AbortSignal.timeout(150))).rejects.toThrow(/is not ready: connect ECONNREFUSED/);
  const later = launch.start(soon());
  await backend.restart();
  expect((await later).url).toBe(backend.url);
});

test("its commands stop and start it: stop resolves when the port refuses", async () => {
  const backend = await start();
  const folder = temporaryFolder("static");
  const launch = createStaticLaunch({
    url: backend.url,
    name: "a",
    state: folder,
    ready: { method: "GET", path: "/health" },
    stop: ["/bin/sh", "-c", `kill ${backend.pid}; echo "{name} {url}" > "$0/stopped"`, "{state}"],
    start: ["/bin/sh", "-c", `touch ${folder}/started`],
  });
  await launch.start(soon());
  expect(existsSync(join(folder, "started"))).toBe(false); // it ran already
  await launch.stop(5_000);
  await expect(fetch(backend.url)).rejects.toThrow();
  const starting = launch.start(soon());
  await waitFor(() => existsSync(join(folder, "started")), { what: "the start command" });
  await backend.restart();
  await starting;
  expect(launch.state).toBe(folder);
});

test("a stop command that fails, hangs or stops nothing rejects", async () => {
  const backend = await start();
  const stop = (...command: string[]): Promise<void> =>
    createStaticLaunch({ url: backend.url, name: "a", ready: null, stop: command }).stop(300);
  await expect(stop("/bin/sh", "-c", "echo denied >&2; exit 4")).rejects.toThrow("it ended with code 4\ndenied");
  await expect(stop("/bin/sleep", "60")).rejects.toThrow("did not end in time");
  await expect(stop("/bin/true")).rejects.toThrow("still accepts connections");
  await expect(stop("/nowhere/at-all")).rejects.toThrow("ENOENT");
});

test("close ends a start that waits", async () => {
  const backend = await start();
  await backend.stop();
  const launch = createStaticLaunch({ url: backend.url, name: "a", ready: null });
  const starting = launch.start(soon());
  starting.catch(() => {});
  await launch.close();
  await launch.close();
  await expect(starting).rejects.toThrow("is not ready");
});

const soon = (): AbortSignal => AbortSignal.timeout(15_000);

async function start(): Promise<JournalBackend> {
  const backend = await startJournalBackend();
  onTestFinished(() => backend.close());
  return backend;
}
