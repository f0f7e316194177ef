// A thin client of KvStoreService: one method per call, errors as they arrive.
#ifndef TERRACE_TESTS_E2E_STORE_CLIENT_H_
#define TERRACE_TESTS_E2E_STORE_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "terrace/v1/kv_store.pb.h"
#include "tests/e2e/reply.h"
#include "tests/e2e/rows.h"

namespace terrace::testing {

// What stands at a position: the row of some text.
using RowsAt = std::function<Rows(uint64_t position)>;

// Not thread-safe. Calls end after kPatience.
class StoreClient {
 public:
  explicit StoreClient(const std::string& address);
  ~StoreClient();

  // All of these update `info` when they succeed.
  Reply Create(const Shape& shape, v1::SequenceInfo* info);
  Reply Fork(const v1::SequenceInfo& parent, uint64_t position, v1::SequenceInfo* info);
  Reply Resume(v1::SequenceInfo* info);
  Reply Get(v1::SequenceInfo* info);
  Reply Truncate(v1::SequenceInfo* info, uint64_t length);
  Reply Flush(v1::SequenceInfo* info);
  Reply Close(const std::string& handle);

  // Tokens [first, end) of all layers, in one bulk append of messages of some tokens. The reply
  // tells length and durable length.
  Reply Append(const v1::SequenceInfo& info, const RowsAt& rows, uint64_t first, uint64_t end,
               v1::AppendKvResponse* response);
  // One step of one layer over one long-lived stream; appends the token at `position` or, beyond
  // which nothing is said, reads.
  Reply Step(const v1::SequenceInfo& info, const Rows& rows, uint32_t layer, uint64_t position,
             bool appends, const v1::Policy& policy, v1::StoreStepResult* result);

  // Every row below `length` as the store serves it, in whatever portions it comes.
  using Block = std::function<void(const v1::ReadBlocksResponse& block)>;
  Reply ReadBlocks(const std::string& handle, uint64_t length, const Block& block);

 private:
  struct Calls;
  const std::unique_ptr<Calls> calls_;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_E2E_STORE_CLIENT_H_
