// All that differs between systems: huge pages, pauses of a waiting core.
#include "runtime/platform.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <mutex>
#endif

namespace skc {

// State and weights are hundreds of megabytes read a few kilobytes at a time: with small pages the
// address translation shows. A known buffer is not collapsed by force, because that is not free where
// it fails. A refusal costs nothing.
void want_huge_pages(const void* data, size_t bytes, bool again) {
#if defined(__linux__)
  static std::mutex lock;
  static const void* seen[16] = {};
  static int next = 0;
  constexpr size_t kPage = 2u << 20;
  if (bytes < 4 * kPage) return;
  bool known = false;
  {
    std::lock_guard<std::mutex> hold(lock);
    for (const void* p : seen) known |= p == data;
    if (known && !again) return;
    if (!known) seen[next++ % 16] = data;
  }
  const size_t begin = ((size_t)data + kPage - 1) / kPage * kPage;
  const size_t end = ((size_t)data + bytes) / kPage * kPage;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  if (!known) madvise(reinterpret_cast<void*>(begin), end - begin, kCollapse);
#else
  (void)data, (void)bytes, (void)again;
#endif
}

}  // namespace skc
