#include "services/engine/work_pool.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace terrace::engine {
namespace {

// Waking a thread takes about as long; one batch often follows another at once.
constexpr auto kPatience = std::chrono::microseconds(50);

// Lets others run until `done`, for a short while.
template <typename Condition>
void Yield(const Condition& done) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!done() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
}

}  // namespace

// Items of one ParallelFor. Helpers may look at a batch after its owner has gone, so they share it;
// they call the body only for items they won, and the owner waits for those.
class WorkPool::Batch {
 public:
  Batch(int count, const std::function<void(int)>& body) : count_(count), body_(body) {}

  // Works until no item is left to start.
  void Run() {
    int finished = 0;
    for (int item = next_.fetch_add(1); item < count_; item = next_.fetch_add(1)) {
      body_(item);
      ++finished;
    }
    if (finished == 0) return;
    const kvstore::MutexLock lock(mu_);
    done_ += finished;
    if (done_ == count_) all_done_.NotifyAll();
  }

  void Wait() {
    Yield([this] { return done_.load() == count_; });
    const kvstore::MutexLock lock(mu_);
    while (done_ != count_) all_done_.Wait(mu_);
  }

  bool started_all() const { return next_.load() >= count_; }

 private:
  const int count_;
  const std::function<void(int)>& body_;
  std::atomic<int> next_{0};
  kvstore::Mutex mu_;
  kvstore::CondVar all_done_;
  // Changes under the lock.
  std::atomic<int> done_{0};
};

WorkPool::WorkPool(int threads) {
  for (int i = 1; i < threads; ++i) helpers_.emplace_back([this] { Help(); });
}

WorkPool::~WorkPool() {
  {
    const kvstore::MutexLock lock(mu_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  for (std::thread& helper : helpers_) helper.join();
}

void WorkPool::ParallelFor(int count, const std::function<void(int)>& body) {
  if (count <= 1 || helpers_.empty()) {
    for (int item = 0; item < count; ++item) body(item);
    return;
  }
  const auto batch = std::make_shared<Batch>(count, body);
  {
    const kvstore::MutexLock lock(mu_);
    open_.push_back(batch);
    ++batches_;
    changed_.NotifyAll();
  }
  batch->Run();
  {
    const kvstore::MutexLock lock(mu_);
    const auto found = std::find(open_.begin(), open_.end(), batch);
    if (found != open_.end()) open_.erase(found);
  }
  batch->Wait();
}

void WorkPool::Help() {
  for (uint64_t seen = 0;;) {
    Yield([&] { return batches_.load() != seen; });
    std::shared_ptr<Batch> batch;
    {
      const kvstore::MutexLock lock(mu_);
      while (!stopping_ && open_.empty()) changed_.Wait(mu_);
      if (stopping_) return;
      // With others open, there is something to do right after this one.
      if (open_.size() == 1) seen = batches_;
      batch = open_.front();
      if (batch->started_all()) {
        open_.pop_front();
        continue;
      }
    }
    batch->Run();
  }
}

}  // namespace terrace::engine
