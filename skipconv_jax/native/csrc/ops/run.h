// Shared by all operations: the work list of one operation and the memory of the threads.
#pragma once
#include <chrono>
#include <cstdlib>
#include <vector>

#include "ops/epilogue.h"
#include "runtime/pool.h"

namespace skc {
namespace SKC_ISA {

// kRefresh: not fired, but links behind it look at what it made.
enum Action : uint8_t { kIdle, kFire, kResidual, kRepeat, kClean, kRefresh };

struct Item {
  Rect r;
  int s, p0, p1;
  Action action;
};

struct Candidate {
  int s, by, bx;
  bool fresh;
};

// Grows, never shrinks; 64-byte aligned.
struct Memory {
  float* data = nullptr;
  size_t size = 0;
  float* get(size_t floats) {
    if (floats > size) {
      std::free(data);
      size = (floats + 1023) / 1024 * 1024;
      data = static_cast<float*>(std::aligned_alloc(64, size * sizeof(float)));
    }
    return data;
  }
  ~Memory() { std::free(data); }
};

constexpr int kLevels = kMaxLinks + 1;  // operations of a chain that have memory of their own
constexpr int kMaxLinkBlock = 8;        // side of the blocks of a chain

inline double seconds() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

struct Run {
  const Call& call;
  Pool& pool;
  std::vector<Item>& items;
  std::vector<Candidate>& candidates;
  std::vector<Action>& fire;
  std::vector<uint8_t>& refresh;  // streams in which links have to look at every block
  Memory* memory;                 // kLevels times one per thread
  double* linked;                 // seconds that links of the running operation took
  uint64_t frame;                 // counts calls of the process from 1 on
  const Op* op = nullptr;

  float* arena(int s) const { return call.arena + (long)s * call.head->state; }
  bool fresh(int s) const { return arena(s)[0] == 0.f; }
  View view(int tensor, int s) const { return View(call.tensors[tensor], arena(s)); }
  void open(View& out, int s) const {
    const int prev = out.t->prev;
    out.open(prev < 0 ? nullptr : call.tensors + prev, arena(s));
  }
  // Items per parallel run below which the caller works alone.
  void dispatch(Pool::Fn fn, int n, double cost_us, const int* bounds = nullptr) {
    pool.run(fn, this, n, cost_us > 3.0, bounds);
  }
};

static Epilogue epilogue_of(const Op& o, const Run& run, View& out, const View* res, int s) {
  const float* bias = o.bias < 0 ? nullptr : run.call.weights + o.bias;
  float* z = o.z < 0 ? nullptr : run.arena(s) + o.z;
  return {&o, Activation(o, run.call.weights), &out, res, bias, z, run.fresh(s)};
}

constexpr int kEven = 8;  // items per thread from which on the last one hardly counts

// Cuts items in two, above and below a row of cells, where there are too few for threads to come out
// even.
static void halve_rows(Run& run) {
  const int T = run.pool.threads();
  if (T == 1 || (int)run.items.size() >= kEven * T) return;
  static thread_local std::vector<Item> halves;
  halves.clear();
  for (const Item& item : run.items) {
    if (item.action != kFire || item.r.h() <= kCell || item.r.y0 % kCell) {
      halves.push_back(item);
      continue;
    }
    Item top = item, bottom = item;
    top.r.y1 = bottom.r.y0 = item.r.y0 + kCell;
    halves.push_back(top);
    halves.push_back(bottom);
  }
  run.items.swap(halves);
}

// Items of a map that leaves the program, and how many floats they are: all of it, or of outputs that
// the caller kept what changed.
static double list_outputs(Run& run, const Op& o) {
  const Tensor& t = run.call.tensors[o.src[0]];
  double floats = 0;
  for (int s = 0; s < run.call.B; s++) {
    const View in = run.view(o.src[0], s);
    const bool whole = !run.call.kept || run.fresh(s);
    const int wide = whole ? t.W : kRegion;
    for (int y = 0; y < t.H; y += kRegion)
      for (int x = 0; x < t.W; x += wide) {
        const Rect r{y, y + kRegion < t.H ? y + kRegion : t.H, x, x + wide < t.W ? x + wide : t.W};
        if (!whole && !in.changed_in(r.y0, r.y1, r.x0, r.x1)) continue;
        run.items.push_back({r, s, 0, 0, kFire});
        floats += (double)r.h() * r.w() * t.C;
      }
  }
  return floats;
}

// Widens [low, high) to the rows or columns of a table; a negative one is outside of the map.
static void span(const int32_t* index, int n, int* low, int* high) {
  for (int i = 0; i < n; i++) {
    if (index[i] < 0) continue;
    *low = index[i] < *low ? index[i] : *low;
    *high = index[i] >= *high ? index[i] + 1 : *high;
  }
}

// One operation each, with empty lists.
void run_input(Run&, const Op&);
void run_conv(Run&, const Op&);
void run_pixels(Run&, const Op&);
void run_spatial(Run&, const Op&);
void run_output(Run&, const Op&);
void run_qinput(Run&, const Op&);
void run_qoutput(Run&, const Op&);
void run_qconv(Run&, const Op&);
void run_qpixels(Run&, const Op&);

}  // namespace SKC_ISA
}  // namespace skc
