// Adapter of the place port: the state of a container replica, in a volume of its engine, read and filled as a tar stream through the Docker API.
//
// - The volume is opened by a container of the replica's image that never runs, so that it does not matter whether the replica does. Under
//   `quiesce: none` a file that vanishes or shrinks while the engine reads it spoils the archive, and the read rejects.
// - A restore fills a volume of the next generation. `commit` syncs it and writes the note that names it (drivers/state-volume.ts): the replica's
//   next start gets it, a life that runs keeps what it has. The former volume is kept, older ones are removed.
// - Owners are not state and differ between engines: everything restored belongs to whom the root of the live volume belongs, which keeps its
//   owner and mode; without a live volume, to whom the folder in the image belongs.
// - Sockets are left out by the engine, which does not name them. Holes come back as zeros.

import { basename, dirname } from "node:path/posix";
import { PassThrough } from "node:stream";
import { DockerEngine } from "../../gateway/drivers/docker.ts";
import {
  containerName,
  engineLabels,
  newNote,
  readNote,
  syncMachine,
  volumeName,
  writeNote,
} from "../../gateway/drivers/state-volume.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { step } from "../steps.ts";
import { faultOfLinks, faultOfPath, shownPath } from "../tree.ts";
import { createExclude } from "./exclude.ts";
import { readTar, tarEnd, tarHead, tarPadding } from "./tar.ts";
import type { VolumeNote } from "../../gateway/drivers/state-volume.ts";
import type { ErrorCode } from "../../gateway/errors.ts";
import type { Place, PlaceOptions, Readable, Replacement, TreeEntry } from "./place.ts";
import type { TarEntry } from "./tar.ts";

export type VolumePlaceOptions = Extract<PlaceOptions, { readonly kind: "volume" }>;

export function createVolumePlace(options: VolumePlaceOptions): Place {
  return new VolumePlace(options);
}

/** Of what was left out, that many are named. */
const skippedMax = 1_000;

/** Of the folder itself. */
interface Root {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}

class VolumePlace implements Place {
  readonly isSequential = true;
  readonly where: string;
  skipped: readonly string[] = [];
  readonly #options: VolumePlaceOptions;
  readonly #opener: Opener;

  constructor(options: VolumePlaceOptions) {
    this.#options = options;
    this.#opener = new Opener(options);
    this.where = `the volume of replica ${options.replica} at ${options.path}`;
  }

  async *read(signal: AbortSignal): AsyncGenerator<Readable> {
    signal.throwIfAborted();
    const { note: file, replica } = this.#options;
    const note = await readNote(file);
    if (note === null || !note.isFilled) throw this.#failed(`replica ${replica} was never ready: it has no state yet. Start it first`);
    const volume = volumeName(note);
    if (!(await this.#opener.engine.hasVolume(volume, signal)))
      throw this.#failed(`the volume ${volume} is gone, and with it the state of replica ${replica}: rebuild it, and capture another`);
    const container = await this.#opener.open(note, volume, signal);
    try {
      yield* this.#entries(container, signal);
    } catch (error) {
      throw translate(error, "GW_SNAPSHOT_FAILED", `${this.where} could not be captured`, signal);
    } finally {
      await this.#opener.close(container);
    }
  }

  async replace(signal: AbortSignal): Promise<Replacement> {
    signal.throwIfAborted();
    const { note: file, replica, service } = this.#options;
    const former = await readNote(file);
    const base = former ?? newNote(service, replica);
    const next = { ...base, generation: former === null ? 1 : former.generation + 1, isFilled: true };
    const replacement = new VolumeReplacement(this.#options, this.#opener, next, signal);
    try {
      await replacement.open(former);
    } catch (error) {
      await replacement.abort();
      throw translate(error, "GW_RESTORE_FAILED", `no volume for replica ${replica} could be made`, signal);
    }
    return replacement;
  }

  async *#entries(container: string, signal: AbortSignal): AsyncGenerator<Readable> {
    const { exclude } = this.#options;
    const folder = this.#opener.path;
    const isExcluded = createExclude(exclude);
    const skipped: string[] = [];
    this.skipped = skipped;
    const links = new Map<string, string>();
    const archive = await this.#opener.engine.archive(container, folder, signal);
    if (archive === null) throw this.#failed(`there is no ${folder} in the image ${this.#options.image}`);
    let prefix: string | null = null;
    for await (const found of readTar(archive)) {
      if (prefix === null) {
        if (found.kind !== "folder") throw this.#failed(`${folder} is no folder`);
        prefix = trim(found.path);
        continue;
      }
      const path = below(prefix, found.path);
      if (isExcluded(path)) continue;
      const fault = faultOfPath(path);
      if (fault !== null) throw this.#failed(`${shownPath(path)} could not be brought back: ${fault}; mend it, or leave it out with snapshots.capture.exclude`);
      if (found.kind === "same") {
        yield* this.#same(container, path, below(prefix, found.target), signal);
      } else if (found.kind === "other") {
        if (skipped.length < skippedMax) skipped.push(path);
      } else {
        if (found.kind === "link") links.set(path, found.target);
        yield readableOf(path, found, found.content);
      }
    }
    const wrong = faultOfLinks(links);
    if (wrong !== null)
      throw this.#failed(`${shownPath(wrong.path)} could not be brought back: ${wrong.fault}; mend it, or leave it out with snapshots.capture.exclude`);
  }

  /** A second name of a file: its content stands under the first name alone, and is asked for once more. */
  async *#same(container: string, path: string, first: string, signal: AbortSignal): AsyncGenerator<Readable> {
    const archive = await this.#opener.engine.archive(container, `${this.#opener.path}/${first}`, signal);
    if (archive === null) throw this.#failed(`${shownPath(first)} vanished while it was read`);
    for await (const found of readTar(archive)) {
      if (found.kind !== "file") throw this.#failed(`${shownPath(first)} changed while it was read`);
      yield readableOf(path, found, found.content);
      return;
    }
  }

  #failed(what: string): GatewayError {
    return new GatewayError("GW_SNAPSHOT_FAILED", `${this.where} could not be captured: ${what}`);
  }
}

class VolumeReplacement implements Replacement {
  readonly #options: VolumePlaceOptions;
  readonly #opener: Opener;
  readonly #next: VolumeNote;
  readonly #signal: AbortSignal;
  readonly #given = new AbortController();
  readonly #tar = new PassThrough();
  readonly #mtimeS = Math.floor(Date.now() / 1000);
  #root: Root = { mode: 0o755, uid: 0, gid: 0 };
  #container: string | null = null;
  #putting: Promise<void> | null = null;
  #isBroken = false;
  #isCommitted = false;

  constructor(options: VolumePlaceOptions, opener: Opener, next: VolumeNote, signal: AbortSignal) {
    this.#options = options;
    this.#opener = opener;
    this.#next = next;
    this.#signal = AbortSignal.any([signal, this.#given.signal]);
    // Its writer learns of it from the request.
    this.#tar.on("error", () => {});
  }

  async open(former: VolumeNote | null): Promise<void> {
    const { engine, path } = this.#opener;
    const volume = volumeName(this.#next);
    // Of a restore that was killed.
    await this.#opener.closeAll(volume);
    await engine.removeVolume(volume, this.#signal);
    const root = await this.#findRoot(former);
    step("volume.create");
    await engine.createVolume(volume, this.#opener.labelsOf(this.#next), this.#signal);
    this.#container = await this.#opener.open(this.#next, volume, this.#signal);
    this.#root = root ?? (await this.#opener.root(this.#container, this.#signal)) ?? this.#root;
    step("volume.put");
    this.#putting = engine.putArchive(this.#container, path, this.#tar, this.#signal);
    this.#putting.catch(() => {});
    await this.#write(tarHead({ kind: "folder", path: ".", target: "", sizeBytes: 0, ...this.#root }, this.#mtimeS));
  }

  async put(entry: TreeEntry, content: AsyncIterable<Buffer> | null): Promise<void> {
    try {
      await this.#put(entry, content);
    } catch (error) {
      this.#isBroken = true;
      throw translate(error, "GW_RESTORE_FAILED", `${shownPath(entry.path)} could not be put into ${volumeName(this.#next)}`, this.#signal);
    }
  }

  async commit(): Promise<void> {
    const { engine } = this.#opener;
    const { note, replica } = this.#options;
    if (this.#isBroken || this.#container === null || this.#putting === null) throw this.#failed("it was not filled to its end");
    try {
      await this.#write(tarEnd);
      this.#tar.end();
      await this.#putting;
      await this.#settleRoot(this.#container);
      await engine.removeContainer(this.#container, this.#signal);
      step("volume.sync");
      await syncMachine();
      step("volume.note");
      await writeNote(note, this.#next);
    } catch (error) {
      this.#isBroken = true;
      throw translate(error, "GW_RESTORE_FAILED", `the restored volume of replica ${replica} could not be put in place; the former one is`, this.#signal);
    }
    this.#isCommitted = true;
    step("volume.forget");
    // What cannot be removed now is removed after the next restore.
    await this.#opener.removeOlder(this.#next).catch(() => {});
  }

  async abort(): Promise<void> {
    if (this.#isCommitted) return;
    this.#isBroken = true;
    this.#given.abort(new GatewayError("GW_RESTORE_FAILED", `the restore of replica ${this.#options.replica} was given up`));
    this.#tar.destroy();
    await this.#putting?.catch(() => {});
    // Where the engine is away, the next restore removes them.
    const volume = volumeName(this.#next);
    await this.#opener.closeAll(volume).catch(() => {});
    await this.#opener.engine.removeVolume(volume).catch(() => {});
  }

  async #put(entry: TreeEntry, content: AsyncIterable<Buffer> | null): Promise<void> {
    const { kind, path } = entry;
    this.#signal.throwIfAborted();
    if (this.#isBroken) throw this.#failed("what was put before did not get there");
    const fault = faultOfPath(path);
    if (fault !== null) throw this.#failed(fault);
    const sizeBytes = kind === "file" ? entry.sizeBytes : 0;
    const { uid, gid } = this.#root;
    const mode = kind === "link" ? 0o777 : entry.mode;
    const target = kind === "link" ? entry.target : "";
    await this.#write(tarHead({ kind, path, target, mode, uid, gid, sizeBytes }, this.#mtimeS));
    let bytes = 0;
    for await (const piece of content ?? []) {
      bytes += piece.length;
      if (bytes > sizeBytes) break;
      await this.#write(piece);
    }
    if (bytes !== sizeBytes) throw this.#failed(`${shownPath(path)} was announced with ${sizeBytes} bytes and has ${bytes > sizeBytes ? "more" : bytes}`);
    await this.#write(tarPadding(sizeBytes));
  }

  /** Resolves when there is room for more; rejects with what the engine said. */
  async #write(bytes: Buffer): Promise<void> {
    if (bytes.length === 0 || this.#putting === null) return;
    if (this.#tar.writable && this.#tar.write(bytes)) return;
    const drained = new AbortController();
    const room = new Promise<boolean>((resolve) => {
      this.#tar.once("drain", () => resolve(true));
      drained.signal.addEventListener("abort", () => resolve(true));
    });
    const hasRoom = this.#tar.writable && (await Promise.race([room, this.#putting.then(() => false)]));
    drained.abort();
    if (!hasRoom) {
      await this.#putting;
      throw this.#failed("the engine stopped reading before the end");
    }
  }

  /** Of the live volume, else of the image; null: neither is there. */
  async #findRoot(former: VolumeNote | null): Promise<Root | null> {
    const live = former === null || !former.isFilled ? null : volumeName(former);
    const volume = live !== null && (await this.#opener.engine.hasVolume(live, this.#signal)) ? live : null;
    const container = await this.#opener.open(this.#next, volume, this.#signal);
    try {
      return await this.#opener.root(container, this.#signal);
    } finally {
      await this.#opener.close(container);
    }
  }

  /** Podman takes the owner and mode of the folder itself from the archive, Docker only those of what is in it. */
  async #settleRoot(container: string): Promise<void> {
    const { path } = this.#opener;
    const isRight = async (): Promise<boolean> => {
      const root = await this.#opener.root(container, this.#signal);
      return root !== null && root.mode === this.#root.mode && root.uid === this.#root.uid && root.gid === this.#root.gid;
    };
    if (await isRight()) return;
    const head = tarHead({ kind: "folder", path: basename(path), target: "", sizeBytes: 0, ...this.#root }, this.#mtimeS);
    await this.#opener.engine.putArchive(container, dirname(path), pieces(head, tarEnd), this.#signal);
    if (!(await isRight())) throw this.#failed(`its root cannot be given to user ${this.#root.uid}, group ${this.#root.gid}`);
  }

  #failed(what: string): GatewayError {
    return new GatewayError("GW_RESTORE_FAILED", `the volume ${volumeName(this.#next)} of replica ${this.#options.replica}: ${what}`);
  }
}

/** Containers that never run and hold a volume open. */
class Opener {
  readonly engine: DockerEngine;
  /** Bytes as latin1, like all names of archives. */
  readonly path: string;
  readonly #options: VolumePlaceOptions;

  constructor(options: VolumePlaceOptions) {
    this.#options = options;
    this.path = Buffer.from(options.path, "utf8").toString("latin1");
    this.engine = new DockerEngine(options.engine);
  }

  labelsOf(note: VolumeNote): Readonly<Record<string, string>> {
    const { service, replica, id } = note;
    return { [engineLabels.service]: service, [engineLabels.replica]: replica, [engineLabels.note]: id };
  }

  /** Null: no volume, only what the image has. */
  async open(note: VolumeNote, volume: string | null, signal: AbortSignal): Promise<string> {
    const { image, path } = this.#options;
    const { service, replica, id } = note;
    const labels = { [engineLabels.service]: service, [engineLabels.replica]: replica, [engineLabels.helper]: id };
    const mount = volume === null ? null : { volume, path, copiesImage: false };
    const spec = { image, labels, command: null, env: {}, port: null, mount };
    return await this.engine.createContainer(containerName(service, `${replica}-volume`), spec, signal);
  }

  /** What cannot be removed now is removed by the next start of the gateway. */
  async close(container: string): Promise<void> {
    await this.engine.removeContainer(container).catch(() => {});
  }

  async closeAll(volume: string): Promise<void> {
    for (const { id, labels } of await this.engine.containers("volume", volume)) {
      if (labels[engineLabels.helper] !== undefined) await this.engine.removeContainer(id);
    }
  }

  async root(container: string, signal: AbortSignal): Promise<Root | null> {
    const archive = await this.engine.archive(container, this.path, signal);
    if (archive === null) return null;
    // Ends with the first entry: that is the folder itself.
    for await (const { mode, uid, gid } of readTar(archive)) return { mode, uid, gid };
    return null;
  }

  async removeOlder(note: VolumeNote): Promise<void> {
    const kept = new Set([volumeName(note), volumeName({ ...note, generation: note.generation - 1 })]);
    for (const volume of await this.engine.volumes(`${engineLabels.note}=${note.id}`)) {
      if (kept.has(volume)) continue;
      await this.closeAll(volume);
      await this.engine.removeVolume(volume).catch(() => {});
    }
  }
}

function readableOf(path: string, found: TarEntry, content: AsyncIterable<Buffer>): Readable {
  const mode = found.mode & 0o777;
  if (found.kind === "folder") return { entry: { kind: "folder", path, mode }, content: null };
  if (found.kind === "link") return { entry: { kind: "link", path, target: found.target }, content: null };
  return { entry: { kind: "file", path, mode, sizeBytes: found.sizeBytes, stamp: null }, content: () => content };
}

const trim = (path: string): string => path.replaceAll(/^\/+|\/+$/g, "");

/** Podman's names begin at the folder, Docker's with its name. */
function below(prefix: string, path: string): string {
  const name = path.replace(/^\/+/, "");
  if (prefix === "") return name;
  if (name.startsWith(`${prefix}/`)) return name.slice(prefix.length + 1);
  throw new Error(`the archive holds ${shownPath(path)}, which is outside of it`);
}

async function* pieces(...all: readonly Buffer[]): AsyncGenerator<Buffer> {
  yield* all;
}

/** Once: what has a code, or was asked for, is passed on. */
function translate(error: unknown, code: ErrorCode, what: string, signal: AbortSignal): unknown {
  if (error instanceof GatewayError || (signal.aborted && error === signal.reason)) return error;
  return new GatewayError(code, `${what}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
}
