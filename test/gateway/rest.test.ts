// Copies that rest in turn: while anything is in flight that a crash would leave unknown, one live copy is at rest.
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Clock } from "../../gateway/clock.ts";
import { costOfRest, isHazard, Rest } from "../../gateway/rest.ts";
import type { Resting } from "../../gateway/rest.ts";
import { parseRules } from "../../rules/rule.ts";

/** Time that passes when it is told to. */
class Hand implements Clock {
  #now = 0;
  #sleepers: { readonly at: number; readonly wake: () => void }[] = [];
  now(): number {
    return this.#now;
  }
  wallMs(): number {
    return this.#now;
  }
  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.#sleepers.push({ at: this.#now + ms, wake: resolve }));
  }
  async pass(ms: number): Promise<void> {
    const until = this.#now + ms;
    for (;;) {
      await settled();
      const [next] = this.#sleepers.filter(({ at }) => at <= until).sort((a, b) => a.at - b.at);
      if (next === undefined) break;
      this.#now = next.at;
      this.#sleepers = this.#sleepers.filter((it) => it !== next);
      next.wake();
    }
    this.#now = until;
  }
}
const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Applies entries one at a time, `takesMs` each, as an applier does: asks before it sends, tells what waits while it rests. */
class Copy implements Resting {
  readonly name: string;
  readonly #system: System;
  isLive = true;
  isCaptured = false;
  isClean = true;
  isHanging = false;
  isResting = false;
  inFlight = 0;
  waiting = 0;
  applied = 0;
  cleans = 0;
  patienceMs = 250;
  #onQuiet: (() => void) | null = null;

  constructor(name: string, system: System) {
    this.name = name;
    this.#system = system;
  }
  get hazards(): number {
    return this.#system.isHazardous ? this.waiting + this.inFlight : 0;
  }
  async rest(): Promise<boolean> {
    this.isResting = true;
    while (this.inFlight > 0) {
      if (!this.isResting || !this.isLive) return false;
      await new Promise<void>((resolve) => (this.#onQuiet = resolve));
    }
    if (!this.isClean) this.cleans++;
    this.isClean = true;
    return this.isResting && this.isLive;
  }
  goOnAfterRest(): void {
    this.isResting = false;
    this.#onQuiet?.();
    this.wake();
  }
  wake(): void {
    if (this.waiting === 0 || this.inFlight > 0) return;
    if (this.isResting) {
      this.#system.rest.hasBacklog(this.name);
      return;
    }
    if (this.#system.isHazardous && !this.#system.rest.may(this.name)) return;
    this.isClean = false;
    this.waiting--;
    this.inFlight++;
    this.#system.check();
    if (this.isHanging) return;
    void this.#system.clock.sleep(this.#system.takesMs).then(() => {
      this.inFlight--;
      this.applied++;
      this.#onQuiet?.();
      this.wake();
    });
  }
}

class System {
  readonly clock = new Hand();
  readonly copies: Copy[];
  readonly rest: Rest;
  takesMs = 1;
  isHazardous = true;
  isNeeded = true;
  violations = 0;

  constructor(count = 3) {
    this.copies = ["a", "b", "c", "d"].slice(0, count).map((name) => new Copy(name, this));
    this.rest = new Rest({ clock: this.clock, members: () => this.copies, isNeeded: () => this.isNeeded });
    this.rest.changed();
  }
  of(name: string): Copy {
    return this.copies.find((it) => it.name === name) as Copy;
  }
  check(): void {
    const live = this.copies.filter((it) => it.isLive);
    if (live.length > 1 && live.every((it) => it.inFlight > 0 || !it.isClean)) this.violations++;
  }
  append(count: number): void {
    for (const it of this.copies) {
      it.waiting += count;
      it.wake();
    }
  }
  set(name: string, isLive: boolean): void {
    this.of(name).isLive = isLive;
    this.rest.changed();
  }
}

describe("copies that cannot be rebuilt", () => {
  it("one rests, the last at first, and nothing has to be written for it", async () => {
    const system = new System();
    system.append(5);
    await system.clock.pass(40);
    expect(system.copies.map((it) => it.applied)).toEqual([5, 5, 0]);
    expect(system.rest.resting).toBe("c");
    expect(system.copies.map((it) => it.cleans)).toEqual([0, 0, 0]);
  });

  it("the next is clean before it goes on, after 50 ms in which something waited, and then nothing turns", async () => {
    const system = new System();
    await system.clock.pass(1000);
    system.append(5);
    await system.clock.pass(80);
    expect(system.copies.map((it) => it.applied)).toEqual([5, 5, 5]);
    await system.clock.pass(10_000);
    expect(system.copies.map((it) => it.cleans).reduce((a, b) => a + b)).toBe(1);
    expect(system.violations).toBe(0);
  });

  it("each rests in its turn, for a share of the time", async () => {
    const system = new System();
    system.append(100_000);
    await system.clock.pass(3000);
    for (const it of system.copies) expect(it.applied / 3000).toBeCloseTo(2 / 3, 1);
    expect(system.violations).toBe(0);
    expect(system.copies.every((it) => it.cleans >= 15 && it.cleans <= 25)).toBe(true);
  });

  it("two of them take turns as well", async () => {
    const system = new System(2);
    system.append(100_000);
    await system.clock.pass(2000);
    for (const it of system.copies) expect(it.applied / 2000).toBeCloseTo(1 / 2, 1);
    expect(system.violations).toBe(0);
  });

  it("one alone does not rest, and the last that is left goes on at once", async () => {
    const one = new System(1);
    one.append(10);
    await one.clock.pass(20);
    expect(one.of("a").applied).toBe(10);
    const two = new System(2);
    two.append(10);
    await two.clock.pass(5);
    expect(two.rest.resting).toBe("b");
    two.set("a", false);
    await two.clock.pass(15);
    expect(two.of("b").applied).toBe(10);
  });

  it("one that catches up is not held up by the only live one", async () => {
    const system = new System(2);
    system.set("b", false);
    system.append(10);
    await system.clock.pass(15);
    expect(system.copies.map((it) => it.applied)).toEqual([10, 10]);
  });

  it("where they can be rebuilt, or what is in flight can be told, nobody rests", async () => {
    const system = new System();
    system.isNeeded = false;
    system.rest.changed();
    system.append(10);
    await system.clock.pass(15);
    expect(system.copies.map((it) => it.applied)).toEqual([10, 10, 10]);
    const told = new System();
    told.append(3);
    await told.clock.pass(10);
    expect(told.rest.resting).toBe("c");
    told.isHazardous = false;
    told.append(10);
    await told.clock.pass(20);
    expect(told.copies.map((it) => it.applied)).toEqual([13, 13, 13]);
    expect(told.rest.resting).toBe(null);
  });

  it("a capture counts as a turn", async () => {
    const system = new System();
    const captured = system.of("b");
    captured.isLive = false;
    captured.isCaptured = true;
    captured.isResting = true;
    system.rest.changed();
    system.append(20);
    await system.clock.pass(30);
    expect(system.copies.map((it) => it.applied)).toEqual([20, 0, 20]);
    expect(system.rest.resting).toBe(null);
  });

  it("one that hangs is not waited for: another comes to rest, and where there is none all go on", async () => {
    const system = new System();
    system.append(1);
    await system.clock.pass(10);
    system.of("a").isHanging = true;
    system.append(5000);
    await system.clock.pass(3000);
    for (const name of ["b", "c"]) expect(system.of(name).applied).toBeGreaterThan(1000);
    expect(system.violations).toBe(0);
    const two = new System(2);
    two.append(1);
    await two.clock.pass(10);
    two.of("a").isHanging = true;
    two.append(5000);
    await two.clock.pass(3000);
    expect(two.of("b").applied).toBeGreaterThan(1500);
  });

  it("whoever leaves and comes back, something is always at rest and everything is applied", async () => {
    const step = fc.record({
      what: fc.constantFrom("append" as const, "append" as const, "leave" as const, "return" as const),
      who: fc.constantFrom("a", "b", "c", "d"),
      count: fc.nat(40),
      thenMs: fc.nat(120),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 25 }), async (steps) => {
        const system = new System(4);
        for (const { what, who, count, thenMs } of steps) {
          if (what === "append") system.append(count);
          else if (what === "leave" && system.copies.filter((it) => it.isLive).length > 2) system.set(who, false);
          else if (what === "return" && system.of(who).inFlight === 0 && !system.of(who).isLive) {
            system.of(who).isClean = true;
            system.set(who, true);
          }
          await system.clock.pass(thenMs);
        }
        for (const it of system.copies) it.wake();
        await system.clock.pass(5000);
        expect(system.violations).toBe(0);
        for (const it of system.copies.filter(({ isLive }) => isLive)) expect(it.waiting + it.inFlight).toBe(0);
      }),
      { numRuns: 60 },
    );
  });
});

const rulesOf = (...rules: object[]) =>
  parseRules(JSON.stringify({ version: 1, defaults: { other: "refuse" }, rules }), { file: "r" }).rules;

describe("what would be left unknown", () => {
  const post = { name: "post", match: "POST /a/:id", mode: "replicate" };

  it.each([
    [post, true],
    [{ ...post, retry: "safe" }, false],
    [{ ...post, unknown: "assume-applied" }, false],
    [{ ...post, probe: { request: "GET /a", applied: { status: 200 } } }, false],
    [{ ...post, before: "GET /a/:id", undo: "PUT /a/:id" }, false],
    [{ ...post, match: "PUT /a/:id" }, false],
    [{ ...post, match: "PUT /a/:id", retry: "never" }, true],
  ] as const)("%j: %s", (rule, is) => {
    const rules = rulesOf(rule);
    expect(isHazard(rules.rules[0]!, rule.match.split(" ")[0] as string)).toBe(is);
    expect(costOfRest(3, rules) !== null).toBe(is);
  });

  it("costs a share that is said with its reason and its mend", () => {
    expect(costOfRest(3, rulesOf(post))).toMatch(/post.*1\/3.*snapshots:/);
    expect(costOfRest(1, rulesOf(post))).toBeNull();
  });
});
