#include "services/engine/prefix_hash.h"

#include <openssl/evp.h>
#include <xxhash.h>

#include <cstdlib>
#include <cstring>

namespace terrace::engine {
namespace {

template <typename Number>
void AppendNumber(Number number, std::string& out) {
  out.append(reinterpret_cast<const char*>(&number), sizeof(number));
}

// With its length, so that no two lists of texts give the same bytes.
void AppendText(absl::string_view text, std::string& out) {
  AppendNumber(static_cast<uint32_t>(text.size()), out);
  out.append(text.data(), text.size());
}

template <size_t kSize>
void AppendBytes(const std::array<std::byte, kSize>& bytes, std::string& out) {
  out.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

std::array<std::byte, 16> Xxh3(absl::string_view bytes) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
  std::array<std::byte, 16> digest{};
  std::memcpy(digest.data(), canonical.digest, digest.size());
  return digest;
}

}  // namespace

size_t BlockHashHasher::operator()(const BlockHash& hash) const {
  size_t value = 0;
  std::memcpy(&value, hash.second.data(), sizeof(value));
  return value;
}

std::array<std::byte, 32> Sha256(absl::string_view bytes) {
  std::array<std::byte, 32> digest{};
  unsigned size = 0;
  const int done =
      EVP_Digest(bytes.data(), bytes.size(), reinterpret_cast<unsigned char*>(digest.data()), &size,
                 EVP_sha256(), nullptr);
  // Fails only where the library lacks the algorithm.
  if (done != 1 || size != digest.size()) std::abort();
  return digest;
}

PrefixHasher::PrefixHasher(absl::string_view tenant, const SequenceSpec& spec,
                           uint32_t block_tokens, PrefixDigest digest)
    : block_tokens_(block_tokens), digest_(digest) {
  const Geometry& geometry = spec.geometry;
  std::string bytes;
  AppendText("terrace prefix 1", bytes);
  AppendText(tenant, bytes);
  AppendText(spec.sharing_salt, bytes);
  AppendText(spec.model_fingerprint, bytes);
  AppendText(spec.adapter_id, bytes);
  for (const int number : {geometry.layers, geometry.query_heads, geometry.kv_heads,
                           geometry.head_dim, static_cast<int>(geometry.storage),
                           static_cast<int>(spec.index_format), static_cast<int>(block_tokens)}) {
    AppendNumber(static_cast<int32_t>(number), bytes);
  }
  AppendNumber(geometry.scale, bytes);
  root_ = {.first = digest_(bytes), .second = Xxh3(bytes)};
}

BlockHash PrefixHasher::Next(const BlockHash& parent, Provenance provenance,
                             absl::Span<const uint32_t> tokens) const {
  std::string block;
  block.reserve(1 + tokens.size() * sizeof(uint32_t));
  AppendNumber(static_cast<uint8_t>(provenance), block);
  block.append(reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(uint32_t));
  std::string first;
  AppendBytes(parent.first, first);
  first += block;
  std::string second;
  AppendBytes(parent.second, second);
  second += block;
  return {.first = digest_(first), .second = Xxh3(second)};
}

}  // namespace terrace::engine
