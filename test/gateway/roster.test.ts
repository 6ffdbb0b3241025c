import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, onTestFinished, test } from "vitest";
import type { Board, Posted, Saved } from "../../gateway/board/board.ts";
import { openFileBoard } from "../../gateway/board/file.ts";
import { loadConfig } from "../../gateway/config.ts";
import type { Config, UrlReplica } from "../../gateway/config.ts";
import { Roster } from "../../gateway/roster.ts";
import { temporaryFolder } from "../helpers/folder.ts";

const two = 'replicas:\n  - { name: a, url: "http://h:4001" }\n  - { name: b, url: "http://h:4002" }\n';
const three = `${two}  - { name: c, url: "http://h:4003" }\n`;
const managed = (count: number, name = "r"): string =>
  `replicas: { count: ${String(count)}, name: ${name}, command: [x], state: ./state, env: { TOKEN: very-secret } }\n`;

const embedded = (text: string): Config => loadConfig({ file: null, text, env: {} });
const shared = (name: string, text: string): Config =>
  loadConfig({ file: null, text: `name: ${name}\nlog: { nats: { servers: ["h:4222"] } }\n${text}`, env: {} });

const local = (name: string, owners: string): string =>
  `replicas: [{ name: ${name}, url: "http://127.0.0.1:1", owners: ${owners} }]\n`;

const copyOf = (name: string, url: string, changed: Partial<UrlReplica> = {}): UrlReplica => ({
  kind: "url",
  name,
  url,
  state: null,
  stop: null,
  start: null,
  owners: [],
  witness: [{ method: "GET", target: "/all" }],
  onReturn: "verify",
  version: "",
  ...changed,
});

const names = (roster: Roster): readonly string[] => roster.all.map(({ name }) => name);
const namesHere = (roster: Roster): readonly string[] => roster.here.map(({ name }) => name);

async function boardIn(folder: string): Promise<Board> {
  const board = await openFileBoard({ folder });
  onTestFinished(() => board.close());
  return board;
}

/** A board that several rosters share, and whose answers can be lost. */
class SharedBoard implements Board {
  #posted: Posted | null = null;
  /** How many saves from now on are stored, or are not, and nobody is told. */
  lost: ("stored" | "dropped")[] = [];
  saves = 0;

  get text(): string {
    return JSON.stringify(this.#posted?.value);
  }

  async load(): Promise<Posted | null> {
    return this.#posted === null ? null : { ...this.#posted, value: JSON.parse(this.text) as unknown };
  }

  async save(_name: string, value: unknown, revision: number): Promise<Saved> {
    this.saves += 1;
    const fate = this.lost.shift();
    const cause = new Error("lost");
    if (fate === "dropped") return { kind: "unknown", cause };
    if ((this.#posted?.revision ?? 0) !== revision) return { kind: "conflict" };
    this.#posted = { value: JSON.parse(JSON.stringify(value)) as unknown, revision: revision + 1 };
    return fate === "stored" ? { kind: "unknown", cause } : { kind: "saved", revision: revision + 1 };
  }

  async close(): Promise<void> {}
}

describe("with the embedded log", () => {
  test("the copies are those of the file, and what was added and removed since, over restarts", async () => {
    const folder = temporaryFolder("roster");
    const board = await boardIn(folder);
    const roster = await Roster.open(board, embedded(three));
    expect(names(roster)).toEqual(["a", "b", "c"]);
    await roster.add(copyOf("d", "http://h:4004"));
    await roster.remove("b");
    expect(names(roster)).toEqual(["a", "c", "d"]);
    const again = await Roster.open(await boardIn(folder), embedded(three));
    expect(names(again)).toEqual(["a", "c", "d"]);
    expect(again.here[2]).toEqual(copyOf("d", "http://h:4004"));
    expect(again.differences()).toEqual([]);
  });

  test("a start writes nothing, and what the file says now is what counts", async () => {
    const folder = temporaryFolder("roster");
    const board = await boardIn(folder);
    await Roster.open(board, embedded(two));
    expect(await board.load("roster")).toBeNull();
    const moved = await Roster.open(board, embedded(two.replace("4002", "4009")));
    expect(moved.here[1]).toMatchObject({ name: "b", url: "http://h:4009" });
  });

  test("one more of those that are started has the next free name, and its secrets stay in the file", async () => {
    const folder = temporaryFolder("roster");
    const board = await boardIn(folder);
    const roster = await Roster.open(board, embedded(managed(2, "shop-")));
    const added = await roster.add(null);
    expect(added).toMatchObject({ kind: "process", name: "shop-3", env: { TOKEN: "very-secret" } });
    expect(added.state?.endsWith(join("state", "shop-3"))).toBe(true);
    expect(readFileSync(join(folder, "roster"), "utf8")).not.toContain("very-secret");
    const again = await Roster.open(await boardIn(folder), embedded(managed(2, "shop-")));
    expect(again.here[2]).toEqual(added);
    await again.remove("shop-1");
    expect((await again.add(null)).name).toBe("shop-1");
  });

  test("one that was added to those that are started is told of when the file starts none any more", async () => {
    const board = await boardIn(temporaryFolder("roster"));
    await (await Roster.open(board, embedded(managed(1)))).add(null);
    const other = await Roster.open(board, embedded(two));
    expect(namesHere(other)).toEqual(["a", "b"]);
    expect(other.differences()).toEqual(["r2 is one that this gateway starts, and its file does not say how any more"]);
  });

  test("sync gives up what was added and removed", async () => {
    const board = await boardIn(temporaryFolder("roster"));
    const roster = await Roster.open(board, embedded(three));
    await roster.add(copyOf("d", "http://h:4004"));
    await roster.remove("b");
    expect(await roster.sync()).toEqual({ added: ["b"], changed: [], removed: ["d"] });
    expect(names(roster)).toEqual(["a", "b", "c"]);
    expect(await roster.sync()).toEqual({ added: [], changed: [], removed: [] });
  });

  test("a name, a backend or the last copy is not given twice or away", async () => {
    const roster = await Roster.open(await boardIn(temporaryFolder("roster")), embedded(two));
    const conflict = { code: "GW_CONFLICT" };
    await expect(roster.add(copyOf("a", "http://h:4004"))).rejects.toMatchObject(conflict);
    await expect(roster.add(copyOf("d", "http://h:4001"))).rejects.toThrow(/is replica a already.*d as well/);
    await expect(roster.add(null)).rejects.toThrow(/give the new one's URL/);
    await expect(roster.remove("z")).rejects.toMatchObject({ code: "GW_NOT_FOUND" });
    await roster.remove("a");
    await expect(roster.add(copyOf("a", "http://h:4009"))).rejects.toThrow(/another one in this gateway's file/);
    await expect(roster.remove("b")).rejects.toMatchObject(conflict);
    expect(names(roster)).toEqual(["b"]);
  });
});

describe("of several gateways", () => {
  test("each adds what its file names, and all have the same list", async () => {
    const board = new SharedBoard();
    const first = await Roster.open(board, shared("gw1", two));
    const second = await Roster.open(board, shared("gw2", three));
    expect(names(second)).toEqual(["a", "b", "c"]);
    expect(await first.refresh()).toBe(true);
    expect(first.all).toEqual(second.all);
    expect(await first.refresh()).toBe(false);
  });

  test("many that start at once lose none of each other's copies", async () => {
    const board = new SharedBoard();
    const gateways = Array.from({ length: 12 }, (_, i) => `gw${String(i)}`);
    const rosters = await Promise.all(gateways.map((name) => Roster.open(board, shared(name, managed(2, `${name}-`)))));
    for (const roster of rosters) await roster.refresh();
    expect(names(rosters[0] as Roster)).toHaveLength(24);
    expect(rosters.map((roster) => roster.here.length)).toEqual(gateways.map(() => 2));
  });

  test("a copy that one starts is known to the others by its name alone", async () => {
    const board = new SharedBoard();
    const first = await Roster.open(board, shared("gw1", managed(2, "gw1-r")));
    const second = await Roster.open(board, shared("gw2", managed(1, "gw2-r")));
    await first.refresh();
    expect(first.all.map(({ name, gateway }) => [name, gateway])).toEqual([
      ["gw1-r1", "gw1"],
      ["gw1-r2", "gw1"],
      ["gw2-r1", "gw2"],
    ]);
    expect(namesHere(first)).toEqual(["gw1-r1", "gw1-r2"]);
    expect(namesHere(second)).toEqual(["gw2-r1"]);
    expect(board.text).not.toContain("very-secret");
    expect((await second.add(null)).name).toBe("gw2-r2");
    expect(second.differences()).toEqual([]);
  });

  test("one name for two different copies is refused at the start, with what to do", async () => {
    const board = new SharedBoard();
    await Roster.open(board, shared("gw1", managed(2)));
    const conflict = { code: "GW_CONFLICT" };
    const second = Roster.open(board, shared("gw2", managed(2)));
    await expect(second).rejects.toThrow(/r1 is started by gateway gw1.*replicas\.name/);
    await expect(second).rejects.toMatchObject(conflict);
    const byUrl = Roster.open(board, shared("gw2", 'replicas: [{ name: r1, url: "http://h:1" }]\n'));
    await expect(byUrl).rejects.toThrow(/r1 is started by gateway gw1.*name the copy otherwise/);
    const other = new SharedBoard();
    await Roster.open(other, shared("gw1", 'replicas: [{ name: r1, url: "http://h:1" }]\n'));
    await expect(Roster.open(other, shared("gw2", managed(2)))).rejects.toThrow(/r1 has the URL http:\/\/h:1/);
  });

  test("two names for one backend are refused, unless loopback means different machines", async () => {
    const board = new SharedBoard();
    await Roster.open(board, shared("gw1", two));
    const twin = 'replicas: [{ name: z, url: "http://h:4002" }]\n';
    await expect(Roster.open(board, shared("gw2", twin))).rejects.toThrow(/is replica b already.*z as well/);
    const apart = new SharedBoard();
    await Roster.open(apart, shared("gw1", local("a", "[gw1]")));
    expect(names(await Roster.open(apart, shared("gw2", local("b", "[gw2]"))))).toEqual(["a", "b"]);
    await expect(Roster.open(apart, shared("gw3", local("c", "[]")))).rejects.toMatchObject({ code: "GW_CONFLICT" });
    await expect(Roster.open(apart, shared("gw3", local("c", "[gw2]")))).rejects.toThrow(/is replica b already/);
  });

  test("nobody who may write to the server gives this gateway a command to run, and none of ours is told", async () => {
    const board = new SharedBoard();
    const file = 'replicas: [{ name: a, url: "http://h:4001", state: /srv/a, stop: [mine], start: [mine] }]\n';
    const roster = await Roster.open(board, shared("gw1", file));
    expect(board.text).not.toContain("mine");
    const written = (await board.load()) as Posted;
    const planted = JSON.parse(board.text.replaceAll('"stop":null', '"stop":["rm","-rf","/"]')) as unknown;
    await board.save("roster", planted, written.revision);
    await roster.refresh();
    expect(roster.here[0]).toMatchObject({ state: "/srv/a", stop: ["mine"], start: ["mine"] });
    expect((await Roster.open(board, shared("gw2", two))).here[0]).toMatchObject({ stop: null, start: null });
    await expect(roster.add(copyOf("b", "http://h:4009", { stop: ["x"], start: ["x"] }))).rejects.toThrow(/files/);
  });

  test("what differs from the file is told and stays, until somebody asks for it", async () => {
    const board = new SharedBoard();
    await Roster.open(board, shared("gw1", three));
    const a = '{ name: a, url: "http://h:4001", stop: [x, secret], start: [x], owners: [gw2] }';
    const file = `replicas:\n  - ${a}\n  - { name: b, url: "http://h:4009" }\n`;
    const roster = await Roster.open(board, shared("gw2", file));
    expect(roster.differences()).toEqual([
      'a is not as in this gateway\'s file: owners is [] and ["gw2"] there',
      'b is not as in this gateway\'s file: url is "http://h:4002" and "http://h:4009" there',
    ]);
    const [own, ...others] = shared("gw1", three).replicas;
    expect(roster.here).toEqual([{ ...own, stop: ["x", "secret"], start: ["x"] }, ...others]);
    expect(await roster.sync()).toEqual({ added: [], changed: ["a", "b"], removed: ["c"] });
    expect(roster.differences()).toEqual([]);
    expect(roster.here[1]).toMatchObject({ url: "http://h:4009" });
  });

  test("what was removed stays away over restarts of all, is told, and comes back by sync", async () => {
    const board = new SharedBoard();
    const first = await Roster.open(board, shared("gw1", three));
    await first.remove("b");
    const second = await Roster.open(board, shared("gw2", three));
    expect(names(second)).toEqual(["a", "c"]);
    expect(second.differences()).toEqual(["b stands in this gateway's file, and was removed at run time"]);
    expect(await second.sync()).toEqual({ added: ["b"], changed: [], removed: [] });
    expect(names(await Roster.open(board, shared("gw1", three)))).toEqual(["a", "c", "b"]);
  });

  test("sync leaves the copies that others start, and gives up those that this file starts no more", async () => {
    const board = new SharedBoard();
    await Roster.open(board, shared("gw1", managed(2, "gw1-r")));
    const second = await Roster.open(board, shared("gw2", managed(2, "gw2-r")));
    await second.add(null);
    await second.remove("gw2-r1");
    expect(await second.sync()).toEqual({ added: ["gw2-r1"], changed: [], removed: ["gw2-r3"] });
    expect(names(second)).toEqual(["gw1-r1", "gw1-r2", "gw2-r2", "gw2-r1"]);
  });

  test("who speaks against a sync is heard before anything is changed", async () => {
    const board = new SharedBoard();
    const roster = await Roster.open(board, shared("gw1", two));
    await roster.add(copyOf("d", "http://h:4004"));
    const before = board.text;
    const refusing = roster.sync((leaving) => {
      throw new Error(`no: ${leaving.join()}`);
    });
    await expect(refusing).rejects.toThrow("no: d");
    expect(board.text).toBe(before);
    expect(names(roster)).toEqual(["a", "b", "d"]);
  });

  test("who only looks sees what a start would find, and writes nothing", async () => {
    const board = new SharedBoard();
    const looking = await Roster.open(board, shared("gw1", two), true);
    expect(names(looking)).toEqual(["a", "b"]);
    expect(board.saves).toBe(0);
  });

  test("of the same name added by two at once one is refused; different ones are both there", async () => {
    const board = new SharedBoard();
    const rosters = await Promise.all(["gw1", "gw2"].map((name) => Roster.open(board, shared(name, two))));
    const [first, second] = rosters as [Roster, Roster];
    const same = await Promise.allSettled([
      first.add(copyOf("d", "http://h:4004")),
      second.add(copyOf("d", "http://h:4005")),
    ]);
    expect(same.map(({ status }) => status).toSorted()).toEqual(["fulfilled", "rejected"]);
    await Promise.all([first.add(copyOf("e", "http://h:4006")), second.add(copyOf("f", "http://h:4007"))]);
    await first.refresh();
    await second.refresh();
    expect(names(first).toSorted()).toEqual(["a", "b", "d", "e", "f"]);
    expect(second.all).toEqual(first.all);
  });

  test("a change whose answer was lost is made once, whether it was stored or not", async () => {
    for (const fate of ["stored", "dropped"] as const) {
      const board = new SharedBoard();
      const roster = await Roster.open(board, shared("gw1", managed(2)));
      board.lost = [fate];
      expect((await roster.add(null)).name).toBe("r3");
      board.lost = [fate];
      await roster.add(copyOf("d", "http://h:4004"));
      board.lost = [fate];
      await roster.remove("r1");
      expect(names(roster)).toEqual(["r2", "r3", "d"]);
    }
  });

  test("a board that never answers ends a change with an error, and the next one works", async () => {
    const board = new SharedBoard();
    const roster = await Roster.open(board, shared("gw1", two));
    board.lost = ["dropped", "dropped", "dropped", "dropped"];
    await expect(roster.remove("b")).rejects.toMatchObject({ code: "GW_LOG_UNAVAILABLE" });
    board.lost = [];
    await roster.remove("b");
    expect(names(roster)).toEqual(["a"]);
  });

  test("each change is told once, by whomever it was made", async () => {
    const board = new SharedBoard();
    const [first, second] = (await Promise.all(
      ["gw1", "gw2"].map((name) => Roster.open(board, shared(name, three))),
    )) as [Roster, Roster];
    const heard: string[] = [];
    first.onChange(() => heard.push(names(first).join("")));
    await first.refresh();
    await first.remove("a");
    await second.remove("b");
    await first.refresh();
    await first.refresh();
    expect(heard).toEqual(["bc", "c"]);
  });
});

describe("what is on the board", () => {
  const boards: Board[] = [];
  afterEach(async () => {
    for (const board of boards.splice(0)) await board.close();
  });

  test.each([
    ["of a later version", { version: 2, entries: [], removed: [] }],
    ["with a key that this version does not know", { version: 1, entries: [], removed: [], more: 1 }],
    ["of another kind", ["a"]],
    [
      "whose URL leads elsewhere",
      { version: 1, entries: [{ config: copyOf("a", "file:///etc"), gateway: null }], removed: [] },
    ],
    [
      "whose name is none",
      { version: 1, entries: [{ config: copyOf("../a", "http://h:1"), gateway: null }], removed: [] },
    ],
  ])("%s is refused, and left as it is", async (_what, value) => {
    const board = await openFileBoard({ folder: temporaryFolder("roster") });
    boards.push(board);
    await board.save("roster", value, 0);
    await expect(Roster.open(board, shared("gw1", two))).rejects.toMatchObject({ code: "GW_BOARD_LOST" });
    expect((await board.load("roster"))?.value).toEqual(value);
  });

  test("a roster that vanishes under a running gateway is an error, not an empty list", async () => {
    const board = new SharedBoard();
    const roster = await Roster.open(board, shared("gw1", two));
    const gone = new SharedBoard();
    board.load = () => gone.load();
    await expect(roster.refresh()).rejects.toMatchObject({ code: "GW_BOARD_LOST" });
    expect(names(roster)).toEqual(["a", "b"]);
  });
});
