#include "kvstore/block_store.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/block_store_impl.h"
#include "kvstore/extent_reader.h"

namespace terrace::kvstore {

absl::Status StoreOptions::Validate() const {
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  if (host_bytes < kMiB) {
    return absl::InvalidArgumentError(
        absl::StrCat("host_bytes is ", host_bytes, ", allowed: at least ", kMiB));
  }
  if (!disk_path.empty() && disk_bytes < 64 * kMiB) {
    return absl::InvalidArgumentError(
        absl::StrCat("disk_bytes is ", disk_bytes, ", allowed: at least ", 64 * kMiB));
  }
  if (reader_threads < 1 || reader_threads > 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("reader_threads is ", reader_threads, ", allowed: 1 to 64"));
  }
  return absl::OkStatus();
}

Pins::Pins() = default;
Pins::Pins(Pins&&) noexcept = default;
Pins& Pins::operator=(Pins&&) noexcept = default;
Pins::~Pins() = default;

absl::Span<const PinnedExtent> Pins::extents() const {
  if (state_ == nullptr) return {};
  return state_->extents;
}

absl::StatusOr<std::unique_ptr<BlockStore>> BlockStore::Open(const StoreOptions& options) {
  return OpenBlockStore(options, nullptr);
}

}  // namespace terrace::kvstore
