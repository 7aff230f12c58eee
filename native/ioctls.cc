#include "ioctls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "abi.h"
#include "memory.h"
#include "run.h"

namespace vmexit {

namespace {

enum class Arg { kNone, kInteger, kStruct, kArray, kSized, kRegion };

// Adding a request is one row here and one in src/uapi/ioctls.ts. The size and direction of a struct are in
// the request itself (_IOC_SIZE, _IOC_DIR).
struct Row {
  const char* name;
  unsigned long request;
  uint32_t on;
  Arg arg = Arg::kNone;
  Kind makes = kSystem;  // the kind of fd that it returns, if any
  // kArray: a header with a count in it, then elements.
  size_t count_offset = 0;
  size_t element = 0;
  uint32_t max = 0;
};

#define NONE(name, on) \
  {                    \
#name, name, on    \
  }
#define INTEGER(name, on)          \
  {                                \
#name, name, on, Arg::kInteger \
  }
#define STRUCT(name, on)          \
  {                               \
#name, name, on, Arg::kStruct \
  }
#define ARRAY(name, on, header, count, element, max)                                     \
  {                                                                                      \
#name, name, on, Arg::kArray, kSystem, offsetof(header, count), sizeof(element), max \
  }
#define SIZED(name, on)          \
  {                              \
#name, name, on, Arg::kSized \
  }
#define MAKES(name, on, arg, kind)  \
  {                                 \
#name, name, on, Arg::arg, kind \
  }

constexpr uint64_t kPage = 4096;
constexpr uint32_t kMaxCpuidEntries = 256;  // KVM_MAX_CPUID_ENTRIES
constexpr uint32_t kMaxMsrEntries = 4096;   // above MAX_IO_MSRS (256), which the kernel answers with E2BIG

// kSized: KVM reads or writes as much as the guest's XCR0 needs (KVM_CAP_XSAVE2), whatever size the request
// names. All of XCR0's components together take less than 16 KiB (SDM volume 1, 13.5).
constexpr size_t kXsaveLeast = 4096;
constexpr size_t kXsaveMost = 64 << 10;

constexpr Row kRows[] = {
    NONE(KVM_GET_API_VERSION, kSystem),
    MAKES(KVM_CREATE_VM, kSystem, kInteger, kVm),
    INTEGER(KVM_CHECK_EXTENSION, kSystem | kVm),
    NONE(KVM_GET_VCPU_MMAP_SIZE, kSystem),
    ARRAY(KVM_GET_SUPPORTED_CPUID, kSystem, kvm_cpuid2, nent, kvm_cpuid_entry2, kMaxCpuidEntries),
    ARRAY(KVM_GET_EMULATED_CPUID, kSystem, kvm_cpuid2, nent, kvm_cpuid_entry2, kMaxCpuidEntries),
    ARRAY(KVM_GET_MSR_INDEX_LIST, kSystem, kvm_msr_list, nmsrs, __u32, kMaxMsrEntries),
    ARRAY(KVM_GET_MSR_FEATURE_INDEX_LIST, kSystem, kvm_msr_list, nmsrs, __u32, kMaxMsrEntries),

    MAKES(KVM_CREATE_VCPU, kVm, kInteger, kVcpu),
    MAKES(KVM_CREATE_GUEST_MEMFD, kVm, kStruct, kGmem),
    {"KVM_SET_USER_MEMORY_REGION", KVM_SET_USER_MEMORY_REGION, kVm, Arg::kRegion},
    {"KVM_SET_USER_MEMORY_REGION2", KVM_SET_USER_MEMORY_REGION2, kVm, Arg::kRegion},
    STRUCT(KVM_SET_MEMORY_ATTRIBUTES, kVm),
    INTEGER(KVM_SET_TSS_ADDR, kVm),
    STRUCT(KVM_SET_IDENTITY_MAP_ADDR, kVm),
    NONE(KVM_CREATE_IRQCHIP, kVm),
    STRUCT(KVM_CREATE_PIT2, kVm),
    STRUCT(KVM_IRQ_LINE, kVm),
    STRUCT(KVM_SIGNAL_MSI, kVm),
    STRUCT(KVM_GET_CLOCK, kVm),
    STRUCT(KVM_SET_CLOCK, kVm),
    STRUCT(KVM_ENABLE_CAP, kVm | kVcpu),

    STRUCT(KVM_PRE_FAULT_MEMORY, kVcpu),
    STRUCT(KVM_GET_REGS, kVcpu),
    STRUCT(KVM_SET_REGS, kVcpu),
    STRUCT(KVM_GET_SREGS, kVcpu),
    STRUCT(KVM_SET_SREGS, kVcpu),
    STRUCT(KVM_GET_SREGS2, kVcpu),
    STRUCT(KVM_SET_SREGS2, kVcpu),
    STRUCT(KVM_TRANSLATE, kVcpu),
    STRUCT(KVM_INTERRUPT, kVcpu),
    NONE(KVM_NMI, kVcpu),
    NONE(KVM_SMI, kVcpu),
    ARRAY(KVM_GET_MSRS, kSystem | kVcpu, kvm_msrs, nmsrs, kvm_msr_entry, kMaxMsrEntries),
    ARRAY(KVM_SET_MSRS, kVcpu, kvm_msrs, nmsrs, kvm_msr_entry, kMaxMsrEntries),
    ARRAY(KVM_SET_CPUID2, kVcpu, kvm_cpuid2, nent, kvm_cpuid_entry2, kMaxCpuidEntries),
    ARRAY(KVM_GET_CPUID2, kVcpu, kvm_cpuid2, nent, kvm_cpuid_entry2, kMaxCpuidEntries),
    STRUCT(KVM_GET_FPU, kVcpu),
    STRUCT(KVM_SET_FPU, kVcpu),
    STRUCT(KVM_GET_XSAVE, kVcpu),
    SIZED(KVM_GET_XSAVE2, kVcpu),
    SIZED(KVM_SET_XSAVE, kVcpu),
    STRUCT(KVM_GET_XCRS, kVcpu),
    STRUCT(KVM_SET_XCRS, kVcpu),
    STRUCT(KVM_GET_LAPIC, kVcpu),
    STRUCT(KVM_SET_LAPIC, kVcpu),
    STRUCT(KVM_GET_MP_STATE, kVcpu),
    STRUCT(KVM_SET_MP_STATE, kVcpu),
    STRUCT(KVM_GET_VCPU_EVENTS, kVcpu),
    STRUCT(KVM_SET_VCPU_EVENTS, kVcpu),
    STRUCT(KVM_GET_DEBUGREGS, kVcpu),
    STRUCT(KVM_SET_DEBUGREGS, kVcpu),
    STRUCT(KVM_SET_GUEST_DEBUG, kVcpu),
    INTEGER(KVM_SET_TSC_KHZ, kVm | kVcpu),
    NONE(KVM_GET_TSC_KHZ, kVm | kVcpu),
    NONE(KVM_KVMCLOCK_CTRL, kVcpu),
};

const Row* Find(unsigned long request) {
  const auto* row = std::find_if(std::begin(kRows), std::end(kRows),
                                 [request](const Row& row) { return row.request == request; });
  return row == std::end(kRows) ? nullptr : row;
}

bool Refuse(Napi::Env env, const Row& row, const std::string& reason) {
  Invalid(env, std::string(row.name) + ": " + reason);
  return false;
}

// The most bytes that a request's argument can have.
size_t Most(const Row& row) {
  return row.arg == Arg::kSized ? kXsaveMost : _IOC_SIZE(row.request) + row.max * row.element;
}

// A Uint8Array's bytes, copied: what is checked must be what the kernel reads.
bool CopyIn(Napi::Env env, const Row& row, Napi::Value value, std::vector<uint8_t>* bytes) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    return Refuse(env, row, "argument must be a Uint8Array");
  }
  auto array = value.As<Napi::Uint8Array>();
  // Another thread could write it between the copy and the copy back.
  if (!array.ArrayBuffer().IsArrayBuffer()) return Refuse(env, row, "argument must not be shared");
  // All of guest memory may be given by mistake: 4 GiB are not to be copied only to be refused.
  if (array.ByteLength() > Most(row)) {
    return Refuse(env, row,
                  "argument has " + std::to_string(array.ByteLength()) + " bytes; at most " +
                      std::to_string(Most(row)) + " are known");
  }
  if (array.ByteLength() > 0) bytes->assign(array.Data(), array.Data() + array.ByteLength());
  return true;
}

void CopyOut(Napi::Value value, const std::vector<uint8_t>& bytes) {
  auto array = value.As<Napi::Uint8Array>();
  memcpy(array.Data(), bytes.data(), std::min(bytes.size(), array.ByteLength()));
}

// The size that the kernel will read or write must lie inside the copy.
bool SizeFits(Napi::Env env, const Row& row, const std::vector<uint8_t>& bytes) {
  const size_t fixed = _IOC_SIZE(row.request);
  if (row.arg == Arg::kStruct) {
    return bytes.size() == fixed ||
           Refuse(env, row, "argument must have " + std::to_string(fixed) + " bytes");
  }
  if (row.arg == Arg::kSized) {
    return (bytes.size() >= kXsaveLeast && bytes.size() <= kXsaveMost) ||
           Refuse(env, row, "argument must have 4096 to 65536 bytes");
  }
  if (bytes.size() < fixed) return Refuse(env, row, "argument is shorter than its header");
  uint32_t count = 0;
  memcpy(&count, bytes.data() + row.count_offset, sizeof(count));
  if (count > row.max) return Refuse(env, row, "at most " + std::to_string(row.max) + " elements");
  return bytes.size() == fixed + count * row.element ||
         Refuse(env, row,
                "argument's size must be that of its header and " + std::to_string(count) + " elements");
}

// The one capability whose argument is a pointer that KVM writes through.
bool HasWildPointer(const Row& row, const std::vector<uint8_t>& bytes) {
  if (row.request != KVM_ENABLE_CAP) return false;
  kvm_enable_cap cap;
  memcpy(&cap, bytes.data(), sizeof(cap));
  return cap.cap == KVM_CAP_HYPERV_ENLIGHTENED_VMCS && cap.args[0] != 0;
}

// ioctl(2), giving a negated errno. What makes a VM or a vCPU is interrupted by any signal to the thread, a
// profiler's for one; it has made nothing then, and is issued again.
int Issue(const Row& row, int fd, uintptr_t argument) {
  for (;;) {
    const int result = ioctl(fd, row.request, argument);
    if (result >= 0) return result;
    if (errno != EINTR || row.makes == kSystem) return -errno;
  }
}

// Calls with the argument that the row asks for. Gives false with a JS exception pending when it is not that.
bool Call(const Napi::CallbackInfo& info, const Row& row, const Handle* handle, int* result) {
  Napi::Env env = info.Env();
  if (row.arg == Arg::kNone || row.arg == Arg::kInteger) {
    uint64_t value = 0;
    if (row.arg == Arg::kInteger && !ToU64(env, info[2], row.name, &value)) return false;
    *result = Issue(row, handle->fd, value);
    return true;
  }
  std::vector<uint8_t> bytes;
  if (!CopyIn(env, row, info[2], &bytes) || !SizeFits(env, row, bytes)) return false;
  if (HasWildPointer(row, bytes)) return Refuse(env, row, "args[0] of this capability is a pointer");
  if (row.arg == Arg::kSized) bytes.resize(kXsaveMost);
  *result = Issue(row, handle->fd, reinterpret_cast<uintptr_t>(bytes.data()));
  // Also after an error: GET_CPUID2 and GET_MSR_INDEX_LIST answer E2BIG with the count that they need.
  if (_IOC_DIR(row.request) & _IOC_READ || row.arg == Arg::kSized || row.arg == Arg::kArray)
    CopyOut(info[2], bytes);
  return true;
}

const Row* RowFor(Napi::Env env, Napi::Value value, bool makes) {
  uint64_t request = 0;
  if (!ToU64(env, value, "request", &request)) return nullptr;
  const Row* row = Find(request);
  if (row && row->arg != Arg::kRegion && (row->makes != kSystem) == makes) return row;
  Invalid(env, "request " + std::to_string(request) + " is not in the addon's table for this call");
  return nullptr;
}

}  // namespace

Napi::Value Open(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  char path[PATH_MAX + 1];
  size_t length = 0;
  if (napi_get_value_string_utf8(env, info[0], path, sizeof(path), &length) != napi_ok ||
      strlen(path) != length) {
    Invalid(env, "open() takes the path of the KVM device, without NUL");
    return env.Undefined();
  }
  auto handle = std::make_unique<Handle>();
  handle->kind = kSystem;
  // The path may be that of a terminal by mistake: neither wait for its carrier nor become its session's.
  handle->fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (handle->fd < 0) return Errno(env, errno);
  const int version = ioctl(handle->fd, KVM_GET_API_VERSION, 0);
  if (version < 0) return Errno(env, errno);
  if (version != KVM_API_VERSION) return Errno(env, EPROTO);
  return Wrap(env, std::move(handle));
}

Napi::Value Ioctl(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Row* row = RowFor(env, info[1], false);
  if (!row) return env.Undefined();
  Handle* handle = Unwrap(env, info[0], row->on, row->name);
  int result = 0;
  if (!handle || !Call(info, *row, handle, &result)) return env.Undefined();
  return Napi::Number::New(env, result);
}

Napi::Value Create(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Row* row = RowFor(env, info[1], true);
  if (!row) return env.Undefined();
  Handle* parent = Unwrap(env, info[0], row->on, row->name);
  int fd = -1;
  if (!parent || !Call(info, *row, parent, &fd)) return env.Undefined();
  if (fd < 0) return Napi::Number::New(env, fd);

  auto handle = std::make_unique<Handle>();
  handle->kind = row->makes;
  handle->fd = fd;
  // The kernel makes guest_memfd without close-on-exec, and a child that inherits one pins the VM.
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  if (row->makes == kVm) {
    handle->slots = std::make_shared<Slots>();
    handle->size = static_cast<uint64_t>(std::max(ioctl(parent->fd, KVM_GET_VCPU_MMAP_SIZE, 0), 0));
  } else if (row->makes == kVcpu) {
    auto mapping = Map(parent->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    if (!mapping) return Errno(env, errno);
    handle->mapping = mapping;
    handle->slots = parent->slots;
    handle->run = std::make_shared<RunState>(fd, mapping, parent->slots);
  } else if (row->makes == kGmem) {
    kvm_create_guest_memfd gmem;
    memcpy(&gmem, info[2].As<Napi::Uint8Array>().Data(), sizeof(gmem));
    handle->size = gmem.size;
    handle->flags = gmem.flags;
  }
  return Wrap(env, std::move(handle));
}

Napi::Value SetMemoryRegion(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t request = 0;
  if (!ToU64(env, info[1], "request", &request)) return env.Undefined();
  const Row* row = Find(request);
  std::vector<uint8_t> bytes;
  if (!row || row->arg != Arg::kRegion) {
    Invalid(env, "request must be KVM_SET_USER_MEMORY_REGION or KVM_SET_USER_MEMORY_REGION2");
    return env.Undefined();
  }
  Handle* vm = Unwrap(env, info[0], row->on, row->name);
  if (!vm || !CopyIn(env, *row, info[2], &bytes)) return env.Undefined();
  if (bytes.size() != _IOC_SIZE(request)) {
    Refuse(env, *row, "region must have " + std::to_string(_IOC_SIZE(request)) + " bytes");
    return env.Undefined();
  }

  // The first version of the struct is a prefix of the second.
  kvm_userspace_memory_region2 region{};
  memcpy(&region, bytes.data(), bytes.size());
  region.userspace_addr = 0;
  std::shared_ptr<Mapping> mapping;
  if (!info[3].IsNull()) {
    Handle* memory = Unwrap(env, info[3], kMemory | kReservation, "memory");
    uint64_t offset = 0;
    if (!memory || !ToU64(env, info[4], "memoryOffset", &offset)) return env.Undefined();
    mapping = memory->mapping;
    if (offset > mapping->size || region.memory_size > mapping->size - offset) {
      Refuse(env, *row, "the slot reaches beyond its memory");
      return env.Undefined();
    }
    region.userspace_addr = reinterpret_cast<uint64_t>(mapping->data) + offset;
  } else if (region.memory_size > 0) {
    Refuse(env, *row, "a slot needs memory, or a reservation");
    return env.Undefined();
  }
  region.guest_memfd = static_cast<__u32>(-1);
  if (!info[5].IsNull()) {
    Handle* gmem = Unwrap(env, info[5], ~0u, "guestMemfd");
    if (!gmem) return env.Undefined();
    region.guest_memfd = static_cast<__u32>(gmem->fd);
  }

  std::shared_ptr<Mapping> bitmap;
  uint64_t pointer = 0;
  if (!info[6].IsNull()) {
    Handle* bits = Unwrap(env, info[6], kMemory, "bitmap");
    if (!bits) return env.Undefined();
    bitmap = bits->mapping;
    if (region.memory_size / kPage > bitmap->size * 8) {
      Refuse(env, *row, "the bitmap has fewer bits than the slot has pages");
      return env.Undefined();
    }
    pointer = reinterpret_cast<uint64_t>(bitmap->data);
  }
  memcpy(reinterpret_cast<uint8_t*>(&region) + kUserfaultBitmapOffset, &pointer, sizeof(pointer));

  if (ioctl(vm->fd, request, &region) < 0) return Errno(env, errno);
  if (region.memory_size) {
    (*vm->slots)[region.slot] = {mapping, bitmap, region.memory_size / kPage};
  } else {
    vm->slots->erase(region.slot);
  }
  return Napi::Number::New(env, 0);
}

Napi::Value DirtyLog(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* vm = Unwrap(env, info[0], kVm, "vm");
  uint64_t slot = 0;
  if (!vm || !ToU64(env, info[1], "slot", &slot)) return env.Undefined();
  if (!info[2].IsTypedArray() || info[2].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array ||
      !info[2].As<Napi::Uint8Array>().ArrayBuffer().IsArrayBuffer()) {
    Invalid(env, "bitmap must be a Uint8Array, and not shared");
    return env.Undefined();
  }
  const auto found = vm->slots->find(static_cast<uint32_t>(slot));
  if (found == vm->slots->end() || slot > UINT32_MAX) return Errno(env, ENOENT);
  // KVM writes whole words of 64 pages.
  constexpr size_t kWord = 64;
  std::vector<uint8_t> bits((found->second.pages + kWord - 1) / kWord * sizeof(uint64_t));
  kvm_dirty_log log{};
  log.slot = static_cast<uint32_t>(slot);
  log.dirty_bitmap = bits.data();
  if (ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log) < 0) return Errno(env, errno);
  CopyOut(info[2], bits);
  return Napi::Number::New(env, 0);
}

Napi::Value Requests(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto rows = Napi::Array::New(env);
  uint32_t index = 0;
  for (const Row& row : kRows) {
    auto object = Napi::Object::New(env);
    object["name"] = Napi::String::New(env, row.name);
    object["request"] = Napi::Number::New(env, static_cast<double>(row.request));
    object["on"] = Napi::Number::New(env, row.on);
    object["arg"] = Napi::Number::New(env, static_cast<int>(row.arg));
    object["makes"] = Napi::Number::New(env, row.makes == kSystem ? 0u : uint32_t{row.makes});
    object["count"] = Napi::Number::New(env, static_cast<double>(row.count_offset));
    object["element"] = Napi::Number::New(env, static_cast<double>(row.element));
    object["max"] = Napi::Number::New(env, row.max);
    rows[index++] = object;
  }
  return rows;
}

}  // namespace vmexit
