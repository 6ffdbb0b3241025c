// Containers are ended here, our own and those that a killed gateway left behind, and nobody else's: only what bears our mark.

import { setTimeout as sleep } from "node:timers/promises";
import { isAway } from "../drivers/docker.ts";
import { engineLabels, noteIds } from "../drivers/state-volume.ts";
import { GatewayError } from "../errors.ts";
import { markOf } from "./orphans.ts";
import type { Container } from "../drivers/docker-container.ts";
import type { DockerEngine } from "../drivers/docker.ts";

export interface EndedContainer {
  readonly name: string;
  readonly container: string;
}

export interface EndContainersOptions {
  /** Where orphans.ts keeps its records, and the folder's id. */
  readonly recordsFolder: string;
  /** Where the volumes' notes are: what a capture or a restore left behind is removed. Null: it is left, one may be under way. */
  readonly volumesFolder: string | null;
  /** Between SIGTERM and SIGKILL; default 2,000. */
  readonly graceMs?: number;
  /** Only this replica's; default: all of the data folder. */
  readonly name?: string;
}

/** How long a container may take to end after SIGKILL, and an engine to come back. */
const patienceMs = 30_000;

/**
 * Ends what earlier lives of this gateway left in the engine. Resolves when all of it has ended and is removed; rejects when that cannot be
 * said, because then its replica must not be started a second time.
 */
export async function endContainers(engine: DockerEngine, options: EndContainersOptions): Promise<EndedContainer[]> {
  const { graceMs = 2_000, name, recordsFolder, volumesFolder } = options;
  const prefix = await markOf(recordsFolder, "");
  const found = (await engine.containers("label", engineLabels.mark)).filter(({ labels }) => {
    const mark = labels[engineLabels.mark] ?? "";
    return name === undefined ? mark.startsWith(prefix) : mark === prefix + name;
  });
  await Promise.all(found.map(({ id }) => endContainer(engine, id, graceMs)));
  for (const { id } of found) await engine.removeContainer(id);
  const helpers = volumesFolder === null ? [] : await noteIds(volumesFolder);
  for (const id of helpers) {
    for (const helper of await engine.containers("label", `${engineLabels.helper}=${id}`))
      await engine.removeContainer(helper.id);
  }
  return found
    .filter(({ isAlive }) => isAlive)
    .map(({ id, labels }) => ({ name: labels[engineLabels.replica] ?? "", container: id }));
}

/** SIGTERM (or what the image asks for), SIGKILL after the grace; 0: at once. Resolves with how it stands when its end was seen; null: it is gone. */
export async function endContainer(engine: DockerEngine, id: string, graceMs: number): Promise<Container | null> {
  const startedMs = performance.now();
  let sent = "";
  let refusal: unknown = null;
  // Ends when its end was seen, or with the patience.
  for (;;) {
    const elapsedMs = performance.now() - startedMs;
    try {
      const seen = await engine.container(id);
      if (seen === null || !seen.isAlive) return seen;
      const wanted = elapsedMs >= graceMs ? "SIGKILL" : seen.stopSignal;
      // A frozen one would hear nothing.
      if (wanted !== sent && seen.isPaused) await engine.unpauseContainer(id);
      if (wanted !== sent) await engine.killContainer(id, wanted);
      sent = wanted;
    } catch (error) {
      // Away for a moment, or it ended in between: then the next look says so.
      refusal = error;
      if (isAway(error) && elapsedMs > graceMs + patienceMs) throw error;
    }
    if (elapsedMs > graceMs + patienceMs)
      throw new GatewayError(
        "GW_CONFLICT",
        `container ${id.slice(0, 12)} cannot be ended: end it by hand (\`docker rm -f ${id.slice(0, 12)}\`)`,
        {
          cause: refusal,
        },
      );
    await sleep(50);
  }
}
