// A real MariaDB for tests: of the machine, or unpacked from Debian's packages, with its own data folder and no trace elsewhere.
import { spawn } from "node:child_process";
import { existsSync, realpathSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Connection, RowDataPacket } from "mysql2/promise";
import { createConnection } from "mysql2/promise";
import { createFolder, removeFolder } from "./folder.ts";
import { ask, extend, serverBinary, startServer } from "./servers.ts";
import type { Server, Wanted } from "./servers.ts";

/** How to reach one database, as its user. */
export interface MariadbAccess {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly database: string;
}

export interface MariadbServer extends Server {
  /** A new database, and a user who may do everything in it and nothing elsewhere. */
  newDatabase(): Promise<MariadbAccess>;
  /** As the administrator. */
  query(sql: string): Promise<readonly Readonly<Record<string, unknown>>[]>;
}

export interface MariadbOptions {
  /** Each of its files is full then, as if the disk were; at least 48 MiB. */
  readonly fileBytesMax?: number;
  /** More options of the program, such as `--max-allowed-packet=1M`; they come last and win. */
  readonly options?: readonly string[];
}

const wanted: Wanted = {
  name: "mariadbd",
  package: "mariadb-server-core",
  variable: "MARIADB_SERVER",
  versionFlag: "--version",
  versionMin: "10.5.0",
  suites: ["own"],
  // Its libraries come along, so that a machine without any of them will do. Those of libc must be the machine's own.
  libraries: /^lib(?!c6$|c-bin$)/,
};

export const mariadbBinary = (): Promise<string> => serverBinary(wanted);

const admin = { user: "admin", password: "of-the-tests" };

export async function startMariadb(options: MariadbOptions = {}): Promise<MariadbServer> {
  const binary = await mariadbBinary();
  const folder = createFolder("mariadb");
  const data = join(folder, "data");
  const temporary = join(folder, "temporary");
  const init = join(folder, "init.sql");
  const common = [
    "--no-defaults",
    `--basedir=${baseOf(binary)}`,
    `--datadir=${data}`,
    // Each removes what looks like its own in there when it starts: not in one folder with others.
    `--tmpdir=${temporary}`,
    // It refuses to run as root unless it is told to.
    ...(process.getuid?.() === 0 ? ["--user=root"] : []),
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=48M",
    ...(options.options ?? []),
  ];
  try {
    await mkdir(data);
    await mkdir(temporary);
    await bootstrap(binary, common);
    await writeFile(
      init,
      `CREATE USER IF NOT EXISTS '${admin.user}'@'%' IDENTIFIED BY '${admin.password}';\n` +
        `GRANT ALL ON *.* TO '${admin.user}'@'%' WITH GRANT OPTION;\n`,
    );
  } catch (error) {
    removeFolder(folder);
    throw error;
  }
  const server = await startServer({
    what: "mariadbd",
    folder,
    port: undefined,
    command: async (port) => [
      ...limited(options.fileBytesMax),
      binary,
      ...common,
      `--port=${port}`,
      "--bind-address=127.0.0.1",
      "--socket=socket", // in the data folder: a path of its own could be too long
      `--init-file=${init}`,
      "--skip-name-resolve",
    ],
    // The greeting holds its version; it accepts only once the init file has been executed.
    isReady: async (port) => (await ask(port, "", (text) => text.includes("MariaDB"))) !== "",
  });
  const connected = async <T>(work: (connection: Connection) => Promise<T>): Promise<T> => {
    const connection = await createConnection({ host: "127.0.0.1", port: server.port, ...admin });
    try {
      return await work(connection);
    } finally {
      connection.destroy();
    }
  };
  let databases = 0;
  return extend(server, {
    url: `mysql://${admin.user}@127.0.0.1:${server.port}`,
    newDatabase: (): Promise<MariadbAccess> =>
      connected(async (connection) => {
        const name = `test${(databases += 1)}`;
        const password = `password-of-${name}`;
        await connection.query(`CREATE DATABASE ${name}`);
        await connection.query(`CREATE USER ${name}@'%' IDENTIFIED BY '${password}'`);
        await connection.query(`GRANT ALL ON ${name}.* TO ${name}@'%'`);
        return { host: "127.0.0.1", port: server.port, user: name, password, database: name };
      }),
    query: (sql: string) => connected(async (connection) => (await connection.query<RowDataPacket[]>(sql))[0]),
  });
}

/** What makes the kernel refuse to let a file of the command grow: with an error, not with the signal. */
const limited = (fileBytesMax: number | undefined): readonly [string, ...string[]] =>
  fileBytesMax === undefined
    ? ["env"]
    : ["sh", "-c", `trap '' XFSZ; ulimit -f ${Math.floor(fileBytesMax / 512)}; exec "$@"`, "sh"];

/** Where its share folder is: beside the launcher of an unpacked one, else where the package manager put the program. */
function baseOf(binary: string): string {
  const unpacked = join(dirname(binary), "usr");
  return existsSync(join(unpacked, "share")) ? unpacked : dirname(dirname(realpathSync(binary)));
}

/** The system tables, from the package's own scripts: what mariadb-install-db does, without the programs that it needs. */
async function bootstrap(binary: string, common: readonly string[]): Promise<void> {
  const share = ["mysql", "mariadb"].map((name) => join(baseOf(binary), "share", name));
  const script = async (name: string): Promise<string> => {
    const files = share.flatMap((folder) =>
      ["mysql", "mariadb"].map((prefix) => join(folder, `${prefix}_${name}.sql`)),
    );
    const file = files.find(existsSync);
    if (file === undefined) throw new Error(`mariadbd came without ${name}.sql: it is none of ${files.join(", ")}`);
    return readFile(file, "utf8");
  };
  const sql = [
    "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL;\nSET @skip_auth_anonymous=1;",
    await script("system_tables"),
    await script("performance_tables"),
    await script("system_tables_data"),
  ].join("\n");
  const child = spawn(binary, [...common, "--bootstrap", "--innodb-flush-log-at-trx-commit=0"], {
    stdio: ["pipe", "ignore", "pipe"],
    timeout: 60_000,
  });
  let said = "";
  child.stderr.on("data", (chunk: Buffer) => (said = (said + chunk.toString()).slice(-16_384)));
  child.stdin.on("error", () => {}); // its end tells more
  child.stdin.end(sql);
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  if (code !== 0) throw new Error(`mariadbd --bootstrap ended with ${code}; it said:\n${said}`);
}
