//! Reads `schemas:`: JSON Schemas of payloads, where their documents are, and what they are used for.

use super::sources::filter;
use super::versions::version;
use crate::config::reader::ValueReader;
use crate::http::RouteConfig;
use crate::http::config::SourceConfig;
use crate::payload::schema::{SchemaOrigin, SchemaRule, SchemasConfig, Validation};
use crate::subject::{BucketName, Filter};

/// 256 rules: every payload is compared with all of them, once.
const RULES_MAX: usize = 256;

/// 64 filters of one rule.
const SUBJECTS_MAX: usize = 64;

const VALIDATE: [(&str, Validation); 3] = [
    (Validation::Count.as_str(), Validation::Count),
    (Validation::Reject.as_str(), Validation::Reject),
    (Validation::Off.as_str(), Validation::Off),
];

/// Reads the section. `routes` are those whose payloads it describes.
pub(super) fn schemas<'r>(
    value: &ValueReader<'_>,
    routes: impl Iterator<Item = &'r RouteConfig>,
) -> Option<SchemasConfig> {
    let sources = routes.flat_map(|route| &route.sources);
    let reach: Vec<Filter> = sources.flat_map(SourceConfig::reach).collect();
    value.map(|keys| {
        let folder = keys.nullable("folder", None, ValueReader::file);
        let bucket = keys.nullable("bucket", None, |value| {
            value.parsed("the name of a bucket", BucketName::parse)
        });
        let has_both = folder.is_some() && bucket.is_some();
        if has_both {
            let hint = "documents come from one place";
            keys.error("bucket", "`folder` and `bucket` are both set", Some(hint));
        }
        let validate = keys.get_or("validate", Validation::default(), |value| {
            value.one_of(&VALIDATE)
        });
        let payloads = keys.get_or("payloads", Vec::new(), |value| {
            value.list_of(RULES_MAX, |value| rule(value, &reach))
        });
        let origin = folder
            .map(SchemaOrigin::Folder)
            .or(bucket.map(SchemaOrigin::Bucket));
        if origin.is_none() && !payloads.is_empty() {
            let hint = "set `folder` to a directory of `.json` files, or `bucket` to a KV bucket";
            keys.error("payloads", "the schemas have no origin", Some(hint));
        }
        Some(SchemasConfig {
            origin,
            validate,
            payloads,
        })
    })
}

fn rule(value: &ValueReader<'_>, reach: &[Filter]) -> Option<SchemaRule> {
    value.map(|keys| {
        let subjects = keys.require("subjects", |value| value.some_of(SUBJECTS_MAX, filter));
        let version = keys.nullable("version", None, version);
        let schema = keys.require("schema", document);
        let subjects = subjects?;
        let is_used = |filter: &Filter| reach.iter().any(|other| other.overlaps(filter));
        if !subjects.iter().any(is_used) {
            let hint = "compare `subjects` with those of the routes";
            keys.warn("subjects", "no route delivers these subjects", hint);
        }
        Some(SchemaRule {
            subjects,
            version,
            schema: schema?,
        })
    })
}

/// Reads the path of a document. It can be a file as well as a key of a bucket, and a label.
fn document(value: &ValueReader<'_>) -> Option<Box<str>> {
    value.parsed("the path of a document", |text| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=".contains(&byte);
        let is_part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.');
        if text.len() <= 256 && text.bytes().all(is_allowed) && text.split('/').all(is_part) {
            Ok(text.into())
        } else {
            Err(
                "expected a path in the folder or a key of the bucket, such as orders/v2.json, with \
                 letters, digits, `-`, `_`, `=`, `.` and `/`",
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use crate::config::load::parse_bytes;
    use crate::config::{Loaded, Problems, effective};

    fn parsed(schemas: &str) -> Result<Loaded, Problems> {
        let text = format!(
            "routes: [{{ path: /a, sources: [{{ subjects: [\"orders.>\"] }}] }}]\nschemas: {schemas}\n"
        );
        parse_bytes(text.as_bytes(), "f", &|_| None)
    }

    #[test]
    fn contradictions_of_schemas_are_reported() {
        let rule = "payloads: [{ subjects: [orders.*], version: 2, schema: orders/v2.json }]";
        let loaded = parsed(&format!("{{ bucket: SCHEMAS, validate: reject, {rule} }}")).unwrap();
        assert!(loaded.warnings.is_empty());
        assert_eq!(
            effective(&loaded.config)["schemas"],
            serde_json::json!({
                "folder": null, "bucket": "SCHEMAS", "validate": "reject",
                "payloads": [{ "subjects": ["orders.*"], "version": 2, "schema": "orders/v2.json" }]
            })
        );
        for (keys, message) in [
            (format!("{{ {rule} }}"), "the schemas have no origin"),
            (
                format!("{{ folder: /s, bucket: S, {rule} }}"),
                "`folder` and `bucket` are both set",
            ),
            (
                "{ bucket: S, validate: warn }".into(),
                "`validate` must be `count` or `reject` or `off`",
            ),
            (
                "{ bucket: S, payloads: [{ schema: a }] }".into(),
                "`subjects` is missing",
            ),
            (
                "{ bucket: S, payloads: [{ subjects: [a], schema: ../a }] }".into(),
                "expected a path in the folder",
            ),
            (
                "{ bucket: S, payloads: [{ subjects: [a], version: 0, schema: a }] }".into(),
                "a version is a whole number",
            ),
        ] {
            let problems = parsed(&keys).expect_err(&keys).to_string();
            assert!(problems.contains(message), "{keys}: {problems}");
        }
        let unused = parsed("{ bucket: S, payloads: [{ subjects: [other], schema: a }] }").unwrap();
        let warning = &unused.warnings[0].message;
        assert_eq!(warning, "no route delivers these subjects");
    }
}
