#!/bin/sh
# Makes the four shared objects of this folder anew, with Debian's own hipcc in a chroot of pinned packages.
#
#   make_fixture.sh OUT [MIRROR]
#
# Needs root, mmdebstrap and unshare; leaves nothing but OUT. Without MIRROR it takes the one that this machine's apt
# uses for Debian. The same packages give the same bytes: compare with README.md.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: make_fixture.sh OUT [MIRROR]}
mirror=${2:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | sort -u | head -n 1)}
[ -n "$mirror" ] || { echo "make_fixture.sh: this machine's apt knows no Debian mirror; name one" >&2; exit 2; }

# The first suite whose clang knows gfx950 (LLVM 20 or newer) and has a hipcc beside it. These packages decide the bytes.
suite=forky
packages="
    hipcc=7.0.2+dfsg-3 clang-21=1:21.1.8-13 clang-tools-21=1:21.1.8-13 lld-21=1:21.1.8-13 llvm-21=1:21.1.8-13
    rocm-device-libs-21=7.0.2+dfsg-3 libamdhip64-dev=6.4.3-5 libamdhip64-6=6.4.3-5
    libstdc++-16-dev=16.2.0-3 libgcc-16-dev=16.2.0-3 libc6-dev=2.43-7 binutils=2.47.50.20261021-1
"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$work"
root=$work/root

# Pinned versions come from an archive of that day, whose Release file may have expired; its signature still counts.
TMPDIR=$work mmdebstrap --quiet --variant=minbase --include="$(echo $packages | tr ' ' ',')" \
    --aptopt='Acquire::Check-Valid-Until "false"' "$suite" "$root" "$mirror"

mkdir -p "$root/build"
cp "$here/kernel.hip" "$root/build/"
cat > "$root/build/build.sh" <<'BUILD'
set -eu
cd /build
export SOURCE_DATE_EPOCH=0 LC_ALL=C TZ=UTC
# An environment variable of the caller would add or change the compression.
unset OFFLOAD_BUNDLER_COMPRESS OFFLOAD_BUNDLER_COMPRESSION_LEVEL COMPRESSED_BUNDLE_FORMAT_VERSION || true
# A build id made from the content says the same on every run; -s drops symbols that hold names of temporary files.
link="-shared -Wl,--build-id=sha1 -Wl,-s"
plain="-O2 -fPIC -fvisibility=hidden -ffile-prefix-map=/build=."

hip() { # OUTPUT OPTION...
    output=$1
    shift
    hipcc $plain -fuse-cuid=none $link "$@" -x hip kernel.hip -o "$output"
}
hip module_both.so --offload-arch=gfx942 --offload-arch=gfx950 --no-offload-compress
hip module_gfx942.so --offload-arch=gfx942 --no-offload-compress
hip module_compressed.so --offload-arch=gfx942 --offload-arch=gfx950 --offload-compress

clang-21 $plain $link -Wl,-soname,libhost_only.so.1 -Wl,-rpath,'$ORIGIN/../lib/torch' -x c - -o host_only.so <<'C'
__attribute__((visibility("default"))) int kiln_answer(void) { return 42; }
C
BUILD
# hipcc asks /proc where it is; a mount namespace of its own leaves no mount behind.
unshare --mount --pid --fork --kill-child --root="$root" --mount-proc sh /build/build.sh

mkdir -p "$out"
for name in module_both module_gfx942 module_compressed host_only; do
    install -m 644 "$root/build/$name.so" "$out/$name.so"
done
# In the words of README.md, for its two lists.
chroot "$root" dpkg-query -W $(for package in $packages; do echo "${package%%=*}"; done)
cd "$out" && sha256sum host_only.so module_both.so module_compressed.so module_gfx942.so
