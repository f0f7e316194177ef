#include "services/frontend/workers.h"

namespace terrace::frontend {

Workers::Workers(int threads) : parts_(threads) {
  for (int part = 1; part < threads; ++part) {
    helpers_.emplace_back([this, part] { Help(part); });
  }
}

Workers::~Workers() {
  {
    std::unique_lock<std::mutex> lock(mu_);
    stopping_ = true;
    changed_.notify_all();
  }
  for (std::thread& helper : helpers_) helper.join();
}

void Workers::DoPart(const Job& job, int part) const {
  const int64_t begin = job.count * part / parts_;
  const int64_t end = job.count * (part + 1) / parts_;
  (*job.task)(begin, end);
}

void Workers::Run(int64_t count, absl::FunctionRef<void(int64_t, int64_t)> task) {
  const Job job{count, &task};
  {
    std::unique_lock<std::mutex> lock(mu_);
    job_ = job;
    unfinished_ = parts_ - 1;
    ++generation_;
    changed_.notify_all();
  }
  DoPart(job, 0);
  std::unique_lock<std::mutex> lock(mu_);
  changed_.wait(lock, [this] { return unfinished_ == 0; });
}

void Workers::Help(int part) {
  uint64_t done = 0;
  while (true) {
    Job job;
    {
      std::unique_lock<std::mutex> lock(mu_);
      changed_.wait(lock, [this, done] { return stopping_ || generation_ != done; });
      if (stopping_) return;
      done = generation_;
      job = job_;
    }
    DoPart(job, part);
    std::unique_lock<std::mutex> lock(mu_);
    --unfinished_;
    changed_.notify_all();
  }
}

}  // namespace terrace::frontend
