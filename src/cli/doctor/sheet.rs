//! Result of a run: faults, passed checks, notes, and what could not be checked.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::advice::{self, Advice};
use super::fault::Fault;
use super::product::Products;
use super::report::PodReport;
use crate::cli::output::print;

/// Collects results while the checks run at the same time.
pub(super) struct Sheet {
    started: Instant,
    /// Results are printed when they are known.
    for_people: bool,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    products: Products,
    findings: Vec<Finding>,
    passed: Vec<Fault>,
    /// Checks without a result, by reason.
    unchecked: BTreeMap<Fault, String>,
    notes: Vec<String>,
}

/// Fault that was found.
struct Finding {
    fault: Fault,
    text: String,
    after_ms: u64,
    /// Lines to change, with the name of the product.
    advice: Vec<(&'static str, Advice)>,
}

impl Sheet {
    pub(super) fn new(for_people: bool) -> Self {
        Self {
            started: Instant::now(),
            for_people,
            state: RefCell::default(),
        }
    }

    /// Adds products of proxies.
    pub(super) fn learn(&self, learn: impl FnOnce(&mut Products)) {
        learn(&mut self.state.borrow_mut().products);
    }

    /// Prints where the run begins.
    pub(super) fn begin(&self, url: &str, protocol: &str, pod: Option<&PodReport>) {
        let mut text = format!("{url} over {protocol}\n");
        let pod = match pod {
            Some(pod) => format!(
                "pod: receives {}; heartbeat {} s; answers probes",
                pod.protocol,
                pod.heartbeat_ms as f64 / 1000.0
            ),
            None => "pod: answers no probes (`doctor: true` on the route): some faults cannot be \
                     found"
                .into(),
        };
        text.push_str(&pod);
        text.push('\n');
        let state = self.state.borrow();
        for (product, evidence) in state.products.iter() {
            let _written = writeln!(text, "proxy: {} ({evidence})", product.as_str());
        }
        self.say(&text);
    }

    /// Adds a fault. The first of its kind counts.
    pub(super) fn fault(&self, fault: Fault, text: impl Into<String>) {
        let mut state = self.state.borrow_mut();
        if state.findings.iter().any(|known| known.fault == fault) {
            return;
        }
        let products = state.products.iter();
        let mut lines: Vec<_> = products
            .filter_map(|(product, _)| Some((product.as_str(), advice::advice(fault, product)?)))
            .collect();
        if lines.is_empty() {
            lines.push(("proxy", advice::general(fault)));
        }
        let finding = Finding {
            fault,
            text: text.into(),
            after_ms: self.started.elapsed().as_millis() as u64,
            advice: lines,
        };
        self.say(&finding.to_string());
        state.passed.retain(|passed| *passed != fault);
        state.unchecked.remove(&fault);
        state.findings.push(finding);
    }

    /// Notes that a fault was looked for and not found.
    pub(super) fn pass(&self, fault: Fault) {
        let mut state = self.state.borrow_mut();
        let is_found = state.findings.iter().any(|found| found.fault == fault);
        if !is_found && !state.passed.contains(&fault) {
            state.unchecked.remove(&fault);
            state.passed.push(fault);
        }
    }

    /// Notes that a fault could not be looked for.
    pub(super) fn skip(&self, fault: Fault, reason: impl Into<String>) {
        let mut state = self.state.borrow_mut();
        let is_found = state.findings.iter().any(|found| found.fault == fault);
        if !is_found && !state.passed.contains(&fault) {
            state.unchecked.entry(fault).or_insert(reason.into());
        }
    }

    pub(super) fn note(&self, text: impl Into<String>) {
        let mut state = self.state.borrow_mut();
        let text = text.into();
        if !state.notes.contains(&text) {
            state.notes.push(text);
        }
    }

    pub(super) fn has(&self, fault: Fault) -> bool {
        let state = self.state.borrow();
        state.findings.iter().any(|found| found.fault == fault)
    }

    /// Returns whether the product of a proxy is known.
    pub(super) fn knows_a_proxy(&self) -> bool {
        self.state.borrow().products.iter().next().is_some()
    }

    /// Returns whether a fault was found.
    pub(super) fn has_findings(&self) -> bool {
        !self.state.borrow().findings.is_empty()
    }

    fn say(&self, text: &str) {
        // The last write reports a closed pipe.
        let _printed = self.for_people.then(|| print(&harmless(text)));
    }

    /// Prints the rest for people, or everything as JSON.
    pub(super) fn finish(
        &self,
        url: &str,
        protocol: &str,
        pod: Option<&PodReport>,
    ) -> std::io::Result<()> {
        let state = self.state.borrow();
        if !self.for_people {
            let document = state.to_json(url, protocol, pod);
            return print(&format!("{document:#}\n"));
        }
        let mut text = String::new();
        let names = |faults: &[Fault]| {
            let names: Vec<_> = faults.iter().map(|fault| fault.as_str()).collect();
            names.join(", ")
        };
        if !state.passed.is_empty() {
            let _written = writeln!(text, "not found: {}", names(&state.passed));
        }
        for (fault, reason) in &state.unchecked {
            let _written = writeln!(text, "not checked: {}: {reason}", fault.as_str());
        }
        for note in &state.notes {
            let _written = writeln!(text, "note: {note}");
        }
        let _written = match state.findings.len() {
            0 => writeln!(text, "no fault found"),
            1 => writeln!(text, "1 fault found"),
            count => writeln!(text, "{count} faults found"),
        };
        print(&harmless(&text))
    }
}

impl State {
    fn to_json(&self, url: &str, protocol: &str, pod: Option<&PodReport>) -> Value {
        let findings = self.findings.iter().map(|finding| {
            let advice = finding.advice.iter().map(|(product, advice)| {
                json!({ "product": product, "line": advice.line, "docs": advice.docs })
            });
            json!({
                "fault": finding.fault.as_str(),
                "message": finding.text,
                "after_ms": finding.after_ms,
                "advice": advice.collect::<Vec<_>>(),
                "docs": finding.fault.docs(),
            })
        });
        let products = self.products.iter().map(
            |(product, evidence)| json!({ "product": product.as_str(), "evidence": evidence }),
        );
        let passed = self.passed.iter().map(|fault| fault.as_str());
        let unchecked = self
            .unchecked
            .iter()
            .map(|(fault, reason)| json!({ "fault": fault.as_str(), "reason": reason }));
        json!({
            "url": url,
            "protocol": protocol,
            "pod": pod.map(|pod| json!({
                "protocol": pod.protocol,
                "heartbeat_ms": pod.heartbeat_ms,
                "window": pod.window,
            })),
            "proxies": products.collect::<Vec<_>>(),
            "findings": findings.collect::<Vec<_>>(),
            "not_found": passed.collect::<Vec<_>>(),
            "not_checked": unchecked.collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.after_ms as f64 / 1000.0;
        let name = self.fault.as_str();
        writeln!(f, "FAULT {name} (after {seconds:.1} s): {}", self.text)?;
        for (product, advice) in &self.advice {
            writeln!(f, "  {product}: {} [{}]", advice.line, advice.docs)?;
        }
        writeln!(f, "  {}", self.fault.docs())
    }
}

/// Replaces control characters: parts of the text come from servers.
fn harmless(text: &str) -> String {
    let is_text = |c: char| c == '\n' || !c.is_control();
    text.chars()
        .map(|c| if is_text(c) { c } else { '\u{FFFD}' })
        .collect()
}
