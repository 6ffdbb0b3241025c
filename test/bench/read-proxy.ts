// The reads' yardstick: plain @fastify/http-proxy in front of one backend, as its README starts it.

import httpProxy from "@fastify/http-proxy";
import { fastify } from "fastify";

const upstream = process.argv[2] ?? "";
const app = fastify({ keepAliveTimeout: 120_000 });
await app.register(httpProxy, { upstream });
const address = await app.listen({ port: 0, host: "127.0.0.1" });
process.on("disconnect", () => process.exit(0));
process.send?.({ port: Number(new URL(address).port) });
