// LiveQuota: how many live sequences each tenant has, those that are neither closed nor leases, and
// that none gets more than its share.
#ifndef TERRACE_SERVICES_ENGINE_LIVE_QUOTA_H_
#define TERRACE_SERVICES_ENGINE_LIVE_QUOTA_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "kvstore/mutex.h"

namespace terrace::engine {

// Thread-safe. Outlives its claims.
class LiveQuota {
 public:
  // One sequence's place; given back when it is destroyed or assigned to.
  class Claim {
   public:
    Claim() = default;
    Claim(LiveQuota* quota, std::string tenant) : quota_(quota), tenant_(std::move(tenant)) {}
    Claim(Claim&& other) noexcept
        : quota_(std::exchange(other.quota_, nullptr)), tenant_(std::move(other.tenant_)) {}
    Claim& operator=(Claim&& other) noexcept {
      std::swap(quota_, other.quota_);
      std::swap(tenant_, other.tenant_);
      // What it had goes now, not when the other ends.
      other.Give();
      return *this;
    }
    ~Claim() { Give(); }

   private:
    void Give() {
      if (quota_ != nullptr) std::exchange(quota_, nullptr)->Release(tenant_);
    }

    // Null for none.
    LiveQuota* quota_ = nullptr;
    std::string tenant_;
  };

  explicit LiveQuota(int64_t max) : max_(max) {}

  // ResourceExhausted when the tenant has as many as it may.
  absl::StatusOr<Claim> Take(const std::string& tenant);
  // The same beyond the limit, for what was there before this start.
  Claim TakeBack(const std::string& tenant);

 private:
  void Release(const std::string& tenant);

  const int64_t max_;
  kvstore::Mutex mu_;
  // Those that have any.
  absl::flat_hash_map<std::string, int64_t> live_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::engine

#endif  // TERRACE_SERVICES_ENGINE_LIVE_QUOTA_H_
