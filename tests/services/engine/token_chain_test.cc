// What a sequence knows of its tokens, and that forks share it.
#include "services/engine/token_chain.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "services/engine/sequence.h"
#include "services/engine/shared_list.h"
#include "tests/services/engine/engine_client.h"

namespace terrace::engine {
namespace {

constexpr size_t kChunk = 4;
using List = SharedList<int, kChunk>;

void ExpectHolds(const List& list, const std::vector<int>& expected) {
  ASSERT_EQ(list.size(), expected.size());
  EXPECT_EQ(list.empty(), expected.empty());
  EXPECT_EQ(list.Copy(0, list.size()), expected);
  for (size_t i = 0; i < expected.size(); ++i) ASSERT_EQ(list[i], expected[i]) << i;
}

// Lists that are copies of each other, each beside a plain one.
TEST(SharedListTest, CopiesGoOnApart) {
  std::mt19937 random(1);
  std::vector<List> lists(3);
  std::vector<std::vector<int>> plain(3);
  for (int i = 0; i < 5000; ++i) {
    const size_t at = random() % 3;
    switch (random() % 4) {
      case 0: {
        const size_t from = random() % 3;
        lists[at] = List(lists[from]);
        plain[at] = std::vector<int>(plain[from]);
        break;
      }
      case 1: {
        const size_t size = random() % (plain[at].size() + 1);
        lists[at].Cut(size);
        plain[at].resize(size);
        break;
      }
      default: {
        std::vector<int> more(random() % (2 * kChunk + 2));
        std::iota(more.begin(), more.end(), i);
        lists[at].Append(more);
        plain[at].insert(plain[at].end(), more.begin(), more.end());
      }
    }
    for (size_t list = 0; list < 3; ++list) ExpectHolds(lists[list], plain[list]);
    if (HasFatalFailure()) FAIL() << i;
  }
}

TEST(SharedListTest, ACutAtAChunksEndKeepsItShared) {
  for (const size_t size : {kChunk - 1, kChunk, kChunk + 1}) {
    List list;
    const std::vector<int> items = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    list.Append(items);
    List copy = list;
    copy.Cut(size);
    EXPECT_EQ(&copy[0] == &list[0], size >= kChunk) << size;
    EXPECT_EQ(copy.back(), static_cast<int>(size) - 1);
    EXPECT_EQ(list.size(), items.size());
  }
}

std::shared_ptr<Sequence> NewSequence() {
  SequenceRecord record;
  record.spec = testing::Spec(testing::SmallGeometry());
  return std::make_shared<Sequence>("handle", SequenceLayout::Make(record.spec, 64, 1024), record,
                                    Sha256);
}

TEST(TokenChainTest, AForkOfALongSequenceSharesWhatIsKnownOfIt) {
  constexpr int64_t kTokens = 128 << 10;
  const std::shared_ptr<Sequence> parent = NewSequence();
  std::vector<uint32_t> ids(kTokens);
  std::iota(ids.begin(), ids.end(), 7U);
  const kvstore::MutexLock lock(parent->tokens_mu);
  ASSERT_TRUE(parent->tokens.Add(0, ids));
  parent->tokens.Advance(kTokens);
  const TokenChain::Hashes& hashes = parent->tokens.blocks();
  ASSERT_EQ(hashes.size(), kTokens / 64);
  for (const int64_t length : {kTokens, kTokens - 1, kTokens / 2 + 33}) {
    TokenChain child = parent->tokens;
    child.Cut(length);
    ASSERT_EQ(child.blocks().size(), length / 64);
    EXPECT_EQ(child.end(), length);
    EXPECT_EQ(&child.blocks()[0], &hashes[0]);
    // All but the chunk that is cut.
    const size_t shared = child.blocks().size() / 256 * 256;
    EXPECT_EQ(&child.blocks()[shared - 1], &hashes[shared - 1]);
    // And its ids are known: it goes on with the hashes of its parent, or others.
    ASSERT_EQ(child.Add(length, absl::MakeConstSpan(ids).subspan(length)), length < kTokens);
    child.Advance(kTokens);
    EXPECT_EQ(child.blocks().back(), hashes.back());
    child.Cut(length - 64);
    child.Add(length - 64, std::vector<uint32_t>(128, 1));
    child.Advance(length + 64);
    EXPECT_FALSE(child.blocks()[length / 64 - 1] == hashes[length / 64 - 1]);
  }
}

}  // namespace
}  // namespace terrace::engine
