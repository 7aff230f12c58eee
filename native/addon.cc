// The addon's whole surface. It holds no policy: every decision is made in TypeScript, every check that keeps
// the process alive is made here.
#include <napi.h>

#include "eventfd.h"
#include "ioctls.h"
#include "memory.h"
#include "run.h"
#include "share.h"
#include "stats.h"
#include "table.h"
#include "thread.h"
#include "userfaultfd.h"
#include "watch.h"

namespace {

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  constexpr struct {
    const char* name;
    Napi::Value (*call)(const Napi::CallbackInfo&);
  } kFunctions[] = {
      {"open", vmexit::Open},
      {"ioctl", vmexit::Ioctl},
      {"create", vmexit::Create},
      {"prepare", vmexit::Prepare},
      {"requests", vmexit::Requests},
      {"allocate", vmexit::Allocate},
      {"reserve", vmexit::Reserve},
      {"openMemory", vmexit::OpenMemory},
      {"mapGuestMemfd", vmexit::MapGuestMemfd},
      {"mapDirtyRing", vmexit::MapDirtyRing},
      {"inode", vmexit::Inode},
      {"fallocate", vmexit::Fallocate},
      {"seek", vmexit::Seek},
      {"madvise", vmexit::Madvise},
      {"write", vmexit::Write},
      {"read", vmexit::Read},
      {"buffer", vmexit::Buffer},
      {"fd", vmexit::Fd},
      {"close", vmexit::Close},
      {"shareVm", vmexit::ShareVm},
      {"openVm", vmexit::OpenVm},
      {"openVcpu", vmexit::OpenVcpu},
      {"runner", vmexit::MakeRunner},
      {"starter", vmexit::MakeStarter},
      {"kickId", vmexit::KickId},
      {"kick", vmexit::Kick},
      {"pause", vmexit::Pause},
      {"resume", vmexit::Resume},
      {"stop", vmexit::Stop},
      {"userfaultfd", vmexit::Userfaultfd},
      {"shareUserfaultfd", vmexit::ShareUserfaultfd},
      {"openUserfaultfd", vmexit::OpenUserfaultfd},
      {"fillPages", vmexit::FillPages},
      {"zeroPages", vmexit::ZeroPages},
      {"wakePages", vmexit::WakePages},
      {"readFaults", vmexit::ReadFaults},
      {"readStats", vmexit::ReadStats},
      {"eventfd", vmexit::Eventfd},
      {"shareEventfd", vmexit::ShareEventfd},
      {"openEventfd", vmexit::OpenEventfd},
      {"signalEventfd", vmexit::SignalEventfd},
      {"drainEventfd", vmexit::DrainEventfd},
      {"watch", vmexit::WatchHandle},
  };
  for (const auto& function : kFunctions) {
    exports.Set(function.name, Napi::Function::New(env, function.call, function.name));
  }
  return exports;
}

}  // namespace

NODE_API_MODULE(vmexit, Init)
