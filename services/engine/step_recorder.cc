#include "services/engine/step_recorder.h"

#include <xxhash.h>

#include <utility>

namespace terrace::engine {

absl::StatusOr<std::unique_ptr<StepRecorder>> StepRecorder::Create(
    const StepTraceOptions& options) {
  absl::StatusOr<StepTraceWriter> writer = StepTraceWriter::Create(options);
  if (!writer.ok()) return writer.status();
  return std::unique_ptr<StepRecorder>(new StepRecorder(*std::move(writer)));
}

StepRecorder::StepRecorder(StepTraceWriter writer) : writer_(std::move(writer)) {}

uint64_t StepRecorder::Name(absl::string_view handle) {
  return XXH3_64bits(handle.data(), handle.size());
}

void StepRecorder::Record(const TracedStep& step) {
  const kvstore::MutexLock lock(mu_);
  // After the first error nothing is written any more.
  if (!closed_ && status_.ok()) status_ = writer_.Append(step);
}

uint64_t StepRecorder::steps() const {
  const kvstore::MutexLock lock(mu_);
  return writer_.steps();
}

uint64_t StepRecorder::dropped_steps() const {
  const kvstore::MutexLock lock(mu_);
  return writer_.dropped_steps();
}

absl::Status StepRecorder::Close() {
  const kvstore::MutexLock lock(mu_);
  if (closed_) return status_;
  closed_ = true;
  status_.Update(writer_.Close());
  return status_;
}

}  // namespace terrace::engine
