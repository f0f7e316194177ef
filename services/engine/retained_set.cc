#include "services/engine/retained_set.h"

#include <algorithm>
#include <utility>

namespace terrace::engine {

void RetainedSet::Add(const std::string& tenant, Retained retained) {
  Tenant& owner = tenants_[tenant];
  owner.bytes += retained.bytes;
  owner.retained.push_back(std::move(retained));
  owner.sorted = false;
}

RetainedSet::Tenants::const_iterator RetainedSet::Most() const {
  return std::max_element(tenants_.begin(), tenants_.end(), [](const auto& a, const auto& b) {
    return a.second.bytes < b.second.bytes;
  });
}

uint64_t RetainedSet::MostBytes() const { return tenants_.empty() ? 0 : Most()->second.bytes; }

std::optional<Retained> RetainedSet::Take() {
  if (tenants_.empty()) return std::nullopt;
  Tenant& most = tenants_.find(Most()->first)->second;
  if (most.retained.empty()) return std::nullopt;
  if (!most.sorted) {
    std::sort(most.retained.begin(), most.retained.end(),
              [](const Retained& a, const Retained& b) { return a.last_used_us > b.last_used_us; });
    most.sorted = true;
  }
  Retained taken = std::move(most.retained.back());
  most.retained.pop_back();
  most.bytes -= taken.bytes;
  return taken;
}

}  // namespace terrace::engine
