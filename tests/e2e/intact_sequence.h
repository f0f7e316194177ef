// A sequence that has to survive whatever is sent to its service.
#ifndef TERRACE_TESTS_E2E_INTACT_SEQUENCE_H_
#define TERRACE_TESTS_E2E_INTACT_SEQUENCE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "tests/e2e/cluster.h"

namespace terrace::testing {

inline constexpr uint64_t kIntactLength = 100;
inline constexpr Shape kIntactShape = {
    .layers = 2, .query_heads = 8, .kv_heads = 2, .head_dim = 32};

// Puts a bf16 amid the elements.
inline void SetElement(v1::Tensor& tensor, uint16_t bf16) {
  std::memcpy(tensor.mutable_data()->data() + 10, &bf16, sizeof(bf16));
}

// One store and worker for all cases: they have to survive every one of them.
class IntactSequenceTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::vector<std::string> limit = {"--max-message-bytes", "256KiB"};
    cluster_ = new Cluster(limit, limit);
  }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }

  void SetUp() override {
    ASSERT_TRUE(cluster_->serving());
    sequence_ = client_.Open(kIntactShape);
    ASSERT_REPLY_OK(client_.Append(sequence_, rows_, 0, kIntactLength));
    reference_ = client_.Look(sequence_, rows_, 1, kIntactLength - 1, Sparq(8, 20)).output();
    ASSERT_FALSE(reference_.empty());
  }

  // The sequence is as it was, and so are the processes.
  void ExpectIntact() {
    EXPECT_TRUE(cluster_->store().process().Running());
    EXPECT_TRUE(cluster_->worker().process().Running());
    v1::SequenceInfo info;
    const Reply got = client_.Get(sequence_.handle(), &info);
    ASSERT_REPLY_OK(got);
    EXPECT_EQ(info.length(), kIntactLength);
    EXPECT_EQ(info.writer_epoch(), sequence_.writer_epoch());
    EXPECT_THAT(info.layer_lengths(), ::testing::Each(kIntactLength));
    const StepReply step = client_.Look(sequence_, rows_, 1, kIntactLength - 1, Sparq(8, 20));
    ASSERT_REPLY_OK(step.reply);
    EXPECT_EQ(step.output(), reference_);
  }

  // A good step at the end of the sequence, to be spoilt.
  v1::AttendRequest GoodStep() const {
    return client_.StepRequest(sequence_, rows_, 0, kIntactLength, Sparq(8, 20));
  }

  inline static Cluster* cluster_ = nullptr;
  const uint64_t seed_ = TestSeed();
  const Rows rows_{kIntactShape, seed_};
  Client client_ = cluster_->NewClient();
  v1::SequenceInfo sequence_;
  std::string reference_;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_INTACT_SEQUENCE_H_
