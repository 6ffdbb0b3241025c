// A real PostgreSQL for tests: of the machine (PATH, /usr/lib/postgresql), or unpacked from Debian's packages, without root and without a trace.
import { execFile } from "node:child_process";
import { chmod, chown, cp, mkdir, readdir, realpath, rm } from "node:fs/promises";
import { existsSync, readdirSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { promisify } from "node:util";
import type { Server } from "./servers.ts";
import { createFolder, removeFolder } from "./folder.ts";
import { extend, serverBinary, startServer } from "./servers.ts";
import { waitFor } from "./wait.ts";

export interface PostgresServer extends Server {
  /** `initdb`, `pg_dump`, `psql` …: the path of a program that fits the server. */
  program(name: string): string;
  /** What those programs need to be set, with PGHOST, PGPORT, PGUSER and PGDATABASE of this server. */
  readonly env: Readonly<Record<string, string>>;
  /** Runs SQL; the rows as psql prints them, unaligned. */
  query(sql: string): Promise<string>;
}

const run = promisify(execFile);
/** PostgreSQL refuses to run as root: `nobody`, who is on every machine. */
const nobody = 65_534;
const isRoot = process.getuid?.() === 0;
const setUser = ["setpriv", `--reuid=${nobody}`, `--regid=${nobody}`, "--clear-groups", "--"] as const;

/** A fresh cluster with one empty database, which trusts everybody on the loopback address. */
export async function startPostgres(): Promise<PostgresServer> {
  const bin = await binFolder();
  const program = (name: string): string => join(bin.folder, name);
  const folder = createFolder("postgres");
  const data = join(folder, "data");
  await mkdir(data);
  if (isRoot) {
    await chown(folder, nobody, nobody);
    await chown(data, nobody, nobody);
    // Only to be passed through: its name is random and nothing in it is secret.
    await chmod(dirname(folder), 0o711);
  }
  const asUser = (command: readonly [string, ...string[]]): [string, ...string[]] =>
    isRoot ? [...setUser, ...command] : [...command];
  const [initdb, ...initArgs] = asUser([
    program("initdb"),
    `--pgdata=${data}`,
    "--username=test",
    "--auth=trust",
    "--encoding=UTF8",
    "--no-locale",
    "--no-sync",
  ]);
  try {
    await run(initdb, initArgs, { cwd: folder, env: { ...process.env, ...bin.env }, timeout: 60_000 });
  } catch (error) {
    removeFolder(folder);
    throw error;
  }
  const settings = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",
    "jit=off",
    "shared_buffers=16MB",
  ];
  const server = await startServer({
    what: "postgres",
    folder,
    port: undefined,
    command: (port) =>
      Promise.resolve(
        asUser([
          "env",
          ...Object.entries(bin.env).map(([name, value]) => `${name}=${value}`),
          program("postgres"),
          `-D${data}`,
          `-p${port}`,
          ...settings.map((setting) => `-c${setting}`),
        ]),
      ),
    isReady: (port) =>
      run(program("pg_isready"), ["-q", "-h", "127.0.0.1", "-p", String(port)], {
        env: { ...process.env, ...bin.env },
      }).then(() => true),
  });
  const closeServer = server.close;
  const env = { ...bin.env, PGHOST: "127.0.0.1", PGPORT: String(server.port), PGUSER: "test", PGDATABASE: "postgres" };
  return extend(server, {
    url: `postgres://test@127.0.0.1:${server.port}/postgres`,
    program,
    env,
    query: async (sql: string) => {
      const args = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql];
      const { stdout } = await run(program("psql"), args, {
        env: { ...process.env, ...env },
        maxBuffer: 64 * 1024 * 1024,
      });
      return stdout;
    },
    close: async () => {
      // Its own children write into the folder until they have noticed its end.
      if (server.process.exitCode === null && server.process.signalCode === null) {
        server.process.kill("SIGINT");
        await waitFor(() => server.process.exitCode !== null || server.process.signalCode !== null, {
          what: () => `postgres to stop; it said:\n${server.output()}`,
        });
      }
      await closeServer();
    },
  });
}

interface Bin {
  readonly folder: string;
  readonly env: Readonly<Record<string, string>>;
}

let found: Promise<Bin> | undefined;

const binFolder = (): Promise<Bin> => (found ??= findBin());

async function findBin(): Promise<Bin> {
  const isOwnWanted = !process.env["SERVERS_IGNORE_PATH"] && !process.env["POSTGRES"];
  const own = isOwnWanted ? ownBinFolder() : undefined;
  if (own !== undefined) return { folder: own, env: {} };
  const launcher = await serverBinary({
    name: "postgres",
    package: "postgresql",
    variable: "POSTGRES",
    versionMin: "13.0",
    versionFlag: "-V",
    suites: ["own"],
    // Not LLVM: 100 MB for a compiler that the tests switch off.
    libraries: /^(?:postgresql-(?:client-)?\d+$|lib(?!c6$|c-bin$|llvm))/,
  });
  const unpacked = dirname(launcher);
  const root = isRoot ? await passable(unpacked) : unpacked;
  const files = await readdir(root, { recursive: true });
  const initdb = files.find((file) => file.endsWith("/bin/initdb"));
  // $POSTGRES may name a program of the machine.
  if (initdb === undefined) return { folder: dirname(await realpath(launcher)), env: {} };
  const libraries = new Set(
    files.filter((file) => /\.so(?:\.\d+)*$/.test(file)).map((file) => join(root, dirname(file))),
  );
  return { folder: join(root, dirname(initdb)), env: { LD_LIBRARY_PATH: [...libraries].join(":") } };
}

/** Debian keeps them out of PATH: one folder a version. */
function ownBinFolder(): string | undefined {
  const versions = "/usr/lib/postgresql";
  const debian = existsSync(versions)
    ? readdirSync(versions)
        .toSorted((a, b) => Number(b) - Number(a))
        .map((version) => join(versions, version, "bin"))
    : [];
  const folders = [...debian, ...(process.env["PATH"] ?? "").split(delimiter).filter(Boolean)];
  const needed = ["initdb", "postgres", "pg_dump", "psql", "pg_isready"];
  return folders.find((folder) => needed.every((name) => existsSync(join(folder, name))));
}

/** The checkout may lie in a folder that only root may enter: then the programs are copied to where `nobody` may. */
async function passable(folder: string): Promise<string> {
  const [program, ...args] = [...setUser, join(folder, "postgres"), "-V"];
  const canRun = await run(program, args).then(
    () => true,
    () => false,
  );
  if (canRun) return folder;
  const copy = createFolder("postgres-programs");
  await rm(copy, { recursive: true });
  await cp(folder, copy, { recursive: true, verbatimSymlinks: true });
  await chmod(copy, 0o755);
  await chmod(dirname(copy), 0o711);
  return copy;
}
