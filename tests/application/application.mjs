// Application behind a sidecar, with the HTTP server of Node. Prints its address, and then each
// request as a line of JSON.
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { createServer as createHttp2Server } from "node:http2";

const report = (line) => console.log(JSON.stringify(line));

function echo(request, response) {
  const hash = createHash("sha256");
  let bytes = 0;
  request.on("data", (data) => {
    bytes += data.length;
    hash.update(data);
  });
  request.on("end", () => {
    response.setHeader("Content-Type", "application/json");
    response.setHeader("Sidestream-Client", "alice");
    response.setHeader("Set-Cookie", ["a=1", "b=2"]);
    const { method, url, rawHeaders, trailers } = request;
    response.end(JSON.stringify({ method, url, rawHeaders, trailers, bytes, hash: hash.digest("hex") }));
  });
}

function large(request, response) {
  let left = Number(request.url.split("/")[2]);
  const piece = Buffer.alloc(64 * 1024, "a");
  const write = () => {
    while (left > 0) {
      const part = piece.subarray(0, Math.min(left, piece.length));
      left -= part.length;
      if (!response.write(part)) return response.once("drain", write);
    }
    response.end();
  };
  write();
}

// Sets the header fields that its query names. The sidecar may make an event stream of the request.
function subscribe(request, response) {
  const { searchParams } = new URL(request.url, "http://application");
  response.statusCode = Number(searchParams.get("status") ?? 200);
  searchParams.delete("status");
  for (const [name, value] of searchParams) response.appendHeader(name, value);
  response.end("text of the application");
}

// Orders of the user that the cookie names, for a program that asks for an event stream.
function mine(request, response) {
  const user = request.headers.cookie?.split("=")[1];
  const answer = () => {
    response.setHeader("Set-Cookie", `seen=${user}`);
    if (request.headers.accept === "text/event-stream") {
      response.setHeader("Sidestream-Subscribe", `orders.${user}`);
      response.setHeader("Sidestream-Client", user);
    }
    response.end(user);
  };
  setTimeout(answer, Math.random() * 3);
}

// Answers with the header fields of its query, and with text that depends on the request. Other keys:
// `delay` and `pause` (milliseconds before the head, and in the body), `size` (of the body),
// `chunked`, `cut` (of the connection in the body), `own` (a cookie of the user), `unsafe` (status of
// other methods), `304-NAME` (fields of a 304).
const counts = new Map();
function cached(request, response) {
  const query = Object.fromEntries(new URL(request.url, "http://a").searchParams);
  const { delay = 0, pause = 0, size, chunked, cut, own, unsafe, ...fields } = query;
  const { headers, url } = request;
  const count = (counts.get(url) ?? 0) + 1;
  counts.set(url, count);
  const user = headers.cookie ?? headers.authorization ?? "";
  const text = [count, user, headers["accept-language"], headers.host, headers["x-forwarded-host"]].join(" ");
  const body = Buffer.from(size ? "a".repeat(Number(size)) : text);
  const answer = () => {
    if (unsafe && request.method !== "GET") return response.writeHead(Number(unsafe)).end();
    for (const [name, value] of Object.entries(fields)) {
      if (!name.startsWith("304-")) response.setHeader(name, value);
    }
    if (own) response.setHeader("Set-Cookie", user);
    const { "if-none-match": etag, "if-modified-since": since } = headers;
    if ((etag && etag === fields.etag) || (!etag && since && since === fields["last-modified"])) {
      for (const [name, value] of Object.entries(fields)) {
        if (name.startsWith("304-")) response.setHeader(name.slice(4), value);
      }
      return response.writeHead(304).end();
    }
    if (!chunked) response.setHeader("Content-Length", body.length);
    if (!cut && !pause) return response.end(body);
    response.write(body.subarray(0, 1), () => {
      setTimeout(() => (cut ? request.socket.destroy() : response.end(body.subarray(1))), Number(pause));
    });
  };
  setTimeout(answer, Number(delay));
}

const pages = {
  cached,
  echo,
  large,
  subscribe,
  mine,
  status: (request, response) => response.writeHead(Number(request.url.split("/")[2])).end(),
  early: (request, response) => response.writeHead(Number(request.url.split("/")[2] ?? 413)).end("too large"),
  empty: (request, response) => response.writeHead(Number(request.url.split("/")[2]), { "Content-Length": "0" }).end(),
  lookalike: async (_, response) => {
    response.writeHead(200, { "Content-Length": "150" });
    for (let left = 10; left > 0; left--) {
      response.write("HTTP/1.1 431 a\n");
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    response.end();
  },
  silent: () => {},
  endless: (_, response) => {
    const timer = setInterval(() => response.write("piece\n"), 10);
    response.on("close", () => clearInterval(timer));
  },
  later: (_, response) => setTimeout(() => response.end("late\n"), 1000),
  cut: (request, response) => {
    response.writeHead(200, { "Content-Length": "100" });
    response.write("part", () => request.socket.destroy());
  },
  closed: (request) => request.socket.destroy(),
  trailers: (_, response) => {
    response.writeHead(200, { Trailer: "X-Sum" });
    response.write("part");
    response.addTrailers({ "X-Sum": "1" });
    response.end();
  },
};

const isHttp2 = process.argv[4] === "h2c";
const server = (isHttp2 ? createHttp2Server : createServer)((request, response) => {
  const { method, url } = request;
  report({ kind: "request", method, url });
  response.on("close", () => report({ kind: "end", url, complete: response.writableFinished }));
  const page = pages[url.split(/[/?]/)[1]];
  if (page) page(request, response);
  else response.end(`${url}\n`);
});

server.on("upgrade", (request, socket) => {
  report({ kind: "upgrade", url: request.url });
  const accept = createHash("sha1")
    .update(`${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
    .digest("base64");
  socket.write(
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
      `Sec-WebSocket-Accept: ${accept}\r\n\r\n`,
  );
  socket.on("data", (data) => socket.write(data));
  socket.on("end", () => socket.end());
  socket.on("error", () => {});
  socket.on("close", () => report({ kind: "upgrade-end" }));
});

server.keepAliveTimeout = Number(process.argv[3] ?? 5000);
server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
  report({ kind: "listening", port: server.address().port });
});
