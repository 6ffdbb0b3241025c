// Snapshots in S3.
import { afterAll, beforeAll } from "vitest";

import { startS3 } from "../../helpers/s3.ts";
import type { S3Server } from "../../helpers/s3.ts";
import { startS3Stub } from "../../helpers/s3-stub.ts";
import type { S3Stub } from "../../helpers/s3-stub.ts";
import { storeContract } from "./store.contract.ts";

let server: S3Server;
let stub: S3Stub;
let prefixes = 0;
beforeAll(async () => {
  [server, stub] = await Promise.all([startS3(), startS3Stub()]);
});
afterAll(() => Promise.all([server?.close(), stub?.close()]));

storeContract("s3 (Ceph)", async () => ({ kind: "s3", prefix: "", ...(await server.newBucket()) }), {
  manyObjects: 1_050,
  hasNoRanges: true,
});
storeContract("s3 (stub)", () => Promise.resolve({ kind: "s3", prefix: `a/prefix-${++prefixes}`, ...stub.access }), {
  manyObjects: 2_100,
});
