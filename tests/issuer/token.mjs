// Prints an access token of the issuer: node token.mjs ISSUER [SECONDS [CLAIMS]]. `accessToken` is for other scripts.
import { pathToFileURL } from "node:url";

/** Requests a token that lives for some seconds, with some claims (JSON), by the endpoint of the discovery document. */
export async function accessToken(issuer, seconds = "300", claims = "{}") {
  const discovery = await fetch(`${issuer.replace(/\/$/, "")}/.well-known/openid-configuration`);
  const { token_endpoint } = await discovery.json();
  const body = new URLSearchParams({
    grant_type: "client_credentials",
    client_id: "service",
    client_secret: "secret",
    resource: "urn:sidestream",
    ttl: seconds,
    claims,
  });
  const response = await fetch(token_endpoint, { method: "POST", body });
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  return (await response.json()).access_token;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  console.log(await accessToken(...process.argv.slice(2)));
}
