// Stands in for the CUDA runtime under host code that nvcc has compiled (nvcc.py links it in its place): kernels are
// known by their names in the PTX, and launches and memory operations are handed to cuda_program.py, one after another.
#include <cuda_runtime_api.h>

#include <map>
#include <string>

namespace {

// threads and sizes in x, y, z; pointers to the kernel's arguments; bytes of dynamic shared memory
using Launch = void (*)(const char* kernel, const unsigned* grid, const unsigned* block, void** arguments, size_t shared);
using Memset = void (*)(void* at, int value, size_t bytes);

Launch on_launch = nullptr;
Memset on_memset = nullptr;

// what <<<>>> leaves for the function that it calls next
struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} configuration;

// by the address of the host's function; filled while the library is loaded, so it must not wait for its turn there
std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> all;
  return all;
}

cudaError_t launch(const char* kernel, dim3 grid, dim3 block, void** arguments, size_t shared) {
  const unsigned sizes[] = {grid.x, grid.y, grid.z}, threads[] = {block.x, block.y, block.z};
  on_launch(kernel, sizes, threads, arguments, shared);
  return cudaSuccess;
}

}  // namespace

extern "C" {

void emulator_install(Launch launch, Memset memset) {
  on_launch = launch;
  on_memset = memset;
}

// What nvcc's own code calls (crt/host_runtime.h and crt/device_functions.h of the toolkit).

void** __cudaRegisterFatBinary(void*) {
  static void* module = nullptr;
  return &module;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  kernels()[host] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  const auto found = kernels().find(host);
  if (found == kernels().end()) return cudaErrorInvalidDeviceFunction;
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<char*>(found->second.c_str()));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t) {
  return launch(reinterpret_cast<const char*>(kernel), grid, block, arguments, shared);
}

// The runtime's interface, as far as csrc/ uses it; before CUDA 13, nvcc's own code calls cudaLaunchKernel.

cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t) {
  const auto found = kernels().find(host);
  if (found == kernels().end()) return cudaErrorInvalidDeviceFunction;
  return launch(found->second.c_str(), grid, block, arguments, shared);
}

cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  on_memset(at, value, bytes);
  return cudaSuccess;
}

}  // extern "C"
