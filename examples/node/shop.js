// Shop in Node with Express: a login, a page, and orders that appear live. See ../README.md.
import { randomBytes, randomUUID } from "node:crypto";
import { fileURLToPath } from "node:url";

import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { connect } from "@nats-io/transport-node";
import cookieParser from "cookie-parser";
import express from "express";

// A toy. A real shop has a table of users with hashed passwords, and limits attempts.
const passwords = new Map([["alice", "wonderland"], ["bob", "builder"]]);
const page = fileURLToPath(new URL("../shop.html", import.meta.url));
const lifetime = 8 * 3600; // seconds of a session
const cookie = { httpOnly: true, sameSite: "lax", signed: true, maxAge: lifetime * 1000 }; // and `secure: true` with TLS
// All pods of a shop need the same secret. Without one, sessions end with the process.
const secret = process.env.SESSION_SECRET || randomBytes(32).toString("hex");

const nats = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
await (await jetstreamManager(nats)).streams.add({ name: "ORDERS", subjects: ["orders.>"] });
const orders = jetstream(nats);

const now = () => Math.floor(Date.now() / 1000);

// The session is the signed cookie: any pod can read it, and no pod stores it.
function session(request) {
  const { session } = request.signedCookies;
  return session?.expires > now() ? session : null;
}

const app = express();
app.use(cookieParser(secret), express.urlencoded());

app.get("/", (request, response) => response.sendFile(page));

app.get("/me", (request, response) => {
  response.set("Cache-Control", "no-store").json({ user: session(request)?.user ?? null });
});

app.post("/login", (request, response) => {
  const { user, password } = request.body ?? {};
  if (!password || passwords.get(user) !== password) return response.status(401).send("Wrong name or password.");
  const session = { user, id: `${user}.${randomUUID()}`, expires: now() + lifetime };
  response.cookie("session", session, cookie).redirect(303, "/");
});

app.post("/logout", async (request, response) => {
  const current = session(request);
  if (current) {
    // Sidestream ends the event streams of this session at once, on every pod, and rejects a copy of its cookie.
    const revocations = await new Kvm(nats).open("revocations");
    const key = `client.${Buffer.from(current.id).toString("base64url")}`;
    await revocations.put(key, JSON.stringify({ at: now(), until: current.expires }));
  }
  response.clearCookie("session", cookie).redirect(303, "/");
});

app.post("/orders", async (request, response) => {
  const current = session(request);
  if (!current) return response.sendStatus(401);
  const item = request.body?.item;
  if (typeof item !== "string" || !item || item.length > 100) return response.status(400).send("Which item?");
  const order = { id: randomUUID(), item };
  await orders.publish(`orders.${current.user}.${order.id}`, JSON.stringify(order));
  response.status(201).json(order);
});

app.get("/orders/live", (request, response) => {
  const current = session(request);
  if (!current) return response.sendStatus(401);
  response.set("Sidestream-Subscribe", `orders.${current.user}.>`);
  response.set("Sidestream-Client", current.id);
  response.set("Sidestream-Expires", String(current.expires));
  response.end();
});

const server = app.listen(process.env.PORT ?? 3000, "127.0.0.1");
process.once("SIGTERM", () => server.close(() => nats.drain())); // requests in progress are completed
