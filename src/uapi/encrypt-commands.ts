/**
 * The commands of KVM_MEMORY_ENCRYPT_OP as one table: a row says of what it is a command, which struct it takes, and which
 * of that struct's fields are pointers, to what. amd-memory-encryption.rst; intel-tdx.rst.
 */
import { SevCommand, TdxCommand } from './constants.ts';
import * as e from './encryption.ts';
import type { Struct } from './layout.ts';
import { kvm_cpuid2 } from './x86.ts';

/** What a command is issued on: any VM but a TDX one, a TDX VM, or its vCPU. */
export type EncryptFamily = 'Sev' | 'TdxVm' | 'TdxVcpu';

/** A pointer in a command's struct. */
export interface EncryptPointer {
  /** `memory`: guest memory. `in`, `out`: bytes that the kernel reads, or writes. */
  readonly to: 'memory' | 'in' | 'out';
  /** The field that counts the bytes, where one does. */
  readonly length?: string;
}

/** One command of KVM_MEMORY_ENCRYPT_OP. */
export interface EncryptCommand {
  /** What it is issued on. */
  readonly family: EncryptFamily;
  /** kvm_sev_cmd.id or kvm_tdx_cmd.id: one of SevCommand or TdxCommand. */
  readonly id: number;
  /** What `data` points to; without it, it is no pointer. */
  readonly data?: Struct;
  /** Leaves of CPUID follow the struct, as many as its `nent` says. */
  readonly list?: boolean;
  /** By field, in the order in which they are given to a backend. */
  readonly pointers: Readonly<Record<string, EncryptPointer>>;
}

const to = (way: 'in' | 'out' | 'memory', length?: string): EncryptPointer =>
  length === undefined ? { to: way } : { to: way, length };
const sev = (id: SevCommand, data?: Struct, pointers: EncryptCommand['pointers'] = {}): EncryptCommand =>
  data === undefined ? { family: 'Sev', id, pointers } : { family: 'Sev', id, data, pointers };

const packet = (way: 'in' | 'out') => ({
  hdrUaddr: to(way, 'hdrLen'),
  guestUaddr: to('memory', 'guestLen'),
  transUaddr: to(way, 'transLen'),
});
const session = (way: 'in' | 'out') => ({ sessionUaddr: to(way, 'sessionLen') });

const table = <N extends string>(rows: Record<N, EncryptCommand>): Readonly<Record<N, EncryptCommand>> =>
  rows;

/** The commands, by the kernel's names. One that is not here cannot be issued: KVM implements none of those. */
export const encryptCommands = table({
  KVM_SEV_INIT: sev(SevCommand.INIT),
  KVM_SEV_ES_INIT: sev(SevCommand.ES_INIT),
  KVM_SEV_LAUNCH_START: sev(SevCommand.LAUNCH_START, e.kvm_sev_launch_start, {
    dhUaddr: to('in', 'dhLen'),
    ...session('in'),
  }),
  KVM_SEV_LAUNCH_UPDATE_DATA: sev(SevCommand.LAUNCH_UPDATE_DATA, e.kvm_sev_launch_update_data, {
    uaddr: to('memory', 'len'),
  }),
  KVM_SEV_LAUNCH_UPDATE_VMSA: sev(SevCommand.LAUNCH_UPDATE_VMSA),
  KVM_SEV_LAUNCH_SECRET: sev(SevCommand.LAUNCH_SECRET, e.kvm_sev_launch_secret, packet('in')),
  KVM_SEV_LAUNCH_MEASURE: sev(SevCommand.LAUNCH_MEASURE, e.kvm_sev_launch_measure, {
    uaddr: to('out', 'len'),
  }),
  KVM_SEV_LAUNCH_FINISH: sev(SevCommand.LAUNCH_FINISH),
  KVM_SEV_SEND_START: sev(SevCommand.SEND_START, e.kvm_sev_send_start, {
    pdhCertUaddr: to('in', 'pdhCertLen'),
    platCertsUaddr: to('in', 'platCertsLen'),
    amdCertsUaddr: to('in', 'amdCertsLen'),
    ...session('out'),
  }),
  KVM_SEV_SEND_UPDATE_DATA: sev(SevCommand.SEND_UPDATE_DATA, e.kvm_sev_send_update_data, packet('out')),
  KVM_SEV_SEND_FINISH: sev(SevCommand.SEND_FINISH),
  KVM_SEV_RECEIVE_START: sev(SevCommand.RECEIVE_START, e.kvm_sev_receive_start, {
    pdhUaddr: to('in', 'pdhLen'),
    ...session('in'),
  }),
  KVM_SEV_RECEIVE_UPDATE_DATA: sev(
    SevCommand.RECEIVE_UPDATE_DATA,
    e.kvm_sev_receive_update_data,
    packet('in'),
  ),
  KVM_SEV_RECEIVE_FINISH: sev(SevCommand.RECEIVE_FINISH),
  KVM_SEV_GUEST_STATUS: sev(SevCommand.GUEST_STATUS, e.kvm_sev_guest_status),
  KVM_SEV_DBG_DECRYPT: sev(SevCommand.DBG_DECRYPT, e.kvm_sev_dbg, {
    srcUaddr: to('memory', 'len'),
    dstUaddr: to('out', 'len'),
  }),
  KVM_SEV_DBG_ENCRYPT: sev(SevCommand.DBG_ENCRYPT, e.kvm_sev_dbg, {
    srcUaddr: to('in', 'len'),
    dstUaddr: to('memory', 'len'),
  }),
  KVM_SEV_GET_ATTESTATION_REPORT: sev(SevCommand.GET_ATTESTATION_REPORT, e.kvm_sev_attestation_report, {
    uaddr: to('out', 'len'),
  }),
  KVM_SEV_SEND_CANCEL: sev(SevCommand.SEND_CANCEL),
  KVM_SEV_INIT2: sev(SevCommand.INIT2, e.kvm_sev_init),
  KVM_SEV_SNP_LAUNCH_START: sev(SevCommand.SNP_LAUNCH_START, e.kvm_sev_snp_launch_start),
  KVM_SEV_SNP_LAUNCH_UPDATE: sev(SevCommand.SNP_LAUNCH_UPDATE, e.kvm_sev_snp_launch_update, {
    uaddr: to('memory', 'len'),
  }),
  KVM_SEV_SNP_LAUNCH_FINISH: sev(SevCommand.SNP_LAUNCH_FINISH, e.kvm_sev_snp_launch_finish, {
    idBlockUaddr: to('in'),
    idAuthUaddr: to('in'),
  }),
  KVM_SEV_SNP_ENABLE_REQ_CERTS: sev(SevCommand.SNP_ENABLE_REQ_CERTS),
  KVM_TDX_CAPABILITIES: {
    family: 'TdxVm',
    id: TdxCommand.CAPABILITIES,
    data: e.kvm_tdx_capabilities,
    list: true,
    pointers: {},
  },
  KVM_TDX_INIT_VM: {
    family: 'TdxVm',
    id: TdxCommand.INIT_VM,
    data: e.kvm_tdx_init_vm,
    list: true,
    pointers: {},
  },
  KVM_TDX_INIT_VCPU: { family: 'TdxVcpu', id: TdxCommand.INIT_VCPU, pointers: {} },
  KVM_TDX_INIT_MEM_REGION: {
    family: 'TdxVcpu',
    id: TdxCommand.INIT_MEM_REGION,
    data: e.kvm_tdx_init_mem_region,
    pointers: { sourceAddr: to('memory') },
  },
  KVM_TDX_FINALIZE_VM: { family: 'TdxVm', id: TdxCommand.FINALIZE_VM, pointers: {} },
  KVM_TDX_GET_CPUID: {
    family: 'TdxVcpu',
    id: TdxCommand.GET_CPUID,
    data: kvm_cpuid2,
    list: true,
    pointers: {},
  },
});

/** The kernel's name of a command of KVM_MEMORY_ENCRYPT_OP: a key of `encryptCommands`. */
export type EncryptCommandName = keyof typeof encryptCommands;
