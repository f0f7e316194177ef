#include "services/replay/replay_args.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace terrace::replay {
namespace {

constexpr uint64_t kCapacityMax = uint64_t{1} << 40;

constexpr char kDescription[] =
    "Replays a recorded trace through a tier of a bounded number of blocks, and tells which share\n"
    "of its references each placement policy serves from there.";

constexpr char kFooter[] =
    R"(Policies:
  heat    decayed mass that a block received; a newcomer must be hotter than what it displaces.
          The default of the store
  lru     whoever was used longest ago leaves
  s3fifo  newcomers on probation in a small queue before a main one
  belady  the optimum: knows the future, may leave blocks out

Traces:
  Requests, one JSON object per line, with the integers timestamp, input_length and output_length
  and hash_ids, an array of integers: the prefix blocks of the prompt. Each is one reference.
  Or steps, as recorded by a Terrace engine: each head of each step refers to the blocks that hold
  its selected rows, with the mass they captured.

Tables are for people; -o json prints a list of {"policy", "capacity_blocks", "hit_rate"}, every
policy at every capacity in the order asked, hit_rate a fraction. Errors go to standard error only.

Exit status:
  0  done
  1  the output could not be written
  2  wrong usage
  3  the trace cannot be read or is malformed

Example:
  terrace-replay --trace requests.jsonl --policy heat,lru,belady --capacity-blocks 1000,10000)";

std::string PolicyError(const std::string& text) {
  if (ParseReplayPolicy(text)) return "";
  return absl::StrCat("got \"", text, "\", expected heat, lru, s3fifo or belady");
}

std::string CapacityError(const std::string& text) {
  uint64_t number = 0;
  if (absl::SimpleAtoi(text, &number) && number >= 1 && number <= kCapacityMax) return "";
  return absl::StrCat("got \"", text, "\", expected a number of blocks from 1 to ", kCapacityMax);
}

std::string FormatError(const std::string& text) {
  if (text == "table" || text == "json") return "";
  return absl::StrCat("got \"", text, "\", expected table or json");
}

// Accepts a number in [low, high].
CLI::Validator Between(double low, double high) {
  const auto error = [low, high](const std::string& text) -> std::string {
    double number = 0;
    if (absl::SimpleAtod(text, &number) && number >= low && number <= high) return "";
    return absl::StrCat("got \"", text, "\", expected a number from ", low, " to ", high);
  };
  return CLI::Validator(error, "");
}

// What has a form of its own in ReplayArgs and is text until then.
struct RawText {
  std::vector<std::string> policies = {std::string(kvstore::PolicyName(kvstore::kDefaultPolicy))};
  std::vector<std::string> capacities;
  std::string output = "table";
};

void AddOptions(CLI::App& app, ReplayArgs& args, RawText& raw) {
  app.add_option("--trace", args.trace, "The trace")->type_name("FILE")->required();
  app.add_option("--policy", raw.policies, "Policies: heat, lru, s3fifo, belady")
      ->type_name("NAME[,NAME...]")
      ->delimiter(',')
      ->check(CLI::Validator(PolicyError, ""))
      ->capture_default_str();
  app.add_option("--capacity-blocks", raw.capacities, "Blocks that the tier holds")
      ->type_name("N[,N...]")
      ->delimiter(',')
      ->required()
      ->check(CLI::Validator(CapacityError, ""));
  app.add_option("-o,--output", raw.output, "table or json")
      ->type_name("FORMAT")
      ->check(CLI::Validator(FormatError, ""))
      ->capture_default_str();
}

// To find out what the parameters are worth; those of s3fifo are its authors'.
void AddHeatOptions(CLI::App& app, kvstore::HeatOptions& heat) {
  const auto add = [&app](const std::string& name, auto& value, const std::string& help, double low,
                          double high) {
    app.add_option(name, value, help)
        ->type_name("X")
        ->check(Between(low, high))
        ->capture_default_str()
        ->group("Parameters of heat");
  };
  add("--heat-half-life", heat.half_life_accesses,
      "References in which heat halves; 0 measures it, see --heat-half-life-gaps", 0, 1e15);
  add("--heat-half-life-gaps", heat.half_life_gaps,
      "Half-life in mean gaps between two references to a block", 0.001, 1000);
  add("--heat-mass-exponent", heat.mass_exponent, "Power of the mass that heat counts", 0.001, 1);
  add("--heat-gap-window", heat.gap_window, "Gaps in that mean", 1, 1e9);
  add("--heat-admit-touches", heat.admit_touches,
      "Below so many touches, a newcomer must be hotter by --heat-contrast", 0, 1e9);
  add("--heat-contrast", heat.contrast, "How much hotter, as a power of two", 0, 1000);
  add("--heat-history", heat.history_factor,
      "Blocks remembered without being held, for each that is held", 0, 1e6);
}

}  // namespace

ParsedArgs ParseArgs(int argc, const char* const* argv) {
  ParsedArgs parsed;
  ReplayArgs& args = parsed.args;
  RawText raw;
  CLI::App app(kDescription, "terrace-replay");
  app.footer(kFooter);
  app.set_version_flag("--version", "terrace-replay " TERRACE_VERSION, "This program's version");
  AddOptions(app, args, raw);
  AddHeatOptions(app, args.options.heat);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream err;
    const bool wanted = app.exit(error, out, err) == 0;
    parsed.exit = wanted ? ExitCode::kOk : ExitCode::kUsage;
    parsed.message = wanted ? out.str() : absl::StrCat("terrace-replay: ", err.str());
    return parsed;
  }
  for (const std::string& name : raw.policies) args.policies.push_back(*ParseReplayPolicy(name));
  for (const std::string& text : raw.capacities) {
    uint64_t& capacity = args.capacities.emplace_back();
    if (!absl::SimpleAtoi(text, &capacity)) std::abort();
  }
  args.json = raw.output == "json";
  return parsed;
}

}  // namespace terrace::replay
