#include "services/engine/step_trace.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"
#include "kvstore/byte_codec.h"

namespace terrace::engine {
namespace {

using kvstore::ByteReader;
using kvstore::ByteWriter;

constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = kStepTraceMagic.size() + 3 * sizeof(uint32_t);
constexpr size_t kRecordHeadBytes = 2 * sizeof(uint32_t);
constexpr float kWholeMass = 65535;

uint32_t Hash(absl::string_view bytes) { return XXH32(bytes.data(), bytes.size(), 0); }

std::string_view StdView(absl::string_view bytes) { return {bytes.data(), bytes.size()}; }

void PutVarint(ByteWriter& out, uint32_t value) {
  for (; value >= 0x80; value >>= 7) out.Put(static_cast<uint8_t>(value | 0x80));
  out.Put(static_cast<uint8_t>(value));
}

// False when it is cut short or has more than 32 bits.
bool GetVarint(ByteReader& in, uint32_t& value) {
  uint64_t bits = 0;
  for (int shift = 0; shift < 35; shift += 7) {
    const auto byte = in.Get<uint8_t>();
    bits |= uint64_t{byte & 0x7FU} << shift;
    if (byte < 0x80) {
      value = static_cast<uint32_t>(bits);
      return in.ok() && bits <= UINT32_MAX;
    }
  }
  return false;
}

uint16_t PackMass(float mass) {
  return static_cast<uint16_t>(std::lround(std::clamp(mass, 0.0F, 1.0F) * kWholeMass));
}

std::string EncodeHeader(uint32_t block_tokens) {
  ByteWriter out;
  out.PutBytes(StdView(kStepTraceMagic));
  out.Put(kVersion);
  out.Put(block_tokens);
  std::string bytes = std::move(out).Take();
  ByteWriter hash;
  hash.Put(Hash(bytes));
  return bytes + std::move(hash).Take();
}

std::string EncodeStep(const TracedStep& step) {
  ABSL_RAW_CHECK(step.heads.size() <= UINT16_MAX, "more heads than a traced step can have");
  ByteWriter out;
  out.Put(step.sequence);
  out.Put(step.position);
  out.Put(step.layer);
  out.Put(static_cast<uint16_t>(step.heads.size()));
  for (const TracedHead& head : step.heads) {
    ABSL_RAW_CHECK(head.rows.size() == head.masses.size(), "a traced row needs its mass");
    PutVarint(out, static_cast<uint32_t>(head.rows.size()));
    uint32_t last = 0;
    for (size_t i = 0; i < head.rows.size(); ++i) {
      ABSL_RAW_CHECK(i == 0 || head.rows[i] > last, "traced rows must ascend");
      PutVarint(out, head.rows[i] - last);
      last = head.rows[i];
    }
    for (const float mass : head.masses) out.Put(PackMass(mass));
  }
  return std::move(out).Take();
}

bool DecodeHead(ByteReader& in, TracedHead& head) {
  uint32_t count = 0;
  // At least three bytes a row, so that a count that lies allocates no more than the record.
  if (!GetVarint(in, count) || count > kMaxTracedStepBytes / 3) return false;
  head.rows.resize(count);
  head.masses.resize(count);
  uint64_t row = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t gap = 0;
    if (!GetVarint(in, gap) || (i > 0 && gap == 0)) return false;
    row += gap;
    if (row > UINT32_MAX) return false;
    head.rows[i] = static_cast<uint32_t>(row);
  }
  for (float& mass : head.masses) mass = static_cast<float>(in.Get<uint16_t>()) / kWholeMass;
  return in.ok();
}

bool DecodeStep(absl::string_view payload, TracedStep& step) {
  ByteReader in(StdView(payload));
  step.sequence = in.Get<uint64_t>();
  step.position = in.Get<uint64_t>();
  step.layer = in.Get<uint16_t>();
  step.heads.resize(in.Get<uint16_t>());
  for (TracedHead& head : step.heads) {
    if (!DecodeHead(in, head)) return false;
  }
  return in.done();
}

}  // namespace

StepTraceWriter::StepTraceWriter(StepTraceOptions options, FileHandle file)
    : options_(std::move(options)), file_(std::move(file)) {}

absl::StatusOr<StepTraceWriter> StepTraceWriter::Create(const StepTraceOptions& options) {
  if (!std::has_single_bit(options.block_tokens)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "step trace: got blocks of ", options.block_tokens, " rows, expected a power of two"));
  }
  if (options.bytes_max < kMinStepTraceBytes) {
    return absl::InvalidArgumentError(absl::StrCat("step trace: got a limit of ", options.bytes_max,
                                                   " bytes, expected at least ",
                                                   kMinStepTraceBytes));
  }
  FileHandle file(std::fopen(options.path.c_str(), "wbe"));
  if (file == nullptr) {
    return absl::UnavailableError(
        absl::StrCat(options.path, ": cannot be written: ", std::strerror(errno)));
  }
  StepTraceWriter writer(options, std::move(file));
  const absl::Status written = writer.Write(EncodeHeader(options.block_tokens));
  if (!written.ok()) return written;
  return writer;
}

absl::Status StepTraceWriter::Write(absl::string_view bytes) {
  if (!status_.ok()) return status_;
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size()) {
    status_ = absl::UnavailableError(
        absl::StrCat(options_.path, ": cannot be written: ", std::strerror(errno)));
    return status_;
  }
  bytes_ += bytes.size();
  return absl::OkStatus();
}

absl::Status StepTraceWriter::Append(const TracedStep& step) {
  ABSL_RAW_CHECK(file_ != nullptr, "the step trace is closed");
  const std::string payload = EncodeStep(step);
  const uint64_t room = options_.bytes_max - bytes_;
  if (payload.size() > kMaxTracedStepBytes || kRecordHeadBytes + payload.size() > room) {
    ++dropped_steps_;
    return status_;
  }
  ByteWriter record;
  record.Put(static_cast<uint32_t>(payload.size()));
  record.Put(Hash(payload));
  record.PutBytes(payload);
  absl::Status written = Write(std::move(record).Take());
  if (written.ok()) ++steps_;
  return written;
}

absl::Status StepTraceWriter::Close() {
  if (std::FILE* file = file_.release(); file != nullptr && std::fclose(file) != 0) {
    status_.Update(absl::UnavailableError(
        absl::StrCat(options_.path, ": cannot be written: ", std::strerror(errno))));
  }
  return status_;
}

StepTraceReader::StepTraceReader(std::string path, FileHandle file, uint32_t block_tokens,
                                 uint64_t offset)
    : path_(std::move(path)),
      file_(std::move(file)),
      block_tokens_(block_tokens),
      offset_(offset) {}

absl::StatusOr<StepTraceReader> StepTraceReader::Open(const std::string& path) {
  FileHandle file(std::fopen(path.c_str(), "rbe"));
  if (file == nullptr) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  }
  StepTraceReader reader(path, std::move(file), 0, 0);
  absl::StatusOr<std::string> header = reader.Read(kHeaderBytes);
  if (!header.ok()) return header.status();
  ByteReader in(*header);
  if (in.GetBytes(kStepTraceMagic.size()) != StdView(kStepTraceMagic)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is no step trace: does not begin with ", kStepTraceMagic));
  }
  const auto version = in.Get<uint32_t>();
  const auto block_tokens = in.Get<uint32_t>();
  const auto hash = in.Get<uint32_t>();
  if (!in.ok() || hash != Hash(absl::string_view(*header).substr(0, kHeaderBytes - sizeof(hash))) ||
      !std::has_single_bit(block_tokens)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": its header is damaged"));
  }
  if (version != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": got a step trace of version ", version, ", expected ", kVersion));
  }
  reader.block_tokens_ = block_tokens;
  reader.offset_ = kHeaderBytes;
  return reader;
}

absl::StatusOr<std::string> StepTraceReader::Read(size_t size) {
  std::string bytes(size, '\0');
  bytes.resize(std::fread(bytes.data(), 1, size, file_.get()));
  if (std::ferror(file_.get()) != 0) {
    return absl::UnavailableError(absl::StrCat(path_, ": cannot be read: ", std::strerror(errno)));
  }
  return bytes;
}

absl::Status StepTraceReader::Damaged(absl::string_view what) const {
  return absl::DataLossError(absl::StrCat(path_, ": the record at byte ", offset_, " ", what));
}

absl::StatusOr<bool> StepTraceReader::Torn(size_t bytes) {
  torn_bytes_ = bytes;
  return false;
}

absl::StatusOr<bool> StepTraceReader::Next(TracedStep& step) {
  const absl::StatusOr<std::string> head = Read(kRecordHeadBytes);
  if (!head.ok()) return head.status();
  if (head->size() < kRecordHeadBytes) return Torn(head->size());
  ByteReader in(*head);
  const auto size = in.Get<uint32_t>();
  const auto hash = in.Get<uint32_t>();
  if (size == 0 || size > kMaxTracedStepBytes) {
    return Damaged(absl::StrCat("has ", size, " bytes, expected 1 to ", kMaxTracedStepBytes));
  }
  const absl::StatusOr<std::string> payload = Read(size);
  if (!payload.ok()) return payload.status();
  if (payload->size() < size) return Torn(head->size() + payload->size());
  if (Hash(*payload) != hash) return Damaged("does not match its checksum");
  if (!DecodeStep(*payload, step)) return Damaged("is malformed");
  offset_ += kRecordHeadBytes + size;
  return true;
}

}  // namespace terrace::engine
