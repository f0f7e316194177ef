#include "kvstore/reader_pool.h"

#include <algorithm>
#include <utility>

namespace terrace::kvstore {

ReaderPool::ReaderPool(int threads) {
  threads_.reserve(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

ReaderPool::~ReaderPool() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    queued_.NotifyAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void ReaderPool::Submit(const Job& job, size_t width) {
  MutexLock lock(mu_);
  for (size_t i = 0; i < std::min(width, threads_.size()); ++i) jobs_.push_back(job);
  queued_.NotifyAll();
}

void ReaderPool::Run() {
  Job job;
  bool more = false;
  while (true) {
    {
      MutexLock lock(mu_);
      if (more) jobs_.push_back(std::move(job));
      while (jobs_.empty() && !stopping_) queued_.Wait(mu_);
      if (stopping_) break;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    more = job();
    // What the job keeps alive is let go of outside the lock.
    if (!more) job = nullptr;
  }
}

}  // namespace terrace::kvstore
