#include "kvstore/placement_policy.h"

#include <cstdlib>

#include "kvstore/heat_policy.h"
#include "kvstore/lru_policy.h"
#include "kvstore/s3fifo_policy.h"

namespace terrace::kvstore {

std::unique_ptr<PlacementPolicy> MakePlacementPolicy(PolicyKind kind,
                                                     const PlacementOptions& options) {
  switch (kind) {
    case PolicyKind::kHeat:
      return std::make_unique<HeatPolicy>(options.heat);
    case PolicyKind::kLru:
      return std::make_unique<LruPolicy>();
    case PolicyKind::kS3Fifo:
      return std::make_unique<S3FifoPolicy>(options.s3fifo);
  }
  std::abort();
}

absl::string_view PolicyName(PolicyKind kind) {
  switch (kind) {
    case PolicyKind::kHeat:
      return "heat";
    case PolicyKind::kLru:
      return "lru";
    case PolicyKind::kS3Fifo:
      return "s3fifo";
  }
  std::abort();
}

std::optional<PolicyKind> ParsePolicyKind(absl::string_view name) {
  for (const PolicyKind kind : {PolicyKind::kHeat, PolicyKind::kLru, PolicyKind::kS3Fifo}) {
    if (name == PolicyName(kind)) return kind;
  }
  return std::nullopt;
}

}  // namespace terrace::kvstore
