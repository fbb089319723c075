//! Builds the container and the volumes that injection adds to a pod.
//!
//! `k8s/sidecar/deployment.yaml` is the same in a manifest, with a comment on each line; a test
//! compares the two. Names and paths are a contract with the sidecar: it finds its configuration in
//! the working directory, its control socket in `/run/sidestream`, and the values of annotations in
//! its environment, for `${...}` of the configuration.

use std::time::Duration;

use serde_json::{Value, json};

use super::options::{Container, Options, Scheme};

/// Name of the container.
pub(super) const NAME: &str = "sidestream";

/// Mount of the ConfigMap: a folder, because a file mounted by `subPath` is never updated.
const CONFIG_FOLDER: &str = "/etc/sidestream";
/// Folder in which the sidecar creates its control socket.
const CONTROL_FOLDER: &str = "/run/sidestream";
/// Mount of the Secret. It is not below the ConfigMap, because nothing can be mounted inside a
/// read-only folder.
const SECRET_FOLDER: &str = "/var/run/secrets/sidestream.dev";

/// Key of the token in the Secret of the admin port.
const TOKEN_KEY: &str = "token";

const CONFIG_VOLUME: &str = "sidestream-config";
const CONTROL_VOLUME: &str = "sidestream-control";
const SECRET_VOLUME: &str = "sidestream-secret";
const NO_TOKEN_VOLUME: &str = "sidestream-no-token";

/// Folder into which the API server mounts the token of the service account, unless a container
/// mounts something there.
const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Names of all volumes that injection adds.
pub(super) const VOLUMES: [&str; 4] = [
    CONFIG_VOLUME,
    CONTROL_VOLUME,
    SECRET_VOLUME,
    NO_TOKEN_VOLUME,
];

/// Container for a pod with this port of the application and this termination grace period.
pub(super) fn container(
    options: &Options,
    application_port: Option<u16>,
    grace: Duration,
) -> Value {
    let mut container = json!({
        "name": NAME,
        "image": options.image,
        "args": ["run", "--config", format!("{CONFIG_FOLDER}/sidecar.yaml")],
        // `sidestream drain` finds its configuration here.
        "workingDir": CONFIG_FOLDER,
        "env": environment(options, application_port, grace),
        "ports": [
            { "name": "events", "containerPort": options.port },
            { "name": "admin", "containerPort": options.admin_port },
        ],
        // A native sidecar receives SIGTERM only after the application has ended, perhaps with no
        // time left.
        "lifecycle": { "preStop": { "exec": { "command": ["/sidestream", "drain", "--wait"] } } },
        // Liveness and not readiness: an unreachable NATS server must not keep the application from
        // starting.
        "startupProbe": probe("/health/live", options, 1, 1, 60),
        // The response is 200 during a drain as well.
        "livenessProbe": probe("/health/live", options, 10, 5, 3),
        "readinessProbe": probe("/health/ready", options, 2, 2, 2),
        "resources": resources(options),
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": mounts(options),
    });
    if options.container == Container::Native {
        container["restartPolicy"] = json!("Always");
    }
    if let Some(policy) = &options.image_pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
    container
}

/// Volumes of the container.
pub(super) fn volumes(options: &Options) -> Vec<Value> {
    let mut volumes = vec![
        json!({ "name": CONFIG_VOLUME, "configMap": { "name": options.config_map } }),
        // In memory, because the root file system is read-only. A socket takes no space; the limit
        // is for accidents.
        json!({ "name": CONTROL_VOLUME, "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }),
        // The sidecar does not call the API server: an empty folder replaces the token of the pod.
        json!({ "name": NO_TOKEN_VOLUME, "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }),
    ];
    if let Some(secret) = &options.secret {
        volumes.push(json!({ "name": SECRET_VOLUME, "secret": { "secretName": secret } }));
    }
    volumes
}

fn mounts(options: &Options) -> Vec<Value> {
    let mut mounts = vec![
        json!({ "name": CONFIG_VOLUME, "mountPath": CONFIG_FOLDER, "readOnly": true }),
        json!({ "name": CONTROL_VOLUME, "mountPath": CONTROL_FOLDER }),
        json!({ "name": NO_TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": true }),
    ];
    if options.secret.is_some() {
        mounts.push(json!({ "name": SECRET_VOLUME, "mountPath": SECRET_FOLDER, "readOnly": true }));
    }
    mounts
}

/// Identity of the pod, for NATS, logs and presence, and the values that the configuration may use
/// as `${...}`.
fn environment(options: &Options, application_port: Option<u16>, grace: Duration) -> Vec<Value> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut environment = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_UID", "metadata.uid"),
        field("NODE_NAME", "spec.nodeName"),
        field("POD_IP", "status.podIP"),
        json!({ "name": "SIDESTREAM_TERMINATION_GRACE_PERIOD", "value": duration(grace) }),
        json!({ "name": "SIDESTREAM_PORT", "value": options.port.to_string() }),
        json!({ "name": "SIDESTREAM_ADMIN_PORT", "value": options.admin_port.to_string() }),
    ];
    let values = [
        (
            "SIDESTREAM_DRAIN_ACCEPT_FOR",
            options.drain_accept_for.map(duration),
        ),
        (
            "SIDESTREAM_DRAIN_SPREAD",
            options.drain_spread.map(duration),
        ),
        (
            "SIDESTREAM_DRAIN_TIMEOUT",
            options.drain_timeout.map(duration),
        ),
        ("SIDESTREAM_LOG", options.log_level.clone()),
        ("NATS_URL", options.nats_url.clone()),
        // All containers of a pod share the loopback address.
        (
            "APPLICATION_ADDRESS",
            application_port.map(|port| format!("http://127.0.0.1:{port}")),
        ),
    ];
    let values = values
        .into_iter()
        .filter_map(|(name, value)| Some(json!({ "name": name, "value": value? })));
    environment.extend(values);
    if let Some(secret) = &options.admin_token_secret {
        let key = json!({ "name": secret, "key": TOKEN_KEY });
        environment.push(json!({ "name": "ADMIN_TOKEN", "valueFrom": { "secretKeyRef": key } }));
    }
    environment
}

/// Probe over HTTP, because exec readiness probes fail during termination in Kubernetes 1.35. It
/// has the number of the port and not its name, which another container may use as well.
fn probe(path: &str, options: &Options, every: u32, timeout: u32, failures: u32) -> Value {
    let mut get = json!({ "path": path, "port": options.admin_port });
    if options.admin_scheme == Scheme::Https {
        get["scheme"] = json!("HTTPS");
    }
    json!({
        "httpGet": get,
        "periodSeconds": every,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    })
}

fn resources(options: &Options) -> Value {
    let mut limits = json!({ "memory": options.memory_limit.text() });
    if let Some(cpu) = &options.cpu_limit {
        limits["cpu"] = json!(cpu.text());
    }
    let mut requests =
        json!({ "cpu": options.cpu_request.text(), "memory": options.memory_request.text() });
    for (amounts, storage) in [
        (&mut limits, &options.storage_limit),
        (&mut requests, &options.storage_request),
    ] {
        if let Some(storage) = storage {
            amounts["ephemeral-storage"] = json!(storage.text());
        }
    }
    json!({ "requests": requests, "limits": limits })
}

/// Duration in the syntax of the configuration.
fn duration(duration: Duration) -> String {
    match duration.as_millis() {
        millis if millis % 1000 == 0 => format!("{}s", millis / 1000),
        millis => format!("{millis}ms"),
    }
}
