#include "tests/sim/engine_sim.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/kvstore/store_fixture.h"
#include "tests/sim/sim_seeds.h"
#include "tests/status_matchers.h"

namespace terrace::testing {

using engine::SequenceInfo;
using engine::StepResult;

namespace {

constexpr int kOperations = 80;

}  // namespace

EngineSim::EngineSim(uint64_t seed) : random_(seed), disk_(seed), folder_(FastFolder()) {
  options_ = DiskOptions(folder_);
  options_.block_tokens = kBlock;
  options_.index_tokens = kBlock << Pick(0, 3);
  options_.sweep_interval = absl::ZeroDuration();
  options_.clock = [this] { return now_; };
  options_.store.durability = static_cast<kvstore::Durability>(Pick(0, 2));
  // Written behind, memory may hold less than all: blocks come and go.
  if (options_.store.durability != kvstore::Durability::kNone) {
    options_.store.host_bytes = uint64_t{1} << 20;
  }
  // Two texts to begin with that have their first tokens in common.
  texts_ = {TextIds(1, kLengthMax), TextIds(2, kLengthMax)};
  std::copy_n(texts_[0].begin(), Pick(0, kLengthMax), texts_[1].begin());
}

void EngineSim::Run() {
  Loss loss = Loss::kNothing;
  Open(&loss);
  for (int i = 0; i < kOperations && !::testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE(::testing::Message() << "operation " << i);
    Operate();
    Check();
    // Nobody comes back from a disk whose bits flip to one that is known to be whole.
    if (flipped_ && (disk_.dead() || OneIn(20))) break;
    if (OneIn(disk_.dead() ? 2 : 20)) Restart(OneIn(2) ? Loss::kNothing : Loss::kUnsynced);
  }
  if (!flipped_ && !::testing::Test::HasFailure()) Restart(Loss::kNothing);
  if (!::testing::Test::HasFailure()) return;
  for (const std::string& line : history_) std::printf("%s\n", line.c_str());
}

EngineSim::Entry EngineSim::AnyEntry() {
  auto it = sequences_.begin();
  std::advance(it, Pick(0, static_cast<int64_t>(sequences_.size()) - 1));
  return it;
}

int64_t EngineSim::PickLength(int64_t most) {
  const int64_t length = Pick(0, most);
  return Pick(0, 2) == 0 ? length / kBlock * kBlock : length;
}

engine::Caller EngineSim::Patient() const {
  return {.deadline = absl::Now() + (faulty_ ? absl::Milliseconds(20) : absl::Seconds(30))};
}

bool EngineSim::Excused(const absl::Status& status) const {
  if (flipped_ && absl::IsDataLoss(status)) return true;
  return faulty_ && (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
                     absl::IsResourceExhausted(status));
}

void EngineSim::Note(const Sequence& s, const char* what, int64_t where) {
  history_.push_back(absl::StrCat(what, " ", where, ": ", s.info.handle.substr(6, 4), " of ",
                                  s.length(), ", written ", s.written, ", synced ", s.synced,
                                  disk_.dead() ? ", dead" : ""));
}

void EngineSim::Operate() {
  if (sequences_.empty()) return Create();
  using Verb = void (EngineSim::*)(Sequence&);
  static constexpr Verb kVerbs[] = {
      &EngineSim::Fork,   &EngineSim::Truncate, &EngineSim::Flush,  &EngineSim::Flush,
      &EngineSim::Resume, &EngineSim::Append,   &EngineSim::Append, &EngineSim::Append,
      &EngineSim::Append, &EngineSim::Step,     &EngineSim::Step,   &EngineSim::Step,
      &EngineSim::Read,   &EngineSim::ReadLate, &EngineSim::Repeat, &EngineSim::Park,
  };
  switch (const int64_t verb = Pick(0, 23)) {
    case 16:
      return Create();
    case 17:
      return Delete(AnyEntry());
    case 18:
      return OpenOnPrefix();
    case 19:
      return LookUp();
    case 20:
      return CheckLease();
    case 21:
      return Pass();
    case 22:
      return Break();
    case 23:
      return Heal();
    default:
      return (this->*kVerbs[verb])(Any());
  }
}

void EngineSim::Check() {
  const bool syncs = options_.store.durability == kvstore::Durability::kSync;
  for (auto& [age, s] : sequences_) {
    const absl::StatusOr<SequenceInfo> info = engine_->Get({}, s.info.handle);
    if (!info.ok()) {
      EXPECT_TRUE(Excused(info.status())) << info.status();
      continue;
    }
    ASSERT_LE(info->durable_length, info->length) << "I6";
    ASSERT_EQ(info->length, s.length());
    if (disk_.dead()) continue;
    ASSERT_GE(info->durable_length, s.written) << "I6: what was durable is so no more";
    s.written = info->durable_length;
    if (syncs) s.synced = s.written;
  }
  const auto tiers = engine_->ListTiers();
  ASSERT_OK(tiers);
  for (const engine::TierReport& tier : *tiers) ASSERT_THAT(tier.stats, kvstore::IsConserved());
}

uint64_t EngineSim::Link(uint64_t before, uint32_t id) {
  uint64_t mixed = (before ^ id) * 0x9E3779B97F4A7C15u;
  mixed = (mixed ^ mixed >> 32) * 0xBF58476D1CE4E5B9u;
  return mixed ^ mixed >> 29;
}

void EngineSim::Extend(Sequence& s, int64_t length) {
  const Ids& text = texts_[Pick(0, static_cast<int64_t>(texts_.size()) - 1)];
  while (static_cast<int64_t>(s.chain.size()) < length) {
    const uint32_t id = text[s.ids.size()];
    s.ids.push_back(id);
    // Whoever does not tell ids has rows that nobody else has.
    const uint64_t before = s.chain.empty() ? 0 : s.chain.back();
    s.chain.push_back(Link(s.tells_ids ? before : before ^ random_(), id));
  }
}

KvRows EngineSim::RowsOf(const Chain& chain, int layer, int64_t position, int64_t n) const {
  KvRows rows;
  for (rows.n = 0; rows.n < n; ++rows.n) {
    const KvRows row = MakeRows(geometry_, chain[position + rows.n], layer, position + rows.n, 1);
    rows.k.insert(rows.k.end(), row.k.begin(), row.k.end());
    rows.v.insert(rows.v.end(), row.v.begin(), row.v.end());
  }
  return rows;
}

void EngineSim::Took(Sequence& s, int layer, int64_t layer_length) {
  const int64_t before = s.plain.length(layer);
  ASSERT_GE(layer_length, before);
  ASSERT_LE(layer_length, static_cast<int64_t>(s.chain.size()));
  s.plain.Append(layer, RowsOf(s.chain, layer, before, layer_length - before));
  s.info.layer_lengths[layer] = layer_length;
  s.info.length = *std::min_element(s.info.layer_lengths.begin(), s.info.layer_lengths.end());
}

void EngineSim::CutTo(Sequence& s, int64_t length) {
  s.chain.resize(length);
  s.ids.resize(length);
  s.plain.Truncate(length);
  s.info.length = length;
  s.info.layer_lengths.assign(geometry_.layers, length);
}

EngineSim::Sequence* EngineSim::Adopt(const SequenceInfo& info, const Sequence* parent,
                                      int64_t length) {
  Sequence s(info);
  s.used = s.used_at_most = now_;
  s.is_new = options_.store.durability != kvstore::Durability::kSync;
  s.tells_ids = parent == nullptr ? !OneIn(3) : parent->tells_ids;
  if (parent != nullptr) {
    s.chain.assign(parent->chain.begin(), parent->chain.begin() + length);
    s.ids.assign(parent->ids.begin(), parent->ids.begin() + length);
    for (int layer = 0; layer < geometry_.layers; ++layer) {
      s.plain.Append(layer, RowsOf(s.chain, layer, 0, length));
    }
  }
  EXPECT_EQ(info.length, length);
  return &sequences_.emplace(created_++, std::move(s)).first->second;
}

void EngineSim::Create() {
  if (sequences_.size() >= kSequencesMax) return;
  engine::SequenceSpec spec = Spec(geometry_);
  if (OneIn(3)) spec.retention = absl::Minutes(Pick(1, 10));
  if (OneIn(4)) spec.idle_ttl = absl::Minutes(Pick(1, 10));
  const absl::StatusOr<SequenceInfo> info = engine_->Create(Patient(), spec);
  births_in_doubt_ = births_in_doubt_ || (!info.ok() && MayStand());
  if (info.ok()) {
    Wrote();
    Note(*Adopt(*info, nullptr, 0), "create", 0);
  } else {
    EXPECT_TRUE(Excused(info.status())) << info.status();
  }
}

void EngineSim::Fork(Sequence& parent) {
  if (sequences_.size() >= kSequencesMax) return;
  const int64_t position = PickLength(parent.length());
  Note(parent, "fork", position);
  const absl::StatusOr<SequenceInfo> info =
      engine_->Fork(Patient(), parent.info.handle, position, "model");
  births_in_doubt_ = births_in_doubt_ || (!info.ok() && MayStand());
  if (info.ok()) {
    Wrote();
    Adopt(*info, &parent, position);
  } else {
    EXPECT_TRUE(Excused(info.status())) << info.status();
  }
}

void EngineSim::Truncate(Sequence& s) {
  const int64_t length = PickLength(s.length());
  Note(s, "truncate", length);
  const absl::StatusOr<SequenceInfo> info =
      engine_->Truncate(Patient(), s.info.handle, s.info.writer_epoch, length);
  if (!info.ok()) {
    EXPECT_TRUE(Excused(info.status())) << info.status();
    if (MayStand()) s.refused_cut = std::min(s.refused_cut, length);
    return;
  }
  EXPECT_EQ(info->length, length);
  EXPECT_GE(info->durable_length, std::min(length, s.written)) << "I6";
  if (options_.store.durability != kvstore::Durability::kSync) s.cut.push_back(s.chain);
  CutTo(s, length);
  s.written = std::min(s.written, length);
  s.synced = std::min(s.synced, length);
  s.used = now_;
}

void EngineSim::Delete(Entry entry) {
  Sequence& s = entry->second;
  Note(s, "delete", 0);
  const absl::Status status = engine_->Delete(Patient(), s.info.handle);
  if (!status.ok()) {
    EXPECT_TRUE(Excused(status)) << status;
    s.may_be_gone = s.may_be_gone || MayStand();
    return;
  }
  Wrote();
  deleted_since_sync_.insert(s.info.handle);
  sequences_.erase(entry);
}

void EngineSim::Flush(Sequence& s) {
  Note(s, "flush", 0);
  const absl::StatusOr<SequenceInfo> info = engine_->Flush(Patient(), s.info.handle);
  if (!info.ok()) {
    EXPECT_TRUE(Excused(info.status())) << info.status();
    return;
  }
  EXPECT_EQ(info->durable_length, s.length());
  s.written = s.length();
  Wrote();
  Synced();
}

void EngineSim::Park(Sequence& s) {
  Note(s, "park", 0);
  const absl::StatusOr<engine::ParkReport> report = engine_->Park(Patient(), s.info.handle);
  if (!report.ok()) {
    EXPECT_TRUE(Excused(report.status())) << report.status();
    return;
  }
  EXPECT_EQ(report->info.durable_length, s.length());
  s.written = s.length();
  Wrote();
  Synced();
}

void EngineSim::Wrote() {
  for (auto& [age, s] : sequences_) {
    s.refused_cut = INT64_MAX;
    s.may_be_gone = false;
  }
  births_in_doubt_ = false;
}

// The log is one: all that was written before is synced with it.
void EngineSim::Synced() {
  for (auto& [age, s] : sequences_) {
    s.synced = s.written;
    s.cut.clear();
    s.is_new = false;
  }
  deleted_since_sync_.clear();
}

void EngineSim::Resume(Sequence& s) {
  const absl::StatusOr<SequenceInfo> info = engine_->Resume(Patient(), s.info.handle, "");
  if (!info.ok()) {
    EXPECT_TRUE(Excused(info.status())) << info.status();
    return;
  }
  EXPECT_EQ(info->length, s.length());
  EXPECT_GT(info->writer_epoch, s.info.writer_epoch);
  Wrote();
  s.info.writer_epoch = info->writer_epoch;
  s.used = now_;
}

void EngineSim::Append(Sequence& s) {
  const int64_t n = std::min(Pick(1, 40), kLengthMax - s.length());
  if (n <= 0) return;
  Note(s, "append", n);
  const int64_t position = s.length();
  Extend(s, position + n);
  for (int layer = 0; layer < geometry_.layers; ++layer) {
    const KvRows rows = RowsOf(s.chain, layer, position, n);
    const HostTensor k = MakeTensor(rows.k, n, geometry_.kv_heads, geometry_.head_dim);
    const HostTensor v = MakeTensor(rows.v, n, geometry_.kv_heads, geometry_.head_dim);
    engine::AppendRequest request = {.handle = s.info.handle,
                                     .writer_epoch = s.info.writer_epoch,
                                     .layer = layer,
                                     .position = position,
                                     .k = k.view(),
                                     .v = v.view(),
                                     .token_position = position};
    if (s.tells_ids) request.token_ids = absl::MakeConstSpan(s.ids).subspan(position, n);
    const absl::StatusOr<int64_t> length = engine_->Append(Patient(), request);
    Used(s, length.ok());
    if (length.ok()) {
      EXPECT_EQ(*length, std::max(s.plain.length(layer), position + n));
      Took(s, layer, *length);
      continue;
    }
    EXPECT_TRUE(Excused(length.status())) << length.status();
    return Heard(s);
  }
  if (s.tells_ids) Remember(s.ids);
}

void EngineSim::Heard(Sequence& s) {
  const absl::StatusOr<SequenceInfo> info = engine_->Get({}, s.info.handle);
  if (!info.ok()) {
    EXPECT_TRUE(Excused(info.status())) << info.status();
    return;
  }
  for (int layer = 0; layer < geometry_.layers; ++layer) Took(s, layer, info->layer_lengths[layer]);
}

void EngineSim::Repeat(Sequence& s) {
  if (s.length() == 0) return;
  const int layer = static_cast<int>(Pick(0, geometry_.layers - 1));
  const int64_t position = Pick(0, s.length() - 1);
  KvRows rows = s.plain.RowsAt(layer, position, std::min(Pick(1, 30), s.length() - position));
  const auto append = [&](int64_t at) {
    return AppendRowsOf(*engine_, s.info, layer, at, rows, Patient()).status();
  };
  absl::Status status = append(position);
  EXPECT_TRUE(status.ok() || Excused(status)) << "I7: " << status;
  Used(s, status.ok());
  std::vector<float>& values = Pick(0, 1) == 0 ? rows.k : rows.v;
  values[Pick(0, static_cast<int64_t>(values.size()) - 1)] += 0.5F;
  status = append(position);
  EXPECT_TRUE(absl::IsAlreadyExists(status) || Excused(status)) << "I7: " << status;
  EXPECT_THAT(append(s.plain.length(layer) + Pick(1, 50)),
              StatusIs(absl::StatusCode::kFailedPrecondition))
      << "I7";
}

void EngineSim::Step(Sequence& s) {
  const int64_t n = std::min(Pick(1, 4), kLengthMax - s.length());
  if (n <= 0) return;
  const attention::Policy policy = AnyPolicy();
  Note(s, "step", n);
  const int64_t position = s.length();
  Extend(s, position + n);
  for (int layer = 0; layer < geometry_.layers; ++layer) {
    const KvRows rows = RowsOf(s.chain, layer, position, n);
    testing::Step step = ReadStep(s.info, random_(), layer, position, n, policy);
    step.k = MakeTensor(rows.k, n, geometry_.kv_heads, geometry_.head_dim);
    step.v = MakeTensor(rows.v, n, geometry_.kv_heads, geometry_.head_dim);
    engine::StepRequest request = step.request();
    if (s.tells_ids) request.token_ids = absl::MakeConstSpan(s.ids).subspan(position, n);
    const StepResult got =
        engine_->Attend(Patient(), layer, {&request, 1}, {.strict = true, .return_selection = true})
            .at(0);
    Used(s, got.status.ok());
    Heard(s);
    EXPECT_TRUE(!got.appended || s.plain.length(layer) >= position + n);
    if (!got.status.ok()) {
      EXPECT_TRUE(Excused(got.status)) << got.status;
      return;
    }
    Judge(s, layer, step, got, n);
  }
}

void EngineSim::Read(Sequence& s) {
  if (s.length() == 0) return;
  const int64_t position = Pick(0, s.length() - 1);
  const int64_t n = std::min(Pick(1, 3), s.length() - position);
  const int layer = static_cast<int>(Pick(0, geometry_.layers - 1));
  const testing::Step step = ReadStep(s.info, random_(), layer, position, n, AnyPolicy());
  const StepResult got = RunOne(*engine_, layer, step, {.strict = true}, Patient());
  Used(s, got.status.ok());
  if (got.status.ok()) return Judge(s, layer, step, got, n);
  EXPECT_TRUE(Excused(got.status)) << got.status;
}

// The disk answers when the deadline is long over: rows may be missed, and are then told to be.
void EngineSim::ReadLate(Sequence& s) {
  if (s.length() == 0) return;
  const int layer = static_cast<int>(Pick(0, geometry_.layers - 1));
  const int64_t position = Pick(0, s.length() - 1);
  const testing::Step step = ReadStep(s.info, random_(), layer, position, 1, AnyPolicy());
  disk_.SetReadsStall(true);
  const StepResult got = RunOne(*engine_, layer, step,
                                {.deadline = absl::Now() + absl::Milliseconds(4),
                                 .row_deadline = absl::Now() + absl::Milliseconds(1)},
                                Patient());
  disk_.SetReadsStall(false);
  Used(s, got.status.ok());
  if (!got.status.ok()) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(got.status) || Excused(got.status)) << got.status;
  } else if (got.account.missed_rows == 0 && got.account.missed_mass == 0) {
    Judge(s, layer, step, got, 1);
  }
}

void EngineSim::Break() {
  const int64_t fault = Pick(0, 11);
  if (fault < 5) {
    disk_.DieAfter(static_cast<uint32_t>(Pick(0, 40)));
  } else if (fault < 6) {
    disk_.SetSyncsFail(true);
  } else if (fault < 8) {
    disk_.SetWritesFail(true);
  } else if (fault < 9) {
    disk_.SetFull(true);
  } else if (fault < 11) {
    disk_.SetReadsFail(true);
  } else {
    disk_.SetFlips(static_cast<uint32_t>(Pick(1, 8)));
    flipped_ = true;
  }
  faulty_ = true;
  history_.push_back(absl::StrCat("break ", fault));
}

// The engine works again as soon as its disk does.
void EngineSim::Heal() {
  disk_.Heal();
  history_.push_back("heal");
  const absl::Time end = absl::Now() + absl::Seconds(30);
  std::string handle;
  absl::Status status;
  do {
    if (handle.empty()) {
      const absl::StatusOr<SequenceInfo> info = engine_->Create(Patient(), Spec(geometry_));
      status = info.status();
      if (info.ok()) handle = info->handle;
    }
    if (!handle.empty()) status = engine_->Delete(Patient(), handle);
    if (status.ok()) {
      Wrote();
      deleted_since_sync_.insert(handle);
    } else if (disk_.dead() || flipped_) {
      births_in_doubt_ = true;
      return;
    }
  } while (!status.ok() && absl::Now() < end);
  EXPECT_OK(status);
}

}  // namespace terrace::testing
