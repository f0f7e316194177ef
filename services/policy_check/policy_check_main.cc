// terrace-policy-check: golden vectors against the reference, the kernels and the service.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "services/policy_check/backend.h"
#include "services/policy_check/case_report.h"
#include "services/policy_check/check_args.h"
#include "services/policy_check/judge.h"
#include "services/policy_check/vector_file.h"

namespace terrace::policy_check {
namespace {

volatile std::sig_atomic_t interrupted = 0;

// Ends the run after the case at hand, so that daemons are stopped and folders removed.
void OnInterrupt(int) { interrupted = 1; }

struct File {
  std::string path;
  std::vector<VectorCase> cases;
};

void Say(absl::string_view line) {
  std::fprintf(stderr, "terrace-policy-check: %.*s\n", static_cast<int>(line.size()), line.data());
}

// The stream remembers a failure: see CheckOutput.
void Print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

ExitCode CheckOutput() {
  if (std::ferror(stdout) == 0) return ExitCode::kOk;
  Say("standard output could not be written");
  return ExitCode::kFailed;
}

// Every file, also after a bad one, so that all of them are named at once.
ExitCode ReadFiles(const CheckArgs& args, std::vector<File>& files) {
  ExitCode code = ExitCode::kOk;
  std::set<std::string> wanted(args.cases.begin(), args.cases.end());
  for (const std::string& path : args.files) {
    absl::StatusOr<std::vector<VectorCase>> cases = ReadVectorFile(path);
    if (!cases.ok()) {
      Say(cases.status().message());
      code = ExitCode::kBadFile;
      continue;
    }
    if (!args.cases.empty()) {
      cases->erase(std::remove_if(cases->begin(), cases->end(),
                                  [&args](const VectorCase& vector) {
                                    return std::find(args.cases.begin(), args.cases.end(),
                                                     vector.name) == args.cases.end();
                                  }),
                   cases->end());
    }
    for (const VectorCase& vector : *cases) wanted.erase(vector.name);
    files.push_back({path, *std::move(cases)});
  }
  if (code == ExitCode::kOk && !wanted.empty()) {
    Say(absl::StrCat("--case: no file has ", absl::StrJoin(wanted, ", ")));
    code = ExitCode::kUsage;
  }
  return code;
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const CheckArgs& args) {
  if (args.backend == "service") return MakeServiceBackend(args.format);
  return args.backend == "cpu" ? MakeCpuBackend() : MakeReferenceBackend();
}

Verdict Examine(const VectorCase& vector, const StoreFormat& format, Backend& backend) {
  if (!vector.refused.ok()) return {.problems = {std::string(vector.refused.message())}};
  const absl::StatusOr<StoredCase> stored = Store(vector.problem, format);
  if (!stored.ok()) return {.problems = {std::string(stored.status().message())}};
  const Judge judge(vector, *stored);
  const absl::StatusOr<std::vector<Run>> runs = backend.Answer(vector, *stored);
  if (!runs.ok()) return {.problems = {runs.status().ToString()}};
  Verdict total;
  for (const Run& run : *runs) {
    const Verdict verdict = judge.Check(run.answer, backend.tells_tau());
    total.errors.Raise(verdict.errors);
    for (const std::string& problem : verdict.problems) {
      const absl::string_view gap = run.label.empty() ? "" : ", ";
      total.problems.push_back(absl::StrCat(run.label, gap, problem));
    }
  }
  const std::vector<std::string> of_file = judge.CheckFile();
  total.problems.insert(total.problems.end(), of_file.begin(), of_file.end());
  return total;
}

void RunFile(const File& file, const CheckArgs& args, Backend& backend, CaseReport& report) {
  Print(report.Header(absl::StrCat(file.path, ": ", file.cases.size(), " cases, backend ",
                                   args.backend, ", storage ", args.storage, ", index ",
                                   args.index)));
  for (const VectorCase& vector : file.cases) {
    if (interrupted != 0) return;
    if (vector.skipped) {
      Print(report.Skipped(vector.name, vector.policy_name));
      continue;
    }
    const Verdict verdict = Examine(vector, args.format, backend);
    Print(verdict.problems.empty() ? report.Passed(vector.name, verdict.errors)
                                   : report.Failed(vector.name, verdict.problems));
  }
}

ExitCode Check(const CheckArgs& args) {
  std::vector<File> files;
  const ExitCode read = ReadFiles(args, files);
  if (read != ExitCode::kOk) return read;
  size_t name_width = 0;
  for (const File& file : files) {
    for (const VectorCase& vector : file.cases) {
      name_width = std::max(name_width, vector.name.size());
    }
  }
  absl::StatusOr<std::unique_ptr<Backend>> backend = MakeBackend(args);
  if (!backend.ok()) {
    Say(backend.status().message());
    return ExitCode::kBackend;
  }
  CaseReport report(name_width);
  for (const File& file : files) RunFile(file, args, **backend, report);
  const absl::Status closed = (*backend)->Close();
  Print(report.Summary());
  if (!closed.ok()) Say(closed.message());
  if (interrupted != 0) return ExitCode::kInterrupted;
  if (report.failed() > 0) return ExitCode::kFailed;
  return closed.ok() ? CheckOutput() : ExitCode::kBackend;
}

}  // namespace
}  // namespace terrace::policy_check

int main(int argc, char** argv) {
  using terrace::policy_check::ExitCode;
  const terrace::policy_check::ParsedArgs parsed = terrace::policy_check::ParseArgs(argc, argv);
  if (parsed.exit.has_value()) {
    if (*parsed.exit == ExitCode::kOk) {
      terrace::policy_check::Print(parsed.message);
      return static_cast<int>(terrace::policy_check::CheckOutput());
    }
    std::fputs(parsed.message.c_str(), stderr);
    return static_cast<int>(*parsed.exit);
  }
  for (const int signal : {SIGHUP, SIGINT, SIGTERM}) {
    std::signal(signal, terrace::policy_check::OnInterrupt);
  }
  return static_cast<int>(terrace::policy_check::Check(parsed.args));
}
