//! Documents with references of another form: as parts of a larger document.

use std::collections::BTreeMap;

use jsonschema::Draft;
use serde_json::Value;

use super::compiled::{BASE, compile, needed};
use super::documents::SchemaDocuments;

/// Returns a document and all that it refers to, by their paths. `link` returns the reference to a
/// document and a JSON pointer in it; no document names its draft.
///
/// # Errors
/// The rest of a sentence that begins with the path: payloads cannot be validated with the document,
/// or it is of draft 4, whose keywords have other forms.
pub fn linked(
    documents: &SchemaDocuments,
    path: &str,
    link: &dyn Fn(&str, &str) -> String,
) -> Result<BTreeMap<String, Value>, String> {
    let compiled = compile(documents, [path]).remove(path);
    compiled.unwrap_or_else(|| Err("is missing".to_owned()))?;
    let resolved = documents.resolved(BASE);
    let paths = needed(&resolved, path);
    if paths
        .iter()
        .any(|path| resolved.documents[*path].draft == Draft::Draft4)
    {
        return Err("cannot be part of the document: it needs draft 4".to_owned());
    }
    let by_uri: BTreeMap<String, &str> = paths
        .iter()
        .map(|path| (resolved.uri(path), *path))
        .collect();
    let linked = paths.iter().map(|path| {
        let mut schema = resolved.documents[*path].schema.clone();
        if let Some(keywords) = schema.as_object_mut() {
            keywords.remove("$schema");
        }
        link_all(&mut schema, &|reference| {
            let (document, pointer) = reference.split_once('#')?;
            Some(link(by_uri.get(document)?, pointer))
        });
        ((*path).to_owned(), schema)
    });
    Ok(linked.collect())
}

fn link_all(schema: &mut Value, link: &impl Fn(&str) -> Option<String>) {
    match schema {
        Value::Object(keywords) => {
            if let Some(Value::String(reference)) = keywords.get_mut("$ref")
                && let Some(linked) = link(reference)
            {
                *reference = linked;
            }
            keywords
                .values_mut()
                .for_each(|value| link_all(value, link));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| link_all(item, link)),
        _ => {}
    }
}
