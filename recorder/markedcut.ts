// A mark in the log, with what stands still at it: copies that stop there, and the reader state exactly behind its record.

import type { Applier } from "../gateway/applier.ts";
import { sequenceOf } from "../gateway/entry.ts";
import { GatewayError } from "../gateway/errors.ts";
import type { LogReader } from "../gateway/reader.ts";
import type { Replicas } from "../gateway/replicas.ts";
import type { StateCut } from "../gateway/state/store.ts";

export interface MarkedCut {
  readonly position: number;
  /** To be closed by the caller, soon. */
  readonly cut: StateCut;
}

/** Null: a copy left before it was there; then none is stopped. Rejects like the append and the cut, and leaves nothing open. */
export async function cutAtMark(
  appliers: readonly Applier[],
  purpose: string,
  { reader, replicas }: { readonly reader: LogReader; readonly replicas: Replicas },
): Promise<MarkedCut | null> {
  const cuts: Promise<StateCut>[] = [];
  const goOn = (): void => {
    for (const it of appliers) it.goOn();
  };
  try {
    const position = await replicas.stopAtMark(appliers, purpose, (sequence) => {
      const cutting = reader.cutAt(sequence);
      cutting.catch(() => undefined);
      cuts.push(cutting);
    });
    const cut = await cuts[0];
    if (position === null || cut === undefined) {
      cut?.close();
      goOn();
      return null;
    }
    if (cut.head.sequence !== sequenceOf(position))
      throw new GatewayError(
        "GW_INTERNAL",
        `the reader state was cut at record ${cut.head.sequence}, the mark stands at ${position}`,
      );
    return { position, cut };
  } catch (error) {
    goOn();
    for (const cutting of cuts)
      void cutting.then(
        (cut) => cut.close(),
        () => undefined,
      );
    throw error;
  }
}
