/** Devices and attributes. */

/** KVM_DEV_TYPE_*: kvm_create_device.type. x86 has VFIO only. */
export const DeviceType = {
  /** KVM_DEV_TYPE_VFIO: tells KVM of VFIO groups. */
  VFIO: 4,
} as const;

/** KVM_CREATE_DEVICE_*: kvm_create_device.flags. */
export const CreateDeviceFlag = {
  /** Makes none, and says whether one could be made. */
  TEST: 1,
} as const;

/** KVM_DEV_VFIO_*: the group and the attributes of DeviceType.VFIO. The names with GROUP are older ones. */
export const VfioAttr = {
  /** The group of attributes. */
  FILE: 1,
  /** An attribute: KVM is told of a VFIO file. */
  FILE_ADD: 1,
  /** An attribute: KVM forgets it. */
  FILE_DEL: 2,
  /** As FILE. */
  GROUP: 1,
  /** As FILE_ADD. */
  GROUP_ADD: 1,
  /** As FILE_DEL. */
  GROUP_DEL: 2,
} as const;

/** KVM_X86_*: groups of attributes of /dev/kvm (KVM_CAP_SYS_ATTRIBUTES), and the attributes in them. */
export const SystemAttr = {
  /** The group of what every x86 host has. */
  GRP_SYSTEM: 0,
  /** In GRP_SYSTEM: the XSAVE components that a guest may have, with those that a process has to ask its kernel for. */
  XCOMP_GUEST_SUPP: 0,
  /** The group of AMD's memory encryption. */
  GRP_SEV: 1,
  /** In GRP_SEV: the bits that kvm_sev_init.vmsaFeatures can have. */
  SEV_VMSA_FEATURES: 0,
  /** In GRP_SEV: the bits that an SNP guest's policy can have. Newer than 6.12. */
  SNP_POLICY_BITS: 1,
  /** In GRP_SEV: 1 where SevCommand.SNP_ENABLE_REQ_CERTS is there. Newer than 6.12. */
  SEV_SNP_REQ_CERTS: 2,
} as const;

/** KVM_VCPU_TSC_*: the group of a vCPU's attributes that is its time-stamp counter, and what is in it. */
export const VcpuTscAttr = {
  /** The group. */
  CTRL: 0,
  /** What is added to the host's counter, 64 bits (since 5.16). */
  OFFSET: 0,
} as const;
