//! The reference file and the documentation compared with the code, and the problems of wrong files.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use sidestream::config::{self, Config, Problems, effective, outline, parse};
use sidestream::encoding::{Coding, Framing};
use sidestream::http::RouteConfig;

const REFERENCE: &str = include_str!("../../sidecar.yaml");
const MANUAL: &str = include_str!("../../docs/configuration.md");

fn no_environment(_: &str) -> Option<String> {
    None
}

fn parsed(text: &str) -> Result<Config, Problems> {
    parse(text, "sidecar.yaml", &no_environment)
}

/// Messages of the problems of a text, each with its line.
fn problems(text: &str) -> Vec<String> {
    let problems = parsed(text).expect_err("the text is wrong");
    problems
        .as_slice()
        .iter()
        .map(|problem| format!("{}: {}", problem.line, problem.message))
        .collect()
}

/// Warnings about a text without problems.
fn warnings(text: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.yaml");
    std::fs::write(&file, text).unwrap();
    let loaded = config::load(&file).unwrap_or_else(|problems| panic!("{text}: {problems}"));
    loaded.warnings.iter().map(ToString::to_string).collect()
}

/// Defaults in the shape of the file, with the same number of routes. Keys without a default are
/// left out.
fn defaults_for(config: &Config) -> Value {
    let mut default = Config::default();
    let routes = config.http.routes.iter();
    default.http.routes = routes
        .map(|route| RouteConfig::new(route.path.clone(), route.sources.clone()))
        .collect();
    let mut value = effective(&default);
    for route in value["routes"].as_array_mut().unwrap() {
        route
            .as_object_mut()
            .unwrap()
            .retain(|key, _| key != "path" && key != "sources");
    }
    value
}

/// Value at a path such as `routes[0].window.events`.
fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    value.pointer(&format!(
        "/{}",
        path.replace(['.', '['], "/").replace(']', "")
    ))
}

fn without_indices(path: &str) -> String {
    path.chars().filter(|char| !char.is_ascii_digit()).collect()
}

#[test]
fn the_reference_file_has_every_key() {
    let outline = outline(REFERENCE, "sidecar.yaml", &no_environment).unwrap();
    let mut named = BTreeSet::new();
    for (path, _) in &outline.named {
        // A map counts as present if one of its keys is.
        let pattern = without_indices(path);
        named.extend(
            pattern
                .match_indices(['.', '['])
                .map(|(end, _)| pattern[..end].to_owned()),
        );
        named.extend(
            pattern
                .match_indices(']')
                .map(|(end, _)| pattern[..=end].to_owned()),
        );
        named.insert(pattern);
    }
    let forgotten: Vec<&String> = outline
        .known
        .iter()
        .filter(|key| !named.contains(*key))
        .collect();
    assert!(
        forgotten.is_empty(),
        "sidecar.yaml does not name {forgotten:?}"
    );
}

#[test]
fn the_reference_file_has_the_defaults_except_for_marked_examples() {
    let config = parsed(REFERENCE).unwrap();
    let (shown, default) = (effective(&config), defaults_for(&config));
    let lines: Vec<&str> = REFERENCE.lines().collect();
    let marked = |line: usize| lines[line - 1].contains("# example");
    let mut examples = BTreeSet::new();
    for (path, line) in outline(REFERENCE, "sidecar.yaml", &no_environment)
        .unwrap()
        .named
    {
        let shown =
            at(&shown, &path).unwrap_or_else(|| panic!("the effective configuration lacks {path}"));
        if at(&default, &path) == Some(shown) {
            assert!(
                !marked(line),
                "line {line}: {path} is the default, {shown}, and no example"
            );
        } else {
            assert!(
                marked(line),
                "line {line}: {path} is {shown}, its default is {:?}",
                at(&default, &path)
            );
            examples.insert(line);
        }
    }
    let all: BTreeSet<usize> = (1..=lines.len()).filter(|line| marked(*line)).collect();
    assert_eq!(all, examples, "lines that say example and show none");
}

#[test]
fn every_key_of_the_reference_file_has_a_comment() {
    for (index, line) in REFERENCE
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains(':'))
    {
        let (_, reason) = line
            .split_once('#')
            .unwrap_or_else(|| panic!("line {} has no reason", index + 1));
        assert!(!reason.trim().is_empty(), "line {}", index + 1);
    }
}

#[test]
fn the_documentation_has_every_key() {
    let known = outline(REFERENCE, "sidecar.yaml", &no_environment)
        .unwrap()
        .known;
    let missing: Vec<&String> = known
        .iter()
        .filter(|key| !MANUAL.contains(&format!("`{key}`")))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/configuration.md does not name {missing:?}"
    );
}

#[test]
fn all_problems_of_a_file_are_reported_at_once() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config");
    for name in ["wrong", "tabs", "broken", "unclosed"] {
        let text = std::fs::read_to_string(fixtures.join(format!("{name}.yaml"))).unwrap();
        let environment = |name: &str| (name == "NATS_PASSWORD").then(|| "hunter2".to_owned());
        let report = parse(&text, &format!("{name}.yaml"), &environment).unwrap_err();
        let golden = fixtures.join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, format!("{report}\n")).unwrap();
        }
        assert_eq!(
            format!("{report}\n"),
            std::fs::read_to_string(&golden).unwrap(),
            "{name}: UPDATE_GOLDEN=1 rewrites it"
        );
        assert!(!report.to_string().contains("hunter2"));
    }
}

#[test]
fn a_problem_in_json_has_its_location_excerpt_and_hint() {
    let report =
        parsed("routes: [{path: /a, sources: [{subjects: [a]}], hartbeat: 15s}]").unwrap_err();
    let expected = serde_json::json!([{
        "file": "sidecar.yaml", "line": 1, "column": 49,
        "excerpt": "routes: [{path: /a, sources: [{subjects: [a]}], hartbeat: 15s}]",
        "message": "unknown key `hartbeat`", "hint": "did you mean `heartbeat`?",
    }]);
    assert_eq!(report.to_json(), expected);
}

#[test]
fn a_missing_and_an_empty_file_are_reported() {
    let report = config::load(Path::new("no/such/sidecar.yaml"))
        .unwrap_err()
        .to_string();
    assert!(
        report.contains("file not found") && report.contains("--> no/such/sidecar.yaml"),
        "{report}"
    );
    assert_eq!(problems(""), ["0: the file is empty"]);
    assert_eq!(problems("# nothing\n"), ["0: the file is empty"]);
    assert_eq!(problems("---\n"), ["0: the file is empty"]);
    assert_eq!(
        problems("text"),
        ["1: the file must be a map, not a single value"]
    );
    assert_eq!(
        problems("listen: []\n"),
        ["1: `routes` is missing in the file", "1: `listen` is empty"]
    );
}

#[test]
fn environment_variables_can_be_any_value() {
    let text = "
routes:
  - path: ${ROUTE}
    sources: [{ stream: \"${STREAM:-}\", subjects: [\"${PREFIX:-orders}.{id}\"] }]
    heartbeat: ${HEARTBEAT:-10s}
    window: { events: \"${EVENTS}\" }
    checkpoint: ${CHECKPOINT:-null}
    cors: { origins: [\"https://a.example\"], credentials: \"${COOKIES}\" }
limits:
  connections: ${MAX:-100}
nats: { user: me, password: \"$$${SECRET}\" }
";
    let environment = |name: &str| match name {
        "ROUTE" => Some("/a/{id}".to_owned()),
        "EVENTS" => Some("7".to_owned()),
        "COOKIES" => Some("true".to_owned()),
        "SECRET" => Some("] }, x: {".to_owned()),
        _ => None,
    };
    let config = parse(text, "f", &environment).unwrap();
    let route = &config.http.routes[0];
    assert_eq!(route.path.as_str(), "/a/{id}");
    assert_eq!(route.sources[0].stream, None);
    assert_eq!(route.sources[0].subjects[0].as_str(), "orders.{id}");
    assert_eq!(route.heartbeat.as_secs(), 10);
    assert_eq!(route.window.events, 7);
    assert_eq!(route.checkpoint, None);
    assert!(route.cors.credentials);
    assert_eq!(config.http.connections_max, Some(100));
    let shown = effective(&config).to_string();
    assert!(!shown.contains("x: {"), "{shown}");
    assert_eq!(effective(&config)["nats"]["password"], "***");
}

#[test]
fn one_value_may_list_several_nats_servers() {
    let text = "
routes: [{ path: /a, sources: [{ subjects: [a] }] }]
nats: { servers: [\"${NATS_URL}\", c], tls: { required: true, handshake_first: true } }
";
    let environment = |_: &str| Some("nats://a:4222, tls://b".to_owned());
    let config = parse(text, "f", &environment).unwrap();
    assert_eq!(config.nats.servers, ["nats://a:4222", "tls://b", "c"]);
    let tls = &effective(&config)["nats"]["tls"];
    assert_eq!(
        (&tls["required"], &tls["handshake_first"]),
        (&true.into(), &true.into())
    );
}

#[test]
fn contradictions_in_a_configuration_are_reported() {
    let with = |more: &str| {
        problems(&format!(
            "routes: [{{ path: /a, sources: [{{ subjects: [a] }}] }}]\n{more}"
        ))
    };
    assert_eq!(
        with("listen: [{ address: '0.0.0.0:80' }, { address: '127.0.0.1:80' }]"),
        ["2: the listener in line 2 has the same address"]
    );
    assert!(parsed("routes: [{ path: /a, sources: [{ subjects: [a] }] }]\nlisten: [{ address: '[::1]:0' }, { address: '[::1]:0' }]").is_ok());
    assert_eq!(with("nats: { credentials: f, nkey: x }").len(), 2);
    assert_eq!(
        with("nats: { password: x }"),
        ["2: `password` has no `user`"]
    );
    assert_eq!(
        with("nats: { tls: { key: k } }"),
        ["2: `key` has no `certificate`"]
    );
    assert_eq!(
        with("nats: { servers: ['http://a', 'nats://', 'nats://a/b'] }").len(),
        3
    );
    assert_eq!(
        with("nats: { servers: ['nats://a,,nats://b', 'nats://a,http://b'] }").len(),
        2
    );
    assert_eq!(
        with("nats: { tls: { required: false, handshake_first: true } }"),
        ["2: `required: false` contradicts the other keys of `tls`"]
    );
    assert_eq!(with("admin: { control: '' }"), ["2: the path is empty"]);
    assert_eq!(
        with("limits: { connections: auto, window_bytes: 0 }"),
        ["2: `window_bytes` must be more than 0"]
    );
    assert_eq!(
        with("drain: { accept_for: 0, spread: 0, timeout: 0 }"),
        ["2: `timeout` must be more than 0"]
    );
    assert_eq!(
        with("upstream: x"),
        ["2: `upstream` is not available in this version"]
    );
}

#[test]
fn a_filter_that_never_matches_is_reported() {
    let route = |rest: &str| problems(&format!("routes: [{{ path: '/a/{{id}}', {rest} }}]"));
    let source = |rest: &str| route(&format!("sources: [{{ {rest} }}]"));
    assert_eq!(
        source("stream: A"),
        ["1: `subjects` is missing in `routes[0].sources[0]`"]
    );
    assert_eq!(source("stream: a.b, subjects: [a]").len(), 1);
    assert_eq!(
        source("subjects: [b.c], allow: [a.>]"),
        ["1: this subject is outside of `allow`"]
    );
    assert_eq!(
        source("subjects: ['a.{nothing}']"),
        ["1: `{nothing}` is not a variable of the route's path"]
    );
    assert_eq!(
        route("sources: [{ subjects: [a] }, { subjects: [b] }]"),
        ["1: core NATS is already a source of this route, in line 1"]
    );
    let five = ["A", "B", "C", "D", "E"]
        .map(|name| format!("{{ stream: {name}, subjects: [a] }}"))
        .join(", ");
    assert_eq!(
        route(&format!("sources: [{five}]")),
        ["1: `sources` has 5 items, the maximum is 4"]
    );
    let good = "sources: [{ subjects: ['{query.x}'] }]";
    assert_eq!(
        route(&format!("{good}, heartbeat: 0")),
        ["1: `heartbeat` must be more than 0"]
    );
    assert_eq!(
        route(&format!("{good}, event: sidestream.x")),
        ["1: invalid event name"]
    );
    assert_eq!(
        route(&format!("{good}, cors: {{ origins: ['*', 'https://a'] }}")),
        ["1: `*` is every origin: write it alone"]
    );
    for name in ["''", "a b", "a=b", "a&b"] {
        assert_eq!(
            route(&format!("{good}, last_event_id_query: {name}")).len(),
            1,
            "{name}"
        );
    }
    assert!(
        parsed(&format!(
            "routes: [{{ path: /a, last_event_id_query: after, {good} }}]"
        ))
        .is_ok()
    );
    for origin in ["https://a/", "https://A", "a.example", "null ", "ftp://a"] {
        assert_eq!(
            route(&format!("{good}, cors: {{ origins: ['{origin}'] }}")).len(),
            1,
            "{origin}"
        );
    }
    assert!(parsed(&format!("routes: [{{ path: '/a/{{id}}', {good} }}]")).is_ok());
}

#[test]
fn wildcards_of_other_systems_are_problems_or_warnings() {
    let path =
        |path: &str| format!("routes: [{{ path: '{path}', sources: [{{ subjects: [a] }}] }}]");
    let subject = |subject: &str| {
        format!("routes: [{{ path: /a, sources: [{{ subjects: ['{subject}'] }}] }}]")
    };
    for wrong in [
        path("/a/*"),
        path("/**"),
        path("/a/+/b"),
        path("/a/:id"),
        subject("a/#"),
        subject("a.#"),
        subject("+/a"),
    ] {
        assert_eq!(problems(&wrong).len(), 1, "{wrong}");
    }
    let report = parsed(&path("/a/:id")).unwrap_err().to_string();
    assert!(report.contains("write `{id}`"), "{report}");
    for odd in [path("/a/*.json"), subject("a/b")] {
        let warnings = warnings(&odd);
        assert!(
            warnings.len() == 1 && warnings[0].contains("is an ordinary character"),
            "{warnings:?}"
        );
    }
    for sound in [
        path("/a/b:c"),
        path("/c++"),
        subject("a.b/c"),
        subject("a.b#"),
    ] {
        assert_eq!(warnings(&sound), [""; 0], "{sound}");
    }
}

#[test]
fn subjects_from_both_a_stream_and_core_nats_are_a_warning() {
    let sources = |stream: &str, core: &str| {
        warnings(&format!(
            "routes: [{{ path: '/{{id}}', sources: [{{ stream: A, {stream} }}, {{ {core} }}] }}]"
        ))
    };
    for (stream, core) in [
        ("subjects: [a.>]", "subjects: [a.b]"),
        ("subjects: ['a.{id}']", "subjects: ['*.b']"),
        (
            "subjects: ['{query.x}'], allow: [c, a.>]",
            "subjects: [b, a.b]",
        ),
    ] {
        let report = sources(stream, core);
        assert!(
            report.len() == 1 && report[0].contains("`A` have subjects in common"),
            "{stream} {core}: {report:?}"
        );
    }
    assert_eq!(sources("subjects: [a.>]", "subjects: [b.>]"), [""; 0]);
    assert_eq!(
        sources("subjects: ['{query.x}'], allow: [c]", "subjects: [a]"),
        [""; 0]
    );
}

#[test]
fn a_log_filter_that_disables_the_log_is_a_problem_with_a_hint() {
    let log = |filter: &str, value: &str| {
        let text = format!(
            "routes: [{{ path: /a, sources: [{{ subjects: [a] }}] }}]\nlog: {{ filter: '{filter}' }}"
        );
        parse(&text, "f", &|_| Some(value.to_owned())).map_err(|problems| problems.to_string())
    };
    for (word, hint) in [
        ("warning", "`warn`"),
        ("infoo", "`info`"),
        ("verbose", "`debug`"),
        ("all", "`trace`"),
    ] {
        let report = log(word, "").unwrap_err();
        assert!(
            report.contains(&format!("did you mean {hint}?")) && report.contains("1 problem"),
            "{report}"
        );
    }
    for sound in ["INFO", " debug ", "off", "info,sidestream::feed=trace"] {
        assert!(log(sound, "").is_ok(), "{sound}");
    }
    let report = log("${LEVEL}", "hunter2").unwrap_err();
    assert!(
        report.contains("came from the environment") && !report.contains("hunter2"),
        "{report}"
    );
}

/// `hunter2` is in every place where a secret may be by mistake.
#[test]
fn no_excerpt_shows_a_possible_secret() {
    let seed = format!("SU{}", "A".repeat(56));
    let texts = [
        "nats: { user: me, pasword: hunter2 }",
        "nats:\n  user: me\n  passwort: hunter2",
        "nats:\n  PASSWORD: hunter2",
        "nats:\n  pw: hunter2",
        "nats:\n  foo: { bar: hunter2, baz: [hunter2] }",
        "nats:\n  tls: { ca: x, pass: hunter2, foo: hunter2 }",
        "nats: { user: me, password: a, token: hunter2, hunter2 }",
        "nats: { user: me, password: b,hunter2,hunter2 }",
        "nats: { token: [hunter2] }",
        "nats: { token: { hunter2: , x: 1 } }",
        "nats: { nkey: hunter2 }",
        "nats: { user: hunter2 }",
        "nats: hunter2",
        "nats: [hunter2]",
        "natz: { password2: hunter2, x: hunter2 }",
        "nats: { servers: ['nats://me:hunter2@a:x'] }",
        "nats: { servers: ['nats://me:a,hunter2 ]hunter2@a:x'] }",
        "nats: { servers: ['nats://me:hunter2@b@a:x'] }",
        "nats: { servers: ['me:hunter2@a', ''] }",
        "nats: { servers: nats://me:hunter2@a }",
        "nats: { servers: [{ url: hunter2 }] }",
        "upstream: http://me:hunter2@a",
        "password: hunter2",
        "pass_word: hunter2",
        "x: &p hunter2\nnats: { user: me, password: *p, y: 1 }",
        "nats: { user: me, password: &p hunter2, nkey: *p, y: *p }",
        "log: { filter: &p hunter2, x: 1 }\nnats: { token: *p, user: *p, password: x }",
        "nats: { user: me, password: 'x' }  # hunter2\nx: y # token: hunter2",
        "nats:\n  password: a #hunter2\n  foo: x #hunter2",
        "nats:\n  password: |\n    hunter2\n  foo: 1",
        "nats:\n  password: \"a\n    hunter2\"\n  foo: 1",
        "nats:\n  password: >-\n    a\n    hunter2\n  user: [1]",
        "token: ${X:-hunter2}",
        "nats: { token: 'hunter2', user: ${NONE} }",
        "authentication: { providers: [{ name: a, jwt: { keys: { secret: hunter2, x: 1 } } }] }",
        "authentication: { providers: [{ name: a, jwt: { keys: { secret: b, hunter2 } } }] }",
        "authentication: { providers: [{ name: a, jwt: { keys: { secrt: hunter2 } } }] }",
        "authentication: { providers: [{ name: a, jwt: { keys: { secret: [hunter2] } } }] }",
        "authentication: { providers: [{ name: a, jwt: { keys: { foo: { bar: hunter2 } } } }] }",
        "authentication: { providers: [{ name: a, jwt: { keys: { jwks: 'https://me:hunter2@a' } } }] }",
        "authentication:\n  providers:\n    - jwt:\n        keys:\n          secret: |\n            hunter2\n          x: 1",
        "authentification: { secret: hunter2, x: hunter2 }",
        // Text that cannot be parsed.
        "authentication:\n  providers:\n    - jwt:\n        keys:\n          secret: |\n            hunter2\n          \tx: 1",
        "authentication:\n  providers:\n    - jwt: { keys: { secret: \"hunter2",
        "nats:\n\tpassword: hunter2",
        "nats:\n\tx: hunter2",
        "nats:\n  password: \"hunter2",
        "nats:\n  password: hunter2: x",
        "nats:\n  pw: hunter2: x",
        "nats:\n  password: \"a\nhunter2: x\" y",
        "nats:\n  password: @hunter2",
        "nats: { password: hunter2 }}",
        "{ nats: { pw: hunter2 ]",
        "{ \"nats\": { \"pw\": \"hunter2\" ]",
        "nats:\n  servers: [nats://me:hunter2@a: ]x",
        "nats: &a { pw: hunter2, x: *a }",
        "nats: { pw: hunter2 }\n---\nnats: { pw: hunter2 }",
    ];
    for text in texts {
        let text = format!("{text}\nroutes: [{{ path: /a, sources: [{{ subjects: [a] }}] }}]\n");
        let report = parsed(&text).expect_err(&text);
        assert!(!report.to_string().contains("hunter2"), "{text}\n{report}");
        assert!(!report.to_json().to_string().contains("hunter2"), "{text}");
    }
    for file in [
        "credentials: '{}'",
        "tls: { ca: '{}' }",
        "tls: { certificate: \"-----BEGIN X-----\\n{}\", key: k }",
    ] {
        let text = format!("nats: {{ {} }}\nroutes: []", file.replace("{}", &seed));
        let report = parsed(&text).unwrap_err().to_string();
        assert!(
            report.contains("not its content") && !report.contains(&seed),
            "{report}"
        );
    }
}

#[test]
fn an_excerpt_shows_values_that_are_not_secret() {
    let text = "routes:\n  - path: /a\n    sources: [{ subjects: [a] }]\n    hartbeat: 15s # why\nnats: { servers: ['nats://me:x@host:1/x'] }\n";
    let report = parsed(text).unwrap_err().to_string();
    assert!(report.contains("4 |     hartbeat: 15s # why"), "{report}");
    assert!(
        report.contains("5 | nats: { servers: ['nats://****@host:1/x'] }"),
        "{report}"
    );
}

#[test]
fn a_bucket_is_a_stream_with_its_keys_that_begins_with_the_state() {
    let route = |keys: &str| format!("routes: [{{ path: /a, sources: [{{ bucket: b{keys} }}] }}]");
    let effective = effective(&parsed(&route("")).unwrap());
    assert_eq!(at(&effective, "routes[0].begin").unwrap(), "latest");
    let source = at(&effective, "routes[0].sources[0]").unwrap();
    assert_eq!(
        (&source["bucket"], &source["stream"]),
        (&"b".into(), &Value::Null)
    );
    assert_eq!(source["subjects"], serde_json::json!([">"]));
    let live = "routes: [{ path: /a, begin: live, sources: [{ bucket: b }, { subjects: [x] }] }]";
    let config = parsed(live).unwrap();
    assert_eq!(
        config.http.routes[0].sources[0].stream.as_deref(),
        Some("KV_b")
    );
    for (keys, problem) in [
        (
            ", stream: S",
            "a source is a JetStream stream or a KV bucket",
        ),
        (
            ", delivery: republish",
            "a KV bucket is delivered by one consumer of the pod",
        ),
        (", allow: [x.>]", "`subjects` is missing"),
    ] {
        let problems = problems(&route(keys));
        assert!(problems[0].contains(problem), "{problems:?}");
    }
    for (text, problem) in [
        (
            "routes: [{ path: /a, sources: [{ bucket: b.c }] }]",
            "a bucket name has 1 to 128 letters",
        ),
        (
            "routes: [{ path: /a, sources: [{ bucket: b }, { stream: S, subjects: [s] }] }]",
            "the latest state needs one source",
        ),
        (
            "routes: [{ path: /a, sources: [{ bucket: b }] }, { path: /b, sources: [{ stream: KV_b, subjects: [s] }] }]",
            "this JetStream stream has another `bucket`",
        ),
    ] {
        let problems = problems(text);
        assert!(problems[0].contains(problem), "{problems:?}");
    }
}

#[test]
fn a_stream_has_one_identity_in_all_sources() {
    let files = |sources: &str| {
        format!(
            "routes: [{{ path: /a, sources: [{{ stream: A, identity: x, subjects: [a] }}{sources}]"
        )
    };
    assert!(
        parsed(&files(", { subjects: [b] }] }, { path: /b, sources: [{ stream: A, identity: x, subjects: [c] }] }"))
            .is_ok()
    );
    // A mirror and its origin, in separate routes.
    assert!(
        parsed(&files(
            "] }, { path: /b, sources: [{ stream: M, identity: x, subjects: [a] }] }"
        ))
        .is_ok()
    );
    for other in ["identity: y, ", ""] {
        let report = problems(&files(&format!(
            "] }},\n{{ path: /b, sources: [{{ stream: A, {other}subjects: [c] }}] }}"
        )));
        assert_eq!(
            report,
            ["2: this JetStream stream has another `identity` in line 1"]
        );
    }
    let twins = problems(&files(",\n{ stream: M, identity: x, subjects: [a] }] }"));
    assert_eq!(twins, ["2: the source in line 1 has the same `identity`"]);
    let core = problems("routes: [{ path: /a, sources: [{ identity: x, subjects: [a] }] }]");
    assert_eq!(core, ["1: core NATS has no `identity`"]);
    assert_eq!(
        problems("routes: [{ path: /a, sources: [{ stream: A, identity: ' ', subjects: [a] }] }]")
            .len(),
        1
    );
}

#[test]
fn a_route_after_another_one_of_the_same_shape_is_never_reached() {
    let paths = |paths: &[&str]| {
        let route =
            |path: &&str| format!("  - {{ path: '{path}', sources: [{{ subjects: [a] }}] }}\n");
        parsed(&format!(
            "routes:\n{}",
            paths.iter().map(route).collect::<String>()
        ))
    };
    let report = |list: &[&str]| paths(list).unwrap_err().as_slice()[0].message.clone();
    assert_eq!(
        report(&["/a/{id}", "/a/{key}"]),
        "no request reaches this route: the route in line 2 matches first"
    );
    assert_eq!(
        report(&["/b", "/{id}", "/a"]),
        "no request reaches this route: the route in line 3 matches first"
    );
    assert!(paths(&["/a/new", "/a/{id}", "/a/{id}/x", "/b/{id}"]).is_ok());
}

#[test]
fn framings_are_known_words_in_the_order_of_preference() {
    let route = |framings: &str| {
        parsed(&format!(
            "routes: [{{ path: /a, sources: [{{ subjects: [a] }}]{framings} }}]"
        ))
    };
    let framings = |text: &str| route(text).unwrap().http.routes[0].framings.clone();
    assert_eq!(framings(""), [Framing::Sse, Framing::Ndjson]);
    assert_eq!(
        framings(", framings: [ndjson, sse]"),
        [Framing::Ndjson, Framing::Sse]
    );
    assert_eq!(framings(", framings: [ndjson]"), [Framing::Ndjson]);
    assert_eq!(
        framings(", framings: [long_poll, websocket]"),
        [Framing::LongPoll, Framing::WebSocket]
    );
    for (text, message, hint) in [
        ("[]", "is empty", "at least one is needed"),
        ("[sse, sse]", "has `sse` twice", "write each framing once"),
        (
            "[jsonl]",
            "must be `sse` or `ndjson` or `websocket` or `long_poll`",
            "",
        ),
        (
            "[sse, ndjsn]",
            "must be `sse` or `ndjson` or `websocket` or `long_poll`",
            "did you mean `ndjson`?",
        ),
        (
            "[sse, ndjson, websocket, long_poll, grpc_web, sse]",
            "has 6 items, the maximum is 5",
            "",
        ),
        ("sse", "must be a list", "write `[...]`"),
    ] {
        let report = route(&format!(", framings: {text}"))
            .unwrap_err()
            .to_string();
        assert!(
            report.contains(message) && report.contains(hint),
            "{text}: {report}"
        );
    }
}

#[test]
fn compression_has_known_algorithms_and_needs_clients_that_share_bytes() {
    let route = |rest: &str| {
        parsed(&format!(
            "routes: [{{ path: /a, sources: [{{ subjects: [a] }}], {rest} }}]"
        ))
    };
    let compression = |text: &str| {
        let config = route(&format!("compression: {text}")).unwrap();
        config.http.routes[0].compression.clone()
    };
    assert_eq!(compression("null"), None);
    let default = compression("{}").unwrap();
    assert_eq!(default.algorithms, [Coding::Zstd, Coding::Gzip]);
    assert_eq!(default.min_rate, 0);
    let gzip = compression("{ algorithms: [gzip], min_rate: 10KiB }").unwrap();
    assert_eq!(gzip.algorithms, [Coding::Gzip]);
    assert_eq!(gzip.min_rate, 10 * 1024);
    for (rest, message, hint) in [
        (
            "compression: { algorithms: [] }",
            "is empty",
            "at least one is needed",
        ),
        (
            "compression: { algorithms: [gzip, gzip] }",
            "has `gzip` twice",
            "write each algorithm once",
        ),
        (
            "compression: { algorithms: [br] }",
            "must be `zstd` or `gzip`",
            "",
        ),
        ("compression: { level: 3 }", "level", ""),
        ("compression: true", "must be a map", ""),
        (
            "compression: {}, framings: [websocket]",
            "only the framings `sse` and `ndjson` are compressed",
            "add one of them",
        ),
    ] {
        let report = route(rest).unwrap_err().to_string();
        assert!(
            report.contains(message) && report.contains(hint),
            "{rest}: {report}"
        );
    }
    let two = "routes: [{ path: /a, sources: [{ subjects: [a] }, { stream: S, subjects: [b] }], compression: {} }]";
    let report = parsed(two).unwrap_err().to_string();
    assert!(report.contains("use one route for each source"), "{report}");
}
