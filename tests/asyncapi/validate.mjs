// Validates an AsyncAPI document with the official parser, and payloads against the schemas of its messages.
//
// Reads {"document": TEXT, "payloads": [{"channel", "message", "payload"}]} from standard input. Prints one JSON object:
// the content of the document, the diagnostics of the parser, the messages of each channel, and the errors of each payload.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";
import Ajv from "ajv";
import yaml from "js-yaml";

const { document: text, payloads } = JSON.parse(readFileSync(0, "utf8"));
const { document, diagnostics } = await new Parser().parse(text);
const problems = diagnostics.map(({ code, severity, message, path }) => ({ code, severity, message, path }));
const result = { content: yaml.load(text), diagnostics: problems, channels: {}, payloads: [] };
if (document) {
  for (const channel of document.channels()) {
    const messages = channel.messages().all().map((message) => message.id());
    result.channels[channel.id()] = { address: channel.address() ?? null, messages };
  }
  // The parser adds extensions to the schemas; formats are not part of the document.
  const ajv = new Ajv({ strict: false, allErrors: true });
  for (const { channel, message, payload } of payloads) {
    const schema = document.json().channels[channel].messages[message].payload;
    result.payloads.push(ajv.validate(schema, payload) ? [] : ajv.errors.map(({ instancePath, message }) => `${instancePath} ${message}`));
  }
}
console.log(JSON.stringify(result));
