//! What the API server asks about a pod, and what it is told (`admission.k8s.io/v1`): pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::notice::Notice;
use super::options::{Defaults, INJECT, WARNINGS};
use super::pod::{self, Done};
use super::workload::{self, Act};

/// 256 characters: what the API server passes on of one warning.
const WARNING_CHARS_MAX: usize = 256;

/// 20 warnings of an answer: the annotations of a careless pod, not the thousands that a hostile one can have.
const WARNINGS_MAX: usize = 20;

/// 4,096 characters: all annotations of an object together have 256 KiB, and more than ten warnings are read by no one.
const ANNOTATION_CHARS_MAX: usize = 4096;

/// Characters of a namespace or name that are logged: the longest name of an object.
const NAME_CHARS_MAX: usize = 253;

/// Workloads whose pods are made by controllers, by API group and resource.
const WORKLOADS: [(&str, &str); 5] = [
    ("apps", "deployments"),
    ("apps", "statefulsets"),
    ("apps", "daemonsets"),
    ("batch", "jobs"),
    ("batch", "cronjobs"),
];

/// The answer to one review.
#[derive(Debug)]
pub struct Answer {
    /// The AdmissionReview to send back.
    pub body: Value,
    /// What became of the pod.
    pub outcome: Outcome,
    /// Object that was reviewed, for the log.
    pub object: Object,
    /// Problems with its annotations, each a sentence.
    pub problems: Vec<String>,
}

/// Names of a reviewed object, cut to the length that names have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Such as `Pod`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name, or what its name will begin with.
    pub name: String,
    /// Controller that made it, such as `ReplicaSet/orders-7d4b9c6f5d`; empty if it has none.
    pub owner: String,
}

/// What became of a reviewed object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The patch adds the sidecar, or adapts it.
    Injected,
    /// It had the sidecar already, as it is to be.
    Unchanged,
    /// It does not ask for a sidecar, or is not a pod that is being created.
    Skipped,
    /// It asks for one and cannot have it; a warning says why.
    Left,
    /// A workload whose pods ask for one: it gets warnings only.
    Checked,
}

impl Outcome {
    /// The label of the metric.
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

/// Answers a review. It never refuses a pod: what is wrong with one becomes a warning.
///
/// # Errors
/// When the bytes are no AdmissionReview that can be answered; says why.
pub fn answer(review: &[u8], defaults: &Defaults) -> Result<Answer, String> {
    let review: Value =
        serde_json::from_slice(review).map_err(|error| format!("this is no JSON: {error}"))?;
    if review["apiVersion"] != "admission.k8s.io/v1" || review["kind"] != "AdmissionReview" {
        return Err("this is no AdmissionReview of admission.k8s.io/v1".into());
    }
    let request = &review["request"];
    let uid = request["uid"]
        .as_str()
        .filter(|uid| !uid.is_empty())
        .ok_or("the review has no `request.uid`")?;
    let (outcome, patch, notices) = decide(request, defaults)?;
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

type Decision = (Outcome, Option<String>, Vec<Notice>);

fn decide(request: &Value, defaults: &Defaults) -> Result<Decision, String> {
    let skipped = Ok((Outcome::Skipped, None, Vec::new()));
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
        // The containers of a pod that is there already cannot change.
        ("", "pods", Some("CREATE")) => {}
        (group, resource, Some("CREATE" | "UPDATE")) if WORKLOADS.contains(&(group, resource)) => {
            return Ok(check(request, group, defaults));
        }
        _ => return skipped,
    }
    let pod = &request["object"];
    if !pod.is_object() {
        return Err("the review has no `request.object`".into());
    }
    // The webhook's selector asks for the same; one that was widened by mistake changes nothing.
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
    if injected == *pod {
        return Ok((outcome, None, notices));
    }
    let patch = serde_json::to_string(&json_patch::diff(pod, &injected))
        .map_err(|error| error.to_string())?;
    Ok((outcome, Some(patch), notices))
}

/// Finds what will be wrong with the pods of a workload: it is created by a person or a pipeline, its pods by a controller,
/// which shows warnings to no user. The object itself is never changed.
fn check(request: &Value, group: &str, defaults: &Defaults) -> Decision {
    let object = &request["object"];
    let kind = request["kind"]["kind"].as_str().unwrap_or_default();
    let asks = |template: &Value| template["metadata"]["labels"][INJECT] == "true";
    if !workload::template(object, group, kind).is_some_and(asks) {
        return (Outcome::Skipped, None, Vec::new());
    }
    let treated = workload::treat(&mut object.clone(), Act::Inject(defaults));
    (
        Outcome::Checked,
        None,
        treated
            .into_iter()
            .flat_map(|treated| treated.notices)
            .collect(),
    )
}

/// Writes the notices into an annotation, where whoever looks at the pod later finds them; removes one that is out of date.
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

/// The first ones, and how many more there are: an API server passes on 4 KiB of them.
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
