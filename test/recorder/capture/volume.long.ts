import { spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { engineLabels, newNote, readNote, volumeName, writeNote } from "../../../gateway/drivers/state-volume.ts";
import { createContainerLaunch } from "../../../gateway/launch/container.ts";
import { endContainers } from "../../../gateway/launch/container-end.ts";
import { createVolumePlace } from "../../../recorder/capture/volume.ts";
import {
  cutEngine,
  engine,
  engineAddress,
  hasEngine,
  imageUser,
  removeService,
  testImage,
} from "../../helpers/engine.ts";
import { createFolder, endWithUs, removeFolder, temporaryFolder } from "../../helpers/folder.ts";
import { waitFor } from "../../helpers/wait.ts";
import { placeContract } from "./place.contract.ts";
import type { ContainerLaunch } from "../../../gateway/launch/container.ts";
import type { Place, Replacement, TreeEntry } from "../../../recorder/capture/place.ts";
import type { VolumePlaceOptions } from "../../../recorder/capture/volume-opener.ts";

const service = `volume-${randomBytes(4).toString("hex")}`;
afterAll(() => (hasEngine ? removeService(service) : undefined), 60_000);

/** Path (latin1) → what is there. */
type Tree = Record<
  string,
  { readonly kind: string; readonly mode?: number; readonly target?: string; readonly content?: string }
>;

const some: Tree = {
  empty: { kind: "folder", mode: 0o755 },
  locked: { kind: "folder", mode: 0o700 },
  "locked/secret": { kind: "file", mode: 0o600, content: "s" },
  "locked/read only": { kind: "file", mode: 0o444, content: "" },
  "odd \u00ff\u00fe\n": { kind: "file", mode: 0o640, content: "odd" },
  [Buffer.from("übung").toString("latin1")]: { kind: "file", mode: 0o755, content: "ü" },
  link: { kind: "link", target: "locked/secret" },
  dangling: { kind: "link", target: "nowhere" },
  [`long-${"x".repeat(200)}`]: { kind: "folder", mode: 0o755 },
  [`long-${"x".repeat(200)}/${"\u00fe".repeat(200)}`]: { kind: "file", mode: 0o644, content: "y".repeat(2_000_000) },
};

// Engines are slow where the machine is busy.
vi.setConfig({ testTimeout: 60_000 });

describe.skipIf(!hasEngine)("a volume", () => {
  placeContract("volume", async () => {
    const folder = createFolder("volume");
    const note = join(folder, "r1.volume.json");
    return {
      place: createVolumePlace(placeOptions(await testImage(), note)),
      isOneFile: false,
      leftovers: async () => {
        const { id = "none", generation = 0 } = (await readNote(note)) ?? {};
        const known = [generation, generation - 1].map((it) => `${service}-r1-${id}-${it}`);
        const volumes = await engine.volumes(`${engineLabels.note}=${id}`);
        return [...volumes.filter((it) => !known.includes(it)), ...(await helpers(note)).map(({ name }) => name)];
      },
      close: async () => removeFolder(folder),
    };
  });
});

describe.skipIf(!hasEngine)("the volume of a replica", () => {
  test("gives back what was put into it, and the replica's next life finds it, as its own", async () => {
    const { launch, place } = await replica();
    await launch.start(soon());
    await launch.stop(2_000);
    expect(await treeOf(place)).toEqual({ "seed.txt": { kind: "file", mode: 0o640, content: "from the image\n" } });
    await restore(place, some);
    expect(await treeOf(place)).toEqual(some);
    const { url } = await launch.start(soon());
    const { tree, owners } = (await (await fetch(`${url}/tree`)).json()) as { tree: Tree; owners: number[] };
    expect(tree).toEqual(shortened(some));
    // The root as well: the service may write wherever it could before.
    expect(owners).toEqual([imageUser]);
    expect(await (await fetch(`${url}/write?locked/new`)).text()).toBe("written");
    // While it runs, too.
    expect(await treeOf(place)).toEqual({ ...some, "locked/new": { kind: "file", mode: 0o644, content: "new" } });
  });

  test("is replaced for the next life: one that runs keeps what it has; one former volume is kept, older ones are removed", async () => {
    const { launch, place, note } = await replica();
    const { url } = await launch.start(soon());
    const first = volumeName((await readNote(note)) ?? newNote("", ""));
    await restore(place, { a: { kind: "file", mode: 0o644, content: "2" } });
    expect(await (await fetch(`${url}/write?b`)).text()).toBe("written");
    expect(Object.keys(await treeOf(place))).toEqual(["a"]);
    await launch.stop(2_000);
    const next = await launch.start(soon());
    expect(Object.keys(((await (await fetch(`${next.url}/tree`)).json()) as { tree: Tree }).tree)).toEqual(["a"]);
    await launch.stop(2_000);
    await restore(place, { a: { kind: "file", mode: 0o644, content: "3" } });
    await restore(place, { a: { kind: "file", mode: 0o644, content: "4" } });
    const { id = "", generation } = (await readNote(note)) ?? {};
    expect(generation).toBe(4);
    const volumes = await engine.volumes(`${engineLabels.note}=${id}`);
    expect(volumes.toSorted()).toEqual([`${service}-r1-${id}-3`, `${service}-r1-${id}-4`]);
    expect(first).toBe(`${service}-r1-${id}-1`);
    expect(await helpers(note)).toEqual([]);
  });

  test("is made anew where nothing is left but the snapshot, and an empty state stays empty", async () => {
    const { launch, place, note } = await replica();
    await expect(treeOf(place)).rejects.toMatchObject({
      code: "GW_SNAPSHOT_FAILED",
      message: expect.stringContaining("was never ready") as string,
    });
    await restore(place, {});
    expect(await readNote(note)).toMatchObject({ generation: 2, isFilled: true });
    const { url } = await launch.start(soon());
    expect(await (await fetch(`${url}/tree`)).json()).toEqual({ tree: {}, owners: [imageUser] });
    expect(await (await fetch(`${url}/write?b`)).text()).toBe("written");
  });

  test("is read with every name of a file, and without what is no state or is excluded", async () => {
    const { launch, place, options } = await replica(
      `const { execFileSync } = require("node:child_process");
       fs.mkdirSync("/data/cache/deep", { recursive: true });
       fs.writeFileSync("/data/cache/deep/x", "x");
       fs.writeFileSync("/data/one", "1".repeat(100_000));
       fs.linkSync("/data/one", "/data/two");
       fs.mkdirSync("/data/three");
       fs.linkSync("/data/one", Buffer.concat([Buffer.from("/data/three/"), Buffer.from([0xff])]));
       fs.chmodSync("/data/one", 0o4711);
       require("node:net").createServer().listen("/data/socket");`,
    );
    await launch.start(soon());
    await launch.stop(2_000);
    const one = { kind: "file", mode: 0o711, content: "1".repeat(100_000) };
    const seed = { kind: "file", mode: 0o640, content: "from the image\n" };
    const three = { three: { kind: "folder", mode: 0o755 }, "three/\u00ff": one };
    const excluding = createVolumePlace({ ...options, exclude: ["cache/**", "seed.*"] });
    expect(await treeOf(excluding)).toEqual({ cache: { kind: "folder", mode: 0o755 }, one, two: one, ...three });
    expect(Object.keys(await treeOf(place)).toSorted()).toEqual([
      "cache",
      "cache/deep",
      "cache/deep/x",
      "one",
      "seed.txt",
      "three",
      "three/\u00ff",
      "two",
    ]);
    expect((await treeOf(place))["seed.txt"]).toEqual(seed);
  });

  test("with a link that leads out, or a name that nobody could bring back, is not recorded", async () => {
    const { launch, place, note } = await replica(`fs.symlinkSync("/etc", "/data/out");`);
    await launch.start(soon());
    await expect(treeOf(place)).rejects.toMatchObject({
      code: "GW_SNAPSHOT_FAILED",
      message: expect.stringMatching(/out could not be brought back: its target is absolute; mend it/) as string,
    });
    const replacement = await place.replace(soon());
    for (const path of ["../up", "/etc/passwd", "a//b", ""])
      await expect(replacement.put({ kind: "folder", path, mode: 0o755 }, null), path).rejects.toMatchObject({
        code: "GW_RESTORE_FAILED",
      });
    await replacement.abort();
    await launch.stop(2_000);
    await engine.removeVolume(volumeName((await readNote(note)) ?? newNote("", "")));
    await expect(treeOf(place)).rejects.toMatchObject({
      code: "GW_SNAPSHOT_FAILED",
      message: expect.stringContaining("is gone, and with it the state") as string,
    });
  });

  test("keeps its state until the commit: whatever fails before, nothing is touched and nothing is left", async () => {
    const { place, note } = await replica();
    await restore(place, some);
    const faults: ((replacement: Replacement) => Promise<void>)[] = [
      async (it) => await it.put(file("a", 3), bytes("ab")),
      async (it) => await it.put(file("a", 3), bytes("abcd")),
      async (it) => await it.put(file("a", 3), broken("the store is away")),
    ];
    for (const [i, fault] of faults.entries()) {
      const replacement = await place.replace(soon());
      await replacement.put({ kind: "folder", path: "begun", mode: 0o755 }, null);
      await expect(fault(replacement), String(i)).rejects.toMatchObject({
        code: "GW_RESTORE_FAILED",
      });
      await expect(replacement.commit(), String(i)).rejects.toMatchObject({ code: "GW_RESTORE_FAILED" });
      await replacement.abort();
      await replacement.abort();
    }
    const { id = "", generation } = (await readNote(note)) ?? {};
    expect([generation, await engine.volumes(`${engineLabels.note}=${id}`), await helpers(note)]).toEqual([
      2,
      [`${service}-r1-${id}-2`],
      [],
    ]);
    expect(await treeOf(place)).toEqual(some);
  });

  test("survives an engine that goes away in the middle of a capture, and of a restore", async () => {
    const cut = await cutEngine();
    onTestFinished(() => cut.close());
    const { place, options, note } = await replica();
    await restore(place, { big: { kind: "file", mode: 0o644, content: "z".repeat(8_000_000) } });
    const through = createVolumePlace({ ...options, engine: cut.address });
    const reading = (async () => {
      for await (const { content } of through.read(soon())) for await (const _ of content?.() ?? []) cut.cut();
    })();
    await expect(reading).rejects.toMatchObject({ code: "GW_ENGINE_UNAVAILABLE" });
    await cut.mend();
    const replacement = await through.replace(soon());
    const endless = async function* (): AsyncGenerator<Buffer> {
      for (let i = 0; i < 1_000; i++) {
        if (i === 100) cut.cut();
        yield Buffer.alloc(65_536);
      }
    };
    await expect(
      replacement.put({ kind: "file", path: "a", mode: 0o644, sizeBytes: 65_536_000, stamp: null }, endless()),
    ).rejects.toMatchObject({
      code: "GW_ENGINE_UNAVAILABLE",
    });
    await replacement.abort();
    await cut.mend();
    expect(Object.keys(await treeOf(through))).toEqual(["big"]);
    // What could not be removed is removed by later restores.
    await restore(through, { b: { kind: "folder", mode: 0o755 } });
    expect(Object.keys(await treeOf(place))).toEqual(["b"]);
    for (const name of ["c", "d"]) await restore(through, { [name]: { kind: "folder", mode: 0o755 } });
    expect([Object.keys(await treeOf(place)), await helpers(note)]).toEqual([["d"], []]);
  });

  test("keeps its state when the engine's disk is full, and says so", async () => {
    const full = await cutEngine();
    onTestFinished(() => full.close());
    const { place, options, note } = await replica();
    await restore(place, some);
    const through = createVolumePlace({ ...options, engine: full.address });
    full.refusePuts("write /data/big: no space left on device");
    const big = { big: { kind: "file", mode: 0o644, content: "z".repeat(8_000_000) } };
    await expect(restore(through, big)).rejects.toMatchObject({
      code: "GW_ENGINE_REFUSED",
      message: expect.stringContaining("no space left on device") as string,
    });
    expect([await treeOf(place), await helpers(note)]).toEqual([some, []]);
    full.refusePuts(null);
    await restore(through, big);
    expect(Object.keys(await treeOf(place))).toEqual(["big"]);
  });

  test("holds the former state when its restorer is killed, and the next start and restore clear up after it", async () => {
    const { place, options, folder, note } = await replica();
    await restore(place, { kept: { kind: "folder", mode: 0o755 } });
    const file = join(folder, "restorer.mts");
    const module = fileURLToPath(new URL("../../../recorder/capture/volume.ts", import.meta.url));
    writeFileSync(
      file,
      `import { createVolumePlace } from ${JSON.stringify(module)};
       const replacement = await createVolumePlace(JSON.parse(process.argv[2])).replace(AbortSignal.timeout(20_000));
       await replacement.put({ kind: "folder", path: "begun", mode: 0o755 }, null);
       console.log("begun");
       setInterval(() => {}, 1_000);`,
    );
    const child = spawn(process.execPath, ["--import", import.meta.resolve("tsx"), file, JSON.stringify(options)], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    onTestFinished(endWithUs(child.pid ?? 0));
    let said = "";
    child.stdout.on("data", (chunk: Buffer) => (said += chunk.toString()));
    await waitFor(() => said.includes("begun"), { what: "a restore", timeoutMs: 25_000 });
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGKILL");
    await ended;
    expect((await helpers(note)).length).toBe(1);
    expect(Object.keys(await treeOf(place))).toEqual(["kept"]);
    await endContainers(engine, { recordsFolder: join(folder, "records"), volumesFolder: folder });
    expect(await helpers(note)).toEqual([]);
    await restore(place, some);
    expect(await treeOf(place)).toEqual(some);
  });

  test("gives up when it is told to, and leaves no container behind", async () => {
    const { place, note } = await replica();
    await restore(place, some);
    const abort = new AbortController();
    const reading = (async () => {
      for await (const _ of place.read(abort.signal)) abort.abort(new Error("enough"));
    })();
    await expect(reading).rejects.toThrow("enough");
    for await (const _ of place.read(soon())) break;
    const replacement = await place.replace(AbortSignal.timeout(20_000));
    await replacement.abort();
    await expect(place.replace(AbortSignal.abort(new Error("too late")))).rejects.toThrow("too late");
    expect(await helpers(note)).toEqual([]);
  });
});

test("a note is replaced whole, is not read when it is none, and names volumes that no other note names", async () => {
  const folder = temporaryFolder("note");
  const file = join(folder, "deep/r1.volume.json");
  expect(await readNote(file)).toBeNull();
  const note = newNote("shop", "r1");
  await writeNote(file, note);
  await writeNote(file, { ...note, generation: 2, isFilled: true });
  expect(await readNote(file)).toEqual({ ...note, generation: 2, isFilled: true });
  expect(volumeName(note)).toBe(`shop-r1-${note.id}-1`);
  expect(newNote("shop", "r1").id).not.toBe(note.id);
  for (const said of [
    "",
    "{}",
    "null",
    JSON.stringify({ version: 1, ...note, generation: 0 }),
    JSON.stringify({ version: 2, ...note }),
  ]) {
    writeFileSync(file, said);
    await expect(readNote(file), said).rejects.toMatchObject({ code: "GW_CONFLICT" });
  }
});

const soon = (): AbortSignal => AbortSignal.timeout(50_000);

interface Made {
  readonly launch: ContainerLaunch;
  readonly place: Place;
  readonly options: VolumePlaceOptions;
  readonly note: string;
  readonly folder: string;
}

/** One that tells what is in its state and to whom it belongs, and writes into it. */
async function replica(script = ""): Promise<Made> {
  const folder = temporaryFolder("volume");
  const image = await testImage();
  const note = join(folder, "r1.volume.json");
  const options = placeOptions(image, note);
  const launch = createContainerLaunch({
    engine: engineAddress,
    service,
    name: "r1",
    image,
    port: 3000,
    state: "/data",
    command: ["node", "-e", `const fs = require("node:fs"); ${script} ${teller}`],
    env: {},
    ready: null,
    recordsFolder: join(folder, "records"),
    note,
    onOutput: () => {},
  });
  onTestFinished(() => launch.close());
  return { launch, place: createVolumePlace(options), options, note, folder };
}

const placeOptions = (image: string, note: string): VolumePlaceOptions => ({
  kind: "volume",
  engine: engineAddress,
  service,
  replica: "r1",
  image,
  path: "/data",
  note,
  exclude: [],
});

const teller = `
  const { createHash } = require("node:crypto");
  const path = (latin1) => Buffer.from("/data" + (latin1 === "" ? "" : "/" + latin1), "latin1");
  const look = (folder, tree, owners) => {
    owners.add(fs.lstatSync(path(folder)).uid).add(fs.lstatSync(path(folder)).gid);
    for (const name of fs.readdirSync(path(folder), { encoding: "latin1" })) {
      const at = folder === "" ? name : folder + "/" + name;
      const stat = fs.lstatSync(path(at));
      owners.add(stat.uid).add(stat.gid);
      const mode = stat.mode & 0o7777;
      if (stat.isSymbolicLink()) tree[at] = { kind: "link", target: fs.readlinkSync(path(at)) };
      else if (stat.isDirectory()) { tree[at] = { kind: "folder", mode }; look(at, tree, owners); }
      else tree[at] = { kind: "file", mode, content: createHash("sha256").update(fs.readFileSync(path(at))).digest("hex") };
    }
    return { tree, owners: [...owners] };
  };
  require("node:http").createServer((q, r) => {
    if (q.url === "/tree") return r.end(JSON.stringify(look("", {}, new Set())));
    fs.writeFileSync(path(q.url.split("?")[1]), "new");
    r.end("written");
  }).listen(3000);
  process.on("SIGTERM", () => process.exit(0));`;

/** Contents as their hashes. */
const shortened = (tree: Tree): Tree =>
  Object.fromEntries(
    Object.entries(tree).map(([path, it]) => [
      path,
      it.content === undefined ? it : { ...it, content: createHash("sha256").update(it.content, "utf8").digest("hex") },
    ]),
  );

async function treeOf(place: Place): Promise<Tree> {
  const tree: Tree = {};
  for await (const { entry, content } of place.read(soon())) {
    const { path, kind } = entry;
    expect(path.includes("/") ? tree[path.slice(0, path.lastIndexOf("/"))]?.kind : "folder").toBe("folder");
    const pieces: Buffer[] = [];
    for await (const piece of content?.() ?? []) pieces.push(piece);
    const whole = Buffer.concat(pieces);
    if (kind === "file") expect(whole.length).toBe(entry.sizeBytes);
    tree[path] =
      kind === "link"
        ? { kind, target: entry.target }
        : kind === "folder"
          ? { kind, mode: entry.mode }
          : { kind, mode: entry.mode, content: whole.toString("utf8") };
  }
  return tree;
}

async function restore(place: Place, tree: Tree): Promise<void> {
  const replacement = await place.replace(soon());
  try {
    for (const [path, { kind, mode = 0, target = "", content = "" }] of Object.entries(tree)) {
      const sizeBytes = Buffer.byteLength(content);
      if (kind === "link") await replacement.put({ kind, path, target }, null);
      else if (kind === "folder") await replacement.put({ kind, path, mode }, null);
      else await replacement.put({ kind: "file", path, mode, sizeBytes, stamp: null }, bytes(content));
    }
    await replacement.commit();
  } catch (error) {
    await replacement.abort();
    throw error;
  }
}

async function* bytes(text: string): AsyncGenerator<Buffer> {
  const whole = Buffer.from(text);
  for (let at = 0; at < whole.length; at += 100_000) yield whole.subarray(at, at + 100_000);
}

const file = (path: string, sizeBytes: number): TreeEntry => ({
  kind: "file",
  path,
  mode: 0o644,
  sizeBytes,
  stamp: null,
});

async function* broken(why: string): AsyncGenerator<Buffer> {
  yield Buffer.from("a");
  throw new Error(why);
}

/** Containers that hold a volume of a note open. */
async function helpers(note: string): ReturnType<typeof engine.containers> {
  const { id = "none" } = (await readNote(note)) ?? {};
  return await engine.containers("label", `${engineLabels.helper}=${id}`);
}
