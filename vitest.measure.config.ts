import { defineConfig, mergeConfig } from "vitest/config";
import usual from "./vitest.config.ts";

// Measurements of whole systems under faults, run by hand: they print figures, and fail only when a promise is broken.
export default mergeConfig(
  { ...usual, test: { ...usual.test, include: [] } },
  defineConfig({ test: { include: ["test/**/*.measure.ts"], testTimeout: 3_600_000, maxWorkers: 1 } }),
);
