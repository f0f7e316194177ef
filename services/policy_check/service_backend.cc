#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "services/frontend/convert.h"
#include "services/policy_check/backend.h"
#include "services/policy_check/daemon_process.h"
#include "terrace/v1/attention.grpc.pb.h"

namespace terrace::policy_check {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(60);
// Of K and V in one message. Small, so that an append takes several and they end within blocks.
constexpr size_t kAppendBytes = 64 << 10;

// A folder that goes with this object.
class WorkFolder {
 public:
  static absl::StatusOr<std::unique_ptr<WorkFolder>> Make() {
    std::error_code error;
    std::string path = std::filesystem::temp_directory_path(error) / "terrace-policy-check-XXXXXX";
    if (error || ::mkdtemp(path.data()) == nullptr) {
      return absl::UnavailableError(
          absl::StrCat("no temporary folder: ", error ? error.message() : std::strerror(errno)));
    }
    return std::unique_ptr<WorkFolder>(new WorkFolder(std::move(path)));
  }
  ~WorkFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  explicit WorkFolder(std::string path) : path_(std::move(path)) {}

  const std::string path_;
};

absl::Status FromGrpc(absl::string_view call, const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return {static_cast<absl::StatusCode>(status.error_code()),
          absl::StrCat(call, ": ", status.error_message())};
}

void SetDeadline(grpc::ClientContext& context) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + kCallTimeout));
}

// Rows [first, first + count) of [kv_heads][tokens][head_dim], as [count][kv_heads][head_dim].
void SetRows(const attention::reference::Problem& problem, const std::vector<double>& matrix,
             int first, int count, v1::Tensor& tensor) {
  std::vector<float> floats;
  for (int token = first; token < first + count; ++token) {
    for (int head = 0; head < problem.kv_heads; ++head) {
      const size_t row = static_cast<size_t>(head) * problem.tokens + token;
      const auto start = matrix.begin() + static_cast<std::ptrdiff_t>(row * problem.head_dim);
      floats.insert(floats.end(), start, start + problem.head_dim);
    }
  }
  frontend::SetTensor(floats, {count, problem.kv_heads, problem.head_dim}, tensor);
}

// The calls of one sequence.
class Sequence {
 public:
  Sequence(v1::AttentionService::Stub& stub, const VectorCase& vector)
      : stub_(stub), vector_(vector), problem_(vector.problem) {}

  absl::Status Open(const StoreFormat& format) {
    frontend::SequenceSpec spec;
    spec.layers = 1;
    spec.query_heads = problem_.query_heads;
    spec.kv_heads = problem_.kv_heads;
    spec.head_dim = problem_.head_dim;
    spec.storage = format.storage;
    spec.index = format.index == attention::IndexFormat::kExact ? frontend::IndexFormat::kExact
                                                                : frontend::IndexFormat::kInt8;
    spec.fingerprint = "policy-check";
    v1::OpenSequenceRequest request;
    *request.mutable_new_sequence() = frontend::ToProto(spec);
    v1::OpenSequenceResponse response;
    grpc::ClientContext context;
    SetDeadline(context);
    absl::Status status =
        FromGrpc("OpenSequence", stub_.OpenSequence(&context, request, &response));
    sequence_ = frontend::FromProto(response.sequence());
    if (status.ok() &&
        static_cast<int>(response.sequence().block_tokens()) != format.block_tokens) {
      return absl::InternalError(absl::StrCat("OpenSequence: got blocks of ",
                                              response.sequence().block_tokens(),
                                              " tokens, expected ", format.block_tokens));
    }
    return status;
  }

  // All rows but the last.
  absl::Status Append() {
    const int rows = problem_.tokens - 1;
    if (rows == 0) return absl::OkStatus();
    const size_t row_bytes = 2 * sizeof(float) * problem_.kv_heads * problem_.head_dim;
    const int chunk_rows = static_cast<int>(std::max<size_t>(1, kAppendBytes / row_bytes));
    grpc::ClientContext context;
    SetDeadline(context);
    v1::AppendKvResponse response;
    const auto writer = stub_.AppendKv(&context, &response);
    for (int first = 0; first < rows; first += chunk_rows) {
      v1::AppendKvRequest request;
      request.set_handle(sequence_.handle);
      request.set_writer_epoch(sequence_.epoch);
      v1::LayerChunk& chunk = *request.add_chunks();
      chunk.set_position(static_cast<uint64_t>(first));
      const int count = std::min(chunk_rows, rows - first);
      SetRows(problem_, problem_.k, first, count, *chunk.mutable_k());
      SetRows(problem_, problem_.v, first, count, *chunk.mutable_v());
      // Finish says why.
      if (!writer->Write(request)) break;
    }
    writer->WritesDone();
    absl::Status status = FromGrpc("AppendKv", writer->Finish());
    if (status.ok() && response.length() != static_cast<uint64_t>(rows)) {
      return absl::InternalError(
          absl::StrCat("AppendKv: got length ", response.length(), ", expected ", rows));
    }
    return status;
  }

  // The step of the last row.
  absl::StatusOr<attention::reference::Answer> Attend(frontend::RemoteMode mode) {
    v1::AttendRequest request;
    request.set_strict(true);
    request.set_return_selection(true);
    request.set_mode(frontend::ToProto(mode));
    v1::StepItem& item = *request.add_items();
    item.set_handle(sequence_.handle);
    item.set_writer_epoch(sequence_.epoch);
    item.set_position(static_cast<uint64_t>(problem_.tokens - 1));
    const std::vector<float> q(problem_.q.begin(), problem_.q.end());
    frontend::SetTensor(q, {1, problem_.query_heads, problem_.head_dim}, *item.mutable_q());
    SetRows(problem_, problem_.k, problem_.tokens - 1, 1, *item.mutable_k());
    SetRows(problem_, problem_.v, problem_.tokens - 1, 1, *item.mutable_v());
    *item.mutable_policy() = frontend::ToProto(vector_.policy);
    v1::AttendResponse response;
    grpc::ClientContext context;
    SetDeadline(context);
    absl::Status status = FromGrpc("Attend", stub_.Attend(&context, request, &response));
    if (!status.ok()) return status;
    if (response.results_size() != 1) {
      return absl::InternalError(
          absl::StrCat("Attend: got ", response.results_size(), " results, expected 1"));
    }
    return Read(response.results(0), mode);
  }

  absl::Status Close() {
    v1::CloseRequest request;
    request.set_handle(sequence_.handle);
    v1::CloseResponse response;
    grpc::ClientContext context;
    SetDeadline(context);
    return FromGrpc("Close", stub_.Close(&context, request, &response));
  }

 private:
  absl::StatusOr<attention::reference::Answer> Read(const v1::StepResult& result,
                                                    frontend::RemoteMode mode) const {
    absl::Status status = frontend::FromProto(result.status());
    if (!status.ok()) return status;
    const bool sparse = std::holds_alternative<attention::SparqPolicy>(vector_.policy);
    // A dense step ships no rows.
    const v1::RemoteMode expected =
        frontend::ToProto(sparse ? mode : frontend::RemoteMode::kPartial);
    const v1::StepAccount& account = result.account();
    if (account.mode() != expected) {
      return absl::InternalError(absl::StrCat("Attend: ran ", v1::RemoteMode_Name(account.mode()),
                                              ", expected ", v1::RemoteMode_Name(expected)));
    }
    const auto length = static_cast<uint64_t>(problem_.tokens);
    if (!result.appended() || result.layer_length() != length || account.missed_rows() != 0) {
      return absl::InternalError(absl::StrCat(
          "Attend: got appended ", result.appended(), ", length ", result.layer_length(), " and ",
          account.missed_rows(), " missed rows, expected 1, ", length, " and 0"));
    }
    std::vector<float> output(problem_.q.size());
    status = frontend::GetTensor(result.output(), {1, problem_.query_heads, problem_.head_dim},
                                 absl::MakeSpan(output));
    if (!status.ok()) return status;
    attention::reference::Answer answer;
    answer.output.assign(output.begin(), output.end());
    answer.alpha.assign(account.alpha().begin(), account.alpha().end());
    for (const v1::Selection& selection : result.selections()) {
      answer.selection.emplace_back(selection.positions().begin(), selection.positions().end());
      if (!sparse && selection.channels().empty()) continue;
      answer.channels.emplace_back(selection.channels().begin(), selection.channels().end());
    }
    return answer;
  }

  v1::AttentionService::Stub& stub_;
  const VectorCase& vector_;
  const attention::reference::Problem& problem_;
  frontend::SequenceState sequence_;
};

// fp32 values lose nothing in double: equal bits there are equal bits here.
absl::Status SameBits(const Run& first, const Run& other) {
  const std::string names = absl::StrCat(first.label, " and ", other.label);
  if (first.answer.channels != other.answer.channels ||
      first.answer.selection != other.answer.selection) {
    return absl::InternalError(absl::StrCat("modes ", names, " selected differently"));
  }
  for (auto [what, a, b] : {std::tuple{"output", &first.answer.output, &other.answer.output},
                            std::tuple{"alpha", &first.answer.alpha, &other.answer.alpha}}) {
    size_t i = 0;
    while (i < std::min(a->size(), b->size()) &&
           std::bit_cast<uint64_t>((*a)[i]) == std::bit_cast<uint64_t>((*b)[i])) {
      ++i;
    }
    if (i == a->size() && i == b->size()) continue;
    return absl::InternalError(absl::StrFormat("modes %s differ in %s, first at %d: %.9g and %.9g",
                                               names, what, i, i < a->size() ? (*a)[i] : 0.0,
                                               i < b->size() ? (*b)[i] : 0.0));
  }
  return absl::OkStatus();
}

class ServiceBackend final : public Backend {
 public:
  ServiceBackend(std::unique_ptr<WorkFolder> folder, std::unique_ptr<DaemonProcess> store,
                 std::unique_ptr<DaemonProcess> worker)
      : folder_(std::move(folder)), store_(std::move(store)), worker_(std::move(worker)) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    stub_ = v1::AttentionService::NewStub(grpc::CreateCustomChannel(
        worker_->address(), grpc::InsecureChannelCredentials(), arguments));
  }

  bool tells_tau() const override { return false; }

  absl::StatusOr<std::vector<Run>> Answer(const VectorCase& vector,
                                          const StoredCase& stored) override {
    // A daemon that is gone explains more than the call that meets its absence.
    absl::Status status = CheckDaemons();
    if (!status.ok()) return status;
    absl::StatusOr<std::vector<Run>> runs = RunModes(vector, stored.format);
    if (!runs.ok()) status = CheckDaemons();
    if (!status.ok()) return status;
    return runs;
  }

  absl::Status Close() override {
    // A worker that drains waits for its clients to hang up, and an idle channel of this kind looks
    // at what its peer says only every few seconds.
    stub_.reset();
    absl::Status worker = worker_->Stop();
    absl::Status store = store_->Stop();
    return worker.ok() ? store : worker;
  }

 private:
  struct Way {
    const char* label;
    frontend::RemoteMode mode;
  };

  absl::Status CheckDaemons() {
    absl::Status status = store_->Check();
    return status.ok() ? worker_->Check() : status;
  }

  absl::StatusOr<std::vector<Run>> RunModes(const VectorCase& vector, const StoreFormat& format) {
    std::vector<Run> runs;
    for (const std::vector<Way>& ways :
         {std::vector<Way>{{"rows", frontend::RemoteMode::kRows},
                           {"rows again", frontend::RemoteMode::kRows}},
          std::vector<Way>{{"partial", frontend::RemoteMode::kPartial}}}) {
      Sequence sequence(*stub_, vector);
      absl::Status status = sequence.Open(format);
      if (!status.ok()) return status;
      status = sequence.Append();
      for (const Way& way : ways) {
        if (!status.ok()) break;
        absl::StatusOr<attention::reference::Answer> answer = sequence.Attend(way.mode);
        status = answer.status();
        if (status.ok()) runs.push_back({.label = way.label, .answer = *std::move(answer)});
      }
      const absl::Status closed = sequence.Close();
      if (status.ok()) status = closed;
      if (!status.ok()) return status;
    }
    for (const Run& run : runs) {
      if (absl::Status status = SameBits(runs[0], run); !status.ok()) return status;
    }
    return runs;
  }

  // In the order in which they are needed: the worker stops first, the folder goes last.
  const std::unique_ptr<WorkFolder> folder_;
  const std::unique_ptr<DaemonProcess> store_;
  const std::unique_ptr<DaemonProcess> worker_;
  std::unique_ptr<v1::AttentionService::Stub> stub_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeServiceBackend(const StoreFormat& format) {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::UnavailableError(absl::StrCat("/proc/self/exe: ", error.message()));
  const std::string binaries = self.parent_path();
  absl::StatusOr<std::unique_ptr<WorkFolder>> folder = WorkFolder::Make();
  if (!folder.ok()) return folder.status();
  absl::StatusOr<std::unique_ptr<DaemonProcess>> store =
      DaemonProcess::Start(binaries, "terrace-kv-store", (*folder)->path(),
                           {absl::StrCat("--block-tokens=", format.block_tokens),
                            absl::StrCat("--index-tokens=", format.index_tokens)});
  if (!store.ok()) return store.status();
  absl::StatusOr<std::unique_ptr<DaemonProcess>> worker =
      DaemonProcess::Start(binaries, "terrace-attention-worker", (*folder)->path(),
                           {"--engine=remote", absl::StrCat("--stores=", (*store)->address())});
  if (!worker.ok()) return worker.status();
  return std::make_unique<ServiceBackend>(*std::move(folder), *std::move(store),
                                          *std::move(worker));
}

}  // namespace terrace::policy_check
