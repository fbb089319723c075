//! Markdown tables of the figures in docs/benchmarks.md, written between the markers of that page.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{MEASUREMENTS, Result, goals};
use crate::stage::machine;
use crate::stage::server::Target;
use crate::{Fallible, report};

/// Renders the goals, then all figures.
pub(super) fn write(
    results: &[Result],
    micro: &[(String, f64)],
    runs: u16,
    load_before: &str,
) -> String {
    let mut text = method(runs, load_before);
    text.push_str("\n| | measured | ratio | goal | reached |\n| --- | --- | --- | --- | --- |\n");
    for verdict in goals::verdicts(results, micro) {
        let goals::Verdict {
            what,
            measured,
            ratio,
            goal,
            reached,
        } = verdict;
        let reached = reached.map_or("", |reached| if reached { "yes" } else { "**no**" });
        writeln!(
            text,
            "| {what} | {measured} | {ratio} | {goal} | {reached} |"
        )
        .ok();
    }
    text.push_str("\n| | ");
    text.push_str(&TARGETS.map(|target| target.name()).join(" | "));
    text.push_str(" |\n| --- | --- | --- | --- | --- |\n");
    for result in MEASUREMENTS
        .iter()
        .filter_map(|one| results.iter().find(|it| it.measurement.name == one.name))
    {
        figures(&mut text, result);
    }
    if !micro.is_empty() {
        text.push_str("\n| step of the hot path | mean, ns |\n| --- | --- |\n");
        for (name, nanoseconds) in micro {
            writeln!(text, "| {name} | {} |", report::number(*nanoseconds, 0)).ok();
        }
    }
    text
}

/// Replaces the text between the markers with this name.
pub(crate) fn replace(path: &Path, name: &str, figures: &str) -> Fallible<()> {
    let page = std::fs::read_to_string(path)?;
    let begin = format!("<!-- {name}: begin (written by `make bench`) -->");
    let end = format!("<!-- {name}: end -->");
    let (before, rest) = page
        .split_once(&begin)
        .ok_or_else(|| format!("{}: no {begin}", path.display()))?;
    let (_, after) = rest
        .split_once(&end)
        .ok_or_else(|| format!("{}: no {end}", path.display()))?;
    Ok(std::fs::write(
        path,
        format!("{before}{begin}\n\n{figures}\n{end}{after}"),
    )?)
}

/// Returns the commit, the machine, and how was measured.
pub(crate) fn method(runs: u16, load_before: &str) -> String {
    let machine = machine::describe();
    format!(
        "Commit {}, {}. {}, {} cores, Linux {}; load average before: {load_before}. Everything on loopback: the server\non one core, clients, publisher and nats-server on the other. Release build, payloads of 128 bytes, clear text and HTTP/1.1\nunless the row names something else. Medians of {runs} interleaved runs; ratios are medians of the ratios within a round.\n",
        output_of("git", &["describe", "--always", "--dirty", "--exclude=*"]),
        output_of("date", &["-u", "+%F"]),
        machine["processor"].as_str().unwrap_or("unknown processor"),
        machine["cores"],
        machine["kernel"]
            .as_str()
            .unwrap_or_default()
            .split('.')
            .take(2)
            .collect::<Vec<_>>()
            .join("."),
    )
}

fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

fn figures(text: &mut String, result: &Result) {
    // The bare loop over HTTP/2 has the column of the bare loop.
    let targets = match result.runs(Target::BareH2) {
        [] => TARGETS,
        _ => TARGETS.map(|target| match target {
            Target::Bare => Target::BareH2,
            other => other,
        }),
    };
    let medians = targets.map(|target| report::median(result.runs(target)));
    writeln!(text, "| **{}** | | | | |", result.measurement.title).ok();
    for (label, pointer, decimals) in report::ROWS {
        if !result.measurement.rows.contains(pointer) {
            continue;
        }
        let cells = medians.each_ref().map(|median| {
            let value = median.pointer(pointer).and_then(Value::as_f64);
            value.map_or(String::new(), |value| report::number(value, *decimals))
        });
        writeln!(text, "| {} | {} |", label.trim(), cells.join(" | ")).ok();
    }
    let faulty = |target: Target| {
        result
            .runs(target)
            .iter()
            .filter(|run| crate::measure::is_faulty(run))
            .count()
    };
    let faults = targets.map(|target| (!result.runs(target).is_empty()).then(|| faulty(target)));
    if faults.iter().flatten().any(|count| *count > 0) {
        let cells = faults.map(|count| count.map_or(String::new(), |count| count.to_string()));
        writeln!(
            text,
            "| runs with lost, duplicated or rejected events | {} |",
            cells.join(" | ")
        )
        .ok();
    }
}

const TARGETS: [Target; 4] = [
    Target::Bare,
    Target::Sidestream,
    Target::Nchan,
    Target::Node,
];
