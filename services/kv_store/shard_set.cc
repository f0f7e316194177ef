#include "services/kv_store/shard_set.h"

#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/engine/error.h"
#include "services/engine/handle.h"

namespace terrace::kv_store {
namespace {

// What a caller waits for stores to say who they are.
constexpr absl::Duration kSearchTimeout = absl::Seconds(2);

}  // namespace

absl::Status AnyOk(const std::vector<absl::Status>& statuses) {
  const auto good = std::find_if(statuses.begin(), statuses.end(),
                                 [](const absl::Status& status) { return status.ok(); });
  return good == statuses.end() ? statuses.front() : absl::OkStatus();
}

ShardSet::ShardSet(const std::vector<std::string>& endpoints, uint64_t max_message_bytes,
                   int threads) {
  // Nobody else needs the threads that wait for an only store.
  const int calls_max = endpoints.size() < 2
                            ? std::numeric_limits<int>::max()
                            : std::max(1, threads / static_cast<int>(endpoints.size()));
  for (const std::string& endpoint : endpoints) {
    shards_.push_back(std::make_unique<Shard>(endpoint, max_message_bytes, calls_max));
  }
}

absl::Status ShardSet::Duplicates() {
  std::map<uint16_t, std::string> seen;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    const absl::StatusOr<uint16_t> number = shard->number();
    if (!number.ok()) continue;
    const auto [other, fresh] = seen.emplace(*number, shard->endpoint());
    if (fresh) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("stores: ", other->second, " and ", shard->endpoint(), " are both shard ",
                     other->first, ", expected a shard number of its own for each"));
  }
  return absl::OkStatus();
}

absl::Status ShardSet::Connect(absl::Time deadline) {
  const std::vector<absl::Status> asked =
      AskAll([](Shard&, size_t) { return absl::OkStatus(); }, deadline);
  if (absl::Status status = Duplicates(); !status.ok()) return status;
  return AnyOk(asked);
}

absl::StatusOr<Shard*> ShardSet::Owner(absl::string_view handle) {
  const std::optional<uint16_t> number = engine::ShardOf(handle);
  absl::Status missing = engine::SequenceNotFound(handle);
  if (!number.has_value()) return missing;
  std::vector<Shard*> owners;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    const absl::StatusOr<uint16_t> known = shard->number();
    if (!known.ok()) {
      missing = known.status();
    } else if (*known == *number) {
      owners.push_back(shard.get());
    } else if (shard->Was(*number)) {
      missing = engine::ShardUnavailable(
          shard->endpoint(), absl::StrCat("it is shard ", *known, " now, not ", *number));
    }
  }
  if (owners.size() == 1) return owners[0];
  // It is not for us to say which of two is the right one.
  if (absl::Status status = Duplicates(); !status.ok()) return status;
  return missing;
}

ShardSearch ShardSet::Search(absl::Time deadline) {
  std::vector<Shard*> shards;
  for (const std::unique_ptr<Shard>& shard : shards_) shards.push_back(shard.get());
  return ShardSearch(shards, std::min(deadline, absl::Now() + kSearchTimeout));
}

absl::StatusOr<Shard*> ShardSet::ShardFor(absl::string_view handle, absl::Time deadline) {
  absl::StatusOr<Shard*> owner = Owner(handle);
  if (owner.ok() || !engine::ShardOf(handle).has_value()) return owner;
  ShardSearch search = Search(deadline);
  while (!owner.ok() && search.AwaitNext()) owner = Owner(handle);
  return owner;
}

std::vector<Shard*> ShardSet::Preferred() {
  std::random_device random;
  const uint64_t token = (uint64_t{random()} << 32) | random();
  std::vector<std::pair<uint64_t, Shard*>> weights;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    const uint64_t weight =
        XXH3_64bits_withSeed(shard->endpoint().data(), shard->endpoint().size(), token);
    weights.emplace_back(weight, shard.get());
  }
  std::sort(weights.rbegin(), weights.rend());
  std::vector<Shard*> preferred;
  for (const auto& [weight, shard] : weights) preferred.push_back(shard);
  return preferred;
}

std::map<uint16_t, Shard*> ShardSet::Known() {
  std::map<uint16_t, Shard*> known;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    const absl::StatusOr<uint16_t> number = shard->number();
    if (number.ok()) known.emplace(*number, shard.get());
  }
  return known;
}

std::vector<absl::Status> ShardSet::AskAll(const std::function<absl::Status(Shard&, size_t)>& ask,
                                           absl::Time deadline) {
  std::vector<absl::Status> statuses(shards_.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < shards_.size(); ++i) {
    threads.emplace_back([this, i, deadline, &ask, &statuses] {
      Shard& shard = *shards_[i];
      ShardSearch({&shard}, deadline).AwaitNext();
      statuses[i] = shard.number().status();
      if (statuses[i].ok()) statuses[i] = shard.Named(ask(shard, i));
    });
  }
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

std::vector<absl::Status> ShardSet::Unreachable() {
  std::vector<absl::Status> errors;
  for (const std::unique_ptr<Shard>& shard : shards_) {
    const absl::StatusOr<uint16_t> number = shard->number();
    if (!number.ok()) errors.push_back(number.status());
  }
  return errors;
}

void ShardSet::Cancel() {
  for (const std::unique_ptr<Shard>& shard : shards_) shard->Cancel();
}

}  // namespace terrace::kv_store
