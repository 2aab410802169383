// Runs a program on the best instruction set of this machine, with the threads of the process.
#pragma once
#include "runtime/program.h"

namespace skc {

int isa_in_use();       // an Isa; SKIPCONV_JAX_ISA lowers it on x86-64
const QKernels& int8_kernels();
int default_threads();  // SKIPCONV_JAX_NUM_THREADS, or the cores, at most 8
void run(Call& call);   // call.threads of the shared pool, or alone where another call has it

}  // namespace skc
