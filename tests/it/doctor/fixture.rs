//! A pod that answers probes, and the doctor as a child process.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use testkit::certs::Authority;
use testkit::front::{Front, Kind, Ports};
use testkit::nats::{Nats, create_stream, free_port};
use testkit::sidestream::Sidestream;
use tokio::process::Command;
use tokio::time::timeout;

/// Origin of a page that the route allows.
pub(super) const PAGE: &str = "https://page.example";

/// nginx fills its buffers when it speaks HTTP/1.0 to the pods: a chunk of HTTP/1.1 passes at once.
pub(super) const NGINX_BUFFERS: [(&str, &str); 2] = [
    ("proxy_http_version 1.1;", "proxy_http_version 1.0;"),
    (
        "proxy_buffering off;",
        "proxy_ignore_headers X-Accel-Buffering;",
    ),
];

/// 90 s: a minute, and a busy machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// Ages of a run.
#[derive(Clone, Copy)]
pub(super) struct Ages {
    /// Heartbeat of the route.
    pub(super) heartbeat: &'static str,
    /// `--for` of the doctor.
    pub(super) watch: &'static str,
}

/// Ages for tests of a few seconds.
pub(super) const SHORT: Ages = Ages {
    heartbeat: "2s",
    watch: "5s",
};

/// Ages by default.
pub(super) const FULL: Ages = Ages {
    heartbeat: "15s",
    watch: "60s",
};

/// A pod on ports that are known before it starts.
pub(super) struct Pod {
    _nats: Nats,
    pub(super) sidestream: Sidestream,
    pub(super) ports: Ports,
    pub(super) authority: Authority,
    ages: Ages,
}

/// Result of the doctor.
pub(super) struct Diagnosis {
    pub(super) code: i32,
    pub(super) document: Value,
}

impl Pod {
    /// `route`: further keys of the route.
    pub(super) async fn start(ages: Ages, route: &str) -> Self {
        let nats = Nats::start().await;
        create_stream(&nats.jetstream().await, "EVENTS", &["events.>"]).await;
        let ports = Ports {
            clients: free_port(),
            admin: free_port(),
        };
        let (url, Ports { clients, admin }) = (nats.url(), ports);
        let heartbeat = ages.heartbeat;
        let config = format!(
            "listen: [{{ address: \"127.0.0.1:{clients}\" }}]
admin: {{ address: \"127.0.0.1:{admin}\" }}
nats: {{ servers: [\"{url}\"] }}
trusted_proxies: [\"127.0.0.0/8\"]
routes:
  - path: /events
    sources: [{{ stream: EVENTS, subjects: [\"events.>\"] }}]
    heartbeat: {heartbeat}
    cors: {{ origins: [\"{PAGE}\"] }}
    {route}
"
        );
        Self {
            _nats: nats,
            sidestream: Sidestream::start(config).await,
            ports,
            authority: Authority::new(),
            ages,
        }
    }

    /// A proxy in front, both of whose addresses are this pod. `planted`: changes of its documented
    /// configuration.
    pub(super) async fn front(&self, kind: Kind, planted: &[(&str, &str)]) -> Front {
        Front::start_with(kind, [self.ports; 2], &self.authority, planted).await
    }

    /// Runs the doctor.
    pub(super) async fn diagnose(&self, url: &str, arguments: &[&str]) -> Diagnosis {
        let authority = self.authority.file().display().to_string();
        let mut all = vec!["doctor", "--json", "--for", self.ages.watch];
        if url.starts_with("https") {
            all.extend(["--ca", &authority]);
        }
        all.extend(arguments);
        all.push(url);
        run(&all).await
    }
}

/// Runs the doctor with these arguments.
pub(super) async fn run(arguments: &[&str]) -> Diagnosis {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidestream"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    let output = timeout(DEADLINE, command.output()).await.unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    Diagnosis {
        code: output.status.code().unwrap(),
        document: serde_json::from_str(&text).unwrap_or(Value::String(text)),
    }
}

impl Diagnosis {
    /// Names of the faults that were found.
    pub(super) fn faults(&self) -> Vec<&str> {
        let findings = self.document["findings"].as_array().unwrap();
        findings
            .iter()
            .map(|finding| finding["fault"].as_str().unwrap())
            .collect()
    }

    /// The one fault that was found.
    pub(super) fn only(&self, fault: &str) -> &Value {
        assert_eq!(self.faults(), [fault], "{:#}", self.document);
        assert_eq!(self.code, 65);
        &self.document["findings"][0]
    }

    /// Names of the products that were recognised.
    pub(super) fn products(&self) -> Vec<&str> {
        let proxies = self.document["proxies"].as_array().unwrap();
        proxies
            .iter()
            .map(|proxy| proxy["product"].as_str().unwrap())
            .collect()
    }
}
