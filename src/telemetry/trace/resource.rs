//! Resource attributes of all spans: the service, the pod and the version.
//!
//! `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win over what Sidestream knows by itself, as the
//! specification of OpenTelemetry demands.

use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, ResourceDetector as _};

/// Service name without configuration.
const SERVICE: &str = "sidestream";

/// Returns the resource of this process. `variable` returns variables of the environment.
pub(super) fn resource(variable: impl Fn(&str) -> Option<String>) -> Resource {
    let given = EnvResourceDetector::new().detect();
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    let pod = variable("POD_NAME");
    let known = [
        (
            "service.version",
            Some(env!("CARGO_PKG_VERSION").to_owned()),
        ),
        (
            "service.instance.id",
            pod.clone().or_else(|| variable("HOSTNAME")),
        ),
        ("service.name", Some(SERVICE.to_owned())),
        ("k8s.pod.name", pod),
        ("k8s.namespace.name", variable("POD_NAMESPACE")),
    ];
    let known = known
        .into_iter()
        .filter_map(|(key, value)| Some(KeyValue::new(key, value?)))
        .filter(|attribute| given.get(&attribute.key).is_none());
    let name = variable("OTEL_SERVICE_NAME").map(|name| KeyValue::new("service.name", name));
    // The last one of a key wins.
    let given = given
        .iter()
        .map(|(key, value)| KeyValue::new(Key::clone(key), value.clone()));
    let attributes: Vec<_> = known.chain(given.collect::<Vec<_>>()).chain(name).collect();
    Resource::builder_empty()
        .with_attributes(attributes)
        .build()
}
