// Which adapter of the place port the options ask for.

import { createCommandPlace } from "./command.ts";
import { FolderPlace } from "./folder.ts";
import { createHttpPlace } from "./http.ts";
import { createVolumePlace } from "./volume.ts";
import type { Place, PlaceOptions } from "./place.ts";

export function openPlace(options: PlaceOptions): Place {
  switch (options.kind) {
    case "folder":
      return new FolderPlace(options.folder, options.exclude);
    case "volume":
      return createVolumePlace(options);
    case "command":
      return createCommandPlace(options);
    case "http":
      return createHttpPlace(options);
    default:
      throw options satisfies never;
  }
}
