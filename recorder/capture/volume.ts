// Adapter of the place port: the state of a container replica, in a volume of its engine, read and filled as a tar stream through the Docker API.
//
// - The volume is opened by a container of the replica's image that never runs, so that it does not matter whether the replica does. Under
//   `quiesce: none` a file that vanishes or shrinks while the engine reads it spoils the archive, and the read rejects.
// - A restore fills a volume of the next generation. `commit` syncs it and writes the note that names it (drivers/state-volume.ts): the replica's
//   next start gets it, a life that runs keeps what it has. The former volume is kept, older ones are removed.
// - Owners are not state and differ between engines: everything restored belongs to whom the root of the live volume belongs, which keeps its
//   owner and mode; without a live volume, to whom the folder in the image belongs.
// - Sockets are left out by the engine, which does not name them. Holes come back as zeros.

import { newNote, readNote, volumeName, writeNote } from "../../gateway/drivers/state-volume.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { step } from "../../gateway/steps.ts";
import { faultOfLinks, faultOfPath, shownPath } from "../tree.ts";
import { createExclude } from "./exclude.ts";
import { readTar } from "./tar.ts";
import { VolumeOpener, translate } from "./volume-opener.ts";
import { VolumeReplacement } from "./volume-replacement.ts";
import type { Place, Readable, Replacement } from "./place.ts";
import type { TarEntry } from "./tar.ts";
import type { VolumePlaceOptions } from "./volume-opener.ts";

export function createVolumePlace(options: VolumePlaceOptions): Place {
  return new VolumePlace(options);
}

/** Of what was left out, that many are named. */
const skippedMax = 1_000;

class VolumePlace implements Place {
  readonly isSequential = true;
  readonly where: string;
  skipped: readonly string[] = [];
  readonly #options: VolumePlaceOptions;
  readonly #opener: VolumeOpener;

  constructor(options: VolumePlaceOptions) {
    this.#options = options;
    this.#opener = new VolumeOpener(options);
    this.where = `the volume of replica ${options.replica} at ${options.path}`;
  }

  async *read(signal: AbortSignal): AsyncGenerator<Readable> {
    signal.throwIfAborted();
    const { note: file, replica } = this.#options;
    const note = await readNote(file);
    if (note === null || !note.isFilled)
      throw this.#failed(`replica ${replica} was never ready: it has no state yet. Start it first`);
    const volume = volumeName(note);
    if (!(await this.#opener.engine.hasVolume(volume, signal)))
      throw this.#failed(
        `the volume ${volume} is gone, and with it the state of replica ${replica}: rebuild it, and capture another`,
      );
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
    let former = await readNote(file);
    if (former === null) {
      // Says of no state, and under which name the next restore finds what this one leaves behind when it is killed.
      former = newNote(service, replica);
      await writeNote(file, former);
    }
    const next = { ...former, generation: former.generation + 1, isFilled: true };
    const replacement = new VolumeReplacement(this.#options, this.#opener, next, signal);
    try {
      await replacement.open(former);
    } catch (error) {
      await replacement.abort();
      throw translate(error, "GW_RESTORE_FAILED", `no volume for replica ${replica} could be made`, signal);
    }
    return replacement;
  }

  async putBack(signal: AbortSignal): Promise<boolean> {
    const { note: file, replica } = this.#options;
    const note = await readNote(file);
    if (note === null) return false;
    const former = { ...note, generation: note.generation - 1 };
    const { engine } = this.#opener;
    try {
      if (!(await engine.hasVolume(volumeName(former), signal))) return false;
      step("volume.note");
      await writeNote(file, former);
    } catch (error) {
      throw translate(error, "GW_RESTORE_FAILED", `the former volume of replica ${replica} is not back`, signal);
    }
    // What is left of it is removed by the next restore.
    await this.#opener.closeAll(volumeName(note)).catch(() => {});
    await engine.removeVolume(volumeName(note)).catch(() => {});
    return true;
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
      if (fault !== null)
        throw this.#failed(
          `${shownPath(path)} could not be brought back: ${fault}; mend it, or leave it out with snapshots.capture.exclude`,
        );
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
      throw this.#failed(
        `${shownPath(wrong.path)} could not be brought back: ${wrong.fault}; mend it, or leave it out with snapshots.capture.exclude`,
      );
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
