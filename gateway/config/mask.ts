// Faults quote the line they stand in. What is a secret, or looks like one, is taken out of them first.

import { FaultsError } from "../../rules/document.ts";
import type { Fault } from "../../rules/document.ts";

const dots = "•••";
/** A literal behind a key that says what it is, in a line that could not even be parsed. */
const looksSecret =
  /(?<=\b\w*(?:token|password|secret|authorization|key)["']?\s*:\s*)(?!\$\{)(?:"[^"]*"?|'[^']*'?|[^\s,{}"']+)/gi;
/** Private keys, under whatever name they were written. */
const looksKey = /(?<![0-9a-fA-F])(?:0x)?[0-9a-fA-F]{64}(?![0-9a-fA-F])/g;

export function masked(faults: readonly Fault[], secrets: readonly string[]): Fault[] {
  const clean = (text: string): string => withoutSecrets(text, secrets);
  const cleanLine = (text: string): string => clean(text).replaceAll(looksSecret, dots);
  return faults.map(({ source, suggestion, ...fault }) => ({
    ...fault,
    message: clean(fault.message),
    ...(suggestion === undefined ? {} : { suggestion: clean(suggestion) }),
    // With something taken out before the fault, the caret would point beside it.
    ...(source === undefined || isMoved(source, fault.column, cleanLine) ? {} : { source: cleanLine(source) }),
  }));
}

/** Runs `work`; faults that it throws come out masked. */
export function guarded<T>(secrets: readonly string[], work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
    throw new FaultsError(masked(error.faults, secrets));
  }
}

function isMoved(source: string, column: number, clean: (text: string) => string): boolean {
  const before = source.slice(0, column - 1);
  return !clean(source).startsWith(before);
}

function withoutSecrets(text: string, secrets: readonly string[]): string {
  // Longest first: one secret may be a part of another.
  let clean = text;
  for (const secret of secrets.toSorted((a, b) => b.length - a.length)) clean = clean.replaceAll(secret, dots);
  return clean.replaceAll(looksKey, dots).replaceAll(/(?<=:\/\/)(?!USER@)[^\s/@"']+(?=@)/g, dots);
}
