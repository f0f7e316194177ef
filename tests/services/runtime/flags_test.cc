// Settings from flags, environment and file, and what is refused.
#include "services/runtime/flags.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "services/runtime/daemon.h"
#include "tests/status_matchers.h"

namespace terrace::runtime {
namespace {

using ::terrace::testing::IsOk;
using ::terrace::testing::StatusIs;
using ::testing::HasSubstr;

// A variable of the environment for a scope.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* const name_;
};

class FlagsTest : public ::testing::Test {
 protected:
  FlagsTest() {
    server_.listen = "127.0.0.1:7400";
    AddServerFlags(app_, server_);
    AddEngineFlags(app_, engine_);
    AddEnvironment(app_);
  }
  ~FlagsTest() override { std::remove(file_.c_str()); }

  // What CLI11 throws at, as a text; empty when it is content.
  std::string Parse(const std::vector<std::string>& arguments) {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    try {
      app_.parse(reversed);
      return "";
    } catch (const CLI::ParseError& error) {
      return error.what();
    }
  }
  std::string File(const std::string& text) {
    std::ofstream(file_) << text;
    return "--config=" + file_;
  }

  CLI::App app_{"test"};
  ServerFlags server_;
  engine::EmbeddedOptions engine_;
  const std::string file_ = ::testing::TempDir() + "terrace-flags-test.toml";
};

TEST_F(FlagsTest, FlagsSayWhatTheySay) {
  EXPECT_EQ(Parse({"--listen=unix:/x", "--threads=3", "--queue-max=5", "--max-streams=7",
                   "--max-message-bytes=1MiB", "--drain-timeout=1m30s", "--host-bytes=2GiB",
                   "--disk-path=/d", "--disk-bytes=3GiB", "--durability=sync", "--shard=65535",
                   "--block-tokens=128", "--index-tokens=512", "--compute-threads=2",
                   "--allow-plaintext", "--log-level=warn"}),
            "");
  EXPECT_EQ(server_.listen, "unix:/x");
  EXPECT_EQ(server_.threads, 3);
  EXPECT_EQ(server_.queue_max, 5);
  EXPECT_EQ(server_.max_streams, 7);
  EXPECT_EQ(server_.max_message_bytes, uint64_t{1} << 20);
  EXPECT_EQ(server_.drain_timeout, absl::Seconds(90));
  EXPECT_TRUE(server_.allow_plaintext);
  EXPECT_EQ(server_.log_level, "warn");
  EXPECT_EQ(engine_.store.host_bytes, uint64_t{2} << 30);
  EXPECT_EQ(engine_.store.disk_path, "/d");
  EXPECT_EQ(engine_.store.disk_bytes, uint64_t{3} << 30);
  EXPECT_EQ(engine_.store.durability, kvstore::Durability::kSync);
  EXPECT_EQ(engine_.store.shard, 65535);
  EXPECT_EQ(engine_.block_tokens, 128);
  EXPECT_EQ(engine_.index_tokens, 512);
  EXPECT_EQ(engine_.compute_threads, 2);
}

TEST_F(FlagsTest, TheEnvironmentMeansTheSame) {
  const Variable threads("TERRACE_THREADS", "3");
  const Variable bytes("TERRACE_HOST_BYTES", "2GiB");
  const Variable plaintext("TERRACE_ALLOW_PLAINTEXT", "true");
  const Variable durability("TERRACE_DURABILITY", "none");
  EXPECT_EQ(Parse({}), "");
  EXPECT_EQ(server_.threads, 3);
  EXPECT_EQ(engine_.store.host_bytes, uint64_t{2} << 30);
  EXPECT_TRUE(server_.allow_plaintext);
  EXPECT_EQ(engine_.store.durability, kvstore::Durability::kNone);
}

TEST_F(FlagsTest, SoDoesTheFile) {
  EXPECT_EQ(Parse({File("threads = 3\nhost-bytes = \"2GiB\"\nallow-plaintext = true\n")}), "");
  EXPECT_EQ(server_.threads, 3);
  EXPECT_EQ(engine_.store.host_bytes, uint64_t{2} << 30);
  EXPECT_TRUE(server_.allow_plaintext);
}

TEST_F(FlagsTest, AFlagWinsOverBoth) {
  const Variable queue("TERRACE_QUEUE_MAX", "7");
  EXPECT_EQ(Parse({File("threads = 3\n"), "--threads=4", "--queue-max=8"}), "");
  EXPECT_EQ(server_.threads, 4);
  EXPECT_EQ(server_.queue_max, 8);
}

TEST_F(FlagsTest, BadValuesAreNamed) {
  for (const auto& [argument, name] : std::vector<std::pair<std::string, std::string>>{
           {"--threads=x", "--threads"},
           {"--host-bytes=1.5GiB", "--host-bytes"},
           {"--drain-timeout=10", "--drain-timeout"},
           {"--durability=never", "--durability"},
           {"--shard=65536", "--shard"},
           {"--shard=-1", "--shard"},
           {"--log-level=loud", "--log-level"},
           {"--no-such-flag=1", "--no-such-flag"},
           {"--config=/no/such/file", "/no/such/file"}}) {
    EXPECT_THAT(Parse({argument}), HasSubstr(name)) << argument;
  }
  EXPECT_THAT(Parse({File("no-such-setting = 1\n")}), HasSubstr("no-such-setting"));
  EXPECT_THAT(Parse({File("threads = \"x\"\n")}), HasSubstr("--threads"));
}

TEST_F(FlagsTest, WhatIsOutOfRangeIsRefusedAtTheStart) {
  EXPECT_OK(server_.Validate());
  struct Case {
    const char* field;
    std::function<void(ServerFlags&)> set;
  };
  for (const Case& c : std::vector<Case>{
           {"threads", [](ServerFlags& f) { f.threads = 0; }},
           {"threads", [](ServerFlags& f) { f.threads = 1025; }},
           {"queue-max", [](ServerFlags& f) { f.queue_max = 0; }},
           {"queue-max", [](ServerFlags& f) { f.queue_max = 65537; }},
           {"max-streams", [](ServerFlags& f) { f.max_streams = 0; }},
           {"max-streams", [](ServerFlags& f) { f.max_streams = 65537; }},
           {"max-message-bytes", [](ServerFlags& f) { f.max_message_bytes = (64 << 10) - 1; }},
           {"max-message-bytes",
            [](ServerFlags& f) { f.max_message_bytes = (uint64_t{1} << 30) + 1; }},
           {"inflight-bytes", [](ServerFlags& f) { f.inflight_bytes = f.max_message_bytes - 1; }},
           {"drain-timeout", [](ServerFlags& f) { f.drain_timeout = absl::Hours(25); }},
           {"listen", [](ServerFlags& f) { f.listen = "0.0.0.0:1"; }},
           {"listen", [](ServerFlags& f) { f.listen = ""; }}}) {
    ServerFlags flags = server_;
    c.set(flags);
    EXPECT_THAT(flags.Validate(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.field)));
  }
  ServerFlags open = server_;
  open.listen = "0.0.0.0:7400";
  open.allow_plaintext = true;
  EXPECT_OK(open.Validate());
  for (const int streams : {1, 65536}) {
    ServerFlags flags = server_;
    flags.max_streams = streams;
    EXPECT_OK(flags.Validate());
  }
  for (const uint64_t bytes : {uint64_t{64} << 10, uint64_t{1} << 30}) {
    ServerFlags flags = server_;
    flags.max_message_bytes = bytes;
    flags.inflight_bytes = bytes;
    EXPECT_OK(flags.Validate());
  }
}

TEST_F(FlagsTest, EngineFlagsAreRefusedByNameWhereThereIsNoEngine) {
  ASSERT_EQ(Parse({"--threads=3", "--inflight-bytes=1GiB"}), "");
  EXPECT_OK(RefuseEngineFlags(app_, "here"));
  for (const char* flag : {"--host-bytes=1GiB", "--disk-path=/d", "--placement=lru", "--shard=1",
                           "--compute-threads=0", "--prefetch=true"}) {
    ASSERT_EQ(Parse({flag}), "");
    const std::string name(flag + 2, std::strchr(flag, '='));
    EXPECT_THAT(RefuseEngineFlags(app_, "here"),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(name + ": got one here")));
  }
  const Variable shard("TERRACE_SHARD", "1");
  ASSERT_EQ(Parse({}), "");
  EXPECT_THAT(RefuseEngineFlags(app_, "here"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("shard")));
}

// --check-config validates, prints and does not run.
TEST_F(FlagsTest, CheckConfigRunsNothing) {
  struct Case {
    std::vector<std::string> arguments;
    absl::Status validity;
    int code;
    bool runs;
  };
  for (const Case& c :
       std::vector<Case>{{{"--check-config"}, absl::OkStatus(), 0, false},
                         {{"--check-config"}, absl::InvalidArgumentError("bad"), 1, false},
                         {{}, absl::InvalidArgumentError("bad"), 1, false},
                         {{}, absl::OkStatus(), 0, true}}) {
    CLI::App app("test");
    ServerFlags flags;
    flags.listen = "127.0.0.1:0";
    flags.log_level = "error";
    AddServerFlags(app, flags);
    std::vector<std::string> arguments = {"test"};
    arguments.insert(arguments.end(), c.arguments.begin(), c.arguments.end());
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    bool ran = false;
    const int code = Main(
        app, static_cast<int>(argv.size()), argv.data(), flags, [&] { return c.validity; },
        [&] {
          ran = true;
          return absl::OkStatus();
        });
    EXPECT_EQ(code, c.code);
    EXPECT_EQ(ran, c.runs);
  }
}

// What --check-config prints is a file that means the same.
TEST_F(FlagsTest, PrintedSettingsCanBeReadBack) {
  ASSERT_EQ(Parse({"--threads=3", "--host-bytes=2GiB", "--drain-timeout=1m30s", "--durability=none",
                   "--disk-path=/a b"}),
            "");
  const std::string printed = app_.config_to_str(true, false);
  CLI::App again("test");
  ServerFlags server;
  engine::EmbeddedOptions engine;
  AddServerFlags(again, server);
  AddEngineFlags(again, engine);
  std::vector<std::string> arguments = {File(printed)};
  ASSERT_NO_THROW(again.parse(arguments));
  EXPECT_EQ(server.threads, 3);
  EXPECT_EQ(server.drain_timeout, absl::Seconds(90));
  EXPECT_EQ(engine.store.host_bytes, uint64_t{2} << 30);
  EXPECT_EQ(engine.store.durability, kvstore::Durability::kNone);
  EXPECT_EQ(engine.store.disk_path, "/a b");
}

TEST(IsLocalTest, OnlyLoopbackAndSocketsAre) {
  for (const char* listen : {"127.0.0.1:1", "127.0.0.1:0", "127.255.255.254:65535", "localhost:1",
                             "[::1]:1", "unix:/tmp/x", "unix:relative"}) {
    EXPECT_TRUE(IsLocal(listen)) << listen;
  }
  for (const char* listen :
       {"", "0.0.0.0:1", "128.0.0.1:1", "10.0.0.1:1", "[::]:1", "[::2]:1", "example.com:1",
        "localhost.example.com:1", "127.example.com:1", "127.0.0.1.example.com:1", ":1"}) {
    EXPECT_FALSE(IsLocal(listen)) << listen;
  }
}

TEST(ShardFromHostnameTest, IsTheNumberAtTheEnd) {
  struct Case {
    const char* host;
    int shard;
  };
  for (const Case& c : {Case{"store-0", 0}, Case{"terrace-kv-store-12", 12}, Case{"a-65535", 65535},
                        Case{"-1", 1}}) {
    const absl::StatusOr<uint16_t> shard = ShardFromHostname(c.host);
    ASSERT_OK(shard) << c.host;
    EXPECT_EQ(*shard, c.shard);
  }
  for (const char* host :
       {"", "store", "12", "store-", "store-x", "store-65536", "store-1x", "store-99999999999"}) {
    EXPECT_THAT(ShardFromHostname(host),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected")))
        << host;
  }
}

}  // namespace
}  // namespace terrace::runtime
