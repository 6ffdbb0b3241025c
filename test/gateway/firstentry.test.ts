// The first entry of a log goes to one replica alone, and shows whether another shares its state.
import { describe, expect, it } from "vitest";
import { FirstEntry } from "../../gateway/firstentry.ts";
import type { Witness } from "../../gateway/firstentry.ts";
import { waitFor } from "../helpers/wait.ts";

function bench(witnesses: Readonly<Record<string, string | null>>, isOpen = false) {
  const state: Record<string, string | null> = { ...witnesses };
  const asked: string[] = [];
  const shared: { names: readonly string[]; code: string }[] = [];
  const heard = { opened: 0 };
  const first = new FirstEntry(
    isOpen,
    () => heard.opened++,
    (names, error) => shared.push({ names, code: error.code }),
  );
  const all: Witness[] = Object.keys(state).map((name) => ({
    name,
    witness: () => {
      asked.push(name);
      return Promise.resolve(state[name] ?? null);
    },
  }));
  return { first, all, state, asked, shared, heard };
}

describe("the first entry", () => {
  it("is sent to one replica, and to nobody else until the others' witnesses were looked at", async () => {
    const { first, all, state, asked, shared, heard } = bench({ a: "0", b: "0", c: "0" });
    expect(await first.begin(all)).toBe(null);
    expect(first.may("b", 1)).toBe(true);
    expect([first.may("a", 1), first.may("c", 1), first.may("b", 2), first.may("b", 1)]).toEqual([
      false,
      false,
      false,
      true,
    ]);
    state["b"] = "1";
    asked.length = 0;
    first.ended("b", 1);
    await waitFor(() => first.isOpen, { what: "the look at the others" });
    expect([asked, shared, heard.opened]).toEqual([["a", "c"], [], 2]);
    expect([first.may("a", 1), first.may("c", 9)]).toEqual([true, true]);
  });

  it("waits for the look before it: until then nobody may, and then they are woken", async () => {
    const { first, all, heard } = bench({ a: "0", b: "0" });
    expect([first.may("a", 1), first.may("b", 1), heard.opened]).toEqual([false, false, 0]);
    await first.begin(all);
    expect([heard.opened, first.may("b", 1), first.may("a", 1)]).toEqual([1, true, false]);
  });

  it("whose witness changed with it shares its state", async () => {
    const { first, all, state, shared } = bench({ a: "0", b: "0", c: "0" });
    await first.begin(all);
    first.may("a", 1);
    state["a"] = state["c"] = "1";
    first.ended("a", 1);
    await waitFor(() => first.isOpen, { what: "the look at the others" });
    expect(shared).toEqual([{ names: ["c"], code: "GW_REPLICAS_SHARE_STATE" }]);
  });

  it("one that does not answer afterwards is not accused", async () => {
    const { first, all, state, shared } = bench({ a: "0", b: "0" });
    await first.begin(all);
    first.may("a", 1);
    state["b"] = null;
    first.ended("a", 1);
    await waitFor(() => first.isOpen, { what: "the look at the others" });
    expect(shared).toEqual([]);
  });

  it("only the end of that entry on that replica ends the test", async () => {
    const { first, all, heard } = bench({ a: "0", b: "0" });
    await first.begin(all);
    first.ended("a", 1);
    first.may("a", 1);
    first.ended("b", 1);
    first.ended("a", 2);
    await Promise.resolve();
    expect([first.isOpen, heard.opened]).toEqual([false, 1]);
  });
});

describe("the beginning", () => {
  it("with different witnesses is GW_REPLICAS_DIFFER_AT_START", async () => {
    const { first, all } = bench({ a: "0", b: null, c: "1" });
    expect(await first.begin(all)).toMatchObject({
      code: "GW_REPLICAS_DIFFER_AT_START",
      message: expect.stringMatching(/of a and c differ/) as string,
    });
    expect(first.isOpen).toBe(false);
  });

  it("says how many could not be compared", async () => {
    const { first, all } = bench({ a: "0", b: null, c: "0" });
    expect(await first.begin(all)).toMatch(/not checked by witness: 1 of 3/);
    expect(first.isOpen).toBe(false);
  });

  it.each([
    { a: null, b: null },
    { a: "0", b: null },
  ])("with fewer than two witnesses there is no test, and it is said (%j)", async (witnesses) => {
    const { first, all, heard } = bench(witnesses);
    expect(await first.begin(all)).toMatch(/not checked by witness/);
    expect([first.isOpen, first.may("b", 1), heard.opened]).toEqual([true, true, 1]);
  });

  it("with one replica alone there is nothing to say", async () => {
    const { first, all } = bench({ a: "0" });
    expect([await first.begin(all), first.isOpen]).toEqual([null, true]);
  });

  it("of a log that has entries tests nothing", () => {
    const { first, heard } = bench({ a: "0", b: "0" }, true);
    expect([first.may("a", 1), first.may("b", 1), first.may("b", 2)]).toEqual([true, true, true]);
    first.ended("a", 1);
    expect(heard.opened).toBe(0);
  });
});
