#!/usr/bin/env bash
# Builds with a sanitizer, in a folder of its own, and runs what its faults would show in: `make asan`, `make tsan`.
# The interpreter is not instrumented, so the sanitizer's library is loaded before it. Needs GCC and an environment in which
# the tests run.
set -euo pipefail
cd "$(dirname "$0")/../.."

kind=$1
case $kind in
  asan) sanitizer=address library=libasan.so programs="compare_isas stress_threads" ;;
  tsan) sanitizer=thread library=libtsan.so programs=stress_threads ;;
  *) echo "usage: $0 asan|tsan" >&2 && exit 2 ;;
esac
build=build/$kind
package=$build/src
settings=(-G Ninja -DIVLITE_SANITIZE=$sanitizer -DCMAKE_CXX_COMPILER=g++ -DCMAKE_BUILD_TYPE=RelWithDebInfo
          "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1")

cmake -S . -B "$build/programs" "${settings[@]}" -DIVLITE_COMPARE=ON
cmake --build "$build/programs" --target $programs
cmake -S . -B "$build/module" "${settings[@]}" -DPython_EXECUTABLE="$(command -v python)" \
  -Dpybind11_DIR="$(python -c 'import pybind11; print(pybind11.get_cmake_dir())')"
cmake --build "$build/module"
rm -rf "$package" && mkdir -p "$package"
cp -r src/ivlite "$package/ivlite" && rm -f "$package"/ivlite/*.so
cmake --install "$build/module" --prefix "$package/ivlite"

# C++ exceptions of extension modules need libstdc++ beside the sanitizer's library.
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TSAN_OPTIONS=halt_on_error=1:exitcode=66:suppressions=$PWD/tests/tools/tsan.supp
under() {
  setarch "$(uname -m)" -R env PYTHONPATH="$PWD/$package" PYTHONMALLOC=malloc \
    LD_PRELOAD="$(g++ -print-file-name=$library) $(g++ -print-file-name=libstdc++.so.6)" "$@"
}

for program in $programs; do
  setarch "$(uname -m)" -R "$build/programs/$program"
done
if [ "$kind" = asan ]; then
  under python -m pytest -q -p no:cacheprovider tests/kernels -k \
    "refused or misuse or cannot or rows_come_back or truncate or one_operation or segments or rope or norms or patchify"
  under python -m pytest -q -p no:cacheprovider tests/test_formats.py tests/test_gguf.py tests/test_bad_models.py tests/test_loading.py \
    tests/test_media.py tests/test_media_faults.py tests/test_images.py tests/test_large_images.py tests/test_ops.py tests/test_fuzz.py -k "not less_memory"  # the sanitizer's own counts
fi
under python tests/tools/stress.py
