#!/usr/bin/env bash
# Builds Lichen for machines other than this one. What it prints on its standard output are the programs it built.
#
#   firmware-tests/targets.sh            prepares all of the below and runs their tests, in emulators
#   firmware-tests/targets.sh aarch64    lichen-agent for 64-bit ARM Linux, without a compiler in it
#   firmware-tests/targets.sh cortex-m   the images for a Cortex-M4F
#
# A target that rustup has (`rustup target add aarch64-unknown-linux-gnu`, `thumbv7em-none-eabihf`) is used. Otherwise the
# compiler comes out of Debian's packages, unpacked below the target folder. Linkers and emulators are Debian's:
#   apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user qemu-system-arm
set -euo pipefail
cd "$(dirname "$0")/.."
. firmware-tests/debian-rust.sh
cross=${CARGO_TARGET_DIR:-target}/cross
mkdir -p "$cross"
cross=$(realpath "$cross")

# toolchain TARGET STD-CRATES: what this cargo needs to build for a target.
build_std=()
toolchain() {
    build_std=()
    if ! rustup target list --installed 2>/dev/null | grep -qx "$1"; then
        debian_rust "$cross/toolchain"
        build_std=("-Zbuild-std=$2")
    fi
}

aarch64() (
    target=aarch64-unknown-linux-gnu
    # A setting that unites the features of the whole workspace would give the agent a compiler.
    unset CARGO_RESOLVER_FEATURE_UNIFICATION
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    toolchain $target std,panic_unwind
    # Built to be tried once: optimising it would take longer than all that an emulator runs of it.
    cargo build --locked -p lichen-agent --target $target --target-dir "$cross/aarch64" ${build_std[@]+"${build_std[@]}"} \
        --config profile.dev.debug=false --config 'profile.dev.package."*".opt-level=0' >&2
    echo "$cross/aarch64/$target/debug/lichen-agent"
)

cortex_m() (
    target=thumbv7em-none-eabihf
    linker=$(find "$(rustc --print sysroot)" -name rust-lld | head -n1)
    export CARGO_TARGET_THUMBV7EM_NONE_EABIHF_LINKER=$linker
    toolchain $target core,alloc
    cd firmware-tests/firmware
    for image in "golden --bin golden" "sessions --bin sessions --features heap"; do
        read -ra arguments <<<"$image"
        cargo build --locked --release --target $target --target-dir "$cross/cortex-m" "${arguments[@]:1}" ${build_std[@]+"${build_std[@]}"} >&2
        echo "$cross/cortex-m/$target/release/${arguments[0]}"
    done
)

# prepare NAME: one at a time, since all share the toolchain.
prepare() {
    exec 9>"$cross/lock"
    flock 9
    "$1"
    exec 9>&-
}

case ${1:-} in
aarch64) prepare aarch64 ;;
cortex-m) prepare cortex_m ;;
"")
    prepare aarch64
    prepare cortex_m
    LICHEN_TARGETS=true cargo test -p lichen-firmware-tests -p lichen --test targets -- --nocapture
    ;;
*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
