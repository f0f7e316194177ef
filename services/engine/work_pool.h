// A few threads that share the items of one step. The caller works too, so that a pool of one
// thread runs everything inline.
#ifndef TERRACE_SERVICES_ENGINE_WORK_POOL_H_
#define TERRACE_SERVICES_ENGINE_WORK_POOL_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "kvstore/mutex.h"

namespace terrace::engine {

// Thread-safe.
class WorkPool {
 public:
  // `threads` counts the caller: threads - 1 helpers are started.
  explicit WorkPool(int threads);
  ~WorkPool();
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  // Calls body(0) … body(count - 1), each once, on any threads; returns when all are done.
  void ParallelFor(int count, const std::function<void(int)>& body);

 private:
  class Batch;

  void Help();

  kvstore::Mutex mu_;
  kvstore::CondVar changed_;
  std::deque<std::shared_ptr<Batch>> open_ ABSL_GUARDED_BY(mu_);
  // So far.
  std::atomic<uint64_t> batches_{0};
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> helpers_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_WORK_POOL_H_
