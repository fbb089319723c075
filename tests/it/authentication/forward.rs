//! Endpoint of an application that decides: sessions by cookie, cache, bounds and failures.

mod cache;
mod faults;
mod sessions;

use serde_json::{Value, json};
use testkit::endpoint::{Call, Endpoint, Reply};
use testkit::http1::{self, Answer};

use super::Fixture;

/// Endpoint of an application, and a sidecar with the provider `session` that asks it.
struct App {
    fixture: Fixture,
    endpoint: Endpoint,
}

impl App {
    /// Starts with an endpoint that answers by this function. `settings` are further keys of
    /// `forward`, each followed by a comma.
    async fn start(
        settings: &str,
        decide: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let endpoint = Endpoint::start(decide).await;
        let fixture = Fixture::with(&text(&endpoint, settings), "").await;
        Self { fixture, endpoint }
    }

    async fn head(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let url = self.fixture.sidestream.url(path);
        http1::request("HEAD", &url, headers).await.unwrap()
    }

    /// Returns the status of a request with a session cookie.
    async fn status(&self, session: &str) -> u16 {
        let cookie = format!("session={session}");
        self.head("/events/a", &[("Cookie", &cookie)]).await.status
    }

    async fn check(&self) -> Value {
        let health = self.fixture.sidestream.admin_json("/health").await;
        health["checks"]["authentication:session"].clone()
    }

    /// Returns the number of requests that were decided with this result.
    async fn count(&self, result: &str) -> f64 {
        let labels = [("provider", "session"), ("result", result)];
        let name = "sidestream_authentication_forward_requests_total";
        self.fixture.sidestream.metric(name, &labels).await
    }
}

/// Provider that asks the endpoint, and routes: `/events/*` asks it alone, `/both` also accepts
/// tokens.
fn text(endpoint: &Endpoint, settings: &str) -> String {
    format!(
        "    - name: session
      forward: {{ {settings} url: \"{}\" }}
trusted_proxies: [127.0.0.1]
routes:
  - path: /events/{{name}}
    authenticate: [session]
    sources: [{{ stream: ORDERS, subjects: [\"orders.{{claim.sub}}.>\"] }}]
  - path: /both
    authenticate: [session, idp]
    sources: [{{ stream: ORDERS, subjects: [\"orders.{{claim.sub}}.>\"] }}]
",
        endpoint.url()
    )
}

/// Sessions of the application: the name after `session=` is the user.
fn sessions(call: &Call) -> Reply {
    let cookies = call.all("cookie").join("; ");
    let session = cookies
        .split("; ")
        .find_map(|pair| pair.strip_prefix("session="));
    match session {
        None | Some("expired") => {
            Reply::status(401).header("www-authenticate", "Session realm=\"shop\"")
        }
        Some("blocked") => Reply::status(403),
        Some(user) => Reply::json(json!({ "sub": user }).to_string()),
    }
}
