import { defineConfig, mergeConfig } from "vitest/config";
import usual from "./vitest.config.ts";

// What takes minutes: whole systems under faults. `npm run test:long`, and `.ci/run` after `npm test`.
export default mergeConfig(
  { ...usual, test: { ...usual.test, include: [] } },
  defineConfig({ test: { include: ["test/**/*.long.ts"], testTimeout: 120_000 } }),
);
