// terrace-generate: a small language model on top of the attention service.
#include <csignal>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "services/frontend/generate_args.h"
#include "services/frontend/llama_model.h"
#include "services/frontend/policy_run.h"
#include "services/frontend/progress_line.h"
#include "services/frontend/run_report.h"
#include "services/frontend/terrace_backend.h"
#include "services/frontend/token_stream.h"
#include "services/frontend/tokenizer.h"

namespace terrace::frontend {
namespace {

volatile std::sig_atomic_t interrupts = 0;

// The first signal ends the run in order, the second one at once.
void OnInterrupt(int signal) {
  interrupts = interrupts + 1;
  if (interrupts > 1) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

void Say(absl::string_view line) {
  std::fprintf(stderr, "terrace-generate: %.*s\n", static_cast<int>(line.size()), line.data());
}

// Input is our own side's: everything before the first call to the service.
ExitCode CodeOf(const absl::Status& status, bool input) {
  if (status.ok()) return ExitCode::kOk;
  // Nobody waits for room any more, either.
  const bool given_up = absl::IsCancelled(status) || absl::IsResourceExhausted(status);
  if (given_up && interrupts > 0) return ExitCode::kInterrupted;
  if (absl::IsUnavailable(status)) return ExitCode::kUnavailable;
  if (input) return ExitCode::kBadInput;
  if (absl::IsDeadlineExceeded(status)) return ExitCode::kDeadline;
  return absl::IsInternal(status) || absl::IsUnknown(status) ? ExitCode::kFailed
                                                             : ExitCode::kRefused;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  return std::string{std::istreambuf_iterator<char>(in), {}};
}

// What is read before the service is asked for anything.
struct Input {
  std::unique_ptr<LlamaModel> model;
  Tokenizer tokenizer;
  std::vector<uint32_t> prompt;
  std::vector<uint32_t> score;
};

absl::StatusOr<Input> LoadInput(const GenerateArgs& args) {
  Input input;
  absl::StatusOr<std::unique_ptr<LlamaModel>> model = LlamaModel::Load(args.model, args.threads);
  if (!model.ok()) return model.status();
  input.model = *std::move(model);
  const LlamaConfig& config = input.model->config();
  absl::StatusOr<Tokenizer> tokenizer = Tokenizer::ForModel(args.model, config);
  if (!tokenizer.ok()) return tokenizer.status();
  input.tokenizer = *std::move(tokenizer);
  const absl::StatusOr<std::string> prompt = ReadText(args.prompt_file);
  if (!prompt.ok()) return prompt.status();
  input.prompt = input.tokenizer.EncodeDocument(*prompt);
  if (input.prompt.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(args.prompt_file, ": empty, and the model has no token that begins a text"));
  }
  if (!args.score_file.empty()) {
    const absl::StatusOr<std::string> score = ReadText(args.score_file);
    if (!score.ok()) return score.status();
    input.score = input.tokenizer.Encode(*score);
    if (input.score.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(args.score_file, ": empty"));
    }
  }
  return input;
}

attention::Dtype StorageOf(const GenerateArgs& args, const LlamaConfig& config) {
  if (config.dtype == "float32") {
    return args.storage_dtype().value_or(attention::Dtype::kFloat32);
  }
  const bool half = config.dtype == "float16";
  return args.storage_dtype().value_or(half ? attention::Dtype::kFloat16
                                            : attention::Dtype::kBFloat16);
}

// Refuses what the service would refuse in the middle of the run, and warns about what the model
// was not made for.
absl::Status CheckLength(const GenerateArgs& args, const Input& input,
                         const TerraceBackend& backend) {
  const int64_t tail = std::max(static_cast<int64_t>(input.score.size()), args.tokens);
  const int64_t tokens = static_cast<int64_t>(input.prompt.size()) + tail;
  const int64_t limit = backend.limits().sequence_tokens_max;
  if (limit > 0 && tokens > limit) {
    return absl::ResourceExhaustedError(absl::StrCat("prompt and continuation have ", tokens,
                                                     " tokens; the service at ", backend.address(),
                                                     " takes sequences of at most ", limit));
  }
  const int64_t trained = input.model->config().max_positions;
  if (tokens > trained) {
    Say(absl::StrCat("warning: ", tokens, " tokens, but the model was trained for ", trained,
                     ": expect poor text beyond"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<TerraceBackend>> Connect(const GenerateArgs& args,
                                                        const LlamaModel& model) {
  SequenceSpec spec = SpecOf(model.config(), model.fingerprint());
  spec.storage = StorageOf(args, model.config());
  spec.index = args.index_format();
  TerraceOptions options;
  options.address = args.address;
  options.tenant = args.tenant;
  options.mode = args.remote_mode();
  options.step_deadline = args.step_deadline;
  options.interrupted = [] { return interrupts > 0; };
  const absl::Time give_up = absl::Now() + args.reconnect;
  while (true) {
    auto backend = TerraceBackend::Connect(options, spec);
    if (!absl::IsUnavailable(backend.status()) || absl::Now() >= give_up || interrupts > 0) {
      return backend;
    }
    absl::SleepFor(StreamOptions().retry_interval);
  }
}

absl::Status Prefill(TokenStream& stream, const Input& input, absl::Span<float> logits,
                     RunReport& report) {
  ProgressLine progress("prefill", static_cast<int64_t>(input.prompt.size()));
  const absl::Time start = absl::Now();
  absl::Status status =
      stream.Prefill(input.prompt, logits, [&progress](int64_t done) { progress.Update(done); });
  report.prefill_wall = absl::Now() - start;
  return status;
}

// The stream remembers a failure: see CheckOutput.
void WriteOut(absl::string_view bytes) {
  std::fwrite(bytes.data(), 1, bytes.size(), stdout);
  std::fflush(stdout);
}

void WriteText(absl::string_view bytes) { WriteOut(EscapeControls(bytes)); }

ExitCode CheckOutput() {
  if (std::ferror(stdout) == 0) return ExitCode::kOk;
  Say("standard output could not be written");
  return ExitCode::kFailed;
}

// Runs every policy; the report gets those that ended well.
absl::Status TryPolicies(const GenerateArgs& args, PolicyRun run, RunReport& report) {
  const bool show_text = !args.json && args.tokens > 0;
  if (show_text) run.on_text = WriteText;
  for (const attention::Policy& policy : args.policies) {
    const std::string name = attention::PolicyName(policy);
    std::unique_ptr<ProgressLine> progress;
    run.on_score = [&progress, &name](int64_t done, int64_t total) {
      if (progress == nullptr) {
        progress = std::make_unique<ProgressLine>(absl::StrCat("score ", name), total);
      }
      progress->Update(done);
    };
    if (show_text && args.policies.size() > 1) WriteText(absl::StrCat("--- ", name, " ---\n"));
    PolicyResult result;
    absl::Status status = run.Try(policy, result);
    if (show_text) WriteText("\n");
    if (!status.ok()) return status;
    report.policies.push_back(std::move(result));
  }
  return absl::OkStatus();
}

void WriteReport(const GenerateArgs& args, const RunReport& report) {
  if (args.json) {
    WriteOut(report.Json());
    return;
  }
  std::fprintf(stderr, "\n%s", report.Table().c_str());
  if (report.handle.empty()) return;
  std::fprintf(stderr, "\nprompt        %s\n", report.handle.c_str());
  for (const PolicyResult& result : report.policies) {
    if (!result.handle.empty()) {
      std::fprintf(stderr, "%s  %s\n", result.policy.c_str(), result.handle.c_str());
    }
  }
}

// Everything that needs the service.
absl::Status RunOnService(const GenerateArgs& args, Input& input, TerraceBackend& backend,
                          RunReport& report) {
  if (absl::Status status = CheckLength(args, input, backend); !status.ok()) return status;
  const absl::StatusOr<int64_t> chunk = backend.StepTokens(args.prefill_chunk);
  if (!chunk.ok()) return chunk.status();
  report.chunk_tokens = *chunk;
  report.service_version = backend.limits().version;
  StreamOptions options;
  options.chunk_tokens = *chunk;
  options.reconnect = args.reconnect;
  options.notice = Say;
  options.interrupted = [] { return interrupts > 0; };
  absl::StatusOr<TokenStream> base =
      TokenStream::Open(input.model.get(), &backend, std::move(options));
  if (!base.ok()) return base.status();
  std::vector<float> logits(static_cast<size_t>(input.model->config().vocab_size));
  absl::Status status = Prefill(*base, input, absl::MakeSpan(logits), report);
  if (status.ok()) {
    PolicyRun run;
    run.base = &*base;
    run.logits = logits;
    run.tokenizer = &input.tokenizer;
    run.token_bytes = backend.spec().token_bytes();
    run.score_tokens = input.score;
    run.generate_tokens = args.tokens;
    run.keep_sequence = args.keep_sequence;
    status = TryPolicies(args, run, report);
  }
  if (status.ok() && args.keep_sequence) {
    report.handle = base->handle();
    return status;
  }
  base->Close(status);
  return status;
}

// What the command line asks of a model that cannot do it.
absl::Status CheckPolicies(const GenerateArgs& args, const LlamaConfig& config) {
  for (const attention::Policy& policy : args.policies) {
    absl::Status status = attention::ValidatePolicy(policy, config.head_dim);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

ExitCode Run(const GenerateArgs& args) {
  absl::StatusOr<Input> input = LoadInput(args);
  if (!input.ok()) {
    Say(input.status().message());
    return CodeOf(input.status(), /*input=*/true);
  }
  if (absl::Status status = CheckPolicies(args, input->model->config()); !status.ok()) {
    Say(absl::StrCat("--policy: ", status.message()));
    return ExitCode::kUsage;
  }
  auto backend = Connect(args, *input->model);
  if (!backend.ok()) {
    Say(backend.status().message());
    return absl::IsInvalidArgument(backend.status()) ? ExitCode::kUsage
                                                     : CodeOf(backend.status(), false);
  }
  RunReport report;
  report.model = args.model;
  report.fingerprint = input->model->fingerprint();
  report.address = args.address;
  report.storage = attention::DtypeName((*backend)->spec().storage);
  report.index = args.index;
  report.mode = args.mode;
  report.prompt_tokens = static_cast<int64_t>(input->prompt.size());
  const absl::Status status = RunOnService(args, *input, **backend, report);
  if (!status.ok()) {
    Say(status.message());
    return CodeOf(status, /*input=*/false);
  }
  WriteReport(args, report);
  return CheckOutput();
}

}  // namespace
}  // namespace terrace::frontend

int main(int argc, char** argv) {
  using terrace::frontend::ExitCode;
  const terrace::frontend::ParsedArgs parsed = terrace::frontend::ParseArgs(argc, argv);
  if (parsed.exit.has_value()) {
    if (*parsed.exit == ExitCode::kOk) {
      terrace::frontend::WriteOut(parsed.message);
      return static_cast<int>(terrace::frontend::CheckOutput());
    }
    std::fputs(parsed.message.c_str(), stderr);
    return static_cast<int>(*parsed.exit);
  }
  std::signal(SIGINT, terrace::frontend::OnInterrupt);
  std::signal(SIGTERM, terrace::frontend::OnInterrupt);
  return static_cast<int>(terrace::frontend::Run(parsed.args));
}
