#include "tests/e2e/sent_sequence.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "tests/e2e/await.h"

namespace terrace::testing {

void SentSequence::SendCut(uint64_t length) {
  before_cut_ = texts_;
  texts_.resize(length);
  durable_ = std::min(durable_, length);
  ++text_;
}

SentSequence SentSequence::Child(v1::SequenceInfo info, uint64_t length) const {
  SentSequence child(shape_, seed_, std::move(info));
  child.texts_.assign(texts_.begin(), texts_.begin() + static_cast<int64_t>(length));
  // Both go on, with rows of their own.
  child.text_ = text_ + 1'000'000;
  return child;
}

bool SentSequence::Recover(StoreClient& client, uint64_t* rows) {
  Reply got;
  // A busy machine may break a connection that begins.
  Await([&] { return (got = client.Get(&info_)).code != absl::StatusCode::kUnavailable; });
  if (closing_ && got.code == absl::StatusCode::kNotFound) return false;
  EXPECT_REPLY_OK(got);
  if (!got.ok()) return false;
  if (!before_cut_.empty()) texts_ = std::exchange(before_cut_, {});
  EXPECT_GE(info_.length(), durable_) << "I6: acknowledged as durable, and not served";
  EXPECT_LE(info_.length(), texts_.size()) << "I6: served, and never sent";
  EXPECT_EQ(info_.durable_length(), info_.length());
  if (info_.length() > texts_.size()) return false;
  texts_.resize(info_.length());
  durable_ = info_.length();
  ++text_;
  closing_ = false;
  CheckRows(client, rows);
  const Reply resumed = client.Resume(&info_);
  EXPECT_REPLY_OK(resumed);
  return true;
}

void SentSequence::CheckRows(StoreClient& client, uint64_t* rows) const {
  uint64_t served = 0;
  // A range that ends at 0 means all of it, too.
  const Reply read =
      client.ReadBlocks(info_.handle(), length(),
                        [&](const v1::ReadBlocksResponse& block) { CheckBlock(block, &served); });
  EXPECT_REPLY_OK(read);
  EXPECT_EQ(served, length() * shape_.layers * shape_.kv_heads) << "rows are missing";
  *rows += served;
}

void SentSequence::CheckBlock(const v1::ReadBlocksResponse& block, uint64_t* rows) const {
  const std::string& data = block.rows().data();
  const uint64_t count = data.size() / shape_.row_bytes();
  ASSERT_LE(block.position() + count, length());
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t position = block.position() + i;
    const std::string sent = RowsAt(position).Row(block.layer(), block.kv_head(), position);
    ASSERT_TRUE(data.compare(i * sent.size(), sent.size(), sent) == 0)
        << "I1: a wrong row: layer " << block.layer() << ", KV head " << block.kv_head()
        << ", position " << position;
  }
  *rows += count;
}

}  // namespace terrace::testing
