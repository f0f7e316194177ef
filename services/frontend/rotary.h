// Rotary position embedding, rotate-half as HuggingFace's Llama has it.
#ifndef TERRACE_SERVICES_FRONTEND_ROTARY_H_
#define TERRACE_SERVICES_FRONTEND_ROTARY_H_

#include <cstdint>
#include <vector>

namespace terrace::frontend {

// Rotary turns heads by the angles of a run of positions. Channel i of the first half pairs with
// channel i of the second; their angle is position · theta^(-2i/head_dim), in double.
// Not thread-safe.
class Rotary {
 public:
  Rotary(int head_dim, double theta);

  // Makes the sines and cosines of positions [position, position + count).
  void SetPositions(int64_t position, int64_t count);

  // Turns heads[count][head_count][head_dim] in place.
  void Apply(int head_count, float* heads) const;

 private:
  int half_;
  std::vector<double> frequencies_;  // [half]
  int64_t count_ = 0;
  std::vector<float> cosines_;  // [count][half]
  std::vector<float> sines_;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_ROTARY_H_
