//! Answers an admission review of an API server (`admission.k8s.io/v1`).
//!
//! A pod that is created with the label `sidestream.dev/inject: "true"` gets a JSON patch, the
//! difference between the pod and the injected pod. A workload gets warnings only: a person or a
//! pipeline creates it and sees the warnings, while its pods are created by a controller, which
//! shows them to no user. Every review is allowed, whatever its content: a pod without a sidecar is
//! better than no pod. Only bytes that are no review are an error.
//!
//! Everything that is copied from the review into a response or a log line has a bounded length.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::notice::Notice;
use super::options::{Defaults, INJECT, WARNINGS};
use super::pod::{self, Done};
use super::workload::{self, Act};

/// 256 characters: an API server truncates longer warnings.
const WARNING_CHARS_MAX: usize = 256;

/// 20 warnings in a response: enough for careless annotations, against the thousands that a hostile
/// pod can have.
const WARNINGS_MAX: usize = 20;

/// 4,096 characters: the annotations of an object have at most 256 KiB, and few people read more
/// than ten warnings.
const ANNOTATION_CHARS_MAX: usize = 4096;

/// Characters of a logged namespace or name: the longest name of an object.
const NAME_CHARS_MAX: usize = 253;

/// Workloads whose pods are created by controllers, by API group and resource.
const WORKLOADS: [(&str, &str); 5] = [
    ("apps", "deployments"),
    ("apps", "statefulsets"),
    ("apps", "daemonsets"),
    ("batch", "jobs"),
    ("batch", "cronjobs"),
];

/// Answer to one review.
#[derive(Debug)]
pub struct Answer {
    /// AdmissionReview with the response.
    pub body: Value,
    /// Result for the object.
    pub outcome: Outcome,
    /// Object that was reviewed, for the log.
    pub object: Object,
    /// Invalid annotations, each as a sentence.
    pub problems: Vec<String>,
}

/// Names of a reviewed object, truncated to the length of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Such as `Pod`.
    pub kind: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object, or the beginning of a generated name.
    pub name: String,
    /// Controller that owns it, such as `ReplicaSet/orders-7d4b9c6f5d`; empty without one.
    pub owner: String,
}

/// Result for a reviewed object: the values of a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The patch adds the sidecar, or updates it.
    Injected,
    /// The pod has the sidecar already.
    Unchanged,
    /// It does not request a sidecar, or is not a pod that is being created.
    Skipped,
    /// It requests a sidecar and cannot have it; a warning has the reason.
    Left,
    /// A workload whose pods request a sidecar: it gets warnings only.
    Checked,
}

impl Outcome {
    /// Value of the metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Unchanged => "unchanged",
            Self::Skipped => "skipped",
            Self::Left => "left",
            Self::Checked => "checked",
        }
    }
}

/// Bytes that are not an admission review.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The body cannot be parsed.
    #[error("this is no JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// The object is of another kind or version.
    #[error("this is no AdmissionReview of admission.k8s.io/v1")]
    Kind,
    /// A required field is missing.
    #[error("the review has no `request.{0}`")]
    Missing(&'static str),
    /// The patch cannot be encoded.
    #[error("the patch cannot be encoded: {0}")]
    Patch(#[source] serde_json::Error),
}

/// Answers a review. No pod is rejected: a problem becomes a warning.
///
/// # Errors
/// If the bytes are no AdmissionReview that can be answered.
pub fn answer(review: &[u8], defaults: &Defaults) -> Result<Answer, ReviewError> {
    let review: Value = serde_json::from_slice(review).map_err(ReviewError::Json)?;
    if review["apiVersion"] != "admission.k8s.io/v1" || review["kind"] != "AdmissionReview" {
        return Err(ReviewError::Kind);
    }
    let request = &review["request"];
    let uid = request["uid"]
        .as_str()
        .filter(|uid| !uid.is_empty())
        .ok_or(ReviewError::Missing("uid"))?;
    let Decision {
        outcome,
        patch,
        notices,
    } = decide(request, defaults)?;
    let mut response = json!({ "uid": uid, "allowed": true });
    if let Some(patch) = patch {
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(STANDARD.encode(patch));
    }
    if !notices.is_empty() {
        response["warnings"] = warnings(&notices);
    }
    Ok(Answer {
        body: json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response }),
        outcome,
        object: object(request),
        problems: notices
            .iter()
            .filter(|notice| notice.is_problem())
            .map(ToString::to_string)
            .collect(),
    })
}

/// Decision about one object.
struct Decision {
    outcome: Outcome,
    /// JSON patch for a pod.
    patch: Option<String>,
    notices: Vec<Notice>,
}

impl Decision {
    fn skipped() -> Self {
        Self {
            outcome: Outcome::Skipped,
            patch: None,
            notices: Vec::new(),
        }
    }
}

fn decide(request: &Value, defaults: &Defaults) -> Result<Decision, ReviewError> {
    let skipped = Ok(Decision::skipped());
    if !request["subResource"].is_null() {
        return skipped;
    }
    let resource = &request["resource"];
    let (group, name) = (
        resource["group"].as_str().unwrap_or_default(),
        resource["resource"].as_str(),
    );
    match (
        group,
        name.unwrap_or_default(),
        request["operation"].as_str(),
    ) {
        // The containers of an existing pod cannot change.
        ("", "pods", Some("CREATE")) => {}
        (group, resource, Some("CREATE" | "UPDATE")) if WORKLOADS.contains(&(group, resource)) => {
            return Ok(check(request, group, defaults));
        }
        _ => return skipped,
    }
    let pod = &request["object"];
    if !pod.is_object() {
        return Err(ReviewError::Missing("object"));
    }
    // The selector of the webhook has the same condition; one that is wider by mistake changes
    // nothing.
    if pod["metadata"]["labels"][INJECT] != "true" {
        return skipped;
    }
    let mut injected = pod.clone();
    let (done, notices) = pod::inject(&mut injected, false, defaults);
    annotate(&mut injected, &notices);
    let outcome = match done {
        Done::Injected if injected == *pod => Outcome::Unchanged,
        Done::Injected => Outcome::Injected,
        _ => Outcome::Left,
    };
    let patch = if injected == *pod {
        None
    } else {
        let patch = json_patch::diff(pod, &injected);
        Some(serde_json::to_string(&patch).map_err(ReviewError::Patch)?)
    };
    Ok(Decision {
        outcome,
        patch,
        notices,
    })
}

/// Finds the problems that the pods of a workload will have. The workload itself is not changed.
fn check(request: &Value, group: &str, defaults: &Defaults) -> Decision {
    let object = &request["object"];
    let kind = request["kind"]["kind"].as_str().unwrap_or_default();
    let requests = |template: &Value| template["metadata"]["labels"][INJECT] == "true";
    if !workload::template(object, group, kind).is_some_and(requests) {
        return Decision::skipped();
    }
    let treated = workload::treat(&mut object.clone(), Act::Inject(defaults));
    Decision {
        outcome: Outcome::Checked,
        patch: None,
        notices: treated
            .into_iter()
            .flat_map(|treated| treated.notices)
            .collect(),
    }
}

/// Writes the notices into an annotation of the pod for its readers, or removes an outdated
/// annotation.
fn annotate(pod: &mut Value, notices: &[Notice]) {
    if notices.is_empty() {
        if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
            annotations.remove(WARNINGS);
        }
        return;
    }
    let text = notices
        .iter()
        .map(Notice::without_value)
        .collect::<Vec<_>>()
        .join("\n");
    let text: String = text.chars().take(ANNOTATION_CHARS_MAX).collect();
    let annotations = &mut pod["metadata"]["annotations"];
    if annotations.is_null() {
        *annotations = json!({});
    }
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(WARNINGS.into(), json!(text));
    }
}

fn object(request: &Value) -> Object {
    let text = |value: &Value| -> String {
        value
            .as_str()
            .unwrap_or_default()
            .chars()
            .take(NAME_CHARS_MAX)
            .collect()
    };
    let metadata = &request["object"]["metadata"];
    let name = [
        &request["name"],
        &metadata["name"],
        &metadata["generateName"],
    ];
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    let owner = owners
        .filter(|owner| owner["controller"] == true)
        .map(|owner| {
            let (kind, name) = (text(&owner["kind"]), text(&owner["name"]));
            format!("{kind}/{name}")
        });
    Object {
        kind: text(&request["kind"]["kind"]),
        namespace: text(&request["namespace"]),
        name: name
            .into_iter()
            .map(text)
            .find(|name| !name.is_empty())
            .unwrap_or_default(),
        owner: owner.take(1).collect(),
    }
}

/// First warnings, and the number of the others: an API server passes on 4 KiB of them.
fn warnings(notices: &[Notice]) -> Value {
    let mut listed: Vec<Value> = notices.iter().take(WARNINGS_MAX).map(warning).collect();
    let more = notices.len() - listed.len();
    if more > 0 {
        listed.push(format!("sidestream: and {more} more").into());
    }
    listed.into()
}

fn warning(notice: &Notice) -> Value {
    format!("sidestream: {notice}")
        .chars()
        .take(WARNING_CHARS_MAX)
        .collect::<String>()
        .into()
}
