// Unfinished steps to and from KvStoreService's messages.
#ifndef TERRACE_SERVICES_KV_STORE_PART_CONVERT_H_
#define TERRACE_SERVICES_KV_STORE_PART_CONVERT_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/engine/step_input.h"
#include "services/engine/step_part.h"
#include "services/engine/value_cache.h"
#include "terrace/v1/kv_store.pb.h"

namespace terrace::kv_store {

// Selections travel in kPartial only when `return_selection`.
void ToProto(const engine::StepPart& part, bool return_selection, v1::StoreStepResult* proto);

// Internal names what does not fit together: the answer of a store that is not ours.
absl::StatusOr<engine::StepPart> FromProto(const v1::StoreStepResult& proto);

void ToProto(const engine::HeldRows& held, v1::StoreStepItem* proto);
engine::HeldRows HeldOf(const v1::StoreStepItem& proto);

void ToProto(const engine::ValuesFound& found, v1::LookupBlocksResponse* proto);

}  // namespace terrace::kv_store

#endif  // TERRACE_SERVICES_KV_STORE_PART_CONVERT_H_
