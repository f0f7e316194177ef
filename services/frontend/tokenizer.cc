#include "services/frontend/tokenizer.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace terrace::frontend {
namespace {

constexpr uint32_t kByteTokens = 256;
// Of a model that does not say.
constexpr uint32_t kBosToken = 256;
constexpr int64_t kVocabEnd = 512;

absl::Status NotByteLevel(const std::string& directory, absl::string_view why) {
  return absl::UnimplementedError(
      absl::StrCat(directory, ": only byte-level models have a tokenizer here, and ", why));
}

}  // namespace

absl::StatusOr<Tokenizer> Tokenizer::ForModel(const std::string& directory,
                                              const LlamaConfig& config) {
  for (const char* file : {"tokenizer.json", "tokenizer.model"}) {
    std::error_code ignored;
    if (std::filesystem::exists(std::filesystem::path(directory) / file, ignored)) {
      return NotByteLevel(directory, absl::StrCat("this one brings ", file));
    }
  }
  if (config.vocab_size < kByteTokens || config.vocab_size >= kVocabEnd) {
    return NotByteLevel(directory, absl::StrCat("vocab_size is ", config.vocab_size, ", [",
                                                kByteTokens, ", ", kVocabEnd, ") expected"));
  }
  Tokenizer tokenizer;
  tokenizer.bos_token_ = config.bos_token;
  if (!config.bos_token.has_value() && config.vocab_size > kBosToken) {
    tokenizer.bos_token_ = kBosToken;
  }
  tokenizer.eos_tokens_ = config.eos_tokens;
  return tokenizer;
}

std::vector<uint32_t> Tokenizer::Encode(absl::string_view text) const {
  std::vector<uint32_t> tokens;
  tokens.reserve(text.size());
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

std::vector<uint32_t> Tokenizer::EncodeDocument(absl::string_view text) const {
  std::vector<uint32_t> tokens = Encode(text);
  if (bos_token_.has_value()) tokens.insert(tokens.begin(), *bos_token_);
  return tokens;
}

std::string Tokenizer::Decode(uint32_t token) const {
  return token < kByteTokens ? std::string(1, static_cast<char>(token)) : std::string();
}

bool Tokenizer::EndsText(uint32_t token) const {
  return std::find(eos_tokens_.begin(), eos_tokens_.end(), token) != eos_tokens_.end();
}

std::string EscapeControls(absl::string_view text) {
  std::string safe;
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f) {
      absl::StrAppendFormat(&safe, "\\x%02x", byte);
    } else {
      safe.push_back(c);
    }
  }
  return safe;
}

}  // namespace terrace::frontend
