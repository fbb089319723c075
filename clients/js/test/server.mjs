// Server of the tests: answers in the order of the requests.

import http from "node:http";

/** Serves each request with the next of `answers`, a function of (request, response); keeps the requests. */
export async function serve(t, answers) {
  const requests = [];
  const server = http.createServer((request, response) => {
    requests.push({ url: request.url, headers: request.headers, at: Date.now() });
    const respond = answers[requests.length - 1] ?? answer(500);
    respond(request, response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${server.address().port}/events`, requests };
}

/** An event stream of these pieces, each written on its own, that ends by itself unless `open`. */
export const stream = (pieces, { open = false, broken = false } = {}) => async (request, response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  for (const piece of pieces) {
    response.write(piece);
    await new Promise(setImmediate);
  }
  if (broken) response.destroy();
  else if (!open) response.end();
};

/** A complete answer. */
export const answer = (status, headers = {}, body = "") => (request, response) => {
  response.writeHead(status, headers);
  response.end(body);
};
