// What an EngineSim finds after its process or its machine has died.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/block_store_impl.h"
#include "tests/sim/engine_sim.h"
#include "tests/status_matchers.h"

namespace terrace::testing {

using engine::SequenceInfo;

void EngineSim::Open(Loss* loss) {
  // It may die again while it comes back.
  faulty_ = OneIn(4);
  if (faulty_) disk_.DieAfter(static_cast<uint32_t>(Pick(0, 60)));
  while (true) {
    auto store = kvstore::OpenBlockStore(options_.store, nullptr, disk_.env());
    ASSERT_TRUE(store.ok() || disk_.dead()) << "opening: " << store.status();
    if (store.ok()) engine_ = engine::EmbeddedEngine::OpenOn(options_, *std::move(store));
    if (!disk_.dead()) return;
    engine_.reset();
    const Loss again = OneIn(2) ? Loss::kNothing : Loss::kUnsynced;
    if (again == Loss::kUnsynced) *loss = again;
    disk_.Restart(again);
    faulty_ = false;
  }
}

void EngineSim::Restart(Loss loss) {
  history_.push_back(absl::StrCat("restart",
                                  loss == Loss::kUnsynced ? " without what was not synced" : "",
                                  disk_.dead() ? ", dead" : ""));
  engine_.reset();
  disk_.Restart(loss);
  Open(&loss);
  if (engine_ == nullptr) return;
  CheckRecovered(loss);
}

void EngineSim::CheckRecovered(Loss loss) {
  for (auto it = sequences_.begin(); it != sequences_.end();) {
    const bool is_there = CheckSequence(it->second, loss);
    if (::testing::Test::HasFailure()) return;
    it = is_there ? std::next(it) : sequences_.erase(it);
  }
  EndUnknown(loss);
  leases_.clear();
}

bool EngineSim::CheckSequence(Sequence& s, Loss loss) {
  const absl::StatusOr<SequenceInfo> info = engine_->Get({}, s.info.handle);
  if (absl::IsNotFound(info.status())) {
    EXPECT_TRUE(s.may_be_gone || (s.is_new && loss == Loss::kUnsynced))
        << "I6: a sequence is gone: " << info.status();
    return false;
  }
  if (!info.ok()) {
    ADD_FAILURE() << "I6: " << info.status();
    return false;
  }
  Note(s, "recovered", info->length);
  EXPECT_EQ(info->durable_length, info->length) << "I6";
  EXPECT_GE(info->length, std::min(loss == Loss::kUnsynced ? s.synced : s.written, s.refused_cut))
      << "I6: durable tokens are lost";
  std::vector<Chain> chains;
  if (loss == Loss::kUnsynced) chains = s.cut;
  chains.push_back(s.chain);
  const auto served = std::find_if(chains.rbegin(), chains.rend(), [&](const Chain& chain) {
    return ServesChain(s, chain, info->length);
  });
  if (served == chains.rend()) {
    ADD_FAILURE() << "I1, I6: " << info->length << " tokens that never were a prefix";
    return false;
  }
  const Chain chain(served->begin(), served->begin() + info->length);
  // Ids of what came back are not known any more.
  if (chain.size() > s.chain.size() || !std::equal(chain.begin(), chain.end(), s.chain.begin())) {
    s.tells_ids = false;
    s.ids.resize(std::max(chain.size(), s.ids.size()));
  }
  s.chain = chain;
  s.ids.resize(chain.size());
  s.info = *info;
  s.plain = PlainCache(geometry_);
  for (int layer = 0; layer < geometry_.layers; ++layer) {
    EXPECT_EQ(info->layer_lengths[layer], info->length) << "I6";
    s.plain.Append(layer, RowsOf(s.chain, layer, 0, info->length));
  }
  s.written = s.synced = info->length;
  s.may_be_gone = false;
  s.refused_cut = INT64_MAX;
  s.used_at_most = now_;
  s.used = now_;
  return true;
}

bool EngineSim::ServesChain(const Sequence& s, const Chain& chain, int64_t length) {
  if (length > static_cast<int64_t>(chain.size())) return false;
  std::vector<uint32_t> positions(length);
  std::iota(positions.begin(), positions.end(), 0);
  for (int layer = 0; layer < geometry_.layers; ++layer) {
    PlainCache plain(geometry_);
    plain.Append(layer, RowsOf(chain, layer, 0, length));
    for (int head = 0; head < geometry_.kv_heads; ++head) {
      const auto rows = engine_->ReadRows({}, s.info.handle, layer, head, positions);
      if (!rows.ok()) {
        ADD_FAILURE() << "I6: " << rows.status();
        return false;
      }
      std::vector<std::byte> expected;
      for (const uint32_t position : positions) {
        const std::vector<std::byte> row = plain.StoredRow(layer, head, position);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      if (*rows != expected) return false;
    }
  }
  return true;
}

// Sequences that nobody was told of, or whose end was lost.
void EngineSim::EndUnknown(Loss loss) {
  const auto all = engine_->ListSequences("", "", 1000);
  ASSERT_OK(all);
  std::set<std::string> known;
  for (const auto& [age, s] : sequences_) known.insert(s.info.handle);
  const std::set<std::string> deleted = deleted_since_sync_;
  const bool in_doubt = births_in_doubt_;
  births_in_doubt_ = false;
  // What comes back has been written anew, and synced.
  Synced();
  for (const engine::SequenceSummary& each : *all) {
    if (known.contains(each.handle)) continue;
    EXPECT_TRUE(deleted.contains(each.handle) ? loss == Loss::kUnsynced : in_doubt)
        << "I6: " << each.handle << " comes from nowhere";
    const absl::Status status = engine_->Delete(Patient(), each.handle);
    EXPECT_TRUE(status.ok() || Excused(status)) << status;
    if (status.ok()) {
      deleted_since_sync_.insert(each.handle);
    } else {
      births_in_doubt_ = true;
    }
  }
}

}  // namespace terrace::testing
