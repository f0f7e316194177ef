// Data by reference is the same message as protobuf's own.
#include "services/kv_store/block_wire.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "terrace/v1/kv_store.pb.h"

namespace terrace::kv_store {
namespace {

// In slices of random lengths, empty ones among them.
grpc::ByteBuffer Sliced(const std::string& bytes, std::mt19937& random) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size();) {
    const size_t length = std::min<size_t>(random() % 9, bytes.size() - at);
    slices.emplace_back(bytes.data() + at, length);
    at += length;
  }
  return {slices.data(), slices.size()};
}

std::string DataOf(const SplitMessage& split) {
  std::string data;
  for (const absl::Span<const std::byte> span : split.data) {
    data.append(reinterpret_cast<const char*>(span.data()), span.size());
  }
  return data;
}

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

std::string RandomBytes(size_t size, std::mt19937& random) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

v1::PutBlocksRequest RandomRequest(std::mt19937& random) {
  v1::PutBlocksRequest request;
  if (random() % 2 == 0) request.set_key(RandomBytes(random() % 20, random));
  if (random() % 2 == 0) request.set_size_bytes(random());
  if (random() % 2 == 0) request.mutable_ttl()->set_seconds(random() % 1000);
  if (random() % 2 == 0) request.set_end(true);
  if (random() % 4 != 0) request.set_data(RandomBytes(random() % 300, random));
  return request;
}

TEST(BlockWire, SplitsWhatProtobufWritesAndWritesWhatItParses) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    const v1::PutBlocksRequest request = RandomRequest(random);
    const std::string bytes = request.SerializeAsString();
    SplitMessage split;
    ASSERT_TRUE(SplitData(Sliced(bytes, random), &split)) << round;
    EXPECT_EQ(DataOf(split), request.data());
    v1::PutBlocksRequest fields;
    ASSERT_TRUE(fields.ParseFromString(split.fields));
    EXPECT_TRUE(fields.data().empty());

    std::vector<grpc::Slice> data;
    for (const absl::Span<const std::byte> span : split.data) {
      data.emplace_back(span.data(), span.size());
    }
    v1::PutBlocksRequest back;
    ASSERT_TRUE(back.ParseFromString(BytesOf(JoinData(fields, data))));
    EXPECT_EQ(back.SerializeAsString(), bytes);
  }
}

TEST(BlockWire, OfTwoDataTheLastCountsAndUnknownFieldsStay) {
  v1::PutBlocksRequest first;
  first.set_key("key");
  first.set_data("first");
  v1::PutBlocksRequest second;
  second.set_data("second");
  // Fields 100 of all wire types: varint, 64 bits, 32 bits, bytes.
  const std::string unknown(
      "\xa0\x06\x05\xa1\x06"
      "12345678"
      "\xa5\x06"
      "1234"
      "\xa2\x06\x01x",
      23);
  const std::string bytes = first.SerializeAsString() + unknown + second.SerializeAsString();
  v1::PutBlocksRequest expected;
  ASSERT_TRUE(expected.ParseFromString(bytes));
  SplitMessage split;
  std::mt19937 random(1);
  ASSERT_TRUE(SplitData(Sliced(bytes, random), &split));
  EXPECT_EQ(DataOf(split), "second");
  EXPECT_EQ(expected.data(), "second");
  v1::PutBlocksRequest fields;
  ASSERT_TRUE(fields.ParseFromString(split.fields));
  EXPECT_EQ(fields.key(), "key");
  expected.clear_data();
  EXPECT_EQ(fields.SerializeAsString(), expected.SerializeAsString());
}

// Neither accepts what the other refuses, but for groups, which nobody writes any more.
TEST(BlockWire, CutOrMadeUpBytesAreNoMessage) {
  std::mt19937 random(2);
  for (int round = 0; round < 5000; ++round) {
    std::string bytes = RandomRequest(random).SerializeAsString();
    if (!bytes.empty() && random() % 2 == 0) bytes.resize(random() % bytes.size());
    if (!bytes.empty() && random() % 2 == 0) bytes[random() % bytes.size()] ^= 1 << random() % 8;
    v1::PutBlocksRequest expected;
    const bool parses = expected.ParseFromString(bytes);
    SplitMessage split;
    v1::PutBlocksRequest fields;
    const bool splits =
        SplitData(Sliced(bytes, random), &split) && fields.ParseFromString(split.fields);
    if (splits) {
      ASSERT_TRUE(parses) << round;
      EXPECT_EQ(DataOf(split), expected.data()) << round;
      expected.clear_data();
      EXPECT_EQ(fields.SerializeAsString(), expected.SerializeAsString()) << round;
    }
  }
  SplitMessage split;
  EXPECT_FALSE(SplitData(Sliced("\x2a\x05"
                                "1234",
                                random),
                         &split))
      << "data of fewer bytes";
  EXPECT_FALSE(SplitData(Sliced("\x2a", random), &split));
  EXPECT_FALSE(SplitData(Sliced(std::string(11, '\xff'), random), &split)) << "no varint";
  EXPECT_FALSE(SplitData(Sliced(std::string("\0", 1), random), &split)) << "field 0";
}

TEST(BlockWire, AnEmptyMessageIsOne) {
  SplitMessage split;
  EXPECT_TRUE(SplitData(JoinData(v1::PutBlocksRequest(), {}), &split));
  EXPECT_TRUE(split.fields.empty());
  EXPECT_TRUE(split.data.empty());
}

}  // namespace
}  // namespace terrace::kv_store
