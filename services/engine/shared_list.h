// SharedList: a list that grows at its end and is cut there, and whose copies share what both have:
// a copy costs a pointer per chunk and one chunk's items. Chunks that are full never change, so
// copies need no lock between them; one list is not thread-safe.
#ifndef TERRACE_SERVICES_ENGINE_SHARED_LIST_H_
#define TERRACE_SERVICES_ENGINE_SHARED_LIST_H_

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "absl/types/span.h"

namespace terrace::engine {

template <typename Item, size_t kChunkItems>
class SharedList {
 public:
  size_t size() const { return full_.size() * kChunkItems + tail_.size(); }
  bool empty() const { return size() == 0; }
  // Requires: i < size(). Valid until the list changes.
  const Item& operator[](size_t i) const { return ChunkOf(i)[i % kChunkItems]; }
  const Item& back() const { return (*this)[size() - 1]; }
  // Requires: first + count <= size(), all of one chunk. Valid until the list changes.
  absl::Span<const Item> Run(size_t first, size_t count) const {
    return absl::MakeConstSpan(ChunkOf(first)).subspan(first % kChunkItems, count);
  }
  // Items [first, last). Requires: first <= last <= size().
  std::vector<Item> Copy(size_t first, size_t last) const {
    std::vector<Item> items;
    items.reserve(last - first);
    while (first < last) {
      const size_t count = std::min(last - first, kChunkItems - first % kChunkItems);
      const absl::Span<const Item> run = Run(first, count);
      items.insert(items.end(), run.begin(), run.end());
      first += count;
    }
    return items;
  }

  void Append(absl::Span<const Item> items) {
    while (!items.empty()) {
      const size_t count = std::min(items.size(), kChunkItems - tail_.size());
      tail_.insert(tail_.end(), items.begin(), items.begin() + count);
      items.remove_prefix(count);
      if (tail_.size() < kChunkItems) continue;
      full_.push_back(std::make_shared<const std::vector<Item>>(std::exchange(tail_, {})));
    }
  }
  // Keeps the first `size` items. Requires: size <= size().
  void Cut(size_t size) {
    const size_t whole = size / kChunkItems;
    if (whole < full_.size()) {
      tail_ = *full_[whole];
      full_.resize(whole);
    }
    tail_.resize(size % kChunkItems);
  }

 private:
  const std::vector<Item>& ChunkOf(size_t i) const {
    const size_t chunk = i / kChunkItems;
    return chunk < full_.size() ? *full_[chunk] : tail_;
  }

  // Shared with copies of the list.
  std::vector<std::shared_ptr<const std::vector<Item>>> full_;
  // Less than a chunk.
  std::vector<Item> tail_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_SHARED_LIST_H_
