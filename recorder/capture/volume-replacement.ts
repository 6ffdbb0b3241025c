// A volume of the next generation while it is filled, and until it is the one that the replica's next life gets.

import { basename, dirname } from "node:path/posix";
import { PassThrough } from "node:stream";
import { syncMachine, volumeName, writeNote } from "../../gateway/drivers/state-volume.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { step } from "../../gateway/steps.ts";
import { faultOfPath, shownPath } from "../tree.ts";
import { tarEnd, tarHead, tarPadding } from "./tar.ts";
import { translate } from "./volume-opener.ts";
import type { VolumeNote } from "../../gateway/drivers/state-volume.ts";
import type { Replacement, TreeEntry } from "./place.ts";
import type { Root, VolumeOpener, VolumePlaceOptions } from "./volume-opener.ts";

export class VolumeReplacement implements Replacement {
  readonly #options: VolumePlaceOptions;
  readonly #opener: VolumeOpener;
  readonly #next: VolumeNote;
  readonly #signal: AbortSignal;
  readonly #given = new AbortController();
  readonly #tar = new PassThrough({ highWaterMark: 1024 * 1024 });
  readonly #mtimeS = Math.floor(Date.now() / 1000);
  #root: Root = { mode: 0o755, uid: 0, gid: 0 };
  #container: string | null = null;
  #putting: Promise<void> | null = null;
  readonly #folders = new Set([""]);
  #isBroken = false;
  #isCommitted = false;

  constructor(options: VolumePlaceOptions, opener: VolumeOpener, next: VolumeNote, signal: AbortSignal) {
    this.#options = options;
    this.#opener = opener;
    this.#next = next;
    this.#signal = AbortSignal.any([signal, this.#given.signal]);
    // Its writer learns of it from the request.
    this.#tar.on("error", () => {});
  }

  async open(former: VolumeNote): Promise<void> {
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
    // Whoever waits for room then learns that there will be none.
    const end = (): void => void this.#tar.destroy();
    this.#putting.then(end, end);
    await this.#write(tarHead({ kind: "folder", path: ".", target: "", sizeBytes: 0, ...this.#root }, this.#mtimeS));
  }

  async put(entry: TreeEntry, content: AsyncIterable<Buffer> | null): Promise<void> {
    try {
      await this.#put(entry, content);
    } catch (error) {
      this.#isBroken = true;
      throw translate(
        error,
        "GW_RESTORE_FAILED",
        `${shownPath(entry.path)} could not be put into ${volumeName(this.#next)}`,
        this.#signal,
      );
    }
  }

  async commit(): Promise<void> {
    const { engine } = this.#opener;
    const { note, replica } = this.#options;
    if (this.#isBroken || this.#container === null || this.#putting === null)
      throw this.#failed("it was not filled to its end");
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
      throw translate(
        error,
        "GW_RESTORE_FAILED",
        `the restored volume of replica ${replica} could not be put in place; the former one is`,
        this.#signal,
      );
    }
    this.#isCommitted = true;
    step("volume.forget");
    // What cannot be removed now is removed after the next restore.
    await this.#opener.removeOlder(this.#next).catch(() => {});
  }

  async abort(): Promise<void> {
    if (this.#isCommitted) return;
    this.#isBroken = true;
    this.#given.abort(
      new GatewayError("GW_RESTORE_FAILED", `the restore of replica ${this.#options.replica} was given up`),
    );
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
    if (fault !== null) throw this.#failed(`${shownPath(path)}: ${fault}`);
    // The engine would follow a link, or make what is missing.
    if (!this.#folders.has(path.slice(0, Math.max(0, path.lastIndexOf("/")))))
      throw this.#failed(`${shownPath(path)}: what it lies in is no folder that was put before`);
    if (kind === "folder") this.#folders.add(path);
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
    if (bytes !== sizeBytes)
      throw this.#failed(
        `${shownPath(path)} was announced with ${sizeBytes} bytes and has ${bytes > sizeBytes ? "more" : bytes}`,
      );
    await this.#write(tarPadding(sizeBytes));
  }

  /** Resolves when there is room for more; rejects with what the engine said. */
  async #write(bytes: Buffer): Promise<void> {
    if (bytes.length === 0 || this.#putting === null) return;
    if (this.#tar.writable && this.#tar.write(bytes)) return;
    if (this.#tar.writable) {
      await new Promise<void>((resolve) => {
        const wake = (): void => {
          this.#tar.off("drain", wake).off("close", wake);
          resolve();
        };
        this.#tar.on("drain", wake).on("close", wake);
      });
    }
    if (this.#tar.writable) return;
    await this.#putting;
    throw this.#failed("the engine stopped reading before the end");
  }

  /** Of the live volume, else of the image; null: neither is there. */
  async #findRoot(former: VolumeNote): Promise<Root | null> {
    const live = volumeName(former);
    const volume = former.isFilled && (await this.#opener.engine.hasVolume(live, this.#signal)) ? live : null;
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
      return (
        root !== null && root.mode === this.#root.mode && root.uid === this.#root.uid && root.gid === this.#root.gid
      );
    };
    if (await isRight()) return;
    const head = tarHead(
      { kind: "folder", path: basename(path), target: "", sizeBytes: 0, ...this.#root },
      this.#mtimeS,
    );
    await this.#opener.engine.putArchive(container, dirname(path), pieces(head, tarEnd), this.#signal);
    if (!(await isRight()))
      throw this.#failed(`its root cannot be given to user ${this.#root.uid}, group ${this.#root.gid}`);
  }

  #failed(what: string): GatewayError {
    return new GatewayError(
      "GW_RESTORE_FAILED",
      `the volume ${volumeName(this.#next)} of replica ${this.#options.replica}: ${what}`,
    );
  }
}

async function* pieces(...all: readonly Buffer[]): AsyncGenerator<Buffer> {
  yield* all;
}
