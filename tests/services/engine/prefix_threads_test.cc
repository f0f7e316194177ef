// Writers, truncates, closes, look-ups and openings of the same prefixes, all at once: a sequence
// that was opened on a prefix has the rows of its ids, whatever became of who wrote them.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/services/engine/prefix_client.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;

constexpr int64_t kTokens = 330;
constexpr int kTexts = 2;

uint64_t SeedOf(uint32_t text) { return text + 10; }

// Rows [0, length) of every layer and KV head are those of the text.
void ExpectRowsOf(engine::EmbeddedEngine& engine, const SequenceInfo& info, uint32_t text,
                  int64_t length) {
  if (length == 0) return;
  const engine::Geometry geometry = SmallGeometry();
  PlainCache plain(geometry);
  std::vector<uint32_t> positions;
  for (int64_t i = 0; i < length; ++i) positions.push_back(static_cast<uint32_t>(i));
  for (int layer = 0; layer < geometry.layers; ++layer) {
    plain.Append(layer, MakeRows(geometry, SeedOf(text), layer, 0, length));
    for (int head = 0; head < geometry.kv_heads; ++head) {
      const auto rows = engine.ReadRows({}, info.handle, layer, head, positions);
      ASSERT_OK(rows);
      std::vector<std::byte> expected;
      for (int64_t i = 0; i < length; ++i) {
        const std::vector<std::byte> row = plain.StoredRow(layer, head, i);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      ASSERT_TRUE(*rows == expected) << "text " << text << ", layer " << layer;
    }
  }
}

TEST(PrefixThreadsTest, WhatIsOpenedOnAPrefixHasItsRows) {
  const TempFolder folder;
  engine::EmbeddedOptions options = DiskOptions(folder);
  options.store.durability = kvstore::Durability::kAsync;
  options.store.host_bytes = uint64_t{64} << 20;
  options.store.disk_bytes = uint64_t{256} << 20;
  options.sweep_interval = absl::Milliseconds(1);
  const std::unique_ptr<engine::EmbeddedEngine> engine = OpenEngine(options);
  std::atomic<int> shared = 0;
  const auto run = [&](int thread) {
    std::mt19937 random(static_cast<unsigned>(thread));
    for (int round = 0; round < 40 && !::testing::Test::HasFailure(); ++round) {
      const uint32_t text = random() % kTexts;
      const Ids ids = TextIds(text, kTokens);
      engine::PrefixQuery query = QueryOf(ids);
      if (random() % 2 == 0) query.spec.retention = absl::Milliseconds(random() % 20);
      std::string lease;
      if (random() % 4 == 0) {
        const auto found = engine->LookupPrefix({}, query, absl::Milliseconds(50));
        ASSERT_OK(found);
        lease = found->lease;
      }
      const auto info = engine->OpenOnPrefix({}, query, lease);
      ASSERT_OK(info);
      shared += info->length > 0 ? 1 : 0;
      ExpectRowsOf(*engine, *info, text, info->length);
      ASSERT_OK(AppendIds(*engine, *info, SeedOf(text), info->length, ids));
      const int64_t cut = random() % kTokens;
      ASSERT_OK(engine->Truncate({}, info->handle, info->writer_epoch, cut));
      ASSERT_OK(AppendIds(*engine, *info, SeedOf(text), cut, ids));
      ExpectRowsOf(*engine, *info, text, kTokens);
      if (random() % 4 == 0) continue;
      ASSERT_OK(engine->Delete({}, info->handle));
    }
  };
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) threads.emplace_back(run, thread);
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(shared, 0);
}

}  // namespace
}  // namespace terrace::testing
