// Placement policies written down once more, slowly: everything is searched for in plain vectors
// each time. What they agree on with the real ones is right, unless both are wrong alike.
#ifndef TERRACE_TESTS_KVSTORE_PLAIN_POLICY_H_
#define TERRACE_TESTS_KVSTORE_PLAIN_POLICY_H_

#include <memory>

#include "kvstore/placement_policy.h"

namespace terrace::testing {

std::unique_ptr<kvstore::PlacementPolicy> MakePlainPolicy(kvstore::PolicyKind kind,
                                                          const kvstore::PlacementOptions& options);

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_KVSTORE_PLAIN_POLICY_H_
