#!/bin/sh
# Runs on the finished root file system (its path is $1), outside it. Removes what belongs to the machine that built it,
# and what would differ from one build to the next.
set -eu
root=$1

# mmdebstrap copies these two from the building machine; a container's engine mounts its own over them.
rm -f "$root/etc/hostname" "$root/etc/resolv.conf"

# There is no apt in the image: nothing may point at the folder the packages were installed from.
# (mmdebstrap's own cleaning is switched off: it expects the files that go here.)
rm -rf "$root/etc/apt" "$root/var/lib/apt" "$root/var/cache/apt"
rm -rf "$root/tmp/"* "$root/run/"*

# Logs, caches and backups carry times and orders. There are no passwords: no package here makes a shadow file.
rm -rf "$root/var/log/"* "$root/var/cache/ldconfig" "$root/var/cache/debconf/"*-old "$root/var/lib/dpkg/"*-old
rm -f "$root/etc/passwd-" "$root/etc/group-" "$root/etc/shadow-" "$root/etc/gshadow-" "$root/etc/subuid-" "$root/etc/subgid-"
rm -f "$root/etc/machine-id" "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"

# Python compiles what it imports on first use; those files hold times. Debian's own are made by its maintainer scripts.
find "$root/usr/lib/python3" "$root"/usr/lib/python3.* -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
