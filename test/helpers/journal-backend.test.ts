import { expect, onTestFinished, test } from "vitest";
import { waitFor } from "./wait.ts";
import { startJournalBackend } from "./journal-backend.ts";
import type { Fault, JournalBackend } from "./journal-backend.ts";

test("what was answered is in the journal and in the state after kill -9", async () => {
  const backend = await start();
  const { port, pid } = backend;
  for (let i = 1; i <= 20; i++) {
    const position = String(4096 * i);
    await ask(backend, "POST", "/c/a/add", { by: i }, { "replication-position": position, "idempotency-key": `k${i}` });
  }
  await ask(backend, "PUT", "/r/x", { deep: [1] }, { "replication-role": "primary" });
  await backend.kill9();
  expect(backend.journal().map(({ position }) => position)).toEqual([
    ...Array.from({ length: 20 }, (_, i) => 4096 * (i + 1)),
    null,
  ]);
  await backend.restart();
  expect([backend.port, backend.pid === pid]).toEqual([port, false]);
  expect(await ask(backend, "GET", "/c/a")).toEqual([200, { key: "a", value: 210 }]);
  expect(await ask(backend, "GET", "/r/x")).toEqual([200, { key: "x", value: { deep: [1] }, version: 1 }]);
  expect(await ask(backend, "GET", "/probe?position=4096")).toEqual([200, { applied: true }]);
  expect(await ask(backend, "GET", "/probe?position=4097")).toEqual([200, { applied: false }]);
  expect(backend.journal()[20]).toMatchObject({ method: "PUT", path: "/r/x", role: "primary", key: null });
  expect(backend.journal()[0]).toMatchObject({ key: "k1", bodyHash: expect.stringMatching(/^[0-9a-f]{64}$/) });
  expect(await ask(backend, "GET", "/journal?from=20")).toEqual([200, backend.journal().slice(20)]);
});

test("registers compare, set, append and are deleted", async () => {
  const backend = await start();
  expect(await ask(backend, "GET", "/r/x")).toMatchObject([404, {}]);
  expect(await ask(backend, "POST", "/r/x/cas", { expected: null, value: 1 })).toMatchObject([200, { value: 1 }]);
  expect(await ask(backend, "POST", "/r/x/cas", { expected: 2, value: 3 })).toEqual([409, { key: "x", value: 1 }]);
  expect(await ask(backend, "POST", "/r/l/append", { value: "a" })).toMatchObject([200, { value: ["a"] }]);
  expect(await ask(backend, "POST", "/r/l/append", { value: "b" })).toMatchObject([
    200,
    { value: ["a", "b"], version: 2 },
  ]);
  expect(await ask(backend, "DELETE", "/r/x")).toEqual([200, { key: "x" }]);
  expect(await ask(backend, "GET", "/state")).toEqual([
    200,
    { registers: { l: { value: ["a", "b"], version: 2 } }, counters: {} },
  ]);
});

test.each<[Fault["kind"], isExecuted: boolean]>([
  ["reset-before", false],
  ["exit-before", false],
  ["reset-after", true],
  ["exit-after", true],
  ["garbage", true],
  ["half", true],
])("%s breaks one request, which was executed: %s", async (kind, isExecuted) => {
  const backend = await start();
  await backend.fault({ kind });
  await expect(ask(backend, "POST", "/c/a/add")).rejects.toThrow();
  expect(backend.journal().length).toBe(isExecuted ? 1 : 0);
  if (kind.startsWith("exit")) await backend.restart();
  expect(await ask(backend, "POST", "/c/a/add")).toEqual([200, { key: "a", value: isExecuted ? 2 : 1 }]);
});

test("different answers, wrong states, lost writes, statuses, slowness and bad health can be armed, for some requests only", async () => {
  const backend = await start();
  await backend.fault({ kind: "different", method: "POST", path: "/c/a" });
  expect(await ask(backend, "POST", "/c/b/add")).toEqual([200, { key: "b", value: 1 }]);
  expect(await ask(backend, "POST", "/c/a/add")).toEqual([200, { key: "a", value: 1, different: backend.pid }]);
  await backend.fault({ kind: "lose" });
  await ask(backend, "POST", "/c/a/add");
  expect(backend.journal().length).toBe(2);
  await backend.fault({ kind: "wrong" });
  expect(await ask(backend, "PUT", "/r/x", 1)).toMatchObject([200, { value: { wrong: backend.pid } }]);
  await backend.fault({ kind: "status", status: 429, times: 0 });
  expect((await ask(backend, "PUT", "/r/x", 1))[0]).toBe(429);
  expect((await ask(backend, "PUT", "/r/x", 1))[0]).toBe(429);
  await backend.clearFaults();
  await backend.fault({ kind: "unhealthy" });
  expect((await ask(backend, "GET", "/health"))[0]).toBe(503);
  expect((await ask(backend, "GET", "/health"))[0]).toBe(200);

  await backend.fault({ kind: "slow", ms: 150 });
  const slow = ask(backend, "PUT", "/r/x", "late");
  await ask(backend, "PUT", "/r/x", "early");
  expect(await slow).toMatchObject([200, { value: "late" }]);
});

test("a hanging request is executed or not as it was armed, and its backend can be paused", async () => {
  const backend = await start();
  await backend.fault({ kind: "hang" });
  await backend.fault({ kind: "hang-after" });
  const over = new AbortController();
  const hanging = [1, 2].map((by) => ask(backend, "POST", "/c/a/add", { by }, {}, over.signal).catch(() => "aborted"));
  await waitFor(() => backend.journal().length === 1, { what: "the one that is executed" });
  over.abort();
  expect(await Promise.all(hanging)).toEqual(["aborted", "aborted"]);
  backend.pause();
  const paused = ask(backend, "GET", "/health");
  backend.resume();
  expect((await paused)[0]).toBe(200);
});

async function start(): Promise<JournalBackend> {
  const backend = await startJournalBackend();
  onTestFinished(() => backend.close());
  return backend;
}

async function ask(
  { url }: JournalBackend,
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
  signal: AbortSignal | null = null,
): Promise<[status: number, body: unknown]> {
  const answer = await fetch(url + path, {
    method,
    headers,
    signal,
    ...(body === undefined ? null : { body: JSON.stringify(body) }),
  });
  return [answer.status, await answer.json()];
}
