// Adapter of the place port: a state that commands bring out and back in, `{dump, restore}`, as `pg_dump` and `psql` do for a database.
// The dump's output is the one file `state`; the restore gets it as its input. What such a place can promise stands in single.ts.

import { GatewayError } from "../../gateway/errors.ts";
import { Run, programOf } from "./run.ts";
import { createSinglePlace } from "./single.ts";
import type { ErrorCode } from "../../gateway/errors.ts";
import type { Place, PlaceOptions } from "./place.ts";

export type CommandPlaceOptions = Extract<PlaceOptions, { readonly kind: "command" }>;

export function createCommandPlace(options: CommandPlaceOptions): Place {
  return createSinglePlace({
    where: `the commands ${programOf(options.dump)} and ${programOf(options.restore)}`,
    dump: (signal) => dump(options, signal),
    restore: (content, signal) => restore(options, content, signal),
  });
}

async function* dump(options: CommandPlaceOptions, signal: AbortSignal): AsyncGenerator<Buffer> {
  signal.throwIfAborted();
  const run = new Run({ ...options, command: options.dump, env: environmentOf(options), way: "read" }, signal);
  const failed = (problem: string): GatewayError =>
    failure("GW_SNAPSHOT_FAILED", run, `the dump command ${programOf(options.dump)} ${problem}: nothing was captured`);
  let sizeBytes = 0;
  try {
    try {
      // Ends with its output, which is read no faster than the pieces are taken.
      for await (const piece of (run.output ?? []) as AsyncIterable<Buffer>) {
        sizeBytes += piece.length;
        yield piece;
      }
    } catch {
      // Cut off, by the time limit or the signal: how it ended tells why.
      run.kill("lost its output");
    }
    // Only its end says that what was yielded is whole.
    const problem = await run.ended;
    signal.throwIfAborted();
    if (problem !== null) throw failed(problem);
    if (sizeBytes === 0 && run.lastWords !== null) throw failed("wrote nothing to its output");
  } finally {
    run.kill("was not read to its end");
  }
}

async function restore(
  options: CommandPlaceOptions,
  content: AsyncIterable<Buffer>,
  signal: AbortSignal,
): Promise<void> {
  const run = new Run({ ...options, command: options.restore, env: environmentOf(options), way: "feed" }, signal);
  let isTaken = true;
  try {
    // Ends with the content, or when the command reads no more.
    for await (const piece of content) {
      isTaken = await run.write(piece);
      if (!isTaken) break;
    }
    isTaken = isTaken && (await run.end());
  } catch (error) {
    run.kill("was killed, because the rest of the state could not be had");
    await run.ended;
    throw error;
  }
  const problem = (await run.ended) ?? (isTaken ? null : "ended before it had read all of it");
  signal.throwIfAborted();
  if (problem === null) return;
  throw failure(
    "GW_RESTORE_FAILED",
    run,
    `the restore command ${programOf(options.restore)} ${problem}: the state that it writes is unknown now, and must be restored again before it is used`,
  );
}

function failure(code: ErrorCode, run: Run, what: string): GatewayError {
  const words = run.lastWords;
  return new GatewayError(code, `${what}. ${words === null ? "It said nothing" : `It said last:\n${words}`}`);
}

/** The gateway's own settings and secrets are nobody else's. */
function environmentOf({ env }: CommandPlaceOptions): Record<string, string | undefined> {
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith("GATEWAY_"));
  return { ...Object.fromEntries(inherited), ...env };
}
