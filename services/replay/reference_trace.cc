#include "services/replay/reference_trace.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "services/engine/step_trace.h"

namespace terrace::replay {
namespace {

using nlohmann::json;

// Numbers blocks as they are first seen.
template <typename Key>
class Numbering {
 public:
  uint32_t Of(const Key& key) {
    return numbers_.emplace(key, static_cast<uint32_t>(numbers_.size())).first->second;
  }
  uint32_t size() const { return static_cast<uint32_t>(numbers_.size()); }

 private:
  absl::flat_hash_map<Key, uint32_t> numbers_;
};

absl::Status TooLong(const std::string& path) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": has more than ", kMaxReferences, " references, the most that fit"));
}

// What was got, short enough for a message.
std::string Excerpt(const json& value) {
  constexpr size_t kShown = 40;
  const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() <= kShown ? text : absl::StrCat(text.substr(0, kShown), "...");
}

absl::Status CheckCount(const json& request, const char* name) {
  const auto found = request.find(name);
  if (found == request.end()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is missing"));
  }
  if (found->is_number_unsigned()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\": got ", Excerpt(*found), ", expected an integer of at least 0"));
}

// Calls `add` with each hash id of one line.
template <typename Add>
absl::Status ReadRequest(absl::string_view line, const Add& add) {
  const json request = json::parse(line.begin(), line.end(), nullptr, false);
  if (!request.is_object()) {
    const std::string got = request.is_discarded() ? "malformed JSON" : Excerpt(request);
    return absl::InvalidArgumentError(
        absl::StrCat("got ", got,
                     ", expected an object with timestamp, input_length, "
                     "output_length and hash_ids"));
  }
  for (const char* const name : {"timestamp", "input_length", "output_length"}) {
    const absl::Status status = CheckCount(request, name);
    if (!status.ok()) return status;
  }
  const auto ids = request.find("hash_ids");
  if (ids == request.end()) return absl::InvalidArgumentError("\"hash_ids\" is missing");
  if (!ids->is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"hash_ids\": got ", Excerpt(*ids), ", expected an array"));
  }
  for (size_t i = 0; i < ids->size(); ++i) {
    const json& id = (*ids)[i];
    if (!id.is_number_unsigned()) {
      return absl::InvalidArgumentError(absl::StrCat("\"hash_ids\"[", i, "]: got ", Excerpt(id),
                                                     ", expected an integer of at least 0"));
    }
    add(id.get<uint64_t>());
  }
  return absl::OkStatus();
}

absl::StatusOr<ReferenceTrace> ReadRequests(const std::string& path, std::ifstream& in,
                                            ReadProgress progress) {
  ReferenceTrace trace;
  Numbering<uint64_t> numbering;
  // With the terminating zero.
  std::vector<char> line(kMaxLineBytes + 1);
  for (uint64_t number = 1;; ++number) {
    in.getline(line.data(), static_cast<std::streamsize>(line.size()));
    const absl::string_view text = line.data();
    if (in.bad()) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
    if (in.fail() && in.eof()) break;
    const std::string place = absl::StrCat(path, ":", number, ": ");
    if (in.fail()) {
      return absl::InvalidArgumentError(absl::StrCat(place, "got a line of more than ",
                                                     kMaxLineBytes, " bytes, the most that fit"));
    }
    if (text.find_first_not_of(" \t\r") == absl::string_view::npos) continue;
    const absl::Status status =
        ReadRequest(text, [&](uint64_t id) { trace.blocks.push_back(numbering.Of(id)); });
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(place, status.message()));
    }
    if (trace.blocks.size() > kMaxReferences) return TooLong(path);
    ++trace.steps;
    progress(trace.blocks.size());
  }
  trace.distinct_blocks = numbering.size();
  return trace;
}

absl::StatusOr<ReferenceTrace> ReadSteps(const std::string& path, ReadProgress progress) {
  absl::StatusOr<engine::StepTraceReader> reader = engine::StepTraceReader::Open(path);
  if (!reader.ok()) return reader.status();
  ReferenceTrace trace;
  // Sequence, layer, head, block.
  Numbering<std::tuple<uint64_t, uint16_t, size_t, uint32_t>> numbering;
  engine::TracedStep step;
  for (;;) {
    const absl::StatusOr<bool> more = reader->Next(step);
    if (!more.ok()) return more.status();
    if (!*more) break;
    for (size_t head = 0; head < step.heads.size(); ++head) {
      const engine::TracedHead& traced = step.heads[head];
      uint32_t last_block = 0;
      for (size_t i = 0; i < traced.rows.size(); ++i) {
        const uint32_t block = traced.rows[i] / reader->block_tokens();
        if (i > 0 && block == last_block) {
          trace.masses.back() += traced.masses[i];
          continue;
        }
        last_block = block;
        trace.blocks.push_back(numbering.Of({step.sequence, step.layer, head, block}));
        trace.masses.push_back(traced.masses[i]);
      }
    }
    if (trace.blocks.size() > kMaxReferences) return TooLong(path);
    ++trace.steps;
    progress(trace.blocks.size());
  }
  trace.distinct_blocks = numbering.size();
  trace.torn_bytes = reader->torn_bytes();
  return trace;
}

}  // namespace

absl::StatusOr<ReferenceTrace> ReadTrace(const std::string& path, ReadProgress progress) {
  std::ifstream in(path, std::ios::binary);
  // A folder opens, and cannot be read.
  if (!in || (in.peek(), in.bad())) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  }
  in.clear();
  std::string start(engine::kStepTraceMagic.size(), '\0');
  in.read(start.data(), static_cast<std::streamsize>(start.size()));
  absl::StatusOr<ReferenceTrace> trace;
  if (in && start == engine::kStepTraceMagic) {
    trace = ReadSteps(path, progress);
  } else {
    in.clear();
    in.seekg(0);
    trace = ReadRequests(path, in, progress);
  }
  if (trace.ok() && trace->blocks.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": got a trace without references, expected at least one"));
  }
  return trace;
}

}  // namespace terrace::replay
