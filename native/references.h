// What an argument holds that JS must not: pointers into this process, and file descriptors. JS gives handles
// and bytes beside the struct; a row says where they go, and what the kernel will read or write there.
#pragma once

#include <vector>

#include "handle.h"

namespace vmexit {

struct Reference {
  // What JS gives: a handle whose file descriptor is meant; memory and an offset into it; or bytes, of which
  // the kernel sees a copy.
  enum Is : uint8_t { kFd, kPlace, kBytes };
  enum Way : uint8_t { kIn = 1, kOut = 2 };

  const char* name;
  Is is;
  uint8_t way;
  uint8_t size;  // of the field: a file descriptor has 4 bytes, or 8 in an argument of KVM_ENABLE_CAP
  uint16_t offset;
  uint32_t kinds = 0;   // of handles: kFd and kPlace
  uint32_t repeat = 1;  // in an array of structs
  uint32_t stride = 0;
  // Bytes that the kernel reads or writes there, or a negated errno. `argument` begins at this reference's
  // struct.
  int64_t (*length)(const Handle& on, const uint8_t* argument) = nullptr;
  // Whether the field is a reference at all: in a union its neighbours tell. Without it, always.
  bool (*applies)(const uint8_t* argument) = nullptr;
  // Without it the ioctl is refused when its length is above 0: address 0 of this process is nobody's memory.
  bool required = false;
};

// Where a length is nobody's but the kernel's: what is newer than this table has room for so much.
constexpr int64_t kUnknownLength = -4096;

// What the references of one call come to. It owns the copies, and keeps mappings while the kernel uses them.
class Resolved {
 public:
  // Takes the values out of the array: getters may run, so before any handle is looked at. Gives false with a
  // JS exception pending.
  bool Collect(Napi::Env env, const char* name, Napi::Value given);
  // Fills in the fields of `argument`. No JS runs. Gives false with a JS exception pending, or with *error
  // set.
  bool Fill(Napi::Env env, const char* name, const Reference* rows, size_t count, const Handle& on,
            uint8_t* argument, int* error);
  // What the kernel wrote, into the arrays that were given.
  void CopyOut();

  // The mapping that a place of this number lies in, if one was given.
  std::shared_ptr<Mapping> mapping(size_t index) const {
    return index < items_.size() ? items_[index].mapping : nullptr;
  }

 private:
  struct Item {
    Napi::Value value;
    uint64_t offset = 0;
    bool place = false;
    std::shared_ptr<Mapping> mapping;
    std::vector<uint8_t> bytes;
    bool out = false;
  };
  bool FillOne(Napi::Env env, const char* name, const Reference& row, Item* item, const Handle& on,
               uint8_t* argument, int* error);
  std::vector<Item> items_;
};

}  // namespace vmexit
