// What became of a compare-and-set: of a cursor, of a document on the board.

export type Saved =
  | { readonly kind: "saved"; readonly revision: number }
  /** Certain: not saved. */
  | { readonly kind: "conflict" }
  /** It may be saved: who needs to know loads again. */
  | { readonly kind: "unknown"; readonly cause: unknown };
