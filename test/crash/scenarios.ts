// What the gateway does while it is killed. Each scenario tells which steps it passes, and does everything once with a kill at one of them: afterwards the
// same is begun again, goes on where it was, and nothing is lost.

import { cpSync, lstatSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { developmentKeys, startAnvil } from "../helpers/anvil.ts";
import { runCli } from "../helpers/cli.ts";
import { createFolder, removeFolder } from "../helpers/folder.ts";
import type { Sent } from "../helpers/clients.ts";
import { journalOf } from "../system/shop.ts";
import { Killed, Place, stepsTo } from "./place.ts";
import { crashAt, pointsOf } from "./points.ts";
import type { Point } from "./points.ts";

export interface Scenario {
  readonly name: string;
  /** All of it once, without a kill: where it can be killed. */
  points(): Promise<readonly Point[]>;
  /** Faults; empty: all that must hold does. Null: the step was not passed so often this time. */
  run(point: Point): Promise<readonly string[] | null>;
  close(): Promise<void>;
}

type Config = Readonly<Record<string, unknown>>;

// ---- a gateway that runs ------------------------------------------------------------------------------------------------------------

/** Load, two snapshots, a truncation, a rebuild, one more copy. */
async function busyDay(place: Place): Promise<void> {
  const { gateway } = place;
  place.send();
  await place.acknowledged(12);
  await place.operate("/v1/snapshots");
  await place.acknowledged(8);
  await place.operate("/v1/snapshots");
  await place.wait("the log to be truncated", async () => (await gateway.status()).log.firstPosition > 4096);
  await place.acknowledged(8);
  await place.operate("/v1/replicas/r2/rebuild");
  await place.operate("/v1/replicas");
  await place.sendNoMore();
  await place.wait("all copies to be live", async () => (await gateway.status()).replicas.every((it) => it.lag === 0));
}

const running = (name: string, config: () => Config, wanted: RegExp, close: () => Promise<void>): Scenario => ({
  name,
  close,
  async points() {
    const place = await Place.prepare(config());
    try {
      await place.start({ env: stepsTo(place.stepsFile, null) });
      await busyDay(place);
      await place.gateway.stop();
      return pointsOf(place.steps()).filter(({ step }) => wanted.test(step));
    } finally {
      await place.close();
    }
  },
  async run(point) {
    const place = await Place.prepare(config());
    try {
      await place.start({ env: stepsTo(place.stepsFile, crashAt(point)), until: "none" });
      const isKilled = await place
        .alive(async () => {
          await place.gateway.waitFor("/readyz", 30_000);
          await busyDay(place);
        })
        .then(
          () => false,
          (error: unknown) => {
            if (error instanceof Killed) return true;
            throw error;
          },
        );
      // The last steps are those of a clean stop.
      if (!isKilled && (await place.gateway.stop()) !== null) return null;
      await place.start();
      place.send();
      // Whoever waited for an answer has it, and more are served while copies come back.
      await place.acknowledged(6);
      await place.sendNoMore();
      return await place.faults();
    } finally {
      await place.close();
    }
  },
});

export const embedded = (): Scenario =>
  running(
    "embedded",
    () => ({}),
    /./,
    async () => undefined,
  );

/** The registry is a contract: only its own steps, the others are those of `embedded`. */
export async function onChain(): Promise<Scenario> {
  const anvil = await startAnvil();
  const kept = createFolder("chain");
  const keyFile = join(kept, "registry.key");
  writeFileSync(keyFile, developmentKeys[0], { mode: 0o600 });
  let number = 0;
  const args = ["registry", "deploy", "--rpc", anvil.url, "--key-file", keyFile, "--json"];
  const deployed = await runCli(args);
  const { contract } = JSON.parse(deployed.stdout) as { contract: string };
  // Each has a line of its own on the one chain.
  const config = (): Config => ({
    service: `shop-${(number += 1)}`,
    registry: { ethereum: { rpc: [anvil.url], contract, keyFile, confirmations: 1 } },
  });
  return running("chain", config, /^(chain|notes)\./, async () => {
    await anvil.close();
    removeFolder(kept);
  });
}

// ---- gateway recover ----------------------------------------------------------------------------------------------------------------

interface Disaster {
  /** What is left of a place. */
  readonly folder: string;
  readonly sent: readonly Sent[];
  /** A position in the middle of what the log still holds. */
  readonly middle: number;
}

/** Those of the lock cannot be copied. */
const isNoSocket = (path: string): boolean => !lstatSync(path).isSocket();

/** A day that ended in a kill; of data and copies only what `keeps` names is there. */
async function disaster(keeps: readonly string[]): Promise<Disaster> {
  const place = await Place.prepare();
  try {
    const { clients, gateway } = place;
    await place.start();
    place.send();
    await place.acknowledged(12);
    await place.operate("/v1/snapshots");
    await place.acknowledged(8);
    await place.operate("/v1/snapshots");
    await place.acknowledged(12);
    await place.sendNoMore();
    await place.caughtUp();
    await gateway.kill9();
    const folder = createFolder("disaster");
    cpSync(join(place.folder, "store"), join(folder, "store"), { recursive: true });
    for (const name of keeps)
      cpSync(join(place.folder, name), join(folder, name), { recursive: true, filter: isNoSocket });
    const positions = journalOf(join(place.folder, "state", "r1")).map((row) => row.position);
    return { folder, sent: clients.history, middle: positions.at(-6) ?? 0 };
  } finally {
    await place.close();
  }
}

const recovering = async (
  name: string,
  keeps: readonly string[],
  more: (disaster: Disaster) => readonly string[],
): Promise<Scenario> => {
  const image = await disaster(keeps);
  const recover = (place: Place, env: Readonly<Record<string, string>>): ReturnType<typeof runCli> =>
    runCli(["recover", "--yes", "-c", place.gateway.file, ...more(image)], {
      env: { CRASH_PLACE: place.folder, ...env },
    });
  const whole = await Place.prepare({}, image);
  try {
    const recovered = await recover(whole, stepsTo(whole.stepsFile, null));
    if (recovered.code !== 0) throw new Error(`${name}: ${recovered.stdout}${recovered.stderr}`);
    const points = pointsOf(whole.steps());
    const expected = whole.stateOf("r1");
    const executed = new Set(journalOf(join(whole.folder, "state", "r1")).map((row) => row.id));
    const lost = new Set(image.sent.flatMap((one) => (executed.has(one.id) ? [] : [one.id])));
    return {
      name,
      points: () => Promise.resolve(points),
      close: async () => removeFolder(image.folder),
      async run(point) {
        const place = await Place.prepare({}, image);
        place.lost = lost;
        try {
          const killed = await recover(place, stepsTo(place.stepsFile, crashAt(point)));
          if (killed.signal !== "SIGKILL") return null;
          const again = await recover(place, {});
          // Cut off at its very end, there is nothing left of it but to say so.
          const isFinished = again.code === 1 && again.stderr.includes("is finished now: start the gateway");
          if (again.code !== 0 && !isFinished)
            return [`the second recovery: ${again.code} ${again.stdout}${again.stderr}`];
          const faults = ["r1", "r2", "r3"].flatMap((copy) =>
            place.stateOf(copy) === expected ? [] : [`${copy} is not what a recovery without a kill gives`],
          );
          await place.start();
          place.send();
          await place.acknowledged(5);
          await place.sendNoMore();
          return [...faults, ...(await place.faults())];
        } finally {
          await place.close();
        }
      },
    };
  } finally {
    await whole.close();
  }
};

/** Of data only the log is left; then only the store; then nothing is gone, and the end of the log is given up. */
export const withLog = (): Promise<Scenario> => recovering("recover", ["data/log"], () => []);
export const withoutLog = (): Promise<Scenario> => recovering("recover, log lost", [], () => []);
export const toPosition = (): Promise<Scenario> =>
  recovering("recover --to", ["data", "state"], ({ middle }) => ["--to", String(middle)]);
