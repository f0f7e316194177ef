// terrace-generate as its users see it: output, error texts, exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "services/frontend/generate_args.h"
#include "tests/services/frontend/checkpoint_writer.h"
#include "tests/services/frontend/fake_attention_service.h"

namespace terrace::frontend {
namespace {

using ::testing::AllOf;
using testing::FakeServer;
using testing::FaultPlan;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TestDirectory;
using testing::WriteFile;

constexpr char kFrontend[] = TERRACE_SOURCE_DIR "/services/frontend";

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Outcome {
  int exit_code = -1;
  std::string out;
  std::string err;
};

class GenerateProgram : public ::testing::Test {
 protected:
  GenerateProgram() { WriteFile(directory_.File("prompt"), "The quick brown fox "); }

  Outcome RunProgram(const std::string& arguments) {
    const std::string command = std::string(TERRACE_BIN_DIR) + "/terrace-generate " + arguments +
                                " >" + directory_.File("out") + " 2>" + directory_.File("err");
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadAll(directory_.File("out")),
            ReadAll(directory_.File("err"))};
  }

  // With model, service and prompt given.
  Outcome Generate(const std::string& more) {
    return RunProgram("--model " + std::string(kFrontend) + "/model/tiny --attention " +
                      server_.address() + " --prompt-file " + directory_.File("prompt") + " " +
                      more);
  }

  TestDirectory directory_;
  FakeServer server_{directory_.File("socket")};
};

TEST_F(GenerateProgram, WritesTextToStandardOutputAndTheTableBeside) {
  const Outcome outcome = Generate("--tokens 8");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out.size(), 9U) << outcome.out;
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("prefill: 21 tokens"), HasSubstr("dense"),
                                 HasSubstr("ratio to dense")));
  EXPECT_THAT(server_.service().complaints(), IsEmpty());
  EXPECT_THAT(server_.service().open_handles(), IsEmpty());
}

TEST_F(GenerateProgram, WritesOneJsonObject) {
  WriteFile(directory_.File("next"), "jumps");
  const Outcome outcome =
      Generate("--tokens 5 --json --keep-sequence --storage fp32 --prefill-chunk 6 --score-file " +
               directory_.File("next") + " --policy dense --policy sparq:r=16,k=4");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out, nullptr, false);
  ASSERT_TRUE(json.is_object()) << outcome.out;
  EXPECT_EQ(json["prefill"]["tokens"], 21);
  EXPECT_EQ(json["storage"], "fp32");
  ASSERT_EQ(json["policies"].size(), 2U);
  EXPECT_EQ(json["policies"][0]["policy"], "dense");
  EXPECT_EQ(json["policies"][0]["ratio_to_dense"], 1.0);
  EXPECT_GT(json["policies"][0]["bits_per_byte"], 0.0);
  EXPECT_LT(json["policies"][1]["ratio_to_dense"], 0.3);
  EXPECT_EQ(server_.service().open_handles().size(), 3U);
}

TEST_F(GenerateProgram, GoesOnAfterALostServiceWithTheSameText) {
  const Outcome undisturbed = Generate("--tokens 12 --policy sparq:r=8,k=6");
  FaultPlan plan;
  plan.step = server_.service().steps() + 60;
  plan.tokens_kept = 15;
  plan.unanswered_calls = 2;
  server_.service().Plan(plan);
  const Outcome outcome = Generate("--tokens 12 --policy sparq:r=8,k=6 --reconnect 60s");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, undisturbed.out);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("was lost"), HasSubstr("is back")));
}

TEST_F(GenerateProgram, EndsWithCode3WithoutAService) {
  const Outcome nobody = RunProgram("--model " + std::string(kFrontend) +
                                    "/model/tiny --attention unix:" + directory_.File("nobody") +
                                    " --prompt-file " + directory_.File("prompt"));
  EXPECT_EQ(nobody.exit_code, 3);
  EXPECT_THAT(nobody.err, HasSubstr("no attention service answers"));
  FaultPlan plan;
  plan.step = 30;
  server_.service().Plan(plan);
  const Outcome lost = Generate("--tokens 12");
  EXPECT_EQ(lost.exit_code, 3);
  EXPECT_THAT(lost.err, AllOf(HasSubstr("Sequence sequence-2"), HasSubstr("--reconnect")));
}

TEST_F(GenerateProgram, EndsWithCode4OnInputItCannotUse) {
  WriteFile(directory_.File("config.json"), testing::SmallConfig().dump());
  const Outcome outcome =
      RunProgram("--model " + directory_.path() + " --attention " + server_.address() +
                 " --prompt-file " + directory_.File("prompt"));
  EXPECT_EQ(outcome.exit_code, 4);
  EXPECT_THAT(outcome.err, HasSubstr("model.safetensors"));
  WriteFile(directory_.File("empty"), "");
  EXPECT_EQ(Generate("--score-file " + directory_.File("empty")).exit_code, 4);
}

TEST_F(GenerateProgram, AnEmptyPromptNeedsATokenThatBeginsAText) {
  WriteFile(directory_.File("empty"), "");
  for (const bool has_bos : {false, true}) {
    auto config = testing::SmallConfig();
    config["vocab_size"] = 256;
    config["eos_token_id"] = 2;
    if (has_bos) config["bos_token_id"] = 1;
    testing::WriteCheckpoint(directory_.path(), config, testing::SmallWeights(config, 1));
    for (const char* prompt : {"empty", "prompt"}) {
      SCOPED_TRACE(prompt);
      const Outcome outcome =
          RunProgram("--model " + directory_.path() + " --attention " + server_.address() +
                     " --tokens 1 --prompt-file " + directory_.File(prompt));
      const bool good = has_bos || std::string(prompt) == "prompt";
      EXPECT_EQ(outcome.exit_code, good ? 0 : 4) << outcome.err;
      EXPECT_EQ(outcome.err.find("no token that begins a text") != std::string::npos, !good);
    }
  }
}

TEST_F(GenerateProgram, EndsWithCode5WhenTheServiceRefuses) {
  FaultPlan plan;
  plan.step = 3;
  plan.fault = testing::Fault::kItemError;
  server_.service().Plan(plan);
  const Outcome outcome = Generate("--tokens 12");
  EXPECT_EQ(outcome.exit_code, 5);
  EXPECT_THAT(outcome.err, HasSubstr("no room for 512 bytes"));
  v1::GetLimitsResponse limits;
  limits.set_max_message_bytes(64 << 20);
  limits.set_max_step_tokens(64);
  limits.set_max_sequence_tokens(32);
  server_.service().SetLimits(limits);
  EXPECT_EQ(Generate("--tokens 11").exit_code, 0);
  const Outcome too_long = Generate("--tokens 12");
  EXPECT_EQ(too_long.exit_code, 5);
  EXPECT_THAT(too_long.err, HasSubstr("have 33 tokens"));
}

TEST_F(GenerateProgram, EndsWithCode6WhenAStepTakesTooLong) {
  FaultPlan plan;
  plan.step = 3;
  plan.fault = testing::Fault::kHang;
  server_.service().Plan(plan);
  const Outcome outcome = Generate("--tokens 12 --deadline 1ms");
  EXPECT_EQ(outcome.exit_code, 6);
  EXPECT_THAT(outcome.err, HasSubstr("no answer in time"));
}

TEST_F(GenerateProgram, EndsWithCode1WhenItsOutputCannotBeWritten) {
  for (const char* arguments : {"--tokens 8", "--tokens 8 --json", "--help"}) {
    SCOPED_TRACE(arguments);
    const std::string full = std::string(arguments) + " >/dev/full #";
    const Outcome outcome = std::string(arguments) == "--help" ? RunProgram(full) : Generate(full);
    EXPECT_EQ(outcome.exit_code, 1);
  }
}

TEST_F(GenerateProgram, EndsWithCode2OnAWrongCommandLine) {
  const struct {
    const char* arguments;
    const char* message;
  } cases[] = {{"--policy bogus", "bogus"},
               {"--tokens -1", "-1"},
               {"--prefill-chunk 0", "0"},
               {"--storage fp8", "fp8"},
               {"--index int3", "int3"},
               {"--mode fast", "fast"},
               {"--reconnect soon", "\"soon\" is no duration"},
               {"--deadline=-1s", "is no duration"},
               {"--policy sparq:r=65,k=4", "65"},
               {"--no-such-option", "no-such-option"}};
  for (const auto& c : cases) {
    const Outcome outcome = Generate(c.arguments);
    EXPECT_EQ(outcome.exit_code, 2) << c.arguments;
    EXPECT_THAT(outcome.err, HasSubstr(c.message));
    EXPECT_THAT(outcome.out, IsEmpty());
  }
  EXPECT_EQ(RunProgram("").exit_code, 2);
}

TEST_F(GenerateProgram, HelpNamesEveryOptionAndExitCode) {
  const Outcome outcome = RunProgram("--help");
  EXPECT_EQ(outcome.exit_code, 0);
  for (const char* word :
       {"--model", "--attention", "--prompt-file", "--score-file", "--tokens", "--policy", "--json",
        "--prefill-chunk", "--index", "--storage", "--mode", "--reconnect", "--deadline",
        "--keep-sequence", "Exit codes: 0 done", "130 interrupted"}) {
    EXPECT_THAT(outcome.out, HasSubstr(word));
  }
  EXPECT_THAT(RunProgram("--version").out, HasSubstr("terrace-generate "));
}

}  // namespace
}  // namespace terrace::frontend
