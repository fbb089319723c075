//! Annotations `sidestream.dev/...` as typed options: every problem is named, and what is wrong counts as left out.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::notice::Notice;
use crate::lifecycle::drain;

mod parse;

pub(super) use parse::{Quantity, is_object_name};

/// What every annotation and label of ours begins with.
pub(super) const PREFIX: &str = "sidestream.dev/";
/// The label that asks for the sidecar (`"true"`), or forbids it (`"false"`).
pub(super) const INJECT: &str = "sidestream.dev/inject";
/// The label of pods that have the sidecar: what monitors and network policies select by.
pub(super) const SIDECAR: &str = "sidestream.dev/sidecar";
/// The annotation that says what was injected.
pub(super) const STATUS: &str = "sidestream.dev/status";
/// The annotation that says that the time for the end of the pod was raised, and from what.
pub(super) const RAISED: &str = "sidestream.dev/grace-period-raised";
/// The annotation that has what is wrong with the others, for readers of the pod.
pub(super) const WARNINGS: &str = "sidestream.dev/warnings";

/// What applies where no annotation says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// The sidecar's image.
    pub image: String,
    /// The ConfigMap with the file `sidecar.yaml`.
    pub config_map: String,
    /// Values for annotations that a pod does not have, by their names without `sidestream.dev/`.
    pub annotations: BTreeMap<String, String>,
}

impl Defaults {
    /// Problems of the values for annotations, as those of a pod would have them.
    #[must_use]
    pub fn problems(&self) -> Vec<Notice> {
        let annotations = self
            .annotations
            .iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), value.clone().into()));
        let own = Self {
            annotations: BTreeMap::new(),
            ..self.clone()
        };
        Options::read(Some(&annotations.collect()), &own).1
    }
}

impl Default for Defaults {
    fn default() -> Self {
        let image = format!("sidestream:{}", env!("CARGO_PKG_VERSION"));
        Self {
            image,
            config_map: "sidestream".into(),
            annotations: BTreeMap::new(),
        }
    }
}

/// What one sidecar is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) image: String,
    pub(super) image_pull_policy: Option<String>,
    pub(super) config_map: String,
    /// A Secret to mount: credentials, certificates.
    pub(super) secret: Option<String>,
    pub(super) port: u16,
    pub(super) admin_port: u16,
    pub(super) container: Container,
    pub(super) cpu_request: Quantity,
    pub(super) memory_request: Quantity,
    pub(super) cpu_limit: Option<Quantity>,
    pub(super) memory_limit: Quantity,
    pub(super) storage_request: Option<Quantity>,
    pub(super) storage_limit: Option<Quantity>,
    /// What was said about the drain; `None`: what the configuration says.
    pub(super) drain_accept_for: Option<Duration>,
    pub(super) drain_spread: Option<Duration>,
    pub(super) drain_timeout: Option<Duration>,
    pub(super) log_level: Option<String>,
    pub(super) nats_url: Option<String>,
}

/// Which kind of container the sidecar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Container {
    /// An init container that goes on (Kubernetes 1.29).
    Native,
    /// One of the containers, for older clusters.
    Plain,
}

impl Options {
    /// Reads the annotations of a pod.
    pub(super) fn read(
        annotations: Option<&Map<String, Value>>,
        defaults: &Defaults,
    ) -> (Self, Vec<Notice>) {
        let mut said = Said {
            annotations,
            defaults: &defaults.annotations,
            known: Vec::new(),
            problems: Vec::new(),
        };
        let mut options = Self::ask(&mut said, defaults);
        said.tell_unknown();
        let mut problems = said.problems;
        options.settle(&mut problems);
        (options, problems)
    }

    fn ask(said: &mut Said<'_>, defaults: &Defaults) -> Self {
        Self {
            image: said
                .get("image", parse::image)
                .unwrap_or_else(|| defaults.image.clone()),
            image_pull_policy: said.get("image-pull-policy", parse::pull_policy),
            config_map: said
                .get("config-map", parse::object_name)
                .unwrap_or_else(|| defaults.config_map.clone()),
            secret: said.get("secret", parse::object_name),
            port: said.get("port", parse::port).unwrap_or(8080),
            admin_port: said.get("admin-port", parse::port).unwrap_or(9090),
            container: said
                .get("container", parse::container)
                .unwrap_or(Container::Native),
            cpu_request: said
                .get("cpu-request", Quantity::parse)
                .unwrap_or_else(|| Quantity::own("50m")),
            memory_request: said
                .get("memory-request", Quantity::parse)
                .unwrap_or_else(|| Quantity::own("128Mi")),
            // None: a throttled sidecar is a slow one for every client.
            cpu_limit: said.get("cpu-limit", Quantity::parse),
            // 64 MiB + limits.window_bytes (256 MiB) + 10 000 connections of 24 KiB, rounded up.
            memory_limit: said
                .get("memory-limit", Quantity::parse)
                .unwrap_or_else(|| Quantity::own("640Mi")),
            // None: it writes to memory and to its log alone. Namespaces with a quota ask for one.
            storage_request: said.get("ephemeral-storage-request", Quantity::parse),
            storage_limit: said.get("ephemeral-storage-limit", Quantity::parse),
            drain_accept_for: said.get("drain-accept-for", parse::duration),
            drain_spread: said.get("drain-spread", parse::duration),
            drain_timeout: said.get("drain-timeout", parse::duration),
            log_level: said.get("log-level", parse::log_level),
            nats_url: said.get("nats-url", parse::nats_url),
        }
    }

    /// How long a drain may take.
    pub(super) fn drain_timeout(&self) -> Duration {
        self.drain_timeout
            .unwrap_or_else(|| drain::Config::default().timeout)
    }

    /// What does not fit together counts as left out: the API server would refuse the pod, the sidecar its file.
    fn settle(&mut self, problems: &mut Vec<Notice>) {
        let mut tell = |text: String| problems.push(Notice::Problem(text));
        if self.port == self.admin_port {
            tell(format!(
                "`{PREFIX}port` and `{PREFIX}admin-port` are both {}: 8080 and 9090 are taken",
                self.port
            ));
            (self.port, self.admin_port) = (8080, 9090);
        }
        if self
            .cpu_limit
            .as_ref()
            .is_some_and(|limit| *limit < self.cpu_request)
        {
            tell(format!(
                "`{PREFIX}cpu-limit` is below the request of {}: no limit is set",
                self.cpu_request.text()
            ));
            self.cpu_limit = None;
        }
        if self.memory_limit < self.memory_request {
            let (limit, request) = (self.memory_limit.text(), self.memory_request.text());
            tell(format!(
                "the memory limit of {limit} is below the request of {request}: the limit is raised to it"
            ));
            self.memory_limit = self.memory_request.clone();
        }
        if let (Some(limit), Some(request)) = (&self.storage_limit, &self.storage_request)
            && limit < request
        {
            tell(format!(
                "`{PREFIX}ephemeral-storage-limit` is below the request of {}: no limit is set",
                request.text()
            ));
            self.storage_limit = None;
        }
        let usual = drain::Config::default();
        let accept_for = self.drain_accept_for.unwrap_or(usual.accept_for);
        if accept_for + self.drain_spread.unwrap_or(usual.spread) > self.drain_timeout() {
            tell(format!(
                "`{PREFIX}drain-accept-for` and `{PREFIX}drain-spread` together are longer than \
                 `{PREFIX}drain-timeout`: the three count as left out"
            ));
            (self.drain_accept_for, self.drain_spread, self.drain_timeout) = (None, None, None);
        }
    }
}

/// The annotations while they are being read.
struct Said<'a> {
    annotations: Option<&'a Map<String, Value>>,
    /// Values for those that are missing, or wrong.
    defaults: &'a BTreeMap<String, String>,
    known: Vec<&'static str>,
    problems: Vec<Notice>,
}

impl Said<'_> {
    fn get<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        self.known.push(name);
        let default = || {
            self.defaults
                .get(name)
                .and_then(|text| parse(text.trim()).ok())
        };
        let Some(value) = self
            .annotations
            .and_then(|annotations| annotations.get(&format!("{PREFIX}{name}")))
        else {
            return default();
        };
        let parsed = value
            .as_str()
            .ok_or("is no text: it needs quotes")
            .and_then(|text| parse(text.trim()));
        match parsed {
            Ok(value) => Some(value),
            Err(why) => {
                let shown: String = value.to_string().chars().take(60).collect();
                let default = default();
                self.problems.push(Notice::Annotation {
                    name: format!("{PREFIX}{name}"),
                    shown,
                    why,
                });
                default
            }
        }
    }

    fn tell_unknown(&mut self) {
        let names = self
            .annotations
            .into_iter()
            .flat_map(|annotations| annotations.keys());
        let own = names.filter_map(|name| name.strip_prefix(PREFIX));
        for name in own.filter(|name| !self.known.contains(name) && !OURS.contains(name)) {
            let near = self
                .known
                .iter()
                .find(|known| known.contains(name) || name.contains(**known));
            let hint = near.map_or_else(String::new, |known| {
                format!("; did you mean `{PREFIX}{known}`?")
            });
            let name: String = name.chars().take(63).collect();
            let hint = match &*name {
                "inject" => "; it is a label, not an annotation".to_owned(),
                _ => hint,
            };
            self.problems.push(Notice::Problem(format!(
                "there is no annotation `{PREFIX}{name}`{hint}"
            )));
        }
    }
}

/// Annotations that we write.
const OURS: [&str; 3] = ["status", "grace-period-raised", "warnings"];

#[cfg(test)]
mod tests;
