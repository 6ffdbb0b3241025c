// nginx with `mirror` to three backends: what the bare fan-out must beat, else its ratios are void.

import { spawn, spawnSync } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Agent, request } from "undici";
import { createFolder, endWithUs, removeFolder } from "../helpers/folder.ts";
import { freePort } from "../helpers/servers.ts";
import { waitFor } from "../helpers/wait.ts";

export interface Mirror {
  readonly url: string;
  /** Master and workers. */
  readonly pids: readonly number[];
  close(): Promise<void>;
}

/** Where nginx is, or null. */
export function findNginx(): string | null {
  for (const path of ["nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"]) {
    if (spawnSync(path, ["-v"]).status === 0) return path;
  }
  return null;
}

/** `tuned`: keep-alive to the backends, which the manual's example lacks (it opens a connection for each request). */
export async function startMirror(
  nginx: string,
  backends: readonly string[],
  options: { readonly tuned: boolean; readonly workers: number },
): Promise<Mirror> {
  const folder = createFolder("nginx");
  const port = await freePort();
  await writeFile(join(folder, "nginx.conf"), configuration(folder, port, backends, options));
  const child = spawn(nginx, ["-p", folder, "-c", join(folder, "nginx.conf"), "-g", "daemon off;"], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  const url = `http://127.0.0.1:${port}`;
  if (child.pid !== undefined) child.once("exit", endWithUs(child.pid));
  const agent = new Agent();
  await waitFor(async () => (await request(url, { dispatcher: agent })).body.dump().then(() => true), {
    what: "nginx",
  });
  await agent.close();
  const master = child.pid ?? 0;
  const children = await readFile(`/proc/${master}/task/${master}/children`, "latin1");
  return {
    url,
    pids: [master, ...children.trim().split(" ").map(Number)],
    async close() {
      const ended = new Promise((resolve) => child.once("exit", resolve));
      child.kill("SIGTERM");
      await ended;
      removeFolder(folder);
    },
  };
}

function configuration(
  folder: string,
  port: number,
  backends: readonly string[],
  options: { readonly tuned: boolean; readonly workers: number },
): string {
  const keepAlive = options.tuned ? 'proxy_http_version 1.1; proxy_set_header Connection "";' : "";
  const upstreams = backends.map(
    (url, i) =>
      `upstream b${i} { server ${new URL(url).host}; ${options.tuned ? "keepalive 512; keepalive_requests 100000000; keepalive_timeout 60s;" : ""} }`,
  );
  const mirrors = backends.slice(1).map((_, i) => `mirror /m${i + 1};`);
  const inner = backends
    .slice(1)
    .map((_, i) => `location = /m${i + 1} { internal; proxy_pass http://b${i + 1}$request_uri; ${keepAlive} }`);
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(
    (name) => `${name}_temp_path ${folder}/${name};`,
  );
  return `
${process.getuid?.() === 0 ? "user root;" : ""}
worker_processes ${options.workers};
pid ${folder}/nginx.pid;
error_log ${folder}/error.log crit;
events { worker_connections 8192; }
http {
  access_log off;
  ${temporary.join(" ")}
  keepalive_timeout 120s;
  keepalive_requests 100000000;
  client_body_buffer_size 64k;
  ${upstreams.join("\n  ")}
  server {
    listen 127.0.0.1:${port} backlog=4096;
    location / { ${mirrors.join(" ")} mirror_request_body on; proxy_pass http://b0; ${keepAlive} }
    ${inner.join("\n    ")}
  }
}
`;
}
