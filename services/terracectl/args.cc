#include "services/terracectl/args.h"

#include <CLI/CLI.hpp>
#include <limits>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "services/runtime/endpoint.h"
#include "services/terracectl/text_table.h"

namespace terrace::terracectl {
namespace {

constexpr absl::Duration kMaxTimeout = absl::Hours(24);

constexpr char kFooter[] =
    R"(Tables are for people; -o json gives scripts the whole answer as protobuf JSON (snake_case
names, 64-bit integers as strings). `sequences -o json` merges all pages into one object; its
next_page_token is empty unless --limit cut the list. Errors go to standard error only.

Environment:
  TERRACE_ENDPOINT  the default of --endpoint
  NO_COLOR          when not empty, no usage bars on a terminal

Exit status:
  0  done
  1  the server refused, its answer was not understood, or the output could not be written
  2  wrong usage
  3  unavailable: no connection to the endpoint, or it drains; or a shard does not answer: a list
     then has what the others hold, and names those it lacks. Worth a retry
  4  not found: no such sequence
  5  connected, but no answer within --timeout
)";

std::string TimeoutError(std::string& text) {
  absl::Duration timeout;
  if (!absl::ParseDuration(text, &timeout)) {
    return absl::StrCat("got \"", text, "\", expected a duration such as 500ms, 5s or 1m");
  }
  if (timeout < absl::Milliseconds(1) || timeout > kMaxTimeout) {
    return absl::StrCat("got ", text, ", expected 1ms to 24h");
  }
  return "";
}

std::string EndpointError(std::string& text) {
  return std::string(runtime::ValidateEndpoint(text).message());
}

// Requests carry text as UTF-8; what is not cannot name anything that a server holds.
std::string TextError(std::string& text) {
  if (text.empty()) return "got an empty text";
  if (Printable(text) == text) return "";
  return absl::StrCat("got \"", Printable(text), "\", expected printable UTF-8");
}

std::string FormatError(std::string& text) {
  if (text == "table" || text == "json") return "";
  return absl::StrCat("got \"", text, "\", expected table or json");
}

// Accepts a decimal number in [1, max].
CLI::Validator NumberUpTo(uint64_t max) {
  const auto error = [max](std::string& text) -> std::string {
    uint64_t number = 0;
    if (absl::SimpleAtoi(text, &number) && number >= 1 && number <= max) return "";
    return absl::StrCat("got \"", text, "\", expected a number from 1 to ", max);
  };
  return CLI::Validator(error, "");
}

// What has a form of its own in Args and is text until then.
struct RawText {
  std::string timeout = "5s";
  std::string output = "table";
};

void AddSharedOptions(CLI::App& app, Args& args, RawText& raw) {
  app.add_option("--endpoint", args.endpoint, "Where the daemon listens: HOST:PORT or unix:PATH")
      ->type_name("ENDPOINT")
      ->envname("TERRACE_ENDPOINT")
      ->check(CLI::Validator(EndpointError, ""))
      ->capture_default_str();
  app.add_option("--timeout", raw.timeout, "Time for each call, connecting included")
      ->type_name("DURATION")
      ->check(CLI::Validator(TimeoutError, ""))
      ->capture_default_str();
  app.add_option("-o,--output", raw.output, "table or json")
      ->type_name("FORMAT")
      ->check(CLI::Validator(FormatError, ""))
      ->capture_default_str();
}

void AddCommands(CLI::App& app, Args& args) {
  const auto choose = [&args](Command command) {
    return [&args, command] { args.command = command; };
  };
  app.add_subcommand("tiers", "Capacity, use and traffic of every tier")
      ->callback(choose(Command::kTiers));

  CLI::App* sequences = app.add_subcommand("sequences", "The sequences that are held");
  sequences->callback(choose(Command::kSequences));
  sequences->add_option("--tenant", args.tenant, "Only this tenant's")
      ->type_name("TENANT")
      ->check(CLI::Validator(TextError, ""));
  sequences->add_option("--page-size", args.page_size, "Sequences fetched by one call")
      ->type_name("N")
      ->check(NumberUpTo(1000))
      ->capture_default_str();
  sequences->add_option("--limit", args.limit, "Stop after so many")
      ->type_name("N")
      ->check(NumberUpTo(std::numeric_limits<uint64_t>::max()));

  CLI::App* describe =
      app.add_subcommand("describe", "One sequence, and where its blocks lie layer by layer");
  describe->callback(choose(Command::kDescribe));
  describe->add_option("handle", args.handle, "Handle, as `sequences` prints it")
      ->type_name("HANDLE")
      ->required()
      ->check(CLI::Validator(TextError, ""));

  app.add_subcommand("version", "This program's version; asks no server")
      ->callback(choose(Command::kVersion));
}

}  // namespace

std::variant<Args, EarlyExit> ParseArgs(int argc, const char* const* argv) {
  Args args;
  RawText raw;
  CLI::App app("Admin command line of Terrace: what its tiers hold.", "terracectl");
  // Subcommands inherit both: shared options may stand after the command, and its --help tells
  // the exit status too.
  app.fallthrough();
  app.footer(kFooter);
  // One is required too, but an unknown one is better named than called missing: see below.
  app.require_subcommand(0, 1);
  app.set_version_flag("--version", "terracectl " TERRACE_VERSION, "This program's version");
  AddSharedOptions(app, args, raw);
  AddCommands(app, args);
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) {
      throw CLI::RequiredError("A command (tiers, sequences, describe or version)");
    }
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream err;
    const int code = app.exit(error, out, err);
    return EarlyExit{code == 0 ? ExitCode::kOk : ExitCode::kUsage, out.str(),
                     code == 0 ? "" : absl::StrCat("terracectl: ", err.str())};
  }
  absl::ParseDuration(raw.timeout, &args.timeout);
  args.output = raw.output == "json" ? OutputFormat::kJson : OutputFormat::kTable;
  return args;
}

}  // namespace terrace::terracectl
