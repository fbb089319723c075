// An OpenID Connect issuer: node issuer.mjs PORT PATH KEYS. It prints its URL as one JSON line.
//
// PATH is that of the issuer: "", "/" or "/realms/shop". KEYS is the file of its keys, which is made if it is missing, so
// that a restarted issuer has them again.
//
// The npm package `oidc-provider` does the work: discovery, JWKS, and access tokens as JWT by the grant
// `client_credentials`. The form of a token request has three more fields: `ttl` (seconds), `alg` and `claims` (JSON: claims
// that replace those of the token). `POST /rotate` adds keys that sign from then on; with `?drop` the others are gone.
import { randomUUID } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { exportJWK, generateKeyPair } from "jose";

// The package warns on stdout about features that only production needs.
console.info = console.warn = () => {};
const { Provider } = await import("oidc-provider");

const [port, path, file] = process.argv.slice(2);
const prefix = path.replace(/\/$/, "");
const issuer = `http://127.0.0.1:${port}${path}`;

/** A key of each type. They name no algorithm: the one of RSA serves six. */
async function newKeys() {
  const key = async (alg) => {
    const { privateKey } = await generateKeyPair(alg, { extractable: true });
    return { ...(await exportJWK(privateKey)), kid: randomUUID(), use: "sig" };
  };
  return Promise.all(["RS256", "ES256", "ES384", "EdDSA"].map(key));
}

/** Saves the keys and returns a provider that signs with the first of a type. */
function provider(keys) {
  writeFileSync(file, JSON.stringify(keys));
  return new Provider(issuer, {
    jwks: { keys },
    clients: [
      {
        client_id: "service",
        client_secret: "secret",
        grant_types: ["client_credentials"],
        token_endpoint_auth_method: "client_secret_post",
        redirect_uris: [],
        response_types: [],
      },
    ],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx) => ({
          scope: "",
          audience: "sidestream",
          accessTokenFormat: "jwt",
          accessTokenTTL: Number(ctx.oidc.body.ttl ?? 300),
          jwt: { sign: { alg: ctx.oidc.body.alg ?? "RS256" } },
        }),
      },
    },
    formats: {
      customizers: {
        jwt: (ctx, _token, jwt) => {
          Object.assign(jwt.payload, JSON.parse(ctx.oidc.body.claims ?? "{}"));
        },
      },
    },
  });
}

let keys = existsSync(file) ? JSON.parse(readFileSync(file)) : await newKeys();
let answer = provider(keys).callback();

async function rotate(dropOthers) {
  keys = [...(await newKeys()), ...(dropOthers ? [] : keys)];
  answer = provider(keys).callback();
}

const server = createServer(async (request, response) => {
  if (request.method === "POST" && request.url.startsWith("/rotate")) {
    await rotate(request.url.endsWith("?drop"));
    response.end();
    return;
  }
  if (!request.url.startsWith(`${prefix}/`)) {
    response.writeHead(404).end();
    return;
  }
  // The package finds the prefix as the difference between the two, as in an application that mounts it.
  request.originalUrl = request.url;
  request.url = request.url.slice(prefix.length);
  answer(request, response);
});

server.listen(Number(port), "127.0.0.1", () => console.log(JSON.stringify({ issuer })));
