// What JS holds: one opaque, type-tagged external per fd or mapping. It belongs to the environment that made
// it and is closed once, by close() or by its finalizer.
#pragma once

#include <napi.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

namespace vmexit {

// Bits, so that a request can name all the kinds of fd that it goes to.
enum Kind : uint32_t {
  kSystem = 1,
  kVm = 2,
  kVcpu = 4,
  kGmem = 8,
  kDevice = 16,
  kMemory = 32,
  kReservation = 64,  // address space with nothing behind it: a slot without backing
  kUserfaultfd = 128,
  kEventFd = 256,
  kStats = 512,
  kRing = 1024,  // a vCPU's ring of dirty pages
};

// A part of the process's address space. Invariant: something is mapped at all of it for as long as the
// object lives. JS's ArrayBuffer holds a reference even when it is detached: an asynchronous operation (zlib,
// crypto) may be at work on its bytes in another thread, which no detaching stops.
struct Addresses {
  uint8_t* const data;
  const size_t size;
  Addresses(void* data, size_t size) : data(static_cast<uint8_t*>(data)), size(size) {}
  ~Addresses();
  Addresses(const Addresses&) = delete;
  Addresses& operator=(const Addresses&) = delete;
};

// An mmap. Whoever may still reach the memory (a JS view, a memslot, a vCPU) holds a reference. The last one
// gives the memory back, and leaves nothing but zeroes at the addresses if those are still held.
struct Mapping {
  const std::shared_ptr<Addresses> addresses;
  uint8_t* const data;
  const size_t size;
  Mapping(void* data, size_t size)
      : addresses(std::make_shared<Addresses>(data, size)), data(addresses->data), size(size) {}
  ~Mapping();
};

// What KVM reaches of this process's memory for one memslot.
struct SlotMemory {
  std::shared_ptr<Mapping> memory;
  std::shared_ptr<Mapping> bitmap;  // KVM_MEM_USERFAULT's
  uint64_t pages;                   // KVM_GET_DIRTY_LOG writes a bit for each
};

// By slot id. Shared by the VM and its vCPUs: a vCPU can run on after the VM's handle was closed, and KVM
// would then still use what lies at these addresses.
struct Slots : std::map<uint32_t, SlotMemory> {
  // Held from before an ioctl that concerns them until they are what it has made: threads share a VM.
  std::mutex mutex;
  uint64_t ring = 0;  // bytes of each vCPU's ring of dirty pages
  // What KVM reaches without a slot, by what it is and, of a vCPU's, RunState::id.
  std::map<std::pair<uint32_t, uint32_t>, std::shared_ptr<Mapping>> pins;
};

struct RunState;
struct Runner;
struct VcpuThread;
struct Watch;

// A VM's file, in use by each handle of it, of any thread.
struct VmFile {
  const int fd;
  uint64_t number = 0;  // by which other threads open it; 0 without one
  explicit VmFile(int fd) : fd(fd) {}
  ~VmFile();
  VmFile(const VmFile&) = delete;
  VmFile& operator=(const VmFile&) = delete;
};

struct Handle {
  Kind kind;
  int fd = -1;  // -1 for a mapping without a file
  bool closed = false;
  uint64_t flags = 0;                // guest_memfd: the flags that it was made with; VM, vCPU: the VM's type
  uint64_t size = 0;                 // guest_memfd, memory, userfaultfd: bytes
  std::shared_ptr<Mapping> mapping;  // memory, userfaultfd: guest RAM; vCPU: kvm_run; ring
  std::shared_ptr<Slots> slots;      // VM and its vCPUs
  std::shared_ptr<VmFile> vm;        // VM
  std::shared_ptr<RunState> run;     // vCPU
  std::shared_ptr<Runner> runner;    // vCPU: what run() of this thread needs
  std::shared_ptr<VcpuThread> thread;  // vCPU: its own
  std::shared_ptr<int> live;           // the fd, or -1 once it is closed: for calls that were prepared
  // userfaultfd: where the memory lies in this process. A token carries it to another thread, and one that is
  // wrong is an errno: the kernel copies into nothing that is not registered with this very userfaultfd.
  uint64_t base = 0;
  uint64_t shared = 0;           // eventfd: the number by which other threads open it; 0 without one
  std::shared_ptr<Watch> watch;  // userfaultfd, eventfd
  Napi::Reference<Napi::ArrayBuffer> buffer;
  std::shared_ptr<Mapping>* view = nullptr;  // what `buffer` holds; valid while that is not detached

  Handle();
  ~Handle();
  void CloseFd();
};

// Takes ownership of the handle.
Napi::Value Wrap(Napi::Env env, std::unique_ptr<Handle> handle);

// The open handle in `value`, of one of `kinds`; else throws a JS exception and gives nullptr.
Handle* Unwrap(Napi::Env env, Napi::Value value, uint32_t kinds, const char* what);

// An unsigned integer from a number (up to 2^53-1) or a bigint (up to 2^64-1); else throws and gives false.
bool ToU64(Napi::Env env, Napi::Value value, const char* what, uint64_t* out);

// Throws a TypeError with code ERR_KVM_INVALID_ARG. Not by node-addon-api, which aborts the process when a
// setter that the user put on Error.prototype throws.
void Invalid(Napi::Env env, const std::string& message);
// The same as a RangeError: a number of the right kind, and too small or too large.
void OutOfRange(Napi::Env env, const std::string& message);

// A JS function whose calls find `data` at no cost: unwrapping a handle is half of what a whole call costs.
// Undefined with a JS exception pending where none can be made.
template <typename T>
Napi::Value FunctionWith(Napi::Env env, const char* name, napi_callback call, std::shared_ptr<T> data) {
  auto* held = new std::shared_ptr<T>(std::move(data));
  napi_value function = nullptr;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, call, held, &function) != napi_ok) {
    delete held;
    return env.Undefined();
  }
  napi_add_finalizer(
      env, function, held, [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<T>*>(data); },
      nullptr, nullptr);
  return Napi::Value(env, function);
}
// What such a call was given, and the data of its function.
template <typename T>
T* DataOf(napi_env env, napi_callback_info info, size_t* argc, napi_value* argv) {
  void* data = nullptr;
  napi_get_cb_info(env, info, argc, argv, nullptr, &data);
  return static_cast<std::shared_ptr<T>*>(data)->get();
}

inline Napi::Value Errno(Napi::Env env, int error) { return Napi::Number::New(env, -error); }

// An ArrayBuffer over the mapping, which keeps it. `view` is what it holds. Empty, with a JS exception
// pending, where a runtime forbids such buffers.
Napi::ArrayBuffer ViewOf(Napi::Env env, const std::shared_ptr<Mapping>& mapping,
                         std::shared_ptr<Mapping>** view);
// The ArrayBuffer over the handle's mapping, made once. A view of it keeps the memory mapped.
Napi::Value Buffer(const Napi::CallbackInfo& info);
Napi::Value Close(const Napi::CallbackInfo& info);
Napi::Value Fd(const Napi::CallbackInfo& info);

}  // namespace vmexit
