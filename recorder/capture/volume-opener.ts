// Opens the volumes of a container replica: by containers of its image that never run and hold nothing but the volume.

import { DockerEngine } from "../../gateway/drivers/docker.ts";
import { containerName, engineLabels, volumeName } from "../../gateway/drivers/state-volume.ts";
import { GatewayError } from "../../gateway/errors.ts";
import { readTar } from "./tar.ts";
import type { VolumeNote } from "../../gateway/drivers/state-volume.ts";
import type { ErrorCode } from "../../gateway/errors.ts";
import type { PlaceOptions } from "./place.ts";

export type VolumePlaceOptions = Extract<PlaceOptions, { readonly kind: "volume" }>;

/** Of the folder itself. */
export interface Root {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
}

export class VolumeOpener {
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

/** Once: what has a code, or was asked for, is passed on. */
export function translate(error: unknown, code: ErrorCode, what: string, signal: AbortSignal): unknown {
  if (error instanceof GatewayError || (signal.aborted && error === signal.reason)) return error;
  return new GatewayError(code, `${what}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
}
