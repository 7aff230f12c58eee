// What KVM is told of a Xen guest: the references of its structs, and the memory that it uses from then on.
#pragma once

#include <errno.h>

#include <cstring>

#include "abi.h"
#include "references.h"
#include "run.h"

namespace vmexit {

// Newer than the header that the addon may be built against: the types of attributes that are given as an
// address here, and not in the guest (6.9).
enum : uint16_t { kXenSharedInfoHva = 6, kXenVcpuInfoHva = 9 };
// Xen's EVTCHNSTAT_interdomain: the only kind of channel that an eventfd can be behind.
enum : uint32_t { kXenInterdomain = 2 };
enum : size_t { kXenPage = 4096, kXenVcpuInfoSize = 64 };

constexpr size_t kXenAttrValue = offsetof(kvm_xen_hvm_attr, u);
constexpr size_t kXenVcpuAttrValue = offsetof(kvm_xen_vcpu_attr, u);

template <typename T>
T XenField(const uint8_t* argument, size_t offset) {
  T value{};
  memcpy(&value, argument + offset, sizeof(value));
  return value;
}

template <size_t pages>
int64_t XenBlobSize(const Handle&, const uint8_t* argument) {
  return int64_t{XenField<uint8_t>(argument, pages)} * int64_t{kXenPage};
}

constexpr Reference kXenConfig[] = {
    {.name = "blobAddr32",
     .is = Reference::kPlace,
     .way = 0,
     .size = 8,
     .offset = offsetof(kvm_xen_hvm_config, blob_addr_32),
     .kinds = kMemory,
     .length = XenBlobSize<offsetof(kvm_xen_hvm_config, blob_size_32)>,
     .required = true},
    {.name = "blobAddr64",
     .is = Reference::kPlace,
     .way = 0,
     .size = 8,
     .offset = offsetof(kvm_xen_hvm_config, blob_addr_64),
     .kinds = kMemory,
     .length = XenBlobSize<offsetof(kvm_xen_hvm_config, blob_size_64)>,
     .required = true},
};

// Also for reading: what the kernel answers there is an address of this process, and stays here.
constexpr Reference kXenAttr[] = {
    {.name = "sharedInfoHva",
     .is = Reference::kPlace,
     .way = 0,
     .size = 8,
     .offset = kXenAttrValue,
     .kinds = kMemory,
     .length = [](const Handle&, const uint8_t*) -> int64_t { return kXenPage; },
     .applies = [](const uint8_t* argument) { return XenField<uint16_t>(argument, 0) == kXenSharedInfoHva; }},
    {.name = "evtchnFd",
     .is = Reference::kFd,
     .way = 0,
     .size = 4,
     .offset = offsetof(kvm_xen_hvm_attr, u.evtchn.deliver.eventfd.fd),
     .kinds = kEventFd,
     .applies =
         [](const uint8_t* argument) {
           kvm_xen_hvm_attr attr;
           memcpy(&attr, argument, sizeof(attr));
           return attr.type == KVM_XEN_ATTR_TYPE_EVTCHN && attr.u.evtchn.flags == 0 &&
                  attr.u.evtchn.type == kXenInterdomain && attr.u.evtchn.deliver.port.port == 0;
         }},
};
constexpr Reference kXenVcpuAttr[] = {
    {.name = "vcpuInfoHva",
     .is = Reference::kPlace,
     .way = 0,
     .size = 8,
     .offset = kXenVcpuAttrValue,
     .kinds = kMemory,
     .length = [](const Handle&, const uint8_t*) -> int64_t { return kXenVcpuInfoSize; },
     .applies = [](const uint8_t* argument) { return XenField<uint16_t>(argument, 0) == kXenVcpuInfoHva; }},
};

// Which of the VM's pins: what was there under the same key is no longer used.
enum XenPin : uint32_t { kXenBlob32, kXenBlob64, kXenSharedInfo, kXenVcpuInfo };

inline void XenKeepBlobs(Handle* vm, const uint8_t*, const Resolved& references) {
  vm->slots->pins[{kXenBlob32, 0}] = references.mapping(0);
  vm->slots->pins[{kXenBlob64, 0}] = references.mapping(1);
}
inline void XenKeepSharedInfo(Handle* vm, const uint8_t* argument, const Resolved& references) {
  const auto type = XenField<uint16_t>(argument, 0);
  if (type == KVM_XEN_ATTR_TYPE_SHARED_INFO || type == kXenSharedInfoHva)
    vm->slots->pins[{kXenSharedInfo, 0}] = references.mapping(0);
}
inline void XenKeepVcpuInfo(Handle* vcpu, const uint8_t* argument, const Resolved& references) {
  const auto type = XenField<uint16_t>(argument, 0);
  if (type == KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO || type == kXenVcpuInfoHva)
    vcpu->slots->pins[{kXenVcpuInfo, vcpu->run->id}] = references.mapping(0);
}

}  // namespace vmexit
