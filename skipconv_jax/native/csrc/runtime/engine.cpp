// Runs a program; compiled once per instruction set, chosen at run time.
#include <atomic>

#include "ops/chain.h"
#include "ops/q_view.h"

namespace skc {
namespace SKC_ISA {
namespace {

// Lists and temporaries of the calling thread, kept between calls.
struct Kept {
  std::vector<Item> items;
  std::vector<Candidate> candidates;
  std::vector<Action> fire;
  std::vector<uint8_t> refresh;
  Memory memory[kLevels * kMaxThreads];
};

// Output positions that the operation's items computed; those cut over channels count by their share.
double positions(const Run& run, const Op& o) {
  const int wide = o.kind == kQConv ? kBytePanel : kPanel;
  const int panels = o.kind == kQConv && o.algo == kGrouped ? 1 : (run.call.tensors[o.out].Cs + wide - 1) / wide;
  const bool cut = o.kind == kConv || o.kind == kQConv;
  double sum = 0;
  for (const Item& item : run.items)
    if (item.action == kFire)
      sum += (double)item.r.h() * item.r.w() * (cut ? (double)(item.p1 - item.p0) / panels : 1.);
  return sum;
}

}  // namespace

void execute(const Call& call, Pool& pool) {
  static thread_local Kept kept;
  static std::atomic<uint64_t> frames{0};
  double linked = 0;
  kept.refresh.assign(call.B, 0);
  Run run{call, pool, kept.items, kept.candidates, kept.fire, kept.refresh, kept.memory, &linked, ++frames};
  for (int i = 0; i < call.head->n_ops; i++) {
    const Op& op = call.ops[i];
    const double start = call.profile ? seconds() : 0;
    run.op = &op;
    run.items.clear();
    linked = 0;
    switch (op.kind) {
      case kInput: run_input(run, op); break;
      case kConv: op.head < 0 ? run_conv(run, op) : close_link(run, op); break;
      case kSpatial: run_spatial(run, op); break;
      case kOutput: run_output(run, op); break;
      case kQInput: run_qinput(run, op); break;
      case kQOutput: run_qoutput(run, op); break;
      case kQConv: run_qconv(run, op); break;
      default: op.kind < kQInput ? run_pixels(run, op) : run_qpixels(run, op);
    }
    const bool leaves = op.kind == kOutput || op.kind == kQOutput;
    for (int s = 0; s < call.B && !leaves; s++) run.view(op.out, s).settle();
    if (call.profile) {
      call.profile[2 * i] += seconds() - start - linked;
      call.profile[2 * i + 1] += positions(run, op);
    }
  }
  for (int s = 0; s < call.B; s++) run.arena(s)[0] = 1.f;
}

}  // namespace SKC_ISA

#define SKC_JOIN2(a, b) a##b
#define SKC_JOIN(a, b) SKC_JOIN2(a, b)
void SKC_JOIN(run_, SKC_ISA)(const Call& call, Pool& pool) { SKC_ISA::execute(call, pool); }

}  // namespace skc
