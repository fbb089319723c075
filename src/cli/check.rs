//! `sidestream check`: prints all problems of a configuration, or its warnings and a summary.
//!
//! Connects to nothing, so it runs in CI and in an init container. Problems and warnings go to
//! standard error with excerpt and hint; the summary goes to standard output.

use std::fmt::{self, Write};
use std::path::Path;

use super::exit::Exit;
use super::output::{complain, exit_of, print};
use crate::config::{self, Loaded};
use crate::http::RouteConfig;

/// Checks the file and prints the result.
pub(super) fn run(file: &Path) -> Exit {
    match config::load(file) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                complain(format_args!("{warning}\n"));
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
