import { readFileSync } from "node:fs";
import { Interface } from "ethers";
import { expect, it } from "vitest";
import { abi, bytecode } from "../../../recorder/contract/artifact.ts";
import { compile } from "./compile.ts";
import type { Artifact } from "./compile.ts";

it("what is committed is what the pinned compiler makes of the contract", () => {
  const file = new URL("../../../recorder/contract/SnapshotRegistry.json", import.meta.url);
  const committed = JSON.parse(readFileSync(file, "utf8")) as Artifact;
  const compiled = compile();
  expect(compiled.compiler).toMatch(/^0\.8\.37\+/);
  expect(committed).toEqual(JSON.parse(JSON.stringify(compiled)));
  expect(abi).toEqual(new Interface(compiled.abi).format());
  expect(bytecode).toBe(compiled.bytecode);
}, 120_000);
