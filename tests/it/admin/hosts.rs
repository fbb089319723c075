//! Requests to the admin port from pages in a browser, and ambiguous requests.

use super::{Answer, Operator};

fn ask(operator: &Operator, path: &str, head: &str) -> Answer {
    operator.ask(&format!("GET {path} {head}\r\n\r\n"))
}

#[test]
fn addresses_names_without_a_dot_and_configured_names_are_answered_and_other_hosts_are_misdirected()
{
    let operator = Operator::start();
    for path in [
        "/health",
        "/health/live",
        "/metrics",
        "/connections",
        "/config",
    ] {
        for host in [
            "127.0.0.1",
            "10.9.8.7:9090",
            "[fd00::7]:9090",
            "localhost",
            "sidecar",
            "sidecar.example",
            "Sidecar.Example:9090",
        ] {
            assert_eq!(
                ask(&operator, path, &format!("HTTP/1.1\r\nHost: {host}")).status(),
                200,
                "{path} {host}"
            );
        }
        for host in [
            "evil.example",
            "evil.example:9090",
            "127.0.0.1.evil.example",
            "sidecar.evil",
        ] {
            let answer = ask(&operator, path, &format!("HTTP/1.1\r\nHost: {host}"));
            if path.starts_with("/health") {
                assert_eq!(
                    answer.status(),
                    200,
                    "a load balancer may send any name: {path} {host}"
                );
                continue;
            }
            assert_eq!(
                (answer.status(), &answer.json()["error"]["code"]),
                (421, &"host_not_allowed".into()),
                "{path} {host}"
            );
        }
    }
    let metrics = operator.get("/metrics").body;
    let sample = "sidestream_admin_refusals_total{code=\"host_not_allowed\",port=\"admin\"} 12";
    assert!(metrics.lines().any(|line| line == sample), "{metrics}");
}

#[test]
fn a_request_without_exactly_one_host_or_with_bare_line_feeds_is_rejected() {
    let operator = Operator::start();
    for (head, code) in [
        ("HTTP/1.1", "bad_host"),
        ("HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1", "bad_host"),
        ("HTTP/1.1\r\nHost: user@127.0.0.1", "bad_host"),
        ("HTTP/1.1\nHost: 127.0.0.1", "bare_line_feed"),
        ("HTTP/1.1\r\nHost: 127.0.0.1\nX: y", "bare_line_feed"),
        ("HTTP/1.0\r\nHost: 127.0.0.1\n", "bare_line_feed"),
    ] {
        let answer = ask(&operator, "/config", head);
        assert_eq!(
            (answer.status(), &answer.json()["error"]["code"]),
            (400, &code.into()),
            "{head:?}"
        );
    }
    assert_eq!(
        ask(&operator, "/config", "HTTP/1.0").status(),
        200,
        "HTTP/1.0 needs no host"
    );
}

#[test]
fn responses_forbid_content_sniffing() {
    let operator = Operator::start();
    let paths = [
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/connections",
        "/connections?x",
        "/config",
        "/x",
    ];
    for path in paths {
        assert_eq!(
            operator.get(path).header("x-content-type-options"),
            Some("nosniff"),
            "{path}"
        );
    }
    let rejected = operator.ask("POST /config HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert_eq!(rejected.header("x-content-type-options"), Some("nosniff"));
}
