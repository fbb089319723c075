//! Reads the annotations `sidestream.dev/...` of a pod into typed options.
//!
//! The value of an annotation is that of the pod, else that of [`Defaults`], else the built-in one.
//! An invalid value, an unknown name, and values that contradict each other become a [`Notice`] and
//! count as missing: the API server would reject the pod, or the sidecar its configuration. So
//! every result is usable.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};
use sidestream_common::drain;

use super::notice::Notice;

mod parse;

pub use parse::duration as parse_duration;
pub(crate) use parse::{Container, PortReference, Quantity, Scheme, is_object_name};

/// Prefix of every annotation and label of Sidestream.
pub(super) const PREFIX: &str = "sidestream.dev/";
/// Label that requests the sidecar (`"true"`), or forbids it (`"false"`).
pub(super) const INJECT: &str = "sidestream.dev/inject";
/// Label of pods that have the sidecar, for the selectors of monitors and network policies.
pub(super) const SIDECAR: &str = "sidestream.dev/sidecar";
/// Annotation that records the injection; `uninject` reads it.
pub(super) const STATUS: &str = "sidestream.dev/status";
/// Annotation for readers: the termination grace period was raised, and from which value.
pub(super) const RAISED: &str = "sidestream.dev/grace-period-raised";
/// Annotation for the port of the application, without the prefix.
pub(super) const APPLICATION_PORT: &str = "application-port";
/// Annotation for readers: the notices about the other annotations.
pub(super) const WARNINGS: &str = "sidestream.dev/warnings";

/// Values that apply where a pod has no annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Image of the sidecar.
    pub image: String,
    /// ConfigMap with the file `sidecar.yaml`.
    pub config_map: String,
    /// Values of annotations that a pod does not have, by their names without `sidestream.dev/`.
    pub annotations: BTreeMap<String, String>,
}

impl Defaults {
    /// Problems of the annotation values, as those of a pod would have them.
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

/// Options of one sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) image: String,
    pub(super) image_pull_policy: Option<String>,
    pub(super) config_map: String,
    /// Secret to mount, with credentials or certificates.
    pub(super) secret: Option<String>,
    pub(super) port: u16,
    pub(super) admin_port: u16,
    /// Scheme of the probes: that of the admin port.
    pub(super) admin_scheme: Scheme,
    /// Secret with the token of the admin port.
    pub(super) admin_token_secret: Option<String>,
    /// Port of the application that receives requests for paths without a route.
    pub(super) application_port: Option<PortReference>,
    pub(super) container: Container,
    pub(super) cpu_request: Quantity,
    pub(super) memory_request: Quantity,
    pub(super) cpu_limit: Option<Quantity>,
    pub(super) memory_limit: Quantity,
    pub(super) storage_request: Option<Quantity>,
    pub(super) storage_limit: Option<Quantity>,
    /// Durations of the drain; the configuration applies for `None`.
    pub(super) drain_accept_for: Option<Duration>,
    pub(super) drain_spread: Option<Duration>,
    pub(super) drain_timeout: Option<Duration>,
    pub(super) log_level: Option<String>,
    pub(super) nats_url: Option<String>,
}

impl Options {
    /// Reads the annotations of a pod.
    pub(super) fn read(
        annotations: Option<&Map<String, Value>>,
        defaults: &Defaults,
    ) -> (Self, Vec<Notice>) {
        let mut reader = Reader {
            annotations,
            defaults: &defaults.annotations,
            known: Vec::new(),
            problems: Vec::new(),
        };
        let mut options = Self::read_each(&mut reader, defaults);
        reader.report_unknown();
        let mut problems = reader.problems;
        options.resolve_conflicts(&mut problems);
        (options, problems)
    }

    fn read_each(reader: &mut Reader<'_>, defaults: &Defaults) -> Self {
        Self {
            image: reader
                .get("image", parse::image)
                .unwrap_or_else(|| defaults.image.clone()),
            image_pull_policy: reader.get("image-pull-policy", parse::pull_policy),
            config_map: reader
                .get("config-map", parse::object_name)
                .unwrap_or_else(|| defaults.config_map.clone()),
            secret: reader.get("secret", parse::object_name),
            port: reader.get("port", parse::port).unwrap_or(8080),
            admin_port: reader.get("admin-port", parse::port).unwrap_or(9090),
            admin_scheme: reader
                .get("admin-scheme", parse::scheme)
                .unwrap_or(Scheme::Http),
            admin_token_secret: reader.get("admin-token-secret", parse::object_name),
            application_port: reader.get(APPLICATION_PORT, PortReference::parse),
            container: reader
                .get("container", parse::container)
                .unwrap_or(Container::Native),
            cpu_request: reader
                .get("cpu-request", Quantity::parse)
                .unwrap_or_else(|| Quantity::own("50m")),
            memory_request: reader
                .get("memory-request", Quantity::parse)
                .unwrap_or_else(|| Quantity::own("128Mi")),
            // No default: throttling would slow down every client.
            cpu_limit: reader.get("cpu-limit", Quantity::parse),
            // 64 MiB + limits.window_bytes (256 MiB) + 10 000 connections of 24 KiB, rounded up.
            memory_limit: reader
                .get("memory-limit", Quantity::parse)
                .unwrap_or_else(|| Quantity::own("640Mi")),
            // No default: the sidecar writes only to memory and to its log. Namespaces with a quota
            // require one.
            storage_request: reader.get("ephemeral-storage-request", Quantity::parse),
            storage_limit: reader.get("ephemeral-storage-limit", Quantity::parse),
            drain_accept_for: reader.get("drain-accept-for", parse::duration),
            drain_spread: reader.get("drain-spread", parse::duration),
            drain_timeout: reader.get("drain-timeout", parse::duration),
            log_level: reader.get("log-level", parse::log_level),
            nats_url: reader.get("nats-url", parse::nats_url),
        }
    }

    /// Longest duration of a drain.
    pub(super) fn drain_timeout(&self) -> Duration {
        self.drain_timeout.unwrap_or(drain::TIMEOUT)
    }

    /// Resets values that contradict each other: the API server would reject the pod, or the
    /// sidecar its configuration.
    fn resolve_conflicts(&mut self, problems: &mut Vec<Notice>) {
        let mut report = |text: String| problems.push(Notice::Problem(text));
        if self.port == self.admin_port {
            report(format!(
                "`{PREFIX}port` and `{PREFIX}admin-port` are both {}: 8080 and 9090 are used",
                self.port
            ));
            (self.port, self.admin_port) = (8080, 9090);
        }
        if self
            .cpu_limit
            .as_ref()
            .is_some_and(|limit| *limit < self.cpu_request)
        {
            report(format!(
                "`{PREFIX}cpu-limit` is below the request of {}: no limit is set",
                self.cpu_request.text()
            ));
            self.cpu_limit = None;
        }
        if self.memory_limit < self.memory_request {
            let (limit, request) = (self.memory_limit.text(), self.memory_request.text());
            report(format!(
                "the memory limit of {limit} is below the request of {request}: the limit is raised to it"
            ));
            self.memory_limit = self.memory_request.clone();
        }
        if let (Some(limit), Some(request)) = (&self.storage_limit, &self.storage_request)
            && limit < request
        {
            report(format!(
                "`{PREFIX}ephemeral-storage-limit` is below the request of {}: no limit is set",
                request.text()
            ));
            self.storage_limit = None;
        }
        let accept_for = self.drain_accept_for.unwrap_or(drain::ACCEPT_FOR);
        if accept_for + self.drain_spread.unwrap_or(drain::SPREAD) > self.drain_timeout() {
            report(format!(
                "`{PREFIX}drain-accept-for` and `{PREFIX}drain-spread` together are longer than \
                 `{PREFIX}drain-timeout`: the three count as left out"
            ));
            (self.drain_accept_for, self.drain_spread, self.drain_timeout) = (None, None, None);
        }
    }
}

/// Annotations that are being read.
struct Reader<'a> {
    annotations: Option<&'a Map<String, Value>>,
    /// Values for missing and invalid annotations.
    defaults: &'a BTreeMap<String, String>,
    known: Vec<&'static str>,
    problems: Vec<Notice>,
}

impl Reader<'_> {
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

    /// Reports annotations that do not exist, with the name that was probably meant.
    fn report_unknown(&mut self) {
        let names = self
            .annotations
            .into_iter()
            .flat_map(|annotations| annotations.keys());
        let own = names.filter_map(|name| name.strip_prefix(PREFIX));
        for name in own.filter(|name| !self.known.contains(name) && !WRITTEN.contains(name)) {
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

/// Annotations that injection writes.
const WRITTEN: [&str; 3] = ["status", "grace-period-raised", "warnings"];

#[cfg(test)]
mod tests;
