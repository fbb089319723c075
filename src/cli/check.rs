//! `sidestream check`: prints all problems of a configuration, or its warnings and a summary.
//!
//! Connects to nothing, so it runs in CI and in an init container. Of the files that the configuration
//! names it reads the JSON Schemas of payloads. Problems and warnings go to
//! standard error with excerpt and hint; the summary goes to standard output.

use std::fmt::{self, Write};
use std::path::Path;

use super::exit::Exit;
use super::output::{complain, exit_of, print};
use crate::config::{self, Loaded};
use crate::http::RouteConfig;
use crate::payload::schema::{
    FolderLimits, SchemaOrigin, Schemas, SchemasConfig, Validation, read_folder,
};
use crate::telemetry::Metrics;

/// Checks the file and prints the result.
pub(super) fn run(file: &Path) -> Exit {
    match config::load(file) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                complain(format_args!("{warning}\n"));
            }
            match schema_problems(&loaded.config.schemas) {
                Ok(problems) if problems.is_empty() => {}
                Ok(problems) => {
                    for problem in problems {
                        complain(format_args!("error: schemas: {problem}"));
                    }
                    return Exit::Usage;
                }
                // It may be mounted in the pod only.
                Err(why) => complain(format_args!("warning: schemas: {why}\n")),
            }
            let mut summary = String::new();
            // Writing to a string does not fail.
            summarise(&loaded, file, &mut summary).ok();
            exit_of(print(&summary))
        }
        Err(problems) => {
            complain(problems);
            Exit::Usage
        }
    }
}

/// Returns the problems of the documents of a folder.
///
/// # Errors
/// The folder does not exist.
fn schema_problems(config: &SchemasConfig) -> Result<Vec<String>, String> {
    let Some(SchemaOrigin::Folder(folder)) = &config.origin else {
        return Ok(Vec::new());
    };
    let documents = match read_folder(folder, FolderLimits::IN_FORCE) {
        Ok(documents) => documents,
        Err(why) if folder.is_dir() => return Ok(vec![why]),
        Err(why) => return Err(why),
    };
    let config = SchemasConfig {
        validate: Validation::Off,
        ..config.clone()
    };
    let metrics = Metrics::new().map_err(|error| error.to_string())?;
    Ok(Schemas::new(config, None, &metrics).update(&documents))
}

fn summarise(loaded: &Loaded, file: &Path, out: &mut impl Write) -> fmt::Result {
    let Loaded {
        config, warnings, ..
    } = loaded;
    match warnings.len() {
        0 => writeln!(out, "{}: no problems", file.display())?,
        1 => writeln!(out, "{}: no problems, 1 warning", file.display())?,
        count => writeln!(out, "{}: no problems, {count} warnings", file.display())?,
    }
    for listener in &config.listen {
        let tls = if listener.tls.is_some() { " (TLS)" } else { "" };
        writeln!(out, "  listens on {}{tls}", listener.address)?;
    }
    let admin = &config.admin;
    let tls = if admin.tls.is_some() { " (TLS)" } else { "" };
    let access = if admin.is_protected() {
        "protected"
    } else {
        "open; `admin.token` protects them"
    };
    writeln!(
        out,
        "  admin port on {}{tls}: /connections and /config are {access}",
        admin.address
    )?;
    for route in &config.http.routes {
        writeln!(
            out,
            "  serves {} from {}",
            route.path.as_str(),
            sources(route)
        )?;
    }
    if let Some(origin) = &config.schemas.origin {
        let place = match origin {
            SchemaOrigin::Folder(folder) => folder.display().to_string(),
            SchemaOrigin::Bucket(bucket) => format!("the KV bucket {}", bucket.as_str()),
        };
        let mode = config.schemas.validate.as_str();
        writeln!(
            out,
            "  has JSON Schemas of payloads in {place}, validate: {mode}"
        )?;
    }
    if let Some(application) = &config.http.application {
        let (scheme, authority) = (application.version.scheme(), &application.authority);
        writeln!(
            out,
            "  passes other paths to the application at {scheme}://{authority}"
        )?;
    }
    if let Some(subscribe) = &config.http.subscribe {
        let sources = sources(&subscribe.route);
        writeln!(out, "  serves what the application asks for from {sources}")?;
    }
    Ok(())
}

fn sources(route: &RouteConfig) -> String {
    let names = route
        .sources
        .iter()
        .map(|source| source.stream.as_deref().unwrap_or("core NATS"));
    names.collect::<Vec<_>>().join(", ")
}
