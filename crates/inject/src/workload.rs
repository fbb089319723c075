//! Finds the pod templates of an object by its API group and kind, and applies an action to each.
//!
//! `manifest` calls [`treat`] for each document of a text, which may be a workload or a list of
//! workloads, such as the output of `kubectl get -o json`. `review` calls it for workloads that an
//! API server sends. An object of an unknown kind stays unchanged; if it has a pod template (an
//! Argo Rollout, for example), it gets a remark, because silence would look like success.

use serde_json::Value;

use super::notice::Notice;
use super::options::Defaults;
use super::pod::{self, Done};
use super::selector::Selector;

/// Action for each pod template.
#[derive(Clone, Copy, Debug)]
pub enum Act<'d> {
    /// Add the sidecar.
    Inject(&'d Defaults),
    /// Add the sidecar to those whose pods have labels that match.
    InjectSelected(&'d Defaults, &'d Selector),
    /// Change nothing, and find the matching ones without a sidecar.
    Check(&'d Selector),
    /// Remove the sidecar.
    Uninject,
}

/// Result for one workload.
#[derive(Debug)]
pub(super) struct Treated {
    /// Such as `Deployment/orders`.
    pub(super) name: String,
    pub(super) done: Done,
    pub(super) notices: Vec<Notice>,
}

/// Path from a workload to its pod template, and whether its pods end by themselves.
fn template_of(version: &str, kind: &str) -> Option<(&'static [&'static str], bool)> {
    match (version.split('/').next()?, kind) {
        ("v1", "Pod") => Some((&[], false)),
        ("v1", "ReplicationController")
        | ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") => {
            Some((&["spec", "template"], false))
        }
        ("batch", "Job") => Some((&["spec", "template"], true)),
        ("batch", "CronJob") => Some((&["spec", "jobTemplate", "spec", "template"], true)),
        _ => None,
    }
}

/// Pod template of a workload of this API group and kind.
pub(super) fn template<'o>(object: &'o Value, group: &str, kind: &str) -> Option<&'o Value> {
    let version = if group.is_empty() { "v1" } else { group };
    let (way, _) = template_of(version, kind)?;
    way.iter().try_fold(object, |value, key| value.get(*key))
}

/// Applies the action to every workload of an object: to itself, or to the items of a list.
pub(super) fn treat(object: &mut Value, act: Act<'_>) -> Vec<Treated> {
    let mut treated = Vec::new();
    let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    if let Some(item_kind) = kind.strip_suffix("List")
        && let Some(items) = object.get_mut("items").and_then(Value::as_array_mut)
    {
        for item in items {
            // The items of a `PodList` have neither; a list inside a list is not supported by
            // Kubernetes.
            let own = |key: &str, other: &str| item[key].as_str().unwrap_or(other).to_owned();
            let (version, kind) = (own("apiVersion", &version), own("kind", item_kind));
            treated.extend(treat_one(item, &version, &kind, act));
        }
    } else {
        treated.extend(treat_one(object, &version, &kind, act));
    }
    treated
}

/// Reason for a workload that the selector does not match.
pub(super) const NOT_SELECTED: &str = "the selector does not match the labels of its pods";

/// Returns whether a pod has ended or is being deleted, so that it needs no sidecar.
fn is_over(pod: &Value) -> bool {
    let is_deleted = pod["metadata"]
        .get("deletionTimestamp")
        .is_some_and(|time| !time.is_null());
    is_deleted
        || matches!(
            pod["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed")
        )
}

fn treat_one(object: &mut Value, version: &str, kind: &str, act: Act<'_>) -> Option<Treated> {
    let named = |key: &str| object["metadata"][key].as_str();
    let name = named("name")
        .or_else(|| named("generateName"))
        .unwrap_or("without a name");
    let name = match (act, named("namespace")) {
        // The input may have pods of the whole cluster.
        (Act::Check(_), Some(namespace)) => format!("{kind}/{namespace}/{name}"),
        _ => format!("{kind}/{name}"),
    };
    let Some((way, ends)) = template_of(version, kind) else {
        return matches!(act, Act::Inject(_) | Act::InjectSelected(..))
            .then(|| unknown(object, version, name))
            .flatten();
    };
    let is_over = is_over(object);
    let template = way
        .iter()
        .try_fold(object, |value, key| value.get_mut(*key));
    let (done, notices) = match (template, act) {
        (Some(template), Act::Inject(defaults)) => pod::inject(template, ends, defaults),
        (Some(template), Act::InjectSelected(defaults, selector))
            if selector.matches(pod::labels(template)) =>
        {
            pod::inject(template, ends, defaults)
        }
        (Some(_), Act::InjectSelected(..)) => (Done::Left(NOT_SELECTED), Vec::new()),
        (Some(template), Act::Check(selector)) => {
            if is_over || !selector.matches(pod::labels(template)) {
                return None;
            }
            (pod::check(template), Vec::new())
        }
        (Some(template), Act::Uninject) => (pod::uninject(template), Vec::new()),
        (None, _) => {
            let notice = Notice::Problem(format!("there is no `{}`", way.join(".")));
            (Done::Left("of a problem"), vec![notice])
        }
    };
    Some(Treated {
        name,
        done,
        notices,
    })
}

/// Remark about an object of an unknown kind that has a pod template.
fn unknown(object: &Value, version: &str, name: String) -> Option<Treated> {
    let place = pod_template(object, TEMPLATE_DEPTH_MAX)?;
    let version: String = version.chars().take(63).collect();
    let text = format!(
        "it has a pod template at `{place}`, but kinds of `{version}` are not injected here: label the template \
         `sidestream.dev/inject: \"true\"` and let the webhook inject its pods"
    );
    Some(Treated {
        name,
        done: Done::Left("its kind is unknown"),
        notices: vec![Notice::Remark(text)],
    })
}

/// 12: twice what the deepest custom resource with a pod template needs.
const TEMPLATE_DEPTH_MAX: usize = 12;

/// Path to the first pod template in a value: an entry with the name of a template that has
/// containers.
fn pod_template(value: &Value, depth_max: usize) -> Option<String> {
    let depth_max = depth_max.checked_sub(1)?;
    let (key, inner) = match value {
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            let is_called_so = key == "template" || key.ends_with("Template");
            if is_called_so && value["spec"]["containers"].is_array() {
                return Some((key.clone(), None));
            }
            Some((key.clone(), Some(pod_template(value, depth_max)?)))
        })?,
        Value::Array(items) => items.iter().enumerate().find_map(|(index, value)| {
            Some((index.to_string(), Some(pod_template(value, depth_max)?)))
        })?,
        _ => return None,
    };
    Some(inner.map_or_else(|| key.clone(), |inner| format!("{key}.{inner}")))
}
