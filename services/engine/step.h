// One attention step of one layer and sequence: what goes in, what comes out, and the account of
// what it read.
#ifndef TERRACE_SERVICES_ENGINE_STEP_H_
#define TERRACE_SERVICES_ENGINE_STEP_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "attention/policy.h"
#include "services/engine/geometry.h"

namespace terrace::engine {

class WorkPool;

// A dense row-major tensor that somebody else owns. Empty data means absent.
struct TensorView {
  attention::Dtype dtype = attention::Dtype::kFloat32;
  absl::Span<const uint32_t> shape;
  absl::Span<const std::byte> data;

  bool absent() const { return data.empty() && shape.empty(); }
};

// A tensor that was checked: dense, of finite elements. Does not own them.
struct FiniteTensor {
  attention::Dtype dtype = attention::Dtype::kFloat32;
  // Null for none.
  const std::byte* data = nullptr;
  // Of the largest element.
  float magnitude = 0.0F;
};

// Checks shape, dtype and size against [n, heads, dim], and that every element is finite; `field`
// names the tensor in errors. Threads of `pool`, if there is one, share a large tensor.
absl::StatusOr<FiniteTensor> CheckTensor(absl::string_view field, const TensorView& tensor,
                                         int64_t n, int heads, int dim, WorkPool* pool = nullptr);
// The same; on success `floats` holds the elements.
absl::Status ReadTensor(absl::string_view field, const TensorView& tensor, int64_t n, int heads,
                        int dim, std::vector<float>* floats);
// The first extent of an [n, heads, dim] tensor; InvalidArgument when there is none.
absl::StatusOr<int64_t> TensorRows(absl::string_view field, const TensorView& tensor);

enum class RemoteMode { kAuto = 1, kRows = 2, kPartial = 3 };

struct StepRequest {
  absl::string_view handle;
  uint64_t writer_epoch = 0;
  // Query i stands at position + i and sees rows [0, position + i].
  int64_t position = 0;
  // n ids, or none.
  absl::Span<const uint32_t> token_ids;
  // [n, query_heads, head_dim].
  TensorView q;
  // [n, kv_heads, head_dim]; both absent for a step that only reads.
  TensorView k;
  TensorView v;
  attention::Policy policy;
  // Compared with the sequence's when not empty.
  absl::string_view fingerprint;
};

struct StepOptions {
  // Without one, kStepPatience from the step's start.
  absl::Time deadline = absl::InfiniteFuture();
  // Reads from below host memory that end later are left out (soft).
  absl::Time row_deadline = absl::InfiniteFuture();
  // Fail rather than leave a row out.
  bool strict = false;
  bool return_selection = false;
  // How a remote engine runs it; embedded ignores it.
  RemoteMode mode = RemoteMode::kAuto;
};

enum class Tier { kGpu = 1, kHost = 2, kDisk = 3 };

// What one tier gave to a step; bytes are logical (stored format) but for physical_bytes.
struct TierRead {
  uint64_t rows = 0;
  uint64_t row_bytes = 0;
  uint64_t index_bytes = 0;
  uint64_t sum_bytes = 0;
  uint64_t physical_bytes = 0;

  TierRead& operator+=(const TierRead& other);
};

struct StageTimes {
  absl::Duration queue;
  absl::Duration append;
  absl::Duration select;
  absl::Duration gather;
  absl::Duration attend;
  absl::Duration network;
  absl::Duration total;
};

struct StepAccount {
  TierRead host;
  TierRead disk;
  // [n, query_heads].
  std::vector<float> alpha;
  // The worst query head's.
  float missed_mass = 0.0F;
  uint64_t missed_rows = 0;
  StageTimes stages;
  // What a remote engine ran; meaningless when wire_bytes is 0.
  RemoteMode mode = RemoteMode::kAuto;
  uint64_t wire_bytes = 0;
};

// Rows of one query and KV head.
struct Selection {
  // Ascending.
  std::vector<uint32_t> positions;
  // Ascending; empty for dense.
  std::vector<uint32_t> channels;
};

struct StepResult {
  absl::Status status;
  // k and v stand, even if the step failed afterwards.
  bool appended = false;
  int64_t layer_length = 0;
  int64_t queries = 0;
  // [n, query_heads, head_dim].
  std::vector<float> output;
  StepAccount account;
  // [n * kv_heads] when asked for.
  std::vector<Selection> selections;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_STEP_H_
