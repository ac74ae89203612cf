// What the bindings of the CPU and of CUDA share: arguments are checked, and the message has both sides.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "bilinear.h"
#include "mask_values.h"
#include "places.h"

namespace pixelrefer_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAny = -1;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Bool: return "bool";
    default: return "another dtype";
  }
}

template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  const char* between = "(";
  for (const int64_t size : sizes) {
    text << between;
    if (size == kAny) text << "any"; else text << size;
    between = ", ";
  }
  text << (sizes.size() == 0 ? "()" : sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

// The arguments of one call. The first one names the device that all are on.
class Arguments {
 public:
  Arguments(const char* op, const Tensor& first) : op_(op), cuda_(first.is_cuda()), index_(first.get_device_index()) {}

  const Arguments& shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) const {
    const auto given = tensor.sizes();
    const auto fits = [](int64_t wanted, int64_t size) { return wanted == kAny || wanted == size; };
    const bool same = given.size() == expected.size() && std::equal(expected.begin(), expected.end(), given.begin(), fits);
    if (!same) fail(op_, ": expected ", name, " of shape ", shape_text(expected), ", got ", shape_text(given));
    return *this;
  }

  const Arguments& dtype(const char* name, const Tensor& tensor, ScalarType expected) const {
    const ScalarType given = tensor.scalar_type();
    if (given != expected) fail(op_, ": expected ", name, " of ", name_of(expected), ", got ", name_of(given));
    return *this;
  }

  const Arguments& device(const char* name, const Tensor& tensor) const {
    if (tensor.is_cuda() != cuda_ || tensor.get_device_index() != index_) {
      fail(op_, ": expected ", name, " on ", device_text(cuda_, index_), ", got ",
           device_text(tensor.is_cuda(), tensor.get_device_index()));
    }
    return *this;
  }

  // A contiguous tensor of one shape and dtype on the device of all.
  template <typename T>
  T* data(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected, ScalarType type) const {
    shape(name, tensor, expected).dtype(name, tensor, type).device(name, tensor);
    if (!tensor.is_contiguous()) fail(op_, ": expected contiguous ", name, ", got strides ", shape_text(tensor.strides()));
    if constexpr (std::is_const_v<T>) {
      return static_cast<T*>(tensor.const_data_ptr());
    } else {
      return static_cast<T*>(tensor.mutable_data_ptr());
    }
  }

  // A matrix of which each row is contiguous; how many bytes lie between two rows.
  int64_t row_stride(const char* name, const Tensor& tensor) const {
    device(name, tensor);
    const auto strides = tensor.strides();
    if (tensor.size(1) > 1 && strides[1] != 1) {
      fail(op_, ": expected ", name, " with contiguous rows, got strides ", shape_text(strides));
    }
    return strides[0] * static_cast<int64_t>(tensor.element_size());
  }

  const char* op() const { return op_; }

 private:
  static std::string device_text(bool cuda, int32_t index) {
    return cuda ? "cuda:" + std::to_string(index) : std::string("cpu");
  }

  const char* op_;
  bool cuda_;
  int32_t index_;
};

// pack_masks_out's masks, which may be strided; outputs and cuts are of their number and size.
struct MaskStack {
  MaskType type = MaskType::kByte;
  int64_t count, height, width;
  int64_t strides[3];
  const void* data;
  const float* cuts;
  uint8_t* bits;
  int64_t* extents;

  MaskStack(const Arguments& check, const Tensor& masks, const Tensor& cuts_, const Tensor& bits_,
            const Tensor& extents_) {
    check.shape("masks", masks, {kAny, kAny, kAny});
    switch (masks.scalar_type()) {
      case ScalarType::Bool:
      case ScalarType::Byte: break;
      case ScalarType::Int: type = MaskType::kInt; break;
      case ScalarType::Long: type = MaskType::kLong; break;
      case ScalarType::Float: type = MaskType::kFloat; break;
      case ScalarType::Half: type = MaskType::kHalf; break;
      case ScalarType::BFloat16: type = MaskType::kBfloat16; break;
      default:
        fail(check.op(), ": expected masks of bool, uint8, int32, int64, float32, float16 or bfloat16, got ",
             name_of(masks.scalar_type()));
    }
    count = masks.size(0);
    height = masks.size(1);
    width = masks.size(2);
    if (width > 2147483647) fail(check.op(), ": expected masks at most 2147483647 wide, got ", width);
    std::copy_n(masks.strides().begin(), 3, strides);
    data = masks.const_data_ptr();
    cuts = check.data<const float>("cuts", cuts_, {count}, ScalarType::Float);
    bits = check.data<uint8_t>("bits", bits_, {count, height, (width + 7) / 8}, ScalarType::Byte);
    extents = check.data<int64_t>("extents", extents_, {count, kExtents}, ScalarType::Long);
  }
};

// place_patches_out's arguments.
struct PlacedPatches {
  int64_t marks, slots, corners;
  const int32_t *row, *column;
  const int64_t *offsets, *table;
  int64_t* index;
  float *weights, *positions;

  PlacedPatches(const Arguments& check, const Tensor& row_, const Tensor& column_, const Tensor& offsets_,
                const Tensor& table_, const Tensor& index_, const Tensor& weights_, const Tensor& positions_) {
    row = check.data<const int32_t>("row", row_, {kAny}, ScalarType::Int);
    slots = row_.size(0);
    column = check.data<const int32_t>("column", column_, {slots}, ScalarType::Int);
    table = check.data<const int64_t>("table", table_, {kAny, kMarkColumns}, ScalarType::Long);
    marks = table_.size(0);
    offsets = check.data<const int64_t>("offsets", offsets_, {marks + 1}, ScalarType::Long);
    check.shape("patch", index_, {slots, kAny});
    corners = index_.size(1);
    if (corners != 1 && corners != 4) fail(check.op(), ": expected patch with 1 or 4 columns, got ", corners);
    index = check.data<int64_t>("patch", index_, {slots, corners}, ScalarType::Long);
    weights = check.data<float>("weights", weights_, {slots, corners}, ScalarType::Float);
    positions = check.data<float>("positions", positions_, {slots, 2}, ScalarType::Float);
  }
};

// scatter_tokens_ and gather_tokens_out check alike.
struct TokenRows {
  int64_t length, tokens, row_bytes, embeds_stride, tokens_stride;
  const int64_t* slots;

  TokenRows(const Arguments& check, const Tensor& embeds, const Tensor& tokens_, const Tensor& slots_) {
    check.shape("embeds", embeds, {kAny, kAny});
    const ScalarType dtype = embeds.scalar_type();
    if (dtype != ScalarType::Float && dtype != ScalarType::Half && dtype != ScalarType::BFloat16) {
      fail(check.op(), ": expected embeds of float32, float16 or bfloat16, got ", name_of(dtype));
    }
    length = embeds.size(0);
    check.shape("slots", slots_, {kAny});
    tokens = slots_.size(0);
    slots = check.data<const int64_t>("slots", slots_, {tokens}, ScalarType::Long);
    check.shape("tokens", tokens_, {tokens, embeds.size(1)}).dtype("tokens", tokens_, dtype);
    embeds_stride = check.row_stride("embeds", embeds);
    tokens_stride = check.row_stride("tokens", tokens_);
    row_bytes = embeds.size(1) * static_cast<int64_t>(embeds.element_size());
  }
};

}  // namespace pixelrefer_fast
