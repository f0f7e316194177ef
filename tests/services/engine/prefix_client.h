// What tests of shared prefixes share: appends with token ids, and queries for them.
#ifndef TERRACE_TESTS_SERVICES_ENGINE_PREFIX_CLIENT_H_
#define TERRACE_TESTS_SERVICES_ENGINE_PREFIX_CLIENT_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "tests/services/engine/engine_client.h"
#include "tests/services/engine/plain_cache.h"
#include "tests/status_matchers.h"

namespace terrace::testing {

using Ids = std::vector<uint32_t>;

// Ids [first, first + count) of a text.
inline Ids TextIds(uint32_t text, int64_t count) {
  Ids ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(text * 100'000 + static_cast<uint32_t>(i));
  return ids;
}

// Rows of the seed at [first, ids.size()) of one layer, and the ids of those.
inline absl::Status AppendLayer(engine::KvEngine& engine, const engine::SequenceInfo& info,
                                uint64_t seed, int layer, int64_t first, const Ids& ids,
                                const engine::Caller& caller = {}) {
  const engine::Geometry& geometry = info.spec.geometry;
  const auto n = static_cast<int64_t>(ids.size()) - first;
  const KvRows rows = MakeRows(geometry, seed, layer, first, n);
  const HostTensor k = MakeTensor(rows.k, n, geometry.kv_heads, geometry.head_dim);
  const HostTensor v = MakeTensor(rows.v, n, geometry.kv_heads, geometry.head_dim);
  return engine
      .Append(caller, {.handle = info.handle,
                       .writer_epoch = info.writer_epoch,
                       .layer = layer,
                       .position = first,
                       .k = k.view(),
                       .v = v.view(),
                       .token_position = first,
                       .token_ids = absl::MakeConstSpan(ids).subspan(first)})
      .status();
}

// The same in all layers.
inline absl::Status AppendIds(engine::KvEngine& engine, const engine::SequenceInfo& info,
                              uint64_t seed, int64_t first, const Ids& ids,
                              const engine::Caller& caller = {}) {
  for (int layer = 0; layer < info.spec.geometry.layers; ++layer) {
    absl::Status status = AppendLayer(engine, info, seed, layer, first, ids, caller);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

inline engine::PrefixQuery QueryOf(const Ids& ids, bool accept_sparse = false) {
  return {.spec = Spec(SmallGeometry()), .token_ids = ids, .accept_sparse = accept_sparse};
}

// Tokens that are found; -1 for an error.
inline int64_t FoundTokens(engine::KvEngine& engine, const Ids& ids, bool accept_sparse = false,
                           const engine::Caller& caller = {}) {
  const auto found = engine.LookupPrefix(caller, QueryOf(ids, accept_sparse), {});
  EXPECT_OK(found);
  return found.ok() ? found->tokens : -1;
}

// Another id at one position.
inline Ids WithOther(Ids ids, size_t position) {
  ids[position] += 50'000;
  return ids;
}

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_ENGINE_PREFIX_CLIENT_H_
