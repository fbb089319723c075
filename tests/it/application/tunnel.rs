//! A WebSocket passes through; other upgrades do not.

use testkit::application::{Application, Server};
use testkit::nats::free_port;
use testkit::process::Process;
use testkit::repository::{root, tool};
use testkit::wait::{DEADLINE, eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Fixture;

const REQUEST: &str = "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test]
async fn bytes_of_a_websocket_pass_in_both_directions() {
    let fixture = Fixture::start().await;
    let mut socket = TcpStream::connect(fixture.sidestream.address())
        .await
        .unwrap();
    // The first bytes come with the request.
    let request = [REQUEST.as_bytes(), b"early"].concat();
    let echoed = async {
        socket.write_all(&request).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\nearly") {
            assert_ne!(socket.read_buf(&mut seen).await.unwrap(), 0, "{seen:?}");
        }
        let head = String::from_utf8_lossy(&seen).to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(
            head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
            "{head}"
        );
        let piece = vec![7; 100_000];
        let (mut reader, mut writer) = socket.split();
        let send = async {
            for _ in 0..20 {
                writer.write_all(&piece).await.unwrap();
            }
            writer.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (_, count) = tokio::join!(send, reader.read_to_end(&mut received));
        assert_eq!(count.unwrap(), 20 * piece.len());
    };
    within(DEADLINE, "the WebSocket echoes", echoed).await;
}

#[tokio::test]
async fn tunnel_ends_with_either_side_and_with_the_drain() {
    let mut fixture = Fixture::with(
        Application::start().await,
        "",
        "drain: { accept_for: 0s, spread: 0s, timeout: 1s }",
    )
    .await;
    let open = || async {
        let mut socket = TcpStream::connect(fixture.sidestream.address())
            .await
            .unwrap();
        socket.write_all(REQUEST.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            assert_ne!(socket.read_buf(&mut seen).await.unwrap(), 0);
        }
        socket
    };
    drop(open().await);
    fixture
        .application
        .until("the application sees the end", |reports| {
            reports.iter().any(|report| report["kind"] == "upgrade-end")
        })
        .await;
    let mut socket = open().await;
    fixture.sidestream.terminate();
    let mut rest = Vec::new();
    within(2 * DEADLINE, "the tunnel is cut", async {
        drop(socket.read_to_end(&mut rest).await);
    })
    .await;
    assert_eq!(fixture.sidestream.wait_exit(2 * DEADLINE).await, 0);
}

/// Program of `websocket.py`.
fn python(mode: &str, argument: &str) -> Process {
    let mut command = std::process::Command::new(tool("application-python", "bin/python"));
    command.arg(root().join("tests/application/websocket.py"));
    Process::spawn(mode, command.args([mode, argument]))
}

/// Waits until a program prints this line.
async fn until_printed(program: &Process, line: &str) {
    let fact = format!("the program prints {line}");
    eventually(2 * DEADLINE, &fact, async || {
        program.lines().iter().any(|printed| printed == line)
    })
    .await;
}

#[tokio::test]
async fn websockets_of_uvicorn_echo_ping_and_close_with_their_codes() {
    for server in [Server::UvicornH11, Server::UvicornHttptools] {
        let mut application = Application::of(server);
        application.run().await;
        let fixture = Fixture::with(application, "", "").await;
        let url = fixture.sidestream.url("/socket").replace("http:", "ws:");
        let client = python("echo", &url);
        until_printed(&client, "complete").await;
        fixture
            .application
            .until("the application has the code of the client", |reports| {
                reports
                    .iter()
                    .any(|report| report["code"] == 4002 && report["reason"] == "client is done")
            })
            .await;
        fixture
            .application
            .until("the application sees the client that left", |reports| {
                reports
                    .iter()
                    .any(|report| report["code"] == 1005 || report["code"] == 1006)
            })
            .await;
    }
}

#[tokio::test]
async fn fragments_and_pings_of_websockets_pass_from_both_sides() {
    let port = free_port();
    let application = python("serve", &port.to_string());
    until_printed(&application, "listening").await;
    let nats = testkit::nats::Nats::start().await;
    let text = format!(
        "application: {{ address: \"http://127.0.0.1:{port}\" }}
routes: [{{ path: /events, sources: [{{ subjects: [events] }}] }}]
"
    );
    let text = testkit::sidestream::config(&nats, &text);
    let sidestream = testkit::sidestream::Sidestream::start(text).await;
    let client = python("check", &sidestream.url("/").replace("http:", "ws:"));
    until_printed(&client, "complete").await;
}
