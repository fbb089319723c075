//! `sidestream asyncapi`: the official parser accepts the document, and messages are as it says.

mod payloads;
mod schemas;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use testkit::repository::root;

const FIXTURE: &str = "tests/fixtures/config/asyncapi.yaml";

fn asyncapi(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidestream"));
    command.arg("asyncapi").args(arguments);
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("NATS_PASSWORD", "hunter2")
        .output()
        .expect("the program starts")
}

/// Document of a configuration.
fn document(arguments: &[&str]) -> String {
    let output = asyncapi(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert_eq!(errors, "");
    String::from_utf8(output.stdout).unwrap()
}

/// Result of `tests/asyncapi/validate.mjs`.
fn validate(document: &str, payloads: &[Value]) -> Value {
    let folder = root().join("tests/asyncapi");
    assert!(
        folder.join("node_modules").exists(),
        "the AsyncAPI parser is not installed: run `make tools`"
    );
    let mut node = Command::new("node")
        .arg(folder.join("validate.mjs"))
        .env_remove("NODE_OPTIONS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = json!({ "document": document, "payloads": payloads }).to_string();
    let mut stdin = node.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Problems of a document, without the advice to use a newer version of AsyncAPI 3.
fn problems(result: &Value) -> Vec<&Value> {
    let all = result["diagnostics"].as_array().unwrap().iter();
    all.filter(|problem| problem["code"] != "asyncapi-latest-version")
        .collect()
}

#[test]
fn official_parser_accepts_the_documents_of_every_kind_of_configuration() {
    for arguments in [
        &["--config", FIXTURE][..],
        &["--config", FIXTURE, "--format", "json"],
        &["--config", FIXTURE, "--server", "https://example.com/live"],
        &[],
    ] {
        let result = validate(&document(arguments), &[]);
        assert_eq!(problems(&result), Vec::<&Value>::new(), "{arguments:?}");
    }
    let broken = document(&["--config", FIXTURE]).replace("action: send", "action: sends");
    assert!(!problems(&validate(&broken, &[])).is_empty());
}

#[test]
fn yaml_and_json_have_the_same_content_and_no_secret() {
    let yaml = document(&["--config", FIXTURE]);
    let json: Value =
        serde_json::from_str(&document(&["--config", FIXTURE, "--format", "json"])).unwrap();
    assert_eq!(validate(&yaml, &[])["content"], json);
    assert_eq!(document(&["--config", FIXTURE]), yaml, "it is reproducible");
    assert!(!yaml.contains("thirty-two"));
    assert_eq!(json["info"]["version"].as_str().unwrap().len(), 12);
}

#[test]
fn channels_have_the_paths_messages_servers_and_credentials_of_the_routes() {
    let result = validate(&document(&["--config", FIXTURE]), &[]);
    let messages = |framings: &[&str]| {
        let mut names = Vec::new();
        for framing in framings {
            names.extend([format!("{framing}_v1"), format!("{framing}_v2")]);
            if !["long_poll", "grpc_web"].contains(framing) {
                names.push(format!("{framing}_control"));
            }
        }
        names.sort_unstable();
        names
    };
    let both = ["ndjson", "ndjson_control", "sse", "sse_control"];
    assert_eq!(
        result["channels"],
        json!({
            "events.orders.id": {
                "address": "/events/orders/{id}",
                "messages": messages(&["sse", "ndjson", "websocket", "long_poll", "grpc_web"]),
            },
            "events": { "address": "/events", "messages": both },
            "changes": { "address": "/changes", "messages": [
                "long_poll", "ndjson", "ndjson_control", "sse", "sse_control", "websocket",
                "websocket_control", "websocket_subscribe", "websocket_unsubscribe",
            ] },
            "events.orders.id-2": {
                "address": "/events/{orders}/id",
                "messages": ["websocket", "websocket_control"],
            },
            "application": { "address": null, "messages": both },
        })
    );
    let content = &result["content"];
    let server = |name: &str| &content["servers"][name];
    assert_eq!(server("http")["host"], "{host}:8080");
    assert_eq!(server("wss")["host"], "127.0.0.1:8443");
    let certificate = json!([{ "$ref": "#/components/securitySchemes/clientCertificate" }]);
    assert_eq!(server("wss")["security"], certificate);
    let used = &content["channels"]["events.orders.id-2"]["servers"];
    assert_eq!(
        used,
        &json!([{ "$ref": "#/servers/ws" }, { "$ref": "#/servers/wss" }])
    );

    let channel = &content["channels"]["events.orders.id"];
    assert!(channel["parameters"]["id"].is_object());
    let old = &channel["messages"]["sse_v1"];
    assert_eq!(old["externalDocs"]["url"], "https://example.com/v2");
    assert_eq!(old["tags"], json!([{ "name": "deprecated" }]));
    let query = &content["operations"]["events"]["bindings"]["http"]["query"];
    assert_eq!(query["required"], json!(["subject"]));
    let query = &content["operations"]["events.orders.id"]["bindings"]["http"]["query"];
    let names: Vec<&String> = query["properties"].as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        ["from", "last", "last_event_id", "since", "version", "wait"]
    );

    let security = |operation: &str| {
        let schemes = content["operations"][operation]["security"].as_array();
        let schemes = schemes.into_iter().flatten();
        let name = |scheme: &Value| {
            let path = scheme["$ref"].as_str().unwrap();
            path.trim_start_matches("#/components/securitySchemes/")
                .to_owned()
        };
        schemes.map(name).collect::<Vec<_>>()
    };
    let of_idp = ["idp.bearer", "idp.cookie.session", "idp.query.token"];
    let others = ["app.authorization", "app.cookie", "mesh", "ticket"];
    assert_eq!(
        security("events.orders.id"),
        [&of_idp[..], &others].concat()
    );
    assert_eq!(security("events"), ["signed.bearer"]);
    assert!(security("application").is_empty());
    let scheme = &content["components"]["securitySchemes"]["idp.bearer"];
    let url = "https://id.example.com/.well-known/openid-configuration";
    assert_eq!(
        (&scheme["type"], &scheme["openIdConnectUrl"]),
        (&json!("openIdConnect"), &json!(url))
    );
}

#[test]
fn arguments_name_the_servers_the_title_and_the_version() {
    let text = document(&[
        "--config",
        FIXTURE,
        "--format",
        "json",
        "--title",
        "Orders",
        "--api-version",
        "1.2.0",
        "--server",
        "https://events.example.com/live",
        "--server",
        "http://10.0.0.1:80",
    ]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["info"]["title"], "Orders");
    assert_eq!(document["info"]["version"], "1.2.0");
    let servers = document["servers"].as_object().unwrap();
    let names: Vec<&String> = servers.keys().collect();
    assert_eq!(names, ["http", "https", "ws", "wss"]);
    assert_eq!(servers["https"]["host"], "events.example.com");
    assert_eq!(servers["wss"]["pathname"], "/live");
    for server in ["events.example.com", "ftp://a", "https://a?b=c", "https://"] {
        let output = asyncapi(&["--config", FIXTURE, "--server", server]);
        assert_eq!(output.status.code(), Some(64), "{server}");
    }
    let output = asyncapi(&["--config", "tests/fixtures/config/wrong.yaml"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(output.stdout.is_empty());
}
