// Chains: 1x1 convolutions ("links") that are computed right behind what makes their input, tile by tile
// on one thread, while it is in the nearest cache. What they read is stored nowhere between frames but
// as their references.
#pragma once
#include "ops/run.h"

namespace skc {
namespace SKC_ISA {

constexpr int kChunk = 64;  // positions of a tile that go through convolution and epilogue together

// The operations that read what `o` makes, while it is made.
template <class F>
void each_link(const Run& run, const Op& o, F f) {
  for (int i = o.tail; i >= 0; i = run.call.ops[i].next) f(run.call.ops[i]);
}

// Prepares the links of `o` for a frame of stream s. True if one of them has another threshold than in
// the last frame: every block has to be looked at again, whether its input changed or not.
bool open_links(Run& run, const Op& o, int s);

// Makes the activation of x + bias in place: n positions of `cs` channels, C of them real.
void finish_positions(const Run& run, const Op& o, int C, int cs, float* x, long n);

// Evaluates the links of `o` on a rectangle of whole blocks; x is what `o` made there, [position][Cs].
// `level` counts the operations before them in the chain.
void run_links(const Run& run, const Op& o, const Rect& r, int s, const float* x, int tid, int level);

// What is left to do for a link when its place among the operations comes.
void close_link(Run& run, const Op& o);

// Multiply-accumulates of the links of `o` per position, as if all of them fired.
double link_products(const Run& run, const Op& o);

}  // namespace SKC_ISA
}  // namespace skc
