// What an argument holds that JS must not: pointers into this process, and file descriptors. JS gives handles
// and bytes beside the struct; a row says where they go, and what the kernel will read or write there.
#pragma once

#include <vector>

#include "handle.h"

namespace vmexit {

struct Inside;

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
  // Of bytes that are a command's struct, with references of its own: what there is, by command.
  const Inside* inside = nullptr;
  size_t inside_count = 0;
};

// One command: what its struct's pointer leads to. Its references are given after that.
struct Inside {
  static constexpr uint16_t kList = 0xffff;  // a struct that ends in a list, as long as the caller says

  uint32_t id;                // the first 32 bits of the argument
  const char* family;         // for the test that holds it against the table in src/uapi
  bool (*of)(const Handle&);  // whether it is a command of this handle's
  uint16_t size;              // of the struct; 0: the field is no pointer
  const Reference* references = nullptr;
  size_t reference_count = 0;
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
  // What the kernel wrote, into the arrays that were given; where it failed, into those that it reads as
  // well, for a firmware's answer may be there.
  void CopyOut(bool failed);
  // The argument as the kernel left it, but for the fields that were filled in: those stay JS's own.
  void TakeOut(const std::vector<uint8_t>& argument, std::vector<uint8_t>* bytes) const;

  // The mapping that a place of this number lies in, if one was given.
  std::shared_ptr<Mapping> mapping(size_t index) const {
    return index < items_.size() ? items_[index].mapping : nullptr;
  }

 private:
  struct Field {
    size_t offset;
    size_t size;
  };
  struct Item {
    Napi::Value value;
    uint64_t offset = 0;
    bool place = false;
    std::shared_ptr<Mapping> mapping;
    std::vector<uint8_t> bytes;
    std::vector<Field> fields;  // filled in, in these bytes
    bool in = false;
    bool out = false;
  };
  // Fills in one field with what is given next, and what is inside of that.
  bool FillOne(Napi::Env env, const char* name, const Reference& row, const Handle& on, uint8_t* argument,
               std::vector<Field>* fields, size_t offset, int* error);
  bool FillInside(Napi::Env env, const char* name, const Reference& row, const Handle& on, uint8_t* argument,
                  std::vector<Field>* fields, int* error);
  bool FillValue(Napi::Env env, const char* name, const Reference& row, int64_t length, Item* item,
                 uint8_t* field);
  std::vector<Item> items_;
  std::vector<Field> fields_;  // filled in, in the argument
  size_t next_ = 0;
};

}  // namespace vmexit
