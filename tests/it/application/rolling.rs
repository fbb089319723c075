//! A rolling restart of two pods in front of one application, with the documented nginx as the load
//! balancer: no request fails, no event is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use testkit::application::Application;
use testkit::certs::Authority;
use testkit::front::{Front, Kind, Ports};
use testkit::nats::{Nats, create_stream, free_port, store};
use testkit::sse::SseClient;
use testkit::wait::{RECOVERY, within};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::front::fixture::Pod;

const FOLLOWERS: usize = 10;
/// Clients that send one request after the other.
const CLIENTS: usize = 8;

fn configuration(nats: &Nats, application: &Application, ports: Ports) -> String {
    let (url, address) = (nats.url(), application.url());
    let Ports { clients, admin } = ports;
    format!(
        "listen: [{{ address: \"127.0.0.1:{clients}\" }}]
admin: {{ address: \"127.0.0.1:{admin}\" }}
nats: {{ servers: [\"{url}\"] }}
application: {{ address: \"{address}\" }}
routes: [{{ path: /events, retry: 200ms, sources: [{{ stream: ORDERS, subjects: [\"orders.>\"] }}] }}]
trusted_proxies: [\"127.0.0.0/8\"]
drain: {{ accept_for: 500ms, spread: 1s, timeout: 10s, retry: {{ min: 50ms, max: 200ms }} }}
"
    )
}

/// Sends GET and POST in turn until the restart is over; returns the number of requests.
async fn request(front: String, is_over: Arc<AtomicBool>) -> usize {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut count = 0;
    while !is_over.load(Ordering::Relaxed) {
        let (method, path) = [("GET", "/page"), ("POST", "/echo")][count % 2];
        let body = if method == "GET" { "" } else { "one order" };
        let request = Request::builder()
            .method(method)
            .uri(format!("{front}{path}"))
            .body(Full::from(body))
            .unwrap();
        let answer = client.request(request).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&body);
        assert_eq!(head.status, 200, "{method}: {text}");
        // nginx itself answers 200 if no pod answers.
        let is_complete = text == "/page\n" || text.contains("\"bytes\":9,");
        assert!(is_complete, "{method} number {count}: {text}");
        count += 1;
        sleep(Duration::from_millis(5)).await;
    }
    count
}

/// Receives events until one is named `end`; returns their texts. Reconnects as a browser does.
async fn follow(url: String, mut client: SseClient) -> Vec<String> {
    let mut received = Vec::new();
    let mut last = String::new();
    loop {
        while let Ok(event) = client.advance().await {
            match event.name.as_str() {
                "message" if event.data == "end" => return received,
                "message" => received.push(event.data),
                "sidestream.close" => {}
                name => panic!("{name}: {}", event.data),
            }
        }
        if !client.last_event_id().is_empty() {
            client.last_event_id().clone_into(&mut last);
        }
        sleep(Duration::from_millis(100)).await;
        client = SseClient::get(&url).last_event_id(&last).connect().await;
        assert_eq!(client.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_restart_of_two_pods_fails_no_request_and_loses_no_event() {
    let nats = Nats::start().await;
    let jetstream = nats.jetstream().await;
    create_stream(&jetstream, "ORDERS", &["orders.>"]).await;
    let application = Application::start().await;
    let ports = [(); 2].map(|()| Ports {
        clients: free_port(),
        admin: free_port(),
    });
    let mut pods = [
        Pod::start(configuration(&nats, &application, ports[0])).await,
        Pod::start(configuration(&nats, &application, ports[1])).await,
    ];
    let front = Front::start(Kind::Nginx, ports, &Authority::new()).await;
    let mut followers = JoinSet::new();
    for _ in 0..FOLLOWERS {
        let url = front.url("/events");
        let mut client = SseClient::get(&url).connect().await;
        client.positioned().await;
        followers.spawn(follow(url, client));
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(request(front.url(""), is_over.clone()));
    }
    let publisher = tokio::spawn({
        let is_over = is_over.clone();
        async move {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                let text = count.to_string();
                store(&jetstream, "orders.1", text).await;
                count += 1;
                sleep(Duration::from_millis(5)).await;
            }
            store(&jetstream, "orders.1", "end").await;
            count
        }
    });
    for pod in &mut pods {
        pod.sidestream.terminate();
        assert_eq!(pod.sidestream.wait_exit(RECOVERY).await, 0);
        pod.restart().await;
        sleep(Duration::from_millis(200)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    let count = publisher.await.unwrap();
    let expected: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    let received = within(RECOVERY, "all events arrive", followers.join_all()).await;
    for received in received {
        assert_eq!(received, expected);
    }
    let requests: usize = clients.join_all().await.into_iter().sum();
    println!("{requests} requests, {count} events");
    assert!(requests > 50 * CLIENTS, "{requests} requests");
}
