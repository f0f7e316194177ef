// Attention in fp64, obvious and slow: the judge of every kernel. Plain row-major arrays, one
// layer, one query position (the last row is the current token) unless said otherwise.
#ifndef TERRACE_ATTENTION_REFERENCE_H_
#define TERRACE_ATTENTION_REFERENCE_H_

#include <cstdint>
#include <vector>

#include "attention/policy.h"

namespace terrace::attention::reference {

// K and V of one layer, and the queries of one step.
struct Problem {
  int query_heads = 0;
  int kv_heads = 0;
  int tokens = 0;
  int head_dim = 0;
  double scale = 0;       // 0 means 1/sqrt(head_dim)
  std::vector<double> q;  // [query_heads][head_dim]
  std::vector<double> k;  // [kv_heads][tokens][head_dim]
  std::vector<double> v;  // [kv_heads][tokens][head_dim]
};

struct Answer {
  std::vector<std::vector<int32_t>> channels;    // [kv_heads], ascending; empty for dense
  std::vector<std::vector<uint32_t>> selection;  // [kv_heads], ascending
  std::vector<std::vector<double>> score;        // [kv_heads][tokens]; group score, empty for dense
  std::vector<double> tau;                       // [query_heads]; empty for dense
  std::vector<double> alpha;                     // [query_heads]
  std::vector<double> lse;                       // [query_heads]: exact, of the selection
  std::vector<double> output;                    // [query_heads][head_dim]
};

Answer Attend(const Problem& problem, const Policy& policy);

// SparQ with approximate scores from `index_k` (what a lossy index decodes to) instead of k.
Answer AttendSparq(const Problem& problem, const SparqPolicy& policy,
                   const std::vector<double>& index_k);

}  // namespace terrace::attention::reference

#endif  // TERRACE_ATTENTION_REFERENCE_H_
