//! `sidestream tail` against servers on loopback.

mod responder;
mod secure;

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use responder::{DEADLINE, Responder, Then, stream};

fn tail(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidestream"));
    command
        .arg("tail")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn finished(mut command: Command) -> (i32, String, String) {
    let output: Output = timeout(DEADLINE, command.output())
        .await
        .expect("it ends in time")
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Runs `tail` with further arguments against `/events` of the responder, until it exits.
async fn follow(server: &Responder, arguments: &[&str]) -> (i32, String, String) {
    let url = format!("http://{}/events", server.address);
    finished(tail(&[&[url.as_str()], arguments].concat())).await
}

fn started(mut command: Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn exit_code(child: &mut Child) -> i32 {
    let status = timeout(DEADLINE, child.wait())
        .await
        .expect("it ends in time")
        .unwrap();
    status.code().expect("it exits by itself")
}

#[tokio::test]
async fn events_are_printed_with_id_name_and_data() {
    let body = "retry: 10\nid: a-1-ff\n\nevent: created\ndata: one\nid: a-2-ff\n\n: hb\ndata: two\ndata: lines\nid: a-3-ff\n\n";
    let mut server = Responder::start(vec![(stream(body), Then::Silence)]).await;
    let (code, out, _) = follow(&server, &["--events", "2"]).await;
    assert_eq!(
        (code, out.as_str()),
        (0, "a-2-ff  created  one\na-3-ff  message  two\n    lines\n")
    );
    let request = server.request().await;
    assert!(request.starts_with("get /events http/1.1\r\n"), "{request}");
    assert!(
        request.contains("accept: text/event-stream\r\n"),
        "{request}"
    );
    assert!(!request.contains("last-event-id"), "{request}");
}

#[tokio::test]
async fn json_is_one_object_per_line_with_gaps_in_order() {
    let body = "event: sidestream.gap\ndata: {\"reason\":\"expired\",\"missed\":3,\"resume\":\"oldest\"}\nid: a-4-ff\n\n\
                data: x\nid: a-5-ff\n\n";
    let server = Responder::start(vec![(stream(body), Then::Silence)]).await;
    let (code, out, err) = follow(&server, &["--json", "--events", "1"]).await;
    assert_eq!(code, 0);
    let lines: Vec<serde_json::Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["event"], "sidestream.gap");
    assert_eq!(
        (&lines[1]["id"], &lines[1]["data"]),
        (&"a-5-ff".into(), &"x".into())
    );
    assert!(lines[1]["received"].as_u64().unwrap() > 1_700_000_000_000);
    assert!(
        err.contains("gap (expired): missed 3 events, continuing with the oldest retained event"),
        "{err}"
    );
}

#[tokio::test]
async fn a_broken_stream_is_resumed_after_the_last_whole_event() {
    let mut server = Responder::start(vec![
        (
            stream("retry: 10\n\ndata: one\nid: a-1-ff\n\ndata: never ended\nid: a-2-ff\n"),
            Then::Close,
        ),
        (stream("data: two\nid: a-2-ff\n\n"), Then::Silence),
    ])
    .await;
    let (code, out, err) = follow(&server, &["--events", "2"]).await;
    assert_eq!(
        (code, out.as_str()),
        (0, "a-1-ff  message  one\na-2-ff  message  two\n")
    );
    assert!(
        err.contains("reconnecting in 0.0 s, resuming after a-1-ff"),
        "{err}"
    );
    server.request().await;
    assert!(server.request().await.contains("last-event-id: a-1-ff\r\n"));
}

#[tokio::test]
async fn tail_resumes_after_a_position_without_an_event() {
    let position = "event: sidestream.position\ndata: {}\nid: a-1-ff\n\n";
    let close = "retry: 10\nevent: sidestream.close\ndata: {\"reason\":\"drain\",\"retry\":10}\nid: a-9-ff\n\n";
    // Other servers may send a block with only an id.
    let bare = "retry: 10\nid: a-11-ff\n\n";
    for style in [&[][..], &["--json"]] {
        let mut server = Responder::start(vec![
            (stream(&format!("retry: 10\n{position}")), Then::Close),
            (stream(&format!("{position}{close}")), Then::Close),
            (stream(bare), Then::Close),
            (stream("data: x\nid: a-12-ff\n\n"), Then::Silence),
        ])
        .await;
        let (code, out, err) = follow(&server, &[style, &["--events", "1"]].concat()).await;
        assert_eq!(
            (code, out.lines().count()),
            (0, 1),
            "neither a position nor a close is printed as an event: {out}"
        );
        assert!(out.contains("a-12-ff"), "{out}");
        assert!(
            err.contains("the server closes this event stream: drain"),
            "{err}"
        );
        server.request().await;
        for id in ["a-1-ff", "a-9-ff", "a-11-ff"] {
            assert!(
                server
                    .request()
                    .await
                    .contains(&format!("last-event-id: {id}\r\n")),
                "{id}: {err}"
            );
        }
    }
}

#[tokio::test]
async fn a_position_and_headers_are_options() {
    let mut server = Responder::start(vec![(stream("data: x\n\n"), Then::Silence)]).await;
    let arguments = [
        "--last-event-id",
        "a-7-ff",
        "--header",
        "Authorization: Bearer t",
        "--header",
        "X-A: 1",
        "--events",
        "1",
    ];
    let (code, out, _) = follow(&server, &arguments).await;
    assert_eq!((code, out.as_str()), (0, "a-7-ff  message  x\n"));
    let request = server.request().await;
    for line in [
        "last-event-id: a-7-ff\r\n",
        "authorization: bearer t\r\n",
        "x-a: 1\r\n",
    ] {
        assert!(request.contains(line), "{line} in {request}");
    }
}

#[tokio::test]
async fn a_renewal_reconnects_with_the_token_that_a_command_prints() {
    let renewal = "event: sidestream.renew\ndata: {\"expires\":1795961031}\n\n";
    let mut server = Responder::start(vec![
        (
            stream(&format!("data: x\nid: a-1\n\n{renewal}data: y\n\n")),
            Then::Silence,
        ),
        (stream("data: y\nid: a-2\n\n"), Then::Silence),
    ])
    .await;
    let folder = tempfile::tempdir().unwrap();
    let count = folder.path().join("count");
    let command = format!("echo >> {0}; echo token-$(wc -l < {0})", count.display());
    let arguments = ["--bearer-command", &command, "--events", "2"];
    let (code, out, error) = follow(&server, &arguments).await;
    assert_eq!(code, 0, "{error}");
    assert_eq!(out, "a-1  message  x\na-2  message  y\n");
    let (first, second) = (server.request().await, server.request().await);
    assert!(
        first.contains("authorization: bearer token-1\r\n"),
        "{first}"
    );
    assert!(
        second.contains("authorization: bearer token-2\r\n"),
        "{second}"
    );
    assert!(second.contains("last-event-id: a-1\r\n"), "{second}");
    assert!(!error.contains("token-"), "{error}");
}

#[tokio::test]
async fn a_command_that_prints_no_token_ends_tail_and_a_failed_one_is_run_again() {
    let mut server = Responder::start(vec![(stream("data: x\n\n"), Then::Silence)]).await;
    let arguments = ["--bearer-command", "echo two words"];
    let (code, _, error) = follow(&server, &arguments).await;
    assert_eq!(code, 69);
    assert!(
        error.contains("the bearer command prints no token"),
        "{error}"
    );
    let folder = tempfile::tempdir().unwrap();
    let ran = folder.path().join("ran");
    let command = format!(
        "test -e {0} && echo t || {{ touch {0}; exit 3; }}",
        ran.display()
    );
    let arguments = ["--bearer-command", &command, "--events", "1"];
    let (code, _, error) = follow(&server, &arguments).await;
    assert_eq!(code, 0, "{error}");
    assert!(
        error.contains("the bearer command failed (exit status: 3)"),
        "{error}"
    );
    assert!(
        server
            .request()
            .await
            .contains("authorization: bearer t\r\n")
    );
}

#[tokio::test]
async fn subjects_with_wildcards_need_no_encoding() {
    let mut server = Responder::start(vec![(stream("data: x\n\n"), Then::Silence)]).await;
    let url = format!("http://{}/events?subject=demo.>", server.address);
    assert_eq!(finished(tail(&[&url, "--events", "1"])).await.0, 0);
    assert!(
        server
            .request()
            .await
            .starts_with("get /events?subject=demo.%3e http/1.1\r\n")
    );
}

#[tokio::test]
async fn a_204_ends_tail_without_an_error() {
    let server = Responder::start(vec![(
        "HTTP/1.1 204 No Content\r\n\r\n".into(),
        Then::Close,
    )])
    .await;
    assert_eq!(follow(&server, &[]).await.0, 0);
}

#[tokio::test]
async fn a_4xx_ends_tail_with_the_message_of_the_server() {
    let body = r#"{"error":{"code":"subject_not_allowed","message":"orders.> is not allowed","hint":"ask for demo.>"}}"#;
    let answer = format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let server = Responder::start(vec![(answer, Then::Silence)]).await;
    let (code, out, err) = follow(&server, &[]).await;
    assert_eq!((code, out.as_str()), (69, ""));
    assert!(
        err.contains("403 Forbidden: orders.> is not allowed (ask for demo.>)"),
        "{err}"
    );
}

#[tokio::test]
async fn a_response_of_another_type_is_an_error() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n";
    let server = Responder::start(vec![(answer.into(), Then::Silence)]).await;
    let (code, _, err) = follow(&server, &[]).await;
    assert_eq!(code, 69);
    assert!(err.contains("not an event stream"), "{err}");
}

#[tokio::test]
async fn a_503_and_a_429_are_retried_after_retry_after() {
    let no = |status: &str, after: &str| {
        (
            format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n{after}Connection: close\r\n\r\n"),
            Then::Close,
        )
    };
    let hello = (stream("retry: 10\nid: a-1-ff\n\n"), Then::Close);
    let events = (stream("data: x\n\n"), Then::Silence);
    let server = Responder::start(vec![
        hello,
        no("503 Service Unavailable", "Retry-After: 1\r\n"),
        no("429 Too Many Requests", "Retry-After: 1\r\n"),
        events,
    ])
    .await;
    let begun = Instant::now();
    let (code, _, err) = follow(&server, &["--events", "1"]).await;
    assert_eq!(code, 0);
    assert!(
        begun.elapsed() >= Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert!(err.contains("503") && err.contains("429"), "{err}");
}

#[tokio::test]
async fn a_redirect_within_the_host_is_followed_at_every_connect() {
    let moved = (
        "HTTP/1.1 307 Moved\r\nLocation: /there?x=1\r\nContent-Length: 0\r\n\r\n".to_owned(),
        Then::Close,
    );
    let mut server = Responder::start(vec![
        moved.clone(),
        (stream("retry: 10\n\ndata: one\n\n"), Then::Close),
        moved,
        (stream("data: two\n\n"), Then::Silence),
    ])
    .await;
    let (code, out, err) = follow(&server, &["--events", "2"]).await;
    assert_eq!(
        (code, out.as_str()),
        (0, "-  message  one\n-  message  two\n")
    );
    assert!(err.contains("redirected to http://"), "{err}");
    for path in ["/events", "/there?x=1", "/events", "/there?x=1"] {
        assert!(server.request().await.starts_with(&format!("get {path} ")));
    }
}

#[tokio::test]
async fn a_redirect_to_another_host_is_an_error() {
    let answer = "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.invalid/events\r\nContent-Length: 0\r\n\r\n";
    let server = Responder::start(vec![(answer.into(), Then::Close)]).await;
    let (code, _, err) = follow(&server, &["--header", "Authorization: secret"]).await;
    assert_eq!(code, 69);
    assert!(
        err.contains("redirects to another host or port: http://elsewhere.invalid/events"),
        "{err}"
    );
    assert!(!err.contains("secret"), "{err}");
}

#[tokio::test]
async fn an_event_above_the_size_limit_ends_tail() {
    let huge = stream(&format!("data: {}\n\n", "x".repeat(17 << 20)));
    let server = Responder::start(vec![(huge, Then::Silence)]).await;
    let (code, out, err) = follow(&server, &[]).await;
    assert_eq!((code, out.as_str()), (69, ""));
    assert!(err.contains("more than 16777216 bytes"), "{err}");
}

#[tokio::test]
async fn ctrl_c_ends_tail_cleanly() {
    let server = Responder::start(vec![(stream("data: x\n\n"), Then::Silence)]).await;
    let mut child = started(tail(&[&format!("http://{}/", server.address)]));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(
        timeout(DEADLINE, lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap(),
        "-  message  x"
    );
    kill_process(
        Pid::from_raw(child.id().unwrap().cast_signed()).unwrap(),
        Signal::INT,
    )
    .unwrap();
    assert_eq!(exit_code(&mut child).await, 0);
}

#[tokio::test]
async fn a_closed_pipe_ends_tail_cleanly() {
    let body = "data: x\n\n".repeat(100_000);
    let server = Responder::start(vec![(stream(&body), Then::Silence)]).await;
    let mut child = started(tail(&[&format!("http://{}/", server.address)]));
    drop(child.stdout.take());
    assert_eq!(exit_code(&mut child).await, 0);
}

#[tokio::test]
async fn events_that_cannot_be_written_end_tail_with_an_error() {
    let server = Responder::start(vec![(stream("data: x\n\n"), Then::Silence)]).await;
    let mut command = tail(&[&format!("http://{}/", server.address)]);
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let child = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let output = timeout(DEADLINE, child.wait_with_output())
        .await
        .expect("it ends in time")
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(70), "{told}");
    let message =
        "sidestream: cannot write to standard output: No space left on device (os error 28)\n";
    assert!(told.ends_with(message), "{told}");
}

#[tokio::test]
async fn bad_usage_exits_with_64() {
    for arguments in [
        &[][..],
        &["localhost:8080"],
        &["http://h/", "--header", "no colon"],
        &["http://h/", "--header", "Last-Event-ID: 7"],
        &["http://h/", "--events", "0"],
        &["http://h/", "--nonsense"],
        &["https://h/", "--cacert", "/nonexistent.pem"],
    ] {
        let (code, out, err) = finished(tail(arguments)).await;
        assert_eq!((code, out.as_str()), (64, ""), "{arguments:?}: {err}");
        assert!(!err.is_empty(), "{arguments:?}");
    }
    let (code, out, _) = finished(tail(&["--help"])).await;
    assert_eq!(code, 0);
    assert!(out.contains("--last-event-id"), "{out}");
}

#[tokio::test]
async fn http2_by_prior_knowledge_is_an_option() {
    let address = secure::serve(secure::Mode::ClearHttp2).await;
    let (code, out, err) = finished(tail(&[
        &format!("http://{address}/events"),
        "--http2",
        "--events",
        "2",
    ]))
    .await;
    assert_eq!(
        (code, out.as_str()),
        (
            0,
            "a-1-ff  message  HTTP/2.0 /events\na-1-ff  message  HTTP/2.0 /events\n"
        ),
        "{err}"
    );
    assert!(
        err.contains("connected over HTTP/2, resuming after a-1-ff"),
        "{err}"
    );
}

#[tokio::test]
async fn tls_negotiates_the_http_version_and_trusts_the_given_authority() {
    for (mode, version) in [
        (secure::Mode::TlsHttp1, "HTTP/1.1"),
        (secure::Mode::TlsBoth, "HTTP/2.0"),
    ] {
        let authority = secure::Authority::new();
        let address = secure::serve_tls(mode, &authority).await;
        let url = format!("https://localhost:{}/events", address.port());
        let (code, out, err) =
            finished(tail(&[&url, "--events", "1", "--cacert", authority.file()])).await;
        assert_eq!(
            (code, out),
            (0, format!("a-1-ff  message  {version} /events\n")),
            "{err}"
        );
        let (code, out, err) = finished(tail(&[&url, "--events", "1"])).await;
        assert_eq!((code, out.as_str()), (69, ""), "{err}");
        assert!(err.contains("--cacert"), "{err}");
    }
}
