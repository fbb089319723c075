//! A changed configuration, applied while event streams are open, and what `/config` tells of it.

use std::sync::PoisonError;
use std::time::Duration;

use serde_json::{Value, json};

use super::App;
use crate::config::reload::Reload;
use crate::config::{self, Loaded, Problems};
use crate::lifecycle::health::{Check, Status};
use crate::telemetry::logs;

/// 5 s: how long new routes wait until the streams that they name are caught up with; clients are served by the old ones.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(5);

impl App {
    /// Applies a reading of the file. The error is what is told to whoever asked for it.
    pub(super) async fn reload(&mut self, reload: Reload, check: &Check) -> Result<(), String> {
        let result = match &reload {
            Reload::Changed { .. } => "changed",
            Reload::Unchanged => "unchanged",
            Reload::Refused(_) => "refused",
        };
        self.live.metrics.config_reloads_total.with_label_values(&[result]).inc();
        match reload {
            Reload::Unchanged => {
                check.set(Status::Ok);
                tracing::info!("configuration read again; nothing has changed");
                self.show(None);
                Ok(())
            }
            Reload::Refused(problems) => {
                for problem in problems.as_slice() {
                    tracing::warn!(%problem, "problem in the configuration");
                }
                check.set(Status::Warning(refused(&problems)));
                self.show(Some(&problems));
                Err(problems.to_string())
            }
            Reload::Changed { loaded, restart } => {
                let config = &loaded.config;
                self.live.sources.apply(config);
                self.live.sources.caught_up(CAUGHT_UP_MAX).await;
                self.live.apply(config);
                if logs::set_filter(&config.log.filter).is_err() {
                    tracing::warn!("the filter of the log stays as it was");
                }
                tracing::info!(hash = loaded.content_hash, ?restart, "configuration applied");
                check.set(if restart.is_empty() {
                    Status::Ok
                } else {
                    Status::Warning(format!("only a restart applies: {}", restart.join(", ")))
                });
                self.loaded = *loaded;
                self.restart = restart;
                self.show(None);
                Ok(())
            }
        }
    }

    fn show(&self, problems: Option<&Problems>) {
        let value = shown(&self.loaded, &self.restart, problems);
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

/// One line for the probes: the first problem with its place, and how many more there are.
fn refused(problems: &Problems) -> String {
    let first = problems.as_slice().first().map_or_else(String::new, |first| match first.line {
        0 => format!(": {}: {}", first.file, first.message),
        line => format!(": {}:{line}:{}: {}", first.file, first.column, first.message),
    });
    let more = match problems.as_slice().len() {
        0 | 1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    format!("the last reload was refused{first}{more}")
}

/// What `/config` answers.
pub(super) fn shown(loaded: &Loaded, restart: &[&str], problems: Option<&Problems>) -> Value {
    json!({
        "effective": config::effective(&loaded.config),
        "hash": loaded.content_hash,
        "reload": { "result": if problems.is_none() { "applied" } else { "refused" },
            "problems": problems.map(Problems::to_json), "needs_restart": restart },
    })
}
