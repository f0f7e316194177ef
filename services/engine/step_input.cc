#include "services/engine/step_input.h"

#include "absl/strings/str_cat.h"

namespace terrace::engine {

absl::Status StepInput::Unreadable(absl::string_view what, int head,
                                   const absl::Status& why) const {
  return {why.code(),
          absl::StrCat(what, " of layer ", layer, ", KV head ", head, ": ", why.message())};
}

}  // namespace terrace::engine
