// Step traces: which rows steps selected and how much mass each captured, recorded for a later
// replay of placement policies. Names and numbers only; no keys, values or tokens.
//
//   file    := header record*
//   header  := "TerraceSteps" version:u32 block_tokens:u32 xxh:u32
//   record  := size:u32 xxh:u32 payload        size of the payload; 1 to kMaxTracedStepBytes
//   payload := sequence:u64 position:u64 layer:u16 heads:u16 head*
//   head    := count:varint gap:varint*count mass:u16*count
//
// Little endian; varint is LEB128, 7 bits a byte, low first. xxh is XXH32 with seed 0, in the
// header over what precedes it, in a record over its payload. Rows ascend, and a gap is the row
// minus the one before it, the first one plain: three to four bytes a row in all. A mass of 65535
// is 1.
#ifndef TERRACE_SERVICES_ENGINE_STEP_TRACE_H_
#define TERRACE_SERVICES_ENGINE_STEP_TRACE_H_

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace terrace::engine {

inline constexpr uint32_t kMaxTracedStepBytes = 16 << 20;
inline constexpr uint64_t kMinStepTraceBytes = 4096;
inline constexpr absl::string_view kStepTraceMagic = "TerraceSteps";

struct TracedHead {
  // Ascending.
  std::vector<uint32_t> rows;
  // By row: share of the softmax mass in [0, 1], mean over the query heads of the group.
  std::vector<float> masses;

  friend bool operator==(const TracedHead&, const TracedHead&) = default;
};

// One query's step of one layer.
struct TracedStep {
  // Tells the sequences of one trace apart; means nothing beyond it.
  uint64_t sequence = 0;
  uint64_t position = 0;
  uint16_t layer = 0;
  // By KV head, 65535 at most.
  std::vector<TracedHead> heads;

  friend bool operator==(const TracedStep&, const TracedStep&) = default;
};

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using FileHandle = std::unique_ptr<std::FILE, FileCloser>;

struct StepTraceOptions {
  // Replaced if it exists.
  std::string path;
  // The file never grows beyond; at least kMinStepTraceBytes.
  uint64_t bytes_max = uint64_t{256} << 20;
  // Rows of a block, a power of two.
  uint32_t block_tokens = 64;
};

// StepTraceWriter appends steps to a file until it is full, and counts the others: a recording
// never fails a step. What is written is on its way through stdio until Close. Not thread-safe.
class StepTraceWriter {
 public:
  // InvalidArgument for options out of range, Unavailable when the file cannot be written.
  static absl::StatusOr<StepTraceWriter> Create(const StepTraceOptions& options);

  // OK also for a step that is dropped: the file is full, or the step alone too large. Masses are
  // clamped to [0, 1]. Unavailable from the first write error on.
  // Requires: in each head rows ascend, and there is a mass for each.
  absl::Status Append(const TracedStep& step);
  // Flushes and closes; nothing may be appended afterwards. The first error of all.
  absl::Status Close();

  uint64_t steps() const { return steps_; }
  uint64_t dropped_steps() const { return dropped_steps_; }
  uint64_t bytes() const { return bytes_; }

 private:
  StepTraceWriter(StepTraceOptions options, FileHandle file);
  absl::Status Write(absl::string_view bytes);

  StepTraceOptions options_;
  FileHandle file_;
  absl::Status status_;
  uint64_t bytes_ = 0;
  uint64_t steps_ = 0;
  uint64_t dropped_steps_ = 0;
};

// StepTraceReader reads a trace from its beginning. Not thread-safe.
class StepTraceReader {
 public:
  // NotFound when it cannot be read, InvalidArgument when it is no step trace of this version.
  static absl::StatusOr<StepTraceReader> Open(const std::string& path);

  // False after the last step. A record that the file ends within was being written when the
  // recorder died: it is left out, see torn_bytes(). DataLoss, naming the byte where the record
  // begins, for one that is damaged; nothing can be read after it.
  absl::StatusOr<bool> Next(TracedStep& step);

  uint32_t block_tokens() const { return block_tokens_; }
  // Where the next record begins.
  uint64_t offset() const { return offset_; }
  // After the last step: bytes of an unfinished record at the end of the file.
  uint64_t torn_bytes() const { return torn_bytes_; }

 private:
  StepTraceReader(std::string path, FileHandle file, uint32_t block_tokens, uint64_t offset);
  // Reads `size` bytes, fewer at the end of the file.
  absl::StatusOr<std::string> Read(size_t size);
  absl::Status Damaged(absl::string_view what) const;
  absl::StatusOr<bool> Torn(size_t bytes);

  std::string path_;
  FileHandle file_;
  uint32_t block_tokens_ = 0;
  uint64_t offset_ = 0;
  uint64_t torn_bytes_ = 0;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_STEP_TRACE_H_
