//! All providers by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::config::Config;
use super::jwt::JwtProvider;
use super::provider::Provider;
use crate::lifecycle::health::Health;
use crate::telemetry::Metrics;

/// Providers of the configuration in force.
#[derive(Debug)]
pub struct Providers {
    by_name: Mutex<BTreeMap<Box<str>, Arc<JwtProvider>>>,
}

impl Providers {
    /// Returns an empty set; [`Self::apply`] fills it.
    #[must_use]
    pub fn new(_health: &Health, _metrics: &Arc<Metrics>) -> Self {
        Self {
            by_name: Mutex::default(),
        }
    }

    /// Replaces the providers whose settings changed, adds new ones and removes the others. Routes
    /// keep the providers that they found until they are replaced themselves. Needs a runtime.
    pub fn apply(&self, config: &Config) {
        let mut by_name = self.lock();
        let mut before = std::mem::take(&mut *by_name);
        for provider in &config.providers {
            let name = provider.name.clone();
            let current = before
                .remove(&name)
                .filter(|current| current.has(provider))
                .unwrap_or_else(|| Arc::new(JwtProvider::new(provider)));
            by_name.insert(name, current);
        }
    }

    /// Finds a provider for a route.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<dyn Provider>> {
        let provider = self.lock().get(name).cloned()?;
        Some(provider)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Box<str>, Arc<JwtProvider>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
