//! A shop and its sidecar, as `examples/README.md` starts them, on ports of the test.

use std::process::Command;

use rustix::process::Signal;
use testkit::http1;
use testkit::nats::{Nats, free_port};
use testkit::process::Process;
use testkit::repository::{file, root};
use testkit::sidestream::Sidestream;
use testkit::wait::{DEADLINE, RECOVERY, eventually};

/// Language of a shop.
#[derive(Clone, Copy, Debug)]
pub(super) enum Language {
    Node,
    Python,
    Go,
}

/// Running shop with a sidecar in front of it.
pub(super) struct Pod {
    language: Language,
    nats: String,
    /// Sections in front of the documented configuration.
    rest: String,
    shop: Process,
    pub(super) sidestream: Sidestream,
}

/// Secret of the sessions, which all pods share.
const SECRET: &str = "a secret of the tests, for all pods of a shop";

// === impl Pod ===

impl Pod {
    /// Starts a pod on free ports.
    pub(super) async fn start(language: Language, nats: &Nats) -> Self {
        let rest = "listen: [{ address: \"127.0.0.1:0\" }]\nadmin: { address: \"127.0.0.1:0\" }\n";
        Self::with(language, nats, rest).await
    }

    /// Starts a pod with more configuration: at least its listeners.
    pub(super) async fn with(language: Language, nats: &Nats, rest: &str) -> Self {
        let nats = nats.url();
        let (shop, sidestream) = run(language, &nats, rest).await;
        Self {
            language,
            nats,
            rest: rest.to_owned(),
            shop,
            sidestream,
        }
    }

    /// Ends both programs gracefully, the sidecar first, and starts new ones.
    pub(super) async fn restart(&mut self) {
        self.sidestream.terminate();
        assert_eq!(self.sidestream.wait_exit(RECOVERY).await, 0);
        self.shop.signal(Signal::TERM);
        let status = self.shop.wait_exit(DEADLINE).await;
        assert_eq!(status.code(), Some(0), "the shop has ended gracefully");
        (self.shop, self.sidestream) = run(self.language, &self.nats, &self.rest).await;
    }
}

async fn run(language: Language, nats: &str, rest: &str) -> (Process, Sidestream) {
    let port = free_port();
    let mut command = language.command(port);
    command
        .current_dir(root().join("examples").join(language.folder()))
        .env("NATS_URL", nats)
        .env("PORT", port.to_string())
        .env("SESSION_SECRET", SECRET)
        .env_remove("NODE_OPTIONS");
    let shop = Process::spawn(&format!("shop in {language:?}"), &mut command);
    let address = format!("http://127.0.0.1:{port}");
    eventually(RECOVERY, "the shop listens", || async {
        http1::get(&address).await.is_ok()
    })
    .await;
    let configuration = format!("{rest}{}", file("examples/sidecar.yaml"));
    let sidestream = Sidestream::builder(configuration)
        .env("NATS_URL", nats)
        .env("APPLICATION_ADDRESS", &address);
    (shop, sidestream.start().await)
}

/// Starts a program of `tests/examples` with the origin of a shop.
pub(super) fn script(name: &str, origin: &str) -> Process {
    let folder = root().join("tests/examples");
    assert!(
        folder.join("node_modules").exists(),
        "Playwright is not installed: run `make tools`"
    );
    let mut command = Command::new("node");
    command.arg(folder.join(name)).arg(origin);
    Process::spawn(name, command.env_remove("NODE_OPTIONS"))
}

// === impl Language ===

impl Language {
    fn folder(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Python => "python",
            Self::Go => "go",
        }
    }

    fn command(self, port: u16) -> Command {
        let (program, arguments) = match self {
            Self::Node => ("node".into(), vec!["shop.js".to_owned()]),
            Self::Python => (
                root().join(".tools/examples-python/bin/uvicorn"),
                vec!["shop:app".into(), format!("--port={port}")],
            ),
            Self::Go => (root().join(".tools/examples-go/shop"), Vec::new()),
        };
        assert!(
            program.is_relative() || program.exists(),
            "the shop in {self:?} is not installed: run `make tools`"
        );
        let mut command = Command::new(program);
        command.args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}
