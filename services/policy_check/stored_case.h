// What a store makes of a case: rounded rows, and the score index over their full blocks.
#ifndef TERRACE_SERVICES_POLICY_CHECK_STORED_CASE_H_
#define TERRACE_SERVICES_POLICY_CHECK_STORED_CASE_H_

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/dtype.h"
#include "attention/head_shape.h"
#include "attention/reference.h"
#include "attention/score_index.h"

namespace terrace::policy_check {

struct StoreFormat {
  attention::Dtype storage = attention::Dtype::kFloat32;
  attention::IndexFormat index = attention::IndexFormat::kExact;
  // Rows of one block and tokens of one stripe. Vectors are short: small ones let them cross seals
  // and stripes, which the 64 and 1,024 of a deployment would not.
  int block_tokens = 16;
  int index_tokens = 64;

  // Whether a backend computes from what the file gives, but for the last bits of fp32.
  bool exact() const {
    return storage == attention::Dtype::kFloat32 && index == attention::IndexFormat::kExact;
  }
};

struct StoredCase {
  StoreFormat format;
  // q rounded to fp32; k and v as the rows hold them.
  attention::reference::Problem problem;
  // [kv_heads][tokens][head_dim]: the keys that approximate scores read. Of full blocks what the
  // index decodes to, after them the stored keys.
  std::vector<double> index_k;
  // [kv_heads], each [tokens][K, V] in format.storage.
  std::vector<std::vector<std::byte>> rows;
  // [kv_heads], each [full blocks][layout().piece_bytes()].
  std::vector<std::vector<std::byte>> pieces;

  attention::HeadShape shape() const;
  attention::IndexLayout layout() const;
};

// Encodes rows and index with the codecs of attention/. So that those are not their own judge,
// every stored element is checked to lie within the rounding error of its format from what was
// given, by fp64 arithmetic alone: OutOfRange names an element that does not, or that the format
// cannot hold. InvalidArgument when the kernels do not take the head dimension.
absl::StatusOr<StoredCase> Store(const attention::reference::Problem& given,
                                 const StoreFormat& format);

}  // namespace terrace::policy_check

#endif  // TERRACE_SERVICES_POLICY_CHECK_STORED_CASE_H_
