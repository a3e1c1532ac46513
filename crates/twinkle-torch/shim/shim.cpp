// What tch lacks of libtorch, behind a C face. See shim.h for the rules.
#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/torch.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

char *copy_text(const char *text, size_t length) {
  char *copy = static_cast<char *>(std::malloc(length + 1));
  if (copy == nullptr) {
    std::abort();  // not even room for an error text
  }
  std::memcpy(copy, text, length);
  copy[length] = '\0';
  return copy;
}

// Runs `work` and turns whatever it throws into an error text.
template <typename Work>
twinkle_error guarded(Work work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception &error) {
    return copy_text(error.what(), std::strlen(error.what()));
  } catch (...) {
    const std::string text = "an unknown C++ exception";
    return copy_text(text.data(), text.size());
  }
}

const at::Tensor &borrowed(twinkle_tensor tensor) { return *static_cast<const at::Tensor *>(tensor); }

std::vector<at::Tensor> collect(const twinkle_tensor *tensors, size_t count) {
  std::vector<at::Tensor> list;
  list.reserve(count);
  for (size_t index = 0; index < count; ++index) {
    list.push_back(borrowed(tensors[index]));
  }
  return list;
}

twinkle_tensor owned_or_null(const at::Tensor &tensor) { return tensor.defined() ? new at::Tensor(tensor) : nullptr; }

// Calls `release(owner)` exactly once, when it goes out of use.
struct Owned {
  void *owner;
  twinkle_release release;
  Owned(void *owner, twinkle_release release) : owner(owner), release(release) {}
  Owned(const Owned &) = delete;
  Owned &operator=(const Owned &) = delete;
  ~Owned() { release(owner); }
};

// A node of the autograd graph whose gradient is computed by a Rust closure.
struct ClosureNode : public torch::autograd::Node {
  std::unique_ptr<Owned> closure;
  twinkle_backward backward = nullptr;
  std::vector<torch::autograd::SavedVariable> saved;

  torch::autograd::variable_list apply(torch::autograd::variable_list &&gradients) override {
    std::vector<at::Tensor> restored;
    restored.reserve(saved.size());
    for (auto &variable : saved) {
      restored.push_back(variable.unpack(shared_from_this()));
    }
    std::vector<twinkle_tensor> saved_pointers;
    for (auto &tensor : restored) {
      saved_pointers.push_back(&tensor);
    }
    std::vector<twinkle_tensor> gradient_pointers;
    for (auto &gradient : gradients) {
      gradient_pointers.push_back(gradient.defined() ? &gradient : nullptr);
    }
    std::vector<twinkle_tensor> results(num_outputs(), nullptr);
    twinkle_error error = backward(closure->owner, saved_pointers.data(), saved_pointers.size(),
                                   gradient_pointers.data(), gradient_pointers.size(), results.data(), results.size());
    torch::autograd::variable_list list(results.size());
    for (size_t index = 0; index < results.size(); ++index) {
      if (results[index] != nullptr) {
        std::unique_ptr<at::Tensor> result(static_cast<at::Tensor *>(results[index]));
        list[index] = *result;
      }
    }
    if (error != nullptr) {
      std::string text(error);
      std::free(error);
      throw std::runtime_error(text);
    }
    return list;
  }

  void release_variables() override {
    for (auto &variable : saved) {
      variable.reset_data();
    }
  }

  std::string name() const override { return "TwinkleClosureNode"; }
};

}  // namespace

extern "C" {

char *twinkle_copy_text(const char *text, size_t length) { return copy_text(text, length); }

void twinkle_free_text(char *text) { std::free(text); }

twinkle_error twinkle_gradients(const twinkle_tensor *outputs, const twinkle_tensor *output_gradients,
                                size_t output_count, const twinkle_tensor *inputs, size_t input_count, int keep_graph,
                                twinkle_tensor *results) {
  return guarded([&] {
    auto gradients = torch::autograd::grad(collect(outputs, output_count), collect(inputs, input_count),
                                           collect(output_gradients, output_count), keep_graph != 0,
                                           /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t index = 0; index < input_count; ++index) {
      results[index] = owned_or_null(gradients[index]);
    }
  });
}

twinkle_error twinkle_attach(const twinkle_tensor *inputs, size_t input_count, twinkle_tensor *outputs,
                             size_t output_count, const twinkle_tensor *saved, size_t saved_count,
                             twinkle_backward backward, void *closure, twinkle_release release) {
  auto owned = std::make_unique<Owned>(closure, release);  // released here if anything below throws
  return guarded([&] {
    std::vector<at::Tensor> input_list = collect(inputs, input_count);
    if (!at::GradMode::is_enabled() || !torch::autograd::any_variable_requires_grad(input_list)) {
      return;
    }
    auto node = std::shared_ptr<ClosureNode>(new ClosureNode(), torch::autograd::deleteNode);
    node->closure = std::move(owned);
    node->backward = backward;
    node->set_next_edges(torch::autograd::collect_next_edges(input_list));
    for (size_t index = 0; index < saved_count; ++index) {
      // Detached, so that a saved output does not keep its own node alive.
      node->saved.emplace_back(borrowed(saved[index]).detach(), /*is_output=*/false);
    }
    for (size_t index = 0; index < output_count; ++index) {
      torch::autograd::set_history(*static_cast<at::Tensor *>(outputs[index]), node);
    }
  });
}

twinkle_error twinkle_borrow_memory(void *data, const int64_t *shape, size_t dimensions, int scalar_type, void *owner,
                                    twinkle_release release, twinkle_tensor *result) {
  auto owned = std::make_shared<Owned>(owner, release);
  return guarded([&] {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(scalar_type)).device(at::kCPU);
    at::Tensor tensor =
        torch::from_blob(data, at::IntArrayRef(shape, dimensions), [owned](void *) mutable { owned.reset(); }, options);
    *result = new at::Tensor(std::move(tensor));
  });
}

twinkle_error twinkle_intra_op_threads(int *count) {
  return guarded([&] { *count = at::get_num_threads(); });
}

twinkle_error twinkle_set_intra_op_threads(int count) {
  return guarded([&] { at::set_num_threads(count); });
}

twinkle_error twinkle_inter_op_threads(int *count) {
  return guarded([&] { *count = at::get_num_interop_threads(); });
}

twinkle_error twinkle_set_inter_op_threads(int count) {
  return guarded([&] { at::set_num_interop_threads(count); });
}

twinkle_error twinkle_cuda_device_count(int *count) {
  return guarded([&] { *count = static_cast<int>(torch::cuda::device_count()); });
}

}  // extern "C"
