// A connection to a backend by its URL: TCP, or TLS checked by the backend's own name, whatever a request's Host says.

import { connect as connectTcp, isIP } from "node:net";
import { connect as connectTls, createSecureContext, TLSSocket } from "node:tls";
import { tlsVersionMin } from "./certificates.ts";
import type { Socket } from "node:net";
import type { SecureContext } from "node:tls";

/** What is shown and believed, asked for each connection; absent: as the system does, and nothing is shown. */
export type TlsContext = () => SecureContext;

let systems: SecureContext | null = null;
const systemContext = (): SecureContext => (systems ??= createSecureContext({ minVersion: tlsVersionMin }));

/** Still on its way; see `whenUsable`. */
export function dial(url: URL, tls: TlsContext = systemContext): Socket {
  const host = url.hostname.replace(/^\[|\]$/g, "");
  if (url.protocol !== "https:") return connectTcp({ host, port: Number(url.port) || 80 });
  return connectTls({
    host,
    port: Number(url.port) || 443,
    ...(isIP(host) === 0 ? { servername: host } : null),
    secureContext: tls(),
    ALPNProtocols: ["http/1.1"],
    // Said, because Node's default can be taken back by the environment.
    rejectUnauthorized: true,
  });
}

/** Added to the time that a handshake took, for a server that has nothing to say after it (few send no tickets). */
const quietMarginMs = 50;

/**
 * Calls once when something can be sent; errors and ends are the socket's own events. With TLS 1.3 a client has finished before the server has looked
 * at its certificate: a request sent then would be lost with the connection, and nobody would know whether it was executed. So the server's next
 * words are waited for: its session tickets, or as long as the handshake took.
 */
export function whenUsable(socket: Socket, then: () => void): void {
  if (!(socket instanceof TLSSocket)) {
    socket.once("connect", then);
    return;
  }
  const startedMs = performance.now();
  socket.once("secureConnect", () => {
    if (socket.getProtocol() !== "TLSv1.3") {
      then();
      return;
    }
    let isOver = false;
    const over = (isUsable: boolean): void => {
      if (isOver) return;
      isOver = true;
      clearTimeout(timer);
      if (isUsable && !socket.destroyed && socket.readable) then();
    };
    // What has come by now is read before anything is sent: servers that judge a certificate themselves (Node's) close right behind their tickets.
    const soon = (): void => void setImmediate(() => setImmediate(() => over(true)));
    const timer = setTimeout(soon, performance.now() - startedMs + quietMarginMs);
    socket.once("session", soon);
    socket.once("close", () => over(false));
  });
}
