// The admin address and token of the gateway that a configuration file describes, whatever else may be wrong with the file.

import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { FaultsError } from "../../rules/document.ts";
import { formatAddress, isWildcard } from "../config/address.ts";
import { openSources } from "../config/sources.ts";
import { CommandError } from "./terminal.ts";
import type { Terminal } from "./terminal.ts";

/** Null: no file was named, and there is none here. */
export function readAdmin(
  given: string | undefined,
  { env, cwd }: Terminal,
): { readonly url: string; readonly token: string | null; readonly tokenFile: string | null } | null {
  const file = resolve(cwd, given ?? "gateway.yaml");
  if (given === undefined && !existsSync(file)) return null;
  try {
    const sources = openSources({ file, env, flags: {}, cwd });
    const { config } = sources.check();
    if (config === null) throw new CommandError(`${file} has faults.`, "Look at them: gateway check. Or give --admin URL", { exitCode: 2 });
    const { listen, token, tokenFile } = config.admin;
    const host = isWildcard(listen.host) ? "127.0.0.1" : listen.host;
    return {
      url: `http://${formatAddress({ host, port: listen.port })}`,
      token: token ?? null,
      tokenFile: tokenFile === undefined ? null : sources.resolve(["admin", "tokenFile"], tokenFile),
    };
  } catch (error) {
    if (!(error instanceof FaultsError)) throw error;
    const first = error.faults[0];
    const where = first === undefined ? file : `${first.file}${first.line > 0 ? `:${first.line}` : ""}`;
    throw new CommandError(`${where}: ${first?.message ?? "cannot be read"}.`, "Or give the address: --admin URL", { exitCode: 2 });
  }
}
