//! Problems of `versions` in the configuration.

use serde_json::json;
use sidestream::config::{Config, Problems, effective, parse};

fn parsed(text: &str) -> Result<Config, Problems> {
    parse(text, "sidecar.yaml", &|_| None)
}

#[test]
fn contradictions_of_versions_are_reported() {
    let route = |versions: &str| {
        parsed(&format!(
            "routes: [{{ path: /a, sources: [{{ subjects: [a] }}], versions: {versions} }}]"
        ))
    };
    let one = "conversions: [{ from: 2, to: 1, patch: [{ op: remove, path: /a }] }]";
    let config = route(&format!("{{ current: 2, supported: [2, 1], {one} }}")).unwrap();
    let versions = config.http.routes[0].versions.as_ref().unwrap();
    assert_eq!(versions.supported.len(), 2);
    assert_eq!(
        effective(&config)["routes"][0]["versions"]["supported"],
        json!([1, 2])
    );
    assert!(route("{ current: 7 }").is_ok());
    for (text, message) in [
        ("{ supported: [1] }", "`current` is missing"),
        (
            "{ current: 0 }",
            "a version is a whole number from 1 to 65535",
        ),
        ("{ current: 2, supported: [1] }", "is not in `supported`"),
        ("{ current: 2, supported: [2, 2] }", "has a version twice"),
        (
            "{ current: 2, supported: [1, 2] }",
            "no conversion leads from version 2 to version 1",
        ),
        (
            "{ current: 2, deprecated: { 2: { since: 2026-01-01 } } }",
            "version 2 cannot be deprecated",
        ),
        (
            "{ current: 2, deprecated: { 1: { since: 2026-01-01 } } }",
            "version 1 cannot be deprecated",
        ),
        (
            "{ current: 2, deprecated: { one: { since: 2026-01-01 } } }",
            "the keys of `deprecated` are versions",
        ),
        (
            "{ current: 2, conversions: [{ from: 2, to: 2, patch: [{ op: remove, path: /a }] }] }",
            "are the same version",
        ),
        (
            "{ current: 2, conversions: [{ from: 2, to: 1, patch: [{ op: drop, path: /a }] }] }",
            "not an operation of a JSON Patch",
        ),
        (
            "{ current: 2, conversions: [{ from: 2, to: 1, patch: [{ op: remove, path: a }] }] }",
            "not an operation of a JSON Patch",
        ),
        (
            "{ current: 2, conversions: [{ from: 2, to: 1, patch: [] }] }",
            "`patch` is empty",
        ),
        (
            "{ current: 3, conversions: [{ from: 3, to: 1, patch: [{ op: remove, path: /a }] }, { from: 3, to: 2, patch: [{ op: remove, path: /a }] }] }",
            "two conversions lead from version 3 to an older one",
        ),
    ] {
        let report = route(text).unwrap_err().to_string();
        assert!(report.contains(message), "{text}: {report}");
    }
    for (deprecation, message) in [
        ("{}", "`since` is missing"),
        ("{ since: soon }", "expected a date"),
        ("{ since: 2026-13-01 }", "expected a date"),
        (
            "{ since: 2026-02-01, sunset: 2026-01-01 }",
            "`sunset` is before `since`",
        ),
        ("{ since: 2026-02-01, link: example.com }", "expected a URL"),
        (
            "{ since: 2026-02-01, link: 'https://a>;b' }",
            "expected a URL",
        ),
    ] {
        let text = format!(
            "{{ current: 2, supported: [1, 2], deprecated: {{ 1: {deprecation} }}, {one} }}"
        );
        let report = route(&text).unwrap_err().to_string();
        assert!(report.contains(message), "{text}: {report}");
    }
}
