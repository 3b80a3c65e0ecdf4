#!/usr/bin/env bash
# The unchanged kernels/cuda/gemm.cu on the CPU, under AddressSanitizer and UBSan, over a stand-in for cuBLASLt (tests/cuda/lt/) that
# multiplies matrices by columns, as the library does, and checks what it is promised. Then with faults planted in copies of the
# file, each of which must be found. No CUDA is needed.
set -euo pipefail
source=${WPO_SOURCE:-$(cd "$(dirname "$0")/../.." && pwd)}
command -v g++ >/dev/null || { echo "skipped: there is no g++"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
export ASAN_OPTIONS=detect_leaks=0
flags=(-std=c++17 -O1 -g -fno-strict-aliasing -Wall -Wextra -Wno-unknown-pragmas -D_GNU_SOURCE -fsanitize=address,undefined
       -fno-sanitize-recover=all -I"$source/tests/cuda/lt" -I"$source/tests/cuda_on_cpu" -I"$source")

objects=()
for file in "$source"/tests/cuda/lt/*.cpp "$source"/tests/cuda_on_cpu/{threads,fibers,shared,runtime,ptx}_on_cpu.cpp; do
    g++ "${flags[@]}" -c "$file" &
    objects+=("$(basename "${file%.cpp}").o")
done
gcc -std=c17 -O1 -g -D_GNU_SOURCE -I"$source" -c "$source/kernels/require.c"
for job in $(jobs -p); do wait "$job"; done

build() { # FILE PROGRAM
    g++ "${flags[@]}" -x c++ -c "$1" -o "$2.o" && g++ -fsanitize=address,undefined "$2.o" "${objects[@]}" require.o -lpthread -o "$2"
}

status=0
build "$source/kernels/cuda/gemm.cu" calls
./calls || status=1

says() { # ARGUMENT WORDS...: it must end with a sentence that holds the words
    local argument=$1 text
    shift
    if text=$(./calls "$argument" 2>&1); then
        echo "FAIL  '$argument' did not end the program"
        status=1
    fi
    for word in "$@"; do
        [[ $text == *"$word"* ]] || { echo "FAIL  '$argument' says nothing of '$word': $text"; status=1; }
    done
}
says none 'c [3,4]' 'over 5 terms' NOT_SUPPORTED 'choice of an algorithm'
says queue 'compute queue'
says narrow 'f32 matrices into bf16'

planted=0
plant() { # WHAT PATTERN REPLACEMENT
    planted=$((planted + 1))
    sed "s/$2/$3/" "$source/kernels/cuda/gemm.cu" >planted.cu
    if cmp -s planted.cu "$source/kernels/cuda/gemm.cu"; then
        echo "FAIL  the planted fault '$1' changes nothing: gemm.cu reads differently now"
        status=1
    elif build planted.cu planted && ./planted >/dev/null 2>&1; then
        echo "FAIL  the planted fault was not found: $1"
        status=1
    fi
}
plant 'a is transposed where b should be' 'first = key->transpose_b ?' 'first = key->transpose_a ?'
plant 'the alignment is not looked at' 'key.b_align = alignment_of(b.data)' 'key.b_align = 128'
plant 'the key forgets a stride' 'key.c_stride = c.stride' 'key.c_stride = c.cols'
plant 'added where it should be written' 'beta = accumulate ? 1 : 0' 'beta = 1'
plant 'the parts of a sum are rounded' 'schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE' 'schemes = 7'
plant 'an unusable algorithm is taken' 'found\[i\].state != CUBLAS_STATUS_SUCCESS' 'false'
plant 'every call chooses anew' 'memcmp(&plan->key, key, sizeof \*key) == 0' 'false'
echo "$planted planted faults"
exit $status
