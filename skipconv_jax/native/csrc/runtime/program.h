// The compact program one call executes: tensors, operations, and where everything lies in the arena.
// Plain 32-bit integers, written by builder.py as one array; the order of the fields is the format.
#pragma once
#include <cstdint>

namespace skc {

constexpr int32_t kMagic = 0x534b4332;
constexpr int kCell = 4;       // side, in pixels, of the cells in which change is tracked
constexpr int kPanel = 32;     // output channels of one packed weight panel
constexpr int kMaxSources = 8;
constexpr int kIsaLevels = 3;  // 0 portable, 1 AVX2, 2 AVX-512

enum OpKind : int32_t { kInput, kConv, kAdd, kPool, kAffine, kConcat, kMean, kBinary, kOutput };
enum Act : int32_t { kNone, kRelu, kRelu6, kSwish, kSigmoid, kTanh, kHardSwish, kElu, kGelu, kExp, kAbs,
                     kSqrt, kRsqrt, kSquare };
enum Algo : int32_t { kDirect, kWinograd, kDepthwise, kGrouped };
enum Policy : int32_t { kPrevious, kReference, kAccumulate };
enum PoolKind : int32_t { kMax, kMeanAll, kMeanValid, kSumAll };
enum Binary : int32_t { kTimes, kPlus, kMinus, kOver, kLarger, kSmaller, kMinusFrom, kInto };
enum Gate : int32_t { kNorm, kAlways, kLinear, kMagnitude };

// Offsets count floats from the start of one stream's arena; -1 means "not stored".
// Padded buffers are [Hp][Wp][Cs] with the frame at (pt, pl); their border stays zero for ever.
struct Tensor {
  int32_t H, W, C, Cs, pt, pl, Hp, Wp;
  int32_t cur;    // values after this frame
  int32_t delta;  // change of this frame, zero where nothing changed; shared scratch, see `prev`
  int32_t m;      // [Hp][Wp] sum over channels of |delta|; shares the life of `delta`
  int32_t cells;  // {int any, stale_any; bytes changed[ch * cw], stale[ch * cw]}
  int32_t ch, cw;
  int32_t prev;   // tensor that used the scratch before this one: its changed cells are stale here
  int32_t reserved;
};

struct Op {
  int32_t kind, out, res, act, nsrc;
  int32_t src[kMaxSources], fh[kMaxSources], fw[kMaxSources];  // sources, nearest upsampling factors
  int32_t algo, kh, kw, sh, sw, dh, dw, pt, pl, groups;
  int32_t policy, gate, b, nbh, nbw;
  int32_t z, zpitch;           // pre-activation output, pitch of one row in floats
  int32_t w, bias;             // offsets in the weight arena
  int32_t gp;                  // offset in the gate parameters
  int32_t mask;                // offset in the masks of one stream
  int32_t ref, acc;            // reference tiles, accumulated norms
  int32_t sig;                 // last threshold seen, last mask
  int32_t io, mode, count;     // external buffer; pool kind; channels per source, ...
  int32_t top;                 // largest |x| per block and channel of a scaled input
  int32_t reserved[7];
};

struct Header {
  int32_t magic, n_tensors, n_ops, state, masks, n_in, n_out, reserved;
};

static_assert(sizeof(Tensor) == 16 * 4, "builder.py packs 16 integers");
static_assert(sizeof(Op) == 64 * 4, "builder.py packs 64 integers");

struct Call {
  const Header* head;
  const Tensor* tensors;
  const Op* ops;
  const float* weights;
  const float* gates;
  float* arena;  // (B, head->state)
  int B;
  const float* const* in;
  float* const* out;
  bool kept;     // out holds the last frame's results: only what changed is written
  float* masks;  // (B, head->masks)
  int threads;
  double* profile;  // seconds per operation, or null
};

// Header, tensors and operations of a program of `n` words; false if it is none of this format.
inline bool read_program(const int32_t* words, int64_t n, Call& call) {
  constexpr int64_t kHeader = sizeof(Header) / 4, kTensor = sizeof(Tensor) / 4, kOp = sizeof(Op) / 4;
  call.head = reinterpret_cast<const Header*>(words);
  if (n < kHeader || call.head->magic != kMagic) return false;
  const int64_t ops = kHeader + kTensor * call.head->n_tensors;
  call.tensors = reinterpret_cast<const Tensor*>(words + kHeader);
  call.ops = reinterpret_cast<const Op*>(words + ops);
  return n == ops + kOp * call.head->n_ops;
}

class Pool;
using RunFn = void (*)(const Call&, Pool&);
void run_portable(const Call&, Pool&);
void run_avx2(const Call&, Pool&);
void run_avx512(const Call&, Pool&);

}  // namespace skc
