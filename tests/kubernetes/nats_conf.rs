//! Every nats-server configuration in the repository: in ConfigMaps and in the documentation, read by both nats-servers.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::kubernetes::{self, file, root};
use testkit::process::Process;
use testkit::wait::{DEADLINE, eventually};

/// The newest nats-server of `scripts/tools.sh`, and the oldest supported.
const VERSIONS: [&str; 2] = ["2.15.1", "2.10.26"];

/// First words of a block of nats-server configuration; such a block is checked even without the mark `nats`.
const BEGINNINGS: [&str; 6] = [
    "accounts",
    "authorization",
    "jetstream",
    "lame_duck",
    "permissions",
    "server_name",
];

/// Folders that are not part of the documentation.
const NOT_OURS: [&str; 4] = [".git", ".tools", "node_modules", "target"];

fn server(version: &str) -> PathBuf {
    root().join(format!(".tools/nats-{version}/bin/nats-server"))
}

/// `nats.conf` of every ConfigMap below `k8s/`, the chart's files included: path and text.
fn in_manifests() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in files(&root().join("k8s"), "yaml") {
        // Templates of the chart are no YAML; the files that they include are.
        if path.contains("/chart/templates/") {
            continue;
        }
        for document in kubernetes::read(&[file(&path)]).remove(0) {
            let data = document["data"].as_object().into_iter().flatten();
            let texts = data.filter(|(key, _)| key.starts_with("nats") && key.ends_with(".conf"));
            found.extend(texts.map(|(_, text)| (path.clone(), text.as_str().unwrap().to_owned())));
        }
    }
    found
}

/// Fenced blocks of nats-server configuration in every Markdown file: path with line, and text.
fn in_documentation() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in files(root(), "md") {
        let text = file(&path);
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let Some(mark) = line.trim_start().strip_prefix("```") else {
                continue;
            };
            let block: Vec<&str> = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| !line.trim_start().starts_with("```"))
                .collect();
            let first = block.first().map_or("", |line| line.trim_start());
            if mark == "nats" || BEGINNINGS.iter().any(|word| first.starts_with(word)) {
                found.push((
                    format!("{path}:{}", number + 1),
                    complete(&block.join("\n")),
                ));
            }
        }
    }
    found
}

/// Permissions belong to a user.
fn complete(block: &str) -> String {
    match block.trim_start().starts_with("permissions") {
        true => format!("authorization {{ users: [{{ user: one, password: two\n{block}\n}}] }}\n"),
        false => block.to_owned(),
    }
}

/// Files of the repository with this extension, as paths from its root.
fn files(folder: &Path, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !path.is_symlink() {
            if !NOT_OURS.contains(&name) {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(
                path.strip_prefix(root())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
            );
        }
    }
    found.sort();
    found
}

#[test]
fn every_nats_configuration_in_the_repository_is_valid() {
    let (manifests, documentation) = (in_manifests(), in_documentation());
    assert!(
        manifests.len() >= 2,
        "the example and the chart have one each: {manifests:?}"
    );
    assert!(
        !documentation.is_empty(),
        "docs/nats-permissions.md has the least permissions"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nats.conf");
    let mut wrong = Vec::new();
    for (place, text) in manifests.iter().chain(&documentation) {
        std::fs::write(&path, text).unwrap();
        for version in VERSIONS {
            let mut command = Command::new(server(version));
            let output = command
                .arg("-t")
                .arg("-c")
                .arg(&path)
                .env("POD_NAME", "nats-0")
                .output()
                .unwrap();
            if !output.status.success() {
                wrong.push(format!(
                    "{place}, nats-server {version}: {}",
                    String::from_utf8_lossy(&output.stderr)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// With the file system of the pod: ports that are free here and folders of its own are all that differs.
#[tokio::test]
async fn the_nats_server_of_the_example_starts_and_ends_in_lame_duck_mode() {
    let text = &in_manifests().remove(0).1;
    let folder = tempfile::tempdir().unwrap();
    let own = |text: &str, of_pod: &str, own: &str| {
        assert!(text.contains(of_pod), "{of_pod} in {text}");
        text.replace(of_pod, own)
    };
    let within = |name: &str| folder.path().join(name).display().to_string();
    let mut text = own(text, "\nport: 4222", "\nport: -1");
    text = own(&text, "http_port: 8222", "http_port: -1");
    text = own(
        &text,
        "store_dir: /data",
        &format!("store_dir: \"{}\"", within("data")),
    );
    text = own(&text, "/var/run/nats/nats.pid", &within("nats.pid"));
    let path = folder.path().join("nats.conf");
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new(server(VERSIONS[0]));
    command.arg("-c").arg(&path).env("POD_NAME", "nats-0");
    let mut process = Process::spawn("nats-server", &mut command);
    let said = |process: &Process, sentence: &str| {
        process.lines().iter().any(|line| line.contains(sentence))
    };
    eventually(DEADLINE, "nats-server is ready", || async {
        said(&process, "Server is ready")
    })
    .await;
    // The preStop hook of the pod.
    let stop = Command::new(server(VERSIONS[0]))
        .args(["-sl", &format!("ldm={}", within("nats.pid"))])
        .output()
        .unwrap();
    assert!(
        stop.status.success(),
        "{}",
        String::from_utf8_lossy(&stop.stderr)
    );
    eventually(DEADLINE, "it enters lame duck mode", || async {
        said(&process, "Entering lame duck mode")
    })
    .await;
    process.kill9();
}

/// The kubelet does not cut the lame duck mode short.
#[test]
fn the_pod_of_nats_has_time_for_its_lame_duck_mode() {
    for path in ["k8s/example/nats.yaml", "k8s/chart/files/example/nats.yaml"] {
        let documents = kubernetes::read(&[file(path)]).remove(0);
        let find = |kind: &str| {
            documents
                .iter()
                .find(|document| document["kind"] == kind)
                .unwrap()
        };
        let conf = find("ConfigMap")["data"]["nats.conf"].as_str().unwrap();
        let seconds = |key: &str| -> u64 {
            let line = conf
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap();
            line.trim_start_matches([':', ' '])
                .trim_end_matches('s')
                .parse()
                .unwrap()
        };
        let pod = &find("StatefulSet")["spec"]["template"]["spec"];
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(
            grace > seconds("lame_duck_duration") + 5,
            "{path}: {grace} s"
        );
        assert!(
            seconds("lame_duck_grace_period") < seconds("lame_duck_duration"),
            "{path}"
        );
        let hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"].to_string();
        assert!(
            hook.contains("ldm=/var/run/nats/nats.pid"),
            "{path}: {hook}"
        );
    }
}
