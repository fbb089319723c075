//! Server that answers each connection with prepared bytes over TCP and records the requests.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Continuation of a connection after its bytes.
#[derive(Clone, Copy)]
pub(crate) enum Then {
    /// It ends.
    Close,
    /// It stays open and idle.
    Silence,
}

/// Server. Dropping it closes everything.
pub(crate) struct Responder {
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    requests: mpsc::Receiver<String>,
    _tasks: JoinSet<()>,
}

impl Responder {
    /// Answers each connection with the next response. Connections after the last response are not
    /// accepted.
    pub(crate) async fn start(answers: Vec<(String, Then)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (told, requests) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut silent = Vec::new();
            for (answer, then) in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                told.send(head(&mut socket).await).await.unwrap();
                // A client that rejects the response may close before its end.
                socket.write_all(answer.as_bytes()).await.ok();
                match then {
                    Then::Close => socket.shutdown().await.unwrap_or_default(),
                    Then::Silence => silent.push(socket),
                }
            }
            std::future::pending::<()>().await;
        });
        Self {
            address,
            requests,
            _tasks: tasks,
        }
    }

    /// Headers of the next request, in lower case.
    pub(crate) async fn request(&mut self) -> String {
        let request = timeout(DEADLINE, self.requests.recv()).await;
        request
            .expect("a request comes in time")
            .expect("the server lives")
    }
}

/// Headers of an event stream without a length: it ends with the connection.
pub(crate) fn stream(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n{body}")
}

async fn head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

/// Deadline of every wait in these tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
