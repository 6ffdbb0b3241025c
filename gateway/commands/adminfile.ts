// The admin address and token of the gateway that a configuration file describes, whatever else may be wrong with the file.

import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { expandVariables, FaultsError } from "../../rules/document.ts";
import { formatAddress, isWildcard } from "../config/address.ts";
import { configSchema } from "../config/schema.ts";
import { openSources } from "../config/sources.ts";
import { CommandError } from "./terminal.ts";
import type { ParsedConfig } from "../config/schema.ts";
import type { Sources } from "../config/sources.ts";
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
    const { listen, token, tokenFile } = adminOf(sources, file);
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
    throw new CommandError(`${where}: ${first?.message ?? "cannot be read"}.`, "Or give the address: --admin URL", {
      exitCode: 2,
    });
  }
}

/** Only this part of the file matters here: variables of others may not be set where an operator sits. */
function adminOf(sources: Sources, file: string): ParsedConfig["admin"] {
  const faults: string[] = [];
  const expanded = expandVariables(sources.valueAt(["admin"]) ?? {}, sources.env, {
    onFault: (path, message) => void faults.push(`admin.${path.join(".")}: ${message}`),
  });
  const parsed = configSchema.shape.admin.safeParse(expanded);
  if (parsed.success && faults.length === 0) return parsed.data;
  const [first = "admin has faults"] = faults;
  throw new CommandError(`${file}: ${first}.`, "Look at all of them: gateway check. Or give --admin URL", {
    exitCode: 2,
  });
}
