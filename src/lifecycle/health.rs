//! Health checks: the named statuses of `/health` and of the readiness probe.
//!
//! A part of the process adds a check and gets a [`Check`], the only handle that sets it; dropping
//! the handle removes the check. The pod is ready while no check fails. A degraded check does not
//! change readiness. Every change is logged once, by the handle that makes it. One mutex guards all
//! checks; it is held for a map operation and one log call, never across an await.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All checks of the process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Checks>>);

#[derive(Debug, Default)]
struct Checks {
    /// Status of each check, with the number of the handle that may set it.
    by_name: BTreeMap<String, (u64, Status)>,
    made: u64,
}

/// Status of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Works.
    Ok,
    /// Works, but an operator should look. Readiness does not change.
    Degraded(String),
    /// Does not work. The pod is not ready.
    Failing(String),
}

/// Handle that sets one check; dropping it removes the check.
#[derive(Debug)]
pub struct Check {
    health: Health,
    name: String,
    number: u64,
}

impl Health {
    /// Adds a check that fails with this reason until it is set. An existing check of the same name
    /// is replaced; its handle has no effect from then on.
    #[must_use]
    pub fn check(&self, name: impl Into<String>, why: impl Into<String>) -> Check {
        self.add(name.into(), Status::Failing(why.into()))
    }

    /// Adds a check with a status other than failing: readiness does not change.
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

    /// Returns every check by name.
    #[must_use]
    pub fn report(&self) -> BTreeMap<String, Status> {
        self.lock()
            .by_name
            .iter()
            .map(|(name, (_, status))| (name.clone(), status.clone()))
            .collect()
    }

    /// Returns true while no check fails.
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
    /// Sets the status; a change is logged.
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
            (Status::Degraded(why), _) => tracing::warn!(check = name, why, "check degraded"),
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
    fn readiness_fails_while_any_check_fails_and_ignores_degraded_checks() {
        let health = Health::default();
        assert!(health.is_ready());
        let nats = health.check("nats", "not connected yet");
        let config = health.check("config", "not read yet");
        config.set(Status::Degraded("the last reload was rejected".into()));
        assert!(!health.is_ready());
        nats.set(Status::Ok);
        assert!(health.is_ready());
        nats.set(Status::Failing("gone".into()));
        assert_eq!(health.report()["nats"], Status::Failing("gone".into()));
        drop(nats);
        assert!(health.is_ready());
    }

    #[test]
    fn replaced_check_neither_sets_nor_removes_its_successor() {
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
