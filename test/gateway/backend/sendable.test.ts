import { expect, onTestFinished, test } from "vitest";
import { createHttpBackend } from "../../../gateway/backend/http.ts";
import { whyUnsendable } from "../../../gateway/backend/sendable.ts";
import { answerOf, startRawBackend } from "../../helpers/raw-backend.ts";

test("what is called unsendable is what the backend adapter does not start, and nothing else", async () => {
  const raw = await startRawBackend({ onRequest: (_request, connection) => connection.send(answerOf("ok")) });
  onTestFinished(() => raw.close());
  const backend = createHttpBackend({ url: raw.url, connectMs: 5_000, idleMs: 5_000, connections: 4 });
  onTestFinished(() => backend.close());
  const requests: [method: string, target: string, headers: string[]][] = [
    ["GET", "/", []],
    ["G E", "/", []],
    ["", "/", []],
    ["CONNECT", "a:1", []],
    ["OPTIONS", "*", []],
    ["GET", "/a b", []],
    ["GET", "/a\u0100", []],
    ["GET", "/%ZZ/../\u00e9|{}", []],
    ["QUERY", "/", ["Host", "a"]],
    ["GET", "/", ["Host", "a", "HOST", "a"]],
    ["GET", "/", ["content-length", "0", "Content-Length", "0"]],
    ["GET", "/", ["content-length", "x"]],
    ["GET", "/", ["x y", "1"]],
    ["GET", "/", ["", "1"]],
    ["GET", "/", ["x", "\u0100"]],
    ["GET", "/", ["x", "a\nb"]],
    ["GET", "/", ["x", "\u00e9\t "]],
    ["GET", "/", ["Expect", "100-continue"]],
    ["GET", "/", ["keep-alive", "x"]],
    ["GET", "/", ["Upgrade", "x"]],
    ["GET", "/", ["Transfer-Encoding", "chunked"]],
    ["GET", "/", ["TE", "trailers"]],
  ];
  for (const [method, target, headers] of requests) {
    const execution = await backend.execute(
      { method, target, headers, body: null, trailers: [] },
      { firstByteMs: 5_000, answerBytesMax: 100 },
    );
    const why = whyUnsendable(method, target, headers, []);
    expect([method, target, headers, why === null]).toEqual([method, target, headers, execution.kind === "done"]);
  }
});

test("request trailers are unsendable", () => {
  expect(whyUnsendable("POST", "/", [], ["x", "1"])).toContain("trailers");
});
