#include "services/policy_check/check_args.h"

#include <CLI/CLI.hpp>
#include <bit>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace terrace::policy_check {
namespace {

constexpr int kBlockTokensMin = 16;
constexpr int kBlockTokensMax = 1024;
constexpr int kStripeBlocksMax = 64;

constexpr char kDescription[] =
    "Runs files of golden vectors (inputs of attention steps and what must come out of them)\n"
    "through the reference, the CPU kernels or a running service, and judges the answers.";

constexpr char kFooter[] =
    "Backends:\n"
    "  reference  fp64, obvious, slow. On the values as the file gives them; with reduced rows or "
    "an\n"
    "             int8 index on what would be stored, which shows what rounding alone does.\n"
    "  cpu        the kernels: rows encoded, score index built in stripes, rows selected, "
    "attended\n"
    "             to, mean value mixed in. No engine, no service.\n"
    "  service    a terrace-kv-store and a terrace-attention-worker --engine=remote, started from "
    "the\n"
    "             folder of this program on free loopback ports and stopped at the end. Each case "
    "is\n"
    "             a sequence; its step runs in mode rows, in mode partial, and in mode rows again\n"
    "             with a warm row cache. All must pass and have equal bits. Replies have no tau.\n"
    "\n"
    "What is compared with what:\n"
    "  1. The file with the reference on the values as given, by the fp32 tolerances below. A "
    "file\n"
    "     that is wrong fails with every backend and format.\n"
    "  2. The answer with the reference on what is stored: rows rounded to --storage, approximate\n"
    "     scores from what --index decodes to. Always by the fp32 tolerances: a kernel has no "
    "other\n"
    "     excuse. That every stored element lies within its format's rounding error of the given "
    "one\n"
    "     is checked apart.\n"
    "  3. The answer with the file:\n"
    "                   fp32 and exact    otherwise\n"
    "       channels    equal             equal\n"
    "       tau         1e-5 relative     1e-5 relative     (service: not told)\n"
    "       alpha       1e-5 absolute     1e-2 absolute\n"
    "       output      1e-5 relative L2  1e-2 relative L2  (of the whole case)\n"
    "       selection   equal but for rows whose group score lies within 1e-5 (otherwise 1e-2)\n"
    "                   relative of the k-th, or, not with fp32 and exact, that the reference of "
    "2.\n"
    "                   chooses likewise: rounding moved them. alpha and output are then held\n"
    "                   against exact attention over the rows really chosen. \"moved\" counts "
    "them.\n"
    "\n"
    "One line per case: passed with the largest errors, failed with got and expected numbers, or\n"
    "skipped because its policy is not built. The last line is \"N passed, N failed, N skipped\".\n"
    "\n"
    "Exit codes: 0 nothing failed; 1 a case failed, or the output could not be written; 2 wrong\n"
    "command line; 3 a file cannot be read or is malformed (no case is run then); 4 the backend "
    "did\n"
    "not start or did not stop in order; 130 interrupted.\n"
    "\n"
    "Example:\n"
    "  terrace-policy-check tests/data/policies/policies.json --backend service --storage bf16";

void AddOptions(CLI::App& app, CheckArgs& args) {
  app.add_option("files", args.files, "Files of golden vectors")->required()->type_name("FILE");
  app.add_option("--backend", args.backend, "What answers: reference, cpu or service")
      ->check(CLI::IsMember({"reference", "cpu", "service"}))
      ->capture_default_str();
  app.add_option("--storage", args.storage, "Type in which K and V are stored: fp32, bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  app.add_option("--index", args.index, "Format of the score index: exact or int8")
      ->check(CLI::IsMember({"exact", "int8"}))
      ->capture_default_str();
  app.add_option("--block-tokens", args.format.block_tokens,
                 "Rows that seal together: a power of two from 16 to 1024. Small, so that short "
                 "vectors cross blocks")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--index-tokens", args.format.index_tokens,
                 "Tokens of one score index stripe: a power of two from block-tokens to 64 times "
                 "that")
      ->type_name("N")
      ->capture_default_str();
  app.add_option("--case", args.cases, "Run only the case of this name; may be given again")
      ->type_name("NAME")
      ->allow_extra_args(false)
      ->take_all();
}

bool IsPowerOfTwo(int value) {
  return value > 0 && std::has_single_bit(static_cast<unsigned>(value));
}

void Validate(const StoreFormat& format) {
  const int block = format.block_tokens;
  if (!IsPowerOfTwo(block) || block < kBlockTokensMin || block > kBlockTokensMax) {
    throw CLI::ValidationError("--block-tokens",
                               absl::StrCat("got ", block, ", expected a power of two from ",
                                            kBlockTokensMin, " to ", kBlockTokensMax));
  }
  const int stripe = format.index_tokens;
  if (!IsPowerOfTwo(stripe) || stripe < block || stripe > kStripeBlocksMax * block) {
    throw CLI::ValidationError(
        "--index-tokens", absl::StrCat("got ", stripe, ", expected a power of two from ", block,
                                       " to ", kStripeBlocksMax * block));
  }
}

}  // namespace

ParsedArgs ParseArgs(int argc, const char* const* argv) {
  ParsedArgs parsed;
  CheckArgs& args = parsed.args;
  CLI::App app(kDescription, "terrace-policy-check");
  app.footer(kFooter);
  app.set_version_flag("--version", std::string("terrace-policy-check ") + TERRACE_VERSION);
  AddOptions(app, args);
  try {
    app.parse(argc, argv);
    Validate(args.format);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream err;
    const bool wanted = app.exit(error, out, err) == 0;
    parsed.exit = wanted ? ExitCode::kOk : ExitCode::kUsage;
    parsed.message = out.str() + err.str();
    return parsed;
  }
  args.format.storage = args.storage == "fp32"   ? attention::Dtype::kFloat32
                        : args.storage == "bf16" ? attention::Dtype::kBFloat16
                                                 : attention::Dtype::kFloat16;
  args.format.index =
      args.index == "exact" ? attention::IndexFormat::kExact : attention::IndexFormat::kInt8;
  return parsed;
}

}  // namespace terrace::policy_check
