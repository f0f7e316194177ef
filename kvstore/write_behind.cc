#include "kvstore/write_behind.h"

#include <algorithm>
#include <utility>

#include "absl/base/internal/raw_logging.h"

namespace terrace::kvstore {
namespace {

// Whether a lane is on disk up to `end`, as far as there is anything left to write.
bool IsWritten(const Segment& segment, const Lane& lane, uint32_t end) {
  return lane.durable_end >= std::min({end, lane.sealed_end, segment.trim_end});
}

constexpr size_t kBatchBytesMin = size_t{256} << 10;
constexpr size_t kBatchBytesMax = size_t{4} << 20;
constexpr absl::Duration kBackoffMin = absl::Milliseconds(10);
constexpr absl::Duration kBackoffMax = absl::Seconds(1);

}  // namespace

WriteBehind::WriteBehind(StoreCore& core, Reclaimer& reclaimer)
    : core_(core),
      reclaimer_(reclaimer),
      batch_bytes_(
          std::clamp<size_t>(core.options.disk_bytes / 64, kBatchBytesMin, kBatchBytesMax)),
      backoff_(kBackoffMin),
      thread_([this] { Run(); }) {}

WriteBehind::~WriteBehind() {
  {
    MutexLock lock(core_.mu);
    stopping_ = true;
    core_.work.NotifyAll();
  }
  reclaimer_.Stop();
  thread_.join();
}

void WriteBehind::Enqueue(Segment& segment) {
  if (segment.queued) return;
  segment.queued = true;
  queue_.push_back(segment.weak_from_this());
  core_.work.NotifyAll();
}

void WriteBehind::Forget(SegmentId segment) {
  forgotten_.push_back(segment);
  core_.work.NotifyAll();
}

void WriteBehind::Retry() {
  retry_at_ = absl::InfinitePast();
  core_.work.NotifyAll();
}

absl::Status WriteBehind::WriteSealed(Segment& segment, absl::Time deadline) {
  std::vector<uint32_t> ends;
  for (Lane& lane : segment.lanes) {
    lane.flush_end = lane.sealed_end;
    ends.push_back(lane.sealed_end);
  }
  Enqueue(segment);
  Retry();
  const uint64_t failures = failures_;
  size_t lane = 0;
  while (true) {
    if (segment.dead) return absl::FailedPreconditionError("the segment is freed");
    while (lane < ends.size() && IsWritten(segment, segment.lanes[lane], ends[lane])) ++lane;
    if (lane == ends.size()) return absl::OkStatus();
    if (failures_ != failures) return last_failure_;
    if (absl::Now() >= deadline) return absl::DeadlineExceededError("waiting for the disk writer");
    core_.progress.WaitUntil(core_.mu, deadline);
  }
}

void WriteBehind::Run() {
  while (true) {
    {
      MutexLock lock(core_.mu);
      while (!stopping_) {
        const bool idle = queue_.empty() && forgotten_.empty();
        if (!idle && absl::Now() >= retry_at_) break;
        core_.work.WaitUntil(core_.mu, idle ? absl::InfiniteFuture() : retry_at_);
      }
      if (stopping_) return;
    }
    Step();
  }
}

void WriteBehind::Step() {
  const absl::Status status =
      reclaimer_.WithRoom(absl::InfiniteFuture(), [this] { return WriteBatch(); });
  if (status.ok()) return;
  MutexLock lock(core_.mu);
  NoteAttempt(status);
  core_.room.NotifyAll();
}

absl::Status WriteBehind::WriteBatch() {
  DiskTurn turn(core_);
  std::vector<Portion> portions;
  std::vector<SegmentId> forgotten;
  {
    MutexLock lock(core_.mu);
    turn.Take(absl::InfiniteFuture());
    forgotten.swap(forgotten_);
    if (forgotten.empty()) portions = Collect();
    writing_ = true;
  }
  absl::Status status = absl::OkStatus();
  if (!forgotten.empty()) {
    status = WriteForgotten(forgotten);
  } else if (!portions.empty()) {
    status = WritePortions(portions);
  }
  MutexLock lock(core_.mu);
  if (!status.ok()) forgotten_.insert(forgotten_.end(), forgotten.begin(), forgotten.end());
  for (Portion& portion : portions) Finish(portion, status.ok());
  writing_ = false;
  if (status.ok()) NoteAttempt(status);
  core_.room.NotifyAll();
  core_.progress.NotifyAll();
  return status;
}

absl::Status WriteBehind::WriteForgotten(const std::vector<SegmentId>& forgotten) {
  DiskBatch batch;
  for (const SegmentId segment : forgotten) batch.DeleteSegment(segment);
  return core_.disk->Write(batch, /*sync=*/false, DiskTier::Growth::kFrees);
}

absl::Status WriteBehind::WritePortions(const std::vector<Portion>& portions) {
  DiskBatch batch;
  std::vector<std::byte> piece;
  for (const Portion& portion : portions) {
    if (portion.items.empty()) continue;
    const Segment& segment = *portion.segment;
    const BlockLayout& layout = segment.layout;
    for (const Item& item : portion.items) {
      const BlockKey key = segment.Key(item.lane, item.block);
      batch.PutRows(key, layout, item.rows);
      if (item.stripe == nullptr) continue;
      piece.resize(layout.piece_bytes());
      layout.Gather(item.stripe, segment.StripeCell(item.block), piece.data());
      batch.PutPiece(key, piece);
    }
    for (uint16_t layer = 0; layer < layout.layers; ++layer) {
      // The block of the tail is on disk as a whole now. Tails change only in the turn.
      if (segment.tail_rows[layer] == 0 || portion.watermark[layer].tail_rows != 0) continue;
      const uint32_t block = segment.DurableEnd(layer);
      for (uint16_t head = 0; head < layout.heads; ++head) {
        batch.DeleteTail(segment.Key(segment.LaneIndex(layer, head), block));
      }
    }
    batch.PutWatermark(segment.id, portion.watermark);
  }
  if (batch.empty()) return absl::OkStatus();
  return core_.disk->Write(batch, core_.options.durability == Durability::kSync,
                           DiskTier::Growth::kBounded);
}

std::vector<WriteBehind::Portion> WriteBehind::Collect() {
  std::vector<Portion> portions;
  size_t bytes = 0;
  while (bytes < batch_bytes_ && !queue_.empty()) {
    Portion portion;
    portion.segment = queue_.front().lock();
    queue_.pop_front();
    if (portion.segment == nullptr) continue;
    portion.segment->queued = false;
    if (!portion.segment->dead) CollectItems(portion, batch_bytes_ - bytes);
    const BlockLayout& layout = portion.segment->layout;
    bytes += portion.items.size() * (layout.rows_bytes() + layout.piece_bytes());
    // Kept even when it has nothing to write: its last reference must not go under the mutex.
    portions.push_back(std::move(portion));
  }
  return portions;
}

void WriteBehind::CollectItems(Portion& portion, size_t bytes_max) {
  Segment& segment = *portion.segment;
  const BlockLayout& layout = segment.layout;
  const size_t block_bytes = layout.rows_bytes() + layout.piece_bytes();
  const auto lanes = static_cast<uint32_t>(segment.lanes.size());
  for (const Lane& lane : segment.lanes) portion.durable_end.push_back(lane.durable_end);
  uint32_t idle = 0;
  for (size_t bytes = 0; bytes < bytes_max && idle < lanes;) {
    const auto lane = static_cast<uint16_t>(segment.next_lane);
    segment.next_lane = segment.next_lane + 1 < lanes ? segment.next_lane + 1 : 0;
    uint32_t& block = portion.durable_end[lane];
    if (block >= WritableEnd(segment.lanes[lane])) {
      ++idle;
      continue;
    }
    idle = 0;
    const ExtentRef rows{&segment, block - segment.first_block, lane, ExtentKind::kRows};
    const ExtentRef stripe{&segment, segment.StripeIndex(block), lane, ExtentKind::kStripe};
    Item item{.lane = lane, .block = block};
    core_.host.Pin(rows);
    item.rows = segment.ExtentAt(lane, ExtentKind::kRows, rows.index).data;
    ABSL_RAW_CHECK(item.rows != nullptr, "blocks stay in memory until they are on disk");
    if (!layout.planes.empty()) {
      core_.host.Pin(stripe);
      item.stripe = segment.ExtentAt(lane, ExtentKind::kStripe, stripe.index).data;
      ABSL_RAW_CHECK(item.stripe != nullptr, "pieces stay in memory until they are on disk");
    }
    portion.items.push_back(item);
    bytes += block_bytes;
    ++block;
  }
  for (uint16_t layer = 0; layer < layout.layers; ++layer) {
    uint32_t end = kOpenEnd;
    for (uint16_t head = 0; head < layout.heads; ++head) {
      end = std::min(end, portion.durable_end[segment.LaneIndex(layer, head)]);
    }
    const bool moved = end > segment.DurableEnd(layer);
    portion.watermark.push_back(
        {.end_block = end, .tail_rows = moved ? 0 : segment.tail_rows[layer]});
  }
  if (!portion.items.empty()) segment.stored = true;
}

uint32_t WriteBehind::WritableEnd(const Lane& lane) const {
  return core_.options.durability == Durability::kNone ? std::min(lane.flush_end, lane.sealed_end)
                                                       : lane.sealed_end;
}

bool WriteBehind::HasWork(const Segment& segment) const {
  return !segment.dead &&
         std::any_of(segment.lanes.begin(), segment.lanes.end(),
                     [this](const Lane& lane) { return lane.durable_end < WritableEnd(lane); });
}

void WriteBehind::Finish(Portion& portion, bool written) {
  Segment& segment = *portion.segment;
  const BlockLayout& layout = segment.layout;
  TierStats& stats = core_.disk_stats;
  for (const Item& item : portion.items) {
    if (written) {
      segment.lanes[item.lane].durable_end = item.block + 1;
      ++stats.admitted_blocks;
      ++stats.resident_blocks;
      stats.admitted_bytes += layout.rows_bytes();
      stats.resident_bytes += layout.rows_bytes();
      stats.index_bytes += layout.piece_bytes();
      stats.written_bytes += layout.rows_bytes() + layout.piece_bytes();
    }
    core_.host.Unpin({&segment, item.block - segment.first_block, item.lane, ExtentKind::kRows});
    if (item.stripe != nullptr) {
      core_.host.Unpin({&segment, segment.StripeIndex(item.block), item.lane, ExtentKind::kStripe});
    }
  }
  if (written && !portion.items.empty()) {
    for (uint16_t layer = 0; layer < layout.layers; ++layer) {
      segment.tail_rows[layer] = portion.watermark[layer].tail_rows;
    }
  }
  if (HasWork(segment)) Enqueue(segment);
}

void WriteBehind::NoteAttempt(const absl::Status& status) {
  failing_ = !status.ok();
  if (status.ok()) {
    backoff_ = kBackoffMin;
    retry_at_ = absl::InfinitePast();
    return;
  }
  ++failures_;
  last_failure_ = status;
  core_.CountDiskError(status);
  retry_at_ = absl::Now() + backoff_;
  backoff_ = std::min(2 * backoff_, kBackoffMax);
  core_.progress.NotifyAll();
}

}  // namespace terrace::kvstore
