// @connectrpc/connect-web, gRPC-Web over the fetch of Node: node client.mjs DESCRIPTORS URL PATH [OPTIONS]; one JSON line
// per thing that it reports. DESCRIPTORS is a FileDescriptorSet; OPTIONS as in client.py.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

const [descriptors, baseUrl, path, given] = process.argv.slice(2);
const options = JSON.parse(given ?? "{}");
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const service = registry.getService("sidestream.v1.Events");
const client = createClient(service, createGrpcWebTransport({ baseUrl }));
const schema = service.method.subscribe.output;
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

let lastEventId = options.id ?? "";
let retry = 300;
for (;;) {
  let code = 0;
  let message = "";
  let trailers = {};
  const keep = (headers) => (trailers = Object.fromEntries(headers));
  const call = { headers: options.metadata, timeoutMs: options.timeout && options.timeout * 1000, onTrailer: keep };
  try {
    for await (const response of client.subscribe({ path, lastEventId }, call)) {
      const { case: content = null, value } = response.content;
      if (content === "close") retry = Number(value.retry);
      if (content === "snapshot") lastEventId = "";
      lastEventId = response.id || lastEventId;
      const large = content === "event" && value.data.length > 4096;
      const inner = content ? (large ? {} : toJson(schema, response)[content]) : {};
      const data = large && [value.data.length, createHash("sha256").update(value.data).digest("hex")];
      say({ kind: "message", content, id: response.id, ...inner, ...(large && { data }) });
    }
  } catch (error) {
    const failed = ConnectError.from(error);
    code = failed.code;
    message = failed.rawMessage;
    keep(failed.metadata);
  }
  say({ kind: "status", code, message, trailers });
  if (!options.reconnect || code !== Code.Unavailable) break;
  await new Promise((wake) => setTimeout(wake, retry));
}
