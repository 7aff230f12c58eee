#include "ioctls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "memory.h"
#include "run.h"
#include "table.h"

namespace vmexit {

namespace {

bool Refuse(Napi::Env env, const Row& row, const std::string& reason) {
  Invalid(env, std::string(row.name) + ": " + reason);
  return false;
}

// The most bytes that a request's argument can have.
size_t Most(const Row& row) {
  if (row.arg == Arg::kSized) return row.most;
  return _IOC_SIZE(row.request) + (row.arg == Arg::kStruct ? row.element : row.max * row.element);
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

// The count that the kernel will believe.
uint64_t CountIn(const Row& row, const std::vector<uint8_t>& bytes) {
  uint64_t count = 0;
  memcpy(&count, bytes.data() + row.count_offset, row.count_size);
  return count;
}

// The size that the kernel will read or write must lie inside the copy.
bool SizeFits(Napi::Env env, const Row& row, const std::vector<uint8_t>& bytes) {
  const size_t fixed = _IOC_SIZE(row.request);
  if (row.arg == Arg::kStruct) {
    const size_t size = fixed + row.element;
    return bytes.size() == size || Refuse(env, row, "argument must have " + std::to_string(size) + " bytes");
  }
  if (row.arg == Arg::kSized) {
    if (bytes.size() < row.least || bytes.size() > row.most) {
      return Refuse(
          env, row,
          "argument must have " + std::to_string(row.least) + " to " + std::to_string(row.most) + " bytes");
    }
    return CountIn(row, bytes) <= bytes.size() ||
           Refuse(env, row, "the size in the struct is above that of the argument");
  }
  if (bytes.size() < fixed) return Refuse(env, row, "argument is shorter than its header");
  const uint64_t count = CountIn(row, bytes);
  if (count > row.max) return Refuse(env, row, "at most " + std::to_string(row.max) + " elements");
  return bytes.size() == fixed + count * row.element ||
         Refuse(env, row,
                "argument's size must be that of its header and " + std::to_string(count) + " elements");
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

// An ioctl's turn with a vCPU: there is none while another thread runs it.
class Turn {
 public:
  explicit Turn(RunState* vcpu) : vcpu_(vcpu && vcpu->Take() ? vcpu : nullptr), has_(!vcpu || vcpu_) {}
  ~Turn() {
    if (vcpu_) vcpu_->Give();
  }
  explicit operator bool() const { return has_; }

 private:
  RunState* const vcpu_;
  const bool has_;
};

// Calls with the argument that the row asks for, and info[3]'s references in it. Gives false with a JS
// exception pending when it is not that. `fd` is the one that came out inside the struct.
bool Call(const Napi::CallbackInfo& info, const Row& row, Handle* handle, Resolved* references, int* result,
          int* fd = nullptr) {
  Napi::Env env = info.Env();
  if (row.arg == Arg::kNone || row.arg == Arg::kInteger) {
    uint64_t value = 0;
    if (row.arg == Arg::kInteger && !ToU64(env, info[2], row.name, &value)) return false;
    const Turn turn(handle->run.get());
    *result = turn ? Issue(row, handle->fd, value) : kVcpuRunning;
    return true;
  }
  std::vector<uint8_t> bytes;
  if (!CopyIn(env, row, info[2], &bytes) || !SizeFits(env, row, bytes)) return false;
  if (row.arg == Arg::kSized) bytes.resize(row.most);
  const Turn turn(handle->run.get());
  if (!turn) {
    *result = kVcpuRunning;
    return true;
  }
  // What the VM's slots use must be what the kernel was told last, whichever thread told it.
  std::unique_lock<std::mutex> lock;
  if (handle->slots && (row.done || row.reference_count > 0))
    lock = std::unique_lock<std::mutex>(handle->slots->mutex);
  // JS gets its own bytes back: no pointer and no file descriptor of this process.
  std::vector<uint8_t> filled;
  if (row.reference_count > 0) {
    filled = bytes;
    int error = 0;
    if (!references->Fill(env, row.name, row.references, row.reference_count, *handle, filled.data(),
                          &error)) {
      *result = -error;
      return error != 0;
    }
  }
  std::vector<uint8_t>& argument = row.reference_count > 0 ? filled : bytes;
  if (fd) memcpy(argument.data() + row.fd_offset, fd, sizeof(*fd));  // -1, which stays where none is made
  *result = Issue(row, handle->fd, reinterpret_cast<uintptr_t>(argument.data()));
  if (row.reference_count > 0) {
    references->CopyOut(*result < 0);
    references->TakeOut(filled, &bytes);
  }
  if (*result >= 0) {
    if (row.done) row.done(handle, argument.data(), *references);
    if (fd) {
      memcpy(fd, argument.data() + row.fd_offset, sizeof(*fd));
      return true;
    }
  }
  // Also after an error: GET_CPUID2 and GET_MSR_INDEX_LIST answer E2BIG with the count that they need.
  if (_IOC_DIR(row.request) & _IOC_READ || row.arg == Arg::kSized || row.arg == Arg::kArray)
    CopyOut(info[2], bytes);
  return true;
}

const Row* RowFor(Napi::Env env, Napi::Value value, bool makes) {
  uint64_t request = 0;
  if (!ToU64(env, value, "request", &request)) return nullptr;
  const Row* row = Find(request);
  if (row && (row->makes != kSystem) == makes) return row;
  Invalid(env, "request " + std::to_string(request) + " is not in the addon's table for this call");
  return nullptr;
}

struct Prepared {
  const Row* row;
  std::shared_ptr<int> fd;
  std::weak_ptr<RunState> vcpu;
  std::shared_ptr<Mapping> bytes;
};

napi_value IssuePrepared(napi_env env, napi_callback_info info) {
  const auto* call = DataOf<Prepared>(env, info, nullptr, nullptr);
  int result = -EBADF;
  if (*call->fd >= 0) {
    const auto vcpu = call->vcpu.lock();
    const Turn turn(vcpu.get());
    result =
        turn ? Issue(*call->row, *call->fd, reinterpret_cast<uintptr_t>(call->bytes->data)) : kVcpuRunning;
  }
  napi_value value = nullptr;
  napi_create_int32(env, result, &value);
  return value;
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
  // Before any handle is looked at: what runs here may close it.
  Resolved references;
  if (!references.Collect(env, row->name, info[3])) return env.Undefined();
  Handle* handle = Unwrap(env, info[0], row->on, row->name);
  int result = 0;
  if (!handle || !Call(info, *row, handle, &references, &result)) return env.Undefined();
  return Napi::Number::New(env, result);
}

Napi::Value Create(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Row* row = RowFor(env, info[1], true);
  if (!row) return env.Undefined();
  Resolved references;
  if (!references.Collect(env, row->name, info[3])) return env.Undefined();
  Handle* parent = Unwrap(env, info[0], row->on, row->name);
  const bool inside = row->fd_offset >= 0;
  int result = -1;
  int fd = -1;
  if (!parent || !Call(info, *row, parent, &references, &result, inside ? &fd : nullptr))
    return env.Undefined();
  if (!inside) fd = result;
  // KVM_CREATE_DEVICE_TEST succeeds, and makes nothing.
  if (result < 0 || fd < 0) return Napi::Number::New(env, result);

  auto handle = std::make_unique<Handle>();
  handle->kind = row->makes;
  handle->fd = fd;
  // The kernel makes guest_memfd without close-on-exec, and a child that inherits one pins the VM.
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  if (row->makes == kVm) {
    handle->vm = std::make_shared<VmFile>(fd);
    handle->slots = std::make_shared<Slots>();
    if (!ToU64(env, info[2], "type", &handle->flags)) return env.Undefined();
    const int size = ioctl(parent->fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < 0) return Errno(env, errno);
    handle->size = static_cast<uint64_t>(size);
  } else if (row->makes == kVcpu) {
    auto mapping = Map(parent->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    if (!mapping) return Errno(env, errno);
    handle->mapping = mapping;
    handle->slots = parent->slots;
    handle->flags = parent->flags;
    handle->run = RunState::Create(fd, parent->flags, mapping, parent->slots);
  } else if (row->makes == kGmem) {
    kvm_create_guest_memfd gmem;
    memcpy(&gmem, info[2].As<Napi::Uint8Array>().Data(), sizeof(gmem));
    handle->size = gmem.size;
    handle->flags = gmem.flags;
  }
  return Wrap(env, std::move(handle));
}

// A function of its own for each, as for KVM_RUN: to unwrap a handle, find a row and copy an argument costs
// several times what a call does.
Napi::Value Prepare(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Row* row = RowFor(env, info[1], false);
  if (!row) return env.Undefined();
  Handle* handle = Unwrap(env, info[0], row->on, row->name);
  if (!handle) return env.Undefined();
  // Of these any bytes are safe to pass on, whoever changes them at any time.
  if (row->arg != Arg::kStruct || row->reference_count > 0 || row->done) {
    Refuse(env, *row, "cannot be prepared");
    return env.Undefined();
  }
  auto bytes =
      Map(_IOC_SIZE(row->request) + row->element, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  if (!bytes) return Errno(env, errno);
  std::shared_ptr<Mapping>* view = nullptr;
  auto buffer = ViewOf(env, bytes, &view);
  if (buffer.IsEmpty()) return env.Undefined();
  if (!handle->live) handle->live = std::make_shared<int>(handle->fd);
  const auto issue =
      FunctionWith(env, "issue", IssuePrepared,
                   std::make_shared<Prepared>(Prepared{row, handle->live, handle->run, bytes}));
  auto result = Napi::Object::New(env);
  result["buffer"] = buffer;
  result["issue"] = issue;
  return result;
}

}  // namespace vmexit
