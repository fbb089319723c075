//! `sidestream check`: every problem of a configuration, or what it says in short.

use std::fmt::{self, Write};
use std::path::Path;

use super::Exit;
use super::output::{complain, exit_of, print};
use crate::config::{self, Config};
use crate::http::RouteConfig;

/// Checks the file without connecting to anything: problems go to standard error, the summary to standard output.
pub(super) fn run(file: &Path) -> Exit {
    match config::load(file) {
        Ok(loaded) => {
            let mut summary = String::new();
            // Writing to a string does not fail.
            summarise(&loaded.config, file, &mut summary).ok();
            exit_of(print(&summary))
        }
        Err(problems) => {
            complain(problems);
            Exit::Usage
        }
    }
}

fn summarise(config: &Config, file: &Path, out: &mut impl Write) -> fmt::Result {
    writeln!(out, "{}: no problems", file.display())?;
    for listener in &config.listen {
        let tls = if listener.tls.is_some() { " (TLS)" } else { "" };
        writeln!(out, "  listens on {}{tls}", listener.address)?;
    }
    for route in &config.http.routes {
        writeln!(out, "  serves {} from {}", route.path.as_str(), sources(route))?;
    }
    Ok(())
}

fn sources(route: &RouteConfig) -> String {
    let names = route.sources.iter().map(|source| source.stream.as_deref().unwrap_or("core NATS"));
    names.collect::<Vec<_>>().join(", ")
}
