#!/usr/bin/env bash
# Builds the Dockerfile with buildah, without a Docker engine and without a registry.
#
#   build.sh IMAGE [TARGET]      for example build.sh localhost/usp-daemon:check
#
# The host's certificates and pip's own settings are mounted for the time of the build and are in no layer.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export CONTAINERS_CONF=${CONTAINERS_CONF:-$here/containers.conf}
image=${1:?name of the image}
target=${2:-cpu}
base=${BASE_IMAGE:-localhost/usp-base:$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
podman image exists "$base" || "$here/base_image.sh" "$base"

settings=$(mktemp)
trap 'rm -f "$settings"' EXIT
chmod 0644 "$settings"
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' > "$settings"
version=$(sed -nE 's/^__version__ = "(.*)"/\1/p' "$root/src/usp_daemon/__init__.py")
revision=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)
# --format docker keeps HEALTHCHECK
buildah bud --isolation chroot --format docker --pull-never --target "$target" \
    --volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro \
    --volume "$settings":/etc/pip.conf:ro \
    --build-arg BASE_IMAGE="$base" --build-arg VERSION="$version" --build-arg REVISION="$revision" \
    --tag "$image" "$root"
