#include "references.h"

#include <errno.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

namespace vmexit {

namespace {

// More than any row has: a longer list is a mistake, and is not to be copied.
constexpr uint32_t kMost = 64;
constexpr size_t kRoom = 64 << 10;

bool Refuse(Napi::Env env, const char* name, const Reference& row, const std::string& reason) {
  Invalid(env, std::string(name) + ": " + row.name + " " + reason);
  return false;
}

void Put(uint8_t* field, uint8_t size, uint64_t value) { memcpy(field, &value, size); }

bool Nothing(const Napi::Value& value) { return value.IsEmpty() || value.IsNull() || value.IsUndefined(); }

}  // namespace

bool Resolved::Collect(Napi::Env env, const char* name, Napi::Value given) {
  if (given.IsUndefined()) return true;
  const auto refuse = [&](const char* reason) {
    napi_value thrown = nullptr;
    napi_get_and_clear_last_exception(env, &thrown);  // a getter's own
    Invalid(env, std::string(name) + ": " + reason);
    return false;
  };
  uint32_t count = 0;
  if (!given.IsArray() || napi_get_array_length(env, given, &count) != napi_ok)
    return refuse("references must be an array");
  if (count > kMost) return refuse("there are at most 64 references");
  items_.resize(count);
  for (uint32_t i = 0; i < count; i++) {
    napi_value value = nullptr;
    if (napi_get_element(env, given, i, &value) != napi_ok) return refuse("a reference cannot be read");
    Item& item = items_[i];
    item.value = Napi::Value(env, value);
    if (!item.value.IsObject() || item.value.IsTypedArray() || item.value.IsExternal()) continue;
    napi_value memory = nullptr;
    napi_value offset = nullptr;
    if (napi_get_named_property(env, value, "memory", &memory) != napi_ok ||
        napi_get_named_property(env, value, "offset", &offset) != napi_ok)
      return refuse("a reference cannot be read");
    item.place = true;
    item.value = Napi::Value(env, memory);
    if (!ToU64(env, Napi::Value(env, offset), "offset", &item.offset)) return false;
  }
  return true;
}

bool Resolved::Fill(Napi::Env env, const char* name, const Reference* rows, size_t count, const Handle& on,
                    uint8_t* argument, int* error) {
  for (const Reference* row = rows; row < rows + count; row++) {
    for (uint32_t i = 0; i < row->repeat; i++) {
      const size_t offset = size_t{i} * row->stride;
      if (!FillOne(env, name, *row, on, argument + offset, &fields_, offset, error)) return false;
    }
  }
  if (next_ >= items_.size()) return true;
  Invalid(env, std::string(name) + " has " + std::to_string(next_) + " references");
  return false;
}

bool Resolved::FillOne(Napi::Env env, const char* name, const Reference& row, const Handle& on,
                       uint8_t* argument, std::vector<Field>* fields, size_t offset, int* error) {
  if (row.inside) return FillInside(env, name, row, on, argument, fields, error);
  if (next_ >= items_.size()) items_.emplace_back();
  Item* const item = &items_[next_++];
  if (row.applies && !row.applies(argument)) {
    return Nothing(item->value) || Refuse(env, name, row, "is no reference in this argument");
  }
  int64_t length = 0;
  if (row.is != Reference::kFd) {
    length = row.length(on, argument);
    if (length < 0 && length != kUnknownLength) {
      *error = static_cast<int>(-length);
      return false;
    }
  }
  fields->push_back({offset + row.offset, row.size});
  return FillValue(env, name, row, length, item, argument + row.offset);
}

bool Resolved::FillInside(Napi::Env env, const char* name, const Reference& row, const Handle& on,
                          uint8_t* argument, std::vector<Field>* fields, int* error) {
  uint32_t id = 0;
  memcpy(&id, argument, sizeof(id));
  const Inside* const end = row.inside + row.inside_count;
  const Inside* const inside =
      std::find_if(row.inside, end, [&](const Inside& other) { return other.id == id && other.of(on); });
  // Such as a vCPU whose VM is no TDX guest.
  if (std::none_of(row.inside, end, [&](const Inside& other) { return other.of(on); })) {
    *error = ENOTTY;
    return false;
  }
  if (inside == end) {
    Invalid(env, std::string(name) + ": command " + std::to_string(id) + " is not in the addon's table");
    return false;
  }
  if (next_ >= items_.size()) items_.emplace_back();
  const size_t index = next_++;
  if (inside->size == 0)
    return Nothing(items_[index].value) || Refuse(env, name, row, "is no reference in this argument");
  const bool list = inside->size == Inside::kList;
  fields->push_back({row.offset, row.size});
  if (Nothing(items_[index].value)) return Refuse(env, name, row, "is missing");
  if (!FillValue(env, name, row, list ? kUnknownLength : inside->size, &items_[index], argument + row.offset))
    return false;
  // The bytes stay where they are when the vector of items grows: a vector is moved with them.
  static_assert(std::is_nothrow_move_constructible_v<Item>);
  uint8_t* const bytes = items_[index].bytes.data();
  std::vector<Field> inner;
  for (size_t i = 0; i < inside->reference_count; i++) {
    if (!FillOne(env, name, inside->references[i], on, bytes, &inner, 0, error)) return false;
  }
  items_[index].fields = std::move(inner);
  return true;
}

bool Resolved::FillValue(Napi::Env env, const char* name, const Reference& row, int64_t length, Item* item,
                         uint8_t* field) {
  const bool given = !Nothing(item->value);
  static constexpr uint8_t kZero[8] = {};
  if (memcmp(field, kZero, row.size) != 0)
    return Refuse(env, name, row, "is filled in from the references, and must be 0 in the argument");
  if (row.is == Reference::kFd) {
    if (item->place) return Refuse(env, name, row, "is a file descriptor, and no place in memory");
    Handle* handle = given ? Unwrap(env, item->value, row.kinds, row.name) : nullptr;
    if (given && !handle) return false;
    Put(field, row.size, given ? static_cast<uint64_t>(static_cast<int64_t>(handle->fd)) : ~uint64_t{0});
    return true;
  }
  if (!given) {
    Put(field, row.size, 0);
    return !row.required || length == 0 || Refuse(env, name, row, "is missing");
  }
  if (row.is == Reference::kPlace) {
    Handle* memory = Unwrap(env, item->value, row.kinds, row.name);
    if (!memory) return false;
    item->mapping = memory->mapping;
    if (item->offset > item->mapping->size ||
        static_cast<uint64_t>(length) > item->mapping->size - item->offset)
      return Refuse(env, name, row, "reaches beyond its memory");
    Put(field, row.size, reinterpret_cast<uint64_t>(item->mapping->data) + item->offset);
    return true;
  }
  if (item->place || !item->value.IsTypedArray() ||
      item->value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    return Refuse(env, name, row, "must be a Uint8Array");
  auto array = item->value.As<Napi::Uint8Array>();
  // Another thread could write it between the copy and the copy back.
  if (!array.ArrayBuffer().IsArrayBuffer()) return Refuse(env, name, row, "must not be shared");
  const size_t bytes = array.ByteLength();
  const size_t wanted = length == kUnknownLength ? bytes : static_cast<size_t>(length);
  if (length == kUnknownLength ? bytes > kRoom : row.way & Reference::kIn && bytes != wanted)
    return Refuse(env, name, row,
                  length == kUnknownLength ? "has more than 65536 bytes"
                                           : "must have " + std::to_string(wanted) + " bytes");
  // What the kernel only writes, and has room for: in its place. No JS runs until it is there.
  if (row.way == Reference::kOut && length != kUnknownLength && bytes >= wanted) {
    Put(field, row.size, reinterpret_cast<uint64_t>(array.Data()));
    return true;
  }
  item->bytes.resize(length == kUnknownLength ? kRoom : wanted);
  if (row.way & Reference::kIn && bytes > 0) memcpy(item->bytes.data(), array.Data(), bytes);
  item->in = row.way & Reference::kIn;
  item->out = row.way & Reference::kOut;
  Put(field, row.size, reinterpret_cast<uint64_t>(item->bytes.data()));
  return true;
}

void Resolved::CopyOut(bool failed) {
  for (Item& item : items_) {
    if (!item.out || (failed && !item.in)) continue;
    for (const Field& field : item.fields) memset(item.bytes.data() + field.offset, 0, field.size);
    auto array = item.value.As<Napi::Uint8Array>();
    const size_t size = std::min(array.ByteLength(), item.bytes.size());
    if (size > 0) memcpy(array.Data(), item.bytes.data(), size);
  }
}

void Resolved::TakeOut(const std::vector<uint8_t>& argument, std::vector<uint8_t>* bytes) const {
  std::vector<uint8_t> taken = argument;
  for (const Field& field : fields_)
    memcpy(taken.data() + field.offset, bytes->data() + field.offset, field.size);
  *bytes = std::move(taken);
}

}  // namespace vmexit
