// A part of a store: every name begins with the same segment, so that one store may serve several services.

import type { SnapshotStore } from "./store.ts";

export function prefixed(store: SnapshotStore, prefix: string): SnapshotStore {
  const full = (name: string): string => `${prefix}/${name}`;
  return {
    kind: store.kind,
    where: store.where,
    put: (name, bytes) => store.put(full(name), bytes),
    get: (name, range) => store.get(full(name), range),
    async *list(start) {
      for await (const { name, ...rest } of store.list(full(start)))
        yield { ...rest, name: name.slice(prefix.length + 1) };
    },
    remove: (name) => store.remove(full(name)),
    close: () => store.close(),
  };
}
