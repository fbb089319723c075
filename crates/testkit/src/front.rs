//! A reverse proxy in front of two pods, started with the configuration of `docs/proxies`.
//!
//! The files are used as documented. `Text::replace` changes only addresses, ports, intervals and
//! logging, and panics if a file no longer has the text to replace.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::certs::{Authority, Identity};
use crate::h2::H2Client;
use crate::http1;
use crate::nats::free_port;
use crate::process::Process;
use crate::repository::{root, tool};
use crate::wait::{DEADLINE, eventually};

/// Proxy product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// nginx as documented: HTTP/1.1 to the pods.
    Nginx,
    /// nginx without `proxy_http_version`: HTTP/1.0 to the pods.
    NginxHttp10,
    /// HAProxy as documented.
    Haproxy,
    /// Envoy as documented: HTTP/2 to the pods.
    Envoy,
    /// Caddy as documented.
    Caddy,
    /// Traefik as documented: HTTP/1.1 to the pods.
    Traefik,
}

/// Ports of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Port for clients, in clear text.
    pub clients: u16,
    /// Admin port.
    pub admin: u16,
}

/// Running proxy. Dropping it kills the process.
pub struct Front {
    kind: Kind,
    process: Process,
    folder: TempDir,
    plain: u16,
    secure: u16,
    /// Admin port of Envoy. With Traefik: port of the web server that returns `later.http`.
    admin: u16,
    pods: [Ports; 2],
}

/// Summary of the access log for requests of event streams: all requests but those for `/`.
#[derive(Debug, Default)]
pub struct Logged {
    /// Requests that a pod answered with 200.
    pub answered: usize,
    /// Requests that were retried on another pod, after no response or a 503.
    pub passed_on: usize,
    /// Log lines of requests that no pod answered with 200.
    pub failed: Vec<String>,
}

/// File of `docs/proxies`, edited for the addresses of the test.
struct Text {
    name: &'static str,
    text: String,
}

// === impl Kind ===

impl Kind {
    /// All products.
    pub const ALL: [Self; 6] = [
        Self::Nginx,
        Self::NginxHttp10,
        Self::Haproxy,
        Self::Envoy,
        Self::Caddy,
        Self::Traefik,
    ];

    /// Returns true if a log line is about a request for an event stream.
    fn is_for_events(self, line: &str) -> bool {
        match self {
            Self::Caddy => {
                line.contains("\"handled request\"")
                    && line.contains("\"method\":\"GET\"")
                    && !line.contains("\"uri\":\"/\"")
            }
            Self::Traefik => {
                line.contains("\"RequestMethod\":\"GET\"")
                    && !line.contains("\"RequestPath\":\"/\"")
            }
            _ => line.contains("\"GET /") && !line.contains("\"GET / "),
        }
    }

    /// Reads a log line: `(a pod answered with 200, more than one pod was asked)`.
    fn answer(self, line: &str) -> (bool, bool) {
        match self {
            Self::Nginx | Self::NginxHttp10 => {
                // Statuses of all pods that were asked, in the format of `NGINX_HTTP`.
                let statuses: Vec<&str> = line.split('|').next().unwrap().split(", ").collect();
                (statuses.last() == Some(&"200"), statuses.len() > 1)
            }
            Self::Haproxy => {
                let fields: Vec<&str> = line.split_whitespace().collect();
                // client [date] frontend backend/server timers status bytes - - flags counts queues
                // "request"
                let retries = fields[10].rsplit('/').next().unwrap();
                (fields[5] == "200", retries != "0")
            }
            Self::Envoy => {
                // status|attempts|X-Accel-Buffering|request, in the format of `ENVOY_LOG`. Only
                // pods send that header.
                let fields: Vec<&str> = line.split('|').collect();
                (fields[0] == "200" && fields[2] == "no", fields[1] != "1")
            }
            // Caddy does not log attempts.
            Self::Caddy => (
                line.contains("\"status\":200") && line.contains("\"X-Accel-Buffering\":[\"no\"]"),
                false,
            ),
            Self::Traefik => {
                let answered = line.contains("\"DownstreamStatus\":200")
                    && line.contains("X-Accel-Buffering\":\"no\"");
                (
                    answered,
                    line.contains("\"RetryAttempts\":") && !line.contains("\"RetryAttempts\":0"),
                )
            }
        }
    }
}

// === impl Front ===

impl Front {
    /// Starts a proxy in front of these pods and waits until it responds. The pods need not run
    /// yet.
    pub async fn start(kind: Kind, pods: [Ports; 2], authority: &Authority) -> Self {
        Self::start_with(kind, pods, authority, &[]).await
    }

    /// Starts a proxy whose documented configuration has these texts replaced, each by the second of
    /// its pair: a fault, planted as a user would make it.
    pub async fn start_with(
        kind: Kind,
        pods: [Ports; 2],
        authority: &Authority,
        planted: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::Builder::new().prefix("front-").tempdir().unwrap();
        let (plain, secure, own) = (free_port(), free_port(), free_port());
        let identity = authority.server("front");
        let mut command = match kind {
            Kind::Nginx | Kind::NginxHttp10 => {
                let mut text = Text::of("nginx.conf");
                text.replace_all(planted);
                if kind == Kind::NginxHttp10 {
                    text.replace("proxy_http_version 1.1;", "");
                }
                text.replace("listen 80;", &format!("listen 127.0.0.1:{plain};"));
                text.replace("listen 443 ", &format!("listen 127.0.0.1:{secure} "));
                text.replace(
                    "/etc/nginx/tls.crt",
                    &identity.certificate.display().to_string(),
                );
                text.replace("/etc/nginx/tls.key", &identity.key.display().to_string());
                text.replace("http {", &format!("http {{{NGINX_HTTP}"));
                for (address, ports) in ["10.0.0.1", "10.0.0.2"].iter().zip(pods) {
                    text.replace(
                        &format!("{address}:8080"),
                        &format!("127.0.0.1:{}", ports.clients),
                    );
                }
                let mut command = Command::new("nginx");
                let globals = "daemon off; pid nginx.pid; error_log stderr warn;";
                command
                    .arg("-p")
                    .arg(folder.path())
                    .arg("-c")
                    .arg(text.write(folder.path()))
                    .args(["-g", globals]);
                command
            }
            Kind::Haproxy => {
                let mut text = Text::of("haproxy.cfg");
                text.replace_all(planted);
                text.replace("bind :80\n", &format!("bind 127.0.0.1:{plain}\n"));
                text.replace("bind :443 ", &format!("bind 127.0.0.1:{secure} "));
                text.replace(
                    "/etc/haproxy/tls.pem",
                    &joined(&identity, folder.path()).display().to_string(),
                );
                text.replace(
                    "/etc/haproxy/later.http",
                    &documented("later.http").display().to_string(),
                );
                for (address, ports) in ["10.0.0.1", "10.0.0.2"].iter().zip(pods) {
                    let Ports { clients, admin } = ports;
                    text.replace(
                        &format!("{address}:8080 check port 9090"),
                        &format!("{address}:8080 check port {admin}"),
                    );
                    text.replace(&format!("{address}:8080"), &format!("127.0.0.1:{clients}"));
                }
                // Scaled down like the drain in these tests: a pod accepts for half a second
                // instead of five.
                text.replace("inter 1s", "inter 100ms");
                let mut command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(text.write(folder.path()));
                command
            }
            Kind::Envoy => {
                let mut text = Text::of("envoy.yaml");
                text.replace_all(planted);
                text.replace(
                    "0.0.0.0, port_value: 80 ",
                    &format!("127.0.0.1, port_value: {plain} "),
                );
                text.replace(
                    "0.0.0.0, port_value: 443 ",
                    &format!("127.0.0.1, port_value: {secure} "),
                );
                text.replace(
                    "/etc/envoy/tls.crt",
                    &identity.certificate.display().to_string(),
                );
                text.replace("/etc/envoy/tls.key", &identity.key.display().to_string());
                for (address, ports) in ["10.0.0.1", "10.0.0.2"].iter().zip(pods) {
                    let Ports { clients, admin } = ports;
                    let endpoint = |address: &str, clients: u16, admin: u16| {
                        format!(
                            "address: {{ socket_address: {{ address: {address}, port_value: {clients} }} }}
                  health_check_config: {{ port_value: {admin} }}"
                        )
                    };
                    text.replace(
                        &endpoint(address, 8080, 9090),
                        &endpoint("127.0.0.1", clients, admin),
                    );
                }
                text.replace("interval: 1s", "interval: 0.1s");
                text.replace(
                    "stat_prefix: clients\n",
                    &format!("stat_prefix: clients\n{ENVOY_LOG}"),
                );
                let address =
                    format!("{{ socket_address: {{ address: 127.0.0.1, port_value: {own} }} }}");
                text.replace(
                    "static_resources:\n",
                    &format!("admin: {{ address: {address} }}\nstatic_resources:\n"),
                );
                let mut command = Command::new(tool("envoy-", "envoy"));
                command.arg("-c").arg(text.write(folder.path())).args([
                    "--use-dynamic-base-id",
                    "--log-level",
                    "warning",
                ]);
                command.args(["--concurrency", "1"]);
                command
            }
            Kind::Caddy => {
                let mut text = Text::of("Caddyfile");
                text.replace_all(planted);
                let options = format!(
                    "{{\n\tadmin off\n\tstorage file_system {}\n\thttp_port {plain}\n\thttps_port {secure}\n\tskip_install_trust\n\tservers {{\n\t\ttrusted_proxies static 127.0.0.0/8\n\t}}",
                    folder.path().display()
                );
                text.replace("{\n\t# The names", &format!("{options}\n\t# The names"));
                text.replace(
                    ":80 {\n",
                    &format!("http://:{plain} {{\n\tbind 127.0.0.1\n\tlog\n"),
                );
                text.replace(
                    "https://:443 {\n",
                    &format!("https://:{secure} {{\n\tbind 127.0.0.1\n\tlog\n"),
                );
                text.replace(
                    "/etc/caddy/tls.crt",
                    &identity.certificate.display().to_string(),
                );
                text.replace("/etc/caddy/tls.key", &identity.key.display().to_string());
                for (address, ports) in ["10.0.0.1", "10.0.0.2"].iter().zip(pods) {
                    text.replace(
                        &format!(" {address}:8080"),
                        &format!(" 127.0.0.1:{}", ports.clients),
                    );
                }
                let mut command = Command::new(tool("caddy-", "caddy"));
                command
                    .env("HOME", folder.path())
                    .arg("run")
                    .arg("--config")
                    .arg(text.write(folder.path()));
                command.args(["--adapter", "caddyfile"]);
                command
            }
            Kind::Traefik => {
                serve_later(own).await;
                let mut text = Text::of("traefik-dynamic.yaml");
                text.replace_all(planted);
                text.replace(
                    "/etc/traefik/tls.crt",
                    &identity.certificate.display().to_string(),
                );
                text.replace("/etc/traefik/tls.key", &identity.key.display().to_string());
                for (address, ports) in ["10.0.0.1", "10.0.0.2"].iter().zip(pods) {
                    text.replace(
                        &format!("//{address}:8080"),
                        &format!("//127.0.0.1:{}", ports.clients),
                    );
                }
                text.replace("//10.0.0.3:8080", &format!("//127.0.0.1:{own}"));
                let dynamic = text.write(folder.path());
                let mut text = Text::of("traefik.yaml");
                for (address, port) in [("\":80\"", plain), ("\":443\"", secure)] {
                    let here = format!(
                        "\"127.0.0.1:{port}\"\n    forwardedHeaders: {{ trustedIPs: [127.0.0.0/8] }}"
                    );
                    text.replace(address, &here);
                }
                text.replace(
                    "/etc/traefik/traefik-dynamic.yaml",
                    &dynamic.display().to_string(),
                );
                text.replace("accessLog: {}", TRAEFIK_LOG);
                let mut command = Command::new(tool("traefik-", "traefik"));
                command.arg(format!(
                    "--configFile={}",
                    text.write(folder.path()).display()
                ));
                command
            }
        };
        let process = Process::spawn(&format!("{kind:?}"), &mut command);
        let front = Self {
            kind,
            process,
            folder,
            plain,
            secure,
            admin: own,
            pods,
        };
        eventually(DEADLINE, "the proxy answers", || async {
            http1::get(&front.url("/")).await.is_ok()
        })
        .await;
        if kind == Kind::Traefik {
            front.until_configured(authority).await;
        }
        front
    }

    /// Waits until Traefik has read its dynamic configuration. It listens earlier, without routes
    /// and certificates.
    async fn until_configured(&self, authority: &Authority) {
        eventually(DEADLINE, "Traefik has its routes", || async {
            http1::get(&self.url("/"))
                .await
                .is_ok_and(|answer| answer.body != "404 page not found\n")
        })
        .await;
        eventually(DEADLINE, "Traefik has its certificate", || async {
            H2Client::builder()
                .tls(authority.trusting(&["h2"]))
                .try_connect(&self.url_tls("/"))
                .await
                .is_ok()
        })
        .await;
    }

    /// Product of this proxy.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// URL in clear text: HTTP/1.1.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.plain)
    }

    /// URL with TLS: HTTP/1.1 or HTTP/2 by ALPN.
    pub fn url_tls(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.secure)
    }

    /// Ends the proxy after all clients have disconnected, and returns the summary of its access
    /// log.
    pub async fn stop(mut self) -> Logged {
        self.process.signal(Signal::TERM);
        self.process.wait_exit(DEADLINE).await;
        let lines = match self.kind {
            Kind::Haproxy | Kind::Envoy | Kind::Caddy | Kind::Traefik => self.process.lines(),
            Kind::Nginx | Kind::NginxHttp10 => {
                let file = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap();
                file.lines().map(str::to_owned).collect()
            }
        };
        let mut logged = Logged::default();
        for line in lines.iter().filter(|line| self.kind.is_for_events(line)) {
            let (ok, another) = self.kind.answer(line);
            logged.answered += usize::from(ok);
            logged.passed_on += usize::from(another);
            if !ok {
                logged.failed.push(line.clone());
            }
        }
        logged
    }

    /// Number of log lines until now, for [`Front::until_health_checked`].
    pub fn log_length(&self) -> usize {
        self.process.scan(0, <[String]>::len)
    }

    /// Waits until a health check reports this pod (0 or 1) up or down. `from` is an earlier
    /// [`Front::log_length`]. nginx, Caddy and Traefik have no health checks here.
    pub async fn until_health_checked(&self, pod: usize, up: bool, from: usize) {
        match self.kind {
            Kind::Haproxy => {
                let wanted = format!(
                    "Server pods/{} is {}",
                    ["a", "b"][pod],
                    if up { "UP" } else { "DOWN" }
                );
                let said = || {
                    self.process.scan(from, |lines| {
                        lines.iter().any(|line| line.contains(&wanted))
                    })
                };
                eventually(DEADLINE, &wanted, || std::future::ready(said())).await;
            }
            Kind::Envoy => {
                let clusters = format!("http://127.0.0.1:{}/clusters", self.admin);
                let flags = format!("pods::127.0.0.1:{}::health_flags::", self.pods[pod].clients);
                eventually(
                    DEADLINE,
                    &format!("Envoy knows that pod {pod} is up: {up}"),
                    || async {
                        let Ok(answer) = http1::get(&clusters).await else {
                            return false;
                        };
                        let line = answer.body.lines().find(|line| line.starts_with(&flags));
                        line.is_some_and(|line| line.ends_with("::healthy") == up)
                    },
                )
                .await;
            }
            Kind::Nginx | Kind::NginxHttp10 | Kind::Caddy | Kind::Traefik => {}
        }
    }
}

// === impl Text ===

impl Text {
    fn of(name: &'static str) -> Self {
        Self {
            name,
            text: std::fs::read_to_string(documented(name)).unwrap(),
        }
    }

    /// Replaces every occurrence. Panics without one, because then the test would not run the
    /// documented file.
    fn replace(&mut self, from: &str, to: &str) {
        assert!(self.text.contains(from), "{} has no {from:?}", self.name);
        self.text = self.text.replace(from, to);
    }

    fn replace_all(&mut self, changes: &[(&str, &str)]) {
        for (from, to) in changes {
            self.replace(from, to);
        }
    }

    fn write(self, folder: &Path) -> PathBuf {
        let file = folder.join(self.name);
        std::fs::write(&file, self.text).unwrap();
        file
    }
}

/// Access log with the statuses of the pods, and writable paths for users other than root.
const NGINX_HTTP: &str = r#"
    log_format test '$upstream_status|"$request"';
    access_log access.log test;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
"#;

/// Access log with the number of attempts, and a header that only pods send.
const ENVOY_LOG: &str = r#"                access_log:
                  - name: envoy.access_loggers.stdout
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
                      log_format:
                        text_format_source:
                          inline_string: "%RESPONSE_CODE%|%UPSTREAM_REQUEST_ATTEMPT_COUNT%|%RESP(X-ACCEL-BUFFERING)%|\"%REQ(:METHOD)% %REQ(:PATH)% \"|%RESPONSE_CODE_DETAILS%\n"
"#;

/// Access log with a header that only pods send.
const TRAEFIK_LOG: &str = "accessLog:
  format: json
  fields: { headers: { names: { X-Accel-Buffering: keep } } }";

/// Serves `later.http` on this port until the test ends. Traefik cannot return a file by itself.
async fn serve_later(port: u16) {
    let answer = std::fs::read(documented("later.http")).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let Ok(1..) = connection.read_buf(&mut request).await else {
                        return;
                    };
                }
                let _sent = connection.write_all(&answer).await;
            });
        }
    });
}

fn documented(name: &str) -> PathBuf {
    root().join("docs/proxies").join(name)
}

/// Writes certificate and key into one file, as HAProxy requires.
fn joined(identity: &Identity, folder: &Path) -> PathBuf {
    let pem = [&identity.certificate, &identity.key]
        .map(|file| std::fs::read_to_string(file).unwrap())
        .concat();
    let file = folder.join("tls.pem");
    std::fs::write(&file, pem).unwrap();
    file
}
