// @connectrpc/connect-web in a page: one report per thing that it sees. Bundled into the page after `CALL`, an object with
// `descriptors` (base64 of a FileDescriptorSet), `baseUrl`, `path` and `metadata`; it resumes after UNAVAILABLE.
import { createFileRegistry, fromBinary, toJson } from "@bufbuild/protobuf";
import { base64Decode } from "@bufbuild/protobuf/wire";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

const { descriptors, baseUrl, path, metadata } = CALL;
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, base64Decode(descriptors)));
const service = registry.getService("sidestream.v1.Events");
const client = createClient(service, createGrpcWebTransport({ baseUrl }));

async function follow() {
  let lastEventId = "";
  let retry = 300;
  for (;;) {
    try {
      for await (const response of client.subscribe({ path, lastEventId }, { headers: metadata })) {
        const { case: content = null, value } = response.content;
        if (content === "close") retry = Number(value.retry);
        lastEventId = response.id || lastEventId;
        const inner = content ? toJson(service.method.subscribe.output, response)[content] : {};
        report({ kind: "message", content, id: response.id, ...inner });
      }
      return report({ kind: "status", code: 0 });
    } catch (error) {
      const { code, rawMessage, metadata } = ConnectError.from(error);
      report({ kind: "status", code, message: rawMessage, trailers: Object.fromEntries(metadata) });
      if (code !== Code.Unavailable) return;
    }
    await new Promise((wake) => setTimeout(wake, retry));
  }
}
follow();
