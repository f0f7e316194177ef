// Verbs, batches and bulk appends that cannot be get a clear status and leave the sequence as it
// was.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <tuple>

#include "tests/e2e/intact_sequence.h"

namespace terrace::testing {
namespace {

using Code = absl::StatusCode;

constexpr uint64_t kLength = kIntactLength;

using BadInputTest = IntactSequenceTest;

// Not bad, only large: what does not fit what there is takes what there is.
TEST_F(BadInputTest, HugeCountsOfAPolicyMeanEverything) {
  const std::string all = client_.Look(sequence_, rows_, 0, kLength - 1, Sparq(8, 100)).output();
  for (const auto& [k, window, sinks] :
       {std::tuple{UINT32_MAX, 0u, 0u}, {1u, UINT32_MAX, 0u}, {1u, UINT32_MAX, UINT32_MAX}}) {
    for (const v1::RemoteMode mode : {v1::REMOTE_MODE_ROWS, v1::REMOTE_MODE_PARTIAL}) {
      SCOPED_TRACE(::testing::Message() << k << ", " << window << ", " << sinks << ", " << mode);
      v1::AttendRequest request =
          client_.StepRequest(sequence_, rows_, 0, kLength - 1, Sparq(8, k));
      request.mutable_items(0)->mutable_policy()->mutable_sparq()->set_window(window);
      request.mutable_items(0)->mutable_policy()->mutable_sparq()->set_sinks(sinks);
      request.set_mode(mode);
      const StepReply step = client_.Step(request);
      ASSERT_REPLY_OK(step.reply);
      EXPECT_EQ(step.output(), all);
      EXPECT_EQ(step.result.account().alpha(0), 1.0F);
    }
  }
  ExpectIntact();
}

TEST_F(BadInputTest, AnotherTenantSeesTheSameTextAsForAnUnknownHandle) {
  Client stranger = cluster_->NewClient("stranger");
  const StepReply theirs = stranger.Look(sequence_, rows_, 0, 0, Dense());
  EXPECT_THAT(theirs.reply, Refused(Code::kNotFound, Words{sequence_.handle()}));
  v1::SequenceInfo unknown = sequence_;
  unknown.mutable_handle()->replace(10, 8, "00000000");
  std::string expected = stranger.Look(unknown, rows_, 0, 0, Dense()).reply.message;
  const size_t at = expected.find(unknown.handle());
  ASSERT_NE(at, std::string::npos) << expected;
  expected.replace(at, unknown.handle().size(), sequence_.handle());
  EXPECT_EQ(theirs.reply.message, expected);
  v1::SequenceInfo copy = sequence_;
  v1::SequenceInfo other;
  for (const Reply& reply :
       {stranger.Get(sequence_.handle(), &other), stranger.Truncate(sequence_, 1),
        stranger.Close(sequence_.handle()), stranger.Resume(&copy), stranger.Flush(&copy),
        stranger.Fork(sequence_, 10, &other), stranger.Append(sequence_, rows_, 100, 101)}) {
    EXPECT_EQ(reply.code, Code::kNotFound);
    EXPECT_EQ(reply.message, expected);
  }
  ExpectIntact();
}

// What does not fit the trailers would come as another error, of gRPC.
TEST_F(BadInputTest, ALongNameThatIsNotAsciiIsRefusedByACutMessage) {
  v1::SequenceInfo info;
  for (const char* character : {"x", "%", "\u20ac", "\U0001d11e"}) {
    std::string handle;
    while (handle.size() < 20'000) handle += character;
    const Reply reply = client_.Get(handle, &info);
    EXPECT_THAT(reply, Refused(Code::kNotFound, Words{"no sequence with handle ", character}));
    EXPECT_THAT(reply.message, ::testing::EndsWith(std::string(character) + "..."));
  }
  ExpectIntact();
}

TEST_F(BadInputTest, ABatchIsNeitherEmptyNorBeyondTheLimit) {
  v1::AttendRequest request = GoodStep();
  request.clear_items();
  v1::AttendResponse response;
  EXPECT_THAT(client_.Attend(request, &response),
              Refused(Code::kInvalidArgument, Words{"items", "got 0", "expected 1 to"}));
  const uint32_t batch_max = client_.Limits().max_batch();
  for (uint32_t i = 0; i <= batch_max; ++i) request.add_items()->set_handle(sequence_.handle());
  const std::string got = "got " + std::to_string(batch_max + 1);
  EXPECT_THAT(client_.Attend(request, &response),
              Refused(Code::kInvalidArgument, Words{"items", got, std::to_string(batch_max)}));
  EXPECT_THAT(client_.AttendOnce(request, &response, kPatience),
              Refused(Code::kInvalidArgument, Words{"items", got}));
  // One less is looked at item by item.
  request.mutable_items()->RemoveLast();
  ASSERT_REPLY_OK(client_.Attend(request, &response));
  EXPECT_EQ(response.results_size(), static_cast<int>(batch_max));
  EXPECT_THAT(ReplyOf(response.results(0).status()), Refused(Code::kInvalidArgument, Words{"q"}));
  ExpectIntact();
}

// That number is of what the server says by itself.
TEST_F(BadInputTest, AStepWithoutARequestIdIsRefusedAndItsStreamGoesOn) {
  v1::AttendRequest request = GoodStep();
  v1::AttendResponse response;
  ASSERT_REPLY_OK(client_.Look(sequence_, rows_, 0, 0, Dense()).reply);
  for (int i = 0; i < 2; ++i) {
    request.set_request_id(0);
    EXPECT_THAT(client_.AttendAsIs(request, &response),
                Refused(Code::kInvalidArgument, Words{"request_id", "got 0"}));
    EXPECT_EQ(response.results_size(), 0);
  }
  for (const uint64_t id : {uint64_t{1}, UINT64_MAX}) {
    request.set_request_id(id);
    request.mutable_items(0)->clear_k();  // refused by itself: it changes nothing
    EXPECT_REPLY_OK(client_.AttendAsIs(request, &response));
    EXPECT_EQ(response.results_size(), 1);
  }
  // A call of its own needs no number.
  request.set_request_id(0);
  EXPECT_REPLY_OK(client_.AttendOnce(request, &response, kPatience));
  ExpectIntact();
}

TEST_F(BadInputTest, NoVerbGoesBeyondTheLength) {
  v1::SequenceInfo fork;
  EXPECT_THAT(client_.Fork(sequence_, kLength + 1, &fork),
              Refused(Code::kOutOfRange, Words{"fork position", "got 101", "100"}));
  EXPECT_THAT(client_.Fork(sequence_, UINT64_MAX, &fork),
              Refused(Code::kOutOfRange, Words{"fork position"}));
  EXPECT_THAT(client_.Truncate(sequence_, kLength + 1),
              Refused(Code::kOutOfRange, Words{"truncate length", "got 101", "100"}));
  EXPECT_THAT(client_.Truncate(sequence_, UINT64_MAX), Refused(Code::kOutOfRange, Words{}));
  v1::SequenceInfo stale = sequence_;
  stale.set_writer_epoch(sequence_.writer_epoch() + 7);
  const Reply truncated = client_.Truncate(stale, 5);
  EXPECT_THAT(truncated, Refused(Code::kFailedPrecondition, Words{"epoch"}));
  EXPECT_EQ(truncated.metadata.at("expected_epoch"), std::to_string(sequence_.writer_epoch()));
  ExpectIntact();
}

TEST_F(BadInputTest, AnEpochIsFencedOnceAnotherWriterHasOpened) {
  v1::SequenceInfo taken = sequence_;
  ASSERT_REPLY_OK(client_.Resume(&taken));
  EXPECT_GT(taken.writer_epoch(), sequence_.writer_epoch());
  const StepReply late = client_.Step(sequence_, rows_, 0, kLength, Dense());
  EXPECT_THAT(late.reply, Refused(Code::kFailedPrecondition, Words{"fenced"}));
  EXPECT_EQ(late.reply.metadata.at("expected_epoch"), std::to_string(taken.writer_epoch()));
  EXPECT_EQ(client_.Append(sequence_, rows_, kLength, kLength + 1).reason, "EPOCH_STALE");
  sequence_ = taken;
  ExpectIntact();
}

struct OpenCase {
  const char* name;
  std::function<void(v1::SequenceSpec&, v1::Geometry&)> spoil;
  Code code;
  Words words;
};

const OpenCase kOpenCases[] = {
    {"ValueHeadDim",
     [](auto&, auto& g) { g.set_value_head_dim(64); },
     Code::kUnimplemented,
     {"geometry.value_head_dim", "got 64", "32"}},
    {"LogitSoftcap",
     [](auto&, auto& g) { g.set_logit_softcap(30.0F); },
     Code::kUnimplemented,
     {"geometry.logit_softcap", "got 30"}},
    {"SlidingWindow",
     [](auto&, auto& g) {
       g.add_sliding_window(0);
       g.add_sliding_window(4096);
     },
     Code::kUnimplemented,
     {"geometry.sliding_window", "got 4096"}},
    {"KvHeadFirst",
     [](auto&, auto& g) { g.set_kv_head_first(2); },
     Code::kUnimplemented,
     {"geometry.kv_head_first", "got 2"}},
    {"KvHeadCount",
     [](auto&, auto& g) { g.set_kv_head_count(1); },
     Code::kUnimplemented,
     {"geometry.kv_head_count", "got 1", "2"}},
    {"NoLayers",
     [](auto&, auto& g) { g.set_layers(0); },
     Code::kInvalidArgument,
     {"geometry.layers", "got 0", "1 to 1024"}},
    {"TooManyLayers",
     [](auto&, auto& g) { g.set_layers(UINT32_MAX); },
     Code::kInvalidArgument,
     {"geometry.layers", "1 to 1024"}},
    {"OddGroup",
     [](auto&, auto& g) { g.set_kv_heads(3); },
     Code::kInvalidArgument,
     {"geometry.query_heads", "got 8", "multiple", "3"}},
    {"OddHeadDim",
     [](auto&, auto& g) { g.set_head_dim(36); },
     Code::kInvalidArgument,
     {"geometry.head_dim", "got 36", "multiple of 8"}},
    {"NegativeScale",
     [](auto&, auto& g) { g.set_softmax_scale(-1.0F); },
     Code::kInvalidArgument,
     {"geometry.softmax_scale", "got -1"}},
    {"NoStorage",
     [](auto&, auto& g) { g.set_storage_dtype(v1::DTYPE_UNSPECIFIED); },
     Code::kInvalidArgument,
     {"geometry.storage_dtype", "got 0", "expected"}},
    {"UnknownIndex",
     [](auto& s, auto&) { s.set_index_format(static_cast<v1::IndexFormat>(9)); },
     Code::kInvalidArgument,
     {"index_format", "got 9", "expected"}},
    {"NoFingerprint",
     [](auto& s, auto&) { s.clear_model_fingerprint(); },
     Code::kInvalidArgument,
     {"model_fingerprint", "empty"}},
    {"LongFingerprint",
     [](auto& s, auto&) { s.set_model_fingerprint(std::string(257, 'x')); },
     Code::kInvalidArgument,
     {"model_fingerprint", "got 257", "256"}},
};

TEST_F(BadInputTest, ASequenceThatCannotBeIsRefusedByName) {
  for (const OpenCase& c : kOpenCases) {
    SCOPED_TRACE(c.name);
    v1::OpenSequenceRequest request;
    *request.mutable_new_sequence() = sequence_.spec();
    c.spoil(*request.mutable_new_sequence(), *request.mutable_new_sequence()->mutable_geometry());
    v1::SequenceInfo info;
    EXPECT_THAT(client_.Open(request, &info), Refused(c.code, c.words));
  }
  v1::SequenceInfo info;
  EXPECT_THAT(client_.Open(v1::OpenSequenceRequest(), &info),
              Refused(Code::kInvalidArgument, Words{"source", "got none"}));
  v1::OpenSequenceRequest resume;
  resume.set_resume(sequence_.handle());
  resume.set_expected_fingerprint("another");
  const Reply other = client_.Open(resume, &info);
  EXPECT_THAT(other, Refused(Code::kFailedPrecondition, Words{"another", "e2e-model"}));
  EXPECT_EQ(other.reason, "FINGERPRINT_MISMATCH");
  ExpectIntact();
}

TEST_F(BadInputTest, ABulkAppendStopsAtItsFirstBadChunk) {
  const auto append = [&](const std::function<void(v1::AppendKvRequest&)>& spoil) {
    bool sent = false;
    return client_.AppendStream([&](v1::AppendKvRequest& request) {
      if (sent) return false;
      sent = true;
      request.set_handle(sequence_.handle());
      request.set_writer_epoch(sequence_.writer_epoch());
      v1::LayerChunk& chunk = *request.add_chunks();
      chunk.set_position(kLength);
      *chunk.mutable_k() = rows_.K(0, kLength, 3);
      *chunk.mutable_v() = rows_.V(0, kLength, 3);
      spoil(request);
      return true;
    });
  };
  EXPECT_THAT(append([](auto& r) { r.clear_handle(); }),
              Refused(Code::kInvalidArgument, Words{"handle", "got none"}));
  EXPECT_THAT(append([](auto& r) { r.mutable_chunks(0)->set_layer(UINT32_MAX); }),
              Refused(Code::kInvalidArgument, Words{"layer", "expected 0 to 1"}));
  EXPECT_THAT(append([](auto& r) { r.mutable_chunks(0)->clear_v(); }),
              Refused(Code::kInvalidArgument, Words{"v.shape", "got []"}));
  EXPECT_THAT(append([](auto& r) { SetElement(*r.mutable_chunks(0)->mutable_v(), 0x7f80); }),
              Refused(Code::kInvalidArgument, Words{"v", "infinity"}));
  const Reply gap = append([](auto& r) { r.mutable_chunks(0)->set_position(kLength + 1); });
  EXPECT_THAT(gap, Refused(Code::kFailedPrecondition, Words{"expected position 100"}));
  EXPECT_EQ(gap.metadata.at("expected_position"), "100");
  EXPECT_THAT(append([](auto& r) { r.mutable_chunks(0)->set_position(7); }),
              Refused(Code::kAlreadyExists, Words{"position 7"}));
  EXPECT_THAT(client_.AppendStream([](auto&) { return false; }),
              Refused(Code::kInvalidArgument, Words{"empty stream"}));
  ExpectIntact();
}

}  // namespace
}  // namespace terrace::testing
