// The commands of KVM_MEMORY_ENCRYPT_OP: what struct `data` leads to, and which pointers that has itself. A
// command that is not here is refused, for nobody would know what it points to. Offsets as in src/uapi, where
// they are held against the header; the header that the addon is built against may lack the newer ones.
#pragma once

#include <errno.h>

#include <cstring>

#include "abi.h"
#include "references.h"

namespace vmexit {

enum : uint64_t { kTdxVm = 5 };  // KVM_X86_TDX_VM

// More than the firmware's largest blob (SEV_FW_BLOB_MAX_SIZE, 16 KiB).
constexpr int64_t kEncryptMost = 64 << 10;

template <typename T>
int64_t EncryptField(const uint8_t* data, size_t offset) {
  T value{};
  memcpy(&value, data + offset, sizeof(value));
  return value > static_cast<T>(INT64_MAX) ? -EINVAL : static_cast<int64_t>(value);
}

template <uint16_t offset>
int64_t BlobLength(const Handle&, const uint8_t* data) {
  const int64_t length = EncryptField<uint32_t>(data, offset);
  return length > kEncryptMost ? -EINVAL : length;
}
template <uint16_t offset>
int64_t PlaceLength(const Handle&, const uint8_t* data) {
  return EncryptField<uint32_t>(data, offset);
}
template <int64_t bytes, uint16_t flag>
int64_t FixedLength(const Handle&, const uint8_t* data) {
  return data[flag] ? bytes : 0;
}

// Bytes of JS's at `offset`, as many as the 32 bits at `length` say; and guest memory, likewise.
template <uint16_t length>
constexpr Reference Blob(const char* name, uint8_t way, uint16_t offset) {
  return {.name = name,
          .is = Reference::kBytes,
          .way = way,
          .size = 8,
          .offset = offset,
          .length = BlobLength<length>};
}
template <uint16_t length>
constexpr Reference Guest(const char* name, uint16_t offset) {
  return {.name = name,
          .is = Reference::kPlace,
          .way = 0,
          .size = 8,
          .offset = offset,
          .kinds = kMemory,
          .length = PlaceLength<length>,
          .required = true};
}

constexpr uint8_t kIn = Reference::kIn;
constexpr uint8_t kOut = Reference::kOut;

constexpr Reference kLaunchStart[] = {Blob<16>("dhUaddr", kIn, 8), Blob<32>("sessionUaddr", kIn, 24)};
constexpr Reference kLaunchUpdate[] = {Guest<8>("uaddr", 0)};
constexpr Reference kLaunchMeasure[] = {Blob<8>("uaddr", kOut, 0)};
constexpr Reference kPacketIn[] = {Blob<8>("hdrUaddr", kIn, 0), Guest<24>("guestUaddr", 16),
                                   Blob<40>("transUaddr", kIn, 32)};
constexpr Reference kPacketOut[] = {Blob<8>("hdrUaddr", kOut, 0), Guest<24>("guestUaddr", 16),
                                    Blob<40>("transUaddr", kOut, 32)};
constexpr Reference kSendStart[] = {Blob<16>("pdhCertUaddr", kIn, 8), Blob<32>("platCertsUaddr", kIn, 24),
                                    Blob<48>("amdCertsUaddr", kIn, 40), Blob<64>("sessionUaddr", kOut, 56)};
constexpr Reference kReceiveStart[] = {Blob<16>("pdhUaddr", kIn, 8), Blob<32>("sessionUaddr", kIn, 24)};
constexpr Reference kDbgDecrypt[] = {Guest<16>("srcUaddr", 0), Blob<16>("dstUaddr", kOut, 8)};
constexpr Reference kDbgEncrypt[] = {Blob<16>("srcUaddr", kIn, 0), Guest<16>("dstUaddr", 8)};
constexpr Reference kReport[] = {Blob<24>("uaddr", kOut, 16)};
// Pages of zeroes (KVM_SEV_SNP_PAGE_TYPE_ZERO, 3) have no source.
constexpr Reference kSnpUpdate[] = {
    {.name = "uaddr",
     .is = Reference::kPlace,
     .way = 0,
     .size = 8,
     .offset = 8,
     .kinds = kMemory,
     .length = [](const Handle&, const uint8_t* data) { return EncryptField<uint64_t>(data, 16); },
     .applies = [](const uint8_t* data) { return data[24] != 3; },
     .required = true},
};
constexpr Reference kSnpFinish[] = {
    {.name = "idBlockUaddr",
     .is = Reference::kBytes,
     .way = kIn,
     .size = 8,
     .offset = 0,
     .length = FixedLength<96, 16>},
    {.name = "idAuthUaddr",
     .is = Reference::kBytes,
     .way = kIn,
     .size = 8,
     .offset = 8,
     .length = FixedLength<4096, 16>},
};
constexpr Reference kTdxMemRegion[] = {
    {.name = "sourceAddr",
     .is = Reference::kPlace,
     .way = 0,
     .size = 8,
     .offset = 0,
     .kinds = kMemory,
     .length = [](const Handle&, const uint8_t* data) -> int64_t {
       const int64_t pages = EncryptField<uint64_t>(data, 16);
       return pages > INT64_MAX / 4096 ? -EINVAL : pages * 4096;
     },
     .required = true},
};

constexpr bool Sev(const Handle& on) { return on.kind == kVm && on.flags != kTdxVm; }
constexpr bool TdxVm(const Handle& on) { return on.kind == kVm && on.flags == kTdxVm; }
constexpr bool TdxVcpu(const Handle& on) { return on.kind == kVcpu && on.flags == kTdxVm; }

#define PLAIN(id, of, bytes) \
  { id, #of, of, bytes }
#define NESTED(id, of, bytes, refs) \
  { id, #of, of, bytes, refs, std::size(refs) }
constexpr Inside kEncryptCommands[] = {
    PLAIN(0, Sev, 0),
    PLAIN(1, Sev, 0),
    NESTED(2, Sev, 40, kLaunchStart),
    NESTED(3, Sev, 16, kLaunchUpdate),
    PLAIN(4, Sev, 0),
    NESTED(5, Sev, 48, kPacketIn),
    NESTED(6, Sev, 16, kLaunchMeasure),
    PLAIN(7, Sev, 0),
    NESTED(8, Sev, 72, kSendStart),
    NESTED(9, Sev, 48, kPacketOut),
    PLAIN(11, Sev, 0),
    NESTED(12, Sev, 40, kReceiveStart),
    NESTED(13, Sev, 48, kPacketIn),
    PLAIN(15, Sev, 0),
    PLAIN(16, Sev, 12),
    NESTED(17, Sev, 24, kDbgDecrypt),
    NESTED(18, Sev, 24, kDbgEncrypt),
    NESTED(20, Sev, 32, kReport),
    PLAIN(21, Sev, 0),
    PLAIN(22, Sev, 48),
    PLAIN(100, Sev, 64),
    NESTED(101, Sev, 64, kSnpUpdate),
    NESTED(102, Sev, 88, kSnpFinish),
    PLAIN(103, Sev, 0),
    PLAIN(0, TdxVm, Inside::kList),
    PLAIN(1, TdxVm, Inside::kList),
    PLAIN(2, TdxVcpu, 0),
    NESTED(3, TdxVcpu, 24, kTdxMemRegion),
    PLAIN(4, TdxVm, 0),
    PLAIN(5, TdxVcpu, Inside::kList),
};
#undef PLAIN
#undef NESTED

// kvm_sev_cmd and kvm_tdx_cmd have both the id first, `data` at 8, and 24 bytes; the request's number says 8.
constexpr size_t kEncryptMore = 24 - 8;
constexpr Reference kEncryptOp[] = {
    {.name = "data",
     .is = Reference::kBytes,
     .way = Reference::kIn | Reference::kOut,
     .size = 8,
     .offset = 8,
     .inside = kEncryptCommands,
     .inside_count = std::size(kEncryptCommands)},
};

}  // namespace vmexit
