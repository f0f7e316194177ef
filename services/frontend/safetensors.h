// Reader of the safetensors file format: 8 bytes of little-endian header length, a JSON header
// that names each tensor's dtype, shape and byte range, then the bytes of all tensors.
#ifndef TERRACE_SERVICES_FRONTEND_SAFETENSORS_H_
#define TERRACE_SERVICES_FRONTEND_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace terrace::frontend {

// One tensor of a mapped file. `data` may have any alignment, is little endian and row-major, and
// lives as long as the SafetensorsFile.
struct TensorView {
  std::string name;
  // As the format spells it: "F32", "BF16", "I32", ...
  std::string dtype;
  std::vector<int64_t> shape;
  absl::Span<const std::byte> data;

  int64_t elements() const;
};

// "[256, 704]".
std::string ShapeText(absl::Span<const int64_t> shape);

// SafetensorsFile maps a file and has checked every bound in its header. Immutable, so safe to
// read from many threads; move-only. The file must not be truncated while it is mapped.
class SafetensorsFile {
 public:
  // NotFound if the file cannot be opened; DataLoss if it is shorter than its header says;
  // InvalidArgument if it is no safetensors file or its header contradicts itself. The message
  // names file and tensor, what was got and what was expected.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const absl::btree_map<std::string, TensorView>& tensors() const { return tensors_; }
  // Null if there is no such tensor.
  const TensorView* Find(absl::string_view name) const;

 private:
  struct Unmap {
    Unmap() : bytes(0) {}
    explicit Unmap(size_t mapped_bytes) : bytes(mapped_bytes) {}
    size_t bytes;
    void operator()(const std::byte* address) const;
  };
  using Mapping = std::unique_ptr<const std::byte, Unmap>;

  absl::Status ReadHeader(absl::Span<const std::byte> file);

  std::string path_;
  Mapping mapping_;
  absl::btree_map<std::string, TensorView> tensors_;
};

// Writes the elements of an F32, BF16 or F16 tensor as floats. InvalidArgument for another dtype.
// Requires: out.size() == tensor.elements().
absl::Status ReadFloats(const TensorView& tensor, absl::Span<float> out);

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_SAFETENSORS_H_
