// Prefixes, leases and time in an EngineSim.
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "tests/sim/engine_sim.h"
#include "tests/status_matchers.h"

namespace terrace::testing {
namespace {

using engine::SequenceInfo;

constexpr size_t kTextsMax = 8;

}  // namespace

// A text that others may go on with, filled up to the length of all.
void EngineSim::Remember(const Ids& ids) {
  Ids text = texts_[Pick(0, static_cast<int64_t>(texts_.size()) - 1)];
  std::copy(ids.begin(), ids.end(), text.begin());
  if (texts_.size() == kTextsMax) texts_.erase(texts_.begin() + Pick(1, kTextsMax - 1));
  texts_.push_back(std::move(text));
}

Ids EngineSim::AnyText() {
  const Ids& text = texts_[Pick(0, static_cast<int64_t>(texts_.size()) - 1)];
  return {text.begin(), text.begin() + Pick(0, static_cast<int64_t>(text.size()))};
}

void EngineSim::OpenOnPrefix() {
  if (sequences_.size() >= kSequencesMax) return;
  const Ids ids = AnyText();
  std::string lease;
  if (!leases_.empty() && OneIn(2)) {
    lease = leases_.back().name;
    leases_.pop_back();
  }
  const absl::StatusOr<SequenceInfo> info =
      engine_->OpenOnPrefix(Patient(), QueryOf(ids, OneIn(2)), lease);
  births_in_doubt_ = births_in_doubt_ || (!info.ok() && MayStand());
  if (!info.ok()) {
    EXPECT_TRUE(Excused(info.status())) << info.status();
    return;
  }
  ASSERT_LE(info->length, static_cast<int64_t>(ids.size()));
  Sequence& s = *Adopt(*info, nullptr, info->length);
  s.tells_ids = true;
  for (int64_t i = 0; i < info->length; ++i) {
    s.ids.push_back(ids[i]);
    s.chain.push_back(Link(i == 0 ? 0 : s.chain.back(), ids[i]));
  }
  for (int layer = 0; layer < geometry_.layers; ++layer) Took(s, layer, info->length);
  Note(s, "open on prefix of", static_cast<int64_t>(ids.size()));
  // The holder has been used, whoever it is.
  for (auto& [age, each] : sequences_) each.used_at_most = now_;
}

void EngineSim::LookUp() {
  const Ids ids = AnyText();
  const absl::Duration duration = OneIn(2) ? absl::ZeroDuration() : absl::Minutes(Pick(1, 10));
  const auto found = engine_->LookupPrefix(Patient(), QueryOf(ids, true), duration);
  births_in_doubt_ = births_in_doubt_ || (!found.ok() && MayStand());
  for (auto& [age, each] : sequences_) each.used_at_most = now_;
  if (!found.ok()) {
    EXPECT_TRUE(Excused(found.status())) << found.status();
    return;
  }
  ASSERT_LE(found->tokens, static_cast<int64_t>(ids.size()));
  if (found->lease.empty()) return;
  leases_.push_back({ids, found->tokens, now_ + duration, found->lease});
}

// What was promised is found, whatever has been cut and deleted since.
void EngineSim::CheckLease() {
  if (leases_.empty()) return;
  const auto lease = leases_.begin() + Pick(0, static_cast<int64_t>(leases_.size()) - 1);
  if (lease->expires <= now_) {
    leases_.erase(lease);
    return;
  }
  EXPECT_GE(FoundTokens(*engine_, lease->ids, true), lease->tokens) << "a lease was not kept";
  for (auto& [age, each] : sequences_) each.used_at_most = now_;
}

void EngineSim::Pass() {
  now_ += absl::Seconds(Pick(1, 300));
  engine_->Sweep();
  history_.push_back("sweep");
  for (auto it = sequences_.begin(); it != sequences_.end();) {
    Sequence& s = it->second;
    const absl::Duration ttl = s.info.spec.idle_ttl;
    const absl::Status got = engine_->Get({}, s.info.handle).status();
    if (!absl::IsNotFound(got)) {
      const bool is_over =
          ttl > absl::ZeroDuration() && std::max(s.used, s.used_at_most) + ttl <= now_;
      EXPECT_TRUE(!is_over || faulty_) << "a sequence outlives its time";
      s.may_be_gone = s.may_be_gone || (is_over && MayStand());
      ++it;
      continue;
    }
    EXPECT_TRUE(ttl > absl::ZeroDuration() && s.used + ttl <= now_) << "a sequence ends early";
    deleted_since_sync_.insert(s.info.handle);
    it = sequences_.erase(it);
  }
}

}  // namespace terrace::testing
