//! A changed configuration, applied while event streams are open, and what `/config` tells of it.

use std::sync::PoisonError;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::App;
use super::sources::Sources;
use crate::config::reload::Reload;
use crate::config::{self, Loaded, Problem, Problems};
use crate::lifecycle::health::{Check, Status};
use crate::telemetry::logs;

/// 5 s: how long new routes wait until the streams that they name are caught up with; clients are served by the old ones.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(5);

/// What is done about a reading of the file.
pub(super) enum Step {
    /// It was answered; the error is what is told to whoever asked for it.
    Answered(Result<(), String>),
    /// The streams that it names are followed; it is applied when they are caught up with.
    CatchUp(Pending),
}

/// A configuration that waits for its streams.
pub(super) struct Pending {
    loaded: Box<Loaded>,
    restart: Vec<&'static str>,
    until: Instant,
}

impl Pending {
    /// Returns when its streams are caught up with, or after five seconds. May be dropped at any await.
    pub(super) async fn caught_up(&self, sources: &Sources) {
        sources
            .caught_up(self.until.saturating_duration_since(Instant::now()))
            .await;
    }
}

impl App {
    /// Takes a reading of the file. Never waits: signals are answered meanwhile.
    pub(super) fn reload(&mut self, reload: Reload, check: &Check) -> Step {
        let result = match &reload {
            Reload::Changed { .. } => "changed",
            Reload::Unchanged => "unchanged",
            Reload::Refused(_) => "refused",
        };
        self.live
            .metrics
            .config_reloads_total
            .with_label_values(&[result])
            .inc();
        match reload {
            Reload::Unchanged => {
                check.set(self.status());
                tracing::info!("configuration read again; nothing has changed");
                self.show(None);
                Step::Answered(Ok(()))
            }
            Reload::Refused(problems) => {
                for problem in problems.as_slice() {
                    tracing::warn!(%problem, "problem in the configuration");
                }
                check.set(Status::Warning(refused(&problems)));
                self.show(Some(&problems));
                Step::Answered(Err(problems.to_string()))
            }
            Reload::Changed { loaded, restart } => {
                self.live.sources.apply(&loaded.config);
                Step::CatchUp(Pending {
                    loaded,
                    restart,
                    until: Instant::now() + CAUGHT_UP_MAX,
                })
            }
        }
    }

    /// Applies a configuration whose streams are followed.
    pub(super) fn apply(&mut self, pending: Pending, check: &Check) {
        let Pending {
            loaded, restart, ..
        } = pending;
        self.live.apply(&loaded.config);
        if logs::set_filter(&loaded.config.log.filter).is_err() {
            tracing::warn!("the filter of the log stays as it was");
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

    /// Logs what of the configuration may not do what was meant.
    pub(super) fn log_warnings(&self) {
        for problem in &self.loaded.warnings {
            tracing::warn!(%problem, "warning about the configuration");
        }
    }

    /// What the probes are told about the configuration that is applied.
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
            Status::Warning(said.join("; "))
        }
    }

    fn show(&self, problems: Option<&Problems>) {
        let value = shown(&self.loaded, &self.restart, problems);
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

/// One line for the probes: the first problem with its place, and how many more there are.
fn refused(problems: &Problems) -> String {
    let first = problems
        .as_slice()
        .first()
        .map_or_else(String::new, |first| format!(": {}", placed(first)));
    format!(
        "the last reload was refused{first}{}",
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

/// What `/config` answers.
pub(super) fn shown(loaded: &Loaded, restart: &[&str], problems: Option<&Problems>) -> Value {
    json!({
        "effective": config::effective(&loaded.config),
        "hash": loaded.content_hash,
        "warnings": loaded.warnings,
        "reload": { "result": if problems.is_none() { "applied" } else { "refused" },
            "problems": problems.map(Problems::to_json), "needs_restart": restart },
    })
}
