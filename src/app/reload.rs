//! Reload: applies a changed configuration while event streams are open.
//!
//! ```text
//! Reload::Changed -> new sources follow their streams -> caught up (at most 5 s) -> routes are replaced
//! Reload::Rejected -> the running configuration stays; check, log and `/config` show the problems
//! ```
//!
//! Called from the loop of [`App::run`](super::App), which never waits here: it awaits
//! [`Pending::caught_up`] beside signals and commands. Event streams that are open keep the routes
//! and sources with which they began.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::parts::App;
use super::sources::NewSources;
use crate::config::reload::Reload;
use crate::config::{self, Loaded, Problem, Problems};
use crate::lifecycle::health::{Check, Status};
use crate::telemetry::logs;

/// 5 s: longest wait for streams that new routes name; the old routes serve clients meanwhile.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(5);

/// Next step after the file was read.
pub(super) enum Step {
    /// Done; the error is returned to the requester of the reload.
    Answered(Result<(), String>),
    /// Apply the configuration when its streams are caught up.
    CatchUp(Pending),
}

/// Configuration that waits for its streams.
pub(super) struct Pending {
    loaded: Box<Loaded>,
    restart: Vec<&'static str>,
    /// Sources that this reload has added or replaced: others do not delay it.
    sources: NewSources,
    until: Instant,
}

impl Pending {
    /// Returns when its new sources are caught up, or after five seconds. Cancel safe.
    pub(super) async fn caught_up(&self) {
        self.sources
            .caught_up(self.until.saturating_duration_since(Instant::now()))
            .await;
    }
}

impl App {
    /// Handles a file that was read. Never waits: signals are answered meanwhile.
    pub(super) fn reload(&mut self, reload: Reload, check: &Check) -> Step {
        let result = match &reload {
            Reload::Changed { .. } => "changed",
            Reload::Unchanged => "unchanged",
            Reload::Rejected(_) => "refused",
        };
        self.live
            .metrics
            .config_reloads_total
            .with_label_values(&[result])
            .inc();
        match reload {
            Reload::Unchanged => {
                check.set(self.status());
                tracing::info!("configuration reloaded; unchanged");
                self.show(None);
                Step::Answered(Ok(()))
            }
            Reload::Rejected(problems) => {
                for problem in problems.as_slice() {
                    tracing::warn!(%problem, "configuration problem; reload rejected");
                }
                check.set(Status::Degraded(refused(&problems)));
                self.show(Some(&problems));
                Step::Answered(Err(problems.to_string()))
            }
            Reload::Changed { loaded, restart } => {
                let in_force = Arc::downgrade(&self.live.context.routes());
                let sources = self.live.sources.apply(&loaded.config, &in_force);
                Step::CatchUp(Pending {
                    loaded,
                    restart,
                    sources,
                    until: Instant::now() + CAUGHT_UP_MAX,
                })
            }
        }
    }

    /// Applies a configuration whose streams are caught up.
    pub(super) fn apply(&mut self, pending: Pending, check: &Check) {
        let Pending {
            loaded, restart, ..
        } = pending;
        self.live.apply(&loaded.config);
        if logs::set_filter(&loaded.config.log.filter).is_err() {
            tracing::warn!("log filter not changed");
        }
        tracing::info!(
            hash = loaded.content_hash,
            ?restart,
            "configuration applied"
        );
        self.loaded = *loaded;
        self.restart = restart;
        self.log_warnings();
        check.set(self.status());
        self.show(None);
    }

    /// Logs the warnings of the configuration.
    pub(super) fn log_warnings(&self) {
        for problem in &self.loaded.warnings {
            tracing::warn!(%problem, "configuration warning");
        }
    }

    /// Status of the check `config` for the running configuration.
    pub(super) fn status(&self) -> Status {
        let warning = match &self.loaded.warnings[..] {
            [] => None,
            [first, others @ ..] => Some(format!("{}{}", placed(first), more(others.len()))),
        };
        let restart = Some(format!(
            "only a restart applies: {}",
            self.restart.join(", ")
        ));
        let said: Vec<String> = restart
            .filter(|_| !self.restart.is_empty())
            .into_iter()
            .chain(warning)
            .collect();
        if said.is_empty() {
            Status::Ok
        } else {
            Status::Degraded(said.join("; "))
        }
    }

    fn show(&self, problems: Option<&Problems>) {
        let value = shown(&self.loaded, &self.restart, problems);
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

/// One line for the check: the first problem with its location, and the number of others.
fn refused(problems: &Problems) -> String {
    let first = problems
        .as_slice()
        .first()
        .map_or_else(String::new, |first| format!(": {}", placed(first)));
    format!(
        "the last reload was rejected{first}{}",
        more(problems.as_slice().len().saturating_sub(1))
    )
}

fn placed(problem: &Problem) -> String {
    match problem.line {
        0 => format!("{}: {}", problem.file, problem.message),
        line => format!(
            "{}:{line}:{}: {}",
            problem.file, problem.column, problem.message
        ),
    }
}

fn more(count: usize) -> String {
    if count == 0 {
        String::new()
    } else {
        format!(" (and {count} more)")
    }
}

/// Answer of `/config`.
pub(super) fn shown(loaded: &Loaded, restart: &[&str], problems: Option<&Problems>) -> Value {
    json!({
        "effective": config::effective(&loaded.config),
        "hash": loaded.content_hash,
        "warnings": loaded.warnings,
        "reload": { "result": if problems.is_none() { "applied" } else { "refused" },
            "problems": problems.map(Problems::to_json), "needs_restart": restart },
    })
}
