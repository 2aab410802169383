// The int8 kernels of one instruction set against scalar integers, between guards: in front of a
// buffer lies a pattern that must survive, behind it a page that must not be touched.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#define SKC_CAT2(a, b) a##b
#define SKC_CAT(a, b) SKC_CAT2(a, b)
#include "kernels/int8_table.cpp"

namespace {

using namespace skc;

std::mt19937 g_random(1);
int g_wrong = 0;
const char* g_kernel = "";

int between(int low, int high) { return low + (int)(g_random() % (unsigned)(high - low + 1)); }
int up(int n, int to) { return (n + to - 1) / to * to; }

void check(bool right, const char* what, double made = 0, double want = 0) {
  if (right) return;
  if (g_wrong++ < 20) std::printf("%s: %s: %g instead of %g\n", g_kernel, what, made, want);
}

// n bytes that end where an inaccessible page begins.
class Guarded {
 public:
  explicit Guarded(long n) : size(n) {
    const long page = sysconf(_SC_PAGESIZE), pages = (n + 256 + page - 1) / page;
    length_ = (pages + 1) * page;
    base_ = static_cast<uint8_t*>(
        mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + pages * page, page, PROT_NONE);
    front_ = pages * page - n;
    std::memset(base_, 0xA5, front_);
    data = base_ + front_;
    for (long i = 0; i < n; i++) data[i] = (uint8_t)g_random();
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() {
    for (long i = 0; i < front_; i++)
      if (base_[i] != 0xA5) {
        check(false, "wrote in front of a buffer");
        break;
      }
    munmap(base_, length_);
  }
  template <class T>
  T* as() { return reinterpret_cast<T*>(data); }
  long size;
  uint8_t* data;

 private:
  uint8_t* base_;
  long length_, front_;
};

const QKernels& kernels() { return SKC_CAT(q_kernels_, SKC_ISA)(); }

// A random rectangle, its rounding, and an input whose supports just fit. One weight in three and one
// input in three is the largest or the smallest there is.
struct Case {
  QTile t{};
  int H, W, cs, ci, co;
  std::vector<int8_t> w;  // [kh][kw][ci][co]
  Case(bool depthwise, int kh, int kw, int stride, int dilation) {
    co = between(1, 70);
    ci = depthwise ? 1 : between(1, 40);
    cs = depthwise ? up(co, 16) : ci <= 4 ? 4 : up(ci, 16);
    t.kh = kh, t.kw = kw, t.sh = t.sw = stride, t.dh = t.dw = dilation;
    t.y0 = between(0, 2), t.y1 = t.y0 + between(1, 6), t.x0 = between(0, 2), t.x1 = t.x0 + between(1, 18);
    H = (t.y1 - 1) * stride + (kh - 1) * dilation + 1, W = (t.x1 - 1) * stride + (kw - 1) * dilation + 1;
    t.row = (long)W * cs, t.col = cs;
    t.quads = depthwise ? (kh + 3) / 4 : (ci + 3) / 4;
    for (long i = 0; i < (long)kh * kw * ci * co; i++) w.push_back(extreme(-128, 127));
    const int made = between(0, 3);
    t.made = made == 0 ? Made::kFloat : made == 1 ? Made::kIndex : Made::kByte;
    const int most = t.made == Made::kIndex ? 4095 : 255, zero = between(0, most);
    t.shift = zero, t.lo = (float)-zero, t.hi = (float)(most - zero);
    if (between(0, 2) == 0) t.lo = (float)-zero + between(0, zero);
    if (t.made == Made::kFloat) t.lo = -1e30f, t.hi = between(0, 1) ? 1e30f : 6.f;
  }
  static int8_t extreme(int low, int high) {
    const int kind = between(0, 5);
    return (int8_t)(kind == 0 ? low : kind == 1 ? high : between(low, high));
  }
  int weight(int ky, int kx, int i, int c) const { return w[(((long)ky * t.kw + kx) * ci + i) * co + c]; }
  int64_t sum(const uint8_t* x, int y, int xx, int c, bool depthwise) const {
    int64_t s = 0;
    for (int ky = 0; ky < t.kh; ky++)
      for (int kx = 0; kx < t.kw; kx++)
        for (int i = 0; i < ci; i++) {
          const long at = ((long)(y * t.sh + ky * t.dh) * W + xx * t.sw + kx * t.dw) * cs;
          s += (int64_t)x[at + (depthwise ? c : i)] * weight(ky, kx, i, c);
        }
    return s;
  }
};

void convolve(bool depthwise, int kh, int kw, int stride, int dilation) {
  Case k(depthwise, kh, kw, stride, dilation);
  QTile& t = k.t;
  const int panels = up(k.co, 16) / 16;
  Guarded x((long)k.H * k.W * k.cs);
  for (long i = 0; i < x.size; i++)
    if (between(0, 2) == 0) x.data[i] = between(0, 1) ? 255 : 0;
  const long depth = depthwise ? (long)kw * t.quads * 64 : (long)kh * kw * t.quads * 64;
  Guarded w(panels * depth), bias(4L * panels * 16), mult(4L * panels * 16);
  std::memset(w.data, 0, w.size);
  std::memset(bias.data, 0, bias.size), std::memset(mult.data, 0, mult.size);
  for (int ky = 0; ky < kh; ky++)
    for (int kx = 0; kx < kw; kx++)
      for (int i = 0; i < k.ci; i++)
        for (int c = 0; c < k.co; c++) {
          const long tap = depthwise ? (long)(kx * t.quads + ky / 4) * 64 + c % 16 * 4 + ky % 4
                                     : (((long)ky * kw + kx) * t.quads + i / 4) * 64 + c % 16 * 4 + i % 4;
          w.data[c / 16 * depth + tap] = (uint8_t)k.weight(ky, kx, i, c);
        }
  for (int c = 0; c < k.co; c++) {
    bias.as<int32_t>()[c] = between(-100000, 100000);
    mult.as<float>()[c] = (between(0, 9) ? 1 : -1) * std::ldexp((float)between(1, 1 << 20), -34 + between(0, 6));
    if (between(0, 3) == 0) mult.as<float>()[c] = .5f;  // halves, to round to even
  }
  t.x = x.data, t.w = w.as<int8_t>(), t.bias = bias.as<int32_t>(), t.mult = mult.as<float>();
  t.p0 = between(0, panels - 1), t.p1 = between(t.p0 + 1, panels);
  t.stride = (t.p1 - t.p0) * 16;
  const int n = (t.y1 - t.y0) * (t.x1 - t.x0);
  Guarded out((long)n * t.stride * (int)t.made);
  t.tmp = out.data;
  depthwise ? kernels().depthwise(t) : kernels().conv(t);
  for (int y = t.y0, p = 0; y < t.y1; y++)
    for (int xx = t.x0; xx < t.x1; xx++, p++)
      for (int c = t.p0 * 16; c < t.p1 * 16 && c < k.co; c++) {
        const int64_t acc = k.sum(x.data, y, xx, c, depthwise) + t.bias[c];
        float v = (float)(int32_t)acc * t.mult[c];
        v = std::fmin(std::fmax(v, t.lo), t.hi);
        const long at = p * t.stride + c - t.p0 * 16;
        if (t.made == Made::kFloat) {
          check(out.as<float>()[at] == v, "number", out.as<float>()[at], v);
          continue;
        }
        const int want = (int)std::nearbyint(v) + t.shift;
        const int made = t.made == Made::kIndex ? out.as<uint16_t>()[at] : out.data[at];
        check(made == want, "whole number", made, want);
      }
}

void dense() { convolve(false, between(1, 5), between(1, 5), between(1, 3), between(1, 2)); }
void pointwise() { convolve(false, 1, 1, 1, 1); }
void depthwise() {
  const int side = between(0, 1) ? between(0, 1) * 2 + 3 : between(1, 9);
  convolve(true, side, between(0, 2) ? side : between(1, 4), between(1, 3), between(1, 2));
}

void store() {
  const int width = between(1, 9) * 16, n = between(1, 20), col = width + between(0, 2) * 16;
  const bool wide = between(0, 3) == 0, table = wide || between(0, 1);
  const int entries = wide ? between(300, 4096) : 256;
  Guarded tmp((long)n * width * (wide ? 2 : 1)), map(up(entries, 256)), out((long)(n - 1) * col + width), flags(n);
  for (int i = 0; i < n * width && wide; i++) tmp.as<uint16_t>()[i] %= entries;
  std::vector<uint8_t> want(n * width);
  for (int i = 0; i < n * width; i++) {
    const int v = wide ? tmp.as<uint16_t>()[i] : tmp.data[i];
    want[i] = table ? map.data[v] : v;
  }
  std::vector<uint8_t> differs(n);
  for (int x = 0; x < n; x++) {
    if (between(0, 1)) std::memcpy(out.data + x * col, want.data() + x * width, width);
    if (between(0, 3) == 0) out.data[x * col + between(0, width - 1)] ^= 1;
    flags.data[x] = 0;
    differs[x] = std::memcmp(out.data + x * col, want.data() + x * width, width) != 0;
  }
  kernels().store({tmp.data, width, n, width, wide, table ? map.data : nullptr, entries, out.data, col, flags.data});
  for (int x = 0; x < n; x++) {
    check(std::memcmp(out.data + x * col, want.data() + x * width, width) == 0, "bytes");
    check((flags.data[x] != 0) == differs[x], "whether they changed", flags.data[x], differs[x]);
  }
}

void distance() {
  const int n = between(1, 20) * 16;
  Guarded a(n), b(n);
  if (between(0, 1)) std::memcpy(a.data, b.data, n), a.data[between(0, n - 1)] += 1;
  int want = 0;
  for (int i = 0; i < n; i++) want += std::abs((int)a.data[i] - b.data[i]);
  const int made = kernels().distance(a.data, b.data, n);
  check(made == want, "sum", made, want);
}

}  // namespace

int main(int argc, char** argv) {
  const std::pair<const char*, void (*)()> all[] = {
      {"dense", dense}, {"pointwise", pointwise}, {"depthwise", depthwise}, {"store", store}, {"distance", distance}};
  int ran = 0;
  for (const auto& [name, kernel] : all) {
    if (argc < 2) std::printf("%s\n", name);
    if (argc < 2 || std::strcmp(argv[1], name)) continue;
    g_kernel = name;
    for (; ran < 200; ran++) kernel();
    std::printf("%d cases, %d wrong\n", ran, g_wrong);
  }
  return argc >= 2 && (ran == 0 || g_wrong);
}
