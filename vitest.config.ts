import { defineConfig } from "vitest/config";

// Real servers and two cores: few files side by side, generous and explicit limits.
export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 60_000,
    globalSetup: ["test/helpers/setup.ts"],
  },
});
