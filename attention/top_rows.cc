#include "attention/top_rows.h"

#include <algorithm>
#include <limits>

// The order matters: every target sees what follows foreach_target.h anew.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/top_rows.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace terrace::attention::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Appends to out[0, room) the positions of [begin, end) whose score is above `threshold`. Stops
// early when less than a vector of room is left. Returns where it stopped; `found` is how many.
size_t CollectAbove(const float* scores, size_t begin, size_t end, float threshold, uint32_t* out,
                    size_t room, size_t& found) {
  const hn::ScalableTag<float> d;
  const hn::ScalableTag<uint32_t> du;
  const size_t lanes = hn::Lanes(d);
  const auto limit = hn::Set(d, threshold);
  size_t count = 0;
  size_t t = begin;
  for (; t + lanes <= end && count + lanes <= room; t += lanes) {
    const auto above = hn::Gt(hn::LoadU(d, scores + t), limit);
    if (hn::AllFalse(d, above)) continue;
    const auto positions = hn::Iota(du, static_cast<uint32_t>(t));
    count += hn::CompressStore(positions, hn::RebindMask(du, above), du, out + count);
  }
  if (t + lanes > end) {
    for (; t < end && count < room; ++t) {
      if (scores[t] > threshold) out[count++] = static_cast<uint32_t>(t);
    }
  }
  found = count;
  return t;
}

}  // namespace terrace::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace::attention {
namespace {

HWY_EXPORT(CollectAbove);

// Candidates kept beyond `count` before they are thinned: enough to make thinning rare.
constexpr size_t kSlack = 1024;
// CompressStore writes whole vectors; the widest has this many lanes.
constexpr size_t kOverrun = 64;

}  // namespace

absl::Span<const uint32_t> TopRows(const float* scores, size_t begin, size_t end, size_t count,
                                   std::vector<uint32_t>& order) {
  if (count == 0) return {};
  const size_t room = 2 * count + kSlack;
  if (order.size() < room + kOverrun) order.resize(room + kOverrun);
  const auto better = [scores](uint32_t a, uint32_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  };
  float threshold = -std::numeric_limits<float>::infinity();
  size_t held = 0;
  for (size_t next = begin; next < end;) {
    size_t found = 0;
    next = HWY_DYNAMIC_DISPATCH(CollectAbove)(scores, next, end, threshold, order.data() + held,
                                              room - held, found);
    held += found;
    if (held <= count) continue;
    // A later position that ties with the threshold loses to those held, which are lower.
    std::nth_element(order.begin(), order.begin() + static_cast<ptrdiff_t>(count) - 1,
                     order.begin() + static_cast<ptrdiff_t>(held), better);
    held = count;
    threshold = scores[order[count - 1]];
  }
  std::sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(held));
  return absl::MakeConstSpan(order.data(), held);
}

}  // namespace terrace::attention
#endif  // HWY_ONCE
