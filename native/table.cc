#include "table.h"

#include <errno.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "encryption.h"
#include "xen.h"

namespace vmexit {

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint32_t kMaxCpuidEntries = 256;  // KVM_MAX_CPUID_ENTRIES
constexpr uint32_t kMaxPmuEvents = 300;     // KVM_PMU_EVENT_FILTER_MAX_EVENTS
constexpr uint32_t kMaxRoutes = 4096;       // KVM_MAX_IRQ_ROUTES
constexpr uint32_t kMaxMsrEntries = 4096;   // above MAX_IO_MSRS (256), which the kernel answers with E2BIG
constexpr uint32_t kMaxRegs = 1024;         // of KVM_GET_REG_LIST; on x86 there is a handful

// KVM reads or writes as much as the guest's XCR0 needs (KVM_CAP_XSAVE2), whatever size the request names.
// All of XCR0's components together take less than 16 KiB (SDM volume 1, 13.5).
constexpr size_t kXsaveLeast = 4096;
constexpr size_t kXsaveMost = 64 << 10;
// A header and two VMCS12s, or a VMCB12.
constexpr size_t kNestedMost = 16 << 10;

// KVM reads and writes bitmaps in whole words of 64.
constexpr int64_t BitmapBytes(uint64_t bits) {
  return static_cast<int64_t>((bits + 63) / 64 * sizeof(uint64_t));
}

template <typename T>
T As(const uint8_t* argument) {
  T value{};
  memcpy(&value, argument, sizeof(value));
  return value;
}

int64_t Unknown(const Handle&, const uint8_t*) { return kUnknownLength; }

// --- memory slots

template <typename T>
int64_t SlotSize(const Handle&, const uint8_t* argument) {
  const uint64_t size = As<T>(argument).memory_size;
  return size > INT64_MAX ? -EINVAL : static_cast<int64_t>(size);
}
int64_t SlotBits(const Handle&, const uint8_t* argument) {
  const uint64_t pages = As<kvm_userspace_memory_region2>(argument).memory_size / kPage;
  return static_cast<int64_t>((pages + 7) / 8);
}

constexpr Reference kRegion[] = {
    {.name = "userspaceAddr",
     .is = Reference::kPlace,
     .way = 0,
     .size = 8,
     .offset = offsetof(kvm_userspace_memory_region, userspace_addr),
     .kinds = kMemory | kReservation,
     .length = SlotSize<kvm_userspace_memory_region>,
     .required = true},
};
constexpr Reference kRegion2[] = {
    {.name = "userspaceAddr",
     .is = Reference::kPlace,
     .way = 0,
     .size = 8,
     .offset = offsetof(kvm_userspace_memory_region2, userspace_addr),
     .kinds = kMemory | kReservation,
     .length = SlotSize<kvm_userspace_memory_region2>,
     .required = true},
    // Any kind: the kernel tells what is no guest_memfd of this VM's.
    {.name = "guestMemfd",
     .is = Reference::kFd,
     .way = 0,
     .size = 4,
     .offset = offsetof(kvm_userspace_memory_region2, guest_memfd),
     .kinds = ~0u},
    {.name = "userfaultBitmap",
     .is = Reference::kPlace,
     .way = 0,
     .size = 8,
     .offset = kUserfaultBitmapOffset,
     .kinds = kMemory,
     .length = SlotBits},
};

// The slot keeps what it uses.
void Keep(Handle* vm, uint32_t slot, uint64_t size, std::shared_ptr<Mapping> memory,
          std::shared_ptr<Mapping> bitmap) {
  if (size) {
    (*vm->slots)[slot] = {std::move(memory), std::move(bitmap), size / kPage};
  } else {
    vm->slots->erase(slot);
  }
}
void KeepSlot(Handle* vm, const uint8_t* argument, const Resolved& references) {
  const auto region = As<kvm_userspace_memory_region>(argument);
  Keep(vm, region.slot, region.memory_size, references.mapping(0), nullptr);
}
void KeepSlot2(Handle* vm, const uint8_t* argument, const Resolved& references) {
  const auto region = As<kvm_userspace_memory_region2>(argument);
  Keep(vm, region.slot, region.memory_size, references.mapping(0), references.mapping(2));
}

constexpr Reference kEncRegion[] = {
    {.name = "addr",
     .is = Reference::kPlace,
     .way = 0,
     .size = 8,
     .offset = offsetof(kvm_enc_region, addr),
     .kinds = kMemory,
     .length = [](const Handle&, const uint8_t* argument) -> int64_t {
       const uint64_t size = As<kvm_enc_region>(argument).size;
       return size > INT64_MAX ? -EINVAL : static_cast<int64_t>(size);
     },
     .required = true},
};

// --- dirty pages

constexpr Reference kDirtyLog[] = {
    {.name = "dirtyBitmap",
     .is = Reference::kBytes,
     .way = Reference::kOut,
     .size = 8,
     .offset = offsetof(kvm_dirty_log, dirty_bitmap),
     .length = [](const Handle& vm, const uint8_t* argument) -> int64_t {
       const auto found = vm.slots->find(As<kvm_dirty_log>(argument).slot);
       return found == vm.slots->end() ? -ENOENT : BitmapBytes(found->second.pages);
     }},
};
constexpr Reference kClearDirtyLog[] = {
    {.name = "dirtyBitmap",
     .is = Reference::kBytes,
     .way = Reference::kIn,
     .size = 8,
     .offset = offsetof(kvm_clear_dirty_log, dirty_bitmap),
     .length = [](const Handle&, const uint8_t* argument) -> int64_t {
       return BitmapBytes(As<kvm_clear_dirty_log>(argument).num_pages);
     }},
};

// --- eventfds

constexpr Reference kIrqfd[] = {
    {.name = "fd",
     .is = Reference::kFd,
     .way = 0,
     .size = 4,
     .offset = offsetof(kvm_irqfd, fd),
     .kinds = kEventFd},
    {.name = "resamplefd",
     .is = Reference::kFd,
     .way = 0,
     .size = 4,
     .offset = offsetof(kvm_irqfd, resamplefd),
     .kinds = kEventFd,
     .applies =
         [](const uint8_t* argument) {
           return (As<kvm_irqfd>(argument).flags & KVM_IRQFD_FLAG_RESAMPLE) != 0;
         }},
};
constexpr Reference kIoeventfd[] = {
    {.name = "fd",
     .is = Reference::kFd,
     .way = 0,
     .size = 4,
     .offset = offsetof(kvm_ioeventfd, fd),
     .kinds = kEventFd},
};
constexpr Reference kHypervEventfd[] = {
    {.name = "fd",
     .is = Reference::kFd,
     .way = 0,
     .size = 4,
     .offset = offsetof(kvm_hyperv_eventfd, fd),
     .kinds = kEventFd},
};

// --- registers, attributes, capabilities

constexpr Reference kMsrFilter[] = {
    {.name = "bitmap",
     .is = Reference::kBytes,
     .way = Reference::kIn,
     .size = 8,
     .offset = offsetof(kvm_msr_filter, ranges) + offsetof(kvm_msr_filter_range, bitmap),
     .repeat = KVM_MSR_FILTER_MAX_RANGES,
     .stride = sizeof(kvm_msr_filter_range),
     .length = [](const Handle&, const uint8_t* argument) -> int64_t {
       return BitmapBytes(As<kvm_msr_filter_range>(argument + offsetof(kvm_msr_filter, ranges)).nmsrs);
     },
     .required = true},
};

// KVM_REG_SIZE_MASK and _SHIFT: the id says how many bytes the register has.
int64_t RegSize(const Handle&, const uint8_t* argument) {
  return int64_t{1} << ((As<kvm_one_reg>(argument).id >> 52) & 0xf);
}
constexpr Reference OneReg(Reference::Way way) {
  return {.name = "addr",
          .is = Reference::kBytes,
          .way = way,
          .size = 8,
          .offset = offsetof(kvm_one_reg, addr),
          .length = RegSize};
}
constexpr Reference kGetOneReg[] = {OneReg(Reference::kOut)};
constexpr Reference kSetOneReg[] = {OneReg(Reference::kIn)};

constexpr Reference Attr(Reference::Way way) {
  return {.name = "addr",
          .is = Reference::kBytes,
          .way = way,
          .size = 8,
          .offset = offsetof(kvm_device_attr, addr),
          .length = Unknown};
}
constexpr Reference kGetAttr[] = {Attr(Reference::kOut)};
constexpr Reference kSetAttr[] = {Attr(Reference::kIn)};

// Of most capabilities args[0] is a number.
template <uint32_t... caps>
bool Enables(const uint8_t* argument) {
  const uint32_t cap = As<kvm_enable_cap>(argument).cap;
  return ((cap == caps) || ...);
}
constexpr Reference kEnableCap[] = {
    {.name = "evmcsVersion",
     .is = Reference::kBytes,
     .way = Reference::kOut,
     .size = 8,
     .offset = offsetof(kvm_enable_cap, args),
     .length = [](const Handle&, const uint8_t*) -> int64_t { return sizeof(uint16_t); },
     .applies = Enables<KVM_CAP_HYPERV_ENLIGHTENED_VMCS>},
    {.name = "sourceVm",
     .is = Reference::kFd,
     .way = 0,
     .size = 8,
     .offset = offsetof(kvm_enable_cap, args),
     .kinds = kVm,
     .applies = Enables<KVM_CAP_VM_COPY_ENC_CONTEXT_FROM, KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM>},
};

// What mapDirtyRing() needs to know of a VM. KVM takes 32 bits of the size, and enables rings once.
void NoteRing(Handle* handle, const uint8_t* argument, const Resolved&) {
  const bool rings = Enables<KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL>(argument);
  if (handle->kind == kVm && rings)
    handle->slots->ring = static_cast<uint32_t>(As<kvm_enable_cap>(argument).args[0]);
}

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
#define UNSIZED(name_, on_, type_) \
  { .name = #name_, .request = name_, .on = on_, .arg = Arg::kStruct, .element = sizeof(type_) }
#define ARRAY(name_, on_, header, count, element_, max_)                               \
  {                                                                                    \
    .name = #name_, .request = name_, .on = on_, .arg = Arg::kArray,                   \
    .count_offset = offsetof(header, count), .element = sizeof(element_), .max = max_, \
    .count_size = sizeof(header::count)                                                \
  }
#define SIZED(name_, on_, least_, most_) \
  { .name = #name_, .request = name_, .on = on_, .arg = Arg::kSized, .least = least_, .most = most_ }
// Its own field says how many bytes it has.
#define COUNTED(name_, on_, header, count, most_)                                                          \
  {                                                                                                        \
    .name = #name_, .request = name_, .on = on_, .arg = Arg::kSized,                                       \
    .count_offset = offsetof(header, count), .count_size = sizeof(header::count), .least = sizeof(header), \
    .most = most_                                                                                          \
  }
#define MAKES(name, on, arg, kind)  \
  {                                 \
#name, name, on, Arg::arg, kind \
  }
#define REFERS(name, on, refs)                                             \
  {                                                                        \
#name, name, on, Arg::kStruct, kSystem, 0, 0, 0, refs, std::size(refs) \
  }
#define REFERS_MORE(name, on, more, refs)                                     \
  {                                                                           \
#name, name, on, Arg::kStruct, kSystem, 0, more, 0, refs, std::size(refs) \
  }
#define REFERS_DONE(name, on, refs, done)                                        \
  {                                                                              \
#name, name, on, Arg::kStruct, kSystem, 0, 0, 0, refs, std::size(refs), done \
  }

constexpr Row kRows[] = {
    NONE(KVM_GET_API_VERSION, kSystem),
    MAKES(KVM_CREATE_VM, kSystem, kInteger, kVm),
    INTEGER(KVM_CHECK_EXTENSION, kSystem | kVm),
    NONE(KVM_GET_VCPU_MMAP_SIZE, kSystem),
    STRUCT(KVM_X86_GET_MCE_CAP_SUPPORTED, kSystem),
    ARRAY(KVM_GET_SUPPORTED_HV_CPUID, kSystem | kVcpu, kvm_cpuid2, nent, kvm_cpuid_entry2, kMaxCpuidEntries),
    ARRAY(KVM_GET_SUPPORTED_CPUID, kSystem, kvm_cpuid2, nent, kvm_cpuid_entry2, kMaxCpuidEntries),
    ARRAY(KVM_GET_EMULATED_CPUID, kSystem, kvm_cpuid2, nent, kvm_cpuid_entry2, kMaxCpuidEntries),
    ARRAY(KVM_GET_MSR_INDEX_LIST, kSystem, kvm_msr_list, nmsrs, __u32, kMaxMsrEntries),
    ARRAY(KVM_GET_MSR_FEATURE_INDEX_LIST, kSystem, kvm_msr_list, nmsrs, __u32, kMaxMsrEntries),

    MAKES(KVM_CREATE_VCPU, kVm, kInteger, kVcpu),
    MAKES(KVM_CREATE_GUEST_MEMFD, kVm, kStruct, kGmem),
    REFERS(KVM_GET_DIRTY_LOG, kVm, kDirtyLog),
    REFERS(KVM_CLEAR_DIRTY_LOG, kVm, kClearDirtyLog),
    NONE(KVM_RESET_DIRTY_RINGS, kVm),
    REFERS_DONE(KVM_SET_USER_MEMORY_REGION, kVm, kRegion, KeepSlot),
    REFERS_DONE(KVM_SET_USER_MEMORY_REGION2, kVm, kRegion2, KeepSlot2),
    STRUCT(KVM_SET_MEMORY_ATTRIBUTES, kVm),
    INTEGER(KVM_SET_TSS_ADDR, kVm),
    STRUCT(KVM_SET_IDENTITY_MAP_ADDR, kVm),
    NONE(KVM_CREATE_IRQCHIP, kVm),
    STRUCT(KVM_CREATE_PIT2, kVm),
    STRUCT(KVM_IRQ_LINE, kVm),
    STRUCT(KVM_IRQ_LINE_STATUS, kVm),
    STRUCT(KVM_GET_IRQCHIP, kVm),
    STRUCT(KVM_SET_IRQCHIP, kVm),
    STRUCT(KVM_GET_PIT2, kVm),
    STRUCT(KVM_SET_PIT2, kVm),
    UNSIZED(KVM_REINJECT_CONTROL, kVm, kvm_reinject_control),
    INTEGER(KVM_SET_BOOT_CPU_ID, kVm),
    ARRAY(KVM_SET_GSI_ROUTING, kVm, kvm_irq_routing, nr, kvm_irq_routing_entry, kMaxRoutes),
    STRUCT(KVM_SIGNAL_MSI, kVm),
    STRUCT(KVM_GET_CLOCK, kVm),
    STRUCT(KVM_SET_CLOCK, kVm),
    STRUCT(KVM_REGISTER_COALESCED_MMIO, kVm),
    STRUCT(KVM_UNREGISTER_COALESCED_MMIO, kVm),
    MAKES(KVM_GET_STATS_FD, kVm | kVcpu, kNone, kStats),
    REFERS(KVM_IRQFD, kVm, kIrqfd),
    REFERS(KVM_IOEVENTFD, kVm, kIoeventfd),
    REFERS(KVM_HYPERV_EVENTFD, kVm, kHypervEventfd),
    REFERS(KVM_X86_SET_MSR_FILTER, kVm, kMsrFilter),
    ARRAY(KVM_SET_PMU_EVENT_FILTER, kVm, kvm_pmu_event_filter, nevents, __u64, kMaxPmuEvents),
    REFERS_DONE(KVM_XEN_HVM_CONFIG, kVm, kXenConfig, XenKeepBlobs),
    REFERS(KVM_XEN_HVM_GET_ATTR, kVm, kXenAttr),
    REFERS_DONE(KVM_XEN_HVM_SET_ATTR, kVm, kXenAttr, XenKeepSharedInfo),
    STRUCT(KVM_XEN_HVM_EVTCHN_SEND, kVm),
    REFERS_MORE(KVM_MEMORY_ENCRYPT_OP, kVm | kVcpu, kEncryptMore, kEncryptOp),
    REFERS(KVM_MEMORY_ENCRYPT_REG_REGION, kVm, kEncRegion),
    REFERS(KVM_MEMORY_ENCRYPT_UNREG_REGION, kVm, kEncRegion),
    {"KVM_CREATE_DEVICE", KVM_CREATE_DEVICE, kVm, Arg::kStruct, kDevice, 0, 0, 0, nullptr, 0, nullptr,
     offsetof(kvm_create_device, fd)},
    REFERS_DONE(KVM_ENABLE_CAP, kVm | kVcpu, kEnableCap, NoteRing),
    REFERS(KVM_SET_DEVICE_ATTR, kSystem | kVm | kVcpu | kDevice, kSetAttr),
    REFERS(KVM_GET_DEVICE_ATTR, kSystem | kVm | kVcpu | kDevice, kGetAttr),
    STRUCT(KVM_HAS_DEVICE_ATTR, kSystem | kVm | kVcpu | kDevice),
    REFERS(KVM_GET_ONE_REG, kVcpu, kGetOneReg),
    REFERS(KVM_SET_ONE_REG, kVcpu, kSetOneReg),
    ARRAY(KVM_GET_REG_LIST, kVcpu, kvm_reg_list, n, __u64, kMaxRegs),
    REFERS(KVM_XEN_VCPU_GET_ATTR, kVcpu, kXenVcpuAttr),
    REFERS_DONE(KVM_XEN_VCPU_SET_ATTR, kVcpu, kXenVcpuAttr, XenKeepVcpuInfo),

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
    SIZED(KVM_GET_XSAVE2, kVcpu, kXsaveLeast, kXsaveMost),
    SIZED(KVM_SET_XSAVE, kVcpu, kXsaveLeast, kXsaveMost),
    COUNTED(KVM_GET_NESTED_STATE, kVcpu, kvm_nested_state, size, kNestedMost),
    COUNTED(KVM_SET_NESTED_STATE, kVcpu, kvm_nested_state, size, kNestedMost),
    STRUCT(KVM_TPR_ACCESS_REPORTING, kVcpu),
    STRUCT(KVM_SET_VAPIC_ADDR, kVcpu),
    STRUCT(KVM_X86_SETUP_MCE, kVcpu),
    STRUCT(KVM_X86_SET_MCE, kVcpu),
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

}  // namespace

const Row* Find(unsigned long request) {
  const auto* row = std::find_if(std::begin(kRows), std::end(kRows),
                                 [request](const Row& row) { return row.request == request; });
  return row == std::end(kRows) ? nullptr : row;
}

static Napi::Value InsideOf(Napi::Env env, const Reference& reference) {
  auto commands = Napi::Array::New(env);
  for (uint32_t i = 0; i < reference.inside_count; i++) {
    const Inside& inside = reference.inside[i];
    auto command = Napi::Object::New(env);
    command["id"] = Napi::Number::New(env, inside.id);
    command["family"] = Napi::String::New(env, inside.family);
    command["size"] = Napi::Number::New(env, inside.size);
    auto references = Napi::Array::New(env);
    for (uint32_t j = 0; j < inside.reference_count; j++) {
      auto described = Napi::Object::New(env);
      described["name"] = Napi::String::New(env, inside.references[j].name);
      described["is"] = Napi::Number::New(env, static_cast<int>(inside.references[j].is));
      described["way"] = Napi::Number::New(env, inside.references[j].way);
      described["offset"] = Napi::Number::New(env, inside.references[j].offset);
      references[j] = described;
    }
    command["references"] = references;
    commands[i] = command;
  }
  return commands;
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
    object["countSize"] = Napi::Number::New(env, static_cast<double>(row.count_size));
    object["least"] = Napi::Number::New(env, static_cast<double>(row.least));
    object["most"] = Napi::Number::New(env, static_cast<double>(row.most));
    auto references = Napi::Array::New(env);
    uint32_t next = 0;
    for (const Reference* reference = row.references; reference < row.references + row.reference_count;
         reference++) {
      for (uint32_t i = 0; i < reference->repeat; i++) {
        auto described = Napi::Object::New(env);
        described["name"] = Napi::String::New(env, reference->name);
        described["is"] = Napi::Number::New(env, static_cast<int>(reference->is));
        described["size"] = Napi::Number::New(env, reference->size);
        described["way"] = Napi::Number::New(env, reference->way);
        described["kinds"] = Napi::Number::New(env, reference->kinds);
        described["offset"] = Napi::Number::New(env, reference->offset + i * reference->stride);
        described["inside"] = InsideOf(env, *reference);
        references[next++] = described;
      }
    }
    object["references"] = references;
    rows[index++] = object;
  }
  return rows;
}

}  // namespace vmexit
