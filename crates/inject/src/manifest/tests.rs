//! Tests of manifests with several documents: only workloads change.

use super::*;
use crate::Defaults;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: app, image: app}]}\n";

fn inject(text: &str) -> (String, Vec<String>) {
    let changed = change(text, Act::Inject(&Defaults::default()));
    (
        changed.text,
        changed.report.iter().map(ToString::to_string).collect(),
    )
}

#[test]
fn documents_without_a_workload_are_copied_byte_for_byte() {
    let others = "# first\n%YAML 1.1\n---\n# a map\nkind: ConfigMap\ndata: {a:   on}\r\n--- # last\n!Ref x\n---\n";
    assert_eq!(inject(others), (others.to_owned(), Vec::new()));
    let (text, report) = inject(&format!("{others}{POD}---\nkind: Service # stays\n"));
    assert!(
        text.starts_with(others) && text.ends_with("---\nkind: Service # stays\n"),
        "{text}"
    );
    assert_eq!(report, ["9: Pod/a: injected"]);
}

#[test]
fn comments_before_a_workload_stay() {
    let (text, _) = inject(&format!("---\n# mine\n\n{POD}"));
    assert!(
        text.starts_with("---\n# mine\n\napiVersion: v1\n"),
        "{text}"
    );
    let (text, _) = inject("--- {apiVersion: v1, kind: Pod, spec: {containers: []}}\n");
    assert!(text.starts_with("---\napiVersion: v1\n"), "{text}");
}

#[test]
fn every_kind_of_workload_and_every_item_of_a_list_is_treated() {
    let template = "{spec: {containers: [{name: app, image: app}]}}";
    let kinds = [
        ("apps/v1", "Deployment"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "ReplicaSet"),
        ("v1", "ReplicationController"),
        ("batch/v1", "Job"),
    ];
    let mut items = String::new();
    for (version, kind) in kinds {
        items += &format!(
            "- {{apiVersion: {version}, kind: {kind}, metadata: {{name: a}}, spec: {{template: {template}}}}}\n"
        );
    }
    let jobs = format!("{{jobTemplate: {{spec: {{template: {template}}}}}}}");
    items += &format!(
        "- {{apiVersion: batch/v1, kind: CronJob, metadata: {{generateName: a-}}, spec: {jobs}}}\n"
    );
    items += "- {apiVersion: example.dev/v1, kind: Deployment, metadata: {name: another}}\n- {kind: Service}\n";
    let (text, report) = inject(&format!("apiVersion: v1\nkind: List\nitems:\n{items}"));
    assert_eq!(report.len(), 7, "{report:?}");
    assert_eq!(report[6], "1: CronJob/a-: injected");
    assert_eq!(
        text.matches("name: sidestream\n").count(),
        7 * 2,
        "a container and its configuration: {text}"
    );
    let (_, report) = inject(
        "apiVersion: v1\nkind: PodList\nitems: [{metadata: {name: b}, spec: {containers: []}}]\n",
    );
    assert_eq!(report, ["1: Pod/b: injected"]);
}

#[test]
fn injection_time_is_linear_in_the_size_of_a_workload() {
    let annotations: String = (0..50_000)
        .map(|key| format!("    key-{key}: v\n"))
        .collect();
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  annotations:\n{annotations}spec: {{containers: []}}\n"
    );
    let begun = std::time::Instant::now();
    let (text, report) = inject(&pod);
    assert_eq!(report, ["1: Pod/without a name: injected"]);
    assert!(text.contains("key-49999: v\n"));
    // In quadratic time it takes minutes.
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn byte_order_mark_of_any_document_is_ignored() {
    for joined in [
        "\u{feff}{}---\n\u{feff}{}",
        "{}\u{feff}---\n{}",
        "{}--- # two\r\n\u{feff}{}",
    ] {
        let (text, report) = inject(&joined.replace("{}", POD));
        assert_eq!(
            report,
            ["1: Pod/a: injected", "5: Pod/a: injected"],
            "{joined:?}"
        );
        assert_eq!(text.matches("kind: Pod\n").count(), 2, "{text}");
        assert_eq!(inject(&text).0, text, "{joined:?}");
    }
    let others = format!("kind: Service\n---\n\u{feff}kind: Service\n---\n{POD}");
    assert!(
        inject(&others)
            .0
            .starts_with("kind: Service\n---\n\u{feff}kind: Service\n---\n")
    );
}

#[test]
fn unknown_kind_with_a_pod_template_gets_a_remark() {
    let template = "{spec: {containers: [{name: app, image: app}]}}";
    for (version, kind, spec, place) in [
        (
            "argoproj.io/v1alpha1",
            "Rollout",
            format!("{{template: {template}}}"),
            "spec.template",
        ),
        (
            "extensions/v1beta1",
            "Deployment",
            format!("{{template: {template}}}"),
            "spec.template",
        ),
        (
            "jobset.x-k8s.io/v1",
            "JobSet",
            format!("{{jobs: [{{podTemplate: {template}}}]}}"),
            "spec.jobs.0.podTemplate",
        ),
    ] {
        let object =
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {spec}\n");
        let (text, report) = inject(&object);
        assert_eq!(text, object);
        assert!(
            report[0].contains(&format!("`{place}`")) && report[0].contains(version),
            "{report:?}"
        );
        assert_eq!(
            report[1],
            format!("1: {kind}/a: left as it is: its kind is unknown")
        );
        assert!(change(&object, Act::Uninject).report.is_empty());
    }
    // Nothing creates pods from these.
    for other in [
        "spec: {template: {spec: {containers: {type: array}}}}",
        "spec: {selector: {app: a}}",
    ] {
        assert!(
            inject(&format!("apiVersion: v1\nkind: Other\n{other}\n"))
                .1
                .is_empty()
        );
    }
}

#[test]
fn problems_have_the_line_of_their_document() {
    let (_, report) = inject(&format!("{POD}---\na: [\n---\nkind: Pod\napiVersion: v1\n"));
    assert_eq!(report[0], "1: Pod/a: injected");
    assert!(report[1].starts_with("7: this is no YAML"), "{report:?}");
    assert_eq!(
        report[2],
        "7: Pod/without a name: there is no `spec`; the sidecar is not injected"
    );
    let tagged = POD.replace("name: app,", "name: !Ref app,");
    assert_eq!(
        inject(&tagged).1,
        ["4: the tag `!Ref` has no meaning in a manifest"]
    );
    let (_, report) = inject("apiVersion: batch/v1\nkind: Job\n");
    assert_eq!(
        report,
        ["1: Job/without a name: there is no `spec.template`"]
    );
}
