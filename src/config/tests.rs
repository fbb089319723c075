//! Any text and any bytes get a result, within bounds of time and size.

use proptest::prelude::*;

use super::load::parse_bytes;
use super::*;

const GOOD: &str = "routes: [{ path: /a, sources: [{ subjects: [a] }] }]";

fn environment(name: &str) -> Option<String> {
    (name == "A").then(|| "x".repeat(100_000))
}

fn message(text: &str) -> String {
    parse(text, "f", &environment).unwrap_err().as_slice()[0]
        .message
        .clone()
}

/// Pieces of the file format in any order: closer to a configuration than random text.
fn nearly() -> impl Strategy<Value = String> {
    let words = [
        "routes",
        "sources",
        "subjects",
        "path",
        "listen",
        "nats",
        "tls",
        "window",
        "drain",
        "retry",
        "- ",
        "  ",
        ": ",
        "\n",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "\"",
        "'",
        "#",
        "&a ",
        "*a",
        "!x ",
        "|",
        ">",
        "---\n",
        "?",
        "\t",
        "null",
        "15s",
        "${A}",
        "$$",
        "/a/{id}",
        "\r",
        "\u{feff}",
        "%YAML 1.2\n",
        "\0",
        "é",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..60)
        .prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn any_text_gets_a_result(text in prop_oneof![any::<String>(), nearly()]) {
        match parse(&text, "f", &environment) {
            Ok(config) => prop_assert!(config.http.all_routes().next().is_some()),
            Err(problems) => prop_assert!(!problems.as_slice().is_empty() && problems.to_string().contains("error: ")),
        }
    }

    #[test]
    fn any_bytes_get_a_result(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse_bytes(&bytes, "f", &environment).is_err());
    }

    #[test]
    fn reference_file_with_a_piece_removed_or_inserted_gets_a_result(at in any::<prop::sample::Index>(), cut in 0usize..20, put in nearly()) {
        let mut chars: Vec<char> = include_str!("../../sidecar.yaml").chars().collect();
        let from = at.index(chars.len());
        let until = (from + cut).min(chars.len());
        chars.splice(from..until, put.chars());
        let text: String = chars.into_iter().collect();
        if let Err(problems) = parse(&text, "f", &environment) {
            prop_assert!(!problems.to_string().is_empty());
        }
    }
}

#[test]
fn values_repeated_by_aliases_are_bounded() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..10 {
        let before = format!("*a{}", level - 1);
        bomb += &format!(
            "a{level}: &a{level} [{}]\n",
            [before.as_str(); 10].join(", ")
        );
    }
    assert_eq!(message(&bomb), "the aliases make the file too large");
    let long = format!(
        "a: &a {}\nb: [{}]\n",
        "x".repeat(500_000),
        ["*a"; 1000].join(", ")
    );
    assert_eq!(message(&long), "the aliases make the file too large");
    assert_eq!(
        message("a: &a [*a]"),
        "an alias is inside of the value that it repeats"
    );
    assert!(message("a: *b").starts_with("invalid YAML: "));
}

#[test]
fn problem_of_a_repeated_value_is_reported_once() {
    let text = |heartbeat| {
        let route = |path, window| {
            format!("  - {{ path: {path}, sources: [{{ subjects: [a] }}], window: {window} }}\n")
        };
        format!(
            "routes:\n{}{}",
            route("/a", format!("&w {{ age: {heartbeat} }}")),
            route("/b", "*w".into())
        )
    };
    let config = parse(&text("9s"), "f", &environment).unwrap();
    assert_eq!(config.http.routes[1].window.age.as_secs(), 9);
    assert_eq!(
        parse(&text("9"), "f", &environment)
            .unwrap_err()
            .as_slice()
            .len(),
        1
    );
}

#[test]
fn the_form_of_a_file_is_bounded() {
    assert_eq!(
        message(&"[".repeat(100)),
        "the values are nested too deeply"
    );
    assert_eq!(
        message(&"- ".repeat(1000)),
        "the values are nested too deeply"
    );
    assert_eq!(
        message(&" ".repeat(FILE_BYTES_MAX + 1)),
        "the file is larger than 1 MiB"
    );
    assert_eq!(
        message("a: 1\n---\nb: 2\n"),
        "the file has a second document"
    );
    assert_eq!(message("!!map { a: b }"), "YAML tags are not supported");
    let filled = format!("{GOOD}\ntrusted_proxies: [{}]", ["'${A}'"; 20].join(", "));
    let report = parse(&filled, "f", &environment).unwrap_err().to_string();
    assert!(
        report.contains("the environment fills in more than 1 MiB"),
        "{report}"
    );
    let keys: String = (0..10_000).map(|key| format!("k{key}: 1\n")).collect();
    assert_eq!(message(&keys), "a map has too many keys");
    let route = |key| format!("  - {{ path: /{key}, sources: [{{ subjects: [a] }}] }}\n");
    let routes: String = (0..10_000).map(route).collect();
    assert_eq!(
        message(&format!("routes:\n{routes}")),
        "`routes` has 10000 items, the maximum is 1000"
    );
    let many: String = (0..200).map(|key| format!("k{key}: 1\n")).collect();
    let report = parse(&many, "f", &environment).unwrap_err();
    assert_eq!(report.as_slice().len(), Problems::COUNT_MAX);
    assert!(report.to_string().ends_with("100 problems or more"));
}

/// Large files, and files at the bounds. In quadratic time some of them take minutes.
#[test]
fn time_to_check_a_file_is_linear() {
    let many =
        |count: usize, item: &dyn Fn(usize) -> String| (0..count).map(item).collect::<String>();
    let list = |count: usize, item: &dyn Fn(usize) -> String| {
        format!("[{}]", many(count, &|n| format!("{}, ", item(n))))
    };
    let route = |rest: String| {
        format!("routes: [{{ path: /a, sources: [{{ subjects: [a] }}], {rest} }}]\n")
    };
    let of_source = |rest: String| format!("routes: [{{ path: /a, sources: [{{ {rest} }}] }}]\n");
    let rule = |n| format!("{{subjects: ['h.*.{n}'], tier: critical}}");
    let at_the_bounds = |n| {
        let subjects = list(4, &|m| format!("s{n}.{m}.*"));
        format!(
            "  - {{ path: '/a/{{x}}/{n}', sources: [{{ stream: S, subjects: {subjects} }}] }}\n"
        )
    };
    let files = [
        format!("routes:\n{}", many(1000, &at_the_bounds)),
        format!(
            "routes:\n{}",
            many(6_000, &|n| format!(
                "  - {{path: /p{n}, sources: [{{subjects: [p{n}]}}]}}\n"
            ))
        ),
        route(format!("priority: {}", list(5_000, &rule))),
        route(format!("priority: {}", list(1000, &rule))),
        route(format!(
            "cors: {{ origins: {} }}",
            list(10_000, &|n| format!("https://a{n}.example"))
        )),
        of_source(format!(
            "subjects: {}",
            list(26_666, &|n| format!("s{n}.*.>"))
        )),
        of_source(format!(
            "subjects: {}, allow: {}",
            list(999, &|n| format!("a{n}.x")),
            list(999, &|n| format!("a{}.*", 999 - n))
        )),
        of_source(format!("subjects: ['{}']", "{query.a}.".repeat(10_000))),
        format!("routes: {}", list(36_666, &|_| "{a: 1}".into())),
        format!(
            "routes: {}",
            list(1000, &|_| format!(
                "{{ {} }}",
                many(150, &|n| format!("k{n}, "))
            ))
        ),
        format!(
            "routes: [{{ path: '/{}', sources: [] }}]",
            many(10_000, &|n| format!("{{a{n}}}/"))
        ),
        format!(
            "{GOOD}\nlisten: {}",
            list(10_000, &|n| format!("{{address: '127.0.0.1:{n}'}}"))
        ),
        format!(
            "{GOOD}\nlog: {{filter: '{}'}}",
            many(23_333, &|n| format!("a{n}=debug,"))
        ),
        format!("{GOOD}\nx: '{}'", "://".repeat(33_333)),
        format!("{GOOD}\nx: '{}'", "password: a, ".repeat(23_333)),
        format!("{GOOD}\nx: {}", list(33_333, &|_| "&a b".into())),
        format!(
            "{GOOD}\nx: {}{}{}",
            many(30, &|n| format!("&a{n} [")),
            "a, ".repeat(66_666),
            "]".repeat(30)
        ),
        format!("{GOOD}\nx: {}", "- ".repeat(133_333)),
        format!("{GOOD}\nx: {}", "{a: ".repeat(66_666)),
        format!("{GOOD}\nx: \"{}", "${A:-".repeat(50_000)),
    ];
    for text in files {
        assert!(text.len() <= FILE_BYTES_MAX, "{}", &text[..100]);
        let begun = std::time::Instant::now();
        let answer = parse(&text, "f", &environment);
        let length = answer.map_or_else(
            |problems| problems.to_string().len(),
            |config| config.http.routes.len(),
        );
        // A debug build on a busy machine takes a second.
        assert!(
            begun.elapsed().as_secs() < 20,
            "{:?}: {}",
            begun.elapsed(),
            &text[..100]
        );
        assert!(
            length < 200_000,
            "{length} bytes of problems: {}",
            &text[..100]
        );
    }
}

#[test]
fn bytes_that_are_not_utf8_are_reported_with_their_line() {
    let report = |bytes: &[u8]| {
        parse_bytes(bytes, "f", &environment)
            .unwrap_err()
            .as_slice()[0]
            .message
            .clone()
    };
    assert_eq!(
        report(b"a: 1\nb: \xff\n"),
        "the file is not UTF-8, first in line 2"
    );
    assert_eq!(
        report(&[0xff; FILE_BYTES_MAX + 1]),
        "the file is larger than 1 MiB"
    );
    assert!(parse_bytes(format!("\u{feff}{GOOD}").as_bytes(), "f", &environment).is_ok());
}

#[test]
fn content_hash_ignores_the_form_of_the_file_and_text_hash_does_not() {
    let loaded = |text: &str| parse_bytes(text.as_bytes(), "f", &environment).unwrap();
    let one = loaded(GOOD);
    let two = loaded(
        "# The same.\nroutes:\n  - path: /a\n    sources: [{ subjects: [a] }]\n    heartbeat: 15s\n",
    );
    let three = loaded("routes: [{ path: /b, sources: [{ subjects: [a] }] }]");
    assert_eq!(one.content_hash, two.content_hash);
    assert_ne!(one.text_hash, two.text_hash);
    assert_ne!(one.content_hash, three.content_hash);
}

/// Returns the hint of the first problem of a text.
fn hint(text: &str) -> String {
    let problems = parse(text, "f", &environment).unwrap_err();
    problems.as_slice()[0].hint.clone().unwrap_or_default()
}

#[test]
fn renamed_section_registry_is_rejected_with_the_new_name() {
    assert_eq!(
        hint(&format!("{GOOD}\nregistry: {{ bucket: clients }}")),
        "`registry` was renamed: write `presence`"
    );
}

#[test]
fn renamed_key_patience_is_rejected_with_the_new_name() {
    assert_eq!(
        hint("routes: [{ path: /a, sources: [{ subjects: [a] }], slow: { patience: 2s } }]"),
        "`patience` was renamed: write `stall_timeout`"
    );
}

#[test]
fn renamed_delivery_on_demand_is_rejected_with_the_new_name() {
    assert_eq!(
        hint(
            "routes: [{ path: /a, sources: [{ stream: A, subjects: [a], delivery: on_demand }] }]"
        ),
        "`on_demand` was renamed: write `republish`"
    );
}

#[test]
fn claim_is_rejected_where_it_is_written_on_a_route_that_does_not_authenticate() {
    let report = |text: &str| parse(text, "f", &environment).unwrap_err().to_string();
    let subject = report(
        "routes:\n  - path: /a\n    sources:\n      - subjects: ['a.{claim[\"x.y\"].z}.>']\n",
    );
    for part in [
        "a claim needs `authenticate` on this route",
        "f:4:",
        "- subjects: ['a.{claim[\"x.y\"].z}.>']",
        "name a provider of `authentication.providers`",
    ] {
        assert!(subject.contains(part), "{part}\n{subject}");
    }
    let client =
        report("routes: [{ path: /a, sources: [{ subjects: [a] }], client: 'user-{claim.sub}' }]");
    assert!(client.contains("a claim needs"), "{client}");
    let event =
        report("routes: [{ path: /a, sources: [{ subjects: [a] }], event: '{claim.sub}' }]");
    assert!(event.contains("a claim needs"), "{event}");
    let other =
        report("routes: [{ path: /a, sources: [{ subjects: [a] }], event: '{query.name}' }]");
    assert!(other.contains("`event` has a variable"), "{other}");
}

#[test]
fn every_new_name_is_a_known_key_or_value() {
    let text = "routes: [{ path: /a, sources: [{ stream: A, subjects: [a], delivery: republish }], slow: { stall_timeout: 2s } }]\npresence: { bucket: clients }";
    parse(text, "f", &environment).unwrap();
}
