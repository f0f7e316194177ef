#include "kvstore/extent_reader.h"

#include <algorithm>
#include <bit>
#include <string>
#include <string_view>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"

namespace terrace::kvstore {
namespace {

// Cells per MultiGet: enough to sort and merge, few enough to share among threads.
constexpr size_t kStepCells = 32;
constexpr uint64_t kScratchBytesMin = uint64_t{64} << 20;

uint64_t CellsBelow(uint32_t count) {
  return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// Cells [first, last) of an extent as bits; none when the range is empty.
uint64_t CellRange(uint32_t first, uint32_t last) {
  return first >= last ? 0 : CellsBelow(last) & ~CellsBelow(first);
}

size_t CellBytes(const BlockLayout& layout, ExtentKind kind) {
  return kind == ExtentKind::kRows ? layout.granule_bytes() : layout.piece_bytes();
}

std::string Describe(const ReadRequest& request, ExtentKind kind) {
  return absl::StrCat("segment ", static_cast<uint64_t>(request.segment->id), " layer ",
                      request.layer, " head ", request.head,
                      kind == ExtentKind::kRows ? " block " : " stripe ", request.index);
}

// The graver reason stays.
void Miss(PinnedExtent& extent, uint64_t cells, const absl::Status& status) {
  extent.missing |= cells;
  if (extent.status.ok() || absl::IsDataLoss(status)) extent.status = status;
}

// Cells of the request that exist, and the extent they are in; 0 when none do.
uint64_t KnownCells(const ReadRequest& request, ExtentKind kind, ExtentRef* ref) {
  Segment& segment = *request.segment;
  const BlockLayout& layout = segment.layout;
  if (segment.dead || request.layer >= layout.layers || request.head >= layout.heads) return 0;
  const uint16_t lane_index = segment.LaneIndex(request.layer, request.head);
  const Lane& lane = segment.lanes[lane_index];
  *ref = {.segment = &segment, .lane = lane_index, .kind = kind};
  if (kind == ExtentKind::kRows) {
    if (request.index < segment.first_block) return 0;
    ref->index = request.index - segment.first_block;
    const bool is_open = request.index >= lane.sealed_end && ref->index < lane.rows.size() &&
                         lane.rows[ref->index].data != nullptr;
    if (request.index >= std::min(segment.trim_end, segment.unsealing_from)) return 0;
    return request.index < lane.sealed_end || is_open ? CellsBelow(layout.granules()) : 0;
  }
  const uint32_t first_stripe = segment.first_block / layout.stripe_blocks;
  if (layout.planes.empty() || request.index < first_stripe ||
      request.index > kOpenEnd / layout.stripe_blocks - 1) {
    return 0;
  }
  ref->index = request.index - first_stripe;
  const uint32_t start = request.index * layout.stripe_blocks;
  const uint32_t end =
      std::min({lane.sealed_end, segment.unsealing_from, start + layout.stripe_blocks});
  return end <= start ? 0 : CellRange(std::max(start, segment.first_block) - start, end - start);
}

// Whether what was to be read may be gone because nobody refers to it any more. `unseals`: those of
// the segment when the read was asked for.
bool IsFreed(const Segment& segment, const CellRead& read, uint32_t unseals) {
  const uint32_t block = read.block.block;
  return block >= segment.deleted_end || block >= segment.unsealing_from ||
         (segment.unseals != unseals && block >= segment.unsealed_from);
}

}  // namespace

std::shared_ptr<Scratch> Scratch::Create(size_t bytes, uint64_t limit,
                                         std::atomic<uint64_t>& used) {
  if (used.fetch_add(bytes) + bytes > limit) {
    used.fetch_sub(bytes);
    return nullptr;
  }
  return std::shared_ptr<Scratch>(new Scratch(bytes, used));
}

Scratch::Scratch(size_t bytes, std::atomic<uint64_t>& used)
    : bytes_(bytes), used_(used), data_(new std::byte[bytes]) {}

Scratch::~Scratch() { used_.fetch_sub(bytes_); }

Pins::State::~State() {
  MutexLock lock(core_.mu);
  bool freed = false;
  for (const ExtentRef& ref : refs) {
    if (ref.segment != nullptr) freed = core_.host.Unpin(ref) || freed;
  }
  if (freed) core_.room.NotifyAll();
}

bool ExtentReader::Call::Done() const {
  return std::all_of(rest.begin(), rest.end(), [](uint64_t cells) { return cells == 0; });
}

ExtentReader::ExtentReader(StoreCore& core)
    : core_(core),
      scratch_limit_(std::max(core.options.host_bytes / 4, kScratchBytesMin)),
      pool_(core.disk == nullptr ? 0 : core.options.reader_threads) {}

std::unique_ptr<Pins::State> ExtentReader::Pin(ExtentKind kind,
                                               absl::Span<const ReadRequest> requests,
                                               absl::Time deadline) {
  auto state = std::make_unique<Pins::State>(core_);
  Call call{.kind = kind, .requests = requests, .deadline = deadline, .state = *state, .rest = {}};
  Run(call);
  return state;
}

void ExtentReader::ReadAhead(absl::Span<const ReadRequest> requests, absl::Time deadline) {
  Pins::State state(core_);
  Call call{.kind = ExtentKind::kRows,
            .requests = requests,
            .deadline = deadline,
            .state = state,
            .rest = {},
            .ahead = true};
  Run(call);
}

void ExtentReader::Run(Call& call) {
  const size_t count = call.requests.size();
  call.state.extents.resize(count);
  call.state.refs.resize(count);
  call.rest.resize(count);
  std::shared_ptr<Batch> batch;
  {
    MutexLock lock(core_.mu);
    for (size_t i = 0; i < count; ++i) Admit(call, i);
    if (!call.Done()) batch = Claim(call);
  }
  // A round reads what nobody else reads and waits for the rest; when the others fail, the next
  // round reads that too. Cells of a request's own reads are settled in one round.
  while (batch != nullptr) {
    if (!batch->reads.empty()) {
      const size_t steps = (batch->reads.size() + batch->step - 1) / batch->step;
      pool_.Submit([this, batch] { return RunStep(*batch); }, steps);
    }
    std::shared_ptr<Batch> next;
    {
      MutexLock lock(core_.mu);
      Settle(call, *batch);
      if (!call.Done()) next = Claim(call);
    }
    batch = std::move(next);
  }
}

void ExtentReader::Admit(Call& call, size_t request) {
  const ReadRequest& wanted = call.requests[request];
  PinnedExtent& result = call.state.extents[request];
  ExtentRef ref;
  const uint64_t known = KnownCells(wanted, call.kind, &ref);
  if ((wanted.cells & ~known) != 0) {
    Miss(result, wanted.cells & ~known,
         absl::NotFoundError(absl::StrCat(Describe(wanted, call.kind), ": no such cells")));
  }
  if ((wanted.cells & known) == 0) return;
  std::vector<SegmentRef>& segments = call.state.segments;
  if (segments.empty() || segments.back().get() != ref.segment) {
    segments.push_back(ref.segment->shared_from_this());
  }
  if (!call.ahead) {
    core_.host.Touch(ref, wanted.mass);
    core_.host.SettleAhead(ref, wanted.cells & known);
  }
  const Extent& extent = ref.segment->ExtentAt(ref.lane, ref.kind, ref.index);
  const uint64_t rest = wanted.cells & known & ~extent.valid & ~(call.ahead ? extent.loading : 0);
  call.rest[request] = rest;
  // Whoever has nothing to read ahead is in nobody's way.
  if (call.ahead && rest == 0) return;
  core_.host.Pin(ref);
  call.state.refs[request] = ref;
  if (call.ahead) return;
  const uint64_t present = wanted.cells & known & extent.valid;
  result.data = extent.data;
  core_.host.CountRead(std::popcount(present) * CellBytes(ref.segment->layout, ref.kind));
}

std::shared_ptr<ExtentReader::Batch> ExtentReader::Claim(Call& call) {
  auto batch = std::make_shared<Batch>();
  batch->deadline = call.deadline;
  for (size_t i = 0; i < call.rest.size(); ++i) {
    if (call.rest[i] != 0) ClaimCells(call, i, *batch);
  }
  if (batch->reads.empty()) return batch;
  batch->published.resize(batch->reads.size());
  const size_t share = (batch->reads.size() + pool_.threads() - 1) / pool_.threads();
  batch->step = std::clamp<size_t>(share, 1, kStepCells);
  batch->segments = call.state.segments;
  batch->scratch = call.state.scratch;
  return batch;
}

void ExtentReader::ClaimCells(Call& call, size_t request, Batch& batch) {
  const ExtentRef& ref = call.state.refs[request];
  PinnedExtent& result = call.state.extents[request];
  uint64_t& rest = call.rest[request];
  Extent& extent = ref.segment->ExtentAt(ref.lane, ref.kind, ref.index);
  rest &= ~extent.valid;
  if ((rest & extent.bad) != 0) {
    Miss(result, rest & extent.bad,
         absl::DataLossError(absl::StrCat(Describe(call.requests[request], call.kind), ": cell ",
                                          std::countr_zero(rest & extent.bad),
                                          " is quarantined, its checksum failed before")));
    rest &= ~extent.bad;
  }
  if (rest == 0) return;
  ABSL_RAW_CHECK(core_.disk != nullptr, "without a disk nothing leaves memory");
  const Demand demand = call.ahead                       ? Demand::kReadAhead
                        : call.kind == ExtentKind::kRows ? Demand::kReadRows
                                                         : Demand::kReadStripe;
  if (extent.data != nullptr || core_.host.Take(ref, demand)) {
    if (call.ahead && core_.host.crowded()) core_.crowded.NotifyAll();
    result.data = extent.data;
    if (call.ahead) core_.host.NoteAhead(ref, rest & ~extent.loading);
    AddReads({.ref = ref, .request = request, .extent = extent.data}, rest & ~extent.loading,
             batch);
    return;
  }
  if (call.ahead) {
    rest = 0;
    return;
  }
  std::shared_ptr<Scratch> scratch =
      Scratch::Create(ref.segment->ExtentBytes(ref.kind), scratch_limit_, scratch_bytes_);
  if (scratch == nullptr) {
    Miss(result, rest,
         absl::ResourceExhaustedError(absl::StrCat(Describe(call.requests[request], call.kind),
                                                   ": no memory to read into")));
    rest = 0;
    return;
  }
  result.data = scratch->data();
  AddReads({.ref = ref, .request = request, .extent = scratch->data(), .is_private = true}, rest,
           batch);
  call.state.scratch.push_back(std::move(scratch));
}

void ExtentReader::AddReads(const Target& target, uint64_t cells, Batch& batch) {
  const ExtentRef& ref = target.ref;
  const Segment& segment = *ref.segment;
  const bool is_rows = ref.kind == ExtentKind::kRows;
  if (!target.is_private) ref.segment->ExtentAt(ref.lane, ref.kind, ref.index).loading |= cells;
  for (; cells != 0; cells &= cells - 1) {
    const auto cell = static_cast<uint8_t>(std::countr_zero(cells));
    CellRead& read = batch.reads.emplace_back();
    read.kind = is_rows ? RecordKind::kRows : RecordKind::kPiece;
    read.block = segment.Key(ref.lane, is_rows ? segment.first_block + ref.index
                                               : segment.StripeBlock(ref.index) + cell);
    read.granule = is_rows ? cell : 0;
    read.layout = &segment.layout;
    read.extent = target.extent;
    batch.targets.push_back(target);
    batch.targets.back().unseals = segment.unseals;
    batch.cells.push_back(cell);
    // The read pins for itself: it may outlast its request.
    if (!target.is_private) core_.host.Pin(ref);
  }
}

bool ExtentReader::RunStep(Batch& batch) {
  size_t begin = 0;
  size_t end = 0;
  {
    MutexLock lock(core_.mu);
    begin = batch.next;
    end = batch.next = std::min(batch.reads.size(), begin + batch.step);
  }
  if (begin == end) return false;
  const absl::Span<CellRead> reads = absl::MakeSpan(batch.reads).subspan(begin, end - begin);
  if (absl::Now() < batch.deadline) {
    core_.disk->Read(reads, batch.deadline);
  } else {
    for (CellRead& read : reads) read.outcome = CellRead::Outcome::kLate;
  }
  MutexLock lock(core_.mu);
  for (size_t i = begin; i < end; ++i) Publish(batch, i);
  core_.loaded.NotifyAll();
  return batch.next < batch.reads.size();
}

void ExtentReader::Publish(Batch& batch, size_t read) {
  const CellRead& done = batch.reads[read];
  const Target& target = batch.targets[read];
  const ExtentRef& ref = target.ref;
  const uint64_t cell = uint64_t{1} << batch.cells[read];
  Extent& extent = ref.segment->ExtentAt(ref.lane, ref.kind, ref.index);
  core_.disk_stats.read_bytes += done.stored_bytes;
  if (done.outcome == CellRead::Outcome::kCorrupt && IsFreed(*ref.segment, done, target.unseals)) {
    // Deleted while it was read.
  } else if (done.outcome == CellRead::Outcome::kCorrupt) {
    // Keeps I1: never read again, never served.
    if ((extent.bad & cell) == 0) ++core_.disk_stats.quarantined_cells;
    extent.bad |= cell;
    ++core_.disk_stats.corrupt_granules;
    core_.CountDiskError(absl::DataLossError(done.error));
  } else if (done.outcome == CellRead::Outcome::kFailed) {
    core_.CountDiskError(absl::UnavailableError(done.error));
  }
  if (!target.is_private) {
    extent.loading &= ~cell;
    if (done.outcome == CellRead::Outcome::kRead) core_.host.SetValid(ref, extent.valid | cell);
    if (core_.host.Unpin(ref)) core_.room.NotifyAll();
  }
  batch.published[read] = true;
  ++batch.published_count;
}

void ExtentReader::Cancel(Batch& batch) {
  for (; batch.next < batch.reads.size(); ++batch.next) {
    batch.reads[batch.next].outcome = CellRead::Outcome::kLate;
    Publish(batch, batch.next);
  }
  core_.loaded.NotifyAll();
}

void ExtentReader::Settle(Call& call, Batch& batch) {
  bool in_time = true;
  while (in_time && batch.published_count < batch.reads.size()) {
    in_time = core_.loaded.WaitUntil(core_.mu, call.deadline);
  }
  if (batch.published_count < batch.reads.size()) Cancel(batch);
  Collect(call, batch);
  const absl::Status late = absl::DeadlineExceededError("not read from disk in time");
  for (size_t i = 0; i < call.rest.size(); ++i) {
    const ExtentRef& ref = call.state.refs[i];
    uint64_t& rest = call.rest[i];
    // Looked up anew after each wait: the array may have grown.
    const auto extent = [&]() -> const Extent& {
      return ref.segment->ExtentAt(ref.lane, ref.kind, ref.index);
    };
    while (in_time && rest != 0 && (rest & extent().loading) != 0) {
      in_time = core_.loaded.WaitUntil(core_.mu, call.deadline);
    }
    if (rest == 0) continue;
    // What others loaded lies in the shared extent, not in a scratch of this request (I1).
    if (call.state.extents[i].data == extent().data) rest &= ~extent().valid;
    if (in_time || rest == 0) continue;
    Miss(call.state.extents[i], rest, late);
    rest = 0;
  }
}

void ExtentReader::Collect(Call& call, const Batch& batch) {
  for (size_t i = 0; i < batch.reads.size(); ++i) {
    // Still running: late for this request.
    if (!batch.published[i]) continue;
    const CellRead& read = batch.reads[i];
    const size_t request = batch.targets[i].request;
    const uint64_t cell = uint64_t{1} << batch.cells[i];
    PinnedExtent& result = call.state.extents[request];
    const auto reason = [&] {
      return absl::StrCat(Describe(call.requests[request], call.kind), " cell ",
                          uint32_t{batch.cells[i]}, ": ", read.error);
    };
    call.rest[request] &= ~cell;
    result.disk_bytes += read.stored_bytes;
    switch (read.outcome) {
      case CellRead::Outcome::kRead:
        result.from_disk |= cell;
        break;
      case CellRead::Outcome::kCorrupt:
        Miss(result, cell,
             IsFreed(*batch.targets[i].ref.segment, read, batch.targets[i].unseals)
                 ? absl::NotFoundError(reason())
                 : absl::DataLossError(reason()));
        break;
      case CellRead::Outcome::kFailed:
        Miss(result, cell, absl::UnavailableError(reason()));
        break;
      case CellRead::Outcome::kPending:
      case CellRead::Outcome::kLate:
        Miss(result, cell, absl::DeadlineExceededError("not read from disk in time"));
        break;
    }
  }
}

absl::StatusOr<std::vector<absl::StatusOr<std::string>>> ExtentReader::ReadTails(
    std::vector<BlockKey> blocks, const BlockLayout& layout, uint32_t rows, absl::Time deadline) {
  // Of the one who waits and the thread that reads, whoever is done last.
  struct Reading {
    std::vector<BlockKey> blocks;
    BlockLayout layout;
    uint32_t rows = 0;
    std::vector<absl::StatusOr<std::string>> tails;
    // Guarded by the mutex of the core.
    bool is_done = false;
  };
  const auto reading = std::make_shared<Reading>();
  reading->blocks = std::move(blocks);
  reading->layout = layout;
  reading->rows = rows;
  const auto read = [this, reading] {
    for (const BlockKey& block : reading->blocks) {
      reading->tails.push_back(core_.disk->ReadTail(block, reading->layout, reading->rows));
    }
    MutexLock lock(core_.mu);
    reading->is_done = true;
    core_.loaded.NotifyAll();
    return false;
  };
  pool_.Submit(read, 1);
  MutexLock lock(core_.mu);
  while (!reading->is_done) {
    if (!core_.loaded.WaitUntil(core_.mu, deadline) && !reading->is_done) {
      return absl::DeadlineExceededError("reading flushed rows");
    }
  }
  return std::move(reading->tails);
}

}  // namespace terrace::kvstore
