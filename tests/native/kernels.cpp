// Every kernel of one instruction set against scalar double precision, between guards: in front of a
// buffer lies a pattern that must survive, behind it a page that must not be touched.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/activations.h"
#include "kernels/depthwise.h"
#include "kernels/gate.h"
#include "kernels/pixels.h"
#include "kernels/winograd.h"

namespace skc {
namespace SKC_ISA {
namespace {

std::mt19937 g_random(1);
int g_wrong = 0;
const char* g_kernel = "";

int between(int low, int high) { return low + (int)(g_random() % (unsigned)(high - low + 1)); }
float normal() { return std::normal_distribution<float>()(g_random); }
int up16(int n) { return (n + 15) / 16 * 16; }

void check(bool right, const char* what, double made = 0, double want = 0) {
  if (right) return;
  if (g_wrong++ < 20) std::printf("%s: %s: %g instead of %g\n", g_kernel, what, made, want);
}

void near(double made, double want, double tolerance = 2e-5) {
  if (std::isnan(want) || std::isinf(want))
    return check(std::isnan(want) ? std::isnan(made) : made == want, "not shown", made, want);
  check(std::fabs(made - want) <= tolerance * std::fmax(1.0, std::fabs(want)), "value", made, want);
}

// n floats that end where an inaccessible page begins; whole vectors of `slack` behind them belong to
// the buffer, where a kernel's comment says so.
class Guarded {
 public:
  explicit Guarded(long n, int slack = 0) : size(n + slack) {
    const long page = sysconf(_SC_PAGESIZE), bytes = size * 4;
    const long pages = (bytes + 256 + page - 1) / page;
    length_ = (pages + 1) * page;
    base_ = static_cast<unsigned char*>(
        mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + pages * page, page, PROT_NONE);
    front_ = pages * page - bytes;
    std::memset(base_, 0xA5, front_);
    data = reinterpret_cast<float*>(base_ + front_);
    for (long i = 0; i < size; i++) data[i] = normal();
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
  float& operator[](long i) { return data[i]; }
  long size;
  float* data;

 private:
  unsigned char* base_;
  long length_, front_;
};

struct Geometry {
  Op o{};
  Rect r;
  int H, W, cs;  // of the padded input
  Input in(const float* buffer) const { return {buffer, (long)W * cs, cs}; }
};

// A random rectangle of outputs whose supports just fit the input, with `extra` rows and columns.
Geometry geometry(int cs, int kh, int kw, int stride, int dilation, int extra = 0) {
  Geometry g;
  g.o.kh = kh, g.o.kw = kw, g.o.sh = g.o.sw = stride, g.o.dh = g.o.dw = dilation;
  const int y0 = between(0, 3), x0 = between(0, 3);
  g.r = {y0, y0 + between(1, 8), x0, x0 + between(1, 17)};
  g.H = (g.r.y1 - 1) * stride + (kh - 1) * dilation + 1 + extra;
  g.W = (g.r.x1 - 1) * stride + (kw - 1) * dilation + 1 + extra;
  g.cs = cs;
  return g;
}

using Kernel = std::vector<float>;  // [kh][kw][ci][co]

// Output (y, x, co) of channels [c0, c0 + ci) of the input.
double convolved(const Geometry& g, const float* x, const Kernel& k, int ci, int co, int y, int xx,
                 int c, int c0 = 0) {
  double sum = 0;
  for (int ky = 0; ky < g.o.kh; ky++)
    for (int kx = 0; kx < g.o.kw; kx++)
      for (int i = 0; i < ci; i++) {
        const long at = ((long)(y * g.o.sh + ky * g.o.dh) * g.W + xx * g.o.sw + kx * g.o.dw) * g.cs;
        sum += (double)x[at + c0 + i] * k[((long)(ky * g.o.kw + kx) * ci + i) * co + c];
      }
  return sum;
}

Kernel random_kernel(long n) {
  Kernel k(n);
  for (float& v : k) v = normal() * .2f;
  return k;
}

// `rows` x co as panels of 32 columns, the last of 16 if that is enough.
long pack_panels(const float* matrix, long rows, int co, float* to) {
  const float* start = to;
  for (int c = 0; c < up16(co); c += kPanel) {
    const int width = panel_width(up16(co), c / kPanel);
    for (long i = 0; i < rows; i++)
      for (int j = 0; j < width; j++) *to++ = c + j < co ? matrix[i * co + c + j] : 0.f;
  }
  return to - start;
}

void direct() {
  const int ci = between(1, 40), co = between(1, 100), cs = between(0, 1) ? ci : up16(ci);
  const Geometry g = geometry(cs, between(1, 5), between(1, 5), between(1, 3), between(1, 2));
  const long taps = (long)g.o.kh * g.o.kw * ci;
  const Kernel k = random_kernel(taps * co);
  Guarded x((long)g.H * g.W * cs), w(taps * up16(co));
  pack_panels(k.data(), taps, co, w.data);
  const int panels = (up16(co) + kPanel - 1) / kPanel, p0 = between(0, panels - 1);
  const int c0 = p0 * kPanel, c1 = up16(co);
  const long stride = c1 - c0;
  Guarded out(g.r.h() * g.r.w() * stride);
  conv_direct(g.o, g.in(x.data), g.r, w.data, ci, up16(co), p0, panels, out.data, stride);
  for (int y = g.r.y0, i = 0; y < g.r.y1; y++)
    for (int xx = g.r.x0; xx < g.r.x1; xx++, i++)
      for (int c = c0; c < c1; c++)
        near(out[i * stride + c - c0], c < co ? convolved(g, x.data, k, ci, co, y, xx, c) : 0.0);
}

void winograd() {
  const int ci = between(16, 40), co = between(1, 70), cs = up16(ci);
  const Geometry g = geometry(cs, 3, 3, 1, 1, 1);
  const Kernel k = random_kernel(9L * ci * co);
  const double G[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
  Kernel u(16L * ci * co);
  for (int a = 0; a < 4; a++)
    for (int b = 0; b < 4; b++)
      for (long n = 0; n < (long)ci * co; n++) {
        double sum = 0;
        for (int i = 0; i < 3; i++)
          for (int j = 0; j < 3; j++) sum += G[a][i] * G[b][j] * k[(i * 3 + j) * (long)ci * co + n];
        u[(a * 4 + b) * (long)ci * co + n] = (float)sum;
      }
  Guarded x((long)g.H * g.W * cs), w(16L * ci * up16(co));
  pack_panels(u.data(), 16L * ci, co, w.data);
  const int panels = (up16(co) + kPanel - 1) / kPanel;
  const long stride = up16(co);
  Guarded out(g.r.h() * g.r.w() * stride), scratch(winograd_scratch(g.r.h(), g.r.w(), cs));
  conv_winograd(g.o, g.in(x.data), g.r, w.data, ci, cs, up16(co), 0, panels, out.data, stride,
                scratch.data);
  for (int y = g.r.y0, i = 0; y < g.r.y1; y++)
    for (int xx = g.r.x0; xx < g.r.x1; xx++, i++)
      for (int c = 0; c < co; c++)
        near(out[i * stride + c], convolved(g, x.data, k, ci, co, y, xx, c), 1e-4);
}

void depthwise() {
  const int C = between(1, 70), cs = up16(C), side = between(0, 1) ? between(0, 1) * 2 + 3 : between(1, 7);
  const Geometry g = geometry(cs, side, between(0, 2) ? side : between(1, 4), between(1, 3), between(1, 2));
  const Kernel k = random_kernel((long)g.o.kh * g.o.kw * cs);
  Guarded x((long)g.H * g.W * cs), w(k.size()), out((long)g.r.h() * g.r.w() * cs);
  std::memcpy(w.data, k.data(), k.size() * 4);
  conv_depthwise(g.o, g.in(x.data), g.r, w.data, cs, out.data, cs);
  for (int y = g.r.y0, i = 0; y < g.r.y1; y++)
    for (int xx = g.r.x0; xx < g.r.x1; xx++, i++)
      for (int c = 0; c < cs; c++) {
        Kernel one((long)g.o.kh * g.o.kw);
        for (size_t t = 0; t < one.size(); t++) one[t] = k[t * cs + c];
        near(out[(long)i * cs + c], convolved(g, x.data, one, 1, 1, y, xx, 0, c));
      }
}

void grouped() {
  const int groups = between(2, 5), cig = between(1, 9), cog = between(1, 40);
  const int ci = groups * cig, co = groups * cog;
  Geometry g = geometry(up16(ci), between(1, 3), between(1, 3), between(1, 2), between(1, 2));
  g.o.groups = groups;
  const long taps = (long)g.o.kh * g.o.kw * cig;
  std::vector<Kernel> kernels;
  Guarded x((long)g.H * g.W * g.cs), w(groups * taps * up16(cog));
  float* to = w.data;
  for (int i = 0; i < groups; i++) {
    kernels.push_back(random_kernel(taps * cog));
    to += pack_panels(kernels.back().data(), taps, cog, to);
  }
  const long stride = up16(co);
  Guarded out(g.r.h() * g.r.w() * stride, kPanel);
  conv_grouped(g.o, g.in(x.data), g.r, w.data, ci, co, out.data, stride);
  for (int y = g.r.y0, i = 0; y < g.r.y1; y++)
    for (int xx = g.r.x0; xx < g.r.x1; xx++, i++)
      for (int c = 0; c < co; c++)
        near(out[i * stride + c],
             convolved(g, x.data, kernels[c / cog], cig, cog, y, xx, c % cog, c / cog * cig));
}

float broken() {
  const float bad[] = {NAN, INFINITY, -INFINITY};
  return bad[between(0, 2)];
}

// Maximum that shows NaN.
double shown_max(double a, double b) { return std::isnan(a) || std::isnan(b) ? NAN : std::fmax(a, b); }

void pooling() {
  const int C = between(1, 40), cs = up16(C), h = between(1, 5), w = between(1, 5);
  const bool largest = between(0, 1);
  Guarded x((long)h * w * cs), out(cs);
  if (between(0, 1)) x[between(0, (int)x.size - 1)] = broken();
  for (int c = 0; c < cs; c += VW)
    store(out.data + c, pool_window(x.data + c, (long)w * cs, cs, h, w, largest));
  for (int c = 0; c < cs; c++) {
    double want = largest ? -INFINITY : 0;
    for (int i = 0; i < h * w; i++)
      want = largest ? shown_max(want, x[(long)i * cs + c]) : want + x[(long)i * cs + c];
    near(out[c], want);
  }
}

void elementwise() {
  const int n = between(1, 6) * 16, mode = between(kBinaryMul, kBinaryRdiv);
  Guarded a(n), b(n), out(n);
  if (between(0, 1)) (between(0, 1) ? a : b)[between(0, n - 1)] = broken();
  for (int c = 0; c < n; c += VW) store(out.data + c, binary(mode, load(a.data + c), load(b.data + c)));
  for (int c = 0; c < n; c++) {
    const double p = a[c], q = b[c];
    const double want[] = {p * q, p + q, p - q, p / q, shown_max(p, q), -shown_max(-p, -q), q - p, q / p};
    near(out[c], want[mode]);
  }
}

double reference(int act, double x, double a0, double a1, double slope) {
  auto clamp = [](double v, double lo, double hi) { return v < lo ? lo : v > hi ? hi : v; };
  switch (act) {
    case kNone: return x;
    case kRelu:
    case kRelu6:
    case kClip: return clamp(x, a0, a1);
    case kSwish: return x * (1 / (1 + std::exp(-x)));
    case kSigmoid: return 1 / (1 + std::exp(-x));
    case kTanh: return std::tanh(x);
    case kHardSwish: return x * clamp(x + 3, 0, 6) / 6;
    case kHardSigmoid: return clamp(a0 * x + a1, 0, 1);
    case kLeakyRelu: return x >= 0 ? x : a0 * x;
    case kPrelu: return x >= 0 ? x : slope * x;
    case kElu: return x > 0 ? x : a0 * std::expm1(x);
    case kGelu: return x * (x < -40 ? 0. : .5 * std::erfc(-x / std::sqrt(2.)));
    case kGeluTanh: return x * .5 * (1 + std::tanh(.7978845608 * (x + .044715 * x * x * x)));
    case kMish: return x * std::tanh(std::log1p(std::exp(std::fmin(x, 700.)))) + 0 * x;
    case kSoftplus: return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
    case kErf: return std::erf(x);
    case kExp: return std::exp(x) > 3.4028235e38 ? INFINITY : std::exp(x);
    case kLog: return std::log(x);
    case kAbs: return std::fabs(x);
    case kSqrt: return std::sqrt(x);
    case kRsqrt: return 1 / std::sqrt(x);
    default: return x * x;
  }
}

void activations() {
  const int n = between(1, 6) * 16, act = between(kNone, kSquare);
  Guarded x(n), slope(n), out(n);
  for (int c = 0; c < n; c++) {
    const int size = between(0, 3);
    x[c] = size == 3 ? broken() : normal() * (size == 0 ? 1e-3f : size == 1 ? 3.f : 30.f);
  }
  Op o{};
  o.act = act, o.slope = 0;
  o.a0 = act == kNone ? -INFINITY : act == kRelu || act == kRelu6 ? 0.f : .25f;
  o.a1 = act == kNone || act == kRelu ? INFINITY : act == kRelu6 ? 6.f : .5f;
  const Activation a(o, slope.data);
  for (int c = 0; c < n; c += VW) store(out.data + c, activate(load(x.data + c), a, c));
  for (int c = 0; c < n; c++) {
    // mish of infinity is infinity, which the formula in double says as inf * 1 + 0 * inf.
    const double want = act == kMish && x[c] == INFINITY ? INFINITY
                                                         : reference(act, x[c], o.a0, o.a1, slope[c]);
    near(out[c], want, 5e-6);
  }
}

void channels() {
  const int n = between(1, 4);
  std::vector<std::unique_ptr<Guarded>> sources;
  std::vector<const float*> from;
  for (int i = 0; i < n; i++) {
    sources.emplace_back(new Guarded(between(1, 40)));
    from.push_back(sources.back()->data);
  }
  std::vector<int32_t> runs;
  std::vector<float> want;
  for (int k = between(1, 12); k > 0; k--) {
    const int s = between(-1, n - 1), size = s < 0 ? 8 : (int)sources[s]->size;
    const int first = between(0, size - 1), length = between(1, size - first);
    runs.insert(runs.end(), {s, first, length});
    for (int i = 0; i < length; i++) want.push_back(s < 0 ? 0.f : from[s][first + i]);
  }
  Guarded out((long)want.size());
  gather_runs(from.data(), runs.data(), (int)runs.size() / 3, out.data);
  for (size_t i = 0; i < want.size(); i++) near(out[i], want[i], 0);
}

void resampling() {
  const int h = between(1, 6), w = between(1, 6), cs = up16(between(1, 40));
  const int ny = between(1, kMaxTaps), nx = between(1, kMaxTaps);
  Guarded x((long)h * w * cs), wy(ny), wx(nx), out(cs);
  std::vector<int32_t> iy(ny), ix(nx);
  std::vector<const float*> rows(ny), at(ny);
  for (int i = 0; i < ny; i++) iy[i] = between(0, h - 1), rows[i] = x.data + (long)iy[i] * w * cs;
  for (int& i : ix) i = between(0, w - 1);
  for (int c = 0; c < cs; c += VW) {
    for (int i = 0; i < ny; i++) at[i] = rows[i] + c;
    store(out.data + c, resample(at.data(), wy.data, ny, ix.data(), wx.data, nx, cs));
  }
  for (int c = 0; c < cs; c++) {
    double want = 0;
    for (int i = 0; i < ny; i++)
      for (int j = 0; j < nx; j++)
        want += (double)wy[i] * wx[j] * x[((long)iy[i] * w + ix[j]) * cs + c];
    near(out[c], want);
  }
}

void softmax() {
  const int C = between(1, 70), cs = up16(C);
  Guarded x(cs), out(cs);
  if (between(0, 3) == 0) x[between(0, C - 1)] = broken();
  softmax_pixel(x.data, C, out.data);
  double top = -INFINITY, sum = 0;
  for (int c = 0; c < C; c++) top = shown_max(top, x[c]);
  for (int c = 0; c < C; c++) sum += std::exp(x[c] - top);
  for (int c = 0; c < C; c++) near(out[c], std::exp(x[c] - top) / sum);
}

void reduction() {
  const int C = between(1, 70), mode = between(kReduceSum, kReduceMin);
  Guarded x(up16(C));
  if (between(0, 1)) x[between(0, C - 1)] = broken();
  double sum = 0, top = -INFINITY, low = -INFINITY;
  for (int c = 0; c < C; c++) sum += x[c], top = shown_max(top, x[c]), low = shown_max(low, -x[c]);
  const double want[] = {sum, sum / C, top, -low};
  near(reduce_pixel(x.data, C, mode), want[mode]);
}

void norm_gate() {
  const Geometry g = geometry(1, between(1, 4), between(1, 4), between(1, 3), between(1, 2));
  Guarded m((long)g.H * g.W, VW);
  for (long i = 0; i < m.size; i++) m[i] = std::fabs(m[i]);
  const bool bad = between(0, 2) == 0;
  const long at = ((long)g.r.y0 * g.o.sh * g.W) + g.r.x0 * g.o.sw;
  if (bad) m[at] = between(0, 1) ? NAN : INFINITY;
  const Rect origin{0, g.r.h(), 0, g.r.w()};
  const float made = support_max(g.o, m.data + at, g.W, origin);
  double want = 0;
  for (int y = g.r.y0; y < g.r.y1; y++)
    for (int x = g.r.x0; x < g.r.x1; x++) {
      double s = 0;
      for (int ky = 0; ky < g.o.kh; ky++)
        for (int kx = 0; kx < g.o.kw; kx++)
          s += m[(long)(y * g.o.sh + ky * g.o.dh) * g.W + x * g.o.sw + kx * g.o.dw];
      want = shown_max(want, s);
    }
  if (bad)
    check(!(made <= 1e30f), "a broken residual must fire", made, want);
  else
    near(made, want);
}

void linear_gate() {
  const int ci = between(1, 40), cs = between(0, 1) ? ci : up16(ci);
  Geometry g = geometry(cs, between(1, 3), between(1, 3), between(1, 2), between(1, 2));
  g.o.gate = between(0, 1) ? kLinear : kMagnitude;
  const Kernel k = random_kernel((long)g.o.kh * g.o.kw * cs);
  Guarded x((long)g.H * g.W * cs), w((long)k.size());
  std::memcpy(w.data, k.data(), k.size() * 4);
  const float made = linear_max(g.o, g.in(x.data), g.r, w.data, cs);
  if (g.o.gate == kMagnitude)
    for (long i = 0; i < x.size; i++) x[i] = std::fabs(x[i]);
  double want = -INFINITY;
  for (int y = g.r.y0; y < g.r.y1; y++)
    for (int xx = g.r.x0; xx < g.r.x1; xx++)
      want = std::fmax(want, convolved(g, x.data, k, cs, 1, y, xx, 0));
  near(made, want);
}

}  // namespace
}  // namespace SKC_ISA
}  // namespace skc

// Runs one kernel's cases; without a name, says what there is.
int main(int argc, char** argv) {
  using namespace skc::SKC_ISA;
  const std::vector<std::pair<const char*, void (*)()>> all = {
      {"direct", direct},         {"winograd", winograd},     {"depthwise", depthwise},
      {"grouped", grouped},       {"pooling", pooling},       {"elementwise", elementwise},
      {"activations", activations}, {"channels", channels},   {"resampling", resampling},
      {"softmax", softmax},       {"reduction", reduction},   {"norm_gate", norm_gate},
      {"linear_gate", linear_gate}};
  int ran = 0;
  for (const auto& [name, kernel] : all) {
    if (argc < 2) std::printf("%s\n", name);
    if (argc < 2 || std::strcmp(argv[1], name)) continue;
    skc::SKC_ISA::g_kernel = name;
    for (; ran < 200; ran++) kernel();
    std::printf("%d cases, %d wrong\n", ran, g_wrong);
  }
  return argc >= 2 && (ran == 0 || g_wrong);
}
