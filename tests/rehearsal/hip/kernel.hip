// A stand-in for AITER's module_mhc: one kernel, one exported C function, real device code. Built by make_fixture.sh.
#include <hip/hip_runtime.h>
#include <stdexcept>
#include <string>

__global__ void add(const float *a, const float *b, float *sum, int count) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) sum[i] = a[i] + b[i];
}

// The exception is what brings in versioned symbols of libstdc++, as any PyTorch extension has them.
extern "C" __attribute__((visibility("default"))) void kiln_add(const float *a, const float *b, float *sum, int count) {
  add<<<(count + 255) / 256, 256>>>(a, b, sum, count);
  hipError_t error = hipDeviceSynchronize();
  if (error != hipSuccess) throw std::runtime_error("kiln_add: " + std::to_string(error));
}
