//! OpenID Connect issuer in Node, by the npm package `oidc-provider`: real discovery, keys and
//! tokens.
//!
//! It makes valid tokens only; [`crate::issuer`] makes the others. It can rotate its keys, pause,
//! stop and start again with the keys that it had.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::http1::{self, Response};
use crate::nats::free_port;
use crate::process::Process;
use crate::repository::root;
use crate::transport::Connector;
use crate::wait::{DEADLINE, RECOVERY, eventually, within};

/// Issuer. Dropping it kills the process.
pub struct OidcIssuer {
    process: Option<Process>,
    port: u16,
    path: String,
    folder: TempDir,
}

impl OidcIssuer {
    /// Starts an issuer.
    pub async fn start() -> Self {
        Self::start_at("").await
    }

    /// Starts an issuer whose URL has a path, such as `/realms/shop` or `/`.
    pub async fn start_at(path: &str) -> Self {
        let mut issuer = Self::down(path);
        issuer.run().await;
        issuer
    }

    /// Returns an issuer that does not run yet.
    pub fn down(path: &str) -> Self {
        Self {
            process: None,
            port: free_port(),
            path: path.to_owned(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// URL, as in the claim `iss`.
    pub fn url(&self) -> String {
        format!("{}{}", self.origin(), self.path)
    }

    /// Starts the process, and returns when the issuer answers.
    pub async fn run(&mut self) {
        let folder = root().join("tests/issuer");
        assert!(
            folder.join("node_modules").exists(),
            "the npm package of the issuer is not installed: run `make tools`"
        );
        let mut command = Command::new("node");
        command
            .arg(folder.join("issuer.mjs"))
            .args([&self.port.to_string(), &self.path])
            .arg(self.folder.path().join("keys"))
            .env_remove("NODE_OPTIONS");
        let process = self.process.insert(Process::spawn("issuer", &mut command));
        eventually(RECOVERY, "the issuer runs", || {
            std::future::ready(!process.lines().is_empty())
        })
        .await;
    }

    /// Ends the process: connections are rejected.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Stops the process: connections are accepted, and nothing is answered.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
    }

    /// Continues after [`Self::pause`].
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Signs with new keys from now on. The others are still published.
    pub async fn rotate(&self) {
        self.post("/rotate").await;
    }

    /// Signs with new keys from now on, and publishes no other ones.
    pub async fn rotate_and_drop(&self) {
        self.post("/rotate?drop").await;
    }

    /// Requests a token for the audience `sidestream` that lives for some seconds. The claims
    /// replace those of the token.
    pub async fn token(&self, seconds: u64, claims: &Value) -> String {
        let claims = escaped(&claims.to_string());
        let resource = format!("&resource=urn:sidestream&ttl={seconds}&claims={claims}");
        self.request_token(&resource).await
    }

    /// Requests a token that is signed by an algorithm.
    pub async fn token_by(&self, algorithm: &str) -> String {
        let resource = format!("&resource=urn:sidestream&alg={algorithm}");
        self.request_token(&resource).await
    }

    /// Requests a token for no audience, which is not a JWT.
    pub async fn opaque_token(&self) -> String {
        self.request_token("").await
    }

    async fn request_token(&self, more: &str) -> String {
        let form =
            format!("grant_type=client_credentials&client_id=service&client_secret=secret{more}");
        let url = format!("{}/token", self.url().trim_end_matches('/'));
        let url = url.parse().unwrap();
        let length = form.len().to_string();
        let headers = [
            ("Connection", "close"),
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Length", length.as_str()),
        ];
        let request = http1::head("POST", &url, 1, &headers) + &form;
        let exchange = async {
            let transport = Connector::default().connect(&url).await.unwrap();
            let response = Response::exchange(transport, request.as_bytes(), false);
            response.await.unwrap().body().await.0
        };
        let body = within(DEADLINE, "the issuer makes a token", exchange).await;
        let answer: Value = serde_json::from_slice(&body).unwrap();
        let token = answer["access_token"].as_str();
        token.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// Command for the shell that prints a token which lives for some seconds.
    pub fn token_command(&self, seconds: u64) -> String {
        let script = root().join("tests/issuer/token.mjs");
        format!("node '{}' '{}' {seconds}", script.display(), self.url())
    }

    async fn post(&self, path: &str) {
        let url = format!("{}{path}", self.origin());
        let answer = http1::request("POST", &url, &[]).await.unwrap();
        assert_eq!(answer.status, 200);
    }

    fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn signal(&mut self, signal: Signal) {
        let process = self.process.as_mut();
        process.expect("the issuer runs").signal(signal);
    }
}

/// Percent-encodes a value of a form.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
