//! All providers by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::certificate::CertificateProvider;
use super::config::{Config, ForwardConfig, JwtConfig, ProviderConfig, ProviderKind};
use super::forward::{self, ForwardProvider};
use super::jwt::{JwtProvider, KeyFollower};
use super::provider::Provider;
use crate::lifecycle::health::Health;
use crate::telemetry::Metrics;

/// Providers of the configuration in force.
pub struct Providers {
    health: Health,
    metrics: Arc<Metrics>,
    by_name: Mutex<BTreeMap<Box<str>, Running>>,
}

/// One provider, with its task.
enum Running {
    Jwt {
        provider: Arc<JwtProvider>,
        /// Task of its keys, if they can change.
        follower: Option<KeyFollower>,
    },
    Certificate(Arc<CertificateProvider>),
    Forward(Arc<ForwardProvider>),
}

impl Providers {
    /// Returns an empty set; [`Self::apply`] fills it.
    #[must_use]
    pub fn new(health: &Health, metrics: &Arc<Metrics>) -> Self {
        Self {
            health: health.clone(),
            metrics: Arc::clone(metrics),
            by_name: Mutex::default(),
        }
    }

    /// Replaces the providers whose settings changed, adds new ones and removes the others. Keys
    /// are kept if their own settings did not change. Routes keep the providers that they found
    /// until they are replaced themselves. Needs a runtime.
    pub fn apply(&self, config: &Config) {
        let mut by_name = self.lock();
        let mut before = std::mem::take(&mut *by_name);
        for provider in &config.providers {
            let name = provider.name.clone();
            let running = self.running(before.remove(&name), provider);
            by_name.insert(name, running);
        }
        for (name, _) in before {
            self.forget(&name);
        }
    }

    /// Returns a provider with these settings: the one before if it can go on.
    fn running(&self, before: Option<Running>, config: &ProviderConfig) -> Running {
        match &config.kind {
            ProviderKind::Jwt(jwt) => self.jwt(before, &config.name, jwt),
            ProviderKind::Certificate => {
                self.forget(&config.name);
                Running::Certificate(Arc::new(CertificateProvider::new(&config.name)))
            }
            ProviderKind::Forward(forward) => self.forward(before, &config.name, forward),
        }
    }

    fn jwt(&self, before: Option<Running>, name: &str, config: &JwtConfig) -> Running {
        if let Some(Running::Jwt { provider, follower }) = before
            && provider.config().keys == config.keys
        {
            let provider = if provider.config() == config {
                provider
            } else {
                Arc::new(provider.with(config))
            };
            return Running::Jwt { provider, follower };
        }
        let (provider, follower) = JwtProvider::start(name, config, &self.health, &self.metrics);
        if follower.is_none() {
            self.forget(name);
        }
        Running::Jwt {
            provider: Arc::new(provider),
            follower,
        }
    }

    fn forward(&self, before: Option<Running>, name: &str, config: &ForwardConfig) -> Running {
        match before {
            Some(Running::Forward(provider)) if provider.config() == config => {
                return Running::Forward(provider);
            }
            Some(Running::Forward(_)) => {}
            _ => self.forget(name),
        }
        let provider = ForwardProvider::new(name, config, &self.health, &self.metrics);
        Running::Forward(Arc::new(provider))
    }

    /// Removes the metrics of a provider.
    fn forget(&self, name: &str) {
        let metrics = &self.metrics;
        for result in ["succeeded", "failed"] {
            let labels = [name, result];
            // They may not exist.
            metrics
                .authentication_key_loads_total
                .remove_label_values(&labels)
                .unwrap_or(());
        }
        metrics
            .authentication_keys_loaded_timestamp_seconds
            .remove_label_values(&[name])
            .unwrap_or(());
        forward::forget(name, metrics);
    }

    /// Finds a provider for a route.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<dyn Provider>> {
        Some(match self.lock().get(name)? {
            Running::Jwt { provider, .. } => Arc::clone(provider) as Arc<dyn Provider>,
            Running::Certificate(provider) => Arc::clone(provider) as Arc<dyn Provider>,
            Running::Forward(provider) => Arc::clone(provider) as Arc<dyn Provider>,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Running>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
