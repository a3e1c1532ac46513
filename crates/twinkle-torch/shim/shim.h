// The C face of the shim. Every function catches every C++ exception and returns its text in a new
// C string (free it with twinkle_free_text), or null on success. Tensors are the `at::Tensor *` of torch-sys.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {
typedef void *twinkle_tensor;
typedef char *twinkle_error;

// Called once per backward through a node. `saved` and `gradients` are borrowed (a null gradient is zero);
// `results` receives one owned tensor or null per input. Returns null, or an error text that the shim frees.
typedef twinkle_error (*twinkle_backward)(void *closure, const twinkle_tensor *saved, size_t saved_count,
                                          const twinkle_tensor *gradients, size_t gradient_count,
                                          twinkle_tensor *results, size_t result_count);
typedef void (*twinkle_release)(void *owner);

char *twinkle_copy_text(const char *text, size_t length);
void twinkle_free_text(char *text);

twinkle_error twinkle_gradients(const twinkle_tensor *outputs, const twinkle_tensor *output_gradients,
                                size_t output_count, const twinkle_tensor *inputs, size_t input_count, int keep_graph,
                                twinkle_tensor *results);
twinkle_error twinkle_attach(const twinkle_tensor *inputs, size_t input_count, twinkle_tensor *outputs,
                             size_t output_count, const twinkle_tensor *saved, size_t saved_count,
                             twinkle_backward backward, void *closure, twinkle_release release);
twinkle_error twinkle_borrow_memory(void *data, const int64_t *shape, size_t dimensions, int scalar_type, void *owner,
                                    twinkle_release release, twinkle_tensor *result);
twinkle_error twinkle_intra_op_threads(int *count);
twinkle_error twinkle_set_intra_op_threads(int count);
twinkle_error twinkle_inter_op_threads(int *count);
twinkle_error twinkle_set_inter_op_threads(int count);
twinkle_error twinkle_cuda_device_count(int *count);
}
