// Backend: something that answers the cases.
#ifndef TERRACE_SERVICES_POLICY_CHECK_BACKEND_H_
#define TERRACE_SERVICES_POLICY_CHECK_BACKEND_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/reference.h"
#include "services/policy_check/stored_case.h"
#include "services/policy_check/vector_file.h"

namespace terrace::policy_check {

// One way through a backend.
struct Run {
  // Empty when there is one way only.
  std::string label;
  // score and lse are not set.
  attention::reference::Answer answer;
};

// Not thread-safe.
class Backend {
 public:
  virtual ~Backend() = default;

  // Every way through must give a right answer. `stored` is what Store makes of the case.
  virtual absl::StatusOr<std::vector<Run>> Answer(const VectorCase& vector,
                                                  const StoredCase& stored) = 0;
  // Whether answers have tau.
  virtual bool tells_tau() const { return true; }
  // Ends what the backend started. An error when that did not end in order.
  virtual absl::Status Close() { return absl::OkStatus(); }
};

// attention::reference in fp64: on what the file gives when rows are fp32 and the index is exact,
// else on what is stored, which shows what rounding alone does.
std::unique_ptr<Backend> MakeReferenceBackend();

// The CPU kernels of attention/ on stored rows, without an engine: EncodeBlock, SelectSparq,
// AttendRows, AttendBlock, MixValueMean.
std::unique_ptr<Backend> MakeCpuBackend();

// A terrace-kv-store and a terrace-attention-worker of its own, from the folder of this program,
// stopped by Close or with the backend. Every case is a sequence: all rows but the last are
// appended in bulk, the last comes with the step, which runs in mode rows, in mode partial, and
// in mode rows again with what the worker's cache then holds. Internal when their bits differ.
absl::StatusOr<std::unique_ptr<Backend>> MakeServiceBackend(const StoreFormat& format);

}  // namespace terrace::policy_check

#endif  // TERRACE_SERVICES_POLICY_CHECK_BACKEND_H_
