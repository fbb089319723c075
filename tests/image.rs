//! The files of the image, run as Kubernetes runs them: read-only, as an unprivileged user, PID 1.
//!
//! No image is built here: that needs a registry. The same script fills the folder, and the
//! kernel's own means take the place of a container runtime.

#![allow(clippy::unwrap_used)] // a failure is the result

use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::kubernetes::{file, root};
use testkit::nats::Nats;
use testkit::process::Process;
use testkit::wait::{DEADLINE, eventually};

const BINARY: &str = env!("CARGO_BIN_EXE_sidestream");

/// As a container runtime: a root of its own that cannot be written, `/run/sidestream` in memory,
/// no privileges.
const RUNTIME: &str = r#"
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -t tmpfs -o mode=1777,size=1m tmpfs "$1/run/sidestream"
mount -t proc proc "$1/proc"
mount -o remount,ro,bind "$1"
exec setpriv --no-new-privs chroot --userspec=65532:65532 --groups=65532 "$1" \
    /sidestream run --config /etc/sidestream/sidecar.yaml
"#;

/// Returns true if this user may create namespaces as a container runtime does.
fn may_unshare() -> bool {
    let mounts = "mount --make-rprivate / && mount -t proc proc /proc";
    let tried = Command::new("unshare")
        .args(["--fork", "--pid", "--mount", "sh", "-c", mounts])
        .output();
    tried.is_ok_and(|output| output.status.success())
}

/// The folder that the image is made of, with what Kubernetes mounts into it.
fn image(nats: &Nats) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let script = root().join("scripts/rootfs.sh");
    let output = Command::new(script)
        .arg(BINARY)
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let write = |path: &str, text: &str| std::fs::write(folder.path().join(path), text).unwrap();
    std::fs::create_dir(folder.path().join("proc")).unwrap();
    // A name, so that looking one up is tried as well.
    write("etc/hosts", "127.0.0.1 nats.example\n");
    let server = nats.url().replace("127.0.0.1", "nats.example");
    let text = format!(
        "listen: [{{ address: 127.0.0.1:0 }}]\nadmin: {{ address: 127.0.0.1:0 }}\nnats: {{ servers: [\"{server}\"] }}\n\
         drain: {{ accept_for: 0, spread: 0, timeout: 5s }}\n\
         routes: [{{ path: /events, sources: [{{ subjects: [\"a.>\"] }}] }}]\n"
    );
    write("etc/sidestream/sidecar.yaml", &text);
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[tokio::test]
async fn the_binary_runs_alone_read_only_unprivileged_and_ends_on_sigterm_as_pid_1() {
    if !may_unshare() {
        return eprintln!("this user may not make namespaces: not tried");
    }
    let nats = Nats::start().await;
    let image = image(&nats);
    let mut command = Command::new("unshare");
    command
        .args([
            "--fork",
            "--kill-child",
            "--pid",
            "--mount",
            "sh",
            "-c",
            RUNTIME,
            "sh",
        ])
        .arg(image.path());
    let mut process = Process::spawn("image", &mut command);
    let told = eventually(DEADLINE, "the admin listens", || async {
        let lines = process
            .lines()
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .collect::<Vec<_>>();
        lines
            .into_iter()
            .find(|line| line["message"] == "admin listening")
    })
    .await;
    assert_eq!(
        told["control"], "/run/sidestream/sidestream.sock",
        "in memory: nothing else can be written"
    );
    let url = format!("http://{}/health/ready", told["address"].as_str().unwrap());
    eventually(DEADLINE, "it is ready, with NATS found by name", || async {
        let mut curl = tokio::process::Command::new("curl");
        let output = curl
            .args(["--silent", "--fail", "--max-time", "5", &url])
            .output()
            .await;
        output.unwrap().status.success()
    })
    .await;

    let pid = child_of(process.pid());
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(field("Uid:"), "65532\t65532\t65532\t65532");
    assert_eq!(
        field("NSpid:").split_whitespace().last(),
        Some("1"),
        "it is PID 1"
    );
    assert_eq!(
        (&*field("CapEff:"), &*field("NoNewPrivs:")),
        ("0000000000000000", "1")
    );

    // As the kubelet runs a preStop hook: inside, without a shell, as the same user.
    let mut hook = tokio::process::Command::new("nsenter");
    hook.args([
        "--target",
        &pid.to_string(),
        "--mount",
        "--pid",
        "--root",
        "--setuid",
        "65532",
        "--setgid",
        "65532",
    ]);
    let drained = hook
        .args(["/sidestream", "drain", "--wait"])
        .output()
        .await
        .unwrap();
    assert_eq!(
        drained.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&drained.stderr)
    );
    assert!(
        process.exited().is_none(),
        "drained, and there until the signal"
    );
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert_eq!(
        process.wait_exit(DEADLINE).await.code(),
        Some(0),
        "as PID 1 it has only the handlers of its own"
    );
    let ended = |line: &String| line.contains("\"message\":\"exiting\"");
    assert!(
        process.lines().iter().any(ended),
        "drained, not killed: {:?}",
        process.lines()
    );
}

/// The only child of a process.
fn child_of(pid: u32) -> i32 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().unwrap()
}

/// Asserts that the build context has what the build needs, and the image what it starts.
#[test]
fn the_dockerfile_builds_from_the_repository_alone() {
    let dockerfile = file("Dockerfile");
    let ignored = file(".dockerignore");
    assert!(
        ignored.contains("\n!scripts/rootfs.sh\n"),
        "the script is sent"
    );
    // What `include_str!` and `include_bytes!` name outside of `src` is needed as well.
    for folder in ["web", "src", "crates", "benches"] {
        assert!(
            !ignored.lines().any(|line| line == folder),
            "{folder} is sent"
        );
    }
    // Nothing is pulled by a tag alone, the frontend included: `# syntax=` would name another
    // image.
    let pulled: Vec<_> = dockerfile
        .lines()
        .filter(|line| line.starts_with("FROM "))
        .collect();
    assert_eq!(
        pulled,
        [
            "FROM ${BUILD_IMAGE} AS source",
            "FROM source AS build-sidecar",
            "FROM source AS build-injector",
            "FROM scratch AS injector",
            "FROM scratch AS sidecar",
        ],
        "the last one is built by default"
    );
    assert!(
        dockerfile.contains("\nARG BUILD_IMAGE\nFROM ") && dockerfile.contains("in *@sha256:*)"),
        "no default"
    );
    assert!(!dockerfile.contains("# syntax="));
    let build = ["docs/kubernetes.md"].map(file).concat();
    assert!(
        build.contains("--build-arg BUILD_IMAGE=\"$base@$digest\""),
        "the documented command"
    );
    for (binary, name) in [
        ("sidestream-stripped", "sidestream"),
        ("injector-stripped", "sidestream-injector"),
    ] {
        let step = format!("scripts/rootfs.sh target/release/{binary} /rootfs {name}\n");
        assert!(dockerfile.contains(&step), "{step}");
        let entry = format!("ENTRYPOINT [\"/{name}\"]\n");
        assert!(dockerfile.contains(&entry), "{entry}");
    }
    assert_eq!(dockerfile.matches("USER 65532:65532\n").count(), 2);
    let version = format!(
        "org.opencontainers.image.version=\"{}\"",
        env!("CARGO_PKG_VERSION")
    );
    assert!(dockerfile.contains(&version), "{version}");
    assert!(
        dockerfile.contains("ENTRYPOINT [\"/sidestream\"]") && !dockerfile.contains("HEALTHCHECK ")
    );
}
