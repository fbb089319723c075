// The package as npm would publish it.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { buildSync } from "esbuild";

const folder = new URL("../", import.meta.url);
const read = (path) => readFileSync(new URL(path, folder), "utf8");
const manifest = JSON.parse(read("package.json"));
const built = read("dist/index.js");

test("the module is smaller than 5 KB with gzip", () => {
  const bytes = gzipSync(built, { level: 9 }).length;
  assert.ok(bytes < 5000, `${bytes} bytes`);
});

test("the built module is that of the sources", () => {
  const { outputFiles } = buildSync({
    absWorkingDir: folder.pathname,
    entryPoints: ["src/index.ts"],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    write: false,
  });
  assert.equal(built, outputFiles[0].text, "run `npm run build`");
});

test("a program with strict types compiles against the package", () => {
  const options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom", "--types", ""];
  const tsc = ["node_modules/typescript/bin/tsc", "--ignoreConfig", ...options, "test/types.ts"];
  execFileSync(process.execPath, tsc, { cwd: folder, stdio: "pipe" });
});

test("the published files are the module, its types, the readme and the licence", () => {
  const output = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: folder });
  const files = JSON.parse(output).flatMap(({ files }) => files ?? []).map(({ path }) => path);
  const types = files.filter((path) => path.endsWith(".d.ts"));
  assert.ok(types.includes("dist/index.d.ts"));
  const others = files.filter((path) => !types.includes(path)).sort();
  assert.deepEqual(others, ["LICENSE", "README.md", "dist/index.js", "package.json"]);
  assert.deepEqual([manifest.license, manifest.types], ["Apache-2.0", "./dist/index.d.ts"]);
});

test("the version is that of the sidecar", () => {
  const [, version] = /^version = "(.*)"$/m.exec(read("../../Cargo.toml"));
  assert.equal(manifest.version, version);
});
