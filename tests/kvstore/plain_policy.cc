#include "tests/kvstore/plain_policy.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

namespace terrace::testing {
namespace {

using kvstore::BlockId;
using kvstore::Evictable;

class PlainLru final : public kvstore::PlacementPolicy {
 public:
  void Touch(BlockId block, double) override {
    const auto found = std::find(blocks_.begin(), blocks_.end(), block);
    if (found == blocks_.end()) return;
    blocks_.erase(found);
    blocks_.push_back(block);
  }
  std::optional<BlockId> Coldest(Evictable evictable) override {
    for (const BlockId block : blocks_) {
      if (evictable(block)) return block;
    }
    return std::nullopt;
  }
  bool Admits(BlockId, BlockId) const override { return true; }
  void Insert(BlockId block) override { blocks_.push_back(block); }
  void Evict(BlockId block) override { std::erase(blocks_, block); }
  void Forget(BlockId block) override { std::erase(blocks_, block); }

 private:
  std::vector<BlockId> blocks_;
};

// Heat as the sum of all touches, each decayed by the accesses since then.
class PlainHeat final : public kvstore::PlacementPolicy {
 public:
  explicit PlainHeat(const kvstore::HeatOptions& options) : options_(options) {}

  void Touch(BlockId block, double mass) override {
    Known& known = Find(block);
    ++now_;
    if (!known.touches.empty()) gaps_.push_back(now_ - known.touches.back().access);
    decay_.push_back(std::exp2(-1 / HalfLife()));
    known.touches.push_back({now_, mass});
    if (known.resident) return;
    MoveToBack(block);
    Trim();
  }
  std::optional<BlockId> Coldest(Evictable evictable) override {
    const Known* coldest = nullptr;
    for (const Known& known : known_) {
      if (!known.resident || !evictable(known.block)) continue;
      if (coldest == nullptr || Heat(known) < Heat(*coldest)) coldest = &known;
    }
    if (coldest == nullptr) return std::nullopt;
    return coldest->block;
  }
  bool Admits(BlockId newcomer, BlockId victim) const override {
    const auto of = [this](BlockId block) {
      return std::find_if(known_.begin(), known_.end(),
                          [block](const Known& known) { return known.block == block; });
    };
    const double factor =
        of(newcomer)->touches.size() < options_.admit_touches ? std::exp2(options_.contrast) : 1;
    return Heat(*of(newcomer)) > factor * Heat(*of(victim));
  }
  void Insert(BlockId block) override { Find(block).resident = true; }
  void Evict(BlockId block) override {
    Find(block).resident = false;
    MoveToBack(block);
  }
  void Forget(BlockId block) override {
    std::erase_if(known_, [block](const Known& known) { return known.block == block; });
  }

 private:
  struct Touched {
    uint64_t access;
    double mass;
  };
  struct Known {
    BlockId block{};
    bool resident = false;
    std::vector<Touched> touches;
  };

  double HalfLife() const {
    if (options_.half_life_accesses > 0) return options_.half_life_accesses;
    double mean = 1;
    for (size_t i = 0; i < gaps_.size(); ++i) {
      const double share = 1.0 / std::min<double>(i + 1, options_.gap_window);
      mean = (1 - share) * mean + share * static_cast<double>(gaps_[i]);
    }
    return std::max(1.0, options_.half_life_gaps * mean);
  }
  double Heat(const Known& known) const {
    double heat = 0;
    for (const Touched& touched : known.touches) {
      double left = std::pow(touched.mass, options_.mass_exponent);
      for (uint64_t access = touched.access; access < now_; ++access) left *= decay_[access];
      heat += left;
    }
    return heat;
  }
  Known& Find(BlockId block) {
    for (Known& known : known_) {
      if (known.block == block) return known;
    }
    return known_.emplace_back(Known{block, false, {}});
  }
  void MoveToBack(BlockId block) {
    const auto found = std::find_if(known_.begin(), known_.end(),
                                    [block](const Known& known) { return known.block == block; });
    std::rotate(found, found + 1, known_.end());
  }
  void Trim() {
    const auto residents = std::count_if(known_.begin(), known_.end(),
                                         [](const Known& known) { return known.resident; });
    const double bound = std::max(1.0, options_.history_factor * static_cast<double>(residents));
    while (static_cast<double>(known_.size() - static_cast<size_t>(residents)) > bound) {
      known_.erase(std::find_if(known_.begin(), known_.end(),
                                [](const Known& known) { return !known.resident; }));
    }
  }

  const kvstore::HeatOptions options_;
  uint64_t now_ = 0;
  std::vector<uint64_t> gaps_;
  // By access: what it leaves of each heat.
  std::vector<double> decay_;
  // Those that are not resident in the order in which they are forgotten.
  std::vector<Known> known_;
};

class PlainS3Fifo final : public kvstore::PlacementPolicy {
 public:
  explicit PlainS3Fifo(const kvstore::S3FifoOptions& options) : options_(options) {}

  void Touch(BlockId block, double) override {
    for (std::vector<Entry>* queue : {&small_, &main_}) {
      for (Entry& entry : *queue) {
        if (entry.block == block && entry.touches < 3) ++entry.touches;
      }
    }
  }
  std::optional<BlockId> Coldest(Evictable evictable) override {
    for (;;) {
      const auto may_leave = [&](const Entry& entry) { return evictable(entry.block); };
      const auto small = std::find_if(small_.begin(), small_.end(), may_leave);
      const auto main = std::find_if(main_.begin(), main_.end(), may_leave);
      const double share =
          static_cast<double>(small_.size()) / static_cast<double>(small_.size() + main_.size());
      const bool full = !small_.empty() && share >= options_.small_fraction;
      if (small != small_.end() && (full || main == main_.end())) {
        if (small->touches < options_.promote_touches) return small->block;
        main_.push_back({small->block, 0});
        small_.erase(small);
      } else if (main != main_.end()) {
        if (main->touches == 0) return main->block;
        main_.push_back({main->block, main->touches - 1});
        main_.erase(std::find_if(main_.begin(), main_.end(), may_leave));
      } else {
        return std::nullopt;
      }
    }
  }
  bool Admits(BlockId, BlockId) const override { return true; }
  void Insert(BlockId block) override {
    const bool back = std::erase(history_, block) > 0;
    (back ? main_ : small_).push_back({block, 0});
    while (static_cast<double>(history_.size()) >
           options_.history_factor * static_cast<double>(small_.size() + main_.size())) {
      history_.erase(history_.begin());
    }
  }
  void Evict(BlockId block) override {
    const auto is = [block](const Entry& entry) { return entry.block == block; };
    std::erase_if(main_, is);
    if (std::erase_if(small_, is) > 0) history_.push_back(block);
  }
  void Forget(BlockId block) override {
    const auto is = [block](const Entry& entry) { return entry.block == block; };
    std::erase_if(main_, is);
    std::erase_if(small_, is);
    std::erase(history_, block);
  }

 private:
  struct Entry {
    BlockId block{};
    uint32_t touches = 0;
  };

  const kvstore::S3FifoOptions options_;
  std::vector<Entry> small_;
  std::vector<Entry> main_;
  std::vector<BlockId> history_;
};

}  // namespace

std::unique_ptr<kvstore::PlacementPolicy> MakePlainPolicy(
    kvstore::PolicyKind kind, const kvstore::PlacementOptions& options) {
  switch (kind) {
    case kvstore::PolicyKind::kHeat:
      return std::make_unique<PlainHeat>(options.heat);
    case kvstore::PolicyKind::kLru:
      return std::make_unique<PlainLru>();
    case kvstore::PolicyKind::kS3Fifo:
      return std::make_unique<PlainS3Fifo>(options.s3fifo);
  }
  std::abort();
}

}  // namespace terrace::testing
