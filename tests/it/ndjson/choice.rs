//! Choice of the framing by `Accept`, and rejections of clients of the format.

use serde_json::Value;

use super::{Fixture, Via};

const NDJSON: &str = "application/x-ndjson";
const SSE: &str = "text/event-stream";

#[tokio::test]
async fn accept_chooses_the_framing_and_the_route_its_default() {
    let fixture = Fixture::start().await;
    for (path, accept, expected) in [
        ("/orders?user=1", "", SSE),
        ("/orders?user=1", "*/*", SSE),
        ("/orders?user=1", NDJSON, NDJSON),
        (
            "/orders?user=1",
            "application/x-ndjson;q=0.5, text/event-stream;q=0.4",
            NDJSON,
        ),
        (
            "/orders?user=1",
            "application/x-ndjson, text/event-stream",
            SSE,
        ),
        ("/lines", "", NDJSON),
        ("/lines", "*/*", NDJSON),
        ("/lines", "application/x-ndjson, text/event-stream", NDJSON),
        ("/lines", SSE, SSE),
        ("/sse", "", SSE),
        ("/sse", "application/x-ndjson, */*;q=0.1", SSE),
    ] {
        let reader = fixture.accept(path, accept).await;
        assert_eq!(reader.status(), 200);
        assert_eq!(
            reader.header("content-type").as_deref(),
            Some(expected),
            "{path} {accept}"
        );
        let vary = (path != "/sse").then_some("accept");
        assert_eq!(reader.header("vary").as_deref(), vary, "{path}");
    }
}

#[tokio::test]
async fn client_that_accepts_no_framing_of_the_route_gets_their_names() {
    let fixture = Fixture::start().await;
    for (path, accept, names) in [
        (
            "/orders?user=1",
            "application/json",
            "text/event-stream or application/x-ndjson",
        ),
        (
            "/lines",
            "text/html",
            "application/x-ndjson or text/event-stream",
        ),
        ("/sse", NDJSON, "text/event-stream"),
    ] {
        let mut rejected = fixture.accept(path, accept).await;
        assert_eq!(rejected.status(), 406);
        let error: Value = serde_json::from_str(&rejected.body().await).unwrap();
        assert_eq!(error["error"]["code"], "not_acceptable");
        assert_eq!(
            error["error"]["message"],
            format!("the response would be {names}")
        );
    }
}

#[tokio::test]
async fn rejection_is_one_line_of_json_with_its_status() {
    let fixture = Fixture::start().await;
    for via in Via::ALL {
        for (path, id, status, code) in [
            ("/nowhere", "", 404, "not_found"),
            ("/named?last_event_id=000000-1", "", 200, ""),
        ] {
            let mut rejected = fixture.open(via, path, id).await;
            assert_eq!(rejected.status(), status, "{via:?} {path}");
            if status == 200 {
                let (_, gap) = rejected.until_control("gap").await;
                assert_eq!(gap["reason"], "recreated", "the query has the id, too");
                continue;
            }
            assert_eq!(
                rejected.header("content-type").as_deref(),
                Some("application/json")
            );
            let body = rejected.body().await;
            assert_eq!(body.lines().count(), 1);
            let error: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(error["error"]["code"], code);
        }
    }
}
