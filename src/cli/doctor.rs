//! `sidestream doctor`: finds faults of the proxies between here and an event stream.
//!
//! ```text
//! run: report of the pod -> products of the proxies -> checks at the same time -> exit code
//!   request   requests, and the times at which their responses arrive
//!   probes    checks with a pod that answers probes (`doctor: true` on the route)
//!   passive   checks by an event stream itself, of any server
//!   heads     header fields that were sent, and that arrived
//!   product   products of proxies, by what they add
//!   advice    the line to change, by fault and product
//!   sheet     results, for people or as JSON
//! ```
//!
//! Every connection is silent: no TCP keepalive and no HTTP/2 PING of the doctor keeps one alive.

mod advice;
mod fault;
mod heads;
mod passive;
mod probes;
mod product;
mod report;
mod request;
mod sheet;

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use self::fault::Fault;
use self::passive::Passive;
use self::probes::Probes;
use self::report::PodReport;
use self::request::{NoResponse, POSITION, PROBE, Requests, text};
use self::sheet::Sheet;
use super::client::connection::{Connection, Connector, Options};
use super::client::target::Target;
use super::exit::Exit;
use super::output::{complain, exit_of};
use crate::config;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// URL of an event stream, as clients use it
    url: String,
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
    /// Request header; may be repeated
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Bearer token of the requests
    #[arg(long, value_name = "TOKEN", value_parser = token)]
    token: Option<HeaderValue>,
    /// Time for which event streams are watched: older ones are not
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = config::duration)]
    watch: Duration,
    /// Origin of a page that reads the event stream, such as `https://app.example.com`
    #[arg(long)]
    origin: Option<String>,
    /// Also trust the certificates in this PEM file
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Trust every certificate
    #[arg(long)]
    insecure: bool,
    /// Use HTTP/2 with prior knowledge; the default is HTTP/1.1, or the protocol that TLS
    /// negotiates
    #[arg(long)]
    http2: bool,
}

const EXAMPLES: &str = "\
Examples:
  sidestream doctor https://example.com/events/orders/42
  sidestream doctor --origin https://app.example.com --token \"$TOKEN\" https://example.com/events

Set `doctor: true` on the route: the pod then answers probes, and more faults can be found.
Exit code 65: a fault was found. docs/doctor.md describes each.";

/// Runs the checks.
pub(super) fn run(args: &Args) -> Exit {
    let requests = match requests(args) {
        Ok(requests) => requests,
        Err(why) => return stopped(&why, Exit::Usage),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return stopped(&error.to_string(), Exit::Internal),
    };
    runtime.block_on(examine(args, &requests))
}

fn requests(args: &Args) -> Result<Requests, String> {
    let target = Target::parse(&args.url)?;
    let options = Options {
        http2: args.http2,
        authority: args.ca.as_deref(),
        insecure: args.insecure,
        silent: true,
    };
    let connector = Connector::new(&target, options)?;
    let mut headers = HeaderMap::new();
    for (name, value) in &args.headers {
        headers.append(name, value.clone());
    }
    if let Some(token) = &args.token {
        headers.insert(AUTHORIZATION, token.clone());
    }
    Ok(Requests {
        connector,
        target,
        headers,
    })
}

/// Answer to the first request.
enum First {
    /// The pod answers probes.
    Report(Box<PodReport>),
    /// An event stream, or no head of one.
    Plain,
    /// A proxy answers in place of the pod.
    Page(String),
    /// Nothing can be checked.
    Stopped(Exit),
}

async fn examine(args: &Args, requests: &Requests) -> Exit {
    let sheet = Sheet::new(!args.json);
    let mut connection = match requests.connect().await {
        Ok(connection) => connection,
        Err(why) => return stopped(&why.to_string(), Exit::Unavailable),
    };
    let protocol = connection.version();
    let (page, first) = tokio::join!(
        error_page(requests),
        first(requests, &mut connection, &sheet)
    );
    if let Some(page) = page {
        sheet.learn(|products| products.of_page(&page, "its page for an invalid request"));
    }
    let pod = match first {
        First::Report(pod) => Some(*pod),
        First::Plain => None,
        First::Page(text) => {
            sheet.fault(Fault::StatusPage, text);
            return conclude(&sheet, &args.url, protocol, None);
        }
        First::Stopped(exit) => return exit,
    };
    let origin = args.origin.as_deref();
    sheet.begin(&args.url, protocol, pod.as_ref());
    let passive = Passive {
        requests,
        sheet: &sheet,
        watch: args.watch,
        origin,
    };
    if let Some(pod) = &pod {
        let probes = Probes {
            requests,
            sheet: &sheet,
            pod,
            watch: args.watch,
            origin,
            busy_end: Cell::new(None),
        };
        tokio::join!(
            probes.run(connection),
            passive.event_stream(Some((&probes, pod)))
        );
    } else {
        // The first request may have opened an event stream on it.
        drop(connection);
        passive.run().await;
    }
    conclude(&sheet, &args.url, protocol, pod.as_ref())
}

fn conclude(sheet: &Sheet, url: &str, protocol: &str, pod: Option<&PodReport>) -> Exit {
    match sheet.finish(url, protocol, pod) {
        Ok(()) if sheet.has_findings() => Exit::Finding,
        printed => exit_of(printed),
    }
}

/// Sends the first request: the pod reports what it receives.
async fn first(requests: &Requests, connection: &mut Connection, sheet: &Sheet) -> First {
    let position = HeaderName::from_static("last-event-id");
    let probe = HeaderValue::from_static("report");
    let headers = [(PROBE, probe), (position, POSITION)];
    let opened = match requests.send(connection, Method::GET, &headers).await {
        Ok(opened) => opened,
        Err(NoResponse::Late) => return First::Plain,
        Err(why) => return First::Stopped(stopped(&why.to_string(), Exit::Unavailable)),
    };
    let response = opened.response;
    sheet.learn(|products| products.of_response(response.headers()));
    let (status, head) = (response.status(), response.headers().clone());
    if status.is_success() && !head.contains_key(PROBE) && heads::is_event_stream(&head) {
        return First::Plain;
    }
    let body = text(response.into_body()).await;
    if let Ok(report) = serde_json::from_slice::<PodReport>(&body) {
        sheet.learn(|products| products.of_request(&report.request));
        return First::Report(Box::new(report));
    }
    if let Some(why) = rejection(&body) {
        return First::Stopped(stopped(&format!("{status}: {why}"), Exit::Unavailable));
    }
    if status.is_redirection() {
        let to = head.get(LOCATION).map(HeaderValue::as_bytes);
        let to = String::from_utf8_lossy(to.unwrap_or_default());
        let why = format!("{status} redirects to {to}: use that URL");
        return First::Stopped(stopped(&why, Exit::Unavailable));
    }
    sheet.learn(|products| products.of_page(&body, "its page"));
    let content = head.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let content = String::from_utf8_lossy(content.unwrap_or(b"nothing"));
    let text = format!("the answer is {status} with `{content}`, and not one of the pod");
    First::Page(text)
}

/// Message and hint of a rejection by Sidestream.
fn rejection(body: &[u8]) -> Option<String> {
    let rejection: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = &rejection["error"];
    let (code, message) = (error["code"].as_str()?, error["message"].as_str()?);
    let hint = error["hint"].as_str().unwrap_or_default();
    Some(format!("{code}: {message} ({hint})"))
}

/// Returns the page for a request that no server can parse. Each product has its own.
async fn error_page(requests: &Requests) -> Option<Vec<u8>> {
    let fetched = async {
        let mut socket = requests
            .connector
            .connect_raw(&requests.target)
            .await
            .ok()?;
        socket.write_all(b"DOCTOR\r\n\r\n").await.ok()?;
        let mut page = Vec::new();
        // The connection may stay open after the page, or be reset.
        while let Ok(Ok(1..)) = timeout(PAGE_TIMEOUT, socket.read_buf(&mut page)).await {
            if page.len() >= PAGE_BYTES_MAX {
                break;
            }
        }
        Some(page)
    };
    timeout(2 * PAGE_TIMEOUT, fetched).await.ok().flatten()
}

const PAGE_BYTES_MAX: usize = 8 << 10;
const PAGE_TIMEOUT: Duration = Duration::from_millis(1500);

fn stopped(why: &str, exit: Exit) -> Exit {
    complain(format_args!("sidestream doctor: {why}"));
    exit
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("invalid header: expected 'Name: value'")?;
    let name: HeaderName = name
        .trim()
        .parse()
        .map_err(|_| format!("invalid header name {name:?}"))?;
    let mut value: HeaderValue = value
        .trim()
        .parse()
        .map_err(|_| "invalid header value: control characters are not allowed".to_owned())?;
    // It may be a credential: hide it from debug output.
    value.set_sensitive(true);
    Ok((name, value))
}

fn token(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", text.trim()))
        .map_err(|_| "invalid token: control characters are not allowed".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}
