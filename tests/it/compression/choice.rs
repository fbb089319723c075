//! Choice of the content coding by `Accept-Encoding`.

use testkit::http1::request;

use super::Fixture;

const ROUTES: &str = r#"
routes:
  - path: /both
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    compression: {}
  - path: /gzip
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
    framings: [sse, long_poll]
    compression: { algorithms: [gzip] }
  - path: /off
    sources: [{ stream: ORDERS, subjects: ["orders.>"] }]
"#;

#[tokio::test]
async fn accept_encoding_chooses_the_coding_of_a_route_that_compresses() {
    let fixture = Fixture::start(ROUTES).await;
    let zstd = Some("zstd");
    let gzip = Some("gzip");
    for (path, accept, expected) in [
        ("/both", Some("gzip, deflate, br, zstd"), zstd),
        ("/both", Some("gzip, zstd;q=0.5"), gzip),
        ("/both", Some("gzip"), gzip),
        ("/both", Some("*"), zstd),
        ("/both", Some("br"), None),
        ("/both", Some("identity"), None),
        ("/both", None, None),
        ("/gzip", Some("gzip, deflate, br, zstd"), gzip),
        ("/gzip", Some("zstd"), None),
        ("/off", Some("gzip, zstd"), None),
    ] {
        let headers: Vec<_> = accept
            .map(|accept| ("Accept-Encoding", accept))
            .into_iter()
            .collect();
        let response = fixture.open(path, &headers).await;
        assert_eq!(response.status, 200, "{path} {accept:?}");
        let coding = response.header("content-encoding");
        assert_eq!(coding.as_deref(), expected, "{path} {accept:?}");
        let vary = (path != "/off").then_some("accept, accept-encoding");
        let vary = vary.or(Some("accept"));
        assert_eq!(
            response.header("vary").as_deref(),
            vary,
            "{path} {accept:?}"
        );
        let url = fixture.sidestream.url(path);
        let head = request("HEAD", &url, &headers).await.unwrap();
        assert_eq!(
            head.header("content-encoding").as_deref(),
            expected,
            "HEAD {path}"
        );
        assert_eq!(head.header("vary").as_deref(), vary, "HEAD {path}");
    }
}

#[tokio::test]
async fn a_long_poll_is_not_compressed() {
    let fixture = Fixture::start(ROUTES).await;
    let headers = [("Accept", "application/json"), ("Accept-Encoding", "gzip")];
    let url = fixture.sidestream.url("/gzip?wait=0s");
    let answer = request("GET", &url, &headers).await.unwrap();
    assert_eq!(
        (answer.status, answer.header("content-encoding")),
        (200, None)
    );
    assert!(answer.json().is_object());
}
