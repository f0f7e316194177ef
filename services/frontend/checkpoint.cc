#include "services/frontend/checkpoint.h"

#include <xxhash.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace terrace::frontend {
namespace {

using nlohmann::json;

constexpr char kSingleFile[] = "/model.safetensors";
constexpr char kIndexFile[] = "/model.safetensors.index.json";

absl::Status Refuse(const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
}

// tensor name -> file name.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const json index = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (index.is_discarded() || !index.is_object()) return Refuse(path, "not a JSON object");
  const auto weights = index.find("weight_map");
  if (weights == index.end() || !weights->is_object() || weights->empty()) {
    return Refuse(path, "no weight_map");
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : weights->items()) {
    if (!file.is_string()) return Refuse(path, absl::StrCat("tensor ", tensor, ": no file name"));
    const std::string name = file.get<std::string>();
    // A checkpoint may come from a stranger: it must not name files outside its directory.
    if (name.empty() || name.find('/') != std::string::npos || name == "..") {
      return Refuse(path, absl::StrCat("tensor ", tensor, ": \"", name,
                                       "\" is not the name of a file beside the index"));
    }
    files[tensor] = name;
  }
  return files;
}

struct FreeHash {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

}  // namespace

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& directory) {
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  std::error_code ignored;
  const std::string single = absl::StrCat(directory, kSingleFile);
  const std::string index_path = absl::StrCat(directory, kIndexFile);
  if (std::filesystem::exists(single, ignored) || !std::filesystem::exists(index_path, ignored)) {
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(single);
    if (!file.ok()) return file.status();
    checkpoint.files_.push_back(*std::move(file));
    return checkpoint;
  }
  const auto index = ReadIndex(index_path);
  if (!index.ok()) return index.status();
  std::set<std::string> names;
  for (const auto& [tensor, file] : *index) names.insert(file);
  std::set<std::string> seen;
  for (const std::string& name : names) {
    absl::StatusOr<SafetensorsFile> file =
        SafetensorsFile::Open(absl::StrCat(directory, "/", name));
    if (!file.ok()) return file.status();
    for (const auto& [tensor, view] : file->tensors()) {
      if (!seen.insert(tensor).second) {
        return Refuse(file->path(), absl::StrCat("tensor ", tensor, " stands in another file too"));
      }
    }
    checkpoint.files_.push_back(*std::move(file));
  }
  for (const auto& [tensor, file] : *index) {
    if (seen.count(tensor) == 0) {
      return Refuse(index_path, absl::StrCat("tensor ", tensor, " is not in ", file));
    }
  }
  return checkpoint;
}

absl::StatusOr<const TensorView*> Checkpoint::Get(absl::string_view name,
                                                  absl::Span<const int64_t> shape) const {
  for (const SafetensorsFile& file : files_) {
    const TensorView* tensor = file.Find(name);
    if (tensor == nullptr) continue;
    if (absl::MakeConstSpan(tensor->shape) != shape) {
      return Refuse(file.path(), absl::StrCat("tensor ", name, ": shape ", ShapeText(tensor->shape),
                                              ", ", ShapeText(shape), " expected"));
    }
    if (tensor->dtype != "F32" && tensor->dtype != "BF16" && tensor->dtype != "F16") {
      return Refuse(file.path(), absl::StrCat("tensor ", name, ": dtype ", tensor->dtype,
                                              ", F32, BF16 or F16 expected"));
    }
    return tensor;
  }
  return absl::NotFoundError(
      absl::StrCat(directory_, ": tensor ", name, " is missing, ", ShapeText(shape), " expected"));
}

std::string Checkpoint::Digest() const {
  std::map<std::string, const TensorView*> tensors;
  for (const SafetensorsFile& file : files_) {
    for (const auto& [name, tensor] : file.tensors()) tensors[name] = &tensor;
  }
  const std::unique_ptr<XXH3_state_t, FreeHash> hash(XXH3_createState());
  XXH3_128bits_reset(hash.get());
  for (const auto& [name, tensor] : tensors) {
    // Lengths make the concatenation unambiguous.
    const std::string head = absl::StrCat(name.size(), " ", name, " ", tensor->dtype,
                                          ShapeText(tensor->shape), tensor->data.size(), "\n");
    XXH3_128bits_update(hash.get(), head.data(), head.size());
    XXH3_128bits_update(hash.get(), tensor->data.data(), tensor->data.size());
  }
  const XXH128_hash_t digest = XXH3_128bits_digest(hash.get());
  return absl::StrFormat("%016x%016x", digest.high64, digest.low64);
}

}  // namespace terrace::frontend
