//! `sidestream asyncapi`: prints the AsyncAPI 3 document of a configuration.
//!
//! ```text
//! document    asyncapi, info, defaultContentType
//!   servers   listeners, or the addresses of `--server`
//!   channels  one for each route: parameters, messages, and the operation that reads it
//!   messages  an event in each framing and version, control messages, and those of clients
//!   schemas   events and control messages
//!   payloads  JSON Schemas of payloads
//!   security  credentials of the authentication providers
//! ```
//!
//! Connects to nothing. The document has no secret of the configuration, and the same configuration
//! has the same document.

mod channels;
mod document;
mod messages;
mod names;
mod payloads;
mod schemas;
mod security;
mod servers;

use std::path::PathBuf;

use clap::ValueEnum;
use hyper::Uri;
use serde_json::Value;

use super::exit::Exit;
use super::output::{complain, exit_of, print};
use crate::config;
use payloads::PayloadSchemas;

/// Arguments of `asyncapi`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "sidecar.yaml")]
    config: PathBuf,
    /// Form of the document
    #[arg(long, value_enum, default_value_t = Format::Yaml)]
    format: Format,
    /// Address at which clients reach the sidecar, such as `https://events.example.com`; may be
    /// repeated [default: the listeners]
    #[arg(long, value_name = "URL", value_parser = server_url)]
    server: Vec<Uri>,
    /// Folder with the JSON Schemas of payloads, for those of `schemas.bucket` [default:
    /// `schemas.folder`]
    #[arg(long, value_name = "FOLDER")]
    schemas: Option<PathBuf>,
    /// Title of the document
    #[arg(long, value_name = "TEXT", default_value = "Event streams")]
    title: String,
    /// Version of the document [default: the beginning of the hash of the configuration]
    #[arg(long, value_name = "TEXT")]
    api_version: Option<String>,
}

/// Form of the document.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Yaml,
    Json,
}

/// 12 digits of the hash of the configuration, as in the log of the sidecar.
const VERSION_DIGITS: usize = 12;

/// Prints the document.
pub(super) fn run(arguments: &Args) -> Exit {
    let loaded = match config::load(&arguments.config) {
        Ok(loaded) => loaded,
        Err(problems) => {
            complain(problems);
            return Exit::Usage;
        }
    };
    let hash = loaded.content_hash.get(..VERSION_DIGITS);
    let version = arguments.api_version.as_deref().or(hash).unwrap_or("0");
    let config = &loaded.config;
    let payloads = PayloadSchemas::new(config, arguments.schemas.as_deref(), &schemas::schemas());
    for problem in &payloads.problems {
        complain(format_args!("sidestream: schemas: {problem}"));
    }
    let (servers, title) = (&arguments.server, &arguments.title);
    let document = document::document(config, &payloads, servers, title, version);
    match arguments.format.text(&document) {
        Ok(text) => exit_of(print(&text)),
        Err(error) => {
            complain(format_args!(
                "sidestream: cannot write the document: {error}"
            ));
            Exit::Internal
        }
    }
}

impl Format {
    fn text(self, document: &Value) -> Result<String, String> {
        match self {
            Self::Json => serde_json::to_string_pretty(document)
                .map(|text| text + "\n")
                .map_err(|error| error.to_string()),
            Self::Yaml => serde_saphyr::to_string(document).map_err(|error| error.to_string()),
        }
    }
}

/// Parses the address of a server.
fn server_url(text: &str) -> Result<Uri, &'static str> {
    let url: Uri = text.parse().map_err(|_| EXPECTED)?;
    let is_web = matches!(url.scheme_str(), Some("http" | "https"));
    if is_web && url.host().is_some_and(|host| !host.is_empty()) && url.query().is_none() {
        Ok(url)
    } else {
        Err(EXPECTED)
    }
}

const EXPECTED: &str = "expected a URL such as https://events.example.com, without a query";
