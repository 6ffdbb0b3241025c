// Why TLS with a NATS server does not come about. The driver listens for nothing between the handshake and the server's first word: with TLS 1.3 a
// server says exactly there that it wants a certificate, and the driver reports a timeout.

import { connect as connectTcp, isIP } from "node:net";
import { connect as connectTls } from "node:tls";
import { partsOf, tlsVersionMin } from "./certificates.ts";
import { whenUsable } from "./dial.ts";
import type { Socket } from "node:net";
import type { TlsPaths } from "./certificates.ts";

const withinMs = 2_000;
const helloBytesMax = 64 * 1024;

/** The error that a handshake of our own ends with; null: it ends well, or the server is not there, or speaks no TLS. */
export async function tryHandshake(server: string, files: TlsPaths): Promise<Error | null> {
  const { hostname, port } = new URL(server.includes("://") ? server : `nats://${server}`);
  const host = hostname.replace(/^\[|\]$/g, "");
  const parts = await partsOf(files);
  const plain = connectTcp({ host, port: Number(port) || 4222 });
  let secured: Socket | null = null;
  try {
    if (!(await saysHello(plain))) return null;
    return await new Promise((resolve) => {
      // An address is checked by itself: over a socket of ours Node does not know it.
      const socket = connectTls({
        socket: plain,
        host,
        ...(isIP(host) === 0 ? { servername: host } : null),
        ...parts,
        minVersion: tlsVersionMin,
      });
      secured = socket;
      socket.setTimeout(withinMs, () => resolve(null));
      socket.on("error", resolve);
      socket.once("close", () => resolve(null));
      whenUsable(socket, () => resolve(null));
    });
  } finally {
    (secured as Socket | null)?.destroy();
    plain.destroy();
  }
}

/** Whether it sent its INFO line. */
function saysHello(socket: Socket): Promise<boolean> {
  return new Promise((resolve) => {
    let text = "";
    const onData = (bytes: Buffer): void => {
      text += bytes.toString("latin1");
      if (!text.includes("\r\n") && text.length < helloBytesMax) return;
      socket.pause();
      socket.off("data", onData);
      resolve(text.startsWith("INFO "));
    };
    socket.setTimeout(withinMs, () => resolve(false));
    socket.on("error", () => resolve(false));
    socket.once("close", () => resolve(false));
    socket.on("data", onData);
  });
}
