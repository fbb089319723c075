//! What the probes are told: named checks, each set by the part it speaks of.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// All checks of the process.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Status>>>);

/// How one part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, but a human should look; readiness is not touched.
    Warning(String),
    /// Does not work: the pod is not ready.
    Failing(String),
}

/// The handle with which a part sets its check; dropping it takes the check away.
#[derive(Debug)]
pub struct Check {
    health: Health,
    name: String,
}

impl Health {
    /// Adds a check that is failing until it is set, with this as the reason.
    #[must_use]
    pub fn check(&self, name: impl Into<String>, why: impl Into<String>) -> Check {
        let check = Check { health: self.clone(), name: name.into() };
        check.set(Status::Failing(why.into()));
        check
    }

    /// Every check by name.
    #[must_use]
    pub fn report(&self) -> BTreeMap<String, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether no check is failing.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let checks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !checks.values().any(|status| matches!(status, Status::Failing(_)))
    }
}

impl Check {
    /// Says how the part is now; a change is logged.
    pub fn set(&self, status: Status) {
        let mut checks = self.health.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = checks.get(&self.name);
        if before == Some(&status) {
            return;
        }
        let (first, name) = (before.is_none(), &*self.name);
        match &status {
            Status::Ok if first => {}
            Status::Ok => tracing::info!(check = name, "check passes"),
            Status::Warning(why) => tracing::warn!(check = name, why, "check warns"),
            Status::Failing(why) if first => tracing::debug!(check = name, why, "check begins"),
            Status::Failing(why) => tracing::warn!(check = name, why, "check fails"),
        }
        checks.insert(self.name.clone(), status);
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        let mut checks = self.health.0.lock().unwrap_or_else(PoisonError::into_inner);
        checks.remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_fails_while_any_check_fails_and_a_warning_does_not_touch_it() {
        let health = Health::default();
        assert!(health.is_ready());
        let nats = health.check("nats", "not connected yet");
        let config = health.check("config", "not read yet");
        config.set(Status::Warning("the last reload was refused".into()));
        assert!(!health.is_ready());
        nats.set(Status::Ok);
        assert!(health.is_ready());
        nats.set(Status::Failing("gone".into()));
        assert_eq!(health.report()["nats"], Status::Failing("gone".into()));
        drop(nats);
        assert!(health.is_ready());
    }
}
