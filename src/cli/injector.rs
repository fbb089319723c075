//! `sidestream injector`: the webhook that gives pods their sidecar, and `injector init`, which
//! gives it a certificate.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Exit;
use super::inject::DefaultArgs;
use super::output::complain;
use crate::config;
use crate::injector::authority::Pair;
use crate::injector::cluster::{self, Access, ClusterError, Objects};
use crate::injector::server::{self, ServerError};
use crate::lifecycle::signals;
use crate::net::TlsConfig;
use crate::telemetry::logs;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    step: Option<Step>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, clap::Subcommand)]
enum Step {
    /// Get the certificate from a Secret, or make one, write its files, and let the webhook trust
    /// it
    Init(Init),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Where the API server calls, over TLS
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Where probes and metrics are
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9090")]
    admin: SocketAddr,
    /// A name under which the admin port is asked, besides addresses and localhost; may be given
    /// several times
    #[arg(long = "admin-host", value_name = "NAME")]
    admin_hosts: Vec<String>,
    /// The certificate, PEM; read again when it changes
    #[arg(long, value_name = "FILE", default_value = "/tls/tls.crt")]
    certificate: PathBuf,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", default_value = "/tls/tls.key")]
    key: PathBuf,
    #[command(flatten)]
    defaults: DefaultArgs,
    /// What is logged: a level, or directives
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = filter)]
    log: String,
}

#[derive(Debug, clap::Args)]
struct Init {
    /// The folder for tls.crt and tls.key
    #[arg(long, value_name = "FOLDER", default_value = "/tls")]
    folder: PathBuf,
    /// The namespace of the Service and the Secret
    #[arg(long, default_value = "sidestream")]
    namespace: String,
    /// The Service that the API server calls
    #[arg(long, default_value = "sidestream-injector")]
    service: String,
    /// The Secret that keeps the certificate for all replicas
    #[arg(long, default_value = "sidestream-injector-tls")]
    secret: String,
    /// The MutatingWebhookConfiguration
    #[arg(long, default_value = "sidestream-injector")]
    webhook: String,
    /// The API server; by default what the kubelet says
    #[arg(
        long,
        value_name = "HOST",
        env = "KUBERNETES_SERVICE_HOST",
        default_value = "kubernetes.default.svc"
    )]
    api_server: String,
    /// Its port
    #[arg(
        long,
        value_name = "PORT",
        env = "KUBERNETES_SERVICE_PORT_HTTPS",
        default_value_t = 443
    )]
    api_port: u16,
    /// The folder with `token` and `ca.crt` of the service account
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    account: PathBuf,
    /// How long API servers have to load a changed caBundle before its certificate is served
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = config::duration)]
    settle: Duration,
}

pub(super) fn run(arguments: Args) -> Exit {
    match arguments.step {
        Some(Step::Init(init)) => prepare(init),
        None => serve(arguments.serve),
    }
}

fn serve(arguments: Serve) -> Exit {
    // First of all: as PID 1 a process has no default action for signals.
    let signals = match signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            complain(format_args!(
                "sidestream: signals cannot be handled: {error}"
            ));
            return Exit::Internal;
        }
    };
    logs::init(&logs::Config {
        filter: arguments.log,
        ..logs::Config::default()
    });
    let defaults = match arguments.defaults.defaults() {
        Ok(defaults) => defaults,
        Err(why) => {
            tracing::error!(%why, "could not start");
            return Exit::Usage;
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
        },
        defaults,
    };
    let ended = runtime()
        .map_err(|error| ServerError::System(error.to_string()))
        .and_then(|runtime| {
            let ended = runtime.block_on(server::run(config, signals));
            // Connections that have not ended by now are cut.
            runtime.shutdown_background();
            ended
        });
    match ended {
        Ok(()) => Exit::Clean,
        Err(error) => {
            tracing::error!(%error, "could not start");
            match error {
                ServerError::Certificate(_) => Exit::Usage,
                ServerError::System(_) => Exit::Unavailable,
            }
        }
    }
}

fn prepare(arguments: Init) -> Exit {
    logs::init(&logs::Config::default());
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
            tracing::error!(%error, "could not start");
            return Exit::Unavailable;
        }
    };
    let pair = match runtime.block_on(cluster::prepare(&access, &objects, arguments.settle)) {
        Ok(pair) => pair,
        Err(error) => {
            tracing::error!(%error, "the certificate could not be prepared");
            return match error {
                ClusterError::Unusable(_) => Exit::Usage,
                ClusterError::Unreachable(_) | ClusterError::Refused(..) => Exit::Unavailable,
            };
        }
    };
    if let Err(error) = write(&arguments.folder, &pair) {
        tracing::error!(%error, folder = %arguments.folder.display(), "the certificate could not be written");
        return Exit::Unavailable;
    }
    tracing::info!(folder = %arguments.folder.display(), webhook = objects.webhook, "the webhook trusts the certificate");
    Exit::Clean
}

fn write(folder: &Path, pair: &Pair) -> io::Result<()> {
    for (name, text) in [("tls.crt", &pair.certificate), ("tls.key", &pair.key)] {
        let mut options = std::fs::OpenOptions::new();
        // Nobody else's: a private key.
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(folder.join(name))?;
        io::Write::write_all(&mut file, text.as_bytes())?;
    }
    Ok(())
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    // 4 turns of tasks, and sockets are asked again: a storm of new connections does not hide the
    // request of an old one.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .event_interval(4)
        .enable_all()
        .build()
}

fn filter(directives: &str) -> Result<String, String> {
    match crate::telemetry::filter::filter(directives) {
        Ok(_) => Ok(directives.to_owned()),
        Err(invalid) => {
            let hint = invalid
                .suggestion()
                .map_or_else(String::new, |level| format!("; did you mean `{level}`?"));
            Err(format!("{invalid}{hint}"))
        }
    }
}
