#include "kvstore/s3fifo_policy.h"

#include <algorithm>

#include "absl/base/internal/raw_logging.h"

namespace terrace::kvstore {
namespace {

constexpr uint32_t kTouchesMax = 3;

}  // namespace

S3FifoPolicy::S3FifoPolicy(const S3FifoOptions& options) : options_(options) {}

S3FifoPolicy::Queue::iterator S3FifoPolicy::Oldest(Queue& queue, Evictable evictable) {
  return std::find_if(queue.begin(), queue.end(), evictable);
}

void S3FifoPolicy::MoveToBack(Known& known, Queue& queue) {
  queue.splice(queue.end(), *known.queue, known.place);
  known.queue = &queue;
}

void S3FifoPolicy::TrimHistory() {
  const double bound = options_.history_factor * static_cast<double>(small_.size() + main_.size());
  while (static_cast<double>(history_.size()) > bound) {
    known_.erase(history_.front());
    history_.pop_front();
  }
}

void S3FifoPolicy::Touch(BlockId block, double /*mass*/) {
  const auto found = known_.find(block);
  if (found == known_.end() || found->second.queue == &history_) return;
  found->second.touches = std::min(found->second.touches + 1, kTouchesMax);
}

std::optional<BlockId> S3FifoPolicy::Coldest(Evictable evictable) {
  // Ends: each round promotes a block for good, or spends one of its touches.
  for (;;) {
    const double bound =
        options_.small_fraction * static_cast<double>(small_.size() + main_.size());
    const bool small_first = static_cast<double>(small_.size()) >= std::max(1.0, bound);
    Queue* queue = small_first ? &small_ : &main_;
    auto oldest = Oldest(*queue, evictable);
    if (oldest == queue->end()) {
      queue = small_first ? &main_ : &small_;
      oldest = Oldest(*queue, evictable);
      if (oldest == queue->end()) return std::nullopt;
    }
    Known& known = known_.find(*oldest)->second;
    const bool probation = queue == &small_;
    if (known.touches < (probation ? options_.promote_touches : 1)) return *oldest;
    known.touches = probation ? 0 : known.touches - 1;
    MoveToBack(known, main_);
  }
}

bool S3FifoPolicy::Admits(BlockId /*newcomer*/, BlockId /*victim*/) const { return true; }

void S3FifoPolicy::Insert(BlockId block) {
  const auto [found, unknown] = known_.try_emplace(block);
  Known& known = found->second;
  if (unknown) {
    known = {&small_, small_.insert(small_.end(), block)};
  } else {
    ABSL_RAW_CHECK(known.queue == &history_, "block is resident already");
    MoveToBack(known, main_);
  }
  TrimHistory();
}

void S3FifoPolicy::Evict(BlockId block) {
  const auto found = known_.find(block);
  ABSL_RAW_CHECK(found != known_.end() && found->second.queue != &history_,
                 "only a resident block can leave");
  if (found->second.queue == &main_) {
    Forget(block);
    return;
  }
  found->second.touches = 0;
  MoveToBack(found->second, history_);
}

void S3FifoPolicy::Forget(BlockId block) {
  const auto found = known_.find(block);
  if (found == known_.end()) return;
  found->second.queue->erase(found->second.place);
  known_.erase(found);
}

}  // namespace terrace::kvstore
