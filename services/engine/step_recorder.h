// StepRecorder: writes the selections of SparQ steps into a step trace, for a later replay of
// placement policies. Dense steps select nothing and are left out. A recording never fails a step:
// what does not fit the file is counted, and so is the first failure.
#ifndef TERRACE_SERVICES_ENGINE_STEP_RECORDER_H_
#define TERRACE_SERVICES_ENGINE_STEP_RECORDER_H_

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/mutex.h"
#include "services/engine/step_trace.h"

namespace terrace::engine {

// Thread-safe: one step is written at a time.
class StepRecorder {
 public:
  // The errors of StepTraceWriter::Create.
  static absl::StatusOr<std::unique_ptr<StepRecorder>> Create(const StepTraceOptions& options);

  // What a trace calls the sequence.
  static uint64_t Name(absl::string_view handle);

  void Record(const TracedStep& step);
  // Steps written, and left out because the file is full.
  uint64_t steps() const;
  uint64_t dropped_steps() const;
  // Finishes the file; later steps are ignored. The first error of all.
  absl::Status Close();

 private:
  explicit StepRecorder(StepTraceWriter writer);

  mutable kvstore::Mutex mu_;
  StepTraceWriter writer_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_STEP_RECORDER_H_
