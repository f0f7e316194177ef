// The real binary as a process, against a server in this one.
#include <gmock/gmock.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/services/terracectl/child_process.h"
#include "tests/services/terracectl/fake_admin.h"

namespace terrace::testing {
namespace {

using ::google::protobuf::util::JsonStringToMessage;
using ::google::protobuf::util::MessageDifferencer;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

ProcessResult Terracectl(const std::vector<std::string>& arguments,
                         const ProcessOptions& options = {}) {
  return RunProcess(absl::StrCat(TERRACE_BIN_DIR, "/terracectl"), arguments, options);
}

ProcessResult Ask(const FakeAdmin& server, std::vector<std::string> arguments,
                  const ProcessOptions& options = {}) {
  // Generous: only the test of the deadline itself waits for it.
  arguments.insert(arguments.begin(), {"--endpoint", server.endpoint(), "--timeout", "60s"});
  return Terracectl(arguments, options);
}

AdminScript TwoTiers() {
  AdminScript script;
  v1::TierInfo* host = script.tiers.add_tiers();
  host->set_tier(v1::TIER_HOST);
  host->set_capacity_bytes(uint64_t{4} << 30);
  host->set_used_bytes(uint64_t{3} << 29);
  v1::TierInfo* disk = script.tiers.add_tiers();
  disk->set_tier(v1::TIER_DISK);
  disk->set_capacity_bytes(UINT64_MAX);
  disk->set_last_error("read: \"bad\"\nsector");
  disk->set_error_count(1);
  return script;
}

AdminScript WithSequences(int count) {
  AdminScript script;
  for (int i = 0; i < count; ++i) {
    v1::SequenceSummary& sequence = script.sequences.emplace_back();
    sequence.set_handle(absl::StrFormat("s0000-%032x", i));
    sequence.set_tenant("default");
    sequence.set_length(uint64_t{1} << 60);
    sequence.mutable_last_used()->set_seconds(1700000000 + i);
  }
  return script;
}

v1::ListSequencesResponse ParseSequences(const std::string& json) {
  v1::ListSequencesResponse answer;
  const auto status = JsonStringToMessage(json, &answer);
  EXPECT_TRUE(status.ok()) << status.ToString() << "\n" << json;
  return answer;
}

// A TCP socket on a port of its own on 127.0.0.1 that nobody serves.
class DeafPort {
 public:
  explicit DeafPort(bool listening) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(::bind(fd_, generic, size), 0);
    if (listening) {
      EXPECT_EQ(::listen(fd_, 8), 0);
    }
    EXPECT_EQ(::getsockname(fd_, generic, &size), 0);
    endpoint_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  }
  ~DeafPort() { ::close(fd_); }
  DeafPort(const DeafPort&) = delete;
  DeafPort& operator=(const DeafPort&) = delete;

  const std::string& endpoint() const { return endpoint_; }

 private:
  int fd_;
  std::string endpoint_;
};

TEST(TerracectlProcess, TiersPrintsATableWithoutBarsToAFile) {
  FakeAdmin server(TwoTiers());
  const ProcessResult result = Ask(server, {"tiers"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_THAT(result.out, StartsWith("SHARD  TIER"));
  EXPECT_THAT(result.out, HasSubstr("1.5 GiB   4.0 GiB  37.5%"));
  EXPECT_THAT(result.out, Not(HasSubstr("[")));
}

TEST(TerracectlProcess, BarsAreForATerminalWideEnoughThatWantsThem) {
  FakeAdmin server(TwoTiers());
  const std::string bar = "[###.......]";
  EXPECT_THAT(Ask(server, {"tiers"}, {.terminal_columns = 200}).out, HasSubstr(bar));
  EXPECT_THAT(Ask(server, {"tiers"}, {.terminal_columns = 60}).out, Not(HasSubstr(bar)));
  EXPECT_THAT(Ask(server, {"tiers"}, {.environment = {"NO_COLOR=1"}, .terminal_columns = 200}).out,
              Not(HasSubstr(bar)));
  EXPECT_THAT(Ask(server, {"tiers"}, {.environment = {"NO_COLOR="}, .terminal_columns = 200}).out,
              HasSubstr(bar));
}

TEST(TerracectlProcess, JsonOfTiersRoundTripsBeforeAndAfterTheCommand) {
  const AdminScript script = TwoTiers();
  FakeAdmin server(script);
  for (const auto& words :
       {std::vector<std::string>{"-o", "json", "tiers"}, {"tiers", "-o", "json"}}) {
    const ProcessResult result = Ask(server, words);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.err, "");
    v1::ListTiersResponse answer;
    const auto status = JsonStringToMessage(result.out, &answer);
    ASSERT_TRUE(status.ok()) << status.ToString();
    EXPECT_TRUE(MessageDifferencer::Equals(answer, script.tiers)) << result.out;
    // Names of the proto, and fields that are zero.
    EXPECT_THAT(result.out, HasSubstr("\"pinned_bytes\": \"0\""));
    EXPECT_THAT(result.out, HasSubstr("\"capacity_bytes\": \"18446744073709551615\""));
  }
}

TEST(TerracectlProcess, JsonOfAnEmptyStoreHasTheListThatIsEmpty) {
  FakeAdmin server(AdminScript{});
  EXPECT_THAT(Ask(server, {"tiers", "-o", "json"}).out, HasSubstr("\"tiers\": []"));
  EXPECT_THAT(Ask(server, {"sequences", "-o", "json"}).out, HasSubstr("\"sequences\": []"));
}

TEST(TerracectlProcess, AListThatLacksAShardIsPrintedAndUnavailable) {
  AdminScript script;
  script.tiers.add_tiers()->set_shard(7);
  script.tiers.add_unreachable()->set_message("kv-store at [::1]:9 does not answer");
  FakeAdmin server(script);
  const auto table = Ask(server, {"tiers"});
  EXPECT_EQ(table.exit_code, 3);
  EXPECT_THAT(table.out, HasSubstr("1 shard,"));
  EXPECT_THAT(table.out, HasSubstr("\nMissing: kv-store at [::1]:9 does not answer\n"));
  EXPECT_EQ(table.err, "");
  const auto json = Ask(server, {"tiers", "-o", "json"});
  EXPECT_EQ(json.exit_code, 3);
  EXPECT_THAT(json.out, HasSubstr("\"shard\": 7"));
  EXPECT_THAT(json.out, HasSubstr("kv-store at [::1]:9 does not answer"));
}

TEST(TerracectlProcess, FollowsPagesToTheEnd) {
  for (const int count : {0, 1, 6, 7, 8, 14, 50}) {
    const AdminScript script = WithSequences(count);
    FakeAdmin server(script);
    const ProcessResult result = Ask(server, {"sequences", "--page-size", "7", "-o", "json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const v1::ListSequencesResponse answer = ParseSequences(result.out);
    ASSERT_EQ(answer.sequences_size(), count);
    EXPECT_EQ(answer.next_page_token(), "");
    for (int i = 0; i < count; ++i) {
      EXPECT_TRUE(MessageDifferencer::Equals(answer.sequences(i), script.sequences[i])) << i;
    }
    const auto requests = server.list_requests();
    EXPECT_EQ(requests.size(), count == 0 ? 1u : (count + 6u) / 7u) << count;
    for (const auto& request : requests) EXPECT_EQ(request.page_size(), 7u);
  }
}

TEST(TerracectlProcess, ShardsThatAnyPageLacksAreToldOnceAndInOrder) {
  const std::string a = "kv-store at a:1 does not answer";
  const std::string b = "kv-store at b:1 does not answer";
  const struct {
    std::vector<std::vector<std::string>> page_lacks;
    std::vector<std::string> expected;
  } cases[] = {
      {{{}, {}}, {}},    {{{a}, {}}, {a}},        {{{}, {a}}, {a}},
      {{{a}, {a}}, {a}}, {{{b}, {a, b}}, {b, a}}, {{{a, b}, {b}}, {a, b}},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(::testing::PrintToString(c.page_lacks));
    AdminScript script = WithSequences(9);
    script.page_lacks = c.page_lacks;
    std::vector<std::string> told;
    FakeAdmin server(script);
    const auto json = Ask(server, {"sequences", "--page-size", "7", "-o", "json"});
    EXPECT_EQ(server.list_requests().size(), 2u);
    EXPECT_EQ(json.exit_code, c.expected.empty() ? 0 : 3) << json.err;
    const v1::ListSequencesResponse answer = ParseSequences(json.out);
    EXPECT_EQ(answer.sequences_size(), 9);
    for (const google::rpc::Status& lacking : answer.unreachable()) {
      told.push_back(lacking.message());
    }
    EXPECT_EQ(told, c.expected);

    FakeAdmin again(script);
    const auto table = Ask(again, {"sequences", "--page-size", "7"});
    EXPECT_EQ(table.exit_code, json.exit_code);
    for (const std::string& why : {a, b}) {
      EXPECT_EQ(absl::StrContains(table.out, "Missing: " + why),
                absl::c_linear_search(c.expected, why))
          << table.out;
    }
  }
}

TEST(TerracectlProcess, LimitCutsAtItAndTellsThatThereIsMore) {
  struct Case {
    int limit;
    int got;
    bool more;
    std::vector<uint32_t> page_sizes;
  };
  const Case cases[] = {{1, 1, true, {1}},         {3, 3, true, {3}},
                        {4, 4, true, {4}},         {5, 5, true, {4, 1}},
                        {9, 9, true, {4, 4, 1}},   {10, 10, false, {4, 4, 2}},
                        {11, 10, false, {4, 4, 3}}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.limit);
    FakeAdmin server(WithSequences(10));
    const std::vector<std::string> words = {"sequences", "--page-size", "4", "--limit",
                                            absl::StrCat(c.limit)};
    std::vector<std::string> json = words;
    json.insert(json.end(), {"-o", "json"});
    const v1::ListSequencesResponse answer = ParseSequences(Ask(server, json).out);
    EXPECT_EQ(answer.sequences_size(), c.got);
    EXPECT_EQ(!answer.next_page_token().empty(), c.more);
    std::vector<uint32_t> asked;
    for (const auto& request : server.list_requests()) asked.push_back(request.page_size());
    EXPECT_EQ(asked, c.page_sizes);
    EXPECT_EQ(Ask(server, words).out.find("there are more") != std::string::npos, c.more);
  }
}

TEST(TerracectlProcess, TenantGoesWithEveryPage) {
  FakeAdmin server(WithSequences(3));
  EXPECT_EQ(Ask(server, {"sequences", "--tenant", "acme", "--page-size", "2"}).exit_code, 0);
  const auto requests = server.list_requests();
  ASSERT_EQ(requests.size(), 2u);
  for (const auto& request : requests) EXPECT_EQ(request.tenant(), "acme");
}

TEST(TerracectlProcess, AnErrorOnALaterPagePrintsNoHalfList) {
  AdminScript script = WithSequences(10);
  script.refuse_from_page = 1;
  script.refusal = {grpc::StatusCode::INTERNAL, "lost the cursor"};
  FakeAdmin server(script);
  const ProcessResult result = Ask(server, {"sequences", "--page-size", "4"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("INTERNAL: lost the cursor"));
}

TEST(TerracectlProcess, AServerThatBreaksThePagingContractIsRefused) {
  AdminScript repeating = WithSequences(3);
  repeating.repeat_token = true;
  const ProcessResult endless = Ask(FakeAdmin(repeating), {"sequences", "--page-size", "1"});
  EXPECT_EQ(endless.exit_code, 1);
  EXPECT_EQ(endless.out, "");
  EXPECT_THAT(endless.err, HasSubstr("repeated a page token"));

  AdminScript generous = WithSequences(3);
  generous.overfill = true;
  const ProcessResult overfull = Ask(FakeAdmin(generous), {"sequences", "--page-size", "2"});
  EXPECT_EQ(overfull.exit_code, 1);
  EXPECT_EQ(overfull.out, "");
  EXPECT_THAT(overfull.err, HasSubstr("page of 3 sequences where 2 were asked"));
}

TEST(TerracectlProcess, DescribePassesTheHandleAndPrintsItWhole) {
  AdminScript script;
  const std::string handle(200, 'h');
  script.description.mutable_summary()->set_handle(handle);
  script.description.add_layers()->set_blocks(12);
  FakeAdmin server(script);
  const ProcessResult table = Ask(server, {"describe", handle});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_EQ(server.described_handle(), handle);
  EXPECT_THAT(table.out, HasSubstr(handle + "\n"));

  v1::DescribeSequenceResponse answer;
  const ProcessResult json = Ask(server, {"describe", handle, "-o", "json"});
  ASSERT_TRUE(JsonStringToMessage(json.out, &answer).ok()) << json.out;
  EXPECT_TRUE(MessageDifferencer::Equals(answer, script.description)) << json.out;
}

TEST(TerracectlProcess, JsonOfATimeOutOfRangeIsAnErrorAndNotHalfAnAnswer) {
  AdminScript script;
  script.description.mutable_summary()->mutable_created()->set_seconds(INT64_MAX);
  FakeAdmin server(script);
  const ProcessResult json = Ask(server, {"describe", "h", "-o", "json"});
  EXPECT_EQ(json.exit_code, 1);
  EXPECT_EQ(json.out, "");
  EXPECT_THAT(json.err, HasSubstr("has no JSON form"));
  EXPECT_EQ(Ask(server, {"describe", "h"}).exit_code, 0);
}

TEST(TerracectlProcess, EveryRefusalHasItsExitCodeAndText) {
  struct Case {
    grpc::StatusCode code;
    int exit_code;
    const char* text;
  };
  const Case cases[] = {
      {grpc::StatusCode::INVALID_ARGUMENT, 1, "INVALID_ARGUMENT: because"},
      {grpc::StatusCode::PERMISSION_DENIED, 1, "PERMISSION_DENIED: because\nhint: "},
      {grpc::StatusCode::UNIMPLEMENTED, 1, "UNIMPLEMENTED: because\nhint: "},
      {grpc::StatusCode::INTERNAL, 1, "INTERNAL: because"},
      {grpc::StatusCode::UNAVAILABLE, 3, "UNAVAILABLE: because\nhint: the daemon answers"},
      {grpc::StatusCode::NOT_FOUND, 4, "NOT_FOUND: because\nhint: `terracectl sequences`"},
      {grpc::StatusCode::DEADLINE_EXCEEDED, 5, "DEADLINE_EXCEEDED: because\nhint: connected"},
  };
  for (const Case& c : cases) {
    AdminScript script = TwoTiers();
    script.refusal = {c.code, "because"};
    FakeAdmin server(script);
    for (const auto& words : {std::vector<std::string>{"tiers"},
                              {"sequences"},
                              {"describe", "h"},
                              {"tiers", "-o", "json"}}) {
      const ProcessResult result = Ask(server, words);
      EXPECT_EQ(result.exit_code, c.exit_code) << c.text;
      EXPECT_EQ(result.out, "");
      EXPECT_THAT(result.err,
                  StartsWith(absl::StrCat("terracectl: ", server.endpoint(), ": ", c.text)));
    }
  }
}

TEST(TerracectlProcess, ErrorDetailsAreShown) {
  google::rpc::ErrorInfo info;
  info.set_reason("SHARD_UNAVAILABLE");
  info.set_domain("terrace");
  (*info.mutable_metadata())["shard"] = "3";
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_nanos(250000000);
  google::rpc::Status details;
  details.add_details()->PackFrom(info);
  details.add_details()->PackFrom(retry);
  AdminScript script;
  script.refusal =
      grpc::Status(grpc::StatusCode::UNAVAILABLE, "shard 3 is silent", details.SerializeAsString());
  const ProcessResult result = Ask(FakeAdmin(script), {"tiers"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err,
              HasSubstr("shard 3 is silent (SHARD_UNAVAILABLE shard=3; retry after 250ms)\n"));
}

TEST(TerracectlProcess, NobodyListeningIsUnavailable) {
  const DeafPort closed(/*listening=*/false);
  const ProcessResult result =
      Terracectl({"tiers", "--endpoint", closed.endpoint(), "--timeout", "60s"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err,
              StartsWith(absl::StrCat("terracectl: ", closed.endpoint(), ": UNAVAILABLE: ")));
  EXPECT_THAT(result.err, HasSubstr("hint: is the daemon running there? --endpoint"));
  const ProcessResult missing =
      Terracectl({"tiers", "--endpoint", "unix:/nonexistent/terrace.sock", "--timeout", "60s"});
  EXPECT_EQ(missing.exit_code, 3);
}

TEST(TerracectlProcess, APortThatNeverAnswersIsUnavailable) {
  const DeafPort deaf(/*listening=*/true);
  const ProcessResult result =
      Terracectl({"tiers", "--endpoint", deaf.endpoint(), "--timeout", "300ms"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("DEADLINE_EXCEEDED"));
  EXPECT_THAT(result.err, HasSubstr("hint: no connection within 300ms"));
}

TEST(TerracectlProcess, AServerThatConnectsAndThinksTooLongIsADeadline) {
  AdminScript script;
  script.hold = true;
  FakeAdmin server(script);
  // Long enough to connect on a busy machine; the server answers only after the process is gone.
  const ProcessResult result =
      Terracectl({"tiers", "--endpoint", server.endpoint(), "--timeout", "3s"});
  server.Release();
  EXPECT_EQ(result.exit_code, 5);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("DEADLINE_EXCEEDED"));
  EXPECT_THAT(result.err, HasSubstr("hint: connected, but no answer within 3s"));
}

TEST(TerracectlProcess, EndpointComesFromTheEnvironmentAndTheFlagBeatsIt) {
  FakeAdmin server(TwoTiers());
  const std::string variable = absl::StrCat("TERRACE_ENDPOINT=", server.endpoint());
  EXPECT_EQ(Terracectl({"tiers", "--timeout", "60s"}, {.environment = {variable}}).exit_code, 0);
  const DeafPort closed(/*listening=*/false);
  EXPECT_EQ(Terracectl({"tiers", "--timeout", "60s", "--endpoint", closed.endpoint()},
                       {.environment = {variable}})
                .exit_code,
            3);
}

TEST(TerracectlProcess, ReachesAUnixSocketAndIgnoresAProxy) {
  const std::string path = absl::StrCat(::testing::TempDir(), "terracectl-", ::getpid(), ".sock");
  FakeAdmin local(TwoTiers(), absl::StrCat("unix:", path));
  EXPECT_EQ(Ask(local, {"tiers"}).exit_code, 0);
  FakeAdmin server(TwoTiers());
  const DeafPort closed(/*listening=*/false);
  const ProcessResult result = Ask(
      server, {"tiers"}, {.environment = {absl::StrCat("http_proxy=http://", closed.endpoint())}});
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

TEST(TerracectlProcess, WrongUsageIsTwoAndSaysSoOnStandardError) {
  for (const auto& words : {std::vector<std::string>{},
                            {"nonsense"},
                            {"tiers", "--endpoint", "nowhere"},
                            {"tiers", "-o", "xml"},
                            {"sequences", "--page-size", "1001"},
                            {"describe"}}) {
    const ProcessResult result = Terracectl(words);
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, StartsWith("terracectl: "));
    EXPECT_THAT(result.err, HasSubstr("--help"));
  }
}

TEST(TerracectlProcess, HelpAndVersionNeedNoServer) {
  const DeafPort closed(/*listening=*/false);
  const ProcessOptions options = {.environment = {"TERRACE_ENDPOINT=" + closed.endpoint()}};
  const ProcessResult help = Terracectl({"--help"}, options);
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("Exit status:"));
  EXPECT_EQ(help.err, "");
  const ProcessResult version = Terracectl({"version"}, options);
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, StartsWith("terracectl "));
  google::protobuf::Struct json;
  EXPECT_TRUE(JsonStringToMessage(Terracectl({"version", "-o", "json"}, options).out, &json).ok());
  EXPECT_EQ(json.fields().count("terracectl"), 1u);
}

TEST(TerracectlProcess, AnOutputThatCannotBeWrittenIsAFailure) {
  FakeAdmin server(TwoTiers());
  for (const auto& words : {std::vector<std::string>{"tiers"}, {"version"}, {"--help"}}) {
    const ProcessResult result = Ask(server, words, {.stdout_path = "/dev/full"});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.err, StartsWith("terracectl: cannot write to standard output"));
  }
}

}  // namespace
}  // namespace terrace::testing
