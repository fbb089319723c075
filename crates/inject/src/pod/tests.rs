//! Tests of injection and removal, for pods of every shape.

use proptest::prelude::*;

use super::*;

fn injected(pod: &Value) -> (Value, Done, Vec<Notice>) {
    let mut after = pod.clone();
    let (done, notices) = inject(&mut after, false, &Defaults::default());
    (after, done, notices)
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({ "spec": { "containers": [{ "name": "app", "image": "app" }] } });
    if let Value::Object(spec) = spec {
        spec.into_iter()
            .for_each(|(key, value)| pod["spec"][key] = value);
    }
    pod
}

#[test]
fn the_sidecar_is_the_last_of_the_init_containers_or_of_the_containers() {
    let (after, done, notices) = injected(&pod(json!({ "initContainers": [{ "name": "mesh" }] })));
    assert_eq!((done, notices.len()), (Done::Injected, 0));
    assert_eq!(after["spec"]["initContainers"][1]["name"], "sidestream");
    assert_eq!(
        after["spec"]["initContainers"][1]["restartPolicy"],
        "Always"
    );

    let mut plain = pod(json!({}));
    plain["metadata"]["annotations"] = json!({ "sidestream.dev/container": "plain" });
    let (after, ..) = injected(&plain);
    assert_eq!(after["spec"]["containers"][1]["name"], "sidestream");
    assert!(
        after["spec"]["containers"][1]
            .get("restartPolicy")
            .is_none()
    );
    assert!(after["spec"].get("initContainers").is_none());
}

#[test]
fn annotations_of_the_admin_port_set_the_scheme_of_the_probes_and_the_token() {
    let mut pod = pod(json!({}));
    pod["metadata"]["annotations"] = json!({
        "sidestream.dev/admin-scheme": "https",
        "sidestream.dev/admin-token-secret": "sidestream-admin",
    });
    let (after, done, notices) = injected(&pod);
    assert_eq!((done, notices.len()), (Done::Injected, 0));
    let sidecar = &after["spec"]["initContainers"][0];
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(sidecar[probe]["httpGet"]["scheme"], "HTTPS", "{probe}");
    }
    let token = json!({ "name": "ADMIN_TOKEN", "valueFrom":
        { "secretKeyRef": { "name": "sidestream-admin", "key": "token" } } });
    assert!(sidecar["env"].as_array().unwrap().contains(&token));
}

#[test]
fn application_port_becomes_an_address_of_the_sidecars_environment() {
    let ports = json!([{ "name": "http", "containerPort": 3000 }]);
    let mut pod = pod(json!({ "containers": [{ "name": "app", "ports": ports }] }));
    let mut address = |port: &str| {
        pod["metadata"]["annotations"] = json!({ "sidestream.dev/application-port": port });
        let (after, done, notices) = injected(&pod);
        assert_eq!(done, Done::Injected);
        let environment = after["spec"]["initContainers"][0]["env"]
            .as_array()
            .cloned();
        let found = environment
            .into_iter()
            .flatten()
            .find(|entry| entry["name"] == "APPLICATION_ADDRESS");
        (found.map(|entry| entry["value"].clone()), notices)
    };
    for port in ["3000", "http"] {
        let (found, notices) = address(port);
        assert_eq!(found, Some(json!("http://127.0.0.1:3000")), "{port}");
        assert_eq!(notices, []);
    }
    let (found, notices) = address("web");
    assert_eq!((found, notices.len()), (None, 1));
    assert_eq!(
        notices[0].without_value(),
        "annotation `sidestream.dev/application-port` is the name of no TCP port of a container"
    );
}

#[test]
fn renamed_or_moved_port_of_the_application_updates_the_sidecar() {
    let mut pod = pod(json!({}));
    pod["metadata"]["annotations"] = json!({ "sidestream.dev/application-port": "http" });
    pod["spec"]["containers"][0]["ports"] = json!([{ "name": "http", "containerPort": 3000 }]);
    let (mut after, ..) = injected(&pod);
    assert_eq!(injected(&after).0, after, "injection is idempotent");
    after["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(3001);
    let address = json!({ "name": "APPLICATION_ADDRESS", "value": "http://127.0.0.1:3001" });
    let (moved, ..) = injected(&after);
    let environment = &moved["spec"]["initContainers"][0]["env"];
    assert!(
        environment.as_array().unwrap().contains(&address),
        "{environment}"
    );
}

#[test]
fn pod_in_the_network_of_its_node_gets_a_remark() {
    let (_, done, notices) = injected(&pod(json!({ "hostNetwork": true })));
    assert_eq!((done, notices.len()), (Done::Injected, 1));
    let text = notices[0].to_string();
    assert!(
        !notices[0].is_problem() && text.contains("`hostNetwork`") && text.len() <= 240,
        "{text}"
    );
    assert!(injected(&pod(json!({ "hostNetwork": false }))).2.is_empty());
}

#[test]
fn outdated_or_misplaced_sidecar_is_updated() {
    let (mut moved, ..) = injected(&pod(json!({})));
    moved["spec"]["initContainers"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "mesh" }));
    moved["metadata"]["annotations"]["sidestream.dev/port"] = json!("8081");
    let (after, ..) = injected(&moved);
    let names: Vec<_> = after["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["mesh", "sidestream"]);
    assert_eq!(
        after["spec"]["initContainers"][1]["ports"][0]["containerPort"],
        8081
    );
}

#[test]
fn defaults_of_an_api_server_do_not_cause_another_injection() {
    let (mut filled, ..) = injected(&pod(json!({})));
    filled["spec"]["initContainers"][0]["imagePullPolicy"] = json!("IfNotPresent");
    filled["spec"]["volumes"][0]["configMap"]["defaultMode"] = json!(420);
    assert_eq!(injected(&filled).0, filled);
    filled["spec"]["volumes"].as_array_mut().unwrap().remove(0);
    assert_eq!(
        injected(&filled).0["spec"]["volumes"]
            .as_array()
            .unwrap()
            .len(),
        3,
        "a volume was missing"
    );
}

#[test]
fn grace_period_is_raised_only_if_shorter_than_a_drain_and_restored() {
    let seconds = |pod: &Value| pod["spec"]["terminationGracePeriodSeconds"].clone();
    let said = |pod: &Value| {
        pod["metadata"]["annotations"][RAISED]
            .as_str()
            .map(str::to_owned)
    };
    let time = |pod: &Value| {
        let environment = pod["spec"]["initContainers"][0]["env"].as_array().unwrap();
        environment
            .iter()
            .find(|entry| entry["name"] == "SIDESTREAM_TERMINATION_GRACE_PERIOD")
            .unwrap()["value"]
            .clone()
    };
    let (after, ..) = injected(&pod(json!({ "terminationGracePeriodSeconds": 30 })));
    assert_eq!((seconds(&after), time(&after)), (json!(60), json!("60s")));
    assert_eq!(
        said(&after).unwrap(),
        "from 30 to 60 seconds, the drain and 20"
    );
    let (after, ..) = injected(&pod(json!({})));
    assert!(
        said(&after)
            .unwrap()
            .starts_with("from the default of 30 to 60")
    );
    let (mut after, ..) = injected(&pod(json!({ "terminationGracePeriodSeconds": 300 })));
    assert_eq!(
        (seconds(&after), time(&after), said(&after)),
        (json!(300), json!("300s"), None)
    );

    // A later change stays.
    after["spec"]["terminationGracePeriodSeconds"] = json!(90);
    uninject(&mut after);
    assert_eq!(seconds(&after), json!(90));
    let mut slow = pod(json!({}));
    slow["metadata"]["annotations"] = json!({ "sidestream.dev/drain-timeout": "1m30s" });
    assert_eq!(injected(&slow).2.len(), 1, "no such duration");
    slow["metadata"]["annotations"] = json!({ "sidestream.dev/drain-timeout": "90500ms" });
    assert_eq!(seconds(&injected(&slow).0), json!(111));
}

#[test]
fn pod_that_cannot_be_injected_is_unchanged_and_reported() {
    let refused = [
        (json!({}), "there is no `spec`"),
        (json!({ "spec": {} }), "there are no `containers`"),
        (
            pod(json!({ "initContainers": [{ "name": "sidestream" }] })),
            "`initContainers` has a `sidestream`",
        ),
        (
            pod(json!({ "volumes": [{ "name": "sidestream-config" }] })),
            "`volumes` has a `sidestream-config`",
        ),
        (pod(json!({ "volumes": 3 })), "`volumes` is no list"),
        (
            pod(json!({ "terminationGracePeriodSeconds": -1 })),
            "`terminationGracePeriodSeconds` is -1",
        ),
    ];
    for (before, why) in refused {
        let (after, done, notices) = injected(&before);
        assert_eq!((&after, done), (&before, Done::Left("of a problem")));
        assert!(
            notices
                .iter()
                .any(|notice| notice.is_problem() && notice.to_string().contains(why)),
            "{notices:?}"
        );
    }
    for left in [
        json!({ "metadata": { "labels": { "sidestream.dev/inject": "false" } } }),
        json!({ "metadata": { "annotations": { "kubernetes.io/config.mirror": "x" } } }),
        json!({ "spec": { "os": { "name": "windows" } } }),
    ] {
        assert!(
            matches!(injected(&left), (after, Done::Left(_), notices) if after == left && notices.is_empty())
        );
    }
}

#[test]
fn port_of_another_container_gets_a_remark() {
    let ports =
        json!([{ "containerPort": 8080 }, { "containerPort": 9090 }, { "containerPort": 80 }]);
    let (_, done, notices) = injected(&pod(
        json!({ "containers": [{ "name": "app", "ports": ports }] }),
    ));
    assert_eq!((done, notices.len()), (Done::Injected, 2));
    assert!(
        notices[0]
            .to_string()
            .contains("`app` has port 8080, too: set `sidestream.dev/port`"),
        "{notices:?}"
    );
    assert!(
        notices[1]
            .to_string()
            .contains("`sidestream.dev/admin-port`"),
        "{notices:?}"
    );
}

fn lists(name: &'static str) -> impl Strategy<Value = Value> {
    let item =
        (prop_oneof![Just("app"), Just("mesh")], any::<bool>()).prop_map(move |(item, more)| {
            if more {
                json!({ "name": item, name: 1 })
            } else {
                json!({ "name": item })
            }
        });
    prop_oneof![
        Just(Value::Null),
        prop::collection::vec(item, 0..3).prop_map(Value::from)
    ]
}

fn pods() -> impl Strategy<Value = Value> {
    let notes = || {
        let key = prop_oneof![
            Just("a/b~c"),
            Just("sidestream.dev/container"),
            Just("sidestream.dev/drain-timeout"),
            Just("sidestream.dev/secret")
        ];
        let value = prop_oneof![Just("plain"), Just("native"), Just("70s"), Just("x")];
        prop_oneof![
            Just(json!(null)),
            prop::collection::btree_map(key, value, 0..4).prop_map(|map| json!(map))
        ]
    };
    let maybe = |values: BoxedStrategy<Value>| prop::option::of(values);
    let metadata = prop::option::of((maybe(notes().boxed()), maybe(notes().boxed())));
    let grace = prop_oneof![
        Just(json!(null)),
        (0u64..100).prop_map(|seconds| json!(seconds))
    ];
    let spec = (
        maybe(lists("x").boxed()),
        lists("y"),
        maybe(lists("z").boxed()),
        maybe(grace.boxed()),
    );
    (metadata, spec).prop_map(|(metadata, (init, containers, volumes, grace))| {
        let mut pod = json!({ "spec": { "containers": containers } });
        if let Some((annotations, labels)) = metadata {
            pod["metadata"] = json!({});
            annotations
                .into_iter()
                .for_each(|value| pod["metadata"]["annotations"] = value);
            labels
                .into_iter()
                .for_each(|value| pod["metadata"]["labels"] = value);
        }
        init.into_iter()
            .for_each(|value| pod["spec"]["initContainers"] = value);
        volumes
            .into_iter()
            .for_each(|value| pod["spec"]["volumes"] = value);
        grace
            .into_iter()
            .for_each(|value| pod["spec"]["terminationGracePeriodSeconds"] = value);
        pod
    })
}

proptest! {
    #[test]
    fn injection_is_idempotent_and_removal_restores_the_pod(before in pods()) {
        let (once, done, _) = injected(&before);
        prop_assert_eq!(done == Done::Injected, before["spec"]["containers"].is_array());
        prop_assert_eq!(&injected(&once).0, &once, "twice is once");
        let mut out = once.clone();
        uninject(&mut out);
        prop_assert_eq!(&out, &before, "out is as before");
        uninject(&mut out);
        prop_assert_eq!(&out, &before, "and stays so");
        let mut patched = before.clone();
        json_patch::patch(&mut patched, &json_patch::diff(&before, &once)).unwrap();
        prop_assert_eq!(patched, once, "the patch says the same");
    }
}

#[test]
fn pod_level_resources_get_a_remark() {
    let resources = json!({ "resources": { "limits": { "memory": "256Mi" } } });
    let (_, done, notices) = injected(&pod(resources));
    assert_eq!((done, notices.len()), (Done::Injected, 1));
    let report = notices[0].to_string();
    assert!(
        !notices[0].is_problem() && report.contains("memory limit 640Mi") && report.len() <= 240,
        "{report}"
    );
    assert!(injected(&pod(json!({ "resources": {} }))).2.is_empty());
}
