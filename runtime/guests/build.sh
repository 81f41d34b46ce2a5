#!/usr/bin/env bash
# Rebuilds every guest component: runtime/guests/<name>/ -> runtime/guests/<name>.wasm
#
#   runtime/guests/build.sh            build what changed
#   runtime/guests/build.sh --force    build all
#   runtime/guests/build.sh --check    build nothing; fail if a committed component does not belong to its sources
#
# With rustup: `rustup target add wasm32-wasip2` and run this. Where rustup cannot fetch a target, Debian's compiler,
# the sources of its standard library and its wasi-libc are unpacked (not installed) into a cache folder and used instead:
# LICHEN_GUEST_CACHE, by default ${XDG_CACHE_HOME:-~/.cache}/lichen-guests.
#
# Each component carries a custom section, `lichen:source`, with the SHA-256 of what it was built from; a test compares it.
set -euo pipefail
cd "$(dirname "$0")"
. ../../firmware-tests/debian-rust.sh
guests_dir=$PWD
cache=${LICHEN_GUEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lichen-guests}
target=wasm32-wasip2
mode=${1:-}

# What a component is built from, in one fixed order. The same list is in runtime/tests/guests.rs.
source_hash() {
    { find "$1/src" ../../wit -type f '(' -name '*.rs' -o -name '*.wit' ')' | LC_ALL=C sort; printf '%s\n' "$1/Cargo.toml" Cargo.toml Cargo.lock; } |
        while read -r file; do sha256sum <"$file"; done | sha256sum | cut -d' ' -f1
}

committed_hash() {
    [ -f "$1.wasm" ] && LC_ALL=C grep -aoE 'lichen:source[0-9a-f]{64}' "$1.wasm" | tail -n1 | cut -c14- || true
}

# A custom section is: id 0, length, name length, name, bytes. Both lengths here are below 128, so each is one byte.
append_section() {
    printf '\x00\x4e\x0dlichen:source%s' "$2" >>"$1"
}

# Debian's toolchain, and the C library that its standard library stands on.
debian_toolchain() {
    debian_rust "$cache/debian-rust"
    local root=$cache/wasi-libc
    if [ ! -d "$root/usr" ]; then
        rm -rf "$root" && mkdir -p "$root"/{lists/partial,cache/archives/partial,etc}
        # Only sid's wasi-libc has wasm32-wasip2. Its index comes from the system's own mirror and is read with a
        # state of its own; the system's is untouched.
        local mirror
        mirror=$(apt-get indextargets --format '$(SITE)' 'Identifier: Packages' | awk '/\/debian\/*$/ && !seen++')
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$root/etc/sources.list"
        local sid=(-o Dir::Etc::sourcelist="$root/etc/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$root/lists"
            -o Dir::Cache="$root/cache" -o APT::Sandbox::User=root)
        apt-get -q "${sid[@]}" update
        (cd "$root" && apt-get -q "${sid[@]}" download wasi-libc)
        dpkg -x "$root"/*.deb "$root"
    fi
    local tools
    tools=$(rustc +stable --print sysroot)/lib/rustlib/x86_64-unknown-linux-gnu/bin
    libc_dir=$(dirname "$(find "$root/usr" -path "*$target*/libc.a" | head -n1)")
    export PATH=$tools/gcc-ld:$tools:$PATH CARGO_TARGET_WASM32_WASIP2_LINKER=$tools/wasm-component-ld
    remap+=("--remap-path-prefix=$cache/debian-rust=/toolchain")
    extra_args=(-Zbuild-std=std,panic_abort)
}

guests=()
for manifest in */Cargo.toml; do guests+=("$(dirname "$manifest")"); done

if [ "$mode" = --check ]; then
    failed=0
    for guest in "${guests[@]}"; do
        [ "$(committed_hash "$guest")" = "$(source_hash "$guest")" ] || { echo "$guest.wasm does not belong to its sources: run runtime/guests/build.sh" >&2; failed=1; }
    done
    exit "$failed"
fi

remap=("--remap-path-prefix=$guests_dir=/guests" "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" "--remap-path-prefix=$(rustc --print sysroot)=/toolchain")
extra_args=()
libc_dir=
if ! rustup target list --installed 2>/dev/null | grep -qx "$target"; then
    debian_toolchain
fi
export CARGO_TARGET_DIR=$cache/target

for guest in "${guests[@]}"; do
    hash=$(source_hash "$guest")
    if [ "$mode" != --force ] && [ "$(committed_hash "$guest")" = "$hash" ]; then
        echo "$guest.wasm is current"
        continue
    fi
    flags=("${remap[@]}")
    if [ -n "$libc_dir" ]; then
        flags+=(-C link-self-contained=no -L "native=$libc_dir")
        # A command starts in crt1; a library (a reactor component) must be linked without it.
        grep -q '^crate-type' "$guest/Cargo.toml" || flags+=(-C "link-arg=$libc_dir/crt1-command.o")
    fi
    RUSTFLAGS="${flags[*]}" cargo build -q --locked --release --target "$target" -p "guest-$guest" ${extra_args[@]+"${extra_args[@]}"}
    built=$CARGO_TARGET_DIR/$target/release
    file=$built/guest_${guest//-/_}.wasm
    cp "$file" "$guest.wasm.new"
    append_section "$guest.wasm.new" "$hash"
    mv "$guest.wasm.new" "$guest.wasm"
    echo "$guest.wasm: $(stat -c %s "$guest.wasm") bytes"
done
