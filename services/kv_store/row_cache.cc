#include "services/kv_store/row_cache.h"

#include <algorithm>

namespace terrace::kv_store {

size_t RowSet::bytes() const {
  size_t total = sizeof(*this) + rows.size() + pointers.size() * sizeof(pointers[0]);
  for (const std::vector<uint32_t>& positions : held.positions) {
    total += positions.size() * sizeof(uint32_t);
  }
  return total;
}

absl::StatusOr<std::shared_ptr<const RowSet>> JoinRows(const RowSet* before,
                                                       const engine::StepPart& part) {
  const size_t row_bytes = part.geometry.row_bytes();
  if (before != nullptr && before->held.generation != part.generation) before = nullptr;
  auto joined = std::make_shared<RowSet>();
  joined->held.generation = part.generation;
  size_t total = 0;
  for (const engine::Selection& selection : part.selections) total += selection.positions.size();
  joined->rows.resize(total * row_bytes);
  std::byte* out = joined->rows.data();
  size_t arrived = 0;
  size_t held_before = 0;
  for (size_t slot = 0; slot < part.selections.size(); ++slot) {
    const std::vector<uint32_t> none;
    const std::vector<uint32_t>& old = before != nullptr && slot < before->held.positions.size()
                                           ? before->held.positions[slot]
                                           : none;
    for (const uint32_t position : part.selections[slot].positions) {
      const auto found = std::lower_bound(old.begin(), old.end(), position);
      const std::byte* row = nullptr;
      if (found != old.end() && *found == position) {
        row = before->pointers[held_before + (found - old.begin())];
      } else if (arrived + row_bytes <= part.rows.size()) {
        row = part.rows.data() + arrived;
        arrived += row_bytes;
      } else {
        return absl::InternalError("the store sent fewer rows than it selected");
      }
      std::copy_n(row, row_bytes, out);
      joined->pointers.push_back(out);
      out += row_bytes;
    }
    held_before += old.size();
    joined->held.positions.push_back(part.selections[slot].positions);
  }
  if (arrived != part.rows.size()) {
    return absl::InternalError("the store sent more rows than it selected");
  }
  return joined;
}

std::shared_ptr<const RowSet> RowCache::Get(const std::string& handle, int layer) {
  const kvstore::MutexLock lock(mu_);
  const auto found = entries_.find({handle, layer});
  if (found == entries_.end()) return nullptr;
  ages_.splice(ages_.begin(), ages_, found->second.age);
  return found->second.rows;
}

void RowCache::EraseLocked(std::map<Key, Entry>::iterator entry) {
  bytes_ -= entry->second.rows->bytes();
  ages_.erase(entry->second.age);
  entries_.erase(entry);
}

void RowCache::Put(const std::string& handle, int layer, std::shared_ptr<const RowSet> rows) {
  const size_t size = rows->bytes();
  const kvstore::MutexLock lock(mu_);
  if (const auto found = entries_.find({handle, layer}); found != entries_.end()) {
    EraseLocked(found);
  }
  if (size > bytes_max_) return;
  while (bytes_ + size > bytes_max_) EraseLocked(entries_.find(ages_.back()));
  ages_.emplace_front(handle, layer);
  entries_.emplace(ages_.front(), Entry{.rows = std::move(rows), .age = ages_.begin()});
  bytes_ += size;
}

void RowCache::Forget(const std::string& handle) {
  const kvstore::MutexLock lock(mu_);
  auto entry = entries_.lower_bound({handle, 0});
  while (entry != entries_.end() && entry->first.first == handle) EraseLocked(entry++);
}

}  // namespace terrace::kv_store
