//! Check `application`: degraded while the application cannot be connected.
//!
//! With an application, a pod that has been ready stays ready.
//!
//! A TCP connection every [`INTERVAL`] is opened and closed at once, so the check also holds for a
//! pod without requests. The check is never failing: event streams do not need the application, and
//! a pod that is not ready would receive no traffic for either.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::http::application::ApplicationConfig;
use crate::lifecycle::health::{Check, Health, Status};

/// 5 s: an operator sees a change within one or two scrapes; a connection costs the application
/// microseconds.
const INTERVAL: Duration = Duration::from_secs(5);

/// Check of the application in force.
pub(super) struct ApplicationCheck {
    health: Health,
    running: Mutex<Option<Running>>,
}

/// Task that connects. Dropping it removes the check.
struct Running {
    config: ApplicationConfig,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ApplicationCheck {
    pub(super) fn new(health: Health) -> Self {
        Self {
            health,
            running: Mutex::default(),
        }
    }

    /// Starts, replaces or removes the check. Needs a runtime.
    pub(super) fn apply(&self, config: Option<&ApplicationConfig>) {
        self.health.set_serves_application(config.is_some());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let before = running.take();
        *running = config.map(|config| {
            let before = before.filter(|running| running.config == *config);
            before.unwrap_or_else(|| {
                let check = self.health.degraded("application", Status::Ok);
                Running {
                    config: config.clone(),
                    task: tokio::spawn(watch(config.clone(), check)),
                }
            })
        });
    }
}

/// Connects until the task is aborted; the result is the status of the check.
async fn watch(config: ApplicationConfig, check: Check) {
    let address = config.socket_address();
    loop {
        let connected = timeout(config.connect_timeout, TcpStream::connect(&address)).await;
        let reason = match connected {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no connection within {:?}", config.connect_timeout)),
        };
        check.set(reason.map_or(Status::Ok, |reason| {
            Status::Degraded(format!("cannot connect to {address}: {reason}"))
        }));
        sleep(INTERVAL).await;
    }
}
