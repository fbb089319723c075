//! Finds the port of the application that the annotation `application-port` names.
//!
//! As `targetPort` of a Service, the annotation is a number or the name of a container port. A
//! number need not be declared: a container may listen on any port. A name is looked up before the
//! sidecar is added, so it never means a port of the sidecar.

use serde_json::Value;

use super::notice::Notice;
use super::options::{APPLICATION_PORT, Options, PREFIX, PortReference};

/// Returns the port of the application, if there is an annotation or a default.
///
/// # Errors
/// A notice if the pod has no such port, or if it is a port of the sidecar. The sidecar then passes
/// no requests.
pub(super) fn port(pod: &Value, options: &Options) -> Result<Option<u16>, Notice> {
    let port = match &options.application_port {
        None => return Ok(None),
        Some(PortReference::Number(port)) => *port,
        Some(PortReference::Name(name)) => named(pod, name).ok_or_else(|| missing(pod, name))?,
    };
    if port == options.port || port == options.admin_port {
        let own = if port == options.port {
            "port"
        } else {
            "admin-port"
        };
        return Err(Notice::Problem(format!(
            "`{PREFIX}{APPLICATION_PORT}` is {port}, a port of the sidecar, which passes no requests to itself: \
             set `{PREFIX}{own}` to another"
        )));
    }
    Ok(Some(port))
}

/// Returns the TCP port with this name, of the containers first and then of the init containers.
fn named(pod: &Value, name: &str) -> Option<u16> {
    let containers = ["containers", "initContainers"]
        .into_iter()
        .filter_map(|list| pod["spec"][list].as_array())
        .flatten();
    let ports = containers
        .filter_map(|container| container["ports"].as_array())
        .flatten();
    let is_tcp = |port: &Value| port["protocol"].as_str().is_none_or(|name| name == "TCP");
    ports
        .filter(|port| port["name"] == name && is_tcp(port))
        .find_map(|port| u16::try_from(port["containerPort"].as_u64()?).ok())
}

/// Returns a problem for an annotation of the pod. A default of the injector is for all pods, so it
/// is only a remark for those without such a port.
fn missing(pod: &Value, name: &str) -> Notice {
    let annotation = format!("{PREFIX}{APPLICATION_PORT}");
    let why = "is the name of no TCP port of a container";
    if pod["metadata"]["annotations"].get(&annotation).is_some() {
        Notice::Annotation {
            name: annotation,
            shown: format!("{name:?}"),
            why,
        }
    } else {
        Notice::Remark(format!(
            "the default `{APPLICATION_PORT}` {name:?} {why}: the sidecar passes no requests"
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::options::Defaults;

    /// Result for a pod with two containers and these annotations.
    fn found(annotations: &Value, defaults: &Defaults) -> (Result<Option<u16>, Notice>, usize) {
        let pod = json!({
            "metadata": { "annotations": annotations },
            "spec": {
                "initContainers": [{ "name": "mesh", "ports": [{ "name": "mesh", "containerPort": 15000 }] }],
                "containers": [
                    { "name": "metrics" },
                    { "name": "app", "ports": [
                        { "containerPort": 3001 },
                        { "name": "dns", "containerPort": 53, "protocol": "UDP" },
                        { "name": "http", "containerPort": 3000, "protocol": "TCP" },
                        { "name": "own", "containerPort": 8080 },
                    ] },
                ],
            },
        });
        let (options, problems) = Options::read(annotations.as_object(), defaults);
        (port(&pod, &options), problems.len())
    }

    fn annotated(value: &str) -> Result<Option<u16>, String> {
        let annotations = json!({ "sidestream.dev/application-port": value });
        let (found, problems) = found(&annotations, &Defaults::default());
        assert_eq!(problems, 0, "{value}");
        found.map_err(|notice| {
            assert!(notice.is_problem(), "{notice}");
            assert!(notice.to_string().len() <= 256, "{notice}");
            notice.to_string()
        })
    }

    #[test]
    fn number_or_name_of_a_container_port_is_the_port() {
        for (value, port) in [
            ("3000", 3000),
            ("4000", 4000),
            ("http", 3000),
            ("mesh", 15000),
        ] {
            assert_eq!(annotated(value), Ok(Some(port)), "{value}");
        }
        assert_eq!(found(&json!({}), &Defaults::default()).0, Ok(None));
    }

    #[test]
    fn name_without_a_tcp_port_is_a_problem() {
        for name in ["web", "dns", "app"] {
            let error = annotated(name).unwrap_err();
            let expected = format!(
                "annotation `sidestream.dev/application-port`: \"{name}\" is the name of no TCP port of a container"
            );
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn port_of_the_sidecar_itself_is_a_problem() {
        for (value, other) in [("own", "port"), ("8080", "port"), ("9090", "admin-port")] {
            let error = annotated(value).unwrap_err();
            assert!(
                error.ends_with(&format!("set `sidestream.dev/{other}` to another")),
                "{error}"
            );
        }
        let moved =
            json!({ "sidestream.dev/application-port": "8080", "sidestream.dev/port": "8081" });
        assert_eq!(found(&moved, &Defaults::default()).0, Ok(Some(8080)));
    }

    #[test]
    fn default_that_a_pod_does_not_have_is_a_remark() {
        let defaults = |value: &str| Defaults {
            annotations: [(APPLICATION_PORT.to_owned(), value.to_owned())].into(),
            ..Defaults::default()
        };
        assert_eq!(found(&json!({}), &defaults("http")).0, Ok(Some(3000)));
        let (result, problems) = found(&json!({}), &defaults("web"));
        let notice = result.unwrap_err();
        assert!(!notice.is_problem() && problems == 0, "{notice}");
        assert!(!defaults("a_b").problems().is_empty(), "no name of a port");
    }
}
