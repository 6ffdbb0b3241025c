// Opens the store that the configuration names. Rejects with GW_STORE_UNAVAILABLE or GW_STORE_FULL; what was opened has to be closed.

import { openFolderStore } from "./folder.ts";
import { openMysqlStore } from "./mysql.ts";
import { openNatsStore } from "./nats.ts";
import { openS3Store } from "./s3.ts";
import type { SnapshotStore, StoreOptions } from "./store.ts";

export async function openStore(options: StoreOptions): Promise<SnapshotStore> {
  switch (options.kind) {
    case "folder":
      return openFolderStore(options);
    case "s3":
      return openS3Store(options);
    case "mysql":
      return openMysqlStore(options);
    case "nats":
      return openNatsStore(options);
    default:
      return options satisfies never;
  }
}
