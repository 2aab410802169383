// What differs between operating systems and processors outside the kernels; everything else is plain C++.
#pragma once
#include <cstddef>

namespace skc {

// Tells the processor that this thread spins.
inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Asks for large pages under a buffer; on Linux, elsewhere nothing happens. Once per buffer, and `again`
// where it may be a new one at an old address.
void want_huge_pages(const void* data, size_t bytes, bool again = false);

}  // namespace skc
