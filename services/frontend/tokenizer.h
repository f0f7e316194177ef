// Text to tokens and back, for models whose tokens are bytes.
#ifndef TERRACE_SERVICES_FRONTEND_TOKENIZER_H_
#define TERRACE_SERVICES_FRONTEND_TOKENIZER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/frontend/llama_config.h"

namespace terrace::frontend {

// Tokenizer of a byte-level model: tokens 0..255 are bytes, what follows are special tokens and
// padding of the vocabulary. Which tokens begin and end a text the model's configuration says; some
// models take bytes that no text has, as 1 and 2. Immutable.
class Tokenizer {
 public:
  // Unimplemented, with the reason, unless the checkpoint is byte level: no tokenizer files in
  // `directory` and a vocabulary in [256, 512).
  static absl::StatusOr<Tokenizer> ForModel(const std::string& directory,
                                            const LlamaConfig& config);

  // The token that begins every text, then one token per byte. A model that names none has 256, or
  // none when its tokens are the bytes and nothing else.
  std::vector<uint32_t> EncodeDocument(absl::string_view text) const;
  // One token per byte.
  std::vector<uint32_t> Encode(absl::string_view text) const;

  // The bytes that a token stands for; none for a special token.
  std::string Decode(uint32_t token) const;
  bool EndsText(uint32_t token) const;

 private:
  std::optional<uint32_t> bos_token_;
  std::vector<uint32_t> eos_tokens_;
};

// Text that is safe to write to a terminal: control bytes except newline and tab become \xNN,
// every other byte stays as it is.
std::string EscapeControls(absl::string_view text);

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_TOKENIZER_H_
