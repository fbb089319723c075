#!/usr/bin/env bash
# Known vulnerabilities in dependencies, by the RustSec database: scripts/advisories.sh [--if-reachable]
#
# --if-reachable: if the database is unreachable, prints one line and succeeds, for machines that reach only package
# registries.
# Without this option an unreachable database is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/tools.sh deny
deny=$(echo .tools/cargo-deny-*/bin/cargo-deny)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# 120 s: the database is some megabytes; at a firewall that drops packets, git would wait without end.
if ! timeout 120 "$deny" fetch db >"$log" 2>&1; then
    if [[ ${1:-} == --if-reachable ]]; then
        echo "advisories: NOT CHECKED, the database at https://github.com/RustSec/advisory-db cannot be fetched from here"
        exit 0
    fi
    cat "$log" >&2
    exit 69
fi
"$deny" --log-level error --workspace check --hide-inclusion-graph --show-stats advisories
