// The file of a saved plan (plans/skc_file.py describes the format), read and checked.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace skc {

struct TensorDesc {
  std::string name;
  std::vector<int32_t> shape, order;  // order: which axis holds h, w and c
  size_t size = 1;
};

struct MaskDesc {
  std::string name;
  int32_t offset, rows, columns;
};

struct PlanFile {
  std::vector<int32_t> words;
  std::vector<float> weights, gates;
  std::vector<TensorDesc> inputs, outputs;
  std::vector<MaskDesc> masks;
  std::string meta;
};

struct PlanError : std::runtime_error {
  int status;  // of skipconv.h
  PlanError(int s, const std::string& text) : std::runtime_error(text), status(s) {}
};

// Throws PlanError.
PlanFile read_plan(const uint8_t* data, size_t bytes);

}  // namespace skc
