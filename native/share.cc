#include "share.h"

#include <errno.h>
#include <unistd.h>

#include <map>
#include <mutex>

#include "vcpu.h"

namespace vmexit {

namespace {

// What another thread needs of a VM's handle.
struct SharedVm {
  std::weak_ptr<VmFile> file;
  std::shared_ptr<Slots> slots;
  uint64_t flags;
  uint64_t size;
};

// By a number that is given once. Never destroyed, for threads may be at work when the process ends.
struct Table {
  std::mutex mutex;
  std::map<uint64_t, SharedVm> vms;
  uint64_t last_number = 0;
};
Table& TheTable() {
  static Table* const table = new Table;
  return *table;
}

}  // namespace

VmFile::~VmFile() {
  close(fd);
  if (number == 0) return;
  const std::lock_guard<std::mutex> lock(TheTable().mutex);
  TheTable().vms.erase(number);
}

Napi::Value ShareVm(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle* vm = Unwrap(env, info[0], kVm, "vm");
  if (!vm) return env.Undefined();
  const std::lock_guard<std::mutex> lock(TheTable().mutex);
  uint64_t& number = vm->vm->number;
  if (number == 0) {
    number = ++TheTable().last_number;
    TheTable().vms[number] = {vm->vm, vm->slots, vm->flags, vm->size};
  }
  return Napi::Number::New(env, static_cast<double>(number));
}

Napi::Value OpenVm(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t number = 0;
  if (!ToU64(env, info[0], "number", &number)) return env.Undefined();
  auto handle = std::make_unique<Handle>();
  handle->kind = kVm;
  {
    const std::lock_guard<std::mutex> lock(TheTable().mutex);
    const auto found = TheTable().vms.find(number);
    if (found != TheTable().vms.end()) {
      handle->vm = found->second.file.lock();
      handle->slots = found->second.slots;
      handle->flags = found->second.flags;
      handle->size = found->second.size;
    }
  }
  if (!handle->vm) return Errno(env, ESTALE);
  handle->fd = handle->vm->fd;
  return Wrap(env, std::move(handle));
}

Napi::Value OpenVcpu(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t number = 0;
  if (!ToU64(env, info[0], "kickId", &number)) return env.Undefined();
  auto state = RunState::Find(number);
  if (!state) return Errno(env, ESTALE);
  auto handle = std::make_unique<Handle>();
  handle->kind = kVcpu;
  handle->fd = state->fd;
  handle->mapping = state->mapping;
  handle->slots = state->slots;
  handle->flags = state->vm_type;
  handle->run = std::move(state);
  return Wrap(env, std::move(handle));
}

}  // namespace vmexit
