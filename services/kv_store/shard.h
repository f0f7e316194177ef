// A worker's side of one kv-store: its channel, its verbs, its streams of steps.
#ifndef TERRACE_SERVICES_KV_STORE_SHARD_H_
#define TERRACE_SERVICES_KV_STORE_SHARD_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/mutex.h"
#include "services/engine/kv_engine.h"
#include "services/kv_store/call_slots.h"
#include "services/kv_store/mode_chooser.h"
#include "services/kv_store/step_channel.h"
#include "terrace/v1/admin.pb.h"
#include "terrace/v1/attention.pb.h"

namespace terrace::kv_store {

// Thread-safe. At most `calls_max` threads wait for the store; a verb that comes beyond them waits
// for one of them to end as Admit does.
class Shard {
 public:
  Shard(std::string endpoint, uint64_t max_message_bytes, int calls_max);
  ~Shard();

  const std::string& endpoint() const { return endpoint_; }
  // Counts the caller among those that wait for the store, as long as the slot lives. When they are
  // too many waits until the deadline for one to end, or until the store has said nothing for a
  // second: ResourceExhausted then, naming the store, with a retry delay.
  absl::StatusOr<CallSlots::Slot> Admit(absl::Time deadline);
  // The shard number that the store gave. Unavailable until it has answered, and again when it may
  // be another store: a call found nobody there, or the stream of steps that was open when it
  // answered broke. Says why.
  absl::StatusOr<uint16_t> number();
  // Whether a store at this endpoint has ever said that it is this shard.
  bool Was(uint16_t number) const;
  // Of one message to it: what it said, or the constructor's until it has answered.
  uint64_t max_message_bytes() const;
  // InvalidArgument when a message of so many bytes is more than the store takes. `what` names it.
  absl::Status Fits(absl::string_view what, uint64_t bytes) const;
  // Asks the store who it is, unless that is known or asked already. `done` is called when number()
  // is what came of it: after two seconds at most, perhaps at once, perhaps by another thread; it
  // must not call the shard.
  void Identify(std::function<void()> done);
  // An error of a call as one of the store's that has its name: SHARD_UNAVAILABLE. OK stays.
  absl::Status Named(const absl::Status& status) const;
  // Forgets who it is because of `why`, an error.
  void Lose(const absl::Status& why);

  absl::Status OpenSequence(const engine::Caller& caller, const v1::OpenSequenceRequest& request,
                            v1::OpenSequenceResponse* response);
  absl::Status LookupPrefix(const engine::Caller& caller, const v1::LookupPrefixRequest& request,
                            v1::LookupPrefixResponse* response);
  absl::Status Append(const engine::Caller& caller, const v1::AppendKvRequest& request,
                      v1::AppendKvResponse* response);
  absl::Status Truncate(const engine::Caller& caller, const v1::TruncateRequest& request,
                        v1::TruncateResponse* response);
  absl::Status Flush(const engine::Caller& caller, const v1::FlushRequest& request,
                     v1::FlushResponse* response);
  absl::Status Park(const engine::Caller& caller, const v1::ParkRequest& request,
                    v1::ParkResponse* response);
  absl::Status Close(const engine::Caller& caller, const v1::CloseRequest& request);
  absl::Status GetSequence(const engine::Caller& caller, const v1::GetSequenceRequest& request,
                           v1::GetSequenceResponse* response);
  absl::Status ListTiers(absl::Time deadline, v1::ListTiersResponse* response);
  absl::Status ListSequences(absl::Time deadline, const v1::ListSequencesRequest& request,
                             v1::ListSequencesResponse* response);
  absl::Status Describe(absl::Time deadline, const v1::DescribeSequenceRequest& request,
                        v1::DescribeSequenceResponse* response);

  StepChannel& steps() { return steps_; }
  ModeChooser& modes() { return modes_; }

  // Ends calls and steps in flight with Unavailable, and refuses new ones.
  void Cancel();

 private:
  struct Stubs;
  class Call;

  // What the caller gets for the call that `verb` makes with a context of `caller`.
  template <typename Verb>
  absl::Status Run(const engine::Caller& caller, Verb verb);
  void AskNumber();

  const std::string endpoint_;
  CallSlots slots_;
  const std::unique_ptr<Stubs> stubs_;
  StepChannel steps_;
  ModeChooser modes_;
  mutable kvstore::Mutex mu_;
  absl::StatusOr<uint16_t> number_ ABSL_GUARDED_BY(mu_);
  // steps_.breaks() when number_ was asked for.
  uint64_t breaks_ ABSL_GUARDED_BY(mu_) = 0;
  std::set<uint16_t> numbers_ ABSL_GUARDED_BY(mu_);
  uint64_t max_message_bytes_ ABSL_GUARDED_BY(mu_);
  // Runs AskNumber; `asking_` until it is about to end.
  std::thread asker_ ABSL_GUARDED_BY(mu_);
  bool asking_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::function<void()>> await_number_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_SHARD_H_
