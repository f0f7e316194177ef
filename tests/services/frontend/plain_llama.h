// A Llama forward pass in double, from the weights of a FloatTensors map: the obvious loops.
#ifndef TERRACE_TESTS_SERVICES_FRONTEND_PLAIN_LLAMA_H_
#define TERRACE_TESTS_SERVICES_FRONTEND_PLAIN_LLAMA_H_

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/services/frontend/checkpoint_writer.h"

namespace terrace::frontend::testing {

using Matrix = std::vector<std::vector<double>>;

class PlainLlama {
 public:
  PlainLlama(nlohmann::json config, FloatTensors tensors)
      : config_(std::move(config)), tensors_(std::move(tensors)) {}

  // [tokens][vocab].
  Matrix Logits(const std::vector<uint32_t>& tokens) const {
    const Matrix embeddings = Weights("model.embed_tokens.weight");
    Matrix stream;
    for (const uint32_t token : tokens) stream.push_back(embeddings[token]);
    for (int layer = 0; layer < Integer("num_hidden_layers"); ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      Add(stream, AttentionDelta(prefix, stream));
      Add(stream, MlpDelta(prefix, stream));
    }
    const char* head =
        config_["tie_word_embeddings"].get<bool>() ? "model.embed_tokens.weight" : "lm_head.weight";
    return Times(Normalised(stream, "model.norm.weight"), head);
  }

 private:
  int Integer(const char* key) const { return config_[key].get<int>(); }

  Matrix Weights(const std::string& name) const {
    const FloatTensor& tensor = tensors_.at(name);
    const size_t width = tensor.shape.size() == 2 ? tensor.shape[1] : tensor.shape[0];
    Matrix rows;
    for (size_t at = 0; at < tensor.values.size(); at += width) {
      rows.emplace_back(tensor.values.begin() + at, tensor.values.begin() + at + width);
    }
    return rows;
  }

  Matrix Times(const Matrix& x, const std::string& name) const {
    const Matrix weights = Weights(name);
    Matrix y;
    for (const auto& row : x) {
      y.emplace_back();
      for (const auto& weight : weights) {
        double sum = 0;
        for (size_t i = 0; i < row.size(); ++i) sum += row[i] * weight[i];
        y.back().push_back(sum);
      }
    }
    return y;
  }

  Matrix Normalised(const Matrix& x, const std::string& name) const {
    const std::vector<double> weights = Weights(name)[0];
    const double eps = config_["rms_norm_eps"].get<double>();
    Matrix y = x;
    for (auto& row : y) {
      double squares = 0;
      for (const double value : row) squares += value * value;
      const double root = std::sqrt(squares / static_cast<double>(row.size()) + eps);
      for (size_t i = 0; i < row.size(); ++i) row[i] = row[i] / root * weights[i];
    }
    return y;
  }

  static void Add(Matrix& x, const Matrix& delta) {
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t i = 0; i < x[t].size(); ++i) x[t][i] += delta[t][i];
    }
  }

  // Turns each head of row t as complex numbers (first half, second half) by t · theta^(-2i/d).
  void Rotate(Matrix& x) const {
    const int d = Integer("head_dim");
    const double theta = config_["rope_theta"].get<double>();
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t head = 0; head < x[t].size(); head += d) {
        for (int i = 0; i < d / 2; ++i) {
          const double angle = static_cast<double>(t) / std::pow(theta, 2.0 * i / d);
          double& re = x[t][head + i];
          double& im = x[t][head + d / 2 + i];
          const double old = re;
          re = re * std::cos(angle) - im * std::sin(angle);
          im = old * std::sin(angle) + im * std::cos(angle);
        }
      }
    }
  }

  Matrix AttentionDelta(const std::string& prefix, const Matrix& stream) const {
    const Matrix x = Normalised(stream, prefix + "input_layernorm.weight");
    Matrix q = Times(x, prefix + "self_attn.q_proj.weight");
    Matrix k = Times(x, prefix + "self_attn.k_proj.weight");
    const Matrix v = Times(x, prefix + "self_attn.v_proj.weight");
    Rotate(q);
    Rotate(k);
    const int d = Integer("head_dim");
    const int group = Integer("num_attention_heads") / Integer("num_key_value_heads");
    Matrix attended(q.size(), std::vector<double>(q[0].size(), 0.0));
    for (size_t t = 0; t < q.size(); ++t) {
      for (int head = 0; head < Integer("num_attention_heads"); ++head) {
        const int from = head / group * d;
        double sum = 0;
        std::vector<double> weights;
        for (size_t s = 0; s <= t; ++s) {
          double dot = 0;
          for (int i = 0; i < d; ++i) dot += q[t][head * d + i] * k[s][from + i];
          weights.push_back(std::exp(dot / std::sqrt(d)));
          sum += weights.back();
        }
        for (size_t s = 0; s <= t; ++s) {
          for (int i = 0; i < d; ++i)
            attended[t][head * d + i] += weights[s] / sum * v[s][from + i];
        }
      }
    }
    return Times(attended, prefix + "self_attn.o_proj.weight");
  }

  Matrix MlpDelta(const std::string& prefix, const Matrix& stream) const {
    const Matrix x = Normalised(stream, prefix + "post_attention_layernorm.weight");
    Matrix gate = Times(x, prefix + "mlp.gate_proj.weight");
    const Matrix up = Times(x, prefix + "mlp.up_proj.weight");
    for (size_t t = 0; t < gate.size(); ++t) {
      for (size_t i = 0; i < gate[t].size(); ++i) {
        gate[t][i] = gate[t][i] / (1 + std::exp(-gate[t][i])) * up[t][i];
      }
    }
    return Times(gate, prefix + "mlp.down_proj.weight");
  }

  nlohmann::json config_;
  FloatTensors tensors_;
};

}  // namespace terrace::frontend::testing

#endif  // TERRACE_TESTS_SERVICES_FRONTEND_PLAIN_LLAMA_H_
