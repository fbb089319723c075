// The npm package `ws`: node websocket.mjs URL; it reconnects, and resumes from the last id in the query. One JSON line
// per thing that it reports.
import WebSocket from "ws";

const url = process.argv[2];
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
let position = "";

function connect() {
  const target = new URL(url);
  if (position) target.searchParams.set("last_event_id", position);
  const socket = new WebSocket(target, "sidestream.v1");
  let retry = 300;
  socket.on("open", () => say({ kind: "open", protocol: socket.protocol }));
  socket.on("ping", () => say({ kind: "ping" }));
  socket.on("pong", (content) => say({ kind: "pong", content: content.toString() }));
  socket.on("error", (error) => say({ kind: "error", message: error.message }));
  socket.on("message", (text) => {
    const object = JSON.parse(text);
    position = object.id ?? position;
    if (object.control) {
      retry = object.control === "close" ? object.retry : retry;
      if (object.control === "open") socket.ping("are you there?");
      say({ kind: "control", ...object });
    } else {
      say({ kind: "event", data: object.data, id: object.id });
    }
  });
  socket.on("close", (code, reason) => {
    say({ kind: "close", code, reason: reason.toString() });
    setTimeout(connect, retry);
  });
}
connect();
