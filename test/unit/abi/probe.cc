// Prints what the compiler makes of the kernel's headers, for uapi-abi.test.ts to hold src/uapi against. That
// test writes rows.inc, one TYPE, FIELD or CONSTANT for each thing that src/uapi claims. What the headers at
// hand do not have prints nothing: a constant because its row stands in an #ifdef, a struct or a field by the
// requires.
#include <errno.h>
#include <linux/stddef.h>

#include <cstddef>
#include <cstdio>
#include <type_traits>

// Older headers (6.1 has it) put an empty struct beside a flexible array: without size in C, but one byte in
// C++. That would change the size of kvm_msrs and others, and with it the numbers of their ioctls.
#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(T, member) T member[0]

#include <asm/sigcontext.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>

// A struct that the headers lack becomes an incomplete type, which the requires below can ask about.
#define TYPE(type) struct type;
#define FIELD(type, path)
#define CONSTANT(name, value)
#include "rows.inc"
#undef TYPE
#undef FIELD
#undef CONSTANT

#define TYPE(type)                                                                      \
  [](auto* t) {                                                                         \
    if constexpr (requires { sizeof(*t); }) std::printf("%s %zu\n", #type, sizeof(*t)); \
  }(static_cast<struct type*>(nullptr));

#define FIELD(type, path)                                                               \
  [](auto* t) {                                                                         \
    using T = std::remove_pointer_t<decltype(t)>;                                       \
    if constexpr (requires { t->path; })                                                \
      std::printf("%s.%s %zu %zu\n", #type, #path, offsetof(T, path), sizeof(t->path)); \
  }(static_cast<struct type*>(nullptr));

#define CONSTANT(name, value) std::printf("%s %lld\n", name, static_cast<long long>(value));

int main() {
#include "rows.inc"
}
