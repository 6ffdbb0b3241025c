// A real S3 server for tests: Ceph's RADOS Gateway on its embedded database, unpacked from Debian's packages where the machine has none.
// Its answers to ranged reads are wrong with that database (18.2.7: always the object's beginning): s3-stub.ts serves those.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { S3mini } from "s3mini";
import { createFolder, endWithUs, removeFolder } from "./folder.ts";
import { ask, extend, serverBinary, startServer } from "./servers.ts";
import type { Server, Wanted } from "./servers.ts";
import { waitFor } from "./wait.ts";

/** How to reach one bucket. */
export interface S3Access {
  readonly endpoint: string;
  readonly region: string;
  readonly bucket: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
}

export interface S3Server extends Server {
  newBucket(): Promise<S3Access>;
}

const wanted: Wanted = {
  name: "radosgw",
  companions: ["radosgw-admin"],
  variable: "RADOSGW",
  versionFlag: "--version",
  // The first with the embedded database ("dbstore") that works without a cluster.
  versionMin: "18.2",
  suites: ["trixie"],
  // What the two programs load, without what only Ceph's other programs need.
  libraries: /^(?:ceph-common$|lib(?!python|glib|rgw2|rbd1|cephfs|radosstriper|pam|systemd|db5|selinux|fuse))/,
  hasOwnLibc: true,
};

export const radosgwBinary = (): Promise<string> => serverBinary(wanted);

const keys = { accessKeyId: "KEYOFTESTS", secretAccessKey: "the-secret-of-the-tests" };
const region = "us-east-1";

export async function startS3(): Promise<S3Server> {
  const binary = await radosgwBinary();
  const folder = createFolder("radosgw");
  const conf = join(folder, "ceph.conf");
  const arguments_ = ["-c", conf, "--no-mon-config"];
  const configure = (port: number): Promise<void> =>
    writeFile(
      conf,
      [
        "[global]",
        "fsid = 11111111-2222-3333-4444-555555555555",
        `run dir = ${join(folder, "run")}`,
        "admin socket =",
        "log file =",
        "log to stderr = true",
        "[client]",
        "rgw backend store = dbstore",
        "rgw config store = dbstore",
        `dbstore db dir = ${join(folder, "db")}`,
        `dbstore config uri = file:${join(folder, "db", "config.db")}`,
        `rgw data = ${folder}`,
        `rgw frontends = beast endpoint=127.0.0.1:${port} tcp_nodelay=1`,
        "rgw thread pool size = 32",
        "rgw enable usage log = false",
        "",
      ].join("\n"),
    );
  try {
    for (const name of ["run", "db"]) await mkdir(join(folder, name));
    await configure(0);
    const user = ["--uid=tests", "--display-name=tests", `--access-key=${keys.accessKeyId}`];
    const create = ["user", "create", ...user, `--secret=${keys.secretAccessKey}`];
    await makeUser([join(dirname(binary), "radosgw-admin"), ...arguments_, ...create]);
  } catch (error) {
    removeFolder(folder);
    throw error;
  }
  const server = await startServer({
    what: "radosgw",
    folder,
    port: undefined,
    command: async (port) => {
      await configure(port);
      return [binary, ...arguments_, "-n", "client.rgw", "-f"];
    },
    isReady: async (port) => {
      const hello = "GET / HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\r\n";
      return (await ask(port, hello, (text) => text.includes("</ListAllMyBucketsResult>"))) !== "";
    },
  });
  const url = `http://127.0.0.1:${server.port}`;
  let buckets = 0;
  return extend(server, {
    url,
    newBucket: async (): Promise<S3Access> => {
      const bucket = `tests-${(buckets += 1)}`;
      // The client's own createBucket names a location, which this server does not know: a PUT of the bucket's path is one, too.
      await new S3mini({ endpoint: url, region, ...keys }).putObject(bucket, "");
      return { endpoint: url, region, bucket, ...keys };
    },
  });
}

/** Resolves when it has printed the user that it made: about one run in fifteen then hangs in its own end, and is killed. */
async function makeUser([program, ...args]: readonly [string, ...string[]]): Promise<void> {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  child.once("exit", endWithUs(child.pid!));
  const ended = once(child, "exit");
  let [printed, said] = ["", ""];
  child.stdout.on("data", (chunk: Buffer) => (printed += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (said += chunk.toString()));
  const isMade = (): boolean => /"user_id": "tests"[^]*\n\}\s*$/.test(printed);
  try {
    await waitFor(() => isMade() || child.exitCode !== null, {
      timeoutMs: 60_000,
      what: () => `radosgw-admin to make a user; it said:\n${said}`,
    });
  } finally {
    child.kill("SIGKILL");
    await ended;
  }
  if (!isMade()) throw new Error(`radosgw-admin made no user; it said:\n${said}`);
}
