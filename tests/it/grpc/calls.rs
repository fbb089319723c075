//! Calls that are rejected, and calls of pages.

use bytes::Bytes;
use serde_json::Value;

use super::Fixture;
use testkit::grpc::{Call, Form, METHOD, framed, request};
use testkit::http1;
use testkit::nats::{Nats, create_stream, free_port};
use testkit::sidestream::{Sidestream, config};

/// Sends a call and returns status, code and message of its end.
async fn end(call: Call<'_>) -> (String, String, String) {
    let mut response = call.send().await;
    assert_eq!(response.status, 200);
    let (messages, trailers) = response.read_to_end().await;
    assert!(messages.is_empty(), "{messages:?}");
    let text = |name: &str| trailers.get(name).cloned().unwrap_or_default();
    (
        text("grpc-status"),
        text("sidestream-code"),
        text("grpc-message"),
    )
}

#[tokio::test]
async fn rejection_is_a_status_with_its_code() {
    let fixture = Fixture::start().await;
    for form in Form::ALL {
        for (path, status, code) in [
            ("/nowhere", "5", "not_found"),
            ("/default", "12", "not_acceptable"),
            ("/metadata", "3", "bad_variable"),
            ("/orders?last=5", "3", "begin_out_of_range"),
            ("orders", "3", "bad_message"),
            ("", "3", "bad_message"),
        ] {
            let (found_status, found_code, message) = end(fixture.call(form, path, "")).await;
            assert_eq!(
                (&*found_status, &*found_code),
                (status, code),
                "{form:?} {path}: {message}"
            );
            assert!(!message.is_empty());
        }
    }
    let labels = [("code", "not_found")];
    let pod = &fixture.sidestream;
    pod.until_metric("sidestream_refusals_total", &labels, |count| count == 3.0)
        .await;
}

#[tokio::test]
async fn limit_of_the_client_is_a_status_with_the_time_to_wait() {
    let fixture = Fixture::start().await;
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(fixture.open(Form::WebHttp1, "/orders").await);
    }
    for form in Form::ALL {
        let mut response = fixture.call(form, "/orders", "").send().await;
        let (_, trailers) = response.read_to_end().await;
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(
            trailers["sidestream-code"],
            "too_many_connections_of_client"
        );
        let wait: u64 = trailers["grpc-retry-pushback-ms"].parse().unwrap();
        assert!((2500..=7500).contains(&wait), "{wait}");
    }
}

#[tokio::test]
async fn message_is_bounded_complete_and_not_compressed() {
    let fixture = Fixture::start().await;
    let message = request("/orders", "");
    let long = request(&format!("/orders?x={}", "y".repeat(9000)), "");
    for form in Form::ALL {
        for (body, headers, status, code) in [
            (Bytes::new(), vec![], "3", "bad_message"),
            (framed(0, &message).slice(..7), vec![], "3", "bad_message"),
            (framed(0, b"\xff\xff"), vec![], "3", "bad_message"),
            (framed(1, &message), vec![], "3", "bad_message"),
            (
                framed(1, &message),
                vec![("grpc-encoding", "gzip")],
                "12",
                "unsupported_media_type",
            ),
            (framed(0, &long), vec![], "8", "message_too_large"),
            (
                vec![0; 1024 * 1024].into(),
                vec![],
                "8",
                "message_too_large",
            ),
            (
                framed(0, &message),
                vec![("grpc-timeout", "soon")],
                "3",
                "bad_message",
            ),
        ] {
            let call = Call {
                body,
                headers,
                ..fixture.call(form, "", "")
            };
            let (found_status, found_code, message) = end(call).await;
            assert_eq!(
                (&*found_status, &*found_code),
                (status, code),
                "{form:?}: {message}"
            );
        }
        // `grpc-encoding` names a compression that this message does not have.
        let call = Call {
            headers: vec![("grpc-encoding", "gzip")],
            ..fixture.call(form, "/orders", "")
        };
        call.send().await.until("position").await;
    }
}

#[tokio::test]
async fn other_content_types_and_methods_are_statuses_of_http() {
    let fixture = Fixture::start().await;
    for (form, content_type) in [
        (Form::WebHttp1, "application/grpc"),
        (Form::WebHttp1, "application/grpc-web-text"),
        (Form::WebH2, "application/grpc+json"),
        (Form::Grpc, "application/json"),
    ] {
        let call = Call {
            headers: vec![("content-type", content_type)],
            ..fixture.call(form, "/orders", "")
        };
        let mut response = call.send().await;
        assert_eq!(response.status, 415, "{content_type}");
        let body: Value = serde_json::from_str(&response.text().await).unwrap();
        assert_eq!(body["error"]["code"], "unsupported_media_type");
    }
    let url = fixture.sidestream.url(METHOD);
    let answer = http1::get(&url).await.unwrap();
    assert_eq!(answer.status, 405);
    assert_eq!(answer.header("allow").as_deref(), Some("POST, OPTIONS"));
    // A route with calls alone has no media type for other requests.
    let answer = http1::get(&fixture.sidestream.url("/both")).await.unwrap();
    assert_eq!(answer.status, 406);
    assert!(answer.body.contains("gRPC"), "{}", answer.body);
}

#[tokio::test]
async fn metadata_fills_variables_of_the_route() {
    let fixture = Fixture::start().await;
    for form in Form::ALL {
        let call = Call {
            headers: vec![("x-user", "7")],
            ..fixture.call(form, "/metadata", "")
        };
        let mut response = call.send().await;
        response.until("position").await;
        fixture.publish("orders.8.x", "other").await;
        fixture.publish("orders.7.x", "mine").await;
        assert_eq!(response.events(1).await[0].data(), "mine");
    }
}

#[tokio::test]
async fn page_of_another_origin_may_call_and_read_the_status() {
    let fixture = Fixture::start().await;
    let preflight = |origin: &'static str| Call {
        method: "OPTIONS",
        headers: vec![
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,x-grpc-web"),
        ],
        body: Bytes::new(),
        ..fixture.call(Form::WebHttp1, "", "")
    };
    let allowed = preflight("https://pages.example").send().await;
    assert_eq!(allowed.status, 204);
    let header = |name| allowed.header(name).unwrap_or_default();
    assert_eq!(
        header("access-control-allow-origin"),
        "https://pages.example"
    );
    assert_eq!(header("access-control-allow-methods"), "POST");
    for name in ["x-grpc-web", "x-user-agent", "grpc-timeout", "content-type"] {
        let names: Vec<_> = header("access-control-allow-headers").split(", ").collect();
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let other = preflight("https://other.example").send().await;
    assert_eq!(other.header("access-control-allow-origin"), None);

    for path in ["/orders", "/orders?last=5"] {
        let call = Call {
            headers: vec![("origin", "https://pages.example")],
            ..fixture.call(Form::WebHttp1, path, "")
        };
        let response = call.send().await;
        assert_eq!(
            response.header("access-control-allow-origin"),
            Some("https://pages.example")
        );
        let exposed = response.header("access-control-expose-headers").unwrap();
        assert!(exposed.contains("grpc-status") && exposed.contains("sidestream-code"));
    }
}

#[tokio::test]
async fn path_of_calls_is_not_passed_to_the_application() {
    let nats = Nats::start().await;
    create_stream(&nats.jetstream().await, "ORDERS", &["orders.>"]).await;
    let source = "sources: [{ stream: ORDERS, subjects: [\"orders.>\"] }]";
    let closed_port = free_port();
    let start = async |framings: &str| {
        let rest = format!(
            "routes: [{{ path: /orders, framings: [{framings}], {source} }}]\n\
             application: {{ address: \"http://127.0.0.1:{closed_port}\" }}"
        );
        Sidestream::start(config(&nats, &rest)).await
    };
    let pod = start("grpc_web").await;
    for form in Form::ALL {
        let call = Call::new(form, pod.url(""), "/orders", "");
        call.send().await.until("position").await;
    }
    // No route offers calls.
    let pod = start("sse").await;
    for form in Form::ALL {
        let call = Call::new(form, pod.url(""), "/orders", "");
        assert_eq!(call.send().await.status, 502);
    }
}
