#!/usr/bin/env bash
# Compares the speed of the working tree with that of a commit: scripts/bench-guard.sh [COMMIT [OPTION...]]
#
# COMMIT defaults to HEAD while the working tree has changes, and otherwise to the merge base with main; on main
# itself it is the commit before HEAD. OPTIONs go to `cargo bench --bench load -- guard`.
#
# The binary of a commit is kept in target/guard/bin/, so that only the first comparison with it builds it. Commits
# are built in target/guard/src/ with one target folder for all of them: dependencies are built once.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
guard=$target/guard

say() { printf '%s\n' "bench-guard: $*" >&2; }

# Prints the commit to compare with when none is named.
default_base() {
    local head main base
    head=$(git rev-parse HEAD)
    if [[ -n $(git status --porcelain) ]]; then
        echo "$head"
        return
    fi
    main=$(git rev-parse --verify --quiet main || git rev-parse --verify --quiet origin/main || echo "$head")
    base=$(git merge-base HEAD "$main")
    [[ $base != "$head" ]] || base=$(git rev-parse HEAD^)
    echo "$base"
}

# Builds the commit unless that was done before, and prints the path of its binary.
build_commit() {
    local commit=$1 binary=$guard/bin/sidestream-$1
    if [[ ! -x $binary ]]; then
        say "building $(git log -1 --format='%h %s' "$commit")"
        mkdir -p "$guard/src" "$guard/bin"
        # An index of its own: writes only files that differ, and registers no worktree.
        GIT_INDEX_FILE=$guard/index git --work-tree="$guard/src" read-tree --reset -u "$commit"
        # Without this line cargo would take the manifest above this folder for its workspace.
        grep -q '^\[workspace' "$guard/src/Cargo.toml" || printf '\n[workspace]\n' >>"$guard/src/Cargo.toml"
        (cd "$guard/src" && CARGO_TARGET_DIR=$guard/target "$cargo" build --release --quiet --locked --bin sidestream) >&2
        cp "$guard/target/release/sidestream" "$binary"
    fi
    echo "$binary"
}

commit=${1:-}
(($# == 0)) || shift
commit=$(git rev-parse --verify --end-of-options "${commit:-$(default_base)}^{commit}")
say "base: $(git log -1 --format='%h %s' "$commit")"
base=$(build_commit "$commit")
say "tree: $(git describe --always --dirty --exclude='*')"
"$cargo" build --release --quiet --locked
exec "$cargo" bench --quiet --locked --bench load -- guard --base "$base" --tree "$target/release/sidestream" "$@"
