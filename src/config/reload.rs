//! Reload of the configuration: when the bytes of the file change, and on request.
//!
//! [`Reloads::next`] polls the file every 2 s, which also works for ConfigMaps, whose files change
//! by swapping a symlink. A request (SIGHUP, control socket) reads the file at once and always gets
//! an answer. Reading and parsing run on a thread for blocking work. `app::reload` applies the
//! result; keys that need a restart are listed in [`needs_restart`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::load::{Loaded, hash, parse_bytes, read_file, unreadable};
use super::model::Config;
use super::problem::Problems;
use crate::admin;

/// 2 s: short for an operator; the kubelet takes up to a minute to update the file.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// 3 polls: longer than it takes to swap a symlink or to save a file in an editor.
const ABSENT_POLLS_MAX: u32 = 3;

/// Result of reading the file again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// A different valid configuration, to be applied.
    Changed {
        /// The new configuration.
        loaded: Box<Loaded>,
        /// Keys that differ from the configuration at startup and that only a restart applies.
        restart: Vec<&'static str>,
    },
    /// The file has the applied configuration: after a request, or after it had another content for
    /// a while.
    Unchanged,
    /// The file is invalid or missing; the applied configuration stays. Returned once per content.
    Rejected(Problems),
}

/// Watcher of one file.
pub struct Reloads {
    path: PathBuf,
    started: Config,
    applied: Config,
    /// Hash of the content of the last answer; none if the file could not be read.
    seen: Option<String>,
    absent_polls: u32,
    ticks: Interval,
    requests: Arc<Notify>,
    /// A field and not a local variable, because `next` may be dropped at any await.
    reading: Option<JoinHandle<Reading>>,
    /// A request has no answer yet. A field, because `next` may be dropped at any await.
    requested: bool,
}

impl Reloads {
    /// Watches the file that `started` was loaded from. `requests.notify_one` (SIGHUP, control
    /// socket) reads it at once and always gets an answer.
    #[must_use]
    pub fn new(path: PathBuf, started: &Loaded, requests: Arc<Notify>) -> Self {
        let mut ticks = interval(POLL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick of an interval fires at once, but the file has just been read.
        ticks.reset();
        Self {
            path,
            started: started.config.clone(),
            applied: started.config.clone(),
            seen: Some(started.text_hash.clone()),
            absent_polls: 0,
            ticks,
            requests,
            reading: None,
            requested: false,
        }
    }

    /// Waits until the file has changed or a reload was requested. May be dropped at any await.
    ///
    /// A thread for blocking work reads and parses the file, so a large file, a slow disk or a pipe
    /// delays nothing here.
    pub async fn next(&mut self) -> Reload {
        loop {
            if self.reading.is_none() {
                tokio::select! {
                    biased; // a pending request comes before another poll
                    () = self.requests.notified(), if !self.requested => self.requested = true,
                    () = std::future::ready(()), if self.requested => {}
                    _ = self.ticks.tick() => {}
                }
            }
            let reading = self.reading.get_or_insert_with(|| {
                let path = self.path.clone();
                // A request is answered even if the content is the same.
                let seen = self.seen.clone().filter(|_| !self.requested);
                spawn_blocking(move || Reading::new(&path, seen.as_ref()))
            });
            let reading = reading
                .await
                .unwrap_or_else(|error| Reading::Failed(io::Error::other(error)));
            self.reading = None;
            if let Some(reload) = self.evaluate(reading) {
                self.requested = false;
                return reload;
            }
        }
    }

    /// Returns the result of a reading, or nothing if it is known and no request is pending.
    fn evaluate(&mut self, reading: Reading) -> Option<Reload> {
        let (text_hash, parsed) = match reading {
            Reading::Failed(error) => return self.absent(&error),
            Reading::Same => {
                self.absent_polls = 0;
                return None;
            }
            Reading::Content { text_hash, parsed } => (text_hash, parsed),
        };
        self.absent_polls = 0;
        self.seen = Some(text_hash);
        Some(match parsed {
            Err(problems) => Reload::Rejected(problems),
            Ok(loaded) if loaded.config == self.applied => Reload::Unchanged,
            Ok(loaded) => {
                self.applied = loaded.config.clone();
                let restart = needs_restart(&self.started, &loaded.config);
                Reload::Changed { loaded, restart }
            }
        })
    }

    fn absent(&mut self, error: &io::Error) -> Option<Reload> {
        self.absent_polls = self.absent_polls.saturating_add(1);
        let is_reported = self.seen.is_none();
        if !self.requested && (is_reported || self.absent_polls < ABSENT_POLLS_MAX) {
            return None;
        }
        self.seen = None;
        Some(Reload::Rejected(unreadable(
            &self.path.display().to_string(),
            error,
        )))
    }
}

/// One reading of the file.
enum Reading {
    Failed(io::Error),
    /// The content of the last answer.
    Same,
    Content {
        text_hash: String,
        parsed: Result<Box<Loaded>, Problems>,
    },
}

impl Reading {
    /// Reads and parses the file, unless its content is the last one. Blocks.
    fn new(path: &Path, seen: Option<&String>) -> Self {
        // The path is opened each time: a ConfigMap changes by swapping a symlink above the file.
        let bytes = match read_file(path) {
            Ok(bytes) => bytes,
            Err(error) => return Self::Failed(error),
        };
        let text_hash = hash(&bytes);
        if seen == Some(&text_hash) {
            return Self::Same;
        }
        let name = path.display().to_string();
        let parsed = parse_bytes(&bytes, &name, &|name| std::env::var(name).ok()).map(Box::new);
        Self::Content { text_hash, parsed }
    }
}

/// Returns the keys that differ and that a running process cannot change. The pattern names every
/// part of the configuration, so a new part does not compile until it is added; parts that are not
/// compared are applied live.
#[must_use]
pub fn needs_restart(started: &Config, now: &Config) -> Vec<&'static str> {
    let Config {
        listen,
        admin,
        nats,
        authentication,
        http: _,
        schemas: _,
        window_bytes_max: _,
        feeds_max: _,
        file_descriptors: _,
        replays,
        drain: _,
        presence,
        tracing: _,
        log,
    } = started;
    let keys = [
        ("listen", *listen != now.listen),
        ("admin.address", admin.address != now.admin.address),
        ("admin.hosts", admin.hosts != now.admin.hosts),
        ("admin.control", admin.control != now.admin.control),
        ("admin.token", needs_restart_for_token(admin, &now.admin)),
        ("admin.token_file", admin.token_file != now.admin.token_file),
        ("admin.tls", admin.tls != now.admin.tls),
        ("admin.tap", admin.tap != now.admin.tap),
        ("nats.servers", nats.servers != now.nats.servers),
        ("nats.credentials", nats.credentials != now.nats.credentials),
        ("nats.tls", nats.tls != now.nats.tls),
        (
            "authentication.revocations.bucket",
            authentication.revocations.bucket != now.authentication.revocations.bucket,
        ),
        ("limits.replays", *replays != now.replays),
        ("presence", *presence != now.presence),
        ("log.format", log.format != now.log.format),
    ];
    keys.into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key)
        .collect()
}

/// Returns whether a changed `admin.token` is not applied live: the token of the start or the new
/// one is in a file.
fn needs_restart_for_token(started: &admin::Config, now: &admin::Config) -> bool {
    let has_file = started.token_file.is_some() || now.token_file.is_some();
    has_file && started.token != now.token
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::load;

    /// Directory as the kubelet fills it for a ConfigMap; removed at the end of the test.
    struct Mount {
        root: PathBuf,
        swaps: u32,
    }

    impl Mount {
        fn new(test: &str, text: &str) -> Self {
            let root = std::env::temp_dir()
                .join(format!("sidestream-reload-{test}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            let mut mount = Self { root, swaps: 0 };
            mount.swap(text);
            symlink("..data/sidecar.yaml", mount.file()).unwrap();
            mount
        }

        fn file(&self) -> PathBuf {
            self.root.join("sidecar.yaml")
        }

        /// Creates a new directory and renames `..data` over the old link in one step.
        fn swap(&mut self, text: &str) {
            self.swaps += 1;
            let name = format!("..2026_{}", self.swaps);
            fs::create_dir(self.root.join(&name)).unwrap();
            fs::write(self.root.join(&name).join("sidecar.yaml"), text).unwrap();
            symlink(&name, self.root.join("..data_tmp")).unwrap();
            fs::rename(self.root.join("..data_tmp"), self.root.join("..data")).unwrap();
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.root));
        }
    }

    fn with_heartbeat(heartbeat: &str) -> String {
        format!(
            "routes: [{{ path: /a, sources: [{{ subjects: [a] }}], heartbeat: {heartbeat} }}]\n"
        )
    }

    fn watch(path: &Path) -> (Reloads, Arc<Notify>) {
        let requests = Arc::new(Notify::new());
        (
            Reloads::new(path.to_owned(), &load(path).unwrap(), Arc::clone(&requests)),
            requests,
        )
    }

    async fn assert_no_result(reloads: &mut Reloads, polls: u32) {
        let polls = tokio::time::timeout(POLL_EVERY * polls, reloads.next());
        assert!(polls.await.is_err(), "no result");
    }

    fn changed(reload: Reload) -> (Config, Vec<&'static str>) {
        match reload {
            Reload::Changed { loaded, restart } => (loaded.config, restart),
            other => panic!("not changed: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn swapped_config_map_is_read_and_an_invalid_one_is_reported_once() {
        let mut mount = Mount::new("swap", &with_heartbeat("15s"));
        let (mut reloads, _requests) = watch(&mount.file());
        assert_no_result(&mut reloads, 3).await;

        mount.swap(&with_heartbeat("5s"));
        let (config, restart) = changed(reloads.next().await);
        assert_eq!(config.http.routes[0].heartbeat, Duration::from_secs(5));
        assert!(restart.is_empty());

        mount.swap(&with_heartbeat("5"));
        assert!(matches!(reloads.next().await, Reload::Rejected(_)));
        assert_no_result(&mut reloads, 3).await;

        // The applied configuration again: the reported error must be cleared.
        mount.swap(&with_heartbeat("5s"));
        assert_eq!(reloads.next().await, Reload::Unchanged);
        assert_no_result(&mut reloads, 3).await;
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_need_a_restart_are_reported_while_they_differ_from_startup() {
        let mut mount = Mount::new("restart", &with_heartbeat("15s"));
        let (mut reloads, _requests) = watch(&mount.file());
        let admin = "admin: { address: '127.0.0.1:1' }\nlog: { format: text, filter: debug }\n";
        mount.swap(&format!("{}{admin}", with_heartbeat("15s")));
        assert_eq!(
            changed(reloads.next().await).1,
            ["admin.address", "log.format"]
        );
        mount.swap(&format!("{}{admin}", with_heartbeat("1s")));
        assert_eq!(
            changed(reloads.next().await).1,
            ["admin.address", "log.format"]
        );
        mount.swap(&with_heartbeat("1s"));
        assert!(changed(reloads.next().await).1.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn briefly_missing_file_is_not_reported() {
        let mut mount = Mount::new("absent", &with_heartbeat("15s"));
        let (mut reloads, _requests) = watch(&mount.file());
        fs::remove_file(mount.root.join("..data")).unwrap();
        assert_no_result(&mut reloads, ABSENT_POLLS_MAX - 1).await;
        mount.swap(&with_heartbeat("15s"));
        assert_no_result(&mut reloads, 3).await;

        fs::remove_file(mount.root.join("..data")).unwrap();
        let Reload::Rejected(problems) = reloads.next().await else {
            panic!("a missing file is reported")
        };
        assert!(problems.to_string().contains("file not found"));
        assert_no_result(&mut reloads, 5).await;
        mount.swap(&with_heartbeat("15s"));
        assert_eq!(reloads.next().await, Reload::Unchanged);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_answered_at_once() {
        let mut mount = Mount::new("asked", &with_heartbeat("15s"));
        let (mut reloads, requests) = watch(&mount.file());
        let before = tokio::time::Instant::now();
        requests.notify_one();
        assert_eq!(reloads.next().await, Reload::Unchanged);
        mount.swap("routes: []");
        requests.notify_one();
        assert!(matches!(reloads.next().await, Reload::Rejected(_)));
        requests.notify_one();
        assert!(
            matches!(reloads.next().await, Reload::Rejected(_)),
            "a request is always answered"
        );
        assert!(before.elapsed() < POLL_EVERY);
    }
}
