#include "services/frontend/rotary.h"

#include <cmath>
#include <cstddef>

namespace terrace::frontend {

Rotary::Rotary(int head_dim, double theta) : half_(head_dim / 2) {
  for (int i = 0; i < half_; ++i) {
    frequencies_.push_back(std::pow(theta, -2.0 * i / head_dim));
  }
}

void Rotary::SetPositions(int64_t position, int64_t count) {
  count_ = count;
  cosines_.resize(static_cast<size_t>(count * half_));
  sines_.resize(cosines_.size());
  size_t at = 0;
  for (int64_t t = 0; t < count; ++t) {
    for (const double frequency : frequencies_) {
      const double angle = static_cast<double>(position + t) * frequency;
      cosines_[at] = static_cast<float>(std::cos(angle));
      sines_[at] = static_cast<float>(std::sin(angle));
      ++at;
    }
  }
}

void Rotary::Apply(int head_count, float* heads) const {
  for (int64_t t = 0; t < count_; ++t) {
    const float* cosines = cosines_.data() + t * half_;
    const float* sines = sines_.data() + t * half_;
    for (int head = 0; head < head_count; ++head, heads += int64_t{2} * half_) {
      for (int i = 0; i < half_; ++i) {
        const float first = heads[i];
        const float second = heads[half_ + i];
        heads[i] = first * cosines[i] - second * sines[i];
        heads[half_ + i] = second * cosines[i] + first * sines[i];
      }
    }
  }
}

}  // namespace terrace::frontend
