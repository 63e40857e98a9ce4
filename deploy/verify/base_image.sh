#!/usr/bin/env bash
# A local stand-in for the base image python:3.11-slim-bookworm, where no registry can be reached: Debian's minimal
# system with the CPython that runs this under /usr/local, as the official image has it.
#
#   base_image.sh IMAGE      for example base_image.sh localhost/usp-base:3.11
#
# Needs root, podman, buildah and mmdebstrap. The mirror is the one that apt uses here.
set -euo pipefail
image=${1:?name of the image}
version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
prefix=$(python3 -c 'import sys; print(sys.base_prefix)')
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null |
    sed -nE '/security/d; s/^URIs: *//p; s/^deb (\[[^]]*\] )?([^ ]+) .*/\2/p' | head -n 1 || true)
: "${mirror:?no mirror of Debian in the sources of apt}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

libraries=ca-certificates,libssl3,libffi8,libsqlite3-0,zlib1g,libbz2-1.0,liblzma5,libreadline8,libncursesw6
libraries+=,libuuid1,libexpat1,libnsl2,libtirpc3,netbase,tzdata
mmdebstrap -q --variant=minbase --include="$libraries" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --customize-hook='rm -f "$1"/etc/apt/sources.list "$1"/var/lib/apt/lists/*_*' \
    bookworm "$work/root.tar" "$mirror"
podman import -q "$work/root.tar" localhost/usp-base-libraries:latest >/dev/null

mkdir -p "$work/context/python"
tar -C "$prefix" -c --exclude=__pycache__ --exclude="lib/python$version/test" --exclude='*/config-3*' \
    --exclude='*/idlelib' --exclude='*/tkinter' --exclude='_tkinter*' --exclude="lib/python$version/site-packages/*" \
    --exclude='bin/pip*' --exclude='bin/2to3*' --exclude='bin/idle*' --exclude='bin/pydoc*' bin include lib |
    tar -x -C "$work/context/python"
cat > "$work/context/Dockerfile" <<END
FROM localhost/usp-base-libraries:latest
COPY python/ /usr/local/
RUN ldconfig && python$version -m ensurepip --upgrade --default-pip >/dev/null 2>&1 && ln -sf python3 /usr/local/bin/python \\
    && python3 -c "import ssl, sqlite3, ctypes, lzma, bz2, uuid, readline"
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
CMD ["python3"]
END
buildah bud -q --isolation chroot --format docker --squash --pull-never -t "$image" "$work/context" >/dev/null
podman images "$image"
