#include "services/runtime/status_convert.h"

#include <gtest/gtest.h>

#include <string>

#include "google/rpc/error_details.pb.h"
#include "services/engine/error.h"
#include "tests/status_matchers.h"

namespace terrace::runtime {
namespace {

using engine::DetailOf;
using ::terrace::testing::IsOk;
using ::terrace::testing::StatusIs;

void ExpectSame(const absl::Status& back, const absl::Status& status) {
  EXPECT_EQ(back.code(), status.code());
  EXPECT_EQ(back.message(), status.message());
  const auto expected = DetailOf(status);
  const auto got = DetailOf(back);
  ASSERT_EQ(got.has_value(), expected.has_value()) << status;
  if (!expected.has_value()) return;
  EXPECT_EQ(got->reason, expected->reason);
  EXPECT_EQ(got->metadata, expected->metadata);
  EXPECT_EQ(got->retry_delay, expected->retry_delay);
}

TEST(StatusConvertTest, EveryCodeGoesBothWays) {
  EXPECT_OK(FromRpcStatus(ToRpcStatus(absl::OkStatus())));
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_OK(FromGrpcStatus(grpc::Status::OK));
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    EXPECT_EQ(static_cast<int>(ToGrpcStatus(status).error_code()), code);
    EXPECT_EQ(FromRpcStatus(ToRpcStatus(status)).code(), status.code());
    EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(status)).message(), "why");
  }
}

TEST(StatusConvertTest, WhatAClientBranchesOnHasAReasonEvenWhereNobodyGaveOne) {
  const struct {
    absl::Status status;
    const char* reason;
    bool retry;
  } cases[] = {
      {absl::ResourceExhaustedError("a"), "NO_ROOM", true},
      {absl::UnavailableError("b"), "TIER_UNAVAILABLE", true},
      {absl::DataLossError("c"), "DATA_LOSS", false},
      {absl::UnimplementedError("d"), "UNSUPPORTED", false},
  };
  for (const auto& [status, reason, retry] : cases) {
    const auto detail = DetailOf(FromGrpcStatus(ToGrpcStatus(status)));
    ASSERT_TRUE(detail.has_value()) << status;
    EXPECT_EQ(detail->reason, reason);
    EXPECT_EQ(detail->retry_delay.has_value(), retry) << status;
  }
  EXPECT_FALSE(DetailOf(FromGrpcStatus(ToGrpcStatus(absl::NotFoundError("e")))).has_value());
}

TEST(StatusConvertTest, DetailsTravel) {
  for (const absl::Status& status :
       {engine::PositionGap(1, 9, 7), engine::PositionConflict(0, 3), engine::EpochStale(1, 2),
        engine::FingerprintMismatch("a", "b"), engine::NoRoom("full"), engine::Draining(),
        engine::LimitExceeded("many"), engine::ShardUnavailable("host:1", "gone"),
        engine::WithDetail(
            absl::UnavailableError("later"),
            {.reason = "X", .metadata = {}, .retry_delay = absl::Milliseconds(1'234'567)})}) {
    ExpectSame(FromRpcStatus(ToRpcStatus(status)), status);
    ExpectSame(FromGrpcStatus(ToGrpcStatus(status)), status);
  }
}

TEST(StatusConvertTest, OthersReadTheStandardDetails) {
  const google::rpc::Status rpc = ToRpcStatus(engine::NoRoom("full"));
  ASSERT_EQ(rpc.details_size(), 2);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(rpc.details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "NO_ROOM");
  EXPECT_EQ(info.domain(), "terrace");
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(rpc.details(1).UnpackTo(&retry));
  EXPECT_EQ(retry.retry_delay().nanos(), 100'000'000);
}

TEST(StatusConvertTest, DetailsOfOthersAreNotOurs) {
  google::rpc::Status rpc = ToRpcStatus(absl::NotFoundError("x"));
  google::rpc::ErrorInfo info;
  info.set_reason("DRAINING");
  info.set_domain("elsewhere");
  rpc.add_details()->PackFrom(info);
  EXPECT_FALSE(DetailOf(FromRpcStatus(rpc)).has_value());
  // Details that do not fit the status are not believed.
  const grpc::Status torn(grpc::StatusCode::NOT_FOUND, "gone", "\xff\xff");
  EXPECT_THAT(FromGrpcStatus(torn), StatusIs(absl::StatusCode::kNotFound, "gone"));
  const grpc::Status other(grpc::StatusCode::NOT_FOUND, "gone",
                           ToRpcStatus(engine::Draining()).SerializeAsString());
  EXPECT_THAT(FromGrpcStatus(other), StatusIs(absl::StatusCode::kNotFound, "gone"));
}

// Bytes of the trailers: three for each that is not printable ASCII.
size_t Encoded(const std::string& message) {
  size_t bytes = 0;
  for (const char c : message) bytes += c >= ' ' && c <= '~' && c != '%' ? 1 : 3;
  return bytes;
}

// Trailers are bounded, and protobuf reads no half characters.
TEST(StatusConvertTest, ALongMessageIsCutBetweenCharacters) {
  const struct {
    const char* character;
    size_t encoded;
  } cases[] = {{"x", 1}, {"%", 3}, {"\n", 3}, {"\u00e9", 6}, {"\u20ac", 9}, {"\U0001d11e", 12}};
  for (const auto& [character, encoded] : cases) {
    for (size_t shift = 0; shift < encoded; ++shift) {
      SCOPED_TRACE(::testing::Message() << character << " after " << shift);
      std::string text(shift, 'x');
      while (Encoded(text) + encoded <= 1000) text += character;
      // As much as fits is whole, and the first character that does not fit cuts.
      EXPECT_EQ(ToRpcStatus(absl::InternalError(text)).message(), text);
      for (const size_t more : {1, 2, 10'000}) {
        std::string longer = text;
        for (size_t i = 0; i < more; ++i) longer += character;
        const google::rpc::Status rpc = ToRpcStatus(absl::InternalError(longer));
        const std::string& cut = rpc.message();
        ASSERT_GT(cut.size(), 3u);
        const size_t kept = cut.size() - 3;
        EXPECT_EQ(cut.substr(kept), "...");
        EXPECT_EQ(longer.compare(0, kept, cut, 0, kept), 0);
        EXPECT_EQ((kept - shift) % std::string(character).size(), 0u);
        EXPECT_LE(Encoded(cut), 1000u);
        EXPECT_GT(Encoded(cut) + encoded, 1000u);
        google::rpc::Status back;
        EXPECT_TRUE(back.ParseFromString(rpc.SerializeAsString()));
      }
    }
  }
}

}  // namespace
}  // namespace terrace::runtime
