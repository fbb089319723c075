//! Bodies of a gibibyte.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use testkit::application::{Application, Server};

use super::bodies::pieces;
use super::{Body, Fixture, VERSIONS, Version, json};

const PIECE: usize = 64 * 1024;
const GIBIBYTE: usize = 1 << 30;

#[tokio::test]
#[ignore = "takes a minute: `make test-long`"]
async fn bodies_of_a_gibibyte_pass_in_constant_memory() {
    for is_http2 in [false, true] {
        let mut application = Application::of(Server::Go);
        if is_http2 {
            application = application.http2();
        }
        application.run().await;
        let fixture = Fixture::with(application, "", "").await;
        let before = fixture.sidestream.resident_bytes_peak();
        for version in VERSIONS {
            pass_a_gibibyte(&fixture, version).await;
            let grown = fixture.sidestream.resident_bytes_peak() - before;
            println!("h2c {is_http2}, {version:?}: {} KiB", grown / 1024);
            assert!(grown < 16 << 20, "{grown} bytes for bodies of a GiB");
        }
    }
}

/// Uploads a gibibyte in chunks, and downloads one.
async fn pass_a_gibibyte(fixture: &Fixture, version: Version) {
    let client = Client::builder(TokioExecutor::new())
        .http2_only(version == Version::Http2)
        .build_http::<Body>();
    let body = pieces(&Bytes::from(vec![b'\n'; PIECE]), GIBIBYTE / PIECE);
    let request = Request::post(fixture.sidestream.url("/echo"));
    let answer = client.request(request.body(body).unwrap()).await.unwrap();
    let seen = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(json(&seen)["bytes"], GIBIBYTE, "{version:?}");
    let request = Request::get(fixture.sidestream.url(&format!("/large/{GIBIBYTE}")));
    let request = request.body(Empty::new().boxed()).unwrap();
    let mut body = client.request(request).await.unwrap().into_body();
    let mut count = 0;
    while let Some(frame) = body.frame().await {
        count += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(count, GIBIBYTE, "{version:?}");
}
