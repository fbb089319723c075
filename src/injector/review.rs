//! What the API server asks about a pod, and what it is told (`admission.k8s.io/v1`): pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::notice::Notice;
use super::options::{Defaults, INJECT};
use super::pod::{self, Done};

/// 256 characters: what the API server passes on of one warning.
const WARNING_CHARS_MAX: usize = 256;

/// 20 warnings of an answer: the annotations of a careless pod, not the thousands that a hostile one can have.
const WARNINGS_MAX: usize = 20;

/// The answer to one review.
#[derive(Debug)]
pub struct Answer {
    /// The AdmissionReview to send back.
    pub body: Value,
    /// What became of the pod.
    pub outcome: Outcome,
    /// How many problems its annotations have.
    pub problems: usize,
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
        }
    }
}

/// Answers a review. It never refuses a pod: what is wrong with one becomes a warning.
///
/// # Errors
/// When the bytes are no AdmissionReview that can be answered; says why.
pub fn answer(review: &[u8], defaults: &Defaults) -> Result<Answer, String> {
    let review: Value = serde_json::from_slice(review).map_err(|error| format!("this is no JSON: {error}"))?;
    if review["apiVersion"] != "admission.k8s.io/v1" || review["kind"] != "AdmissionReview" {
        return Err("this is no AdmissionReview of admission.k8s.io/v1".into());
    }
    let request = &review["request"];
    let uid = request["uid"].as_str().filter(|uid| !uid.is_empty()).ok_or("the review has no `request.uid`")?;
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
        problems: notices.iter().filter(|notice| notice.is_problem()).count(),
    })
}

type Decision = (Outcome, Option<String>, Vec<Notice>);

fn decide(request: &Value, defaults: &Defaults) -> Result<Decision, String> {
    let skipped = Ok((Outcome::Skipped, None, Vec::new()));
    let resource = &request["resource"];
    let is_pod = resource["group"] == "" && resource["resource"] == "pods" && request["subResource"].is_null();
    // The containers of a pod that is there already cannot change.
    if !is_pod || request["operation"] != "CREATE" {
        return skipped;
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
    if done != Done::Injected {
        return Ok((Outcome::Left, None, notices));
    }
    if injected == *pod {
        return Ok((Outcome::Unchanged, None, notices));
    }
    let patch = serde_json::to_string(&json_patch::diff(pod, &injected)).map_err(|error| error.to_string())?;
    Ok((Outcome::Injected, Some(patch), notices))
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
    format!("sidestream: {notice}").chars().take(WARNING_CHARS_MAX).collect::<String>().into()
}
