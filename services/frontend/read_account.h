// What attention read over many steps, and what it captured: sums of the service's accounts.
#ifndef TERRACE_SERVICES_FRONTEND_READ_ACCOUNT_H_
#define TERRACE_SERVICES_FRONTEND_READ_ACCOUNT_H_

#include <algorithm>
#include <cstdint>

namespace terrace::frontend {

// Reads from one tier.
struct TierTotals {
  uint64_t rows = 0;
  // Stored-format bytes of rows, of the score index and of value sums.
  uint64_t row_bytes = 0;
  uint64_t index_bytes = 0;
  uint64_t sum_bytes = 0;
  // Bytes moved from the device.
  uint64_t physical_bytes = 0;

  uint64_t logical_bytes() const { return row_bytes + index_bytes + sum_bytes; }
  void Add(const TierTotals& other) {
    rows += other.rows;
    row_bytes += other.row_bytes;
    index_bytes += other.index_bytes;
    sum_bytes += other.sum_bytes;
    physical_bytes += other.physical_bytes;
  }
};

struct ReadAccount {
  TierTotals gpu;
  TierTotals host;
  TierTotals disk;
  // Answers summed here: one per layer and step.
  uint64_t answers = 0;
  // Captured softmax mass over all query heads.
  double alpha_sum = 0;
  uint64_t alpha_count = 0;
  float alpha_min = 1.0F;
  // Mass of late or corrupt rows; the worst query head of each answer.
  double missed_mass_sum = 0;
  float missed_mass_max = 0;
  uint64_t missed_rows = 0;
  // Answers by the mode that a worker with remote stores chose.
  uint64_t rows_mode_answers = 0;
  uint64_t partial_mode_answers = 0;
  // Bytes from the store to the worker.
  uint64_t wire_bytes = 0;
  // Time inside the service.
  uint64_t service_us = 0;

  uint64_t rows() const { return gpu.rows + host.rows + disk.rows; }
  uint64_t logical_bytes() const {
    return gpu.logical_bytes() + host.logical_bytes() + disk.logical_bytes();
  }
  uint64_t physical_bytes() const {
    return gpu.physical_bytes + host.physical_bytes + disk.physical_bytes;
  }
  // 1 without answers.
  double alpha_mean() const {
    return alpha_count == 0 ? 1.0 : alpha_sum / static_cast<double>(alpha_count);
  }
  double missed_mass_mean() const {
    return answers == 0 ? 0.0 : missed_mass_sum / static_cast<double>(answers);
  }

  void Add(const ReadAccount& other) {
    gpu.Add(other.gpu);
    host.Add(other.host);
    disk.Add(other.disk);
    answers += other.answers;
    alpha_sum += other.alpha_sum;
    alpha_count += other.alpha_count;
    alpha_min = std::min(alpha_min, other.alpha_min);
    missed_mass_sum += other.missed_mass_sum;
    missed_mass_max = std::max(missed_mass_max, other.missed_mass_max);
    missed_rows += other.missed_rows;
    rows_mode_answers += other.rows_mode_answers;
    partial_mode_answers += other.partial_mode_answers;
    wire_bytes += other.wire_bytes;
    service_us += other.service_us;
  }
};

}  // namespace terrace::frontend

#endif  // TERRACE_SERVICES_FRONTEND_READ_ACCOUNT_H_
