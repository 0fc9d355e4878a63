#!/bin/sh
# Makes the image of deploy/Dockerfile from a program that is built already, with buildah and without
# a registry, and looks at what came out.
#
#   deploy/image.sh BINARY [NAME]
#
# COUNTERSIGN_IMAGE_MB is the most it may hold, in units of 1,000,000 bytes (40).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
binary=${1:?usage: deploy/image.sh BINARY [NAME]}
name=${2:-countersign}
most=${COUNTERSIGN_IMAGE_MB:-40}

if ! command -v buildah >/dev/null; then
    echo 'image: buildah is missing; install the Debian package buildah' >&2
    exit 1
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM

# The Dockerfile's last stage copies from the stage `build`; this directory stands in for it.
root=$scratch/build/root-of-image
mkdir "$scratch/build" "$scratch/empty"
sh "$here/image-root.sh" "$binary" "$root"

bytes=$(du --apparent-size -sb "$root" | cut -f1)
echo "image: $((bytes / 1000000)) MB in $(find "$root" -type f | wc -l) files" >&2
if [ "$bytes" -gt $((most * 1000000)) ]; then
    echo "image: more than $most MB" >&2
    exit 1
fi
if find "$root" -name 'sh' -o -name '*bash*' -o -name 'busybox' | grep -q .; then
    echo 'image: there is a shell in it' >&2
    exit 1
fi

# `chroot`: needs no more rights than a container that builds images usually has.
buildah build --quiet --isolation chroot --build-context "build=$scratch/build" \
    --file "$here/Dockerfile" --tag "$name" "$scratch/empty" >&2
user=$(buildah inspect --type image --format '{{.OCIv1.Config.User}}' "$name")
case $user in
'' | 0 | 0:* | *[!0-9:]*)
    echo "image: its user is '$user', not a number other than root's" >&2
    exit 1
    ;;
esac
echo "image: $name is made; it runs as user $user" >&2
