//! Health checks: the named statuses of `/health` and of the readiness probe.
//!
//! A part of the process adds a check and gets a [`Check`], the only handle that sets it; dropping
//! the handle removes the check. The pod is ready while no check fails. A degraded check does not
//! change readiness. Every change is logged once, by the handle that makes it. One mutex guards all
//! checks; it is held for a map operation and one log call, never across an await.
//!
//! A reload must not make a serving pod unready, or one wrong route in a ConfigMap would make all
//! pods unready at once. A check can fail only if its failure is news about what the pod serves:
//!
//! ```text
//! added before the pod was ready for the first time    fails
//! added later, in place of a check that fails          fails
//! added later                                          is degraded until it passes once, then fails
//! retired: a reload has removed what it checks         is degraded
//! ```
//!
//! In front of an application a pod that has been ready stays ready, whatever fails: its pages do
//! not need NATS, and without a ready pod a Service would have no endpoint for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All checks of the process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Checks>>);

#[derive(Debug, Default)]
struct Checks {
    by_name: BTreeMap<String, Entry>,
    made: u64,
    /// All checks of the start are added.
    is_start_complete: bool,
    /// No check failed at some time after the start.
    has_been_ready: bool,
    /// An application is served beside the event streams.
    serves_application: bool,
}

#[derive(Debug)]
struct Entry {
    /// Number of the handle that may set it.
    number: u64,
    status: Status,
    severity: Severity,
}

/// Effect of a check that reports a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Failing,
    DegradedUntilPassed,
    Degraded,
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

impl Status {
    /// Names of the statuses.
    pub const NAMES: [&'static str; 3] = ["ok", "degraded", "failing"];

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded(_) => "degraded",
            Self::Failing(_) => "failing",
        }
    }
}

/// Handle that sets one check; dropping it removes the check.
#[derive(Debug)]
pub struct Check {
    health: Health,
    name: String,
    number: u64,
}

impl Health {
    /// Adds a check that fails with this reason until it is set, or is degraded if the pod has been
    /// ready. An existing check of the same name is replaced; its handle has no effect from then on.
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
        let replaces_failing = checks
            .by_name
            .get(&name)
            .is_some_and(|entry| matches!(entry.status, Status::Failing(_)));
        let severity = if checks.has_been_ready && !replaces_failing {
            Severity::DegradedUntilPassed
        } else {
            Severity::Failing
        };
        let mut entry = Entry {
            number,
            status: Status::Ok,
            severity,
        };
        entry.status = entry.effective(status);
        checks.by_name.insert(name.clone(), entry);
        Check {
            health: self.clone(),
            name,
            number,
        }
    }

    /// Records that all checks of the start are added: the pod has been ready once none of them
    /// fails.
    pub fn complete_start(&self) {
        let mut checks = self.lock();
        checks.is_start_complete = true;
        checks.record_readiness();
    }

    /// Degrades a check in place of a failure from its next status on: a reload has removed what it
    /// checks, and open event streams may still use it.
    pub fn retire(&self, name: &str) {
        if let Some(entry) = self.lock().by_name.get_mut(name) {
            entry.severity = Severity::Degraded;
        }
    }

    /// Sets whether the pod serves an application, which no check of event streams concerns.
    pub fn set_serves_application(&self, serves: bool) {
        self.lock().serves_application = serves;
    }

    /// Returns every check by name.
    #[must_use]
    pub fn report(&self) -> BTreeMap<String, Status> {
        self.lock()
            .by_name
            .iter()
            .map(|(name, entry)| (name.clone(), entry.status.clone()))
            .collect()
    }

    /// Returns true while no check fails, or once the pod of an application has been ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let checks = self.lock();
        let stays_ready = checks.serves_application && checks.has_been_ready;
        stays_ready || !checks.any_fails()
    }

    fn lock(&self) -> MutexGuard<'_, Checks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Checks {
    fn any_fails(&self) -> bool {
        self.by_name
            .values()
            .any(|entry| matches!(entry.status, Status::Failing(_)))
    }

    fn record_readiness(&mut self) {
        self.has_been_ready |= self.is_start_complete && !self.any_fails();
    }
}

impl Entry {
    /// Returns the status in place of the one that the handle sets.
    fn effective(&self, status: Status) -> Status {
        match status {
            Status::Failing(why) if self.severity != Severity::Failing => Status::Degraded(why),
            status => status,
        }
    }
}

impl Check {
    /// Sets the status; a change is logged.
    pub fn set(&self, status: Status) {
        let mut checks = self.health.lock();
        let Some(entry) = checks.by_name.get_mut(&self.name) else {
            return;
        };
        if entry.number != self.number {
            return;
        }
        if status == Status::Ok && entry.severity == Severity::DegradedUntilPassed {
            entry.severity = Severity::Failing;
        }
        let status = entry.effective(status);
        if entry.status == status {
            return;
        }
        let name = &*self.name;
        match (&status, &entry.status) {
            (Status::Ok, _) => tracing::info!(check = name, "check passes"),
            (Status::Degraded(why), _) => tracing::warn!(check = name, why, "check degraded"),
            (Status::Failing(why), Status::Failing(_)) => {
                tracing::info!(check = name, why, "check still fails")
            }
            (Status::Failing(why), _) => tracing::warn!(check = name, why, "check fails"),
        }
        entry.status = status;
        checks.record_readiness();
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        let mut checks = self.health.lock();
        if checks
            .by_name
            .get(&self.name)
            .is_some_and(|entry| entry.number == self.number)
        {
            checks.by_name.remove(&self.name);
            checks.record_readiness();
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

    fn failing() -> Status {
        Status::Failing("missing".into())
    }

    #[test]
    fn check_of_a_reload_is_degraded_until_it_passes_once() {
        let health = Health::default();
        let old = health.check("stream", "not caught up yet");
        old.set(Status::Ok);
        health.complete_start();

        let replaced = health.check("stream", "not caught up yet");
        let added = health.check("missing", "not caught up yet");
        let degraded = Status::Degraded("not caught up yet".into());
        assert_eq!(health.report()["stream"], degraded);
        added.set(failing());
        assert_eq!(
            health.report()["missing"],
            Status::Degraded("missing".into())
        );
        assert!(health.is_ready());
        for check in [&replaced, &added] {
            check.set(Status::Ok);
            check.set(failing());
            assert!(!health.is_ready(), "as any other check");
            check.set(Status::Ok);
        }
    }

    #[test]
    fn check_of_a_reload_fails_while_the_pod_was_never_ready_or_the_replaced_one_fails() {
        let health = Health::default();
        let stream = health.check("stream", "missing");
        health.complete_start();
        let added = health.check("added", "not caught up yet");
        stream.set(Status::Ok);
        assert!(!health.is_ready());
        added.set(Status::Ok);
        assert!(health.is_ready());

        stream.set(failing());
        let _successor = health.check("stream", "not caught up yet");
        assert!(!health.is_ready());
    }

    #[test]
    fn pod_of_an_application_that_has_been_ready_stays_ready() {
        let health = Health::default();
        health.set_serves_application(true);
        let nats = health.check("nats", "not connected yet");
        health.complete_start();
        assert!(!health.is_ready());
        nats.set(Status::Ok);
        nats.set(failing());
        assert!(health.is_ready());
        assert_eq!(health.report()["nats"], failing());
        health.set_serves_application(false);
        assert!(!health.is_ready());
    }

    #[test]
    fn retired_check_does_not_change_readiness() {
        let health = Health::default();
        let check = health.check("stream", "not caught up yet");
        check.set(Status::Ok);
        health.retire("stream");
        for _ in 0..2 {
            check.set(failing());
            assert!(health.is_ready());
            check.set(Status::Ok);
        }
    }
}
