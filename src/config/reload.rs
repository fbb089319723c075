//! The file read again: when its bytes change, and when somebody asks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::problem::Problems;
use super::{Config, Loaded, hash, parse_bytes, read_file, unreadable};

/// 2 s: a person who waits for it does not notice; the kubelet itself takes up to a minute.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// 3 polls: a symlink is swapped in a moment, an editor writes a file in less than a second.
const ABSENT_POLLS_MAX: u32 = 3;

/// What reading the file again has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Another configuration, to be applied.
    Changed {
        /// What the file says now.
        loaded: Box<Loaded>,
        /// The keys in which the file differs from what the process was started with, and which only a restart applies.
        restart: Vec<&'static str>,
    },
    /// The file says what is applied already: somebody asked, or it did not for a while and does again.
    Unchanged,
    /// The file is wrong or stays away; what is applied stays applied. Told once for each content.
    Refused(Problems),
}

/// Follows one file.
pub struct Reloads {
    path: PathBuf,
    started: Config,
    applied: Config,
    /// The content that was answered last; none: the file could not be read.
    seen: Option<String>,
    absent_polls: u32,
    ticks: Interval,
    requests: Arc<Notify>,
    /// Kept here, not in a local, so that `next` may be dropped at any await.
    reading: Option<JoinHandle<Reading>>,
    /// Somebody asked, and has no answer yet. Kept here, not in a local, so that `next` may be dropped at any await.
    requested: bool,
}

impl Reloads {
    /// Follows the file that `started` was loaded from. A call of `requests.notify_one` reads it at once (SIGHUP, the
    /// control socket), and always brings an answer.
    #[must_use]
    pub fn new(path: PathBuf, started: &Loaded, requests: Arc<Notify>) -> Self {
        let mut ticks = interval(POLL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick of an interval is at once, and the file has just been read.
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

    /// Waits until the file has changed, or somebody asked. May be dropped at any await.
    ///
    /// The file is read and parsed by a thread for blocking work: a large file, a slow disk or a pipe delays nothing here.
    pub async fn next(&mut self) -> Reload {
        loop {
            if self.reading.is_none() {
                tokio::select! {
                    biased; // an answer that is owed comes before another poll
                    () = self.requests.notified(), if !self.requested => self.requested = true,
                    () = std::future::ready(()), if self.requested => {}
                    _ = self.ticks.tick() => {}
                }
            }
            let reading = self.reading.get_or_insert_with(|| {
                let path = self.path.clone();
                // A request is answered whether the content is the same or not.
                let seen = self.seen.clone().filter(|_| !self.requested);
                spawn_blocking(move || Reading::new(&path, seen.as_ref()))
            });
            let reading = reading
                .await
                .unwrap_or_else(|error| Reading::Failed(io::Error::other(error)));
            self.reading = None;
            if let Some(reload) = self.judge(reading) {
                self.requested = false;
                return reload;
            }
        }
    }

    /// What a reading means; nothing when it was answered before and nobody asked.
    fn judge(&mut self, reading: Reading) -> Option<Reload> {
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
            Err(problems) => Reload::Refused(problems),
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
        let told = self.seen.is_none();
        if !self.requested && (told || self.absent_polls < ABSENT_POLLS_MAX) {
            return None;
        }
        self.seen = None;
        Some(Reload::Refused(unreadable(
            &self.path.display().to_string(),
            error,
        )))
    }
}

/// One reading of the file.
enum Reading {
    Failed(io::Error),
    /// The content that was answered last.
    Same,
    Content {
        text_hash: String,
        parsed: Result<Box<Loaded>, Problems>,
    },
}

impl Reading {
    /// Reads and parses the file, unless its content is the one that was seen. Blocks.
    fn new(path: &Path, seen: Option<&String>) -> Self {
        // The path is opened anew each time: a ConfigMap changes by swapping a symlink above the file.
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

/// The keys that differ and that a running process cannot change. Every part of the configuration stands here, or it
/// does not compile: a part that is not asked about is applied live.
#[must_use]
pub fn needs_restart(started: &Config, now: &Config) -> Vec<&'static str> {
    let Config {
        listen,
        admin,
        nats,
        http: _,
        window_bytes_max: _,
        feeds_max: _,
        file_descriptors: _,
        replays,
        drain: _,
        presence,
        log,
    } = started;
    let keys = [
        ("listen", *listen != now.listen),
        ("admin.address", admin.address != now.admin.address),
        ("admin.hosts", admin.hosts != now.admin.hosts),
        ("admin.control", admin.control != now.admin.control),
        ("nats.servers", nats.servers != now.nats.servers),
        ("nats.credentials", nats.credentials != now.nats.credentials),
        ("nats.tls", nats.tls != now.nats.tls),
        ("limits.replays", *replays != now.replays),
        ("presence", *presence != now.presence),
        ("log.format", log.format != now.log.format),
    ];
    keys.into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::load;

    /// A directory that is removed with the test, filled as the kubelet fills a ConfigMap's.
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

        /// A new directory, and `..data` renamed over the old link in one step.
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

    fn follow(path: &Path) -> (Reloads, Arc<Notify>) {
        let requests = Arc::new(Notify::new());
        (
            Reloads::new(path.to_owned(), &load(path).unwrap(), Arc::clone(&requests)),
            requests,
        )
    }

    async fn silent(reloads: &mut Reloads, polls: u32) {
        let polls = tokio::time::timeout(POLL_EVERY * polls, reloads.next());
        assert!(polls.await.is_err(), "nothing is to be told");
    }

    fn changed(reload: Reload) -> (Config, Vec<&'static str>) {
        match reload {
            Reload::Changed { loaded, restart } => (loaded.config, restart),
            other => panic!("not changed: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_swapped_config_map_is_read_and_a_bad_one_is_told_once() {
        let mut mount = Mount::new("swap", &with_heartbeat("15s"));
        let (mut reloads, _requests) = follow(&mount.file());
        silent(&mut reloads, 3).await;

        mount.swap(&with_heartbeat("5s"));
        let (config, restart) = changed(reloads.next().await);
        assert_eq!(config.http.routes[0].heartbeat, Duration::from_secs(5));
        assert!(restart.is_empty());

        mount.swap(&with_heartbeat("5"));
        assert!(matches!(reloads.next().await, Reload::Refused(_)));
        silent(&mut reloads, 3).await;

        // Back to what is applied: whoever shows the refusal hears that it is over.
        mount.swap(&with_heartbeat("5s"));
        assert_eq!(reloads.next().await, Reload::Unchanged);
        silent(&mut reloads, 3).await;
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_need_a_restart_are_named_as_long_as_they_differ_from_the_start() {
        let mut mount = Mount::new("restart", &with_heartbeat("15s"));
        let (mut reloads, _requests) = follow(&mount.file());
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
    async fn a_file_that_is_away_for_a_moment_is_no_problem() {
        let mut mount = Mount::new("absent", &with_heartbeat("15s"));
        let (mut reloads, _requests) = follow(&mount.file());
        fs::remove_file(mount.root.join("..data")).unwrap();
        silent(&mut reloads, ABSENT_POLLS_MAX - 1).await;
        mount.swap(&with_heartbeat("15s"));
        silent(&mut reloads, 3).await;

        fs::remove_file(mount.root.join("..data")).unwrap();
        let Reload::Refused(problems) = reloads.next().await else {
            panic!("an absent file is told")
        };
        assert!(problems.to_string().contains("there is no such file"));
        silent(&mut reloads, 5).await;
        mount.swap(&with_heartbeat("15s"));
        assert_eq!(reloads.next().await, Reload::Unchanged);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_gets_an_answer_at_once() {
        let mut mount = Mount::new("asked", &with_heartbeat("15s"));
        let (mut reloads, requests) = follow(&mount.file());
        let before = tokio::time::Instant::now();
        requests.notify_one();
        assert_eq!(reloads.next().await, Reload::Unchanged);
        mount.swap("routes: []");
        requests.notify_one();
        assert!(matches!(reloads.next().await, Reload::Refused(_)));
        requests.notify_one();
        assert!(
            matches!(reloads.next().await, Reload::Refused(_)),
            "told once, unless somebody asks again"
        );
        assert!(before.elapsed() < POLL_EVERY);
    }
}
