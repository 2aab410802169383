// The int8 kernels of one instruction set; compiled once per each of them.
#include "kernels/int8_bytes.h"
#include "kernels/int8_conv.h"
#include "kernels/int8_depthwise.h"

#define SKC_TEXT2(a) #a
#define SKC_TEXT(a) SKC_TEXT2(a)
#define SKC_JOIN2(a, b) a##b
#define SKC_JOIN(a, b) SKC_JOIN2(a, b)

namespace skc {

const QKernels& SKC_JOIN(q_kernels_, SKC_ISA)() {
  static const QKernels table{SKC_ISA::byte_conv, SKC_ISA::byte_depthwise, SKC_ISA::store_row,
                              SKC_ISA::distance, SKC_TEXT(SKC_ISA)};
  return table;
}

}  // namespace skc
