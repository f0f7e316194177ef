// The header that promises host and device, compiled for both by nvcc. What it says on the host
// is checked everywhere, what it says on the device where there is one.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "attention/softmax_state.h"

namespace terrace::attention {
namespace {

constexpr int kDim = 64;
constexpr int kParts = 5;
// One of them is empty.
constexpr int kEmptyPart = 2;

// Partial states: outputs [kParts][kDim], and maxima and sums [kParts].
struct Parts {
  std::vector<float> outputs = std::vector<float>(kParts * kDim, 0.0F);
  std::vector<float> maxima = std::vector<float>(kParts, -INFINITY);
  std::vector<float> sums = std::vector<float>(kParts, 0.0F);
};

Parts RandomParts() {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  Parts parts;
  for (int part = 0; part < kParts; ++part) {
    if (part == kEmptyPart) continue;
    parts.maxima[part] = 20.0F * normal(random);
    parts.sums[part] = 1.0F + std::abs(normal(random));
    for (int c = 0; c < kDim; ++c) parts.outputs[part * kDim + c] = normal(random);
  }
  return parts;
}

// out: [kDim], the attention output, and behind it the log-sum-exp.
__host__ __device__ void MergeAll(float* outputs, const float* maxima, const float* sums,
                                  float* out) {
  SoftmaxState total;
  total.output = out;
  for (int c = 0; c < kDim; ++c) out[c] = 0.0F;
  for (int part = 0; part < kParts; ++part) {
    SoftmaxState state;
    state.max = maxima[part];
    state.sum = sums[part];
    state.output = outputs + part * kDim;
    Merge(total, state, kDim);
  }
  for (int c = 0; c < kDim; ++c) out[c] /= total.sum;
  out[kDim] = total.log_sum_exp();
}

__global__ void MergeKernel(float* outputs, const float* maxima, const float* sums, float* out) {
  MergeAll(outputs, maxima, sums, out);
}

void ExpectMerged(const Parts& parts, const std::vector<float>& out) {
  double sum = 0;
  std::vector<double> output(kDim, 0.0);
  for (int part = 0; part < kParts; ++part) {
    if (part == kEmptyPart) continue;
    const double weight = std::exp(double{parts.maxima[part]});
    sum += weight * parts.sums[part];
    for (int c = 0; c < kDim; ++c) output[c] += weight * parts.outputs[part * kDim + c];
  }
  EXPECT_NEAR(out[kDim], std::log(sum), 1e-5);
  for (int c = 0; c < kDim; ++c) EXPECT_NEAR(out[c], output[c] / sum, 1e-5) << c;
}

TEST(SoftmaxStateCuda, MergesOnTheHostAsCompiledForBoth) {
  Parts parts = RandomParts();
  std::vector<float> out(kDim + 1);
  MergeAll(parts.outputs.data(), parts.maxima.data(), parts.sums.data(), out.data());
  ExpectMerged(parts, out);
}

TEST(SoftmaxStateCuda, MergesOnTheDevice) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    GTEST_SKIP() << "needs a CUDA device";
  }
  const Parts parts = RandomParts();
  const size_t floats = parts.outputs.size() + 2 * kParts + kDim + 1;
  float* memory = nullptr;
  ASSERT_EQ(cudaMallocManaged(&memory, floats * sizeof(float)), cudaSuccess);
  float* const maxima = std::copy(parts.outputs.begin(), parts.outputs.end(), memory);
  float* const sums = std::copy(parts.maxima.begin(), parts.maxima.end(), maxima);
  float* const out = std::copy(parts.sums.begin(), parts.sums.end(), sums);
  MergeKernel<<<1, 1>>>(memory, maxima, sums, out);
  const cudaError_t finished = cudaDeviceSynchronize();
  EXPECT_EQ(finished, cudaSuccess) << cudaGetErrorString(finished);
  if (finished == cudaSuccess) ExpectMerged(parts, std::vector<float>(out, out + kDim + 1));
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

}  // namespace
}  // namespace terrace::attention
