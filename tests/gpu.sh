#!/usr/bin/env bash
# Builds, tests and measures on a machine with an NVIDIA GPU and the CUDA toolkit, with or without a network, within ten minutes,
# and writes one JSON: the device, versions, each test's outcome, each figure beside its roofline.
#
#     tests/gpu.sh                  into $OUT/, or benchmarks/results/gpu-<device>.json
#     tests/gpu.sh --without-gpu    all that needs no GPU: the bundle, a build from it with the system's own copies hidden, the
#                                   kernels' compilation, the emulated tests; no figures
#     --minutes N                   to stay within (10; without a GPU 60)   --out FILE
#
# Where Open MPI, HDF5 and the others are not installed they come from the bundle that cluster/offline-bundle.sh makes:
# WPO_BUNDLE names it (a file or an unpacked folder), else wpo-bundle.tar.xz in this tree or beside it. Tests that train
# read WPO_TEST_DATA. A failing or slow stage does not keep the others from running. Exit code 1: something failed.
set -euo pipefail
cd "$(dirname "$0")/.."

python=
for candidate in .venv/bin/python python3; do
    command -v "$candidate" >/dev/null && { python=$(command -v "$candidate"); break; }
done
[ -n "$python" ] || { echo "gpu.sh: python3 is needed" >&2; exit 1; }
command -v cmake >/dev/null || { echo "gpu.sh: cmake (3.24 or newer) is needed; it is not in the bundle" >&2; exit 1; }

has_libraries() {
    command -v mpicc >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists jansson yaml-0.1 libcrypto &&
        { pkg-config --exists hdf5-openmpi || pkg-config --exists hdf5-mpich || pkg-config --exists hdf5; } &&
        echo '#include <dnnl.h>' | cc -E - >/dev/null 2>&1
}

unpack() { # FILE: into build/bundle, unless that is what is there already
    local sum
    sum=$(sha256sum "$1" | cut -d' ' -f1)
    [ "$(cat build/bundle/unpacked 2>/dev/null)" != "$sum" ] || return 0
    rm -rf build/bundle
    mkdir -p build/bundle
    "$python" - "$1" build/bundle <<'END'
import sys, tarfile
with tarfile.open(sys.argv[1]) as file:
    file.extractall(sys.argv[2])
END
    echo "$sum" >build/bundle/unpacked
}

if [[ " $* " == *" --without-gpu "* ]]; then
    mkdir -p build
    export WPO_BUNDLE=${WPO_BUNDLE:-$PWD/build/wpo-bundle.tar.xz}
    [ -e "$WPO_BUNDLE" ] || ./cluster/offline-bundle.sh "$WPO_BUNDLE"
    if [ "${WPO_HIDDEN:-}" != 1 ]; then # from here on the system's own copies are not to be seen
        if tests/gpu/hide.sh true; then
            exec tests/gpu/hide.sh "$BASH" tests/gpu.sh "$@"
        fi
        echo "gpu.sh: mount namespaces are not allowed here: the system's own libraries stay visible"
    fi
fi
if [ -n "${WPO_BUNDLE:-}" ] || ! has_libraries; then
    bundle=${WPO_BUNDLE:-}
    for candidate in wpo-bundle.tar.xz ../wpo-bundle.tar.xz bundle build/bundle; do
        [ -n "$bundle" ] || { [ -e "$candidate" ] && bundle=$candidate; }
    done
    [ -n "$bundle" ] && [ -e "$bundle" ] || {
        echo "gpu.sh: Open MPI, HDF5, oneDNN, Jansson, libyaml or OpenSSL is not installed and there is no bundle;" >&2
        echo "        make wpo-bundle.tar.xz with cluster/offline-bundle.sh where they are, and put it here" >&2
        exit 1
    }
    if [ -d "$bundle" ]; then
        . "$bundle/env.sh"
    else
        unpack "$bundle"
        . build/bundle/env.sh
    fi
    echo "gpu.sh: libraries from $bundle"
fi
exec "$python" tests/gpu/drive.py "$@"
