//! Three hundred clients of every kind behind a proxy, each with a ledger of its events.

use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::fixture::Fixture;
use super::ledger::{Follows, Ledger};
use super::publisher::{Published, SHARES};
use testkit::browser::{Browser, Page};
use testkit::h2::H2Client;
use testkit::node::NodeClient;
use testkit::process::Process;
use testkit::sidestream::binary;
use testkit::sse::SseClient;
use testkit::sse_parser::Event;
use testkit::wait::{RECOVERY, eventually};

/// Number of clients.
pub(crate) const CLIENTS: usize = 300;

/// Event streams of the npm package `eventsource`, in one process; the browser has the same number.
const MANY: usize = 10;

/// Event streams on one HTTP/2 connection: below the limit of the proxies.
const ON_ONE_CONNECTION: usize = 46;

/// Reconnect delay of the route; a drain sends another one.
const RETRY: Duration = Duration::from_millis(500);

/// Running clients.
pub(crate) struct Crowd {
    ledgers: Vec<Arc<Mutex<Ledger>>>,
    tasks: JoinSet<()>,
    witnesses: Vec<Witness>,
}

/// Process that follows event streams and reports what it receives.
struct Witness {
    source: ReportSource,
    /// Number of reports that have been read.
    heard: usize,
    /// One ledger per event stream.
    ledgers: Vec<Arc<Mutex<Ledger>>>,
}

enum ReportSource {
    Node(NodeClient),
    Browser(Browser),
    Tail(Process),
}

/// Client of the test kit, with the ledger of its events.
struct Follower {
    target: String,
    ledger: Arc<Mutex<Ledger>>,
}

// === impl Crowd ===

impl Crowd {
    /// Opens all event streams: `everything` clients follow all subjects, the others a share.
    /// Returns when the pods have all of them. With a page, a browser is one of the clients.
    pub(crate) async fn gather(fixture: &Fixture, everything: usize, page: Option<Page>) -> Self {
        let mut crowd = Self {
            ledgers: Vec::new(),
            tasks: JoinSet::new(),
            witnesses: Vec::new(),
        };
        crowd.processes(fixture, page);
        let own = CLIENTS - crowd.ledgers.len();
        let follows = |number: usize| {
            if number < everything {
                Follows::All
            } else {
                share(number)
            }
        };
        let mut numbers = (0..own).map(follows).collect::<Vec<_>>().into_iter();
        while numbers.len() > 0 {
            let tls = fixture.authority.trusting(&["h2"]);
            let connection = Arc::new(
                H2Client::builder()
                    .tls(tls)
                    .connect(fixture.front.url_tls("/"))
                    .await,
            );
            for follows in numbers.by_ref().take(ON_ONE_CONNECTION) {
                let follower = crowd.another(follows);
                crowd
                    .tasks
                    .spawn(follower.over_http2(Arc::clone(&connection)));
            }
            for follows in numbers.by_ref().take(ON_ONE_CONNECTION) {
                let follower = crowd.another(follows);
                crowd
                    .tasks
                    .spawn(follower.over_http1(fixture.front.url("")));
            }
        }
        eventually(RECOVERY, "every client is there", || async {
            fixture.streams().await == CLIENTS
        })
        .await;
        crowd
    }

    /// Waits until every client has had an event.
    pub(crate) async fn until_all_have_an_event(&mut self) {
        self.until_all("have had an event", Ledger::has_begun).await;
    }

    /// Waits until every client has every event, without a mistake.
    pub(crate) async fn until_all_have(&mut self, published: Published) {
        self.until_all(&format!("have all of {published:?}"), |ledger| {
            ledger.has(published)
        })
        .await;
        self.assert_no_mistakes();
    }

    async fn until_all(&mut self, fact: &str, is_so: impl Fn(&Ledger) -> bool) {
        let begun = Instant::now();
        loop {
            self.hear();
            let late = self
                .ledgers
                .iter()
                .filter(|ledger| !is_so(&lock(ledger)))
                .count();
            if late == 0 {
                return;
            }
            if begun.elapsed() > RECOVERY {
                self.assert_no_mistakes();
                panic!("{late} clients do not {fact}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asserts that no client has seen a mistake until now.
    pub(crate) fn assert_no_mistakes(&mut self) {
        self.hear();
        let wrong: Vec<String> = self
            .ledgers
            .iter()
            .flat_map(|ledger| lock(ledger).mistakes().to_vec())
            .collect();
        let some = wrong
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n");
        assert!(wrong.is_empty(), "{} mistakes:\n{some}", wrong.len());
    }

    /// Number of event streams that were closed with the reason drain.
    pub(crate) fn drains(&mut self) -> usize {
        self.hear();
        self.ledgers.iter().map(|ledger| lock(ledger).drains).sum()
    }

    fn hear(&mut self) {
        self.witnesses.iter_mut().for_each(Witness::hear);
    }

    /// Adds the ledger of another client.
    fn another(&mut self, follows: Follows) -> Follower {
        let ledger = Arc::new(Mutex::new(Ledger::new(follows)));
        self.ledgers.push(Arc::clone(&ledger));
        Follower {
            target: follows.path(),
            ledger,
        }
    }

    fn processes(&mut self, fixture: &Fixture, page: Option<Page>) {
        const NAMES: [&str; 2] = ["sidestream.gap", "sidestream.close"];
        let mut many = |url: &dyn Fn(&str) -> String| -> (Vec<String>, Vec<Arc<Mutex<Ledger>>>) {
            (0..MANY)
                .map(|number| self.another(share(number)))
                .map(|client| (url(&client.target), client.ledger))
                .unzip()
        };
        let mut witnesses = Vec::new();
        let (urls, ledgers) = many(&|target| fixture.front.url(target));
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let node = NodeClient::eventsources(&urls, &NAMES);
        witnesses.push(Witness {
            source: ReportSource::Node(node),
            heard: 0,
            ledgers,
        });
        if let Some(page) = page {
            // Over HTTP/2: a browser opens six HTTP/1 connections to one host.
            let (urls, ledgers) = many(&|target| fixture.front.url_tls(target));
            let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
            let browser = page.open(&urls, &NAMES);
            witnesses.push(Witness {
                source: ReportSource::Browser(browser),
                heard: 0,
                ledgers,
            });
        }
        for secure in [false, true] {
            let client = self.another(Follows::All);
            let mut command = Command::new(binary());
            command.args(["tail", "--json"]);
            if secure {
                let url = fixture.front.url_tls(&client.target);
                command
                    .arg("--cacert")
                    .arg(fixture.authority.file())
                    .arg(url);
            } else {
                command.arg(fixture.front.url(&client.target));
            }
            let tail = Process::spawn("tail", &mut command);
            witnesses.push(Witness {
                source: ReportSource::Tail(tail),
                heard: 0,
                ledgers: vec![client.ledger],
            });
        }
        self.witnesses = witnesses;
    }
}

// === impl Follower ===

impl Follower {
    async fn over_http1(self, base: String) {
        let (mut id, mut retry) = (String::new(), RETRY);
        loop {
            let mut request = SseClient::get(format!("{base}{}", self.target));
            if !id.is_empty() {
                request = request.last_event_id(&id);
            }
            match request.try_connect().await {
                Err(error) => self.wrong(format!("no answer over HTTP/1.1: {error}")),
                Ok(client) if client.status() != 200 => {
                    self.wrong(format!("status {}", client.status()))
                }
                Ok(mut client) => {
                    while let Ok(event) = client.advance().await {
                        self.take(&event);
                    }
                    client.last_event_id().clone_into(&mut id);
                    retry = client.retry().map_or(retry, Duration::from_millis);
                }
            }
            sleep(retry).await;
        }
    }

    async fn over_http2(self, connection: Arc<H2Client>) {
        let (mut id, mut retry) = (String::new(), RETRY);
        loop {
            let mut headers = vec![("accept", "text/event-stream")];
            if !id.is_empty() {
                headers.push(("last-event-id", &id));
            }
            match connection.try_request("GET", &self.target, &headers).await {
                Err(error) => self.wrong(format!("no answer over HTTP/2: {error}")),
                Ok(stream) if stream.status() != 200 => {
                    self.wrong(format!("status {}", stream.status()))
                }
                Ok(mut stream) => {
                    while let Ok(event) = stream.advance().await {
                        self.take(&event);
                    }
                    stream.last_event_id().clone_into(&mut id);
                    retry = stream.retry().map_or(retry, Duration::from_millis);
                }
            }
            sleep(retry).await;
        }
    }

    fn take(&self, event: &Event) {
        lock(&self.ledger).take(event);
    }

    fn wrong(&self, what: String) {
        lock(&self.ledger).wrong(what);
    }
}

// === impl Witness ===

impl Witness {
    /// Reads the reports since the last call.
    fn hear(&mut self) {
        let (reports, heard) = match &self.source {
            ReportSource::Node(node) => node.reports_since(self.heard),
            ReportSource::Browser(browser) => browser.reports_since(self.heard),
            ReportSource::Tail(tail) => tail.scan(self.heard, |lines| {
                (
                    lines.iter().filter_map(|line| tailed(line)).collect(),
                    self.heard + lines.len(),
                )
            }),
        };
        self.heard = heard;
        for report in reports {
            let mut ledger = lock(&self.ledgers[report["source"].as_u64().unwrap() as usize]);
            let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
            match report["kind"].as_str().unwrap() {
                "event" => ledger.take(&Event {
                    name: text("name"),
                    data: text("data"),
                    id: text("id"),
                }),
                // A closed EventSource has received a status other than 200 and does not reconnect.
                "error" if report["state"] == 2 => ledger.wrong(report.to_string()),
                _ => {}
            }
        }
    }
}

/// Converts a line of `tail --json` to a report. Lines for people are not JSON.
fn tailed(line: &str) -> Option<Value> {
    if line.contains("closes this event stream: drain") {
        let data = r#"{"reason":"drain"}"#;
        return Some(
            json!({ "source": 0, "kind": "event", "name": "sidestream.close", "data": data }),
        );
    }
    let told: Value = serde_json::from_str(line).ok()?;
    let event = told.as_object()?;
    let (name, data, id) = (event.get("event")?, &event["data"], &event["id"]);
    Some(json!({ "source": 0, "kind": "event", "name": name, "data": data, "id": id }))
}

/// Client `n` follows share `n % SHARES`, or everything.
fn share(number: usize) -> Follows {
    Follows::Share(number as u64 % SHARES)
}

fn lock(ledger: &Arc<Mutex<Ledger>>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap()
}
