// Reads structured CloudEvents, one JSON document a line, from standard input with the SDK. Prints each as the SDK read it.
import { createInterface } from "node:readline";
import { HTTP } from "cloudevents";

for await (const body of createInterface({ input: process.stdin })) {
  const headers = { "content-type": "application/cloudevents+json; charset=utf-8" };
  const event = HTTP.toEvent({ headers, body });
  event.validate();
  const data = ArrayBuffer.isView(event.data) ? { bytes: [...event.data] } : event.data;
  const { id, source, type, specversion, datacontenttype, subject } = event;
  console.log(JSON.stringify({ id, source, type, specversion, datacontenttype, subject, data }));
}
