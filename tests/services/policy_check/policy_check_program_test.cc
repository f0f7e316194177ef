// terrace-policy-check as its users see it: output, exit codes, and what it leaves behind.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

extern char** environ;

namespace terrace::policy_check {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kVectors[] = TERRACE_TEST_DATA "/policies/policies.json";
constexpr char kProgram[] = TERRACE_BIN_DIR "/terrace-policy-check";

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void Add(json& number, double change) { number = number.get<double>() + change; }

struct Outcome {
  int exit_code = -1;
  std::string out;
  std::string err;
};

// The program under way: its output can be read as it comes.
class Program {
 public:
  Program(const std::string& program, std::vector<std::string> arguments, std::string err_path)
      : err_path_(std::move(err_path)) {
    std::array<int, 2> pipe{};
    EXPECT_EQ(::pipe2(pipe.data(), O_CLOEXEC), 0);
    arguments.insert(arguments.begin(), program);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, pipe[1], STDOUT_FILENO);
    ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, err_path_.c_str(),
                                       O_WRONLY | O_CREAT | O_TRUNC, 0644);
    EXPECT_EQ(::posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv.data(), environ), 0);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(pipe[1]);
    out_ = ::fdopen(pipe[0], "r");
  }
  ~Program() { std::fclose(out_); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Reads until a line contains `text`; false when the output ends first.
  bool ReadUntil(const std::string& text) {
    while (ReadLine()) {
      if (absl::StrContains(line_, text)) return true;
    }
    return false;
  }

  void Signal(int signal) { ::kill(pid_, signal); }

  Outcome Wait() {
    while (ReadLine()) {
    }
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_,
            ReadAll(err_path_)};
  }

 private:
  bool ReadLine() {
    line_.clear();
    for (int c = std::fgetc(out_); c != EOF; c = std::fgetc(out_)) {
      line_ += static_cast<char>(c);
      if (c == '\n') break;
    }
    read_ += line_;
    return !line_.empty();
  }

  const std::string err_path_;
  pid_t pid_ = 0;
  std::FILE* out_ = nullptr;
  std::string line_;
  std::string read_;
};

class PolicyCheckProgram : public ::testing::Test {
 protected:
  void SetUp() override {
    // Read once: the variable that it looks at is set below.
    static const std::string root = ::testing::TempDir();
    std::string path = root + "policy_check_XXXXXX";
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    folder_ = path;
    std::filesystem::create_directory(folder_ + "/temporary");
    // Where the program keeps what it needs while it runs.
    ::setenv("TMPDIR", (folder_ + "/temporary").c_str(), 1);
  }

  void TearDown() override {
    ASSERT_FALSE(folder_.empty());
    // Whatever happened, no folder and no daemon stays.
    EXPECT_TRUE(std::filesystem::is_empty(folder_ + "/temporary"));
    EXPECT_THAT(Daemons(), IsEmpty());
    std::filesystem::remove_all(folder_);
  }

  Program Start(std::vector<std::string> arguments) {
    return {kProgram, std::move(arguments), folder_ + "/err"};
  }
  Outcome Run(std::vector<std::string> arguments) { return Start(std::move(arguments)).Wait(); }

  std::string WriteFile(const std::string& text) {
    std::ofstream(folder_ + "/vectors.json") << text;
    return folder_ + "/vectors.json";
  }

  // The bundled file with one case only.
  static json OneCase(const std::string& name) {
    json file = json::parse(ReadAll(kVectors));
    json& cases = file["cases"];
    for (size_t i = cases.size(); i-- > 0;) {
      if (cases[i]["name"] != name) cases.erase(i);
    }
    EXPECT_EQ(cases.size(), 1U);
    return file;
  }

  // Processes with this test's folder on their command line, as "pid command".
  std::vector<std::string> Daemons() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const std::string command = ReadAll(entry.path() / "cmdline");
      if (absl::StrContains(command, folder_ + "/temporary")) {
        found.push_back(absl::StrCat(entry.path().filename().string(), " ", command));
      }
    }
    return found;
  }

  std::string folder_;
};

struct Configuration {
  const char* backend;
  const char* storage;
  const char* index;
};

class PolicyCheckConfiguration : public PolicyCheckProgram,
                                 public ::testing::WithParamInterface<Configuration> {};

TEST_P(PolicyCheckConfiguration, PassesTheBundledVectors) {
  const Configuration& with = GetParam();
  const Outcome outcome =
      Run({kVectors, "--backend", with.backend, "--storage", with.storage, "--index", with.index});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
  EXPECT_THAT(outcome.out, EndsWith("\n16 passed, 0 failed, 5 skipped\n"));
  EXPECT_THAT(outcome.out, ContainsRegex("\n  dense_gqa4 +passed "));
  EXPECT_THAT(outcome.out, ContainsRegex("\n  sparq_zero_query_head +passed "));
  EXPECT_THAT(outcome.out, ContainsRegex("\n  h2o_steps +skipped: policy h2o is not built\n"));
  EXPECT_THAT(outcome.err, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Setups, PolicyCheckConfiguration, ::testing::ValuesIn([] {
                           std::vector<Configuration> all;
                           for (const char* backend : {"reference", "cpu", "service"}) {
                             for (const char* storage : {"fp32", "bf16", "fp16"}) {
                               for (const char* index : {"exact", "int8"})
                                 all.push_back({backend, storage, index});
                             }
                           }
                           return all;
                         }()),
                         [](const auto& test) {
                           return absl::StrCat(test.param.backend, "_", test.param.storage, "_",
                                               test.param.index);
                         });

TEST_F(PolicyCheckProgram, PassesTheBundledVectorsInBlocksOfADeployment) {
  for (const char* backend : {"cpu", "service"}) {
    const Outcome outcome =
        Run({kVectors, "--backend", backend, "--block-tokens", "64", "--index-tokens", "1024"});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
  }
}

TEST_F(PolicyCheckProgram, FailsOnEveryCorruptedExpectationWithEveryBackend) {
  const struct {
    const char* what;
    void (*corrupt)(json& expect);
    const char* message;
  } cases[] = {
      {"output", [](json& expect) { Add(expect["output"][5][7], 1e-3); }, "output: relative error"},
      {"selection",
       [](json& expect) {
         // The rows before the window that were left out are many: the first becomes selected.
         json& rows = expect["selection"][1];
         uint32_t free = 0;
         while (rows[free] == free) ++free;
         rows[free] = free;
       },
       "selection of KV head 1"},
      {"alpha", [](json& expect) { Add(expect["alpha"][3], 2e-5); }, "alpha of head 3: got"},
      {"tau", [](json& expect) { Add(expect["tau"][0], 1e-4); }, "tau of head 0: got"},
      {"channels",
       [](json& expect) {
         json& channels = expect["channels"][0];
         channels.back() = channels.back() == 31 ? 30 : 31;
       },
       "channels of KV head 0: got ["}};
  for (const auto& c : cases) {
    json file = OneCase("sparq_gqa4");
    c.corrupt(file["cases"][0]["expect"]);
    const std::string path = WriteFile(file.dump());
    for (const char* backend : {"reference", "cpu", "service"}) {
      for (const char* storage : {"fp32", "bf16"}) {
        const Outcome outcome = Run({path, "--backend", backend, "--storage", storage});
        SCOPED_TRACE(absl::StrCat(c.what, " ", backend, " ", storage, "\n", outcome.out));
        EXPECT_EQ(outcome.exit_code, 1);
        EXPECT_THAT(outcome.out, ContainsRegex("\n  sparq_gqa4 +failed: "));
        EXPECT_THAT(outcome.out, AllOf(HasSubstr(c.message), HasSubstr("expected"),
                                       EndsWith("\n0 passed, 1 failed, 0 skipped\n")));
      }
    }
  }
}

TEST_F(PolicyCheckProgram, FailsACaseThatItDoesNotUnderstandAndRunsTheOthers) {
  json file = OneCase("dense_one_row");
  json strange = file["cases"][0];
  strange["name"] = "strange_param";
  strange["params"]["budget"] = 3;
  file["cases"].push_back(strange);
  strange["name"] = "strange_policy";
  strange["policy"] = "sparse";
  file["cases"].push_back(strange);
  const Outcome outcome = Run({WriteFile(file.dump()), "--backend", "cpu"});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.out, ContainsRegex("\n  dense_one_row +passed"));
  EXPECT_THAT(outcome.out, ContainsRegex("\n  strange_param +failed: unknown param \"budget\""));
  EXPECT_THAT(outcome.out, ContainsRegex("\n  strange_policy +failed: unknown policy \"sparse\""));
  EXPECT_THAT(outcome.out, EndsWith("\n1 passed, 2 failed, 0 skipped\n"));
}

TEST_F(PolicyCheckProgram, EndsWithCode3AndNamesFileCaseAndFieldOfAMalformedFile) {
  json file = OneCase("dense_mqa");
  file["cases"][0]["k"][0][3].erase(0);
  const std::string path = WriteFile(file.dump());
  const Outcome outcome = Run({kVectors, path, folder_ + "/missing.json", "--backend", "service"});
  EXPECT_EQ(outcome.exit_code, 3);
  EXPECT_THAT(
      outcome.err,
      AllOf(HasSubstr(path + ": case dense_mqa: k[0][3]: got 7 elements, expected 8"),
            HasSubstr(folder_ + "/missing.json: cannot be read"), Not(HasSubstr("policies.json"))));
  EXPECT_THAT(outcome.out, IsEmpty());
}

TEST_F(PolicyCheckProgram, RunsTheNamedCasesOfSeveralFiles) {
  const std::string path = WriteFile(OneCase("dense_mqa").dump());
  const Outcome outcome = Run({kVectors, path, "--case", "dense_mqa", "--case", "quest_pages"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, EndsWith("\n2 passed, 0 failed, 1 skipped\n"));
  const Outcome unknown = Run({kVectors, "--case", "nothing"});
  EXPECT_EQ(unknown.exit_code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("no file has nothing"));
}

TEST_F(PolicyCheckProgram, FailsWhenItsOutputCannotBeWritten) {
  for (const std::string arguments :
       {std::string("--help"), absl::StrCat(kVectors, " --backend cpu --case dense_mqa")}) {
    SCOPED_TRACE(arguments);
    const std::string err = folder_ + "/err";
    const int status =
        std::system(absl::StrCat(kProgram, " ", arguments, " >/dev/full 2>", err).c_str());
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 1);
    EXPECT_THAT(ReadAll(err), HasSubstr("standard output could not be written"));
  }
}

TEST_F(PolicyCheckProgram, FailsACaseWhoseValuesTheStorageCannotHold) {
  json file = OneCase("dense_mqa");
  file["cases"][0]["v"][0][4][2] = 1e6;
  const Outcome outcome = Run({WriteFile(file.dump()), "--backend", "cpu", "--storage", "fp16"});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.out, HasSubstr("v row 4, element 2: 1e+06 became inf"));
}

TEST_F(PolicyCheckProgram, EndsWithCode4WithoutTheDaemonsBesideIt) {
  const std::string alone = folder_ + "/terrace-policy-check";
  std::filesystem::copy_file(kProgram, alone);
  const Outcome outcome =
      Program(alone, {kVectors, "--backend", "service"}, folder_ + "/err").Wait();
  EXPECT_EQ(outcome.exit_code, 4);
  EXPECT_THAT(outcome.err, HasSubstr(folder_ + "/terrace-kv-store: No such file"));
  // A daemon that does not come up: the end of its log says why.
  std::ofstream(folder_ + "/terrace-kv-store") << "#!/bin/sh\necho no room here >&2\nexit 9\n";
  std::filesystem::permissions(folder_ + "/terrace-kv-store", std::filesystem::perms::owner_all);
  const Outcome broken =
      Program(alone, {kVectors, "--backend", "service"}, folder_ + "/err").Wait();
  EXPECT_EQ(broken.exit_code, 4);
  EXPECT_THAT(broken.err,
              AllOf(HasSubstr("terrace-kv-store ended with exit code 9"), HasSubstr("no room")));
}

// Enough work to be interrupted in the midst of it.
std::vector<std::string> LongRun() {
  std::vector<std::string> arguments(20, kVectors);
  arguments.insert(arguments.end(), {"--backend", "service"});
  return arguments;
}

TEST_F(PolicyCheckProgram, StopsItsDaemonsWhenInterrupted) {
  for (const int signal : {SIGTERM, SIGINT}) {
    Program program = Start(LongRun());
    ASSERT_TRUE(program.ReadUntil("passed"));
    program.Signal(signal);
    const Outcome outcome = program.Wait();
    EXPECT_EQ(outcome.exit_code, 130) << outcome.err;
    EXPECT_THAT(outcome.out, ContainsRegex("\n[0-9]+ passed, 0 failed, [0-9]+ skipped\n$"));
    EXPECT_THAT(Daemons(), IsEmpty());
  }
}

TEST_F(PolicyCheckProgram, NamesADaemonThatDied) {
  Program program = Start(LongRun());
  ASSERT_TRUE(program.ReadUntil("passed"));
  int killed = 0;
  for (const std::string& daemon : Daemons()) {
    int pid = 0;
    if (!absl::StrContains(daemon, "terrace-kv-store")) continue;
    // The worker's command line has the folder too, but not this name.
    ASSERT_TRUE(absl::SimpleAtoi(std::vector<std::string>(absl::StrSplit(daemon, ' '))[0], &pid));
    ::kill(pid, SIGKILL);
    ++killed;
  }
  ASSERT_EQ(killed, 1);
  const Outcome outcome = program.Wait();
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.out, HasSubstr("failed: UNAVAILABLE: terrace-kv-store ended with signal 9"));
  EXPECT_THAT(outcome.err, HasSubstr("terrace-kv-store ended with signal 9"));
}

TEST_F(PolicyCheckProgram, DaemonsIgnoreTheEnvironmentOfTheCaller) {
  ::setenv("TERRACE_LISTEN", "nowhere:1", 1);
  ::setenv("TERRACE_BLOCK_TOKENS", "1024", 1);
  ::setenv("TERRACE_LOG_LEVEL", "loud", 1);
  const Outcome outcome = Run({kVectors, "--backend", "service", "--case", "dense_mha"});
  for (const char* name : {"TERRACE_LISTEN", "TERRACE_BLOCK_TOKENS", "TERRACE_LOG_LEVEL"}) {
    ::unsetenv(name);
  }
  EXPECT_EQ(outcome.exit_code, 0) << outcome.out << outcome.err;
}

}  // namespace
}  // namespace terrace::policy_check
