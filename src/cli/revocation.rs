//! Entry in the bucket of revocations, written by the commands `revoke` and `kick`.
//!
//! The connection to NATS is the one of `run`, by the same settings. Of the configuration only
//! `nats` and `authentication.revocations` are read.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::config_file::config_file;
use super::exit::Exit;
use super::output::complain;
use crate::auth::revocations::{Entry, Kind};
use crate::config::{self, RevocationAccess};
use crate::lifecycle::health::Health;
use crate::nats::{self, Identity};
use crate::subject::BucketName;
use crate::telemetry::{Metrics, Tracer};

/// A written entry.
pub(super) struct Written {
    pub(super) bucket: String,
    /// End of the entry, as text.
    pub(super) until: String,
}

/// Writes an entry that is valid from now on. A failure is printed.
pub(super) fn write(
    file: Option<&Path>,
    kind: Kind,
    value: &str,
    valid_for: Duration,
) -> Result<Written, Exit> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    let entry = Entry::new(kind, value.to_owned(), now, valid_for)
        .map_err(|error| fail(Exit::Usage, format_args!("{}: {error}", kind.as_str())))?;
    let file = config_file(file).unwrap_or(Path::new("sidecar.yaml"));
    let access = config::load_revocation_access(file).map_err(|problems| {
        complain(problems);
        Exit::Usage
    })?;
    let Some(bucket) = access.bucket.clone() else {
        let why = format!(
            "{} has no `authentication.revocations.bucket`: set it, so that sidecars read the bucket",
            file.display()
        );
        return Err(fail(Exit::Usage, why));
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| fail(Exit::Internal, error))?;
    runtime.block_on(send(&access, &bucket, &entry))?;
    let until = OffsetDateTime::from_unix_timestamp(entry.until().into()).ok();
    Ok(Written {
        bucket: bucket.as_str().to_owned(),
        until: until
            .and_then(|until| until.format(&Rfc3339).ok())
            .unwrap_or_default(),
    })
}

async fn send(access: &RevocationAccess, bucket: &BucketName, entry: &Entry) -> Result<(), Exit> {
    let health = Health::default();
    let metrics = Metrics::new().map_err(|error| fail(Exit::Internal, error))?;
    let identity = Identity::new("command");
    let tracer = Tracer::new(&metrics);
    let nats = nats::connect(&access.nats, identity, &health, &Arc::new(metrics), &tracer)
        .await
        .map_err(|error| fail(Exit::Usage, error))?;
    let written = nats.write_revocation(bucket, entry).await;
    nats.close().await;
    written.map_err(|why| {
        let why = format!("bucket {}: {why}", bucket.as_str());
        fail(Exit::Unavailable, why)
    })
}

fn fail(exit: Exit, why: impl Display) -> Exit {
    complain(format_args!("sidestream: {why}"));
    exit
}
