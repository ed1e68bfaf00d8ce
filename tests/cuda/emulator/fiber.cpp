// A place is a stack pointer; what a function must preserve lies above it on the stack.
#include "fiber.h"

#include <stdint.h>

#if defined(__x86_64__)

asm(R"(
.text
.globl ivlite_switch_fiber
.hidden ivlite_switch_fiber
.type ivlite_switch_fiber, @function
ivlite_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ivlite_switch_fiber, .-ivlite_switch_fiber
)");
// A function begins 8 bytes below a multiple of 16, with the address of its caller there: here none.
constexpr int kWords = 8, kReturn = 6;

#elif defined(__aarch64__)

asm(R"(
.text
.globl ivlite_switch_fiber
.hidden ivlite_switch_fiber
.type ivlite_switch_fiber, %function
ivlite_switch_fiber:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size ivlite_switch_fiber, .-ivlite_switch_fiber
)");
constexpr int kWords = 20, kReturn = 11;

#else
#error "the emulator switches stacks on x86-64 and aarch64"
#endif

extern "C" void ivlite_switch_fiber(void** from, void* to);

namespace ivlite::cuda::emulator {

void switch_fiber(void** from, void* to) { ivlite_switch_fiber(from, to); }

void* new_fiber(char* top, void (*entry)()) {
  uintptr_t* sp = (uintptr_t*)((uintptr_t)top & ~(uintptr_t)63) - kWords;
  for (int i = 0; i < kWords; i++) sp[i] = 0;
  sp[kReturn] = (uintptr_t)entry;
  return sp;
}

}  // namespace ivlite::cuda::emulator
