// The int8 kernels as functions of plain pointers: one table of them per instruction set (VNNI makes
// more sets than the float kernels have), chosen at run time.
//
// Bytes are stored as q minus the least q of their type, so that all are 0 to 255; padding channels
// hold whatever is computed from weights of 0.
#pragma once
#include <cstdint>

namespace skc {

constexpr int kBytePanel = 16;  // output channels of one panel of int8 weights

// What happens to an accumulator: i = round(clamp(float(acc) * mult, lo, hi)) + shift, half to even,
// as a byte or as the index of a table; or the clamped number itself.
enum class Made : int { kByte = 1, kIndex = 2, kFloat = 4 };  // the value is its bytes

// A rectangle of outputs of a convolution.
struct QTile {
  const uint8_t* x;  // first tap of output (0, 0)
  long row, col;     // bytes between rows and columns of positions
  int sh, sw, kh, kw, dh, dw;
  int quads;            // groups of 4 input channels; of depthwise convolutions, of kernel rows
  const int8_t* w;      // [panel][tap][quad][16][4], depthwise [panel][kx][quad of rows][16][4]
  const int32_t* bias;  // per output channel, -zero * sum of weights inside
  const float* mult;
  float lo, hi;
  int shift;
  int y0, y1, x0, x1;
  int p0, p1;  // panels
  Made made;
  void* tmp;  // [position][stride], panel p0 first
  long stride;
};

// Positions of one row to where they are stored.
struct QRow {
  void* tmp;  // [n][stride]; used up
  long stride;
  int n, width;  // positions, channels (a multiple of 16)
  bool wide;     // of 16-bit indices instead of bytes
  const uint8_t* table;
  int entries;
  uint8_t* out;
  long col;        // bytes between positions of `out`
  uint8_t* flags;  // per position: whether a byte changed
};

struct QKernels {
  void (*conv)(const QTile&);
  void (*depthwise)(const QTile&);
  void (*store)(const QRow&);
  // Sum of |a - b| over n bytes; whether they differ.
  int (*distance)(const uint8_t* a, const uint8_t* b, int n);
  const char* name;
};

const QKernels& q_kernels_portable();
const QKernels& q_kernels_avx2();
const QKernels& q_kernels_avx_vnni();
const QKernels& q_kernels_avx512();
const QKernels& q_kernels_avx512_vnni();
const QKernels& q_kernels_neon();

}  // namespace skc
