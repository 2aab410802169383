// Runs a program; compiled once per instruction set, chosen at run time.
#include <chrono>

#include "ops/run.h"

namespace skc {
namespace SKC_ISA {
namespace {

// Lists and temporaries of the calling thread, kept between calls.
struct Kept {
  std::vector<Item> items;
  std::vector<Candidate> candidates;
  std::vector<Action> fire;
  Memory memory[kMaxThreads];
};

double seconds() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void execute(const Call& call, Pool& pool) {
  static thread_local Kept kept;
  Run run{call, pool, kept.items, kept.candidates, kept.fire, kept.memory};
  for (int i = 0; i < call.head->n_ops; i++) {
    const Op& op = call.ops[i];
    const double start = call.profile ? seconds() : 0;
    run.op = &op;
    run.items.clear();
    switch (op.kind) {
      case kInput: run_input(run, op); break;
      case kConv: run_conv(run, op); break;
      case kSpatial: run_spatial(run, op); break;
      case kOutput: run_output(run, op); break;
      case kQInput: run_qinput(run, op); break;
      case kQOutput: run_qoutput(run, op); break;
      case kQConv: run_qconv(run, op); break;
      default: op.kind < kQInput ? run_pixels(run, op) : run_qpixels(run, op);
    }
    const bool leaves = op.kind == kOutput || op.kind == kQOutput;
    for (int s = 0; s < call.B && !leaves; s++) run.view(op.out, s).settle();
    if (call.profile) call.profile[i] += seconds() - start;
  }
  for (int s = 0; s < call.B; s++) run.arena(s)[0] = 1.f;
}

}  // namespace SKC_ISA

#define SKC_JOIN2(a, b) a##b
#define SKC_JOIN(a, b) SKC_JOIN2(a, b)
void SKC_JOIN(run_, SKC_ISA)(const Call& call, Pool& pool) { SKC_ISA::execute(call, pool); }

}  // namespace skc
