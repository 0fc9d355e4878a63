#!/bin/sh
# Lays out the files of the image: the program, stripped, with the libraries it needs, the machine's
# certificate authorities, and what the C library looks for.
#
#   deploy/image-root.sh BINARY DIRECTORY
#
# Needs ldd, strip and Debian's ca-certificates.
set -eu
binary=${1:?usage: deploy/image-root.sh BINARY DIRECTORY}
root=${2:?usage: deploy/image-root.sh BINARY DIRECTORY}
authorities=/etc/ssl/certs/ca-certificates.crt
# Any number but root's; the one that distroless images use, too.
user=65532

if [ -e "$root" ]; then
    echo "$root is there already" >&2
    exit 1
fi
umask 022
mkdir -p "$root/etc/ssl/certs" "$root/etc/countersign" "$root/tmp" "$root/var/lib/countersign"

cp "$binary" "$root/countersign"
strip "$root/countersign"
chmod 0755 "$root/countersign"

# `NAME => PATH (ADDRESS)`, and the loader's bare `PATH (ADDRESS)`; none for a static program.
ldd "$root/countersign" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) .*/\1/p' |
    while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done

cp -L "$authorities" "$root$authorities"
echo "root:x:0:0:root:/:/none
countersign:x:$user:$user:countersign:/:/none" >"$root/etc/passwd"
echo "root:x:0:
countersign:x:$user:" >"$root/etc/group"
# /etc/hosts first, which Kubernetes writes.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"

chmod 1777 "$root/tmp"
# Where it may write when no volume is mounted there.
if [ "$(id -u)" = 0 ]; then
    chown "$user:$user" "$root/var/lib/countersign"
fi
chmod 0750 "$root/var/lib/countersign"
