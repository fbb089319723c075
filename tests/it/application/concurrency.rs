//! Many requests at once: none of them holds up the event streams or the other requests.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, within};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::bodies::pieces;
use super::{Body, Fixture, json};

/// Clients of event streams.
const FOLLOWERS: usize = 20;
const EVENTS: usize = 100;

/// Connects a client of the event stream, which has its position.
async fn follower(fixture: &Fixture) -> SseClient {
    let mut client = SseClient::get(fixture.sidestream.url("/events"))
        .connect()
        .await;
    assert_eq!(client.status(), 200);
    client.positioned().await;
    client
}

#[tokio::test]
async fn event_streams_are_prompt_while_256_requests_wait_for_the_application() {
    let fixture = Fixture::start().await;
    let mut waiting = Vec::new();
    for _ in 0..256 {
        let mut socket = TcpStream::connect(fixture.sidestream.address())
            .await
            .unwrap();
        let request = b"GET /silent HTTP/1.1\r\nHost: a\r\n\r\n";
        socket.write_all(request).await.unwrap();
        waiting.push(socket);
    }
    let gauge = "sidestream_application_requests_in_progress";
    fixture
        .sidestream
        .until_metric(gauge, &[], |value| value == 256.0)
        .await;
    // Requests above the maximum arrive all the time, and event streams begin.
    let above = async {
        loop {
            let answer = fixture.get("/page", &[]).await;
            assert_eq!(answer.status, 503);
        }
    };
    let measured = async {
        let mut clients = Vec::new();
        for _ in 0..FOLLOWERS {
            clients.push(follower(&fixture).await);
        }
        let publisher = fixture.nats.client().await;
        let mut delays = Vec::new();
        for number in 0..EVENTS {
            let published = Instant::now();
            let text = number.to_string();
            publisher
                .publish("events", text.clone().into())
                .await
                .unwrap();
            publisher.flush().await.unwrap();
            let received = clients.iter_mut().map(async |client| {
                assert_eq!(client.next().await.data, text);
                published.elapsed()
            });
            delays.extend(join_all(received).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        delays.sort_unstable();
        delays
    };
    let delays = tokio::select! {
        delays = measured => delays,
        () = above => unreachable!(),
    };
    assert_eq!(delays.len(), FOLLOWERS * EVENTS);
    let [p50, p99] = [50, 99].map(|percent| delays[delays.len() * percent / 100]);
    println!("p50 {p50:?}, p99 {p99:?}, maximum {:?}", delays.last());
    assert!(p99 < Duration::from_millis(250), "p99 {p99:?}");
    let shed = "sidestream_shed_events_total";
    assert_eq!(fixture.sidestream.metric(shed, &[]).await, 0.0);
    assert_eq!(fixture.sidestream.metric(gauge, &[]).await, 256.0);
}

/// Sends a request on the shared connection.
async fn send(
    connection: &SendRequest<Body>,
    request: hyper::http::request::Builder,
    body: Body,
) -> Response<Incoming> {
    let mut connection = connection.clone();
    connection.ready().await.unwrap();
    let request = request.body(body).unwrap();
    connection.send_request(request).await.unwrap()
}

/// Body that never ends.
fn endless() -> Body {
    let piece = Bytes::from(vec![0; 16 * 1024]);
    let frames = stream::repeat_with(move || Ok::<_, Infallible>(Frame::data(piece.clone())));
    StreamBody::new(frames).boxed()
}

/// Reads an event stream until it has this event.
async fn until_event(response: &mut Response<Incoming>, data: &str) {
    let wanted = format!("data: {data}\n");
    let mut seen = String::new();
    while !seen.contains(&wanted) {
        let frame = response.body_mut().frame().await.unwrap().unwrap();
        seen.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap()));
    }
}

#[tokio::test]
async fn fifty_streams_of_one_http2_connection_do_not_wait_for_each_other() {
    const UNREAD: usize = 20_000_000;
    let fixture = Fixture::start().await;
    let socket = TcpStream::connect(fixture.sidestream.address())
        .await
        .unwrap();
    let (connection, driver) = Builder::new(TokioExecutor::new())
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(8 << 20)
        .handshake(TokioIo::new(socket))
        .await
        .unwrap();
    tokio::spawn(driver);
    let get = |path: &str| Request::get(fixture.sidestream.url(path));
    let post = |path: &str| Request::post(fixture.sidestream.url(path));
    let empty = || Empty::new().boxed();
    // A download that the client does not read, and uploads that the application does not read.
    let unread = send(&connection, get(&format!("/large/{UNREAD}")), empty()).await;
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (connection, request) = (connection.clone(), post("/silent"));
        uploads.spawn(async move { send(&connection, request, endless()).await });
    }
    let mut followers = Vec::new();
    for _ in 0..10 {
        let mut follower = send(&connection, get("/events"), empty()).await;
        assert_eq!(follower.status(), 200);
        // The comment with the position: the subscription is complete.
        follower.body_mut().frame().await.unwrap().unwrap();
        followers.push(follower);
    }
    let publisher = fixture.nats.client().await;
    let events = async {
        for number in 0..20 {
            let data = number.to_string();
            publisher
                .publish("events", data.clone().into())
                .await
                .unwrap();
            let received = followers
                .iter_mut()
                .map(|follower| until_event(follower, &data));
            join_all(received).await;
        }
    };
    let downloads = join_all((0..13).map(async |_| {
        let answer = send(&connection, get("/large/1000000"), empty()).await;
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), 1_000_000);
    }));
    let sent = join_all((0..13).map(async |_| {
        let body = pieces(&Bytes::from(vec![b'x'; 16 * 1024]), 64);
        let answer = send(&connection, post("/echo"), body).await;
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(json(&body)["bytes"], 1 << 20);
    }));
    let pages = join_all((0..10).map(async |_| {
        for _ in 0..20 {
            let answer = send(&connection, get("/page"), empty()).await;
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "/page\n");
        }
    }));
    let all = async { tokio::join!(events, downloads, sent, pages) };
    within(2 * DEADLINE, "the other streams go on", all).await;
    assert!(
        uploads.try_join_next().is_none(),
        "nothing reads the uploads"
    );
    let body = unread.into_body().collect();
    let body = within(DEADLINE, "the unread download goes on", body).await;
    assert_eq!(body.unwrap().to_bytes().len(), UNREAD);
}
