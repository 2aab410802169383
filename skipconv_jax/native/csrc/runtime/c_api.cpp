// skipconv.h over the engine: saved plans, their streams, and errors as text.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "include/skipconv.h"
#include "runtime/dispatch.h"
#include "runtime/plan_file.h"
#include "runtime/platform.h"

namespace {

using skc::PlanError;
using skc::TensorDesc;

thread_local std::string g_error;

// Zeroed floats at a cache line, as XLA's buffers are.
struct Floats {
  explicit Floats(size_t n) : size(n) {
    const size_t bytes = (n * sizeof(float) + 63) / 64 * 64 + 64;
    data.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!data) throw std::bad_alloc();
    std::memset(data.get(), 0, bytes);
  }
  float* get() const { return data.get(); }
  size_t size;

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data;
};

template <class F>
int guarded(F f) {
  try {
    f();
    return SKIPCONV_OK;
  } catch (const PlanError& e) {
    g_error = e.what();
    return e.status;
  } catch (const std::bad_alloc&) {
    g_error = "out of memory";
    return SKIPCONV_ERROR_MEMORY;
  } catch (const std::exception& e) {
    g_error = e.what();
    return SKIPCONV_ERROR_ARGUMENT;
  }
}

void demand(bool ok, const std::string& text) {
  if (!ok) throw PlanError(SKIPCONV_ERROR_ARGUMENT, text);
}

bool canonical(const TensorDesc& t) {
  for (size_t i = 0; i < t.order.size(); i++)
    if (t.order[i] != (int32_t)i) return false;
  return true;
}

// Moves one stream's (h, w, c) values between the user's axes and the engine's.
template <class F>
void for_each_place(const TensorDesc& t, F f) {
  const auto n = [&](int k) { return (size_t)t.shape[t.order[k]]; };
  size_t stride[3];
  for (int k = 0; k < 3; k++) {
    stride[k] = 1;
    for (size_t axis = t.order[k] + 1; axis < t.shape.size(); axis++) stride[k] *= t.shape[axis];
  }
  size_t at = 0;
  for (size_t y = 0; y < n(0); y++)
    for (size_t x = 0; x < n(1); x++)
      for (size_t c = 0; c < n(2); c++) f(at++, y * stride[0] + x * stride[1] + c * stride[2]);
}

std::vector<uint8_t> contents(const char* path) {
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path, "rb"), std::fclose);
  if (!file) throw PlanError(SKIPCONV_ERROR_FILE, std::string("can't be opened: ") + std::strerror(errno));
  std::vector<uint8_t> data;
  for (;;) {
    const size_t had = data.size(), more = had < (1u << 20) ? (1u << 20) : had;
    data.resize(had + more);
    const size_t got = std::fread(data.data() + had, 1, more, file.get());
    data.resize(had + got);
    if (std::ferror(file.get()))
      throw PlanError(SKIPCONV_ERROR_FILE, std::string("can't be read: ") + std::strerror(errno));
    if (got < more) return data;
  }
}

}  // namespace

struct skipconv_plan {
  skc::PlanFile file;
  std::unique_ptr<Floats> weights, gates;
  skc::Call call{};

  explicit skipconv_plan(skc::PlanFile read) : file(std::move(read)) {
    if (!skc::read_program(file.words.data(), (int64_t)file.words.size(), call))
      throw PlanError(SKIPCONV_ERROR_VERSION,
                      "a program of another engine; save the plan again with this version");
    const skc::Header& head = *call.head;
    if (head.n_in != (int)file.inputs.size() || head.n_out != (int)file.outputs.size())
      throw PlanError(SKIPCONV_ERROR_FORMAT, "damaged: its descriptions are not the program's");
    for (const auto* list : {&file.inputs, &file.outputs})
      for (const auto& t : *list)
        if (!canonical(t) && t.order.size() != 3)
          throw PlanError(SKIPCONV_ERROR_FORMAT, "damaged: " + t.name + " has an order but no map");
    for (const auto& m : file.masks)
      if (m.offset < 0 || m.rows < 0 || m.columns < 0 ||
          m.offset + (int64_t)m.rows * m.columns > head.masks)
        throw PlanError(SKIPCONV_ERROR_FORMAT, "damaged: mask of " + m.name);
    weights = keep(file.weights);
    gates = keep(file.gates);
    call.weights = weights->get();
    call.gates = gates->get();
    skc::want_huge_pages(weights->get(), weights->size * sizeof(float));
  }

 private:
  static std::unique_ptr<Floats> keep(std::vector<float>& values) {
    auto kept = std::make_unique<Floats>(values.size());
    if (!values.empty()) std::memcpy(kept->get(), values.data(), values.size() * sizeof(float));
    std::vector<float>().swap(values);
    return kept;
  }
};

struct skipconv_streams {
  const skipconv_plan* plan;
  int count;
  int threads = 0;
  Floats arena, masks;
  std::vector<Floats> outputs;                    // the engine's (B, h, w, c)
  std::vector<std::unique_ptr<Floats>> in, out;   // reordered, where the user's axes are others

  skipconv_streams(const skipconv_plan* p, int n)
      : plan(p),
        count(n),
        arena((size_t)n * p->call.head->state),
        masks((size_t)n * p->call.head->masks) {
    for (const auto& t : p->file.outputs) outputs.emplace_back(n * t.size);
    for (const auto& t : p->file.inputs) in.push_back(reordered(t));
    for (const auto& t : p->file.outputs) out.push_back(reordered(t));
    skc::want_huge_pages(arena.get(), arena.size * sizeof(float));
  }

  void step(const float* const* inputs) {
    std::vector<const float*> frames;
    std::vector<float*> results;
    for (size_t i = 0; i < in.size(); i++) {
      demand(inputs[i], "`inputs` must not hold null");
      frames.push_back(in[i] ? in[i]->get() : inputs[i]);
      const auto& t = plan->file.inputs[i];
      for (int s = 0; in[i] && s < count; s++) {
        float* to = in[i]->get() + s * t.size;
        const float* from = inputs[i] + s * t.size;
        for_each_place(t, [&](size_t mine, size_t theirs) { to[mine] = from[theirs]; });
      }
    }
    for (auto& o : outputs) results.push_back(o.get());
    skc::Call call = plan->call;
    call.arena = arena.get();
    call.B = count;
    call.in = frames.data();
    call.out = results.data();
    call.kept = true;
    call.masks = masks.get();
    call.threads = threads > 0 ? threads : skc::default_threads();
    skc::run(call);
    for (size_t i = 0; i < out.size(); i++) {
      const auto& t = plan->file.outputs[i];
      for (int s = 0; out[i] && s < count; s++) {
        float* to = out[i]->get() + s * t.size;
        const float* from = outputs[i].get() + s * t.size;
        for_each_place(t, [&](size_t mine, size_t theirs) { to[theirs] = from[mine]; });
      }
    }
  }

 private:
  std::unique_ptr<Floats> reordered(const TensorDesc& t) const {
    return canonical(t) ? nullptr : std::make_unique<Floats>(count * t.size);
  }
};

namespace {

int describe(const std::vector<TensorDesc>* list, int32_t index, skipconv_tensor* tensor) {
  return guarded([&] {
    demand(list && tensor, "`plan` and `tensor` must not be null");
    demand(index >= 0 && index < (int32_t)list->size(),
           "`index` (=" + std::to_string(index) + ") must be below " + std::to_string(list->size()));
    const TensorDesc& t = (*list)[index];
    *tensor = {};
    tensor->name = t.name.c_str();
    tensor->rank = (int32_t)t.shape.size();
    for (size_t i = 0; i < t.shape.size(); i++) tensor->shape[i] = t.shape[i];
    tensor->size = t.size;
  });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char* skipconv_error(void) { return g_error.c_str(); }

const char* skipconv_instruction_set(void) {
  static const char* const names[] = {"portable", "avx2", "avx512", "neon"};
  return names[skc::isa_in_use()];
}

int skipconv_open_memory(const void* data, size_t bytes, skipconv_plan** plan) {
  return guarded([&] {
    demand(data && plan, "`data` and `plan` must not be null");
    *plan = nullptr;
    *plan = new skipconv_plan(skc::read_plan(static_cast<const uint8_t*>(data), bytes));
  });
}

int skipconv_open(const char* path, skipconv_plan** plan) {
  return guarded([&] {
    demand(path && plan, "`path` and `plan` must not be null");
    *plan = nullptr;
    try {
      const auto data = contents(path);
      *plan = new skipconv_plan(skc::read_plan(data.data(), data.size()));
    } catch (const PlanError& e) {
      throw PlanError(e.status, std::string(path) + ": " + e.what());
    }
  });
}

void skipconv_close(skipconv_plan* plan) { delete plan; }

int32_t skipconv_num_inputs(const skipconv_plan* plan) { return (int32_t)plan->file.inputs.size(); }
int32_t skipconv_num_outputs(const skipconv_plan* plan) { return (int32_t)plan->file.outputs.size(); }
int32_t skipconv_num_masks(const skipconv_plan* plan) { return (int32_t)plan->file.masks.size(); }

int skipconv_describe_input(const skipconv_plan* plan, int32_t index, skipconv_tensor* tensor) {
  return describe(plan ? &plan->file.inputs : nullptr, index, tensor);
}

int skipconv_describe_output(const skipconv_plan* plan, int32_t index, skipconv_tensor* tensor) {
  return describe(plan ? &plan->file.outputs : nullptr, index, tensor);
}

int skipconv_describe_mask(const skipconv_plan* plan, int32_t index, skipconv_mask* mask) {
  return guarded([&] {
    demand(plan && mask, "`plan` and `mask` must not be null");
    const auto& list = plan->file.masks;
    demand(index >= 0 && index < (int32_t)list.size(),
           "`index` (=" + std::to_string(index) + ") must be below " + std::to_string(list.size()));
    *mask = {list[index].name.c_str(), list[index].rows, list[index].columns};
  });
}

const char* skipconv_metadata(const skipconv_plan* plan) { return plan->file.meta.c_str(); }

size_t skipconv_state_bytes(const skipconv_plan* plan) {
  return sizeof(float) * (size_t)plan->call.head->state;
}

int skipconv_streams_create(const skipconv_plan* plan, int32_t count, skipconv_streams** streams) {
  return guarded([&] {
    demand(plan && streams, "`plan` and `streams` must not be null");
    demand(count >= 1, "`count` (=" + std::to_string(count) + ") must be at least 1");
    *streams = nullptr;
    *streams = new skipconv_streams(plan, count);
  });
}

void skipconv_streams_free(skipconv_streams* streams) { delete streams; }

int skipconv_reset(skipconv_streams* streams, int32_t stream) {
  return guarded([&] {
    demand(streams, "`streams` must not be null");
    demand(stream >= -1 && stream < streams->count,
           "`stream` (=" + std::to_string(stream) + ") must be -1 or below " +
               std::to_string(streams->count));
    const size_t state = streams->plan->call.head->state;
    for (int s = 0; s < streams->count; s++)
      if (stream == -1 || stream == s) streams->arena.get()[s * state] = 0.f;
  });
}

int skipconv_set_threads(skipconv_streams* streams, int32_t threads) {
  return guarded([&] {
    demand(streams, "`streams` must not be null");
    demand(threads >= 0, "`threads` (=" + std::to_string(threads) + ") must not be negative");
    streams->threads = threads;
  });
}

int skipconv_step(skipconv_streams* streams, const float* const* inputs) {
  return guarded([&] {
    demand(streams && inputs, "`streams` and `inputs` must not be null");
    streams->step(inputs);
  });
}

const float* skipconv_output(const skipconv_streams* streams, int32_t index) {
  if (index < 0 || index >= (int32_t)streams->outputs.size()) return nullptr;
  return streams->out[index] ? streams->out[index]->get() : streams->outputs[index].get();
}

const float* skipconv_fired(const skipconv_streams* streams, int32_t stream, int32_t mask) {
  const auto& list = streams->plan->file.masks;
  if (stream < 0 || stream >= streams->count || mask < 0 || mask >= (int32_t)list.size()) return nullptr;
  return streams->masks.get() + (size_t)stream * streams->plan->call.head->masks + list[mask].offset;
}

}  // extern "C"
#pragma GCC visibility pop
