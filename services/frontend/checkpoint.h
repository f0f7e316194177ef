// The weights of a HuggingFace checkpoint: one safetensors file, or several behind an index.
#ifndef TERRACE_SERVICES_FRONTEND_CHECKPOINT_H_
#define TERRACE_SERVICES_FRONTEND_CHECKPOINT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/frontend/safetensors.h"

namespace terrace::frontend {

// Checkpoint finds tensors by name over all files of a model directory. Immutable; move-only.
class Checkpoint {
 public:
  // Opens DIRECTORY/model.safetensors or, without it, the files that
  // DIRECTORY/model.safetensors.index.json names. Errors are those of SafetensorsFile::Open, and
  // InvalidArgument for an index that is malformed or disagrees with its files.
  static absl::StatusOr<Checkpoint> Open(const std::string& directory);

  // NotFound if no file holds the tensor; InvalidArgument if its shape differs or its dtype is
  // none of F32, BF16 and F16. The view lives as long as the checkpoint.
  absl::StatusOr<const TensorView*> Get(absl::string_view name,
                                        absl::Span<const int64_t> shape) const;

  // Name of the first tensor for which `refuse` is true; empty if there is none.
  template <typename Predicate>
  std::string FirstWhere(Predicate refuse) const {
    for (const SafetensorsFile& file : files_) {
      for (const auto& [name, tensor] : file.tensors()) {
        if (refuse(name)) return name;
      }
    }
    return "";
  }

  // Hex digest over names, dtypes, shapes and bytes of all tensors: equal weights, equal digest,
  // however they are spread over files.
  std::string Digest() const;

 private:
  std::string directory_;
  std::vector<SafetensorsFile> files_;
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_CHECKPOINT_H_
