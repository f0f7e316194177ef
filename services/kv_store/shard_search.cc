#include "services/kv_store/shard_search.h"

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "kvstore/mutex.h"
#include "services/kv_store/call_slots.h"

namespace terrace::kv_store {

struct ShardSearch::Answers {
  kvstore::Mutex mu;
  kvstore::CondVar changed;
  size_t count ABSL_GUARDED_BY(mu) = 0;
  // One for each store that is waited for.
  std::vector<CallSlots::Slot> slots ABSL_GUARDED_BY(mu);
};

ShardSearch::ShardSearch(const std::vector<Shard*>& shards, absl::Time deadline)
    : deadline_(deadline), answers_(std::make_shared<Answers>()) {
  std::vector<Shard*> asked;
  for (Shard* shard : shards) {
    if (shard->number().ok()) continue;
    absl::StatusOr<CallSlots::Slot> slot = shard->Admit(absl::InfinitePast());
    if (!slot.ok()) continue;
    asked.push_back(shard);
    const kvstore::MutexLock lock(answers_->mu);
    answers_->slots.push_back(*std::move(slot));
  }
  asked_ = asked.size();
  for (size_t i = 0; i < asked_; ++i) {
    asked[i]->Identify([answers = answers_, i] {
      const kvstore::MutexLock lock(answers->mu);
      answers->slots[i] = nullptr;
      ++answers->count;
      answers->changed.NotifyAll();
    });
  }
}

ShardSearch::~ShardSearch() {
  const kvstore::MutexLock lock(answers_->mu);
  for (CallSlots::Slot& slot : answers_->slots) slot = nullptr;
}

bool ShardSearch::AwaitNext() {
  const kvstore::MutexLock lock(answers_->mu);
  if (seen_ == asked_) return false;
  while (answers_->count <= seen_ && answers_->changed.WaitUntil(answers_->mu, deadline_)) {
  }
  if (answers_->count <= seen_) return false;
  seen_ = answers_->count;
  return true;
}

}  // namespace terrace::kv_store
