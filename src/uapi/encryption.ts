/**
 * The structs of KVM_MEMORY_ENCRYPT_OP: a command and, behind its `data`, what the command takes. In each, `*Uaddr` is a
 * pointer in the VMM's memory and `*Len` its bytes.
 */
import { array, bytes, size64, struct, u8, u16, u32, u64 } from './layout.ts';
import { kvm_cpuid2 } from './x86.ts';

/** A command to AMD's firmware: `id` is one of SevCommand, `sevFd` /dev/sev. `error` is the firmware's answer. */
export const kvm_sev_cmd = struct('kvm_sev_cmd', { id: u32, pad0: u32, data: u64, error: u32, sevFd: u32 });

/** SevCommand.INIT2 (since 6.10). `vmsaFeatures`: see SystemAttr.SEV_VMSA_FEATURES. */
export const kvm_sev_init = struct('kvm_sev_init', {
  vmsaFeatures: u64,
  flags: u32,
  ghcbVersion: u16,
  pad1: u16,
  pad2: array(u32, 8),
});

/** SevCommand.LAUNCH_START. The firmware answers in `handle`. */
export const kvm_sev_launch_start = struct('kvm_sev_launch_start', {
  handle: u32,
  policy: u32,
  dhUaddr: u64,
  dhLen: u32,
  pad0: u32,
  sessionUaddr: u64,
  sessionLen: u32,
  pad1: u32,
});

/** SevCommand.LAUNCH_UPDATE_DATA. */
export const kvm_sev_launch_update_data = struct('kvm_sev_launch_update_data', {
  uaddr: u64,
  len: u32,
  pad0: u32,
});

/** A packet: its header, the guest's memory, and what travels. */
const packet = {
  hdrUaddr: u64,
  hdrLen: u32,
  pad0: u32,
  guestUaddr: u64,
  guestLen: u32,
  pad1: u32,
  transUaddr: u64,
  transLen: u32,
  pad2: u32,
};

/** SevCommand.LAUNCH_SECRET. */
export const kvm_sev_launch_secret = struct('kvm_sev_launch_secret', packet);

/** SevCommand.LAUNCH_MEASURE. */
export const kvm_sev_launch_measure = struct('kvm_sev_launch_measure', { uaddr: u64, len: u32, pad0: u32 });

/** SevCommand.GUEST_STATUS. */
export const kvm_sev_guest_status = struct('kvm_sev_guest_status', { handle: u32, policy: u32, state: u32 });

/** SevCommand.DBG_DECRYPT, SevCommand.DBG_ENCRYPT. */
export const kvm_sev_dbg = struct('kvm_sev_dbg', { srcUaddr: u64, dstUaddr: u64, len: u32, pad0: u32 });

/** SevCommand.GET_ATTESTATION_REPORT. */
export const kvm_sev_attestation_report = struct('kvm_sev_attestation_report', {
  mnonce: bytes(16),
  uaddr: u64,
  len: u32,
  pad0: u32,
});

/** SevCommand.SEND_START. */
export const kvm_sev_send_start = struct('kvm_sev_send_start', {
  policy: u32,
  pad0: u32,
  pdhCertUaddr: u64,
  pdhCertLen: u32,
  pad1: u32,
  platCertsUaddr: u64,
  platCertsLen: u32,
  pad2: u32,
  amdCertsUaddr: u64,
  amdCertsLen: u32,
  pad3: u32,
  sessionUaddr: u64,
  sessionLen: u32,
  pad4: u32,
});

/** SevCommand.SEND_UPDATE_DATA. */
export const kvm_sev_send_update_data = struct('kvm_sev_send_update_data', packet);

/** SevCommand.RECEIVE_START. The firmware answers in `handle`. */
export const kvm_sev_receive_start = struct('kvm_sev_receive_start', {
  handle: u32,
  policy: u32,
  pdhUaddr: u64,
  pdhLen: u32,
  pad0: u32,
  sessionUaddr: u64,
  sessionLen: u32,
  pad1: u32,
});

/** SevCommand.RECEIVE_UPDATE_DATA. */
export const kvm_sev_receive_update_data = struct('kvm_sev_receive_update_data', packet);

/** SevCommand.SNP_LAUNCH_START (since 6.11). `gosvw`: the workarounds that the guest is told of. */
export const kvm_sev_snp_launch_start = struct('kvm_sev_snp_launch_start', {
  policy: u64,
  gosvw: bytes(16),
  flags: u16,
  pad0: bytes(6),
  pad1: array(u64, 4),
});

/** SevCommand.SNP_LAUNCH_UPDATE (since 6.11). `type` is one of SnpPageType. The kernel moves `gfnStart` on. */
export const kvm_sev_snp_launch_update = struct('kvm_sev_snp_launch_update', {
  gfnStart: size64,
  uaddr: u64,
  len: size64,
  type: u8,
  pad0: u8,
  flags: u16,
  pad1: u32,
  pad2: array(u64, 4),
});

/** SevCommand.SNP_LAUNCH_FINISH (since 6.11). Sizes are in SnpSize. */
export const kvm_sev_snp_launch_finish = struct('kvm_sev_snp_launch_finish', {
  idBlockUaddr: u64,
  idAuthUaddr: u64,
  idBlockEn: u8,
  authKeyEn: u8,
  vcekDisabled: u8,
  hostData: bytes(32),
  pad0: bytes(3),
  flags: u16,
  pad1: array(u64, 4),
});

/** A command to Intel's TDX module (since 6.16): `id` is one of TdxCommand, `hwError` the module's answer. */
export const kvm_tdx_cmd = struct('kvm_tdx_cmd', { id: u32, flags: u32, data: u64, hwError: u64 });

/** TdxCommand.CAPABILITIES. `cpuid` is the head of a list of leaves, with the bits that can be configured. */
export const kvm_tdx_capabilities = struct('kvm_tdx_capabilities', {
  supportedAttrs: u64,
  supportedXfam: u64,
  kernelTdvmcallinfo1R11: u64,
  userTdvmcallinfo1R11: u64,
  kernelTdvmcallinfo1R12: u64,
  userTdvmcallinfo1R12: u64,
  reserved: array(u64, 250),
  cpuid: kvm_cpuid2,
});

/** TdxCommand.INIT_VM. The digests are of 48 bytes; `cpuid` is the head of a list of leaves. */
export const kvm_tdx_init_vm = struct('kvm_tdx_init_vm', {
  attributes: u64,
  xfam: u64,
  mrconfigid: array(u64, 6),
  mrowner: array(u64, 6),
  mrownerconfig: array(u64, 6),
  reserved: array(u64, 12),
  cpuid: kvm_cpuid2,
});

/** TdxCommand.INIT_MEM_REGION. `sourceAddr` is a pointer. */
export const kvm_tdx_init_mem_region = struct('kvm_tdx_init_mem_region', {
  sourceAddr: u64,
  gpa: size64,
  nrPages: size64,
});
