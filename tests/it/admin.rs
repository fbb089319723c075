//! The admin port and the control socket: probes, metrics, connections, configuration, commands,
//! access.

mod access;
mod exhaustion;
mod hosts;
mod lists;
mod page;
mod page_browser;
mod tap;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sidestream::admin::{self, Admin, Command, Parts};
use sidestream::encoding::Framing;
use sidestream::feed::Cursor;
use sidestream::lifecycle::health::{Check, Health, Status};
use sidestream::lifecycle::phase::{Phase, Progress};
use sidestream::presence::{
    CloseReason, Lag, Protocol, Registration, Sent, State, StreamHandle, StreamInfo, StreamTable,
};
use sidestream::telemetry::Metrics;
use tempfile::TempDir;
use testkit::http1;
use testkit::nats::Nats;
use testkit::sidestream::Sidestream;
use tokio::sync::{mpsc, watch};

const DEADLINE: Duration = Duration::from_secs(20);

/// Taps of a pod without routes.
struct NoRoutes;

impl admin::Taps for NoRoutes {
    fn routes(&self) -> Vec<admin::TapRoute> {
        Vec::new()
    }

    fn open(
        &self,
        _: admin::TapRequest,
    ) -> BoxFuture<'static, Result<Vec<Cursor>, admin::TapError>> {
        Box::pin(std::future::ready(Err(admin::TapError::UnknownRoute)))
    }
}

/// Running admin server, with the values that it reports.
struct Operator {
    admin: Option<Admin>,
    health: Health,
    streams: StreamTable,
    drain: watch::Sender<Progress>,
    commands: mpsc::Receiver<Command>,
    control: PathBuf,
    _folder: TempDir,
}

impl Operator {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join("control.sock");
        Self::start_with(Some(control), folder)
    }

    fn start_with(control: Option<PathBuf>, folder: TempDir) -> Self {
        let hosts = vec!["sidecar.example".to_owned()];
        let config = admin::Config {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            hosts,
            control,
            ..admin::Config::default()
        };
        let (health, streams) = (Health::default(), StreamTable::default());
        let (drain, progress) = watch::channel(Progress::default());
        let (commands, received) = mpsc::channel(1);
        let parts = Parts {
            pod: "api-7f9c".to_owned(),
            health: health.clone(),
            metrics: Arc::new(Metrics::new().unwrap()),
            streams: streams.clone(),
            drain: progress,
            config: Box::new(|| json!({ "effective": { "nats": { "password": "***" } } })),
            token: admin::Token::default(),
            taps: Box::new(NoRoutes),
            commands,
        };
        let admin = admin::start(&config, parts, std::future::pending()).unwrap();
        let control = admin.control().unwrap().to_owned();
        Self {
            admin: Some(admin),
            health,
            streams,
            drain,
            commands: received,
            control,
            _folder: folder,
        }
    }

    fn address(&self) -> SocketAddr {
        self.admin.as_ref().unwrap().address()
    }

    fn get(&self, target: &str) -> Answer {
        self.ask(&format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))
    }

    /// `None`: the connection was closed without a response.
    fn try_get(&self, target: &str) -> Option<Answer> {
        let mut socket = TcpStream::connect(self.address()).ok()?;
        socket.set_read_timeout(Some(DEADLINE)).ok()?;
        socket
            .write_all(format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").as_bytes())
            .ok()?;
        let mut head = String::new();
        socket.read_to_string(&mut head).ok()?;
        (!head.is_empty()).then_some(Answer {
            head,
            body: String::new(),
        })
    }

    fn ask(&self, request: &str) -> Answer {
        exchange(self.address(), request.as_bytes())
    }

    fn connect(
        &self,
        protocol: Protocol,
        client: &str,
        route: &str,
    ) -> (Arc<Client>, Registration) {
        let client = Arc::new(Client::new(protocol, client, route));
        let registration = self
            .streams
            .insert(Arc::clone(&client) as Arc<dyn StreamHandle>, None);
        (client, registration)
    }

    fn check(&self, name: &str, status: Status) -> Check {
        let check = self.health.check(name, "not set yet");
        check.set(status);
        check
    }

    fn command(&self, line: &str) -> Value {
        let mut socket = UnixStream::connect(&self.control).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(socket).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }
}

#[derive(Debug)]
struct Answer {
    head: String,
    body: String,
}

impl Answer {
    fn status(&self) -> u16 {
        self.head
            .split(' ')
            .nth(1)
            .expect(&self.head)
            .parse()
            .unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_str(&self.body).expect(&self.body)
    }
}

/// Sends bytes and reads until the server closes the connection.
fn exchange(address: SocketAddr, request: &[u8]) -> Answer {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.write_all(request).unwrap();
    let mut answer = Vec::new();
    // A reset after the response is as good as a FIN.
    if let Err(error) = socket.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let mut answer = Answer {
        head: head.to_owned(),
        body: body.to_owned(),
    };
    if answer.header("transfer-encoding") == Some("chunked") {
        answer.body = dechunked(body);
    }
    answer
}

/// Content of a chunked body.
fn dechunked(mut body: &str) -> String {
    let mut content = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        content.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    content
}

/// Event stream as the admin server sees it.
struct Client {
    description: Mutex<StreamInfo>,
    route: Arc<str>,
    client: String,
    described: AtomicU64,
}

impl Client {
    fn new(protocol: Protocol, client: &str, route: &str) -> Self {
        let description = StreamInfo {
            client: client.to_owned(),
            route: route.into(),
            subjects: vec!["orders.42.>".into()],
            protocol,
            framing: Framing::Sse,
            tls: false,
            remote: "192.0.2.7:4711".parse().unwrap(),
            state: State::Active,
            opened: 1_700_000_000_123,
            last_event_id: "3fa9c1-18422-2k7d3ew".into(),
            lag: Lag::default(),
            sent: Sent {
                events: 12,
                bytes: 3_400,
            },
            memory_bytes: 1_060,
            slow: false,
            gaps: 1,
        };
        let described = AtomicU64::new(0);
        Self {
            description: Mutex::new(description),
            route: route.into(),
            client: client.to_owned(),
            described,
        }
    }

    fn lags(&self, events: u64, bytes: u64, age: Duration, slow: bool) {
        let mut description = self.description.lock().unwrap();
        description.lag = Lag { events, bytes, age };
        description.slow = slow;
    }
}

impl StreamHandle for Client {
    fn memory_bytes(&self) -> u64 {
        1024
    }

    fn route(&self) -> &Arc<str> {
        &self.route
    }
    fn client(&self) -> &str {
        &self.client
    }
    fn lag(&self) -> Lag {
        self.description.lock().unwrap().lag
    }
    fn is_slow(&self) -> bool {
        self.description.lock().unwrap().slow
    }
    fn describe(&self) -> StreamInfo {
        self.described.fetch_add(1, Ordering::Relaxed);
        self.description.lock().unwrap().clone()
    }
    fn close(&self, _: CloseReason) {}
}

#[test]
fn health_is_the_worst_check_and_only_a_failing_one_makes_the_pod_not_ready() {
    let operator = Operator::start();
    let health = || operator.get("/health");
    assert_eq!(health().status(), 200);
    assert_eq!(health().json()["status"], "ok");
    assert_eq!(health().json()["version"], env!("CARGO_PKG_VERSION"));

    let config = operator.check(
        "config",
        Status::Degraded("the last reload was rejected".into()),
    );
    assert_eq!(health().status(), 200);
    assert_eq!(health().json()["status"], "degraded");

    let nats = operator.check("nats", Status::Failing("not connected".into()));
    assert_eq!(health().status(), 503);
    assert_eq!(
        health().json()["checks"],
        json!({
            "config": { "status": "degraded", "message": "the last reload was rejected" },
            "nats": { "status": "failing", "message": "not connected" },
        })
    );
    assert_eq!(health().json()["status"], "failing");
    let ready = operator.get("/health/ready");
    assert_eq!(ready.status(), 503);
    assert_eq!(
        ready.json(),
        json!({ "ready": false, "status": "failing", "failing": { "nats": "not connected" } })
    );

    nats.set(Status::Ok);
    config.set(Status::Ok);
    assert_eq!(operator.get("/health/ready").status(), 200);
    assert_eq!(
        operator.get("/health/ready").json(),
        json!({ "ready": true, "status": "ok", "failing": {} })
    );
    assert_eq!(
        health().json()["checks"]["nats"],
        json!({ "status": "ok", "message": null })
    );
}

#[test]
fn a_draining_pod_is_alive_but_not_ready_and_reports_its_progress() {
    let operator = Operator::start();
    operator.drain.send_replace(Progress {
        phase: Phase::Ending,
        streams_left: 17,
        cut: 2,
    });
    assert_eq!(operator.get("/health/live").status(), 200);
    assert_eq!(operator.get("/health/live").json(), json!({ "live": true }));
    assert_eq!(operator.get("/health/ready").status(), 503);
    assert_eq!(operator.get("/health/ready").json()["status"], "draining");
    let health = operator.get("/health");
    assert_eq!(health.status(), 503);
    assert_eq!(health.json()["status"], "draining");
    assert_eq!(
        health.json()["drain"],
        json!({ "phase": "ending", "number": 5, "streams_left": 17, "cut": 2 })
    );
    let metrics = operator.get("/metrics").body;
    assert!(
        metrics.contains("\nsidestream_drain_phase{phase=\"ending\"} 1\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("\nsidestream_drain_phase{phase=\"running\"} 0\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("\nsidestream_drain_streams_left 17\n"),
        "{metrics}"
    );
}

#[test]
fn metrics_are_prometheus_text_with_the_greatest_lag_of_each_route() {
    let operator = Operator::start();
    let (one, registration_of_one) = operator.connect(Protocol::Http11, "1", "/a");
    let (two, _registration_of_two) = operator.connect(Protocol::H2, "2", "/a");
    one.lags(50, 600, Duration::from_millis(1_500), true);
    two.lags(7, 900, Duration::from_millis(200), false);
    let metrics = operator.get("/metrics");
    assert_eq!(metrics.status(), 200);
    assert_eq!(
        metrics.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let holds = |body: &str, line: &str| {
        assert!(body.lines().any(|found| found == line), "{line} in {body}")
    };
    holds(&metrics.body, "sidestream_lag_events{route=\"/a\"} 50");
    holds(&metrics.body, "sidestream_lag_bytes{route=\"/a\"} 900");
    holds(&metrics.body, "sidestream_lag_seconds{route=\"/a\"} 1.5");
    holds(&metrics.body, "sidestream_slow_clients{route=\"/a\"} 1");
    holds(
        &metrics.body,
        &format!(
            "sidestream_build_info{{version=\"{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        ),
    );

    drop(registration_of_one);
    holds(
        &operator.get("/metrics").body,
        "sidestream_lag_events{route=\"/a\"} 7",
    );
    drop(_registration_of_two);
    let idle = operator.get("/metrics").body;
    holds(&idle, "sidestream_lag_events{route=\"/a\"} 0");
    holds(&idle, "sidestream_slow_clients{route=\"/a\"} 0");
}

#[test]
fn connections_are_listed_by_client_and_route() {
    let operator = Operator::start();
    assert_eq!(
        operator.get("/connections").json(),
        json!({ "total": 0, "connections": [] })
    );
    let (client, _registration) =
        operator.connect(Protocol::Http11, "user 42", "/events/orders/{id}");
    client.lags(3, 400, Duration::from_millis(250), false);
    let _others: Vec<_> = (0..20)
        .map(|n| operator.connect(Protocol::H2, &n.to_string(), "/other"))
        .collect();

    let found = operator.get("/connections?client=user%2042").json();
    let expected = json!({
        "client": "user 42", "route": "/events/orders/{id}", "subjects": ["orders.42.>"],
        "protocol": "http/1.1", "framing": "sse", "tls": false, "remote": "192.0.2.7:4711", "state": "active",
        "opened": 1_700_000_000_123_u64, "last_event_id": "3fa9c1-18422-2k7d3ew",
        "lag": { "events": 3, "bytes": 400, "seconds": 0.25 }, "sent": { "events": 12, "bytes": 3_400 },
        "memory": { "bytes": 1_060 }, "slow": false, "gaps": 1,
    });
    assert_eq!(found, json!({ "total": 1, "connections": [expected] }));

    let limited = operator.get("/connections?route=%2Fother&limit=3").json();
    assert_eq!(limited["total"], 20);
    assert_eq!(limited["connections"].as_array().unwrap().len(), 3);
    assert_eq!(operator.get("/connections").json()["total"], 21);
    assert_eq!(
        operator.get("/connections?client=nobody").json()["total"],
        0
    );
    assert_eq!(
        client.described.load(Ordering::Relaxed),
        2,
        "only what is listed is described"
    );

    let refused = operator.get("/connections?limit=none");
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.json()["error"]["code"], "bad_query");
}

#[test]
fn the_effective_configuration_is_served() {
    let operator = Operator::start();
    assert_eq!(
        operator.get("/config").json(),
        json!({ "effective": { "nats": { "password": "***" } } })
    );
}

#[test]
fn unknown_paths_and_methods_are_rejected() {
    let operator = Operator::start();
    for path in [
        "/page",
        "/page/",
        "/page/nothing.js",
        "/healthz",
        "/health/",
        "/metrics/x",
        "/..",
        "*",
    ] {
        let answer = operator.get(path);
        assert!(matches!(answer.status(), 404 | 400), "{path}: {answer:?}");
    }
    assert_eq!(
        operator.get("/nothing").json()["error"]["code"],
        "not_found"
    );
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let answer = operator.ask(&format!(
            "{method} /config HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
        ));
        assert_eq!(
            (answer.status(), answer.header("allow")),
            (405, Some("GET, HEAD")),
            "{method}"
        );
        assert_eq!(answer.json()["error"]["code"], "method_not_allowed");
    }
    let head = operator.ask("HEAD /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    assert_eq!((head.status(), head.body.as_str()), (200, ""));
    let length: usize = head.header("content-length").unwrap().parse().unwrap();
    assert_eq!(length, operator.get("/health").body.len());
}

#[test]
fn a_connection_without_http_is_closed_and_affects_no_other() {
    let operator = Operator::start();
    let long = format!(
        "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"\0\0\0\0\r\n\r\n",
        long.as_bytes(),
    ] {
        let mut socket = TcpStream::connect(operator.address()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut answer = Vec::new();
        // Either may fail: the server closes as soon as it knows that this is not HTTP.
        let ended = socket
            .write_all(garbage)
            .and_then(|()| socket.read_to_end(&mut answer).map(drop));
        if let Err(error) = ended {
            assert!(
                !matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ),
                "{error}"
            );
        }
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
        assert_eq!(operator.get("/health/live").status(), 200);
    }
}

#[test]
fn the_control_socket_returns_the_status_and_forwards_a_reload() {
    let mut operator = Operator::start();
    let status = operator.command("status\n");
    assert_eq!(
        (&status["ok"], &status["status"]),
        (&json!(true), &json!("ok"))
    );
    assert_eq!(status["drain"]["phase"], "running");

    let mut commands = std::mem::replace(&mut operator.commands, mpsc::channel(1).1);
    let application = std::thread::spawn(move || {
        for told in [Ok(()), Err("sidecar.yaml: line 3: unknown key".to_owned())] {
            match commands.blocking_recv() {
                Some(Command::Reload { outcome }) => outcome.send(told).unwrap(),
                other => panic!("not a reload: {other:?}"),
            }
        }
    });
    assert_eq!(operator.command("reload\n"), json!({ "ok": true }));
    assert_eq!(
        operator.command("reload\n"),
        json!({ "ok": false, "error": "sidecar.yaml: line 3: unknown key" })
    );
    application.join().unwrap();
    assert_eq!(
        operator.command("reload\n"),
        json!({ "ok": false, "error": "the sidecar is shutting down" })
    );
}

#[test]
fn the_control_socket_begins_one_drain_and_reports_its_end_to_every_waiting_client() {
    let mut operator = Operator::start();
    let mut commands = std::mem::replace(&mut operator.commands, mpsc::channel(1).1);
    let begun = operator.drain.clone();
    let application = std::thread::spawn(move || {
        match commands.blocking_recv() {
            Some(Command::Drain { outcome }) => {
                begun.send_replace(Progress {
                    phase: Phase::Accepting,
                    streams_left: 3,
                    cut: 0,
                });
                outcome.send(Ok(())).unwrap();
            }
            other => panic!("{other:?}"),
        }
        commands
    });
    let answer = operator.command("drain\n");
    assert_eq!(
        (&answer["ok"], &answer["complete"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(
        answer["drain"],
        json!({ "phase": "accepting", "number": 2, "streams_left": 3, "cut": 0 })
    );
    let mut commands = application.join().unwrap();

    std::thread::scope(|scope| {
        let waiting = [
            scope.spawn(|| operator.command("drain wait\n")),
            scope.spawn(|| operator.command("drain wait\n")),
        ];
        operator.drain.send_replace(Progress {
            phase: Phase::Upstream,
            streams_left: 0,
            cut: 2,
        });
        operator.drain.send_replace(Progress {
            phase: Phase::Done,
            streams_left: 0,
            cut: 2,
        });
        for waiting in waiting {
            assert_eq!(waiting.join().unwrap()["complete"], false, "two were cut");
        }
    });
    assert_eq!(operator.command("drain\n")["drain"]["phase"], "done");
    assert!(
        commands.try_recv().is_err(),
        "the application was asked once"
    );
}

#[test]
fn the_control_socket_rejects_unknown_commands() {
    let operator = Operator::start();
    for line in [
        "drain now\n",
        "\n",
        "reload now\n",
        "\u{0}\n",
        &"x".repeat(5_000),
    ] {
        let answer = operator.command(line);
        assert_eq!(answer["ok"], false, "{line}");
    }
    // Several commands on one connection.
    let mut socket = UnixStream::connect(&operator.control).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.write_all(b"status\nnonsense\nstatus\n").unwrap();
    let answers: Vec<Value> = BufReader::new(socket)
        .lines()
        .take(3)
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    assert_eq!(
        answers
            .iter()
            .map(|answer| answer["ok"].as_bool().unwrap())
            .collect::<Vec<_>>(),
        [true, false, true]
    );
}

#[test]
fn without_a_configured_path_the_control_socket_has_the_default_path() {
    let mut operator = Operator::start_with(None, tempfile::tempdir().unwrap());
    let places = admin::candidates(None, operator.address().port());
    assert!(
        places.contains(&operator.control),
        "{} in {places:?}",
        operator.control.display()
    );
    assert_eq!(operator.command("status\n")["ok"], true);
    operator.admin.take().unwrap().stop();
    assert!(!operator.control.exists());
}

#[tokio::test]
async fn the_log_has_the_admin_address() {
    let nats = Nats::builder().without_jetstream().start().await;
    let sidestream = Sidestream::start(format!(
        "listen: [{{ address: 127.0.0.1:0 }}]
admin: {{ address: 127.0.0.1:0, control: control.sock }}
nats: {{ servers: [\"{}\"] }}
routes: [{{ path: /news, sources: [{{ subjects: [\"news.>\"] }}] }}]",
        nats.url()
    ))
    .await;
    let line = sidestream.until_message("admin listening").await;
    let address = line["address"].as_str().unwrap();
    let live = http1::get(&format!("http://{address}/health/live")).await;
    assert_eq!(live.unwrap().status, 200);
    let control = line["control"].as_str().unwrap();
    assert!(sidestream.folder().join(control).exists(), "{line}");
}

#[test]
fn a_second_sidecar_with_the_same_control_socket_or_port_gets_an_error() {
    let operator = Operator::start();
    let start = |config: admin::Config| {
        let parts = Parts {
            pod: "api-7f9c".to_owned(),
            taps: Box::new(NoRoutes),
            health: Health::default(),
            metrics: Arc::new(Metrics::new().unwrap()),
            streams: StreamTable::default(),
            drain: watch::channel(Progress::default()).1,
            config: Box::new(|| Value::Null),
            token: admin::Token::default(),
            commands: mpsc::channel(1).0,
        };
        admin::start(&config, parts, std::future::pending())
            .unwrap_err()
            .to_string()
    };
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let error = start(admin::Config {
        address: free,
        control: Some(operator.control.clone()),
        ..admin::Config::default()
    });
    assert!(
        error.starts_with("admin.control: ") && error.contains("another sidecar listens here"),
        "{error}"
    );
    let error = start(admin::Config {
        address: operator.address(),
        ..admin::Config::default()
    });
    assert!(
        error.starts_with(&format!("admin.address {}: ", operator.address())),
        "{error}"
    );
}

#[test]
fn the_admin_server_answers_until_it_is_stopped_and_removes_its_socket() {
    let mut operator = Operator::start();
    let address = operator.address();
    operator.drain.send_replace(Progress {
        phase: Phase::Done,
        ..Progress::default()
    });
    assert_eq!(operator.get("/health/live").status(), 200);
    assert!(operator.control.exists());
    let begun = Instant::now();
    operator.admin.take().unwrap().stop();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(
        TcpStream::connect(address).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    assert!(!operator.control.exists());
}
