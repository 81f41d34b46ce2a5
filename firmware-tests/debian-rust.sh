# A Rust toolchain for foreign targets out of Debian's packages, for machines whose rustup has none of them. Sourced by the
# scripts that cross-build; they choose the folder.

# debian_rust DIR: unpacks the compiler and the sources of its standard library into DIR, once, beside nothing of the
# system's, and makes the cargo of this shell use it. With it goes `-Zbuild-std`, which builds the standard library of any
# target; that is also why one toolchain must do all of a build.
debian_rust() {
    local root=$1
    if [ ! -f "$root/ready" ]; then
        rm -rf "$root"
        mkdir -p "$root/deb"
        # The compiler's libraries carry its version in their names.
        local libraries
        libraries=$(apt-cache depends --recurse --no-{recommends,suggests,conflicts,breaks,replaces,enhances} rustc-web |
            grep -xE 'lib(std-rust|llvm)[a-z0-9.-]*')
        (cd "$root/deb" && apt-get -q download rustc-web rust-web-src $libraries >&2)
        for package in "$root"/deb/*.deb; do dpkg -x "$package" "$root"; done
        # The driver and LLVM must be found beside the compiler; cargo comes from rustup, since Debian's lacks a library here.
        (cd "$root/usr/lib" && ln -sf *-linux-gnu/librustc_driver-*.so *-linux-gnu/libLLVM.so.* .)
        ln -sf "$(rustup which --toolchain stable cargo)" "$root/usr/bin/cargo"
        rm -rf "$root/deb"
        touch "$root/ready"
    fi
    export RUSTUP_TOOLCHAIN=$root/usr RUSTC_BOOTSTRAP=1
}
