/**
 * Commands of KVM_MEMORY_ENCRYPT_OP for encrypted guests (amd-memory-encryption.rst, intel-tdx.rst). Their structs are in
 * encryption.ts.
 */

/** KVM_SEV_*: kvm_sev_cmd.id. The struct of a command that takes one is named with it. */
export const SevCommand = {
  /** Makes an SEV guest of the VM. Older than INIT2, for VMs of type DEFAULT. */
  INIT: 0,
  /** Makes an SEV-ES guest of the VM. Older than INIT2, for VMs of type DEFAULT. */
  ES_INIT: 1,
  /** kvm_sev_launch_start: makes the guest's key. */
  LAUNCH_START: 2,
  /** kvm_sev_launch_update_data: encrypts memory in place, and measures it. */
  LAUNCH_UPDATE_DATA: 3,
  /** Encrypts the registers of the vCPUs, and measures them (SEV-ES). */
  LAUNCH_UPDATE_VMSA: 4,
  /** kvm_sev_launch_secret: puts a secret into a guest that has been measured. */
  LAUNCH_SECRET: 5,
  /** kvm_sev_launch_measure: gives the measurement. */
  LAUNCH_MEASURE: 6,
  /** The guest can run from here on. */
  LAUNCH_FINISH: 7,
  /** kvm_sev_send_start: begins to send the guest to another host. */
  SEND_START: 8,
  /** kvm_sev_send_update_data: gives memory, encrypted for the way. */
  SEND_UPDATE_DATA: 9,
  /** Registers of SEV-ES. KVM does not implement it. */
  SEND_UPDATE_VMSA: 10,
  /** Ends the sending. */
  SEND_FINISH: 11,
  /** kvm_sev_receive_start: begins to receive a guest. */
  RECEIVE_START: 12,
  /** kvm_sev_receive_update_data: takes memory that was encrypted for the way. */
  RECEIVE_UPDATE_DATA: 13,
  /** Registers of SEV-ES. KVM does not implement it. */
  RECEIVE_UPDATE_VMSA: 14,
  /** The guest that was received can run from here on. */
  RECEIVE_FINISH: 15,
  /** kvm_sev_guest_status. */
  GUEST_STATUS: 16,
  /** kvm_sev_dbg: decrypts memory, where the guest's policy allows debugging. */
  DBG_DECRYPT: 17,
  /** kvm_sev_dbg: encrypts memory, where the guest's policy allows debugging. */
  DBG_ENCRYPT: 18,
  /** KVM does not implement it. */
  CERT_EXPORT: 19,
  /** kvm_sev_attestation_report (since 5.13). */
  GET_ATTESTATION_REPORT: 20,
  /** Takes a SEND_START back (since 5.13). */
  SEND_CANCEL: 21,
  /** kvm_sev_init: makes an encrypted guest of the VM, of the type that KVM_CREATE_VM was given (since 6.10). */
  INIT2: 22,
  /** kvm_sev_snp_launch_start (since 6.11). */
  SNP_LAUNCH_START: 100,
  /** kvm_sev_snp_launch_update: puts pages into private memory, and measures them (since 6.11). */
  SNP_LAUNCH_UPDATE: 101,
  /** kvm_sev_snp_launch_finish: the guest can run from here on (since 6.11). */
  SNP_LAUNCH_FINISH: 102,
  /** Requests for certificates become Exit.SNP_REQ_CERTS. Newer than 6.12. */
  SNP_ENABLE_REQ_CERTS: 103,
} as const;
/** One of the numbers in the table {@link SevCommand}. */
export type SevCommand = (typeof SevCommand)[keyof typeof SevCommand];

/** KVM_SEV_SNP_PAGE_TYPE_*: kvm_sev_snp_launch_update.type. */
export const SnpPageType = {
  /** KVM_SEV_PAGE_TYPE_INVALID: none. */
  INVALID: 0,
  /** Contents that are measured. */
  NORMAL: 1,
  /** Zeroes. */
  ZERO: 3,
  /** Contents of which only the place is measured. */
  UNMEASURED: 4,
  /** The page where the firmware puts the guest's keys. */
  SECRETS: 5,
  /** CPUID leaves, which the firmware checks. */
  CPUID: 6,
} as const;
/** One of the numbers in the table {@link SnpPageType}. */
export type SnpPageType = (typeof SnpPageType)[keyof typeof SnpPageType];

/** KVM_SEV_SNP_*_SIZE: bytes of what kvm_sev_snp_launch_finish takes. */
export const SnpSize = {
  /** The identity block. */
  ID_BLOCK: 96,
  /** Its signatures and keys. */
  ID_AUTH: 4096,
  /** The host's data, which the attestation report repeats. */
  FINISH_DATA: 32,
} as const;

/** KVM_TDX_* (since 6.16): kvm_tdx_cmd.id. The struct of a command that takes one is named with it. */
export const TdxCommand = {
  /** kvm_tdx_capabilities, of a VM. */
  CAPABILITIES: 0,
  /** kvm_tdx_init_vm, of a VM before its vCPUs. */
  INIT_VM: 1,
  /** Of a vCPU: `data` is the guest's RCX at its start. */
  INIT_VCPU: 2,
  /** kvm_tdx_init_mem_region, of a vCPU: copies pages into private memory. */
  INIT_MEM_REGION: 3,
  /** Of a VM: it can run from here on. */
  FINALIZE_VM: 4,
  /** kvm_cpuid2, of a vCPU: what the TDX module shows the guest. */
  GET_CPUID: 5,
} as const;
/** One of the numbers in the table {@link TdxCommand}. */
export type TdxCommand = (typeof TdxCommand)[keyof typeof TdxCommand];

/** KVM_TDX_*: kvm_tdx_cmd.flags of TdxCommand.INIT_MEM_REGION. */
export const TdxMemRegionFlag = {
  /** The pages' contents are measured. */
  MEASURE_MEMORY_REGION: 1 << 0,
} as const;
