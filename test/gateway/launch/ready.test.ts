import { expect, onTestFinished, test } from "vitest";
import { checkReady } from "../../../gateway/launch/ready.ts";
import { answerOf, startRawBackend } from "../../helpers/raw-backend.ts";
import type { RawBackend, RawScript } from "../../helpers/raw-backend.ts";

const health = { method: "GET", path: "/health" };

test("without a request an accepting port is ready, and nothing is sent", async () => {
  const raw = await start({});
  expect(await checkReady({ url: raw.url, request: null }, 1_000)).toEqual({
    isReady: true,
    reason: "the port accepts",
  });
  expect(raw.connections.map(({ received }) => received)).toEqual([""]);
  await raw.close();
  expect((await checkReady({ url: raw.url, request: null }, 1_000)).isReady).toBe(false);
});

test.each([
  ["200 OK", true],
  ["204 No Content", true],
  ["302 Found", true],
  ["404 Not Found", false],
  ["503 Service Unavailable", false],
])("%s is ready: %s", async (status, isReady) => {
  const raw = await start({ onRequest: (_request, connection) => connection.send(answerOf("", status)) });
  const seen = await checkReady({ url: raw.url, request: health }, 1_000);
  expect(seen).toEqual({ isReady, reason: `GET /health: status ${status.slice(0, 3)}` });
});

test("silence, a reset and garbage are not ready, in time and with the reason", async () => {
  const silent = await start({});
  expect(await checkReady({ url: silent.url, request: health }, 100)).toEqual({
    isReady: false,
    reason: "GET /health: no answer within 100 ms",
  });
  const reset = await start({ onRequest: (_request, connection) => connection.reset() });
  expect((await checkReady({ url: reset.url, request: health }, 1_000)).reason).toContain("ECONNRESET");
  const garbage = await start({ onRequest: (_request, connection) => connection.end("what?\r\n\r\n") });
  expect((await checkReady({ url: garbage.url, request: health }, 1_000)).isReady).toBe(false);
});

async function start(script: RawScript): Promise<RawBackend> {
  const raw = await startRawBackend(script);
  onTestFinished(() => raw.close());
  return raw;
}
