// What a block store should hold, as plain maps, and what a crash may leave of it.
#ifndef TERRACE_TESTS_SIM_STORE_MODEL_H_
#define TERRACE_TESTS_SIM_STORE_MODEL_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvstore/block_store.h"

namespace terrace::kvstore {

// A segment, by lane (layer * heads + head).
struct SegmentModel {
  SegmentRef segment;
  SegmentId id{};
  uint32_t first_block = 0;
  std::vector<uint32_t> sealed_end;
  // The same before manifests gave blocks up: what may come back when those are lost.
  std::vector<uint32_t> sealed_once;
  // What the death of the process leaves, and that of the machine.
  std::vector<uint32_t> written_end;
  std::vector<uint32_t> synced_end;
  // Lane and block to what tells its bytes from those of an earlier life of the block.
  std::map<std::pair<uint16_t, uint32_t>, uint32_t> salts;
  // Of earlier lives, since the last sync: what a machine that dies may bring back.
  std::map<std::pair<uint16_t, uint32_t>, std::vector<uint32_t>> old_salts;
  // By layer: rows of the open block that a flush or an unseal has acknowledged, of which block,
  // and their salts by head.
  struct Tail {
    uint32_t block = 0;
    uint32_t rows = 0;
    std::vector<uint32_t> salts;
  };
  std::vector<Tail> tails;
  // A write of tails has failed, or of what ends them: they may be there or not.
  bool tails_are_known = true;
  // Since the last sync: if the machine dies, tails may be what they were before.
  bool was_unsealed = false;
  // The lowest block from which an unseal has failed that may stand if the process dies now.
  uint32_t refused_from = kOpenEnd;

  uint32_t SealedEnd() const { return *std::min_element(sealed_end.begin(), sealed_end.end()); }
  // A manifest gave up the blocks from there on.
  void Trim(uint32_t end) {
    for (auto* ends : {&sealed_end, &written_end, &synced_end}) {
      for (uint32_t& each : *ends) each = std::min(each, end);
    }
    for (Tail& tail : tails) {
      if (tail.block >= end) tail = {};
    }
  }
};
// Shared by all sequences that name the segment, now or once.
using SegmentModelRef = std::shared_ptr<SegmentModel>;

struct RangeModel {
  SegmentModelRef segment;
  uint32_t first_block = 0;
  uint32_t end_block = 0;
};

struct SequenceModel {
  std::string attributes;
  std::vector<RangeModel> ranges;

  const SegmentModelRef& open() const { return ranges.back().segment; }
  // Blocks sealed in all lanes.
  uint32_t Length() const { return open()->SealedEnd(); }
  // The ranges of the first `end` blocks.
  std::vector<RangeModel> Prefix(uint32_t end) const {
    std::vector<RangeModel> prefix;
    for (const RangeModel& range : ranges) {
      if (range.first_block >= end) break;
      prefix.push_back({range.segment, range.first_block, std::min(range.end_block, end)});
    }
    return prefix;
  }
};

using StoreModel = std::map<std::string, SequenceModel>;

// Trims what no range of the model names any more, as a change of manifests does.
inline void TrimUnnamed(const StoreModel& model, const std::vector<RangeModel>& before) {
  for (const RangeModel& gone : before) {
    uint32_t end = 0;
    for (const auto& [name, sequence] : model) {
      for (const RangeModel& range : sequence.ranges) {
        if (range.segment == gone.segment) end = std::max(end, range.end_block);
      }
    }
    gone.segment->Trim(end);
  }
}

// Changes of manifests in the order they were made, and which of them a crash may take back.
class ManifestJournal {
 public:
  // Of a sequence whose attributes are unlike those of any other change; none: deleted.
  // `stands` is false for a change that failed and may nevertheless be there.
  void Add(const std::string& name, std::optional<SequenceModel> after, bool stands) {
    // A write that goes through undoes those that failed before.
    if (stands) {
      const auto is_undone = [](const Change& change) { return !change.stands; };
      synced_ -= static_cast<size_t>(std::count_if(
          changes_.begin(), changes_.begin() + static_cast<int64_t>(synced_), is_undone));
      std::erase_if(changes_, is_undone);
    }
    changes_.push_back({name, std::move(after), stands});
  }
  // Everything so far is safe from the machine's death.
  void Sync() { synced_ = changes_.size(); }
  void Restart(const StoreModel& model) {
    changes_.clear();
    for (const auto& [name, sequence] : model) Add(name, sequence, true);
    Sync();
  }

  // What these names and attributes stand for; none when no crash leaves them together. Without
  // `loses_unsynced` only changes that failed are open.
  std::optional<StoreModel> Explain(const std::map<std::string, std::string>& attributes,
                                    bool loses_unsynced) const {
    for (size_t end = changes_.size() + 1; end-- > (loses_unsynced ? synced_ : changes_.size());) {
      std::optional<StoreModel> model = ExplainPrefix(attributes, end);
      if (model) return model;
    }
    return std::nullopt;
  }

 private:
  struct Change {
    std::string name;
    std::optional<SequenceModel> after;
    bool stands = true;
  };

  std::optional<StoreModel> ExplainPrefix(const std::map<std::string, std::string>& attributes,
                                          size_t end) const {
    // By name: what may be there. The last of those that stand, and any that failed after it.
    std::map<std::string, std::vector<const Change*>> open;
    for (size_t i = 0; i < end; ++i) {
      auto& changes = open[changes_[i].name];
      if (changes_[i].stands) changes.clear();
      changes.push_back(&changes_[i]);
    }
    StoreModel model;
    for (const auto& [name, changes] : open) {
      const auto found = attributes.find(name);
      const bool none_stands = !changes.front()->stands;
      bool explained = found == attributes.end() && none_stands;
      for (const Change* change : changes) {
        if (change->after.has_value() != (found != attributes.end())) continue;
        if (change->after && change->after->attributes != found->second) continue;
        if (change->after) model[name] = *change->after;
        explained = true;
      }
      if (!explained) return std::nullopt;
    }
    if (model.size() != attributes.size()) return std::nullopt;
    return model;
  }

  std::vector<Change> changes_;
  size_t synced_ = 0;
};

}  // namespace terrace::kvstore

#endif  // TERRACE_TESTS_SIM_STORE_MODEL_H_
