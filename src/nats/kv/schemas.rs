//! Watcher of a bucket of JSON Schemas: its documents, whenever they change.
//!
//! The bucket belongs to its publishers, so it is not created here. A watch that ends is followed by
//! one from the start: the bucket is small, and may be another one of the same name.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::sleep;

use super::bucket::{NOT_FOUND, explain};
use super::watch::{Update, Watch};
use crate::lifecycle::backoff::{Backoff, Jitter};
use crate::nats::client::Nats;
use crate::payload::schema::FoundDocuments;
use crate::payload::schema::limits::{BYTES_MAX, DOCUMENT_BYTES_MAX, DOCUMENTS_MAX};
use crate::subject::BucketName;

/// Delay after a failure: 0.25 s, doubled up to 5 s, half of it random.
const RETRY: Backoff = Backoff::new(
    Duration::from_millis(250),
    Duration::from_secs(5),
    Jitter::Half,
);

/// Follows a bucket. Pending forever.
pub(in crate::nats) async fn follow(
    nats: &Nats,
    bucket: &BucketName,
    found: &watch::Sender<FoundDocuments>,
) -> Infallible {
    let mut failures = 0;
    loop {
        let Err(why) = follow_once(nats, bucket, found, &mut failures).await;
        let why = named(bucket, &why);
        tracing::debug!(why, "watch of the schemas ended; retrying");
        found.send_if_modified(|found| {
            let problem = Some(why);
            let is_modified = found.problem != problem;
            found.problem = problem;
            is_modified
        });
        sleep(RETRY.delay(failures, fastrand::f64())).await;
        failures = failures.saturating_add(1);
    }
}

async fn follow_once(
    nats: &Nats,
    bucket: &BucketName,
    found: &watch::Sender<FoundDocuments>,
    failures: &mut u32,
) -> Result<Infallible, String> {
    let mut connection = nats.0.connections.control.clone();
    if !connection.state().up {
        let problem = Some(named(bucket, "not connected to NATS"));
        found.send_modify(|found| found.problem = problem);
        connection.wait_up().await;
    }
    let watch = Watch::start(nats, bucket, 0).await;
    let mut watch = watch.map_err(|error| match explain(&error) {
        why if why == NOT_FOUND => format!("{why}; create it with `nats kv add`"),
        why => why,
    })?;
    let mut read = Read::default();
    loop {
        let updates = watch.next().await;
        for update in updates.updates {
            read.apply(update);
        }
        if updates.is_current {
            *failures = 0;
            let now = FoundDocuments {
                documents: Some(read.documents.clone()),
                problem: read.problem().map(|why| named(bucket, &why)),
            };
            found.send_if_modified(|found| {
                let is_modified = *found != now;
                *found = now;
                is_modified
            });
        }
        if let Some(lost) = updates.lost {
            return Err(format!("the watch was lost: {lost:?}"));
        }
    }
}

fn named(bucket: &BucketName, why: &str) -> String {
    format!("bucket {}: {why}", bucket.as_str())
}

/// Documents that were read, within the limits.
#[derive(Debug, Default)]
struct Read {
    documents: BTreeMap<String, Bytes>,
    bytes: usize,
    /// Keys with values that are not kept.
    ignored: BTreeMap<String, &'static str>,
}

impl Read {
    fn apply(&mut self, Update { key, value, .. }: Update) {
        if let Some(before) = self.documents.remove(&key) {
            self.bytes -= before.len();
        }
        self.ignored.remove(&key);
        let Some(value) = value else { return };
        let why = if value.len() > DOCUMENT_BYTES_MAX {
            "is larger than 1 MiB"
        } else if self.bytes + value.len() > BYTES_MAX {
            "is ignored: the documents have more than 8 MiB"
        } else if self.documents.len() >= DOCUMENTS_MAX {
            "is ignored: there are more than 1000 documents"
        } else {
            self.bytes += value.len();
            self.documents.insert(key, value);
            return;
        };
        // Memory does not grow with a bucket of something else.
        if self.ignored.len() < DOCUMENTS_MAX {
            self.ignored.insert(key, why);
        }
    }

    fn problem(&self) -> Option<String> {
        let (key, why) = self.ignored.first_key_value()?;
        Some(format!("{key} {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(key: &str, value: Option<usize>) -> Update {
        Update {
            key: key.to_owned(),
            value: value.map(|len| vec![b' '; len].into()),
            revision: 1,
            published: 0,
        }
    }

    #[test]
    fn documents_beyond_the_limits_are_ignored_until_there_is_room() {
        let mut read = Read::default();
        read.apply(update("big", Some(DOCUMENT_BYTES_MAX + 1)));
        assert_eq!(read.problem().as_deref(), Some("big is larger than 1 MiB"));
        read.apply(update("big", None));
        assert_eq!(read.problem(), None);
        for number in 0..8 {
            read.apply(update(&number.to_string(), Some(DOCUMENT_BYTES_MAX)));
        }
        read.apply(update("more", Some(1)));
        let problem = read.problem().unwrap();
        assert_eq!(
            problem,
            "more is ignored: the documents have more than 8 MiB"
        );
        read.apply(update("0", Some(1)));
        read.apply(update("more", Some(1)));
        assert_eq!((read.problem(), read.documents.len()), (None, 9));
        for number in 0..2 * DOCUMENTS_MAX {
            read.apply(update(&format!("k{number}"), Some(1)));
        }
        assert_eq!(read.documents.len(), DOCUMENTS_MAX);
        assert!(read.problem().unwrap().ends_with("1000 documents"));
    }
}
