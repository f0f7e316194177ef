#include "services/frontend/workers.h"

namespace terrace::frontend {

Workers::Workers(int threads) : parts_(threads) {
  for (int part = 1; part < threads; ++part) {
    helpers_.emplace_back([this, part] { Help(part); });
  }
}

Workers::~Workers() {
  {
    const absl::MutexLock lock(&mu_);
    stopping_ = true;
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
    const absl::MutexLock lock(&mu_);
    job_ = job;
    unfinished_ = parts_ - 1;
    ++generation_;
  }
  DoPart(job, 0);
  const absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(
      +[](int* unfinished) { return *unfinished == 0; }, &unfinished_));
}

void Workers::Help(int part) {
  uint64_t done = 0;
  while (true) {
    Job job;
    {
      const absl::MutexLock lock(&mu_);
      auto wanted = [this, done]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return stopping_ || generation_ != done;
      };
      mu_.Await(absl::Condition(&wanted));
      if (stopping_) return;
      done = generation_;
      job = job_;
    }
    DoPart(job, part);
    const absl::MutexLock lock(&mu_);
    --unfinished_;
  }
}

}  // namespace terrace::frontend
