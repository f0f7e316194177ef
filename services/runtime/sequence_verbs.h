// The verbs that AttentionService and KvStoreService share, over any engine.
#ifndef TERRACE_SERVICES_RUNTIME_SEQUENCE_VERBS_H_
#define TERRACE_SERVICES_RUNTIME_SEQUENCE_VERBS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "services/engine/kv_engine.h"
#include "terrace/v1/attention.pb.h"

namespace terrace::runtime {

absl::Status OpenSequence(engine::KvEngine& engine, const engine::Caller& caller,
                          const v1::OpenSequenceRequest& request,
                          v1::OpenSequenceResponse* response);
absl::Status LookupPrefix(engine::KvEngine& engine, const engine::Caller& caller,
                          const v1::LookupPrefixRequest& request,
                          v1::LookupPrefixResponse* response);
absl::Status Truncate(engine::KvEngine& engine, const engine::Caller& caller,
                      const v1::TruncateRequest& request, v1::TruncateResponse* response);
absl::Status Flush(engine::KvEngine& engine, const engine::Caller& caller,
                   const v1::FlushRequest& request, v1::FlushResponse* response);
absl::Status Park(engine::KvEngine& engine, const engine::Caller& caller,
                  const v1::ParkRequest& request, v1::ParkResponse* response);
absl::Status Close(engine::KvEngine& engine, const engine::Caller& caller,
                   const v1::CloseRequest& request);
absl::Status GetSequence(engine::KvEngine& engine, const engine::Caller& caller,
                         const v1::GetSequenceRequest& request, v1::GetSequenceResponse* response);
void GetLimits(const engine::KvEngine& engine, uint64_t max_message_bytes, uint32_t shard,
               v1::GetLimitsResponse* response);

// One bulk append: remembers what its first message named.
class BulkAppend {
 public:
  BulkAppend(engine::KvEngine& engine, engine::Caller caller)
      : engine_(engine), caller_(std::move(caller)) {}

  absl::Status Add(const v1::AppendKvRequest& request);
  absl::Status End(v1::AppendKvResponse* response);

 private:
  engine::KvEngine& engine_;
  const engine::Caller caller_;
  std::string handle_;
  uint64_t writer_epoch_ = 0;
  // Of the last chunk's layer.
  int64_t layer_length_ = 0;
};

}  // namespace terrace::runtime

#endif  // TERRACE_SERVICES_RUNTIME_SEQUENCE_VERBS_H_
