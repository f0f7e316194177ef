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

RetainedSet::Tenants::iterator RetainedSet::Most() {
  auto most = tenants_.end();
  for (auto it = tenants_.begin(); it != tenants_.end(); ++it) {
    if (it->second.retained.empty()) continue;
    if (most == tenants_.end() || it->second.bytes > most->second.bytes) most = it;
  }
  return most;
}

uint64_t RetainedSet::MostBytes() {
  const auto most = Most();
  return most == tenants_.end() ? 0 : most->second.bytes;
}

std::optional<Retained> RetainedSet::Take() {
  const auto found = Most();
  if (found == tenants_.end()) return std::nullopt;
  Tenant& most = found->second;
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
