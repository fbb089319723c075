//! nginx as the application: static files with ranges and validators, over both protocols.

use std::process::Command;

use testkit::h2::H2Client;
use testkit::http1;
use testkit::nats::{Nats, free_port};
use testkit::process::Process;
use testkit::sidestream::{Sidestream, config};
use testkit::wait::{DEADLINE, eventually};

const CONFIGURATION: &str = "
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen 127.0.0.1:PORT;
        root .;
        location = /status/204 { return 204; }
        location = /early { return 413 early; }
    }
}
";

#[tokio::test]
async fn ranges_validators_and_empty_responses_of_nginx_pass() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let text = CONFIGURATION.replace("PORT", &port.to_string());
    std::fs::write(folder.path().join("nginx.conf"), text).unwrap();
    std::fs::write(folder.path().join("file"), "0123456789").unwrap();
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder.path());
    let _nginx = Process::spawn("nginx", command.args(["-c", "nginx.conf"]));
    let own = format!("http://127.0.0.1:{port}/file");
    eventually(DEADLINE, "nginx listens", async || {
        http1::get(&own).await.ok()
    })
    .await;
    let nats = Nats::start().await;
    let text = format!(
        "application: {{ address: \"http://127.0.0.1:{port}\" }}
routes: [{{ path: /events, sources: [{{ subjects: [events] }}] }}]
"
    );
    let sidestream = Sidestream::start(config(&nats, &text)).await;
    let whole = http1::get(&sidestream.url("/file")).await.unwrap();
    assert_eq!(whole.body, "0123456789");
    let etag = whole.header("etag").unwrap().to_owned();
    let mut client = H2Client::connect(sidestream.url("/")).await;
    let range = [("range", "bytes=2-4")];
    let beyond = [("range", "bytes=20-")];
    let known = [("if-none-match", &*etag)];
    for (method, path, fields, status, body) in [
        ("GET", "/file", &[][..], 200, Some("0123456789")),
        ("HEAD", "/file", &[], 200, Some("")),
        ("GET", "/file", &range, 206, Some("234")),
        ("HEAD", "/file", &range, 206, Some("")),
        ("GET", "/file", &beyond, 416, None),
        ("GET", "/file", &known, 304, Some("")),
        ("GET", "/status/204", &[], 204, Some("")),
        ("POST", "/early", &[], 413, Some("early")),
        ("GET", "/missing", &[], 404, None),
    ] {
        let url = sidestream.url(path);
        let answer = http1::request(method, &url, fields).await.unwrap();
        assert_eq!(answer.status, status, "{method} {path} {fields:?}");
        if status == 206 {
            assert_eq!(answer.header("content-range").unwrap(), "bytes 2-4/10");
            assert_eq!(answer.header("content-length").unwrap(), "3");
        }
        let mut second = client.request(method, path, fields).await;
        assert_eq!(second.status(), status, "{method} {path} {fields:?}");
        if let Some(body) = body {
            assert_eq!(answer.body, body, "{method} {path} {fields:?}");
            assert_eq!(second.body().await, body, "{method} {path} {fields:?}");
        }
    }
}
