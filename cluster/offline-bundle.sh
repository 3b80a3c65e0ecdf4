#!/usr/bin/env bash
# cluster/offline-bundle.sh [FILE]      (default: wpo-bundle.tar.xz)
#
# Packs what wpo is built with (Open MPI, HDF5, oneDNN, Jansson, libyaml, OpenSSL's libcrypto: headers, shared libraries and all
# that these need) into one file for machines that have a compiler and CMake but neither packages nor a network: air-gapped
# clusters, bare GPU machines. Runs on a Debian or Ubuntu machine that can build wpo, as any user. There:
#
#     mkdir -p bundle && tar -xJf wpo-bundle.tar.xz -C bundle && . bundle/env.sh
#     cmake -S . -B build/release -DCMAKE_BUILD_TYPE=Release && cmake --build build/release
#
# The bundle works wherever it is unpacked: libraries find each other by their own place ($ORIGIN), so LD_LIBRARY_PATH
# stays alone and the machine's own programs keep their own libraries. Not inside: the C library (the machine's glibc must be as new as
# this one's), the compiler's libraries (libstdc++, libgcc_s, libgomp: they come with the compiler there), CMake (>= 3.24, large),
# CUDA and NCCL, the Python packages of `wpo prepare` (prepare data where there is a network). ninja and pkg-config are small and
# are inside, for machines without. Open MPI comes without the plugins for InfiniBand, UCX and Omni-Path: between nodes gradients
# travel over NCCL; where a cluster has its own MPI, build with that. manifest.txt lists packages, versions and sums.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-wpo-bundle.tar.xz}
limit_mib=60

say() { echo "offline-bundle: $*"; }
die() { echo "offline-bundle: $*" >&2; exit 1; }

for tool in pkg-config ompi_info ninja xz ldd; do
    command -v "$tool" >/dev/null || die "$tool is not there; ./launcher/setup installs what wpo is built with"
done
if ! command -v patchelf >/dev/null; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq patchelf >/dev/null 2>&1 ||
        die "patchelf is missing and cannot be installed from here: apt-get install patchelf"
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
b=$scratch/bundle
mkdir -p "$b"/{bin,bin-spare,lib/openmpi,lib/pkgconfig,include,share,etc,pmix/lib/pmix}
machine=$(gcc -print-multiarch)

mpi_path() { ompi_info --path "$1" --parsable | cut -d: -f3; }
header_folder() { pkg-config --variable=includedir "$1"; }
find_library() { # the file that the linker takes for -lNAME, given pkg-config's -L folders
    local name=$1 folder
    shift
    for folder in "$@" /usr/lib/"$machine" /usr/lib /lib/"$machine"; do
        [ -e "$folder/lib$name.so" ] && { readlink -f "$folder/lib$name.so"; return; }
    done
    die "lib$name.so is not there; ./launcher/setup installs what wpo is built with"
}

hdf5_module=
for module in hdf5-openmpi hdf5; do
    pkg-config --exists "$module" && { hdf5_module=$module; break; }
done
[ -n "$hdf5_module" ] || die "HDF5 is not there; ./launcher/setup installs it"
read -ra hdf5_folders <<<"$(pkg-config --libs-only-L "$hdf5_module" | sed 's/-L//g')"
mpi_lib=$(mpi_path libdir)

# -- headers -------------------------------------------------------------------------------------------------------
mkdir -p "$b"/include/{openmpi,hdf5,openssl,oneapi}
cp -L "$(mpi_path incdir)"/mpi{,-ext,_portable_platform}.h "$b/include/openmpi/"
cp -L "$(pkg-config --cflags-only-I "$hdf5_module" | tr ' ' '\n' | sed -n 's/^-I\(.*hdf5.*\)/\1/p' | head -n 1)"/*.h "$b/include/hdf5/"
cp -L "$(header_folder jansson)"/jansson*.h "$(header_folder yaml-0.1)"/yaml.h "$b/include/"
cp -L /usr/include/openssl/*.h "$b/include/openssl/"
[ ! -d "/usr/include/$machine/openssl" ] || cp -L "/usr/include/$machine"/openssl/*.h "$b/include/openssl/"
cp -L /usr/include/dnnl*.h "$b/include/"
cp -rL /usr/include/oneapi/dnnl "$b/include/oneapi/"
find "$b/include" -name '*.hpp' -delete

# -- libraries, and what they need ---------------------------------------------------------------------------------
sources=() # every file that goes in, for the manifest
take() {   # take FILE FOLDER [NAME]
    sources+=("$1")
    cp -L "$1" "$b/$2/${3:-$(basename "$1")}"
}

outside='^(linux-vdso|ld-linux|libc|libm|libdl|libpthread|librt|libutil|libresolv|libanl|libnsl|libmvec|libstdc\+\+|libgcc_s|libgomp)[.-]'
declare -A seen=()
take_needs() { # of FILE...; the loader's own answer, so that it is complete
    local soname path
    while read -r soname _ path _; do
        [[ $soname =~ $outside ]] && continue
        [ "$path" != not ] || die "$soname is needed and not found"
        [[ $path == /* ]] || continue
        [ -z "${seen[$soname]:-}" ] || continue
        seen[$soname]=1
        take "$path" lib "$soname"
    done < <(ldd "$@" | grep '=>' | sort -u)
}

declare -A linked=([mpi]=$(find_library mpi "$mpi_lib") [hdf5]=$(find_library hdf5 "${hdf5_folders[@]}")
    [jansson]=$(find_library jansson) [yaml]=$(find_library yaml) [crypto]=$(find_library crypto) [dnnl]=$(find_library dnnl))
for name in "${!linked[@]}"; do
    file=${linked[$name]}
    soname=$(patchelf --print-soname "$file")
    [ -n "${seen[$soname]:-}" ] || take "$file" lib "$soname"
    seen[$soname]=1
    ln -sf "$soname" "$b/lib/lib$name.so"
done
take_needs "${linked[@]}"

tools=(orterun orted ompi_info)
for tool in "${tools[@]}"; do
    take "$(readlink -f "$(command -v "$tool")")" bin "$tool"
done
ln -s orterun "$b/bin/mpirun"
ln -s orterun "$b/bin/mpiexec"
take_needs "${tools[@]/#//usr/bin/}"
fabric='lib(ucp|uct|fabric|psm|psm2|psm_infinipath|ibverbs|rdmacm|lustreapi|slurm)[._-]'
for plugin in "$(mpi_path pkglibdir)"/*.so; do
    [[ ! $(ldd "$plugin") =~ $fabric ]] || continue
    take "$plugin" lib/openmpi
    take_needs "$plugin"
done
cp -rL "$(mpi_path pkgdatadir)" "$b/share/openmpi"
rm -rf "$b"/share/openmpi/{amca-param-sets,java,doc}
[ ! -d /etc/openmpi ] || cp -rL /etc/openmpi "$b/etc/openmpi"
pmix=$(find "/usr/lib/$machine" -maxdepth 2 -type d -path '*/pmix*/lib' | head -n 1)
if [ -n "$pmix" ]; then
    for plugin in "$pmix"/pmix/*.so; do
        [ -e "$plugin" ] && [[ ! $(ldd "$plugin") =~ $fabric ]] || continue
        take "$plugin" pmix/lib/pmix
        take_needs "$plugin"
    done
    [ ! -d "$pmix/../share/pmix" ] || { mkdir -p "$b/pmix/share"; cp -rL "$pmix/../share/pmix" "$b/pmix/share/pmix"; }
fi
for tool in ninja pkgconf; do
    path=$(command -v "$tool" || true)
    [ -n "$path" ] || continue
    take "$(readlink -f "$path")" bin-spare "$tool"
    take_needs "$path"
done
[ ! -e "$b/bin-spare/pkgconf" ] || ln -s pkgconf "$b/bin-spare/pkg-config"

# Each file looks for the others beside itself.
find "$b/lib" -maxdepth 1 -type f -name '*.so*' -exec patchelf --set-rpath '$ORIGIN' {} +
find "$b/lib/openmpi" -type f -exec patchelf --set-rpath '$ORIGIN/..' {} +
find "$b/pmix/lib/pmix" -type f -exec patchelf --set-rpath '$ORIGIN/../../../lib' {} +
find "$b/bin" "$b/bin-spare" -type f -exec patchelf --set-rpath '$ORIGIN/../lib' {} +

# -- how it is used ------------------------------------------------------------------------------------------------
module() { # NAME VERSION CFLAGS LIBS
    printf 'prefix=${pcfiledir}/../..\nName: %s\nDescription: from the bundle of wpo\nVersion: %s\nCflags: %s\nLibs: -L${prefix}/lib %s\n' \
        "$1" "$2" "$3" "$4" >"$b/lib/pkgconfig/$1.pc"
}
module hdf5-openmpi "$(pkg-config --modversion "$hdf5_module")" '-I${prefix}/include/hdf5 -I${prefix}/include/openmpi' '-lhdf5 -lmpi'
module jansson "$(pkg-config --modversion jansson)" '-I${prefix}/include' -ljansson
module yaml-0.1 "$(pkg-config --modversion yaml-0.1)" '-I${prefix}/include' -lyaml
module libcrypto "$(pkg-config --modversion libcrypto)" '-I${prefix}/include' -lcrypto

cat >"$b/bin/mpicc" <<'END'
#!/bin/sh
# The compiler with Open MPI's header and library; answers what CMake asks of Open MPI's own wrapper.
here=$(cd "$(dirname "$0")/.." && pwd)
compile="-I$here/include/openmpi"
link="-L$here/lib -Wl,-rpath,$here/lib -lmpi"
case "$1" in
-showme:compile) echo "$compile" ;;
-showme:link) echo "$link" ;;
-showme:incdirs) echo "$here/include/openmpi" ;;
-showme:libdirs) echo "$here/lib" ;;
-showme:libs) echo mpi ;;
-showme:version) echo "mpicc: Open MPI VERSION (bundle of wpo)" ;;
-show | -showme) echo "${CC:-cc} $compile $link" ;;
*) exec "${CC:-cc}" $compile "$@" $link ;;
esac
END
sed -i "s/VERSION/$(ompi_info --parsable --version ompi full 2>/dev/null | sed -n 's/^ompi:version:full://p')/" "$b/bin/mpicc"
chmod +x "$b/bin/mpicc"

cat >"$b/env.sh" <<'END'
# Source this (bash, zsh, dash in the bundle's folder): builds and runs wpo with what stands beside this file.
if [ -n "${BASH_SOURCE:-}" ]; then bundle=$(cd "$(dirname "${BASH_SOURCE}")" && pwd)
elif [ -n "${ZSH_VERSION:-}" ]; then bundle=$(cd "$(dirname "$0")" && pwd)
else bundle=$(pwd); fi
export PATH="$bundle/bin:$PATH"
for tool in ninja pkg-config; do
    command -v "$tool" >/dev/null 2>&1 || { mkdir -p "$bundle/bin-used" && ln -sf "../bin-spare/$tool" "$bundle/bin-used/$tool" && PATH="$bundle/bin-used:$PATH"; }
done
export CMAKE_PREFIX_PATH="$bundle${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}"
export PKG_CONFIG_PATH="$bundle/lib/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
export LDFLAGS="-Wl,-rpath-link,$bundle/lib -Wl,-rpath,$bundle/lib${LDFLAGS:+ $LDFLAGS}"
export OPAL_PREFIX="$bundle" OPAL_LIBDIR="$bundle/lib" OPAL_PKGLIBDIR="$bundle/lib/openmpi" \
    OPAL_PKGDATADIR="$bundle/share/openmpi" OPAL_SYSCONFDIR="$bundle/etc/openmpi" PMIX_INSTALL_PREFIX="$bundle/pmix" \
    PMIX_PREFIX="$bundle/pmix" PMIX_LIBDIR="$bundle/pmix/lib" PMIX_PKGLIBDIR="$bundle/pmix/lib/pmix" PMIX_PKGDATADIR="$bundle/pmix/share/pmix"
export WPO_BUNDLE_ROOT="$bundle"
END

# -- what it is made of --------------------------------------------------------------------------------------------
{
    echo "made on: $(. /etc/os-release && echo "$PRETTY_NAME"), $(uname -m), glibc $(getconf GNU_LIBC_VERSION | cut -d' ' -f2), gcc $(gcc -dumpversion)"
    echo
    echo "packages:"
    for file in "${sources[@]}"; do
        dpkg -S "$(readlink -f "$file")" 2>/dev/null || dpkg -S "*/$(basename "$(readlink -f "$file")")" 2>/dev/null || echo "unknown: $file"
    done | sed 's/: .*//' | sort -u | while read -r package; do
        dpkg-query -W -f '  ${binary:Package} ${Version}\n' "$package" 2>/dev/null || echo "  $package"
    done
    echo
    echo "sha256:"
    (cd "$b" && find . -type f ! -name manifest.txt -print0 | sort -z | xargs -0 sha256sum)
} >"$scratch/manifest.txt"
mv "$scratch/manifest.txt" "$b/manifest.txt"
for package in openmpi-common libhdf5-openmpi-103-1 libdnnl2 libjansson4 libyaml-0-2 libssl3; do
    [ ! -f "/usr/share/doc/$package/copyright" ] || { mkdir -p "$b/share/licences" && cp -L "/usr/share/doc/$package/copyright" "$b/share/licences/$package"; }
done

tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$b" -cf - . | xz -T0 -6 >"$out.part"
mv "$out.part" "$out"
bytes=$(stat -c %s "$out")
say "$out: $((bytes >> 10)) KiB, $(du -sk "$b" | cut -f1) KiB unpacked, $(find "$b" -type f | wc -l) files"
[ "$bytes" -le $((limit_mib << 20)) ] || die "$out is larger than $limit_mib MiB"
