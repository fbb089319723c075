//! Protected pages of the admin port: tokens, client certificates, and what stays open.

use std::time::{Duration, Instant};

use hyper::Uri;
use testkit::certs::{Authority, Identity};
use testkit::http1::{self, Answer, Response};
use testkit::nats::Nats;
use testkit::sidestream::Sidestream;
use testkit::transport::Connector;
use testkit::wait::eventually;

const TOKEN: &str = "the-token-of-the-admin-port-2026";
const OTHER: &str = "another-token-of-the-admin-port1";

const PROTECTED: [&str; 2] = ["/connections", "/config"];
const OPEN: [&str; 4] = ["/health", "/health/live", "/health/ready", "/metrics"];

/// Configuration with these keys of `admin`.
fn config(nats: &Nats, admin: &str) -> String {
    format!(
        "listen:\n  - address: 127.0.0.1:0\nadmin:\n  address: 127.0.0.1:0\n{admin}\
         nats:\n  servers: [\"{}\"]\nroutes:\n  - path: /a\n    sources: [{{ subjects: [a] }}]\n",
        nats.url()
    )
}

async fn get(sidestream: &Sidestream, path: &str, headers: &[(&str, &str)]) -> Answer {
    http1::request("GET", &sidestream.url_admin(path), headers)
        .await
        .unwrap()
}

async fn get_with_token(sidestream: &Sidestream, path: &str, token: &str) -> Answer {
    let value = format!("Bearer {token}");
    get(sidestream, path, &[("Authorization", &value)]).await
}

/// Status and code of a rejection.
fn rejection(answer: &Answer) -> (u16, String) {
    let code = answer.json()["error"]["code"].as_str().unwrap().to_owned();
    (answer.status, code)
}

async fn rejections(sidestream: &Sidestream, code: &str) -> f64 {
    let labels = [("port", "admin"), ("code", code)];
    sidestream
        .metric("sidestream_admin_refusals_total", &labels)
        .await
}

#[tokio::test]
async fn token_protects_connections_and_configuration_and_nothing_else() {
    let nats = Nats::start().await;
    let text = config(&nats, "  token: \"${ADMIN_TOKEN}\"\n");
    let sidestream = Sidestream::builder(text)
        .env("ADMIN_TOKEN", TOKEN)
        .start()
        .await;
    for path in OPEN {
        assert_eq!(get(&sidestream, path, &[]).await.status, 200, "{path}");
    }
    let right = format!("Bearer {TOKEN}");
    let lower_case = format!("bearer {TOKEN}");
    let basic = format!("Basic {TOKEN}");
    let wrong = format!("Bearer {OTHER}");
    for path in PROTECTED {
        for value in [&right, &lower_case] {
            let answer = get(&sidestream, path, &[("Authorization", value)]).await;
            assert_eq!(answer.status, 200, "{path} {value}");
            assert!(!answer.body.contains(TOKEN), "{path}");
        }
        for headers in [&[][..], &[("Authorization", &*basic)][..]] {
            let answer = get(&sidestream, path, headers).await;
            assert_eq!(
                rejection(&answer),
                (401, "unauthenticated".into()),
                "{path}"
            );
            assert_eq!(
                answer.header("www-authenticate").unwrap(),
                r#"Bearer realm="sidestream-admin""#
            );
        }
        let twice = [("Authorization", &*right), ("Authorization", &*right)];
        for headers in [&[("Authorization", &*wrong)][..], &twice[..]] {
            let answer = get(&sidestream, path, headers).await;
            assert_eq!(rejection(&answer), (401, "invalid_token".into()), "{path}");
            let challenge = answer.header("www-authenticate").unwrap();
            assert!(
                challenge.starts_with(
                    r#"Bearer realm="sidestream-admin", error="invalid_token", error_description=""#
                ),
                "{challenge}"
            );
        }
    }
    let url = sidestream.url_admin("/config");
    let head = http1::request("HEAD", &url, &[]).await.unwrap();
    assert_eq!(head.status, 401);
    assert_eq!(rejections(&sidestream, "unauthenticated").await, 5.0);
    assert_eq!(rejections(&sidestream, "invalid_token").await, 4.0);
    let shown = get_with_token(&sidestream, "/config", TOKEN).await.json();
    assert_eq!(shown["effective"]["admin"]["token"], "***");
    let output = sidestream.output().join("\n");
    assert!(
        !output.contains(TOKEN) && !output.contains(OTHER),
        "{output}"
    );
}

/// Waits until the other token is accepted, and checks that the first one no longer is.
async fn other_token_is_in_force(sidestream: &Sidestream) {
    eventually(
        Duration::from_secs(15),
        "the new token is in force",
        || async { get_with_token(sidestream, "/config", OTHER).await.status == 200 },
    )
    .await;
    let first = get_with_token(sidestream, "/config", TOKEN).await;
    assert_eq!(first.status, 401);
}

#[tokio::test]
async fn reload_replaces_and_removes_the_token() {
    let nats = Nats::start().await;
    let with = |token: &str| config(&nats, &format!("  token: {token}\n"));
    let sidestream = Sidestream::start(with(TOKEN)).await;
    assert_eq!(
        get_with_token(&sidestream, "/config", TOKEN).await.status,
        200
    );

    sidestream.rewrite_config(&with(OTHER));
    other_token_is_in_force(&sidestream).await;
    let health = sidestream.admin_json("/health").await;
    assert_eq!(health["checks"]["config"]["status"], "ok", "{health}");

    // The token in force stays until the restart that the file needs.
    std::fs::write(sidestream.folder().join("token"), TOKEN).unwrap();
    sidestream.rewrite_config(&config(&nats, "  token_file: token\n"));
    eventually(
        Duration::from_secs(15),
        "the restart is reported",
        || async {
            let health = sidestream.admin_json("/health").await;
            let message = health["checks"]["config"]["message"].as_str();
            message.is_some_and(|text| text.contains("admin.token_file"))
        },
    )
    .await;
    assert_eq!(
        get_with_token(&sidestream, "/config", OTHER).await.status,
        200
    );
    assert_eq!(get(&sidestream, "/config", &[]).await.status, 401);

    sidestream.rewrite_config(&config(&nats, ""));
    eventually(Duration::from_secs(15), "the pages are open", || async {
        get(&sidestream, "/config", &[]).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn token_of_a_file_is_replaced_when_the_file_changes() {
    let nats = Nats::start().await;
    let sidestream = Sidestream::builder(config(&nats, "  token_file: token\n"))
        .file("token", format!("{TOKEN}\n"))
        .start()
        .await;
    assert_eq!(get(&sidestream, "/config", &[]).await.status, 401);
    assert_eq!(
        get_with_token(&sidestream, "/config", TOKEN).await.status,
        200
    );

    let file = sidestream.folder().join("token");
    let replace = |content: &str| {
        let next = sidestream.folder().join("next");
        std::fs::write(&next, content).unwrap();
        std::fs::rename(next, &file).unwrap();
    };
    replace("");
    let check =
        || async { sidestream.admin_json("/health").await["checks"]["admin_token"].clone() };
    eventually(
        Duration::from_secs(15),
        "the empty file is reported",
        || async { check().await["status"] == "degraded" },
    )
    .await;
    assert_eq!(check().await["message"], "the file is empty");
    let reported = [("check", "admin_token"), ("status", "degraded")];
    let name = "sidestream_health_check";
    assert_eq!(sidestream.metric(name, &reported).await, 1.0);
    let of_check = [("check", "admin_token")];
    assert_eq!(
        sidestream.metric(name, &of_check).await,
        1.0,
        "one status at a time"
    );
    assert_eq!(sidestream.admin("/health/ready").await.0, 200);
    assert_eq!(get(&sidestream, "/config", &[]).await.status, 401);
    assert_eq!(
        get_with_token(&sidestream, "/config", TOKEN).await.status,
        200
    );

    replace(OTHER);
    other_token_is_in_force(&sidestream).await;
    assert_eq!(check().await["status"], "ok");
}

#[tokio::test]
async fn sidecar_without_a_readable_token_does_not_start() {
    let nats = Nats::start().await;
    for (admin, expected) in [
        ("  token_file: missing\n", "admin.token_file missing: "),
        (
            "  token: \"${ADMIN_TOKEN}\"\n",
            "the variable of the token is empty",
        ),
        (
            "  tls: { certificate: missing.crt, key: missing.key }\n",
            "admin.tls: missing.crt cannot be read",
        ),
    ] {
        let mut sidestream = Sidestream::builder(config(&nats, admin))
            .env("ADMIN_TOKEN", "")
            .spawn();
        let code = sidestream.wait_exit(Duration::from_secs(20)).await;
        let output = sidestream.output().join("\n");
        assert!(code > 0 && output.contains(expected), "{code}: {output}");
    }
}

#[tokio::test]
async fn wrong_tokens_of_one_address_are_limited() {
    let nats = Nats::start().await;
    let sidestream = Sidestream::start(config(&nats, &format!("  token: {TOKEN}\n"))).await;
    let mut answers = Vec::new();
    let begun = Instant::now();
    for _ in 0..60 {
        answers.push(get_with_token(&sidestream, "/config", OTHER).await);
    }
    let compared = answers.iter().filter(|answer| answer.status == 401).count();
    let allowed = 20 + begun.elapsed().as_secs() as usize + 1;
    assert!(
        (20..=allowed).contains(&compared),
        "{compared} of 60 compared"
    );
    let limited = answers.iter().find(|answer| answer.status == 429).unwrap();
    assert_eq!(
        rejection(limited),
        (429, "too_many_authentication_failures".into())
    );
    assert_eq!(limited.header("retry-after").unwrap(), "1");
    for path in OPEN {
        assert_eq!(get(&sidestream, path, &[]).await.status, 200, "{path}");
    }
    let counted = rejections(&sidestream, "too_many_authentication_failures").await;
    assert_eq!(counted, (60 - compared) as f64);
    // A rejected request does not extend the wait.
    eventually(
        Duration::from_secs(10),
        "the right token is compared",
        || async { get_with_token(&sidestream, "/config", TOKEN).await.status == 200 },
    )
    .await;
}

/// Sidecar whose admin port has TLS.
struct Encrypted {
    authority: Authority,
    sidestream: Sidestream,
}

impl Encrypted {
    /// `client_ca` and `rest`: keys of `admin.tls` and `admin`.
    async fn start(nats: &Nats, client_ca: bool, rest: &str) -> Self {
        let authority = Authority::new();
        let server = authority.server("server");
        let ca = client_ca.then(|| format!(", client_ca: {:?}", authority.file()));
        let keys = format!(
            "  tls: {{ certificate: {:?}, key: {:?}{} }}\n{rest}",
            server.certificate,
            server.key,
            ca.unwrap_or_default()
        );
        let sidestream = Sidestream::builder(config(nats, &keys))
            .without_waiting()
            .start()
            .await;
        let this = Self {
            authority,
            sidestream,
        };
        eventually(Duration::from_secs(20), "the sidecar is ready", || async {
            this.get("/health/ready", None, &[]).await.unwrap() == 200
        })
        .await;
        this
    }

    /// Status of a page, with the certificate of a client.
    async fn get(
        &self,
        path: &str,
        client: Option<&Identity>,
        headers: &[(&str, &str)],
    ) -> std::io::Result<u16> {
        // As a Go client, which prefers HTTP/2.
        let protocols = ["h2", "http/1.1"];
        let tls = match client {
            None => self.authority.trusting(&protocols),
            Some(client) => self.authority.trusting_as(&protocols, client),
        };
        let url = self.sidestream.url_admin(path).replace("http:", "https:");
        let url: Uri = url.parse().unwrap();
        let transport = Connector::default().tls(tls).connect(&url).await?;
        assert_eq!(transport.alpn(), Some(&b"http/1.1"[..]));
        let mut all = vec![("Connection", "close")];
        all.extend_from_slice(headers);
        let head = http1::head("GET", &url, 1, &all);
        let mut response = Response::exchange(transport, head.as_bytes(), false).await?;
        response.body().await;
        Ok(response.status)
    }
}

#[tokio::test]
async fn client_certificate_opens_the_protected_pages_and_probes_need_none() {
    let nats = Nats::start().await;
    let admin = Encrypted::start(&nats, true, "").await;
    let other = Authority::new();
    let (known, stranger) = (
        admin.authority.client("prometheus"),
        other.client("stranger"),
    );
    for path in OPEN {
        assert_eq!(admin.get(path, None, &[]).await.unwrap(), 200, "{path}");
        assert_eq!(
            admin.get(path, Some(&known), &[]).await.unwrap(),
            200,
            "{path}"
        );
    }
    for path in PROTECTED {
        assert_eq!(admin.get(path, None, &[]).await.unwrap(), 403, "{path}");
        let bearer = [("Authorization", "Bearer any")];
        assert_eq!(admin.get(path, None, &bearer).await.unwrap(), 403, "{path}");
        assert_eq!(
            admin.get(path, Some(&known), &[]).await.unwrap(),
            200,
            "{path}"
        );
        admin.get(path, Some(&stranger), &[]).await.unwrap_err();
    }
    let clear = http1::get(&admin.sidestream.url_admin("/config")).await;
    assert!(clear.is_err(), "clear text gets no response: {clear:?}");
}

#[tokio::test]
async fn token_or_certificate_suffices_if_both_are_configured() {
    let nats = Nats::start().await;
    let admin = Encrypted::start(&nats, true, &format!("  token: {TOKEN}\n")).await;
    let known = admin.authority.client("operator");
    let (right, wrong) = (format!("Bearer {TOKEN}"), format!("Bearer {OTHER}"));
    let (right, wrong) = (right.as_str(), wrong.as_str());
    let bearer = |value| [("Authorization", value)];
    for path in PROTECTED {
        assert_eq!(admin.get(path, Some(&known), &[]).await.unwrap(), 200);
        assert_eq!(admin.get(path, None, &bearer(right)).await.unwrap(), 200);
        assert_eq!(admin.get(path, None, &bearer(wrong)).await.unwrap(), 401);
        assert_eq!(admin.get(path, None, &[]).await.unwrap(), 401);
    }
}

#[tokio::test]
async fn probes_over_tls_are_answered_while_hundreds_of_handshakes_are_unfinished() {
    let nats = Nats::start().await;
    let admin = Encrypted::start(&nats, true, "").await;
    let address = admin.sidestream.url_admin("").replace("http://", "");
    // The beginning of a ClientHello.
    let unfinished = (0..200).map(|_| {
        let mut socket = std::net::TcpStream::connect(&address).unwrap();
        // The connection may be evicted by now.
        let _reset = std::io::Write::write_all(&mut socket, &[0x16, 3, 1, 2, 0]);
        socket
    });
    let unfinished: Vec<_> = unfinished.collect();
    for _ in 0..3 {
        let begun = Instant::now();
        assert_eq!(admin.get("/health/live", None, &[]).await.unwrap(), 200);
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "{:?}",
            begun.elapsed()
        );
    }
    drop(unfinished);
}

#[tokio::test]
async fn admin_port_uses_a_renewed_certificate() {
    let nats = Nats::start().await;
    let admin = Encrypted::start(&nats, false, "").await;
    assert_eq!(
        admin.get("/config", None, &[]).await.unwrap(),
        200,
        "TLS alone protects no page"
    );
    let served = || async {
        let url = admin.sidestream.url_admin("/").replace("http:", "https:");
        let connector = Connector::default().tls(admin.authority.trusting(&["http/1.1"]));
        let transport = connector.connect(&url.parse().unwrap()).await.unwrap();
        let testkit::transport::Transport::Tls(tls) = transport else {
            panic!("an https address is TLS")
        };
        tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = served().await;
    admin.authority.server("server");
    eventually(
        Duration::from_secs(15),
        "the new certificate is served",
        || async { served().await != before },
    )
    .await;
}
