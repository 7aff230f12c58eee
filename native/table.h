// Which ioctls there are, what each takes, and what must be filled in: nothing else is passed on.
#pragma once

#include "abi.h"
#include "references.h"

namespace vmexit {

enum class Arg { kNone, kInteger, kStruct, kArray, kSized };

// Adding a request is one row in table.cc and one in src/uapi/ioctls.ts. The size and direction of a struct
// are in the request itself (_IOC_SIZE, _IOC_DIR).
struct Row {
  const char* name;
  unsigned long request;
  uint32_t on;
  Arg arg = Arg::kNone;
  Kind makes = kSystem;  // the kind of fd that it returns, if any
  // kArray: a header with a count in it, then elements.
  size_t count_offset = 0;
  size_t element = 0;  // kStruct: the struct's size where the request does not tell it, else 0
  uint32_t max = 0;
  // kStruct: its pointers and file descriptors.
  const Reference* references = nullptr;
  size_t reference_count = 0;
  // Of what succeeded, for what the kernel uses from now on.
  void (*done)(Handle* on, const uint8_t* argument, const Resolved& references) = nullptr;
  // Where in the struct the fd comes out that it makes; else it is what ioctl(2) returns.
  int fd_offset = -1;
};

// kSized: KVM reads or writes as much as the guest's XCR0 needs (KVM_CAP_XSAVE2), whatever size the request
// names. All of XCR0's components together take less than 16 KiB (SDM volume 1, 13.5).
constexpr size_t kXsaveLeast = 4096;
constexpr size_t kXsaveMost = 64 << 10;

// nullptr for a request that is not in the table.
const Row* Find(unsigned long request);

// requests() -> the table, for the test that holds it against the one in src/uapi.
Napi::Value Requests(const Napi::CallbackInfo& info);

}  // namespace vmexit
