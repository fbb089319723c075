//! Choice of the version, and the fields of the response that name it and its end.

use serde_json::Value;
use testkit::http1;
use testkit::sse::SseClient;

use super::Fixture;

const SSE: &str = "text/event-stream";

#[tokio::test]
async fn query_and_accept_choose_the_version_and_the_response_names_it() {
    let fixture = Fixture::start().await;
    for (path, accept, version) in [
        ("/orders", SSE, "2"),
        ("/orders", "*/*", "2"),
        ("/orders?version=1", SSE, "1"),
        ("/orders?version=2", SSE, "2"),
        ("/orders", "text/event-stream; version=1", "1"),
        ("/orders", "text/event-stream;version=\"1\";q=0.5", "1"),
        ("/orders?version=2", "text/event-stream;version=1", "2"),
        ("/orders", "application/x-ndjson;version=1", "1"),
        (
            "/orders",
            "text/event-stream;version=9, text/event-stream;version=1",
            "1",
        ),
    ] {
        let url = fixture.sidestream.url(path);
        let client = SseClient::bare(url)
            .header("Accept", accept)
            .connect()
            .await;
        assert_eq!(client.status(), 200, "{path} {accept}");
        assert_eq!(
            client.header("sidestream-version").as_deref(),
            Some(version)
        );
        assert_eq!(client.header("vary").as_deref(), Some("accept"));
        let media_type = accept.split(';').next().filter(|range| *range != "*/*");
        assert_eq!(
            client.header("content-type").as_deref(),
            Some(media_type.unwrap_or(SSE)),
            "it has no parameter"
        );
        let ends = ["deprecation", "sunset", "link"].map(|name| client.header(name));
        let expected = [
            "@1793491200",
            "Fri, 01 Mar 2999 12:00:00 GMT",
            "<https://example.com/v2?a=b>; rel=\"deprecation\"",
        ];
        let expected = expected.map(|value| (version == "1").then(|| value.to_owned()));
        assert_eq!(ends, expected, "{path} {accept}");
    }
    let plain = fixture.sse("/plain?version=1").await;
    assert_eq!(
        (plain.status(), plain.header("sidestream-version")),
        (200, None)
    );
}

#[tokio::test]
async fn version_that_is_not_supported_is_406_and_after_its_sunset_410() {
    let fixture = Fixture::start().await;
    for (path, status, code, message) in [
        (
            "/orders?version=3",
            406,
            "version_not_supported",
            "version 1 and 2",
        ),
        (
            "/orders?version=v1",
            406,
            "version_not_supported",
            "version 1 and 2",
        ),
        (
            "/orders?version=",
            406,
            "version_not_supported",
            "version 1 and 2",
        ),
        (
            "/gone?version=1",
            410,
            "version_gone",
            "version 1 ended on Mon, 01 Jun 2020 00:00:00 GMT; see https://example.com/v3",
        ),
    ] {
        let url = fixture.sidestream.url(path);
        for agent in ["curl", "Mozilla/5.0"] {
            let headers = [("Accept", SSE), ("User-Agent", agent)];
            let answer = http1::request("GET", &url, &headers).await.unwrap();
            assert_eq!(answer.status, status, "{path}");
            let error: Value = answer.json();
            assert_eq!(error["error"]["code"], code);
            let found = error["error"]["message"].as_str().unwrap();
            assert!(found.contains(message), "{found}");
        }
    }
    let refused = [("code", "version_gone")];
    let name = "sidestream_refusals_total";
    assert_eq!(fixture.sidestream.metric(name, &refused).await, 2.0);
}

#[tokio::test]
async fn pages_of_other_origins_may_read_the_version_and_head_has_it() {
    let fixture = Fixture::start().await;
    let url = fixture.sidestream.url("/gone?version=2");
    let headers = [("Origin", "https://app.example")];
    let answer = http1::request("HEAD", &url, &headers).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("sidestream-version").as_deref(), Some("2"));
    assert_eq!(answer.header("deprecation").as_deref(), Some("@1577836800"));
    assert_eq!(answer.header("sunset"), None);
    assert_eq!(
        answer.header("access-control-expose-headers").as_deref(),
        Some("sidestream-version, deprecation, sunset, link")
    );
}
