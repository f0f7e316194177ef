#include "services/engine/live_quota.h"

#include "absl/strings/str_cat.h"
#include "services/engine/error.h"

namespace terrace::engine {

absl::StatusOr<LiveQuota::Claim> LiveQuota::Take(const std::string& tenant) {
  const kvstore::MutexLock lock(mu_);
  const auto found = live_.find(tenant);
  const int64_t has = found == live_.end() ? 0 : found->second;
  if (has >= max_) {
    return LimitExceeded(absl::StrCat("sequences: got one more than the ", has,
                                      " open ones of this tenant, expected at most ", max_));
  }
  ++live_[tenant];
  return Claim(this, tenant);
}

LiveQuota::Claim LiveQuota::TakeBack(const std::string& tenant) {
  const kvstore::MutexLock lock(mu_);
  ++live_[tenant];
  return {this, tenant};
}

void LiveQuota::Release(const std::string& tenant) {
  const kvstore::MutexLock lock(mu_);
  const auto found = live_.find(tenant);
  if (--found->second == 0) live_.erase(found);
}

}  // namespace terrace::engine
