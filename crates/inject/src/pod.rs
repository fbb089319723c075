//! Adds the sidecar to one pod template and removes it; each undoes the other.
//!
//! [`inject`] removes the sidecar of an earlier injection, reads the annotations, and adds
//! container, volumes, labels and annotations. It is idempotent: if the template has everything
//! already, it stays as it is, with the defaults that an API server filled in and with manual
//! changes ([`is_current`]). A template that cannot be injected is left unchanged, with a notice.
//!
//! The annotation [`STATUS`] records the values that were absent or null before, and a raised grace
//! period. [`uninject`] restores them, so that the template is byte for byte the one before the
//! injection.
//!
//! `manifest` calls this for workloads of a text, `review` for pods of an admission review.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::application;
use super::notice::Notice;
use super::options::{Container, Defaults, INJECT, Options, RAISED, SIDECAR, STATUS, WARNINGS};
use super::sidecar;

/// 20 s in addition to the drain: for the kubelet to start it, for the sidecar to close its NATS
/// connections, and for the application to end after the sidecar has closed its listeners.
const GRACE_MARGIN: Duration = Duration::from_secs(20);

/// 30 s: default of Kubernetes for `terminationGracePeriodSeconds`.
const GRACE_DEFAULT_SECONDS: u64 = 30;

const GRACE: &str = "terminationGracePeriodSeconds";

/// Result for one template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It has the sidecar that its annotations describe.
    Injected,
    /// Nothing was removed: it had no injected sidecar.
    Nothing,
    /// The injected sidecar was removed.
    Removed,
    /// It is unchanged, for this reason.
    Left(&'static str),
    /// It has the sidecar; nothing was changed.
    Present,
    /// It requests the sidecar and has none; nothing was changed.
    Missing,
}

/// Content of the status annotation: the state before the injection.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Status {
    version: String,
    /// Hash of everything that was added.
    hash: String,
    /// Names of values that were absent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    absent: Vec<String>,
    /// Names of values that were `null`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    null: Vec<String>,
    /// Raised termination grace period.
    #[serde(skip_serializing_if = "Option::is_none")]
    grace: Option<Raised>,
}

/// Change of the termination grace period, in seconds.
#[derive(Debug, Serialize, Deserialize)]
struct Raised {
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
    to: u64,
}

/// Adds the sidecar to a template (an object with `metadata` and `spec`), or updates the injected
/// one. `ends` says whether its pods are to end by themselves, as those of a Job. Injection is
/// idempotent. A template that cannot have the sidecar is left unchanged.
pub(super) fn inject(template: &mut Value, ends: bool, defaults: &Defaults) -> (Done, Vec<Notice>) {
    if let Some(why) = reason_to_leave(template) {
        return (Done::Left(why), Vec::new());
    }
    let mut pod = template.clone();
    uninject(&mut pod);
    let (options, mut notices) = Options::read(annotations(&pod), defaults);
    if options.container == Container::Plain && ends {
        let text = "a plain sidecar never ends, and a job with it neither: let it be `native`";
        notices.push(Notice::Remark(text.into()));
    }
    notices.extend(taken_ports(&pod, &options));
    notices.extend(pod_resources(&pod, &options));
    notices.extend(host_network(&pod, &options));
    let application_port = application::port(&pod, &options).unwrap_or_else(|notice| {
        notices.push(notice);
        None
    });
    match add(&mut pod, &options, application_port) {
        Ok(()) => {
            if !is_current(template, &pod) {
                *template = pod;
            }
            (Done::Injected, notices)
        }
        Err(why) => {
            notices.push(Notice::Problem(format!(
                "{why}; the sidecar is not injected"
            )));
            (Done::Left("of a problem"), notices)
        }
    }
}

/// Returns whether a template has the sidecar, injected or added manually.
pub(super) fn check(template: &Value) -> Done {
    if let Some(why) = reason_to_leave(template) {
        return Done::Left(why);
    }
    let containers = ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| template["spec"][list].as_array());
    let has = containers
        .flatten()
        .any(|container| container["name"] == sidecar::NAME);
    if has { Done::Present } else { Done::Missing }
}

/// Labels of a template, or of a pod.
pub(super) fn labels(template: &Value) -> Option<&Map<String, Value>> {
    template.get("metadata")?.get("labels")?.as_object()
}

/// Removes the sidecar from a template and restores its previous state.
pub(super) fn uninject(template: &mut Value) -> Done {
    let Some(status) = Status::of(template) else {
        return Done::Nothing;
    };
    if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
        for list in ["initContainers", "containers"] {
            remove(spec, list, &[sidecar::NAME]);
            status.restore(spec, list);
        }
        remove(spec, "volumes", &sidecar::VOLUMES);
        status.restore(spec, "volumes");
        status.restore_grace(spec);
    }
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        if let Some(annotations) = metadata
            .get_mut("annotations")
            .and_then(Value::as_object_mut)
        {
            annotations.remove(STATUS);
            annotations.remove(RAISED);
            annotations.remove(WARNINGS);
        }
        status.restore(metadata, "annotations");
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove(SIDECAR);
        }
        status.restore(metadata, "labels");
    }
    if let Some(template) = template.as_object_mut() {
        status.restore(template, "metadata");
    }
    Done::Removed
}

fn add(pod: &mut Value, options: &Options, application_port: Option<u16>) -> Result<(), String> {
    let mut status = Status {
        version: env!("CARGO_PKG_VERSION").into(),
        ..Status::default()
    };
    let pod = pod.as_object_mut().ok_or("the pod is no map")?;
    let spec = pod
        .get_mut("spec")
        .and_then(Value::as_object_mut)
        .ok_or("there is no `spec`")?;
    if !spec.get("containers").is_some_and(Value::is_array) {
        return Err("there are no `containers`".into());
    }
    reject_foreign(spec)?;
    let raised = raise_grace(spec, options, &mut status)?;
    let container = sidecar::container(options, application_port, grace(spec));
    let volumes = sidecar::volumes(options);
    let added = json!([container, volumes]).to_string();
    status.hash = Sha256::digest(added)
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let list = match options.container {
        // The last one: sidecars stop in reverse order, so a mesh proxy before it ends later.
        Container::Native => "initContainers",
        Container::Plain => "containers",
    };
    status
        .open(spec, list, json!([]))
        .as_array_mut()
        .ok_or("`initContainers` is no list")?
        .push(container);
    status
        .open(spec, "volumes", json!([]))
        .as_array_mut()
        .ok_or("`volumes` is no list")?
        .extend(volumes);
    let metadata = status
        .open(pod, "metadata", json!({}))
        .as_object_mut()
        .ok_or("`metadata` is no map")?;
    let labels = status
        .open(metadata, "labels", json!({}))
        .as_object_mut()
        .ok_or("`labels` is no map")?;
    labels.insert(SIDECAR.into(), json!("injected"));
    let annotations = status.open(metadata, "annotations", json!({}));
    let annotations = annotations
        .as_object_mut()
        .ok_or("`annotations` is no map")?;
    if let Some(raised) = raised {
        annotations.insert(RAISED.into(), json!(raised));
    }
    let status = serde_json::to_string(&status).map_err(|error| error.to_string())?;
    annotations.insert(STATUS.into(), json!(status));
    Ok(())
}

/// Returns whether a template has everything that the injected one has, in the same places.
/// Defaults of an API server and manual changes are no reason to inject again.
fn is_current(template: &Value, injected: &Value) -> bool {
    let hash = |pod: &Value| Some(Status::of(pod)?.hash);
    let last =
        |pod: &Value, list: &str| Some(pod["spec"][list].as_array()?.last()?["name"].clone());
    let volumes = |pod: &Value| {
        let all = pod["spec"]["volumes"].as_array().into_iter().flatten();
        let names = all
            .filter_map(|volume| volume["name"].as_str())
            .map(str::to_owned);
        names
            .filter(|name| sidecar::VOLUMES.contains(&name.as_str()))
            .collect::<Vec<_>>()
    };
    let label = |pod: &Value| pod["metadata"]["labels"][SIDECAR].clone();
    let list = |list| last(template, list) == last(injected, list);
    hash(template).is_some_and(|before| Some(before) == hash(injected))
        && list("initContainers")
        && list("containers")
        && volumes(template) == volumes(injected)
        && label(template) == label(injected)
}

/// Reason for which a template stays unchanged, if there is one.
fn reason_to_leave(template: &Value) -> Option<&'static str> {
    let metadata = &template["metadata"];
    if metadata["labels"][INJECT] == "false" {
        return Some("its label says so");
    }
    if metadata["annotations"]
        .get("kubernetes.io/config.mirror")
        .is_some()
    {
        return Some("it mirrors a static pod");
    }
    let spec = &template["spec"];
    let windows =
        spec["os"]["name"] == "windows" || spec["nodeSelector"]["kubernetes.io/os"] == "windows";
    windows.then_some("it is for Windows")
}

/// Rejects a template that has a container or a volume with the name of an injected one: the pod
/// would be invalid.
fn reject_foreign(spec: &Map<String, Value>) -> Result<(), String> {
    for (list, names) in [
        ("initContainers", &[sidecar::NAME][..]),
        ("containers", &[sidecar::NAME]),
        ("volumes", &sidecar::VOLUMES),
    ] {
        let items = spec
            .get(list)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        if let Some(name) = items
            .filter_map(|item| item["name"].as_str())
            .find(|name| names.contains(name))
        {
            return Err(format!(
                "`{list}` has a `{name}` already that was not injected"
            ));
        }
    }
    Ok(())
}

/// Raises the termination grace period if it is shorter than a drain; returns the text of its
/// annotation.
fn raise_grace(
    spec: &mut Map<String, Value>,
    options: &Options,
    status: &mut Status,
) -> Result<Option<String>, String> {
    let needed = (options.drain_timeout() + GRACE_MARGIN)
        .as_millis()
        .div_ceil(1000);
    let needed = u64::try_from(needed).map_err(|error| error.to_string())?;
    let from = match spec.get(GRACE) {
        None | Some(Value::Null) => None,
        Some(value) => Some(
            value
                .as_u64()
                .ok_or_else(|| format!("`{GRACE}` is {value}, not a number of seconds"))?,
        ),
    };
    if from.unwrap_or(GRACE_DEFAULT_SECONDS) >= needed {
        return Ok(None);
    }
    if from.is_none() {
        status.remember(spec, GRACE);
    }
    status.grace = Some(Raised { from, to: needed });
    spec.insert(GRACE.into(), json!(needed));
    let from = from.map_or_else(
        || format!("the default of {GRACE_DEFAULT_SECONDS}"),
        |seconds| seconds.to_string(),
    );
    Ok(Some(format!(
        "from {from} to {needed} seconds, the drain and {}",
        GRACE_MARGIN.as_secs()
    )))
}

fn grace(spec: &Map<String, Value>) -> Duration {
    Duration::from_secs(
        spec.get(GRACE)
            .and_then(Value::as_u64)
            .unwrap_or(GRACE_DEFAULT_SECONDS),
    )
}

/// Notices about ports that another container declares: the sidecar could not listen on them.
fn taken_ports(pod: &Value, options: &Options) -> Vec<Notice> {
    let containers = ["initContainers", "containers"]
        .into_iter()
        .flat_map(|list| pod["spec"][list].as_array());
    let mut notices = Vec::new();
    for container in containers.flatten() {
        let ports = container["ports"].as_array().into_iter().flatten();
        for port in ports.filter_map(|port| port["containerPort"].as_u64()) {
            let annotation = match port {
                port if port == u64::from(options.port) => "port",
                port if port == u64::from(options.admin_port) => "admin-port",
                _ => continue,
            };
            let name: String = container["name"]
                .as_str()
                .unwrap_or_default()
                .chars()
                .take(63)
                .collect();
            let text = format!(
                "container `{name}` has port {port}, too: set `sidestream.dev/{annotation}` to another"
            );
            notices.push(Notice::Remark(text));
        }
    }
    notices
}

/// Notice about a pod in the network of its node: its ports are ports of the node.
fn host_network(pod: &Value, options: &Options) -> Option<Notice> {
    let (port, admin_port) = (options.port, options.admin_port);
    let text = format!(
        "`hostNetwork`: ports {port} and {admin_port} of the sidecar are ports of the node, one such pod a node, and \
         the admin port is open to the node's network: set `sidestream.dev/port` and `sidestream.dev/admin-port`"
    );
    (pod["spec"]["hostNetwork"] == true).then_some(Notice::Remark(text))
}

/// Notice about pod-level resources (`spec.resources`): the API server rejects a pod whose
/// containers exceed them.
fn pod_resources(pod: &Value, options: &Options) -> Option<Notice> {
    let resources = &pod["spec"]["resources"];
    let has = |kind: &str| {
        resources[kind]
            .as_object()
            .is_some_and(|amounts| !amounts.is_empty())
    };
    if !has("requests") && !has("limits") {
        return None;
    }
    let (cpu, memory, limit) = (
        &options.cpu_request,
        &options.memory_request,
        &options.memory_limit,
    );
    let (cpu, memory, limit) = (cpu.text(), memory.text(), limit.text());
    let text = format!(
        "`spec.resources` must have room for the sidecar as well (requests {cpu} and {memory}, memory limit {limit}), or the \
         API server rejects the pod"
    );
    Some(Notice::Remark(text))
}

fn annotations(template: &Value) -> Option<&Map<String, Value>> {
    template.get("metadata")?.get("annotations")?.as_object()
}

fn remove(spec: &mut Map<String, Value>, list: &str, names: &[&str]) {
    if let Some(items) = spec.get_mut(list).and_then(Value::as_array_mut) {
        items.retain(|item| {
            !item["name"]
                .as_str()
                .is_some_and(|name| names.contains(&name))
        });
    }
}

impl Status {
    /// Content of the annotation, if there is one.
    fn of(template: &Value) -> Option<Self> {
        let status = annotations(template)?.get(STATUS)?;
        // An edited annotation still marks an injected template.
        Some(
            status
                .as_str()
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default(),
        )
    }

    /// Records a value that is absent or null.
    fn remember(&mut self, map: &Map<String, Value>, name: &str) {
        match map.get(name) {
            None => self.absent.push(name.into()),
            Some(Value::Null) => self.null.push(name.into()),
            Some(_) => {}
        }
    }

    /// Returns the value, which becomes `empty` if it is missing.
    fn open<'v>(
        &mut self,
        map: &'v mut Map<String, Value>,
        name: &str,
        empty: Value,
    ) -> &'v mut Value {
        self.remember(map, name);
        let value = map.entry(name).or_insert(Value::Null);
        if value.is_null() {
            *value = empty;
        }
        value
    }

    /// Restores a value that is empty now to absent or null, if it was that before.
    fn restore(&self, map: &mut Map<String, Value>, name: &str) {
        let is_empty = match map.get(name) {
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(entries)) => entries.is_empty(),
            _ => false,
        };
        if is_empty {
            self.unset(map, name);
        }
    }

    fn restore_grace(&self, map: &mut Map<String, Value>) {
        match &self.grace {
            // A later manual change stays.
            Some(Raised { to, .. }) if map.get(GRACE) != Some(&json!(to)) => {}
            Some(Raised {
                from: Some(seconds),
                ..
            }) => drop(map.insert(GRACE.into(), json!(seconds))),
            Some(Raised { from: None, .. }) => self.unset(map, GRACE),
            None => {}
        }
    }

    fn unset(&self, map: &mut Map<String, Value>, name: &str) {
        let has = |names: &[String]| names.iter().any(|other| other == name);
        if has(&self.absent) {
            map.remove(name);
        } else if has(&self.null) {
            map.insert(name.into(), Value::Null);
        }
    }
}

#[cfg(test)]
mod tests;
