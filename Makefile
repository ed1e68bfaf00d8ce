# The developer's loop. `pip install --no-build-isolation -e .` once, then these.

BUILD := build/cmake-$(shell python -c "import sys; print(sys.implementation.cache_tag)")

# rebuild the compiled module after a change in csrc/ or bindings/
all:
	cmake --build $(BUILD) && cmake --install $(BUILD) --prefix src/ivlite

# what .ci/run checks, in the present environment
test: all
	pytest -q

# checkers: ruff, clang-format, spelling, white space, large files, mypy
check:
	pre-commit run --all-files

# bytes and messages that no reader may fall over, SECONDS in all; then the block formats (needs Clang)
SECONDS ?= 60
fuzz:
	python tests/fuzz/run.py --seconds $(SECONDS)
fuzz-blocks:
	cmake -S . -B build/fuzz-blocks -G Ninja -DIVLITE_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=RelWithDebInfo
	cmake --build build/fuzz-blocks
	mkdir -p build/fuzz/blocks && build/fuzz-blocks/fuzz_blocks -max_total_time=$(SECONDS) -max_len=8192 build/fuzz/blocks

# under AddressSanitizer and UBSan; under ThreadSanitizer: built in folders of their own, some minutes each
asan tsan:
	tests/tools/sanitize.sh $@

# with exactly the oldest versions of other packages that pyproject.toml allows
floors:
	tests/tools/floors.sh

# a wheel from the source distribution, installed where there is no compiler; cross-compiled for ARM and run under emulation
wheel:
	python tests/tools/wheel.py
wheel-arm:
	python tests/tools/wheel.py aarch64

# the ARM kernels against the plain ones, cross-compiled and emulated: Debian's g++-aarch64-linux-gnu and qemu-user
test-arm:
	cmake -S . -B build/arm -DIVLITE_COMPARE=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static
	cmake --build build/arm
	qemu-aarch64 -cpu max build/arm/compare_isas

# every kernel: bytes and operations per second, and its distance from the reference
bench: all
	python benchmarks/bench_kernels.py

# decode and prefill of the real shape, random weights, beside what this machine can do
bench-model: all
	python -m ivlite bench --random 8b --type q4_0

# one manner of writing
format:
	ruff format . && ruff check --fix .
	clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

.PHONY: all test check fuzz fuzz-blocks asan tsan floors wheel wheel-arm test-arm bench bench-model format
