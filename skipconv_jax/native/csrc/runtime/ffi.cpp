// The one custom call: checks its operands and runs the program.
#include <cstring>
#include <vector>

#include "runtime/dispatch.h"
#include "runtime/platform.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

ffi::Error execute(ffi::Buffer<ffi::S32> program, ffi::Buffer<ffi::F32> weights,
                   ffi::Buffer<ffi::F32> gates, ffi::Buffer<ffi::F32> arena, ffi::RemainingArgs frames,
                   ffi::ResultBuffer<ffi::F32> arena_out, ffi::ResultBuffer<ffi::F32> masks,
                   ffi::RemainingRets outputs, int64_t threads) {
  skc::Call call{};
  if (!skc::read_program(program.typed_data(), (int64_t)program.element_count(), call))
    return ffi::Error::InvalidArgument("skipconv_jax: not a program of this version");
  const skc::Header* head = call.head;
  const auto dims = arena.dimensions();
  if (dims.size() != 2 || dims[1] != head->state)
    return ffi::Error::InvalidArgument("skipconv_jax: state of another program");
  // Results are new buffers, or those of the last frame, which then follow the frames.
  const int kept = (int)frames.size() - head->n_in;
  if ((kept != 0 && kept != head->n_out) || (int)outputs.size() != head->n_out)
    return ffi::Error::InvalidArgument("skipconv_jax: wrong number of inputs or outputs");

  std::vector<const float*> in(head->n_in);
  std::vector<float*> out(head->n_out);
  for (int i = 0; i < head->n_in; i++) {
    auto buffer = frames.get<ffi::Buffer<ffi::F32>>(i);
    if (!buffer.has_value()) return buffer.error();
    in[i] = buffer->typed_data();
  }
  for (int i = 0; i < head->n_out; i++) {
    auto buffer = outputs.get<ffi::Buffer<ffi::F32>>(i);
    if (!buffer.has_value()) return buffer.error();
    out[i] = (*buffer)->typed_data();
    if (!kept) continue;
    auto last = frames.get<ffi::Buffer<ffi::F32>>(head->n_in + i);
    if (!last.has_value()) return last.error();
    skc::want_huge_pages(out[i], sizeof(float) * last->element_count());
    if (last->typed_data() != out[i])
      std::memcpy(out[i], last->typed_data(), sizeof(float) * last->element_count());
  }
  float* state = arena_out->typed_data();
  skc::want_huge_pages(weights.typed_data(), weights.element_count() * sizeof(float));
  bool fresh = false;
  for (int64_t s = 0; s < dims[0]; s++) fresh |= arena.typed_data()[s * dims[1]] == 0.f;
  if (state == arena.typed_data())
    skc::want_huge_pages(state, sizeof(float) * dims[0] * dims[1], fresh);
  else
    std::memcpy(state, arena.typed_data(), sizeof(float) * dims[0] * dims[1]);

  call.weights = weights.typed_data();
  call.gates = gates.typed_data();
  call.arena = state;
  call.B = (int)dims[0];
  call.in = in.data();
  call.out = out.data();
  call.kept = kept != 0;
  call.masks = masks->typed_data();
  call.threads = threads > 0 ? (int)threads : skc::default_threads();
  skc::run(call);
  return ffi::Error::Success();
}

}  // namespace

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(SkipconvExecute, execute,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .RemainingArgs()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .RemainingRets()
                                  .Attr<int64_t>("threads"));
#pragma GCC visibility pop
