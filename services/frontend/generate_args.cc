#include "services/frontend/generate_args.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"

namespace terrace::frontend {
namespace {

constexpr char kDescription[] =
    "Runs a Llama model whose KV cache and attention live in a Terrace attention service.\n"
    "The prompt is prefilled once with dense attention; each policy then works on a fork of it.";

constexpr char kFooter[] =
    "Policies: dense, or sparq:r=16,k=128[,window=32][,sinks=4][,group=sum_prob|sum_logit|max_prob]"
    "\n[,mean=off|mean|residual]. Generated text goes to standard output, everything else to\n"
    "standard error; with --json standard output gets one JSON object and nothing else.\n"
    "Durations are written 500ms, 60s, 2m.\n"
    "\n"
    "Exit codes: 0 done; 1 failed otherwise; 2 wrong command line, or a policy that the model\n"
    "cannot run; 3 the service cannot be reached or went away; 4 checkpoint, prompt or score file\n"
    "cannot be used; 5 the service refused a call; 6 a step or a call took too long; 130 "
    "interrupted.\n"
    "\n"
    "Example:\n"
    "  terrace-generate --model services/frontend/model/tiny --attention localhost:7400 \\\n"
    "    --prompt-file services/frontend/documents/northanger_prompt.txt \\\n"
    "    --score-file services/frontend/documents/northanger_continuation.txt \\\n"
    "    --policy dense --policy sparq:r=16,k=128,window=32 --tokens 200";

// Adds an option that reads a duration; a negative or malformed one is a usage error.
void AddDuration(CLI::App& app, const std::string& name, absl::Duration& value,
                 const std::string& help) {
  app.add_option_function<std::string>(
         name,
         [name, &value](const std::string& text) {
           if (!absl::ParseDuration(text, &value) || value < absl::ZeroDuration()) {
             throw CLI::ValidationError(
                 name, absl::StrCat("\"", text, "\" is no duration such as 500ms, 60s or 2m"));
           }
         },
         help)
      ->type_name("DURATION");
}

void AddPolicies(CLI::App& app, std::vector<attention::Policy>& policies) {
  app.add_option_function<std::vector<std::string>>(
         "--policy",
         [&policies](const std::vector<std::string>& texts) {
           for (const std::string& text : texts) {
             const absl::StatusOr<attention::Policy> policy = attention::ParsePolicy(text);
             if (!policy.ok()) {
               throw CLI::ValidationError("--policy", std::string(policy.status().message()));
             }
             policies.push_back(*policy);
           }
         },
         "Attention policy; give it again to compare several [dense]")
      ->type_name("POLICY")
      ->allow_extra_args(false)
      ->take_all();
}

void AddOptions(CLI::App& app, GenerateArgs& args, bool& greedy) {
  app.add_option("--model", args.model, "Directory with config.json and model.safetensors")
      ->required()
      ->type_name("DIR")
      ->check(CLI::ExistingDirectory);
  app.add_option("--attention", args.address, "Attention service: host:port or unix:path")
      ->required()
      ->type_name("ADDR");
  app.add_option("--prompt-file", args.prompt_file, "Text to begin with")
      ->required()
      ->type_name("FILE")
      ->check(CLI::ExistingFile);
  app.add_option("--score-file", args.score_file,
                 "Text that follows the prompt: reports bits per byte of it under each policy")
      ->type_name("FILE")
      ->check(CLI::ExistingFile);
  app.add_option("--tokens", args.tokens, "Tokens to generate under each policy")
      ->type_name("N")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->capture_default_str();
  AddPolicies(app, args.policies);
  app.add_flag("--greedy", greedy, "Take the likeliest token: the default, and the only way now");
  app.add_flag("--json", args.json, "Write one JSON object instead of text and table");
  app.add_option("--prefill-chunk", args.prefill_chunk,
                 "Tokens of one prefill step; less if the service's limits ask for it")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--index", args.index, "Score index of the sequence: int8 or exact")
      ->check(CLI::IsMember({"int8", "exact"}))
      ->capture_default_str();
  app.add_option("--storage", args.storage,
                 "Type in which K and V are stored: fp32, bf16, fp16, or auto for the checkpoint's")
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "fp16"}))
      ->capture_default_str();
  app.add_option("--mode", args.mode,
                 "How a worker with remote stores runs a step: auto, rows or partial")
      ->check(CLI::IsMember({"auto", "rows", "partial"}))
      ->capture_default_str();
  AddDuration(app, "--reconnect", args.reconnect,
              "Wait this long for a service that went away, then go on where it left off [0]");
  AddDuration(app, "--deadline", args.step_deadline, "Limit for one step of one layer [none]");
  app.add_flag("--keep-sequence,--return-handle", args.keep_sequence,
               "Leave the prefilled and the generated sequences in the service, and name them");
  app.add_option("--tenant", args.tenant, "Tenant that owns the sequences [default]");
  app.add_option("--threads", args.threads, "Threads for the model's products")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
}

}  // namespace

IndexFormat GenerateArgs::index_format() const {
  return index == "exact" ? IndexFormat::kExact : IndexFormat::kInt8;
}

RemoteMode GenerateArgs::remote_mode() const {
  if (mode == "rows") return RemoteMode::kRows;
  return mode == "partial" ? RemoteMode::kPartial : RemoteMode::kAuto;
}

std::optional<attention::Dtype> GenerateArgs::storage_dtype() const {
  if (storage == "fp32") return attention::Dtype::kFloat32;
  if (storage == "fp16") return attention::Dtype::kFloat16;
  if (storage == "bf16") return attention::Dtype::kBFloat16;
  return std::nullopt;
}

ParsedArgs ParseArgs(int argc, const char* const* argv) {
  ParsedArgs parsed;
  bool greedy = true;
  CLI::App app(kDescription, "terrace-generate");
  app.footer(kFooter);
  app.set_version_flag("--version", std::string("terrace-generate ") + TERRACE_VERSION);
  parsed.args.threads = std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 2);
  AddOptions(app, parsed.args, greedy);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream err;
    const bool wanted = app.exit(error, out, err) == 0;
    parsed.exit = wanted ? ExitCode::kOk : ExitCode::kUsage;
    parsed.message = out.str() + err.str();
    return parsed;
  }
  if (parsed.args.policies.empty()) parsed.args.policies.emplace_back(attention::DensePolicy());
  return parsed;
}

}  // namespace terrace::frontend
