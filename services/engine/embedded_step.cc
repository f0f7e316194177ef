// Appends and steps of an EmbeddedEngine.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/engine/dense_step.h"
#include "services/engine/embedded_engine.h"
#include "services/engine/error.h"
#include "services/engine/sparq_step.h"

namespace terrace::engine {
namespace {

// Memory that `rows` of one layer may need, wherever they begin.
uint64_t RoomOf(const kvstore::BlockLayout& layout, int64_t rows) {
  const uint64_t blocks = static_cast<uint64_t>(rows) / layout.block_tokens + 1;
  return blocks * layout.heads * (layout.rows_bytes() + layout.piece_bytes());
}

}  // namespace

absl::Status EmbeddedEngine::AppendLocked(Sequence& sequence, const Writing& writing,
                                          const AppendRows& rows, absl::Time deadline) {
  const SoleHold writer(sequence.writer, deadline);
  if (!writer.held()) return NotBegun("append");
  if (writing.writer_epoch != sequence.epoch) {
    return EpochStale(writing.writer_epoch, sequence.epoch);
  }
  const int64_t length_before = sequence.layer_length[rows.layer];
  if (rows.position > length_before) return PositionGap(rows.layer, rows.position, length_before);
  const int64_t tokens_max = options_.limits.max_sequence_tokens;
  if (rows.position < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("position: got ", rows.position, ", expected 0 or more"));
  }
  if (rows.position > tokens_max - rows.rows) {
    // It stays too long however often it is tried.
    return WithDetail(absl::ResourceExhaustedError(absl::StrCat(
                          "position: got ", rows.position, " with ", rows.rows,
                          " rows, expected a sequence of at most ", tokens_max, " tokens")),
                      {.reason = "LIMIT_EXCEEDED", .metadata = {}, .retry_delay = std::nullopt});
  }
  if (absl::Status status =
          RestoreTailLocked(sequence, rows.layer, rows.position + rows.rows, deadline);
      !status.ok()) {
    return status;
  }
  // Before the rows: the last of them may complete a block, and the hash says how it came about.
  if (writing.sparse) MarkSparse(sequence, rows.position, rows.rows);
  absl::Status status =
      WithRoom({.tenant = sequence.tenant,
                .memory_bytes = RoomOf(sequence.layout.block, rows.rows),
                .deadline = deadline},
               [&] { return Appender(*store_, *pool_, sequence).Append(rows, deadline); });
  Writing taken = writing;
  // Rows that stand may be others than those that were refused, and so may their tokens be.
  if (!status.ok()) taken.token_ids = {};
  TakeTokens(sequence, rows.layer, length_before, taken);
  return status;
}

void EmbeddedEngine::MarkSparse(Sequence& sequence, int64_t position, int64_t rows) {
  const int64_t complete = sequence.length();
  if (position + rows <= complete) return;
  const kvstore::MutexLock lock(sequence.tokens_mu);
  sequence.tokens.MarkSparse(std::max(position, complete));
}

void EmbeddedEngine::TakeTokens(Sequence& sequence, int layer, int64_t length_before,
                                const Writing& writing) {
  const int64_t length = sequence.layer_length[layer];
  const int64_t standing = std::clamp<int64_t>(length - writing.token_position, 0,
                                               static_cast<int64_t>(writing.token_ids.size()));
  const int64_t block_tokens = sequence.block_tokens();
  std::vector<BlockHash> complete;
  {
    const kvstore::MutexLock lock(sequence.tokens_mu);
    TokenChain& tokens = sequence.tokens;
    const bool added = tokens.Add(writing.token_position, writing.token_ids.first(standing));
    if (!added && length_before / block_tokens == length / block_tokens) return;
    const size_t known = tokens.blocks().size();
    tokens.Advance(sequence.length());
    complete = tokens.blocks().Copy(known, tokens.blocks().size());
  }
  prefixes_.Add(sequence, complete);
}

absl::StatusOr<int64_t> EmbeddedEngine::Append(const Caller& caller, const AppendRequest& request) {
  absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, request.handle);
  if (!found.ok()) return found.status();
  Sequence& sequence = **found;
  const Geometry& geometry = sequence.spec.geometry;
  if (absl::Status status = sequence.CheckLayer(request.layer); !status.ok()) return status;
  const absl::StatusOr<int64_t> rows = TensorRows("k", request.k);
  if (!rows.ok()) return rows.status();
  const absl::StatusOr<FiniteTensor> k =
      CheckTensor("k", request.k, *rows, geometry.kv_heads, geometry.head_dim, pool_.get());
  if (!k.ok()) return k.status();
  const absl::StatusOr<FiniteTensor> v =
      CheckTensor("v", request.v, *rows, geometry.kv_heads, geometry.head_dim, pool_.get());
  if (!v.ok()) return v.status();
  const SharedHold gate(sequence.gate, caller.wait_end());
  if (!gate.held()) return NotBegun("append");
  if (sequence.closed) return SequenceNotFound(request.handle);
  Unpark(sequence);
  const absl::Status status = AppendLocked(
      sequence,
      {.writer_epoch = request.writer_epoch,
       .token_position = request.token_position,
       .token_ids = request.token_ids},
      {.layer = request.layer, .position = request.position, .rows = *rows, .k = *k, .v = *v},
      caller.wait_end());
  if (!status.ok()) return status;
  sequence.Touch(options_.clock());
  return sequence.layer_length[request.layer].load();
}

std::vector<StepResult> EmbeddedEngine::Attend(const Caller& caller, int layer,
                                               absl::Span<const StepRequest> requests,
                                               const StepOptions& options) {
  std::vector<StepResult> results(requests.size());
  pool_->ParallelFor(static_cast<int>(requests.size()), [&](int i) {
    results[i] = Finish(RunStep(caller, layer, requests[i], options, PartForm::kPartial, {}),
                        options.return_selection);
  });
  return results;
}

StepPart EmbeddedEngine::RunStep(const Caller& caller, int layer, const StepRequest& request,
                                 const StepOptions& options, PartForm form, const HeldRows& held) {
  const absl::Time start = absl::Now();
  StepPart part;
  part.status = [&]() -> absl::Status {
    const absl::StatusOr<std::shared_ptr<Sequence>> found = Find(caller, request.handle);
    if (!found.ok()) return found.status();
    Sequence& sequence = **found;
    part.geometry = sequence.spec.geometry;
    absl::Status status = sequence.CheckLayer(layer);
    if (status.ok()) status = sequence.CheckFingerprint(request.fingerprint);
    if (status.ok()) {
      status = attention::ValidatePolicy(request.policy, part.geometry.head_dim);
    }
    if (!status.ok()) return status;
    const absl::StatusOr<StepTensors> tensors =
        ReadStepTensors(request, part.geometry, options_.limits.max_step_tokens);
    if (!tensors.ok()) return tensors.status();
    StepOptions limits = options;
    limits.deadline = WaitEnd(std::min(caller.deadline, options.deadline), kStepPatience, start);
    const SharedHold gate(sequence.gate, limits.deadline);
    if (!gate.held()) return NotBegun("step");
    if (sequence.closed) return SequenceNotFound(request.handle);
    sequence.Touch(options_.clock());
    Unpark(sequence);
    return RunLocked(sequence, layer, request, *tensors, limits, form, held, part);
  }();
  part.account.stages.total = absl::Now() - start;
  return part;
}

// Refuses what would fill the memory before it is found not to fit a message.
absl::Status EmbeddedEngine::CheckAnswer(const Sequence& sequence, const StepRequest& request,
                                         int64_t visible, int64_t queries,
                                         const StepOptions& options, PartForm form) const {
  const auto* sparq = std::get_if<attention::SparqPolicy>(&request.policy);
  const int64_t rows =
      sparq == nullptr
          ? visible
          : std::min<int64_t>(visible,
                              std::max<int64_t>(sparq->k, int64_t{sparq->window} + sparq->sinks));
  int64_t row_bytes = options.return_selection ? sizeof(uint32_t) : 0;
  if (form == PartForm::kRows && sparq != nullptr) row_bytes += sequence.layout.block.row_bytes;
  const double bytes = static_cast<double>(queries) * sequence.spec.geometry.kv_heads *
                       static_cast<double>(rows) * static_cast<double>(row_bytes);
  if (bytes <= static_cast<double>(options_.limits.max_answer_bytes)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "answer: rows and selections of ", queries, " queries over ", rows, " rows take ", bytes,
      " bytes, expected at most ", options_.limits.max_answer_bytes));
}

absl::Status EmbeddedEngine::RunLocked(Sequence& sequence, int layer, const StepRequest& request,
                                       const StepTensors& tensors, const StepOptions& options,
                                       PartForm form, const HeldRows& held, StepPart& part) {
  const absl::Time start = absl::Now();
  const bool sparse = std::holds_alternative<attention::SparqPolicy>(request.policy);
  // Whatever is wrong with the position is found below.
  const int64_t position =
      std::clamp<int64_t>(request.position, 0, sequence.layer_length[layer].load());
  absl::Status status =
      CheckAnswer(sequence, request, position + tensors.queries, tensors.queries, options, form);
  if (status.ok() && tensors.appends()) {
    status = AppendLocked(sequence,
                          {.writer_epoch = request.writer_epoch,
                           .token_position = request.position,
                           .token_ids = request.token_ids,
                           .sparse = sparse},
                          {.layer = layer,
                           .position = request.position,
                           .rows = tensors.queries,
                           .k = tensors.k,
                           .v = tensors.v},
                          options.deadline);
    part.appended = status.ok();
  }
  part.layer_length = sequence.layer_length[layer].load();
  if (!status.ok()) return status;
  if (request.position < 0 || request.position > part.layer_length - tensors.queries) {
    return absl::OutOfRangeError(absl::StrCat("position: got ", request.position, " with ",
                                              tensors.queries, " queries, expected at most ",
                                              part.layer_length, " rows of layer ", layer));
  }
  status = RestoreTail(sequence, layer, request.position + tensors.queries, options.deadline);
  if (!status.ok()) return status;
  part.account.stages.append = absl::Now() - start;
  part.queries = tensors.queries;
  part.generation = sequence.generation;
  const HeldRows none;
  const StepInput input = {
      .store = *store_,
      .pool = *pool_,
      .sequence = sequence,
      .layer = layer,
      .position = request.position,
      .queries = tensors.queries,
      .q = tensors.q.data(),
      .policy = request.policy,
      .held = form == PartForm::kRows && held.generation == part.generation ? held : none,
      .options = options,
      .recorder = recorder_.get(),
      .prefetcher = prefetcher_.get()};
  // Keys and values of layers to come may follow from what this query is answered.
  if (sparse) MarkSparse(sequence, request.position, tensors.queries);
  status = sparse ? RunSparqStep(input, form, part) : RunDenseStep(input, part);
  // Dense attention that left rows out is none.
  if (part.account.missed_rows > 0) MarkSparse(sequence, request.position, tensors.queries);
  return status;
}

}  // namespace terrace::engine
