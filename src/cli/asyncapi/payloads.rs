//! Schemas of payloads: documents of `schemas` as components, and the payloads that they describe.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::names::{id, reference, unused};
use super::schemas::CLOUD_EVENT;
use crate::config::Config;
use crate::event::Version;
use crate::http::RouteConfig;
use crate::http::config::SourceConfig;
use crate::payload::PayloadFormat;
use crate::payload::schema::{
    FolderLimits, SchemaDocuments, SchemaOrigin, SchemasConfig, linked, read_folder,
};
use crate::subject::Filter;

/// Schemas of the payloads of a configuration.
pub(super) struct PayloadSchemas<'c> {
    config: &'c SchemasConfig,
    /// Names of components by the paths of their documents.
    names: BTreeMap<String, String>,
    /// Documents by the names of their components.
    pub(super) components: Map<String, Value>,
    /// Documents that are only named, with the reason: lines for people.
    pub(super) problems: Vec<String>,
}

impl<'c> PayloadSchemas<'c> {
    /// Reads the documents of `folder`, or else of the folder of the configuration. `used` has the
    /// components of the document that are not payloads.
    pub(super) fn new(
        config: &'c Config,
        folder: Option<&Path>,
        used: &Map<String, Value>,
    ) -> Self {
        let mut problems = Vec::new();
        let config = &config.schemas;
        let folder = folder.or(match &config.origin {
            Some(SchemaOrigin::Folder(folder)) => Some(folder),
            Some(SchemaOrigin::Bucket(_)) | None => None,
        });
        let documents = folder.map(|folder| documents(folder, &mut problems));
        let mut schemas = Self {
            config,
            names: BTreeMap::new(),
            components: used.clone(),
            problems,
        };
        let paths = documents.iter().flat_map(SchemaDocuments::paths);
        let rules = config.payloads.iter().map(|rule| &*rule.schema);
        for path in rules.clone().chain(paths) {
            schemas.name(path);
        }
        for path in rules {
            schemas.add(path, documents.as_ref());
        }
        for name in used.keys() {
            schemas.components.remove(name);
        }
        schemas
            .components
            .retain(|_, component| !component.is_null());
        schemas
    }

    /// Reserves a name for the component of a document.
    fn name(&mut self, path: &str) {
        if !self.names.contains_key(path) {
            let name = unused(&self.components, &id(path));
            self.components.insert(name.clone(), Value::Null);
            self.names.insert(path.to_owned(), name);
        }
    }

    /// Adds a document and all that it refers to.
    fn add(&mut self, path: &str, documents: Option<&SchemaDocuments>) {
        let link = |path: &str, pointer: &str| {
            let name = self.names.get(path).map_or("", String::as_str);
            format!("#/components/schemas/{name}{pointer}")
        };
        match documents.map(|documents| linked(documents, path, &link)) {
            Some(Ok(schemas)) => {
                for (path, schema) in schemas {
                    self.components.insert(self.names[&path].clone(), schema);
                }
            }
            found => {
                if let Some(Err(why)) = found {
                    self.problems.push(format!("{path} {why}"));
                }
                let place = match &self.config.origin {
                    Some(SchemaOrigin::Bucket(bucket)) => {
                        format!(" of the KV bucket {}", bucket.as_str())
                    }
                    Some(SchemaOrigin::Folder(_)) | None => String::new(),
                };
                let description = format!("JSON Schema {path}{place}.");
                let component = json!({ "description": description });
                self.components.insert(self.names[path].clone(), component);
            }
        }
    }

    /// Returns the schema of the payloads of a route in a version; `None` if nothing is known.
    pub(super) fn of_route(&self, route: &RouteConfig, version: Option<Version>) -> Option<Value> {
        let reach = route.sources.iter().flat_map(SourceConfig::reach);
        let reach: Vec<Filter> = reach.collect();
        let rules = self.config.describing(&reach, version);
        let references = rules.iter().filter_map(|rule| {
            let name = self.names.get(&*rule.schema)?;
            Some(reference(&["components", "schemas", name]))
        });
        let mut schemas: Vec<Value> = references.collect();
        let is_described = |subject: &Filter| {
            let mut filters = rules.iter().flat_map(|rule| &rule.subjects);
            filters.any(|filter| filter.covers(subject))
        };
        if !schemas.is_empty() && !reach.iter().all(is_described) {
            schemas.push(json!({ "description": "A payload that no schema describes." }));
        }
        let payload = match schemas.len() {
            0 => None,
            1 => schemas.pop(),
            _ => Some(json!({ "anyOf": schemas })),
        };
        if route.format != Some(PayloadFormat::CloudEvents) {
            return payload;
        }
        let event = reference(&["components", "schemas", CLOUD_EVENT]);
        Some(match payload {
            None => event,
            Some(data) => json!({ "allOf": [event, { "properties": { "data": data } }] }),
        })
    }
}

/// Reads the valid documents of a folder.
fn documents(folder: &Path, problems: &mut Vec<String>) -> SchemaDocuments {
    let mut documents = SchemaDocuments::default();
    match read_folder(folder, FolderLimits::IN_FORCE) {
        Err(why) => problems.push(why),
        Ok(files) => {
            for (path, text) in files {
                if let Err(error) = documents.add(&path, &text) {
                    problems.push(format!("{path} {error}"));
                }
            }
        }
    }
    documents
}
