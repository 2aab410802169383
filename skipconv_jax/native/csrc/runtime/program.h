// One call: the program it executes, and the buffers it works on.
// Offsets in programs count floats from the start of one stream's arena; -1 means "not stored".
#pragma once
#include "runtime/schema.h"

namespace skc {

// Instruction sets: 0 portable, 1 AVX2, 2 AVX-512 on x86-64, where one can be lowered; 3 NEON on ARM.
enum Isa { kPortable, kAvx2, kAvx512, kNeon };

struct QKernels;

struct Call {
  const Header* head;
  const Tensor* tensors;
  const Op* ops;
  const int32_t* table;  // integers that operations refer to
  const float* weights;
  const float* gates;
  float* arena;  // (B, head->state)
  int B;
  const float* const* in;
  float* const* out;
  bool kept;     // out holds the last frame's results: only what changed is written
  float* masks;  // (B, head->masks)
  int threads;
  double* profile;  // per operation seconds and positions computed, or null
  const QKernels* q;  // of bytes
};

// Header, tensors, operations and table of a program of `n` words; false if it is none of this format.
inline bool read_program(const int32_t* words, int64_t n, Call& call) {
  constexpr int64_t kHeader = sizeof(Header) / 4, kTensor = sizeof(Tensor) / 4, kOp = sizeof(Op) / 4;
  call.head = reinterpret_cast<const Header*>(words);
  if (n < kHeader || call.head->format != kFormat) return false;
  const Header& h = *call.head;
  const int64_t ops = kHeader + kTensor * h.n_tensors, table = ops + kOp * h.n_ops;
  call.tensors = reinterpret_cast<const Tensor*>(words + kHeader);
  call.ops = reinterpret_cast<const Op*>(words + ops);
  call.table = words + table;
  return n == table + h.n_table;
}

class Pool;
using RunFn = void (*)(const Call&, Pool&);
void run_portable(const Call&, Pool&);
void run_avx2(const Call&, Pool&);
void run_avx512(const Call&, Pool&);
void run_neon(const Call&, Pool&);

}  // namespace skc
