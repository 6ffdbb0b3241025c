// Waits for a condition instead of a length of time: returns as soon as it holds, and never waits for ever.
import { inspect } from "node:util";
import { setTimeout as sleep } from "node:timers/promises";

export interface WaitOptions {
  readonly timeoutMs?: number;
  /** What is waited for, as the failure names it; a function is asked only when the wait has failed. */
  readonly what: string | (() => string);
}

export type Truthy<T> = Exclude<T, false | 0 | "" | null | undefined>;

/** Resolves with the first truthy value; a condition that throws counts as not yet. */
export async function waitFor<T>(
  condition: () => T | Promise<T>,
  { timeoutMs = 10_000, what }: WaitOptions,
): Promise<Truthy<T>> {
  const over = new AbortController();
  const polls = pollUntil(condition, over.signal);
  let timer: NodeJS.Timeout | undefined;
  // A race, because the condition itself may hang (it may ask a paused server).
  const deadline = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), timeoutMs);
  });
  const held = await Promise.race([polls.held, deadline]);
  clearTimeout(timer);
  over.abort();
  if (held !== undefined) return held.value;
  const named = typeof what === "string" ? what : what();
  const cause = polls.lastError();
  const why = cause === undefined ? "" : `; last error: ${inspect(cause)}`;
  throw new Error(`waited ${timeoutMs} ms in vain for ${named}${why}`, { cause });
}

function pollUntil<T>(condition: () => T | Promise<T>, over: AbortSignal) {
  let lastError: unknown;
  const poll = async (): Promise<{ value: Truthy<T> } | undefined> => {
    // Ends when the condition holds or the wait is over.
    for (let pauseMs = 2; !over.aborted; pauseMs = Math.min(50, pauseMs * 1.5)) {
      try {
        const value = await condition();
        if (value) return { value: value as Truthy<T> };
        lastError = undefined;
      } catch (error) {
        lastError = error;
      }
      await sleep(pauseMs);
    }
    return undefined;
  };
  return { held: poll(), lastError: () => lastError };
}
