//! `sidestream-injector`: the admission webhook that adds the sidecar to pods, and `init`, which
//! prepares its certificate.
//!
//! A pod of the injector runs both: `init` in an init container, then the webhook.
//!
//! ```text
//! init     cluster    certificate from the Secret, or a new one of `authority`, into files;
//!                     its authority into `caBundle`
//! webhook  server     HTTPS for API servers, clear text for probes and metrics
//! ```
//!
//! The API server sends an admission review for each new pod with the label `sidestream.dev/inject:
//! "true"`; the answer has a JSON patch that adds the sidecar. The patch is computed by
//! `sidestream-inject`, the same functions that `sidestream inject` applies to manifests. The exit
//! codes are those of `sysexits.h`, as in the sidecar.

mod authority;
mod cluster;
mod logs;
mod metrics;
mod server;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use rustls::crypto::ring;
use sidestream_common::log_filter;
use sidestream_common::tls::TlsConfig;
use sidestream_inject::args::DefaultArgs;
use sidestream_inject::parse_duration;
use tokio::runtime::Runtime;

use authority::Identity;
use cluster::{Access, ClusterError, Objects};
use server::{ServerError, Signals};

/// Exit code for bad usage: another attempt changes nothing (`EX_USAGE`).
const USAGE: u8 = 64;

/// Exit code for a service that is missing or rejects a request (`EX_UNAVAILABLE`).
const UNAVAILABLE: u8 = 69;

/// Adds the Sidestream sidecar to pods with the label `sidestream.dev/inject: "true"`.
#[derive(Debug, clap::Parser)]
#[command(
    name = "sidestream-injector",
    version,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    step: Option<Step>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, clap::Subcommand)]
enum Step {
    /// Read the certificate from a Secret, or create one, write its files, and add its authority to
    /// the webhook
    Init(Init),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Address for API servers, over TLS
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Address for probes and metrics
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9090")]
    admin: SocketAddr,
    /// Host name that requests to the admin port may have, besides addresses and localhost; may be
    /// repeated
    #[arg(long = "admin-host", value_name = "NAME")]
    admin_hosts: Vec<String>,
    /// Certificate chain, PEM; reloaded when it changes
    #[arg(long, value_name = "FILE", default_value = "/tls/tls.crt")]
    certificate: PathBuf,
    /// Private key, PEM
    #[arg(long, value_name = "FILE", default_value = "/tls/tls.key")]
    key: PathBuf,
    #[command(flatten)]
    defaults: DefaultArgs,
    /// Log filter: a level, or directives
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = filter)]
    log: String,
}

#[derive(Debug, clap::Args)]
struct Init {
    /// Folder for tls.crt and tls.key
    #[arg(long, value_name = "FOLDER", default_value = "/tls")]
    folder: PathBuf,
    /// Namespace of the Service and the Secret
    #[arg(long, default_value = "sidestream")]
    namespace: String,
    /// Service that the API server calls
    #[arg(long, default_value = "sidestream-injector")]
    service: String,
    /// Secret that stores the certificate for all replicas
    #[arg(long, default_value = "sidestream-injector-tls")]
    secret: String,
    /// MutatingWebhookConfiguration
    #[arg(long, default_value = "sidestream-injector")]
    webhook: String,
    /// API server; the default is that of the kubelet
    #[arg(
        long,
        value_name = "HOST",
        env = "KUBERNETES_SERVICE_HOST",
        default_value = "kubernetes.default.svc"
    )]
    api_server: String,
    /// Port of the API server
    #[arg(
        long,
        value_name = "PORT",
        env = "KUBERNETES_SERVICE_PORT_HTTPS",
        default_value_t = 443
    )]
    api_port: u16,
    /// Folder with `token` and `ca.crt` of the service account
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    account: PathBuf,
    /// Time for API servers to load a changed caBundle before its certificate is served
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    settle: Duration,
}

fn main() -> ExitCode {
    // rustls panics at the first handshake if it has to guess its provider.
    ring::default_provider()
        .install_default()
        .expect("no provider is installed before main");
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return explain(&answer),
    };
    match cli.step {
        Some(Step::Init(init)) => {
            let _flushed_at_exit = logs::init("info");
            prepare(init)
        }
        None => {
            let _flushed_at_exit = logs::init(&cli.serve.log);
            serve(cli.serve)
        }
    }
}

/// Prints the help text or the usage error of clap, whose own exit code for an error would be 2.
fn explain(answer: &clap::Error) -> ExitCode {
    // A closed standard output is no reason to fail.
    answer.print().ok();
    if answer.use_stderr() {
        ExitCode::from(USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// Runs the webhook until a signal ends it.
fn serve(arguments: Serve) -> ExitCode {
    let defaults = match arguments.defaults.defaults() {
        Ok(defaults) => defaults,
        Err(error) => {
            tracing::error!(error, "invalid arguments");
            return ExitCode::from(USAGE);
        }
    };
    let config = server::Config {
        listen: arguments.listen,
        admin: arguments.admin,
        admin_hosts: arguments.admin_hosts,
        certificate: TlsConfig {
            certificate: arguments.certificate,
            key: arguments.key,
            client_ca: None,
            session_ticket_keys: None,
        },
        defaults,
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime could not start");
            return ExitCode::from(UNAVAILABLE);
        }
    };
    let ended = runtime.block_on(async {
        // First of all: as PID 1 a process has no default action for signals.
        let signals = Signals::listen()?;
        server::run(config, signals).await
    });
    // Closes the connections that are still open.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the webhook could not start");
            ExitCode::from(match error {
                ServerError::Certificate(_) => USAGE,
                ServerError::Bind { .. } | ServerError::Signals(_) | ServerError::Metrics(_) => {
                    UNAVAILABLE
                }
            })
        }
    }
}

/// Prepares the certificate: writes its files, and returns once API servers trust it.
fn prepare(arguments: Init) -> ExitCode {
    let access = Access {
        host: arguments.api_server,
        port: arguments.api_port,
        account: arguments.account,
    };
    let objects = Objects {
        namespace: arguments.namespace,
        service: arguments.service,
        secret: arguments.secret,
        webhook: arguments.webhook,
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime could not start");
            return ExitCode::from(UNAVAILABLE);
        }
    };
    let identity = match runtime.block_on(cluster::prepare(&access, &objects, arguments.settle)) {
        Ok(identity) => identity,
        Err(error) => {
            tracing::error!(%error, "the certificate could not be prepared");
            return ExitCode::from(match error {
                ClusterError::Unusable(_) => USAGE,
                ClusterError::Unreachable(_) | ClusterError::Rejected { .. } => UNAVAILABLE,
            });
        }
    };
    let folder = arguments.folder.display();
    if let Err(error) = write(&arguments.folder, &identity) {
        tracing::error!(%error, %folder, "the certificate could not be written");
        return ExitCode::from(UNAVAILABLE);
    }
    tracing::info!(%folder, webhook = objects.webhook, "certificate prepared; the webhook trusts it");
    ExitCode::SUCCESS
}

/// Writes the files of the certificate, readable by this user only: one is a private key.
fn write(folder: &Path, identity: &Identity) -> io::Result<()> {
    for (name, text) in [
        ("tls.crt", &identity.certificate),
        ("tls.key", &identity.key),
    ] {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(folder.join(name))?;
        io::Write::write_all(&mut file, text.as_bytes())?;
    }
    Ok(())
}

fn runtime() -> io::Result<Runtime> {
    // The event interval is 4 tasks, so that a storm of new connections does not delay the request
    // of an open one.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .event_interval(4)
        .enable_all()
        .build()
}

/// Validates the filter of the log.
fn filter(directives: &str) -> Result<String, String> {
    let Err(invalid) = log_filter::filter(directives) else {
        return Ok(directives.to_owned());
    };
    let hint = invalid
        .suggestion()
        .map_or_else(String::new, |level| format!("; did you mean `{level}`?"));
    Err(format!("{invalid}{hint}"))
}
