// RetainedSet: what may be given up for room, and who loses first: of the tenants that have
// something to give, the one that has most, and of its things the one that was used longest ago. So
// one tenant's content never costs another one more than it has itself, but for what leases and
// readers keep: those stop nobody else's from going (I11).
#ifndef TERRACE_SERVICES_ENGINE_RETAINED_SET_H_
#define TERRACE_SERVICES_ENGINE_RETAINED_SET_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "services/engine/sequence.h"
#include "services/engine/value.h"

namespace terrace::engine {

struct Retained {
  // When it was put in: it may be used meanwhile.
  int64_t last_used_us = 0;
  uint64_t bytes = 0;
  std::variant<std::shared_ptr<Sequence>, std::shared_ptr<StoredValue>> what;
};

class RetainedSet {
 public:
  // Bytes that a tenant has, or is about to have, and that cannot be given up.
  void Count(const std::string& tenant, uint64_t bytes) { tenants_[tenant].bytes += bytes; }
  void Add(const std::string& tenant, Retained retained);

  // What the tenant has that loses next; 0 when nobody has anything to give.
  uint64_t MostBytes();
  // The next to go; nothing when there is none.
  std::optional<Retained> Take();

 private:
  struct Tenant {
    uint64_t bytes = 0;
    // Sorted when the first is taken, the next to go last.
    std::vector<Retained> retained;
    bool sorted = false;
  };
  using Tenants = std::map<std::string, Tenant>;

  // Of those that have something to give; end() for none.
  Tenants::iterator Most();

  Tenants tenants_;
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_RETAINED_SET_H_
