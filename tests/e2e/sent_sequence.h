// SentSequence: what a client has sent of one sequence, what of that was acknowledged as durable,
// and whether a store that comes back serves something in between.
#ifndef TERRACE_TESTS_E2E_SENT_SEQUENCE_H_
#define TERRACE_TESTS_E2E_SENT_SEQUENCE_H_

#include <cstdint>
#include <vector>

#include "terrace/v1/attention.pb.h"
#include "tests/e2e/rows.h"
#include "tests/e2e/store_client.h"

namespace terrace::testing {

// Not thread-safe. Before each call that changes the sequence it is told what will be sent, after
// it what was answered; of a call without an answer nobody knows how far it got.
class SentSequence {
 public:
  // Texts are numbered from `seed` on, so that other seeds have other rows.
  SentSequence(const Shape& shape, uint64_t seed, v1::SequenceInfo info)
      : shape_(shape), seed_(seed), info_(std::move(info)), durable_(info_.durable_length()) {}

  const v1::SequenceInfo& info() const { return info_; }
  v1::SequenceInfo* mutable_info() { return &info_; }
  uint64_t length() const { return texts_.size(); }
  uint64_t durable() const { return durable_; }

  // The next tokens, of a text that was never sent before a cut or a restart.
  void Send(uint64_t tokens) { texts_.insert(texts_.end(), tokens, text_); }
  void SendCut(uint64_t length);
  void SendClose() { closing_ = true; }
  void HearCut() { before_cut_.clear(); }
  void HearDurable(uint64_t length) { durable_ = std::max(durable_, length); }
  // A fork of this one.
  SentSequence Child(v1::SequenceInfo info, uint64_t length) const;

  // The row of that position is as sent.
  Rows RowsAt(uint64_t position) const { return {shape_, seed_ + texts_[position]}; }

  // Asks a store that has come back, and goes on from what it serves. The test fails unless
  // acknowledged as durable <= served <= sent, and every row is the one that was sent. Adds to
  // `rows`. False when it is gone, as one may be that was being closed.
  bool Recover(StoreClient& client, uint64_t* rows);
  // The test fails unless every row is there and is the one that was sent. Adds to `rows`.
  void CheckRows(StoreClient& client, uint64_t* rows) const;

 private:
  void CheckBlock(const v1::ReadBlocksResponse& block, uint64_t* rows) const;

  Shape shape_;
  uint64_t seed_;
  v1::SequenceInfo info_;
  // By position.
  std::vector<uint32_t> texts_;
  // The same before a cut that was sent and not answered; empty without one.
  std::vector<uint32_t> before_cut_;
  uint32_t text_ = 0;
  uint64_t durable_;
  bool closing_ = false;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_SENT_SEQUENCE_H_
