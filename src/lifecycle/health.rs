//! What the probes are told: named checks, each set by the part it speaks of.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All checks of the process.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Checks>>);

#[derive(Debug, Default)]
struct Checks {
    /// Each with the number of the handle that sets it.
    by_name: BTreeMap<String, (u64, Status)>,
    made: u64,
}

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
    number: u64,
}

impl Health {
    /// Adds a check that is failing until it is set, with this as the reason. One of the same name that is there
    /// already is replaced: its handle sets nothing any more.
    #[must_use]
    pub fn check(&self, name: impl Into<String>, why: impl Into<String>) -> Check {
        self.add(name.into(), Status::Failing(why.into()))
    }

    /// Adds a check of a part that works until now, with a status that is no failure: readiness is not touched.
    #[must_use]
    pub fn degraded(&self, name: impl Into<String>, status: Status) -> Check {
        let check = self.add(name.into(), Status::Ok);
        check.set(status);
        check
    }

    fn add(&self, name: String, status: Status) -> Check {
        let mut checks = self.lock();
        checks.made += 1;
        let number = checks.made;
        checks.by_name.insert(name.clone(), (number, status));
        Check {
            health: self.clone(),
            name,
            number,
        }
    }

    /// Every check by name.
    #[must_use]
    pub fn report(&self) -> BTreeMap<String, Status> {
        self.lock()
            .by_name
            .iter()
            .map(|(name, (_, status))| (name.clone(), status.clone()))
            .collect()
    }

    /// Whether no check is failing.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self
            .lock()
            .by_name
            .values()
            .any(|(_, status)| matches!(status, Status::Failing(_)))
    }

    fn lock(&self) -> MutexGuard<'_, Checks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Check {
    /// Says how the part is now; a change is logged.
    pub fn set(&self, status: Status) {
        let mut checks = self.health.lock();
        let Some((number, before)) = checks.by_name.get_mut(&self.name) else {
            return;
        };
        if *number != self.number || *before == status {
            return;
        }
        let name = &*self.name;
        match (&status, &*before) {
            (Status::Ok, _) => tracing::info!(check = name, "check passes"),
            (Status::Warning(why), _) => tracing::warn!(check = name, why, "check warns"),
            (Status::Failing(why), Status::Failing(_)) => {
                tracing::info!(check = name, why, "check still fails")
            }
            (Status::Failing(why), _) => tracing::warn!(check = name, why, "check fails"),
        }
        *before = status;
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        let mut checks = self.health.lock();
        if checks
            .by_name
            .get(&self.name)
            .is_some_and(|(number, _)| *number == self.number)
        {
            checks.by_name.remove(&self.name);
        }
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

    #[test]
    fn a_check_that_was_replaced_neither_sets_nor_removes_the_new_one() {
        let health = Health::default();
        let old = health.check("stream", "not caught up yet");
        let new = health.check("stream", "not caught up yet");
        old.set(Status::Ok);
        assert!(!health.is_ready());
        new.set(Status::Ok);
        drop(old);
        assert_eq!(health.report()["stream"], Status::Ok);
    }
}
