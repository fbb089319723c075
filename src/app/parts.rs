//! All parts of the running process, as one value.
//!
//! `app` starts them, `app::reload` changes them and `app::shutdown` takes them apart in the order in
//! which they stop.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::application_check::ApplicationCheck;
use super::schemas::SchemaReaders;
use super::shards::Shards;
use super::sources::Sources;
use super::tickets::TicketStores;
use crate::config::Loaded;
use crate::feed::Budget;
use crate::lifecycle::health::Health;
use crate::lifecycle::phase::Progress;
use crate::lifecycle::shutdown::Trigger;
use crate::lifecycle::signals::Request;
use crate::telemetry::{Metrics, Tracer};
use crate::{admin, auth, http, nats};

/// All running parts.
pub(super) struct App {
    pub(super) loaded: Loaded,
    /// Changed keys that only a restart applies.
    pub(super) restart: Vec<&'static str>,
    pub(super) path: PathBuf,
    pub(super) signals: mpsc::Receiver<Request>,
    /// Grace period of the pod, if it is configured.
    pub(super) grace: Option<Duration>,
    pub(super) commands: mpsc::Receiver<admin::Command>,
    pub(super) live: Live,
    pub(super) nats: nats::Nats,
    /// Stops the writer of presence entries.
    pub(super) registry: Trigger,
    pub(super) shards: Shards,
    pub(super) health: Health,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) shown: Arc<Mutex<serde_json::Value>>,
    pub(super) admin: admin::Admin,
}

/// Parts that a reload changes while event streams are open.
pub(super) struct Live {
    pub(super) context: Arc<http::Context>,
    pub(super) providers: auth::Providers,
    pub(super) tickets: TicketStores,
    pub(super) schemas: SchemaReaders,
    pub(super) application_check: ApplicationCheck,
    pub(super) sources: Arc<Sources>,
    pub(super) budget: Arc<Budget>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tracer: Tracer,
    /// Token of the admin port; `None` if it is in a file.
    pub(super) admin_token: Option<admin::Token>,
}
