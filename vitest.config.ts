import { defineConfig } from "vitest/config";

// Real servers and two cores: few files side by side, generous and explicit limits.
export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 30_000,
    // Dozens of real processes on two cores that others use too: what fails is run once more, and the output says so. What is broken fails twice.
    retry: 1,
    hookTimeout: 60_000,
    globalSetup: ["test/helpers/setup.ts"],
  },
});
