# The CUDA kernels, where IVLITE_CUDA asks for them: `cuda_kernels` names their library, or is empty. `without` begins the names of
# the bindings that the build leaves out.
#
# The runtime is linked in and finds the driver when it is first asked: the module loads on a machine without one.

string(TOUPPER "${IVLITE_CUDA}" IVLITE_CUDA)
if(NOT IVLITE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "IVLITE_CUDA is AUTO, ON or OFF, not ${IVLITE_CUDA}")
endif()

find_program(IVLITE_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES bin)
set(with_cuda ${IVLITE_CUDA})
if(IVLITE_CUDA STREQUAL "AUTO")
  find_program(IVLITE_NVIDIA_SMI nvidia-smi)
  find_library(IVLITE_CUDA_DRIVER NAMES libcuda.so.1 PATHS /usr/lib/wsl/lib)
  if(IVLITE_NVCC AND (IVLITE_NVIDIA_SMI OR IVLITE_CUDA_DRIVER))
    set(with_cuda ON)
  else()
    set(with_cuda OFF)
  endif()
elseif(IVLITE_CUDA STREQUAL "ON" AND NOT IVLITE_NVCC)
  message(FATAL_ERROR "IVLITE_CUDA=ON needs nvcc, of CUDA 12 or newer: put it on the PATH, or set CUDA_HOME")
endif()

if(NOT with_cuda)
  set(without cuda)
  set(cuda_kernels "")
  return()
endif()

set(without no_cuda)
set(cuda_kernels ivlite_cuda)
set(CMAKE_CUDA_COMPILER ${IVLITE_NVCC})
if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  execute_process(COMMAND ${IVLITE_NVCC} --version OUTPUT_VARIABLE nvcc_version)
  string(REGEX MATCH "release ([0-9]+[.][0-9]+)" nvcc_version "${nvcc_version}")
  # A card runs code of its own major version and a minor one not above its own, or translates what is for virtual cards (PTX).
  set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90)
  if(CMAKE_MATCH_1 VERSION_GREATER_EQUAL 12.8)
    list(APPEND CMAKE_CUDA_ARCHITECTURES 120-real)
  endif()
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
enable_language(CUDA)

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/kernels/cuda/*.cu csrc/kernels/cuda/device/*.cu)
add_library(ivlite_cuda STATIC ${cuda_sources})
target_include_directories(ivlite_cuda PRIVATE csrc csrc/kernels/cuda/device)
# Like the processor's kernels: a product and a sum contract only where a kernel writes it. What is constexpr is for both sides.
target_compile_options(ivlite_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false --expt-relaxed-constexpr -Xcompiler=-fvisibility=hidden>)
