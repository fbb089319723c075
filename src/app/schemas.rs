//! Schemas of the configuration in force: reads their documents, and reports problems.
//!
//! A folder is polled and a bucket is watched, by one task for each configuration of `schemas`. It
//! compiles on a thread for blocking work. Documents with problems leave earlier ones in force
//! ([`Schemas::update`]); the check `schemas` is then degraded.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout_at};

use crate::lifecycle::health::{Check, Health, Status};
use crate::nats::Nats;
use crate::payload::schema::{
    FolderLimits, FoundDocuments, SchemaOrigin, Schemas, SchemasConfig, read_folder,
};
use crate::telemetry::Metrics;

/// 2 s: a mounted ConfigMap changes by a swapped symlink, which only polling detects.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// 10 s after the start, a pod is ready also if the documents could not be read.
const START_MAX: Duration = Duration::from_secs(10);

/// 100 ms: documents that are written one after the other are compiled together.
const SETTLE: Duration = Duration::from_millis(100);

/// Problems that the check names; the log has all.
const NAMED_MAX: usize = 3;

/// Schemas in force, and what starts the reader of their documents.
pub(super) struct SchemaReaders {
    nats: Nats,
    health: Health,
    running: Mutex<Option<Running>>,
}

/// Dropping it ends the task and removes the check.
struct Running {
    schemas: Arc<Schemas>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SchemaReaders {
    pub(super) fn new(nats: Nats, health: Health) -> Self {
        Self {
            nats,
            health,
            running: Mutex::default(),
        }
    }

    /// Returns the schemas of a configuration. `None`: it has none. Needs a runtime.
    pub(super) fn apply(&self, config: &SchemasConfig, metrics: &Metrics) -> Option<Arc<Schemas>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let before = running.take();
        *running = config.origin.clone().map(|origin| match before {
            Some(before) if before.schemas.config() == config => before,
            before => {
                let known = before.as_ref().map(|before| &*before.schemas);
                let schemas = Arc::new(Schemas::new(config.clone(), known, metrics));
                let reader = Reader {
                    schemas: schemas.clone(),
                    check: self.health.check("schemas", "not read yet"),
                    started: Instant::now(),
                    was_read: false,
                    problems: Vec::new(),
                };
                let task = tokio::spawn(read(reader, origin, self.nats.clone()));
                Running { schemas, task }
            }
        });
        running.as_ref().map(|running| running.schemas.clone())
    }
}

/// Puts the documents of an origin into force, until the task is aborted.
async fn read(reader: Reader, origin: SchemaOrigin, nats: Nats) {
    let (sender, found) = watch::channel(FoundDocuments::default());
    let follow = async {
        match &origin {
            SchemaOrigin::Folder(path) => poll(path, &sender).await,
            SchemaOrigin::Bucket(bucket) => nats.follow_schemas(bucket, &sender).await,
        }
    };
    tokio::select! {
        _ = follow => {}
        () = reader.run(found) => {}
    }
}

/// Polls a folder. Pending forever.
async fn poll(path: &Path, found: &watch::Sender<FoundDocuments>) -> Infallible {
    loop {
        let folder = path.to_owned();
        let read = spawn_blocking(move || read_folder(&folder, FolderLimits::IN_FORCE)).await;
        let read = read.unwrap_or_else(|error| Err(error.to_string()));
        found.send_if_modified(|found| {
            let before = found.clone();
            match read {
                Ok(documents) => {
                    *found = FoundDocuments {
                        documents: Some(documents),
                        problem: None,
                    }
                }
                Err(why) => found.problem = Some(why),
            }
            *found != before
        });
        sleep(POLL_EVERY).await;
    }
}

/// State of the task.
struct Reader {
    schemas: Arc<Schemas>,
    check: Check,
    started: Instant,
    was_read: bool,
    /// Problems of the documents that were read last.
    problems: Vec<String>,
}

impl Reader {
    /// Puts documents into force when they change; ends with the sender.
    async fn run(mut self, mut found: watch::Receiver<FoundDocuments>) {
        let mut applied = None;
        loop {
            let FoundDocuments { documents, problem } = found.borrow_and_update().clone();
            if let Some(documents) = documents.filter(|now| applied.as_ref() != Some(now)) {
                let (schemas, changed) = (self.schemas.clone(), documents.clone());
                let update = spawn_blocking(move || schemas.update(&changed)).await;
                self.problems = update.unwrap_or_else(|error| vec![error.to_string()]);
                tracing::info!(
                    documents = documents.len(),
                    problems = self.problems.len(),
                    "schemas applied"
                );
                self.was_read = true;
                applied = Some(documents);
            }
            self.report(problem);
            let start_ends = self.started + START_MAX;
            let is_starting = !self.was_read && Instant::now() < start_ends;
            let changed = if is_starting {
                timeout_at(start_ends, found.changed()).await
            } else {
                Ok(found.changed().await)
            };
            match changed {
                Ok(Ok(())) => sleep(SETTLE).await,
                Ok(Err(_)) => return,
                // The start is over.
                Err(_) => {}
            }
        }
    }

    /// Sets the check, which logs a change.
    fn report(&self, problem: Option<String>) {
        let mut problems: Vec<String> = problem.into_iter().collect();
        problems.extend(self.problems.iter().cloned());
        let others = problems.len().saturating_sub(NAMED_MAX);
        problems.truncate(NAMED_MAX);
        let mut why = problems.join("; ");
        if others > 0 {
            why = format!("{why} (and {others} more)");
        }
        let is_starting = !self.was_read && self.started.elapsed() < START_MAX;
        self.check.set(match (problems.is_empty(), is_starting) {
            (true, true) => Status::Failing("not read yet".to_owned()),
            (true, false) => Status::Ok,
            (false, true) => Status::Failing(why),
            (false, false) => Status::Degraded(why),
        });
    }
}
