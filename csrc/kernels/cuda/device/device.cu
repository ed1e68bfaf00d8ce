// The cards and their memory, through the CUDA runtime that is linked in.
#include <string.h>

#include "intrinsics.h"
#include "kernels/cuda/cuda.h"

namespace ivlite::cuda {

namespace {

// The status, which the runtime then forgets.
Status taken(cudaError_t status) {
  if (status != cudaSuccess) cudaGetLastError();
  return status;
}

IVLITE_KERNEL void probe() {}

// Why the kernels here do not run on a card, 0 where they do: there is code for the card, or code that the driver translates.
cudaError_t refused(int card) {
  const int before = current_card();
  cudaFuncAttributes attributes;
  cudaError_t status = cudaSetDevice(card);
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, (const void*)probe);
  cudaGetLastError();
  cudaSetDevice(before);
  return status;
}

}  // namespace

Status count_cards(int* count) {
  *count = 0;
  return taken(cudaGetDeviceCount(count));
}

Status describe_card(Card* out, int card) {
  cudaDeviceProp found;
  const cudaError_t status = cudaGetDeviceProperties(&found, card);
  if (status != cudaSuccess) return taken(status);
  *out = {};
  strncpy(out->name, found.name, sizeof(out->name) - 1);
  out->major = found.major, out->minor = found.minor;
  out->memory = (int64_t)found.totalGlobalMem;
  out->multiprocessors = found.multiProcessorCount;
  out->refused = refused(card);
  out->no_kernels = out->refused == cudaErrorNoKernelImageForDevice || out->refused == cudaErrorInvalidDeviceFunction;
  return 0;
}

Status use_card(int card) { return taken(cudaSetDevice(card)); }

Status driver_version(int* version) {
  *version = 0;
  return taken(cudaDriverGetVersion(version));
}

const char* status_name(Status status) { return cudaGetErrorName((cudaError_t)status); }
const char* status_text(Status status) { return cudaGetErrorString((cudaError_t)status); }

Status allocate(void** out, int64_t bytes) { return taken(cudaMalloc(out, (size_t)bytes)); }
Status release(void* memory) { return taken(cudaFree(memory)); }
Status copy_to_card(void* to, const void* from, int64_t bytes) {
  return taken(cudaMemcpy(to, from, (size_t)bytes, cudaMemcpyHostToDevice));
}
Status copy_from_card(void* to, const void* from, int64_t bytes) {
  return taken(cudaMemcpy(to, from, (size_t)bytes, cudaMemcpyDeviceToHost));
}
Status synchronize() { return taken(cudaDeviceSynchronize()); }

}  // namespace ivlite::cuda
