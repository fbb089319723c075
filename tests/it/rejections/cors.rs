//! CORS headers of event streams, rejections and preflights.

use super::fixture::Fixture;
use testkit::sse::SseClient;

const ROUTES: &str = "
  - path: /listed
    sources: [{ subjects: [\"a.>\"] }]
    cors: { origins: [\"https://app.example\", \"http://localhost:3000\"], credentials: true }
  - path: /open
    sources: [{ subjects: [\"a.>\"] }]
    cors: { origins: [\"*\"] }
  - path: /listed/{id}
    sources: [{ subjects: [\"a.{id}\"] }]
    cors: { origins: [\"https://app.example\"] }
  - path: /tenants/{id}
    sources: [{ subjects: [\"{header.X-Tenant}.{id}\", \"{header.x-region}.{query.a}\"] }]
    client: \"{header.x-tenant}/{header.Authorization}/{header.x-user_id}\"
    cors: { origins: [\"https://app.example\"] }";

/// CORS headers: allowed origin, credentials, and `Vary: Origin`.
type Cors = (Option<String>, bool, bool);

async fn ask(fixture: &Fixture, target: &str, origin: &str) -> (u16, Cors, SseClient) {
    let mut builder = SseClient::get(fixture.sidestream.url(target)).browser();
    if !origin.is_empty() {
        builder = builder.header("Origin", origin);
    }
    let client = builder.connect().await;
    let vary = client
        .header("vary")
        .is_some_and(|vary| vary.to_ascii_lowercase().contains("origin"));
    let credentials = client.header("access-control-allow-credentials").as_deref() == Some("true");
    let cors = (
        client.header("access-control-allow-origin"),
        credentials,
        vary,
    );
    (client.status(), cors, client)
}

#[tokio::test]
async fn an_allowed_origin_can_read_event_streams_and_rejections() {
    let fixture = Fixture::start(ROUTES).await;
    let app = "https://app.example";
    let allowed = |origin: &str, credentials| (Some(origin.to_owned()), credentials, true);
    for (target, origin, status, cors) in [
        ("/listed", app, 200, allowed(app, true)),
        (
            "/listed",
            "http://localhost:3000",
            200,
            allowed("http://localhost:3000", true),
        ),
        (
            "/listed",
            "https://app.example.evil",
            200,
            (None, false, true),
        ),
        ("/listed", "null", 200, (None, false, true)),
        ("/listed", "", 200, (None, false, true)),
        (
            "/open",
            "https://any.example",
            200,
            (Some("*".to_owned()), false, false),
        ),
        ("/witness", app, 200, (None, false, false)),
        ("/listed/a.b", app, 400, allowed(app, false)),
        (
            "/listed/a.b",
            "https://evil.example",
            400,
            (None, false, true),
        ),
        ("/nowhere", app, 404, (None, false, false)),
    ] {
        let (got, seen, client) = ask(&fixture, target, origin).await;
        assert_eq!((got, seen), (status, cors), "{target} from {origin:?}");
        drop(client);
    }
    fixture.finish().await;
}

#[tokio::test]
async fn a_preflight_allows_what_fetch_clients_send() {
    let fixture = Fixture::start(ROUTES).await;
    let preflight = |target: &str, origin: &str| {
        let url = fixture.sidestream.url(target);
        let origin = origin.to_owned();
        async move {
            let headers = [
                ("Origin", origin.as_str()),
                ("Access-Control-Request-Method", "GET"),
                ("Access-Control-Request-Headers", "last-event-id"),
            ];
            testkit::http1::request("OPTIONS", &url, &headers)
                .await
                .unwrap()
        }
    };
    for (target, origin) in [
        ("/listed", "https://app.example"),
        ("/open", "https://any.example"),
    ] {
        let answer = preflight(target, origin).await;
        assert_eq!(answer.status, 204, "{target}");
        let header = |name: &str| answer.header(name).unwrap_or_default().to_ascii_lowercase();
        assert!(header("access-control-allow-methods").contains("get"));
        assert!(header("access-control-allow-headers").contains("last-event-id"));
        assert!(header("access-control-max-age").parse::<u64>().unwrap() > 0);
    }
    let answer = preflight("/listed", "https://evil.example").await;
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(answer.header("access-control-allow-methods"), None);
    let usual = "last-event-id, authorization, cache-control, content-type, accept";
    for (target, read) in [
        ("/listed", ""),
        ("/tenants/1", ", x-tenant, x-region, x-user_id"),
    ] {
        let allowed = preflight(target, "https://app.example")
            .await
            .header("access-control-allow-headers");
        assert_eq!(
            allowed,
            Some(format!("{usual}{read}")),
            "{target}: those that the route's templates read, once"
        );
    }
    // A preflight has no query variables, so it needs none.
    assert_eq!(
        preflight("/listed/a.b", "https://app.example").await.status,
        204
    );
    fixture.finish().await;
}
