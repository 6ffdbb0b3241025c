// A store whose puts and removes are steps (steps.ts), so that a test can stop the process at each of them. Otherwise the store itself.

import { step } from "../../gateway/steps.ts";
import type { SnapshotStore } from "./store.ts";

/** Steps: `store.put`, `store.remove`. */
export function stepped(store: SnapshotStore): SnapshotStore {
  return {
    kind: store.kind,
    where: store.where,
    put: (name, bytes) => {
      step("store.put");
      return store.put(name, bytes);
    },
    get: (name, range) => store.get(name, range),
    list: (prefix) => store.list(prefix),
    remove: (name) => {
      step("store.remove");
      return store.remove(name);
    },
    close: () => store.close(),
  };
}
