#include "services/frontend/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "absl/base/internal/endian.h"
#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "attention/dtype.h"

namespace terrace::frontend {
namespace {

using nlohmann::json;

// The reference implementation refuses longer headers too.
constexpr uint64_t kHeaderBytesMax = 100'000'000;
constexpr size_t kRankMax = 16;

struct ElementType {
  absl::string_view name;
  uint64_t bytes;
};
constexpr ElementType kElementTypes[] = {{"BOOL", 1},    {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1},
                                         {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
                                         {"BF16", 2},    {"U32", 4}, {"I32", 4}, {"F32", 4},
                                         {"U64", 8},     {"I64", 8}, {"F64", 8}};

std::optional<uint64_t> ElementBytes(absl::string_view dtype) {
  for (const ElementType& type : kElementTypes) {
    if (type.name == dtype) return type.bytes;
  }
  return std::nullopt;
}

// Bytes of a tensor; nothing if they do not fit in 63 bits.
std::optional<uint64_t> TensorBytes(absl::Span<const int64_t> shape, uint64_t element_bytes) {
  uint64_t bytes = element_bytes;
  for (const int64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes)) return std::nullopt;
  }
  if (bytes >> 63 != 0) return std::nullopt;
  return bytes;
}

struct Range {
  uint64_t begin = 0;
  uint64_t end = 0;
  absl::string_view name;
};

// Parses one entry of the header; `data` is what follows the header.
absl::StatusOr<TensorView> ParseTensor(const std::string& name, const json& entry,
                                       absl::Span<const std::byte> data) {
  auto refuse = [&name](auto&&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, ": ", parts...));
  };
  if (!entry.is_object()) return refuse("header entry is not an object");
  const auto dtype = entry.find("dtype");
  const auto shape = entry.find("shape");
  const auto offsets = entry.find("data_offsets");
  if (dtype == entry.end() || !dtype->is_string()) return refuse("no dtype");
  if (shape == entry.end() || !shape->is_array()) return refuse("no shape");
  if (shape->size() > kRankMax) {
    return refuse("rank ", shape->size(), ", at most ", kRankMax, " expected");
  }
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    return refuse("data_offsets are not two unsigned numbers");
  }
  TensorView tensor;
  tensor.name = name;
  tensor.dtype = dtype->get<std::string>();
  const std::optional<uint64_t> element_bytes = ElementBytes(tensor.dtype);
  if (!element_bytes.has_value()) return refuse("unknown dtype \"", tensor.dtype, "\"");
  for (const json& extent : *shape) {
    if (!extent.is_number_unsigned() || extent.get<uint64_t>() >> 62 != 0) {
      return refuse("shape entry ", extent.dump(), " is no extent");
    }
    tensor.shape.push_back(extent.get<int64_t>());
  }
  const uint64_t begin = (*offsets)[0].get<uint64_t>();
  const uint64_t end = (*offsets)[1].get<uint64_t>();
  if (begin > end) return refuse("data_offsets [", begin, ", ", end, ") run backwards");
  if (end > data.size()) {
    return absl::DataLossError(absl::StrCat("tensor ", name, ": ends at byte ", end,
                                            " of the data, but the file holds only ", data.size()));
  }
  const std::optional<uint64_t> bytes = TensorBytes(tensor.shape, *element_bytes);
  if (!bytes.has_value() || *bytes != end - begin) {
    return refuse(end - begin, " bytes, ", bytes.has_value() ? absl::StrCat(*bytes) : "far more",
                  " expected for ", tensor.dtype, " ", ShapeText(tensor.shape));
  }
  tensor.data = data.subspan(begin, end - begin);
  return tensor;
}

// The ranges must tile the data: no overlap, no hole, nothing behind.
absl::Status CheckRanges(std::vector<Range> ranges, uint64_t data_bytes) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  Range last;
  for (const Range& range : ranges) {
    if (range.begin < last.end) {
      return absl::InvalidArgumentError(absl::StrCat("tensors ", last.name, " and ", range.name,
                                                     " overlap: the first ends at ", last.end,
                                                     ", the second begins at ", range.begin));
    }
    if (range.begin > last.end) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", range.name, " begins at ",
                                                     range.begin, ", ", last.end,
                                                     " expected: bytes between belong to none"));
    }
    last = range;
  }
  if (last.end != data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(data_bytes - last.end, " bytes behind the last tensor, 0 expected"));
  }
  return absl::OkStatus();
}

// The header as JSON; a key that is given twice is an error, as the format demands.
absl::StatusOr<json> ParseHeader(absl::string_view text) {
  std::set<std::string> names;
  std::string repeated;
  const json::parser_callback_t watch = [&](int depth, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::key && depth == 1 &&
        !names.insert(value.get<std::string>()).second) {
      repeated = value.get<std::string>();
    }
    return true;
  };
  json header = json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (header.is_discarded() || !header.is_object()) {
    return absl::InvalidArgumentError("the header is not a JSON object");
  }
  if (!repeated.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", repeated, " is named twice"));
  }
  return header;
}

absl::Status WithPath(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

}  // namespace

int64_t TensorView::elements() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

std::string ShapeText(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

void SafetensorsFile::Unmap::operator()(const std::byte* address) const {
  munmap(const_cast<std::byte*>(address), bytes);
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  const absl::Cleanup close_file = [descriptor] { close(descriptor); };
  struct stat info = {};
  if (fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  const size_t bytes = static_cast<size_t>(info.st_size);
  if (bytes < sizeof(uint64_t)) {
    return absl::DataLossError(
        absl::StrCat(path, ": ", bytes, " bytes, at least ", sizeof(uint64_t), " expected"));
  }
  void* address = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (address == MAP_FAILED) {
    return absl::InternalError(absl::StrCat(path, ": mmap: ", std::strerror(errno)));
  }
  SafetensorsFile file;
  file.path_ = path;
  file.mapping_ = Mapping(static_cast<const std::byte*>(address), Unmap(bytes));
  if (absl::Status status = file.ReadHeader({file.mapping_.get(), bytes}); !status.ok()) {
    return WithPath(path, status);
  }
  return file;
}

absl::Status SafetensorsFile::ReadHeader(absl::Span<const std::byte> file) {
  const uint64_t header_bytes = absl::little_endian::Load64(file.data());
  if (header_bytes > kHeaderBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("not a safetensors file: header length ",
                                                   header_bytes, ", at most ", kHeaderBytesMax,
                                                   " expected"));
  }
  const absl::Span<const std::byte> rest = file.subspan(sizeof(uint64_t));
  if (header_bytes > rest.size()) {
    return absl::DataLossError(absl::StrCat("the header has ", header_bytes,
                                            " bytes, but the file holds only ", rest.size()));
  }
  const absl::StatusOr<json> header =
      ParseHeader(absl::string_view(reinterpret_cast<const char*>(rest.data()), header_bytes));
  if (!header.ok()) return header.status();
  const absl::Span<const std::byte> data = rest.subspan(header_bytes);
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") continue;
    absl::StatusOr<TensorView> tensor = ParseTensor(name, entry, data);
    if (!tensor.ok()) return tensor.status();
    tensors_.emplace(name, *std::move(tensor));
  }
  std::vector<Range> ranges;
  for (const auto& [name, tensor] : tensors_) {
    const uint64_t begin = static_cast<uint64_t>(tensor.data.data() - data.data());
    ranges.push_back({begin, begin + tensor.data.size(), name});
  }
  return CheckRanges(std::move(ranges), data.size());
}

const TensorView* SafetensorsFile::Find(absl::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

absl::Status ReadFloats(const TensorView& tensor, absl::Span<float> out) {
  attention::Dtype dtype = attention::Dtype::kFloat32;
  if (tensor.dtype == "BF16") {
    dtype = attention::Dtype::kBFloat16;
  } else if (tensor.dtype == "F16") {
    dtype = attention::Dtype::kFloat16;
  } else if (tensor.dtype != "F32") {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", tensor.name, ": dtype ", tensor.dtype,
                                                   ", F32, BF16 or F16 expected"));
  }
  attention::ToFloat(dtype, tensor.data.data(), out.size(), out.data());
  return absl::OkStatus();
}

}  // namespace terrace::frontend
