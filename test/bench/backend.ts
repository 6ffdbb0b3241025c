// The instant backend of the bench: reads the request, answers a few bytes, counts. Nothing slower may stand behind the ratios.

import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

const answer = Buffer.from('{"ok":true}');
const fields = ["Content-Type", "application/json", "Content-Length", String(answer.length)];
let unsafe = 0;
let safe = 0;

const server = createServer({ keepAliveTimeout: 120_000 }, (request, response) => {
  if (request.method === "GET") safe += 1;
  else unsafe += 1;
  request.resume();
  request.once("end", () => {
    response.writeHead(200, fields);
    response.end(answer);
  });
});
process.on("message", () => {
  process.send?.({ safe, unsafe });
});
process.on("disconnect", () => process.exit(0));
server.listen(0, "127.0.0.1", 4096, () => {
  process.send?.({ port: (server.address() as AddressInfo).port });
});
