import { describe, expect, test } from "vitest";
import { Events } from "../../../gateway/events.ts";
import { openJournal } from "../../../gateway/server/journal.ts";
import type { Fact } from "../../../gateway/events.ts";

const request: Extract<Fact, { type: "request" }> = {
  type: "request",
  rule: "create-order",
  mode: "replicate",
  method: "POST",
  path: "/orders",
  status: 201,
  code: null,
  outcome: "executed",
  position: 7,
  replica: "a",
  durationMs: 1.23456,
  peer: "127.0.0.1",
};

async function journal(format: "json" | "pretty" = "json", level: "info" | "warn" | "trace" = "info") {
  const lines: string[] = [];
  const events = new Events();
  const opened = await openJournal({
    events,
    level,
    format,
    service: "shop",
    name: "gw-1",
    to: { write: (line) => void lines.push(line) },
  });
  return { lines, events, opened, json: () => lines.map((line) => JSON.parse(line) as Record<string, unknown>) };
}

describe("journal", () => {
  test("an access line is one JSON line with ISO time, level as a word, and the fields of the list", async () => {
    const { events, json } = await journal();
    events.tell(Object.assign({}, request, { authorization: "canary" }));
    expect(json()).toEqual([
      {
        level: "info",
        time: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/) as string,
        service: "shop",
        gateway: "gw-1",
        rule: "create-order",
        mode: "replicate",
        method: "POST",
        path: "/orders",
        status: 201,
        code: null,
        outcome: "executed",
        position: 7,
        replica: "a",
        durationMs: 1.235,
        peer: "127.0.0.1",
        msg: "request",
      },
    ]);
  });

  test("every kind of fact has a line at trace, and none shows a field that is not listed", async () => {
    const { events, lines } = await journal("json", "trace");
    const facts: Fact[] = [
      request,
      { type: "appended", items: 1, bytes: 2, durationMs: 3 },
      { type: "append-repeated", attempt: 1, cause: "timeout" },
      { type: "applied", replica: "a", position: 1, durationMs: 1 },
      { type: "key", result: "fresh" },
      { type: "unknown-outcome", replica: "a", position: 1, cause: "closed" },
      { type: "settled", replica: "a", position: 1, by: "probe", result: "applied" },
      { type: "replica", replica: "a", from: "live", to: "held", reason: "unknown" },
      { type: "incarnation", replica: "a", id: "x", url: "http://x" },
      { type: "disagreement", position: 1, rule: "r", minority: ["a"], decisive: true },
      { type: "parked", position: 1, reason: "kills" },
      { type: "once-unknown", position: 1, rule: "r" },
      { type: "log", state: "full", detail: "" },
      { type: "keys", state: "away", detail: "" },
      { type: "guarantee", level: "power-loss", why: "" },
      { type: "output", replica: "a", stream: "stdout", line: "hello" },
      { type: "gateway", state: "ready", detail: "" },
      {
        type: "once-unfinished",
        replica: "a",
        position: 1,
        rule: "r",
        method: "POST",
        target: "/x?canary",
        what: "unknown",
      },
      { type: "snapshot", state: "taken", version: 3, replica: "c", position: 7, detail: "" },
      { type: "publication", state: "final", version: 3, position: 7, detail: "" },
      { type: "recovery", replica: "b", state: "done", detail: "" },
      { type: "audit", result: "equal", position: 7, culprits: [], detail: "" },
      { type: "truncated", firstPosition: 7, detail: "" },
      { type: "warning", about: "x", detail: "y" },
    ];
    for (const fact of facts) events.tell(Object.assign({}, fact, { secret: "canary" }));
    expect(lines).toHaveLength(facts.length);
    expect(lines.join("")).not.toContain("canary");
  });

  test("the level says who should look", async () => {
    const { events, json } = await journal("json", "warn");
    events.tell(request);
    events.tell({ type: "replica", replica: "a", from: "live", to: "draining", reason: "" });
    events.tell({ type: "replica", replica: "a", from: "live", to: "quarantined", reason: "it disagrees" });
    events.tell({ type: "disagreement", position: 1, rule: "r", minority: [], decisive: true });
    expect(json().map(({ level }) => level)).toEqual(["warn", "error"]);
  });

  test("of snapshots, publications, rebuilds and audits the bad ones are told louder", async () => {
    const { events, json } = await journal();
    const snapshot = { type: "snapshot", version: 3, replica: "c", position: 7, detail: "" } as const;
    const publication = { type: "publication", version: 3, position: 7, detail: "" } as const;
    for (const state of ["begun", "taken", "verified", "removed", "failed", "unsound"] as const)
      events.tell({ ...snapshot, state });
    for (const state of ["sent", "final", "failed", "undone"] as const) events.tell({ ...publication, state });
    for (const state of ["begun", "done", "failed"] as const)
      events.tell({ type: "recovery", replica: "b", state, detail: "" });
    for (const result of ["equal", "impossible", "unequal"] as const)
      events.tell({ type: "audit", result, position: 7, culprits: result === "unequal" ? ["b"] : [], detail: "" });
    expect(json().map(({ level, msg }) => `${String(level)} ${String(msg)}`)).toEqual([
      "info snapshot 3: begun",
      "info snapshot 3: taken",
      "info snapshot 3: verified",
      "info snapshot 3: removed",
      "warn snapshot 3: failed",
      "error snapshot 3: unsound",
      "info publication 3: sent",
      "info publication 3: final",
      "warn publication 3: failed",
      "warn publication 3: undone",
      "info rebuild of b: begun",
      "info rebuild of b: done",
      "error rebuild of b: failed",
      "info audit: equal",
      "warn audit: impossible",
      "error audit: unequal",
    ]);
    expect(json().at(-1)).toMatchObject({ culprits: ["b"], position: 7 });
  });

  test("a log that we close ourselves is not told of as away", async () => {
    const { events, json } = await journal("json", "info");
    events.tell({ type: "log", state: "away", detail: "" });
    events.tell({ type: "gateway", state: "stopping", detail: "" });
    events.tell({ type: "log", state: "away", detail: "" });
    events.tell({ type: "log", state: "full", detail: "" });
    expect(json().map(({ msg }) => msg)).toEqual(["log: away", "gateway stopping", "log: full"]);
  });

  test("the level can be changed while it runs", async () => {
    const { events, lines, opened } = await journal("json", "warn");
    events.tell(request);
    opened.setLevel("info");
    events.tell(request);
    opened.setLevel("silent");
    events.tell(request);
    expect(lines).toHaveLength(1);
  });

  test("a backend's output has its replica's name and cannot steer the terminal or fill the disk", async () => {
    const { events, json } = await journal();
    events.tell({
      type: "output",
      replica: "r1",
      stream: "stderr",
      line: "\u001b[31mred\u001b[0m\u001b]0;title\u0007\rtab\there",
    });
    events.tell({ type: "output", replica: "r1", stream: "stdout", line: "x".repeat(10_000) });
    const [first, second] = json();
    expect(first).toMatchObject({ replica: "r1", stream: "stderr", msg: "red\ufffd]0;title\ufffd\ufffdtab\there" });
    expect(String(second?.["msg"]).length).toBeLessThan(5000);
  });

  test("pretty lines are for people", async () => {
    const { events, lines } = await journal("pretty");
    events.tell(request);
    expect(lines[0]).toMatch(/^\[\d\d:\d\d:\d\d\.\d{3}\] INFO: request \{"rule":"create-order"/);
  });

  test("nothing is written after close, which may be called twice", async () => {
    const { events, lines, opened } = await journal();
    opened.close();
    opened.close();
    events.tell(request);
    expect(lines).toEqual([]);
  });
});
