#!/usr/bin/env bash
# hide.sh COMMAND...: runs it where the system's own copies of what the bundle brings (headers, libraries to link with, mpirun,
# pkg-config, ninja) are not to be seen: in a mount namespace of its own, over a layer of /usr that goes with it. Libraries that
# the compiler and CMake themselves load stay. Needs the right to mount; fails without it.
set -euo pipefail
if [ "${WPO_HIDDEN:-}" != 1 ]; then
    exec env WPO_HIDDEN=1 unshare -m -- "$BASH" "$0" "$@"
fi
layer=$(mktemp -d)
mount -t tmpfs none "$layer"
mkdir "$layer/over" "$layer/work"
mount -t overlay overlay -o "lowerdir=/usr,upperdir=$layer/over,workdir=$layer/work" /usr
packages='^(libopenmpi|openmpi|libhdf5|hdf5|libjansson-dev|libyaml|libssl-dev|libdnnl|libpmix|libhwloc|libevent|pkgconf|pkg-config|ninja)'
dpkg-query -W -f '${binary:Package}\n' | grep -E "$packages" | xargs dpkg -L | sort -u | while read -r file; do
    case $file in /usr/share/* | /etc/*) continue ;; esac
    [ ! -f "$file" ] && [ ! -L "$file" ] || [[ $(realpath -m "$file") != /usr/* ]] || rm -f "$file"
done
for tool in mpicc mpirun pkg-config ninja; do
    found=$(PATH=/usr/local/bin:/usr/bin:/bin command -v "$tool" || true)
    [ -z "$found" ] || [ ! -e "$found" ] || { echo "hide.sh: $tool is still there" >&2; exit 1; }
done
exec "$@"
