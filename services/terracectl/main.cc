#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <variant>

#include "absl/strings/string_view.h"
#include "services/terracectl/admin_client.h"
#include "services/terracectl/args.h"
#include "services/terracectl/failure.h"
#include "services/terracectl/json.h"
#include "services/terracectl/tables.h"
#include "services/terracectl/version.h"

namespace terrace::terracectl {
namespace {

View TerminalView() {
  const char* no_color = std::getenv("NO_COLOR");
  winsize size = {};
  const bool terminal = ::isatty(STDOUT_FILENO) == 1;
  const bool sized = terminal && ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0;
  return {.now = absl::Now(),
          .bars = terminal && (no_color == nullptr || *no_color == '\0'),
          .width = sized ? size.ws_col : size_t{0}};
}

// What is printed, and the exit code once it is.
struct Output {
  std::string text;
  ExitCode code = ExitCode::kOk;
};

template <typename Answer>
absl::StatusOr<Output> Render(const absl::StatusOr<Answer>& answer, const Args& args,
                              std::string (*table)(const Answer&, const View&)) {
  if (!answer.ok()) return answer.status();
  if (args.output == OutputFormat::kTable) return Output{table(*answer, TerminalView())};
  absl::StatusOr<std::string> json = ToJson(*answer);
  if (!json.ok()) return json.status();
  return Output{*std::move(json)};
}

// The same for a list that may lack shards.
template <typename Answer>
absl::StatusOr<Output> RenderList(const absl::StatusOr<Answer>& answer, const Args& args,
                                  std::string (*table)(const Answer&, const View&)) {
  absl::StatusOr<Output> output = Render(answer, args, table);
  if (output.ok() && !answer->unreachable().empty()) output->code = ExitCode::kUnavailable;
  return output;
}

absl::StatusOr<Output> Ask(AdminClient& client, const Args& args) {
  switch (args.command) {
    case Command::kTiers:
      return RenderList(client.ListTiers(), args, TiersTable);
    case Command::kSequences:
      return RenderList(client.ListSequences({args.tenant, args.page_size, args.limit}), args,
                        SequencesTable);
    case Command::kDescribe:
      return Render(client.DescribeSequence(args.handle), args, SequenceTable);
    case Command::kVersion:
      return Output{VersionText(args.output)};
  }
  std::abort();
}

ExitCode Print(absl::string_view text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (written && std::fflush(stdout) == 0) return ExitCode::kOk;
  std::perror("terracectl: cannot write to standard output");
  return ExitCode::kFailed;
}

ExitCode Run(const Args& args) {
  AdminClient client(args.endpoint, args.timeout);
  const auto output = Ask(client, args);
  if (output.ok()) {
    const ExitCode printed = Print(output->text);
    return printed == ExitCode::kOk ? output->code : printed;
  }
  const Failure failure = {output.status(), args.endpoint, args.timeout, client.Connected()};
  std::fputs(DescribeFailure(failure).c_str(), stderr);
  return ExitCodeOf(failure);
}

}  // namespace
}  // namespace terrace::terracectl

// Only a mistake in our own options throws, and then the process may end.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  using namespace terrace::terracectl;
  const auto parsed = ParseArgs(argc, argv);
  if (const auto* args = std::get_if<Args>(&parsed)) return static_cast<int>(Run(*args));
  const auto& early = std::get<EarlyExit>(parsed);
  std::fputs(early.err.c_str(), stderr);
  const ExitCode printed = Print(early.out);
  return static_cast<int>(printed == ExitCode::kOk ? early.code : printed);
}
